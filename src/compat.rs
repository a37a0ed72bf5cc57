//! The functions of other tools under their names, so that tests can be migrated line by line.
//!
//! * [`portpicker`]: the functions of the Python package. Here the ports are leased.
//! * [`cpython`]: the helpers of CPython's test suite, `test.support.socket_helper`.
//! * [`pysys`]: the port allocation of the PySys test framework.
//!
//! The names are spelled as Rust spells them; each page shows the original, and the search of
//! this documentation finds it. New code should use [`FreePort`](crate::FreePort), on which these
//! functions are built.

pub mod cpython;
pub mod portpicker;
pub mod pysys;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    bindfree::Protocol,
    builder::Builder,
    error::{ErrorKind, Result},
};

/// The address family of a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// IPv4.
    #[default]
    #[doc(alias = "AF_INET")]
    V4,
    /// IPv6.
    #[doc(alias = "AF_INET6")]
    V6,
}

impl Family {
    fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    fn every_address(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// The type of a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketType {
    /// A TCP socket.
    #[default]
    #[doc(alias = "SOCK_STREAM")]
    Stream,
    /// A UDP socket.
    #[doc(alias = "SOCK_DGRAM")]
    Datagram,
}

impl SocketType {
    fn protocol(self) -> Protocol {
        match self {
            Self::Stream => Protocol::Tcp,
            Self::Datagram => Protocol::Udp,
        }
    }
}

/// Returns whether a port could be leased now. It is not an error if the port is leased, in use
/// or not permitted.
fn is_free(builder: &Builder) -> Result<bool> {
    match builder.check() {
        Ok(()) => Ok(true),
        Err(error) if error.is_busy() || error.kind() == ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}
