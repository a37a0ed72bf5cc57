//! Connects to a port server at a named pipe, as in portpicker.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::windows::fs::OpenOptionsExt as _,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use windows_sys::Win32::{
    Foundation::ERROR_PIPE_BUSY, Storage::FileSystem::SECURITY_IDENTIFICATION,
};

use super::{MAX_ANSWER_LEN, time_left};

/// A connection to a port server.
pub(crate) struct Connection(File);

impl Connection {
    pub(crate) fn open(address: &str, deadline: Instant) -> io::Result<Self> {
        let path = match address.strip_prefix('@') {
            Some(name) => format!(r"\\.\pipe\{name}"),
            None => address.to_owned(),
        };
        loop {
            let pipe = OpenOptions::new()
                .read(true)
                .write(true)
                // The process that created the pipe may identify us, but not impersonate us.
                .security_qos_flags(SECURITY_IDENTIFICATION)
                .open(&path);
            match pipe {
                Ok(pipe) => return Ok(Self(pipe)),
                // Every instance of the pipe has a client.
                Err(error) if is(&error, ERROR_PIPE_BUSY) => {
                    thread::sleep(Duration::from_millis(5).min(time_left(deadline)?));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends the request and reads the answer: its first line, or all of it, but no more than is
    /// needed to recognize an invalid answer.
    ///
    /// A pipe has no timeouts. If the server does not answer, the reading thread is left waiting.
    pub(crate) fn ask(self, request: &str, deadline: Instant) -> io::Result<Vec<u8>> {
        let (sender, answer) = mpsc::channel();
        let request = request.to_owned();
        thread::Builder::new().spawn(move || {
            let _ = sender.send(exchange(self.0, &request));
        })?;
        match answer.recv_timeout(time_left(deadline)?) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

fn exchange(mut pipe: File, request: &str) -> io::Result<Vec<u8>> {
    pipe.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    while answer.len() <= MAX_ANSWER_LEN && !answer.ends_with(b"\n") {
        let mut bytes = [0; MAX_ANSWER_LEN + 1];
        // If the server closed the pipe, the read returns its end.
        match pipe.read(&mut bytes)? {
            0 => break,
            len => answer.extend_from_slice(&bytes[..len]),
        }
    }
    Ok(answer)
}

fn is(error: &io::Error, code: u32) -> bool {
    error.raw_os_error() == Some(code.cast_signed())
}
