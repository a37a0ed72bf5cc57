//! The owner of a server that answers on a leased port: the holder, another process, or unknown.

#[cfg(target_os = "linux")]
#[path = "server/linux.rs"]
mod linux;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::id,
    time::Duration,
};

use portlock::{BelongsTo, Builder, ErrorKind, FreePort, LockDir, Server};
use portlock_testkit::{
    Block, LONG, Parent, Peer, Ports, Role, bind_udp, cat, is_wine, listen, lock_dir, run_child,
};
use serial_test::serial;

// Serial, because a child that another test is spawning has a duplicate of each listener until it
// calls exec.

#[test]
fn child() {
    let roles: [(&str, Role); 2] = [("serve", serve), ("start server", start_server)];
    #[cfg(target_os = "linux")]
    let roles = [&roles[..], &linux::ROLES].concat();
    run_child(&roles);
}

/// Arguments: an address, and whether to wait for a line first. Listens there, reports its pid,
/// and keeps listening until its input ends.
fn serve(parent: &Parent) {
    let address: String = parent.argument(0);
    if parent.argument(1) {
        parent.say(id());
        parent.hear();
    }
    let _listener = listen(address);
    parent.say(id());
    loop {
        parent.hear();
    }
}

/// Arguments: as for `serve`. Starts another process that runs `serve`, and stays its parent.
fn start_server(parent: &Parent) {
    let address: String = parent.argument(0);
    let server = Peer::start("serve", &[&address, "false"]);
    parent.say(server.hear());
    loop {
        parent.hear();
    }
}

/// Starts a process that serves an address.
fn server_at(address: &str) -> Peer {
    let server = Peer::start("serve", &[address, "false"]);
    assert_eq!(server.hear(), server.id().to_string());
    server
}

fn builder(dir: &Path, port: u16) -> Builder {
    FreePort::builder().ports(port).lock_dir(dir)
}

fn found(dir: &Path, port: u16) -> Option<Server> {
    let dir = LockDir::open(dir).expect("the test's own");
    let server = dir.server(port).expect("seen");
    let all = dir.servers().expect("seen");
    let of_all = all.into_iter().find(|server| server.port == port);
    assert_eq!(server, of_all);
    server
}

#[track_caller]
fn assert_found(dir: &Path, port: u16, belongs_to: BelongsTo, pid: u32) {
    let server = found(dir, port).expect("there is one");
    let process = server.process.expect("it can be seen");
    assert_eq!((server.belongs_to, process.pid), (Some(belongs_to), pid));
    assert!(!process.program.is_empty());
}

/// Waits for a server of a port, on behalf of the holder of the port's lease.
fn wait_for_holder(dir: &Path, port: u16, timeout: Duration) -> portlock::Result<Server> {
    let dir = LockDir::open(dir).expect("the test's own");
    dir.wait_for_server(("127.0.0.1", port), None, timeout)
}

#[track_caller]
fn assert_other(outcome: portlock::Result<Server>, pid: u32) -> String {
    let error = outcome.expect_err("another process's");
    assert_eq!(error.kind(), ErrorKind::OtherServer, "{error}");
    let server = error.server().expect("it is named");
    assert_eq!(server.belongs_to, Some(BelongsTo::Other));
    assert_eq!(server.process.as_ref().expect("it is seen").pid, pid);
    let message = error.to_string();
    assert!(
        message.contains(&format!("is served by pid {pid} (")),
        "{message}"
    );
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::AddrInUse);
    message
}

#[test]
#[serial]
fn a_stranger_on_the_port_of_a_server_that_failed_to_start_is_not_mistaken_for_it() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = builder(dir.path(), block.first()).acquire().expect("free");
    let stranger = server_at(&port.addr().to_string());
    // It could not bind the port, and has ended or is waiting.
    let failed = cat();
    let failed_pid = failed.id();
    port.wait_until_listening(LONG)
        .expect("any server is accepted");
    let message = assert_other(port.wait_for_server(failed_pid, LONG), stranger.id());
    let why = format!("not by process {failed_pid} or a descendant of it");
    assert!(message.contains(&why), "{message}");
    assert!(
        message.ends_with(" (wait_until_listening accepts any server)"),
        "{message}"
    );
    failed.end();
    assert_other(port.wait_for_server(failed_pid, LONG), stranger.id());

    // For the other suite, it is the right server.
    let found = port.wait_for_server(stranger.id(), LONG).expect("its own");
    assert_eq!(found.belongs_to, Some(BelongsTo::Holder));
    assert_eq!(found.process.expect("seen").pid, stranger.id());
    // This process is the holder, so for others, all processes that it starts belong to the
    // holder.
    assert_found(dir.path(), port.port(), BelongsTo::Holder, stranger.id());
}

#[test]
#[serial]
fn a_server_in_this_process_or_in_a_descendant_is_the_holders() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = builder(dir.path(), block.first()).acquire().expect("free");
    let belongs_to = |pid| {
        let server = port.wait_for_server(pid, LONG).expect("it answers");
        server.belongs_to.expect("it is leased")
    };
    {
        let _listener = listen(port.addr());
        assert_eq!(belongs_to(id()), BelongsTo::Holder);
        assert_found(dir.path(), port.port(), BelongsTo::Holder, id());
        // A server in this process does not belong to a child.
        let child = cat();
        assert_other(port.wait_for_server(child.id(), LONG), id());
    }
    let shell = Peer::start("start server", &[&port.addr().to_string()]);
    let server: u32 = shell.hear().parse().expect("a pid");
    assert_ne!(server, shell.id());
    for pid in [server, shell.id(), id()] {
        assert_eq!(belongs_to(pid), BelongsTo::Holder);
    }
    assert_found(dir.path(), port.port(), BelongsTo::Holder, server);
}

#[test]
#[serial]
fn a_lease_of_another_process_is_served_by_its_holder_or_a_stranger() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let address = format!("127.0.0.1:{port}");
    let holder = Peer::start("start server", &[&address]);
    let server: u32 = holder.hear().parse().expect("a pid");
    let lease = |pid| {
        let builder = builder(dir.path(), port).timeout(Duration::ZERO);
        builder.acquire_for(pid)
    };
    lease(holder.id()).expect_err("it is bound already");
    drop(holder);
    portlock_testkit::until("the server ends with its parent", || {
        lease(id()).ok().map(|_| ())
    });
    LockDir::open(dir.path())
        .and_then(|dir| dir.release(port))
        .expect("ours");

    let holder = cat();
    lease(holder.id()).expect("free");
    let error = wait_for_holder(dir.path(), port, Duration::ZERO).expect_err("no server");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let stranger = server_at(&address);
    assert_ne!(stranger.id(), server);
    assert_found(dir.path(), port, BelongsTo::Other, stranger.id());
    let message = assert_other(wait_for_holder(dir.path(), port, LONG), stranger.id());
    let why = format!("not by the lease's holder, pid {} ", holder.id());
    assert!(message.contains(&why), "{message}");
    let dir_of = LockDir::open(dir.path()).expect("ours");
    let named = dir_of.wait_for_server(&address[..], Some(stranger.id()), LONG);
    assert_eq!(
        named.expect("that one was named").belongs_to,
        Some(BelongsTo::Holder)
    );

    // Without a lease there is no holder, so no server belongs to another process.
    holder.end();
    let server = wait_for_holder(dir.path(), port, LONG).expect("any server");
    assert_eq!(server.belongs_to, None);
    assert_eq!(server.process.expect("seen").pid, stranger.id());
}

#[test]
#[serial]
fn a_stranger_at_the_other_loopback_address_is_not_accepted() {
    if is_wine("the process of an IPv6 socket is not shown") {
        return;
    }
    for own in ["127.0.0.1", "[::1]"] {
        let (dir, block) = (lock_dir(), Block::new(1));
        let port = block.first();
        let other = if own == "[::1]" { "127.0.0.1" } else { "[::1]" };
        let [own, other] = [own, other].map(|host| format!("{host}:{port}"));
        if TcpListener::bind(&*own).is_err() || TcpListener::bind(&*other).is_err() {
            eprintln!("skipped: {own} or {other} cannot be bound");
            continue;
        }
        let mut holder = Peer::start("serve", &[&own, "true"]);
        assert_eq!(holder.hear(), holder.id().to_string());
        let lease = builder(dir.path(), port).acquire_for(holder.id());
        lease.expect("free");
        holder.say("listen");
        assert_eq!(holder.hear(), holder.id().to_string());
        let locks = LockDir::open(dir.path()).expect("the test's own");
        let both = ["127.0.0.1", "[::1]"].map(|host| format!("{host}:{port}"));
        let both = both.map(|address| address.parse::<SocketAddr>().expect("an address"));
        let wait = |pid| locks.wait_for_server(&both[..], pid, LONG);
        let wait_at = |address: &str| locks.wait_for_server(address, None, LONG);

        assert_found(dir.path(), port, BelongsTo::Holder, holder.id());
        let server = wait(None).expect("there is no other server");
        assert_eq!(server.belongs_to, Some(BelongsTo::Holder));

        // A client that connects to `localhost` may reach it.
        let stranger = server_at(&other);
        assert_found(dir.path(), port, BelongsTo::Other, stranger.id());
        let message = assert_other(wait(None), stranger.id());
        assert!(message.starts_with(&other), "{message}");
        assert_other(wait(Some(holder.id())), stranger.id());
        // Asked for one address, its own server decides.
        let server = wait_at(&own).expect("the holder's");
        assert_eq!(server.process.expect("seen").pid, holder.id());
        assert_other(wait_at(&other), stranger.id());
    }
}

#[test]
#[serial]
fn the_server_that_the_address_leads_to_decides() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = builder(dir.path(), block.first()).acquire().expect("free");
    let other_address = format!("127.0.0.2:{port}");
    if TcpListener::bind(&other_address).is_err() {
        eprintln!("skipped: {other_address} cannot be bound");
        return;
    }
    let stranger = server_at(&other_address);
    let _listener = listen(port.addr());
    let server = port.wait_for_server(id(), LONG).expect("ours");
    assert_eq!(server.process.expect("seen").pid, id());
    let locks = LockDir::open(dir.path()).expect("the test's own");
    let child = cat();
    for (address, pid) in [
        (&port.addr().to_string(), id()),
        (&other_address, stranger.id()),
    ] {
        let other = locks.wait_for_server(&address[..], Some(child.id()), LONG);
        assert_other(other, pid);
        let own = locks.wait_for_server(&address[..], Some(stranger.id()), LONG);
        assert_eq!(own.is_ok(), pid == stranger.id(), "{own:?}");
    }
    let there = builder(dir.path(), port.port()).host([127, 0, 0, 2]);
    drop(port);
    let error = there.try_acquire().expect_err("bound");
    let named = format!(
        "no free port in {}: bound by pid {} (",
        block.first(),
        stranger.id()
    );
    // Not this process, which listens on another address.
    assert!(error.to_string().starts_with(&named), "{error}");
}

#[test]
#[serial]
fn a_process_that_has_ended_is_named_when_no_server_comes() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = builder(dir.path(), block.first()).acquire().expect("free");
    let (ended, alive) = (cat(), cat());
    let pid = ended.id();
    ended.end();
    let note = format!("process {pid} has ended: nothing accepts connections at ");
    for pid in [pid, alive.id()] {
        let error = port
            .wait_for_server(pid, Duration::ZERO)
            .expect_err("no server");
        assert_eq!(error.kind(), ErrorKind::Timeout);
        let has_note = error.to_string().starts_with(&note);
        assert_eq!(has_note, pid != alive.id(), "{error}");
    }
}

#[test]
#[serial]
fn a_udp_socket_serves_its_port_too() {
    let (dir, ports) = (lock_dir(), Ports::new(1));
    let port = ports.numbers[0];
    assert_eq!(found(dir.path(), port), None);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let socket = bind_udp(address);
    let server = found(dir.path(), port).expect("it is bound");
    assert_eq!(server.belongs_to, None);
    assert_eq!(server.process.expect("seen").pid, id());
    let holder = cat();
    let lease = builder(dir.path(), port).acquire_for(holder.id());
    lease.expect("free for TCP");
    assert_found(dir.path(), port, BelongsTo::Other, id());
    // If there are both, the TCP listener decides.
    let tcp = listen(address);
    assert_found(dir.path(), port, BelongsTo::Other, id());
    drop((socket, tcp));
    assert_eq!(found(dir.path(), port), None);
}

#[test]
#[serial]
fn the_cause_of_a_failed_lease_is_named() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let [first, second] = [block.first(), block.first() + 1];
    let server = server_at(&format!("127.0.0.1:{first}"));
    let builder = FreePort::builder().lock_dir(dir.path());
    let message = |ports, timeout| {
        let builder = builder.clone().ports(ports).timeout(timeout);
        builder.acquire().expect_err("none is free").to_string()
    };
    let alone = message(first..=first, Duration::ZERO);
    let named = format!("no free port in {first}: bound by pid {} (", server.id());
    assert!(alone.starts_with(&named), "{alone}");
    let _lease = builder.clone().ports(second).try_acquire().expect("free");
    let both = message(first..=second, Duration::from_millis(1));
    let named = format!(
        "1 bound by another program ({first} by pid {} (",
        server.id()
    );
    assert!(both.contains(&named), "{both}");
    // A call that tries several ports once must be cheap.
    let both = message(first..=second, Duration::ZERO);
    assert!(both.ends_with("1 bound by another program"), "{both}");
}
