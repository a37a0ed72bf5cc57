//! Sockets like those of servers.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket},
};
#[cfg(unix)]
use std::{io::Read, net::TcpStream};

use socket2::{Domain, Socket, Type};

#[cfg(unix)]
use crate::LONG;

/// Returns a socket bound to `port` on every IPv4 address, without `SO_REUSEADDR`.
pub(crate) fn bind_v4(port: u16, ty: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, ty, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

/// Returns a socket bound to `port` on every address, without `SO_REUSEADDR`. On macOS it does not
/// detect a socket that is bound to every IPv4 address.
pub(crate) fn bind(port: u16, ty: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, ty, None)?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

/// Returns a TCP socket bound to `port` on every address, without `SO_REUSEADDR`. On Windows
/// that is not strict, but fails at least if another socket is bound to every address.
pub fn bind_strictly(port: u16) -> io::Result<Socket> {
    bind(port, Type::STREAM)
}

/// Returns the same socket, listening.
pub fn listen_strictly(port: u16) -> io::Result<Socket> {
    let socket = bind_strictly(port)?;
    socket.listen(8)?;
    Ok(socket)
}

/// The default number of hops of a packet.
///
/// Wine finds the process of a socket by the descriptors that the process has on the host. It has one
/// for a socket only after it has set an option of that socket.
const TTL: u32 = 64;

/// Returns a listener at a free address. The system can show its process.
#[track_caller]
pub fn listen(address: impl ToSocketAddrs) -> TcpListener {
    let listener = TcpListener::bind(address).expect("it is free");
    listener.set_ttl(TTL).expect("an option of every socket");
    listener
}

/// Returns a UDP socket bound to a free address. The system can show its process.
#[track_caller]
pub fn bind_udp(address: impl ToSocketAddrs) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("it is free");
    socket.set_ttl(TTL).expect("an option of every socket");
    socket
}

/// Leaves a connection in TIME_WAIT on the port, like a server that closes first. It binds
/// with `SO_REUSEADDR`, as servers do.
#[cfg(unix)]
#[track_caller]
pub fn leave_in_time_wait(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("it can be bound");
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens");
    let (accepted, _) = listener.accept().expect("it has connected");
    drop((accepted, listener));
    client.set_read_timeout(Some(LONG)).expect("not zero");
    assert_eq!(client.read(&mut [0]).expect("the end"), 0);
}
