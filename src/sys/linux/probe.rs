//! One strict bind sees all that is in its way.

use std::{io, net::IpAddr};

use socket2::Type;

use crate::{error::Result, search::Miss};

pub(crate) use crate::sys::unix::probe::*;

/// What a bind of `host` would not see of those who are in its way: nothing.
#[inline]
pub(crate) fn look_around(_: IpAddr, _: u16, _: Type, _: bool) -> io::Result<Option<Miss>> {
    Ok(None)
}

/// Whether a port can be held by a socket that is out of its server's way.
#[inline]
pub(crate) fn can_hold() -> Result<()> {
    Ok(())
}
