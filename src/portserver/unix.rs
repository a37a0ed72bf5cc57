//! Connects to a port server at a socket in the file system or in Linux's abstract namespace.

use std::{
    io::{self, Read as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{MAX_ANSWER_LEN, time_left};

/// A connection to a port server.
pub(crate) struct Connection(Socket);

impl Connection {
    pub(crate) fn open(address: &str, deadline: Instant) -> io::Result<Self> {
        let path = match address.strip_prefix('@') {
            Some(name) => format!("\0{name}"),
            None => address.to_owned(),
        };
        let address = SockAddr::unix(path)?;
        loop {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            match socket.connect_timeout(&address, time_left(deadline)?) {
                Ok(()) => return Ok(Self(socket)),
                // The server's accept queue is full (connect(2)).
                Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => {
                    thread::sleep(Duration::from_millis(5).min(time_left(deadline)?));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends the request and reads the answer: its first line, or all of it, but no more than is
    /// needed to recognize an invalid answer.
    pub(crate) fn ask(mut self, request: &str, deadline: Instant) -> io::Result<Vec<u8>> {
        let socket = &mut self.0;
        socket.set_write_timeout(Some(time_left(deadline)?))?;
        socket.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        while answer.len() <= MAX_ANSWER_LEN {
            socket.set_read_timeout(Some(time_left(deadline)?))?;
            let mut bytes = [0; MAX_ANSWER_LEN + 1];
            match socket.read(&mut bytes) {
                Ok(0) => break,
                Ok(len) => answer.extend_from_slice(&bytes[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if answer.ends_with(b"\n") {
                break;
            }
        }
        Ok(answer)
    }
}
