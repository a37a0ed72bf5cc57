//! A port server at a named pipe.

use std::{
    path::Path,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::windows::named_pipe::{NamedPipeServer, ServerOptions},
    runtime::Builder,
};

/// Returns the address of a server; `dir` has one.
pub(crate) fn address_in(dir: &Path) -> String {
    let name = dir.file_name().expect("its own name");
    format!("@portlock-test-{}", name.display())
}

/// Starts a port server that sends these answers, one per connection, and returns the requests.
pub(crate) fn server(address: &str, answers: &[&'static str]) -> JoinHandle<Vec<String>> {
    let name = address.replacen('@', r"\\.\pipe\", 1);
    let answers = answers.to_vec();
    let (sender, ready) = mpsc::channel();
    let server = thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_io().build();
        runtime.expect("a runtime").block_on(async {
            let make = |first| -> NamedPipeServer {
                let mut options = ServerOptions::new();
                let pipe = options.first_pipe_instance(first).create(&name);
                pipe.expect("its own name")
            };
            // An instance always exists, so that every client finds the server.
            let mut pipes = vec![make(true)];
            let mut requests = Vec::new();
            sender.send(()).expect("received below");
            for answer in answers {
                let mut pipe = pipes.pop().expect("one");
                pipe.connect().await.expect("a client");
                pipes.push(make(false));
                let mut request = [0; 20];
                let len = pipe.read(&mut request).await.expect("a request");
                // The client need not read an invalid answer to its end.
                let _ = pipe.write_all(answer.as_bytes()).await;
                requests.push(String::from_utf8_lossy(&request[..len]).into_owned());
            }
            requests
        })
    });
    ready.recv().expect("no panic");
    server
}
