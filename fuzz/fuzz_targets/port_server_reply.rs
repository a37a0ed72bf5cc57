//! Sends requests to a port server that may reply anything, over a real socket, and compares
//! the client's result with a separate parser.

#![no_main]

use std::{
    io::{BufRead, BufReader, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    process,
    sync::{Mutex, OnceLock},
    thread,
};

use libfuzzer_sys::fuzz_target;
use portlock::{ErrorKind, compat::portpicker::get_port_from_port_server};

fuzz_target!(|reply: &[u8]| {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    let address = ADDRESS.get_or_init(serve);
    let pid = reply
        .iter()
        .fold(0, |sum: u32, &byte| sum.rotate_left(7) ^ u32::from(byte));
    *REPLY.lock().expect("no panic") = reply.to_vec();

    let port = get_port_from_port_server(address, pid);
    assert_eq!(*REQUEST.lock().expect("no panic"), format!("{pid}\n"));
    let error = match (port, read(reply)) {
        (Ok(port), Some(expected)) => return assert_eq!(u32::from(port), expected),
        (Ok(port), None) => panic!("{port} read, but it is not a port"),
        (Err(error), Some(1..)) => panic!("{error}, but it is a port"),
        (Err(error), _) => error,
    };
    assert_eq!(error.kind(), ErrorKind::PortServer);
    let message = error.to_string();
    let is_refusal = reply.len() <= 15 && reply.trim_ascii().is_empty() || read(reply) == Some(0);
    let expected = match is_refusal {
        true => format!("port server {address} has no port for process {pid}"),
        false => format!("port server {address} answers "),
    };
    assert!(message.starts_with(&expected), "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
});

/// The reply that the server will send, and the request that it received.
static REPLY: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static REQUEST: Mutex<String> = Mutex::new(String::new());

/// Starts the server, which reads one line from each connection in turn.
fn serve() -> String {
    let name = format!("portlock-fuzz-{}", process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("short enough");
    let listener = UnixListener::bind_addr(&address).expect("a unique name");
    thread::spawn(move || {
        for connection in listener.incoming() {
            let connection = connection.expect("a client");
            let mut request = String::new();
            BufReader::new(&connection)
                .read_line(&mut request)
                .expect("a request");
            *REQUEST.lock().expect("no panic") = request;
            // The client may stop reading a reply that is too long.
            let _ = (&connection).write_all(&REPLY.lock().expect("no panic"));
        }
    });
    format!("@{name}")
}

/// Returns the port of a reply, or 0 for a refusal: spaces, digits with an optional `+`,
/// spaces, at most 15 bytes.
fn read(reply: &[u8]) -> Option<u32> {
    let text = str::from_utf8(reply).ok()?;
    let text = text.trim_matches([' ', '\t', '\n', '\r', '\u{c}']);
    let digits = text.strip_prefix('+').unwrap_or(text);
    if digits.is_empty() || reply.len() > 15 {
        return None;
    }
    let mut port = 0;
    for c in digits.chars() {
        let digit = u32::try_from("0123456789".find(c)?).ok()?;
        port = 65536.min(port * 10 + digit);
    }
    (port < 65536).then_some(port)
}
