//! Tests that each start servers and run at the same time: as threads of one
//! process with `cargo test`, as processes with `cargo nextest run`.
//!
//! Each server answers with the name from its own test, so a test that
//! reached the server of another test would fail.

mod common;

use std::{collections::HashSet, net::TcpStream};

use common::Server;

#[test]
fn alice_is_greeted_by_her_own_server() {
    let server = Server::start("alice");
    assert_eq!(server.greeting(), "hello from alice");
}

#[test]
fn bob_is_greeted_by_his_own_server() {
    let server = Server::start("bob");
    assert_eq!(server.greeting(), "hello from bob");
}

#[test]
fn many_clients_talk_to_one_server() {
    let server = Server::start("carol");
    for _ in 0..20 {
        assert_eq!(server.greeting(), "hello from carol");
    }
}

#[test]
fn a_test_can_have_several_servers() {
    let names = ["dave", "erin", "frank"];
    let servers = names.map(Server::start);
    for (server, name) in servers.iter().zip(names) {
        assert_eq!(server.greeting(), format!("hello from {name}"));
    }
    let addrs: HashSet<_> = servers.iter().map(Server::addr).collect();
    assert_eq!(addrs.len(), names.len());
}

#[test]
fn a_server_that_was_restarted_is_at_the_same_address() {
    let mut server = Server::start("grace");
    let before = server.addr();
    server.restart();
    assert_eq!(server.addr(), before);
    assert_eq!(server.greeting(), "hello from grace");
}

#[test]
fn a_client_notices_that_the_server_is_gone() {
    let mut server = Server::start("heidi");
    server.stop();
    // No other server can have taken its place: the port is still leased.
    let error = TcpStream::connect(server.addr()).expect_err("no server");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}
