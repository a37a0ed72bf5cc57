//! A port server at a socket.

use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::Path,
    thread::{self, JoinHandle},
};

/// Returns the address of a server; `dir` has one.
pub(crate) fn address_in(dir: &Path) -> String {
    portlock_testkit::text(&dir.join("socket")).to_owned()
}

/// Starts a port server that sends these answers, one per connection, and returns the requests.
pub(crate) fn server(address: &str, answers: &[&'static str]) -> JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(address).expect("our own directory");
    let answers = answers.to_vec();
    thread::spawn(move || {
        let answer = |answer: &str| {
            let (mut connection, _) = listener.accept().expect("a client");
            let mut request = [0; 20];
            let len = connection.read(&mut request).expect("a request");
            // The client need not read an invalid answer to its end.
            let _ = connection.write_all(answer.as_bytes());
            String::from_utf8_lossy(&request[..len]).into_owned()
        };
        answers.into_iter().map(answer).collect()
    })
}
