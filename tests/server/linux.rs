//! Linux-specific cases: inherited sockets and leases, orphans and the processes that adopt them,
//! other users, and pid namespaces.

use std::{
    env, fs,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Stdio, id},
    thread,
    time::{Duration, Instant},
};

use portlock::{BelongsTo, EntryState, ErrorKind, LockDir};
use portlock_testkit::{
    Block, LONG, NOBODY, Parent, Peer, Process, Role, Running, am_root, as_user, cat, command,
    is_installed, lock_dir, open_copy, set_mode, start_in_namespace, start_unprivileged, text,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serial_test::serial;

use super::{assert_found, assert_other, builder, found, server_at, wait_for_holder};

pub(super) const ROLES: [(&str, Role); 16] = [
    ("contain", contain),
    ("start without lease", start_without_lease),
    ("hold", hold),
    ("bequeath", bequeath),
    ("wait", wait),
    ("reach", reach),
    ("activate", activate),
    ("pass", pass),
    ("receive", receive),
    ("hide", hide),
    ("start unprivileged", start_unprivileged_server),
    ("whose", whose),
    ("be first", be_first),
    ("serve with worker", serve_with_worker),
    ("adopt", adopt),
    ("start leader", start_leader),
];

/// Arguments: a lock directory, a port, and whether a child serves the port. For each line,
/// reports what is known about the port's server.
fn whose(parent: &Parent) {
    let (dir, port): (String, u16) = (parent.argument(0), parent.argument(1));
    let serves: bool = parent.argument(2);
    let _server = serves.then(|| {
        let server = Peer::start("start server", &[&format!("127.0.0.1:{port}")]);
        server.hear();
        server
    });
    parent.say("started");
    loop {
        parent.hear();
        let server = found(Path::new(&dir), port).expect("there is one");
        let pid = server.process.map(|process| process.pid);
        parent.say(format!(
            "{:?} {pid:?} {:?}",
            server.belongs_to, server.user_id
        ));
    }
}

/// Arguments: a lock directory and a port. As process 1 of a container, in one session with all
/// others, adopts a server, and reports its owner.
fn be_first(parent: &Parent) {
    let (dir, port): (String, u16) = (parent.argument(0), parent.argument(1));
    let holder = cat();
    let lease = builder(Path::new(&dir), port).acquire_for(holder.id());
    lease.expect("free");
    let server = Peer::start_command(orphan(&format!("127.0.0.1:{port}"), "false", false));
    let server = pid(&server.hear());
    portlock_testkit::until("the server is adopted", || {
        (parent_of(server) == id()).then_some(())
    });
    let found = found(Path::new(&dir), port).expect("there is one");
    parent.say(format!("{} {:?}", id(), found.belongs_to));
}

/// Arguments: a lock directory and a port. Leases the port, and starts a server of another user below a
/// process that this user may not see. Reports who owns the server according to that user.
fn hide(parent: &Parent) {
    let (dir, port): (String, u16) = (parent.argument(0), parent.argument(1));
    let _lease = builder(Path::new(&dir), port).acquire().expect("free");
    let arguments = [&dir[..], &port.to_string(), "false"];
    let ask = || start_unprivileged("whose", &arguments).ask("?");
    {
        let (_dir, copy) = open_copy();
        let _server = start_server_as_nobody(&copy, port);
        parent.say(ask());
    }
    {
        let hidden = Peer::start("start unprivileged", &[&port.to_string()]);
        hidden.hear();
        parent.say(ask());
    }
    let hidden = portlock_testkit::until("the server below it ends", || {
        TcpListener::bind(("127.0.0.1", port)).ok()
    });
    parent.say(ask());
    drop(hidden);
}

/// Arguments: a lock directory and a port. As process 1 of a container, reports the owner of a
/// server that it has adopted, for a holder whose pid it reads from a line; and then the owner of
/// that process's own server.
fn contain(parent: &Parent) {
    let (dir, port): (String, u16) = (parent.argument(0), parent.argument(1));
    let (dir, address) = (Path::new(&dir), format!("127.0.0.1:{port}"));
    parent.say("started");
    let joined = pid(&parent.hear());
    builder(dir, port).acquire_for(joined).expect("free");
    let adopted = Peer::start_command(orphan(&address, "false", true));
    let server = pid(&adopted.hear());
    portlock_testkit::until("the server is adopted", || {
        (parent_of(server) == id()).then_some(())
    });
    parent.say(waited(dir, &address, None));
    drop(adopted);
    let holder = cat();
    LockDir::open(dir)
        .and_then(|dir| dir.release(port))
        .expect("ours");
    builder(dir, port).acquire_for(holder.id()).expect("free");
    parent.say("leased");
    parent.hear();
    parent.say(waited(dir, &address, None));
}

/// Arguments: an address. Starts a server that does not have this process's standard error.
fn start_without_lease(parent: &Parent) {
    let address: String = parent.argument(0);
    let binary = env::current_exe().expect("this test binary");
    let mut server = command(&[], &binary, "serve", &[&address, "false"]);
    server.stderr(Stdio::null());
    let server = Peer::start_command(server);
    parent.say(server.hear());
    parent.hear();
}

/// Arguments: a lock directory and a port. Leases the port.
fn hold(parent: &Parent) {
    let (dir, port): (String, u16) = (parent.argument(0), parent.argument(1));
    let _lease = builder(Path::new(&dir), port).acquire().expect("free");
    parent.say("leased");
    parent.hear();
}

/// Arguments: a lock directory and a port. Leases the port, and ends when another process has
/// inherited the lease.
fn bequeath(parent: &Parent) {
    let (dir, port): (String, u16) = (parent.argument(0), parent.argument(1));
    let lease = builder(Path::new(&dir), port).acquire().expect("free");
    let mut heir = orphan_as("cat", &[], true);
    heir.stdin(Stdio::inherit()).stdout(Stdio::inherit());
    heir.stderr(lease.into_fd().expect("ours"));
    assert!(heir.status().expect("sh is installed").success());
}

/// Arguments: a lock directory and an address. Reports the outcome of a wait for a server there.
fn wait(parent: &Parent) {
    let (dir, address): (String, String) = (parent.argument(0), parent.argument(1));
    parent.say(waited(Path::new(&dir), &address, None));
}

fn waited(dir: &Path, address: &str, pid: Option<u32>) -> String {
    let dir = LockDir::open(dir).expect("the test's own");
    let server = match dir.wait_for_server(address, pid, LONG) {
        Ok(server) => server,
        Err(error) if error.kind() == ErrorKind::OtherServer => {
            error.server().expect("it is named").clone()
        }
        Err(error) => return error.to_string(),
    };
    let pid = server.process.map(|process| process.pid);
    format!("{:?} {pid:?}", server.belongs_to)
}

/// Arguments: a lock directory and a port. In a network namespace that is connected to another
/// one, reports the outcomes of waits for servers: this machine's and the other's.
fn reach(parent: &Parent) {
    let (dir, port): (String, u16) = (parent.argument(0), parent.argument(1));
    let holder = cat();
    let lease = builder(Path::new(&dir), port).acquire_for(holder.id());
    lease.expect("free");
    let _stranger = TcpListener::bind(("0.0.0.0", port)).expect("leased by us");
    let binary = env::current_exe().expect("this test binary");
    let arguments = [&format!("0.0.0.0:{port}")[..], "true"];
    let remote = command(&["unshare", "--net"], &binary, "serve", &arguments);
    let mut remote = Peer::start_command(remote);
    remote.hear();
    let set_up = format!(
        "ip link set lo up && ip link add near type veth peer name far && \
         ip link set far netns {pid} && ip address add 192.0.2.1/24 dev near && \
         ip link set near up && nsenter --target {pid} --net \
         sh -c 'ip address add 192.0.2.2/24 dev far && ip link set far up'",
        pid = remote.id()
    );
    let status = Command::new("sh").args(["-c", &set_up]).status();
    if !status.expect("sh is installed").success() {
        parent.say("not permitted");
        return;
    }
    remote.ask("listen");
    for host in ["127.0.0.1", "192.0.2.1", "192.0.2.2"] {
        parent.say(waited(Path::new(&dir), &format!("{host}:{port}"), None));
    }
}

/// Arguments: a lock directory and a port. As process 1, has the socket of a service, and reports
/// the owner of the server before and after it starts the service.
fn activate(parent: &Parent) {
    let (dir, port): (String, u16) = (parent.argument(0), parent.argument(1));
    let dir = Path::new(&dir);
    // A lease is recorded with a resolution of one second.
    thread::sleep(Duration::from_millis(1200));
    let holder = cat();
    builder(dir, port).acquire_for(holder.id()).expect("free");
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("leased by us");
    let address = format!("127.0.0.1:{port}");
    parent.say(waited(dir, &address, None));
    let service = worker(OwnedFd::from(listener.try_clone().expect("a descriptor")));
    parent.say(service.id());
    parent.say(waited(dir, &address, None));
    parent.say(waited(dir, &address, Some(service.id())));
}

/// Arguments: a lock directory, a port, and a Unix socket. Leases the port, listens, and passes a
/// duplicate of the socket to the process at the other end. Closes its own socket when it reads a
/// line.
fn pass(parent: &Parent) {
    let (dir, port): (String, u16) = (parent.argument(0), parent.argument(1));
    let lease = builder(Path::new(&dir), port).acquire().expect("free");
    let listener = TcpListener::bind(lease.addr()).expect("leased to us");
    let stream = UnixStream::connect(parent.argument::<String>(2)).expect("it listens");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [listener.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let data = [IoSlice::new(b".")];
    sendmsg(&stream, &data, &mut control, SendFlags::empty()).expect("sent");
    parent.say("passed");
    parent.hear();
    drop(listener);
    parent.say("closed");
    parent.hear();
}

/// Argument: a path. Receives a descriptor at a Unix socket there, and keeps it.
fn receive(parent: &Parent) {
    let listener = UnixListener::bind(parent.argument::<String>(0)).expect("a new path");
    parent.say("listens");
    let (stream, _) = listener.accept().expect("a connection");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0];
    let mut into = [IoSliceMut::new(&mut data)];
    recvmsg(&stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).expect("received");
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let kept: Vec<OwnedFd> = descriptors.flatten().collect();
    parent.say(kept.len());
    parent.hear();
}

/// Arguments: a port. Starts a process of another user that starts a server, and stays its parent.
fn start_unprivileged_server(parent: &Parent) {
    let (_dir, copy) = open_copy();
    let _server = start_server_as_nobody(&copy, parent.argument(0));
    parent.say("started");
    loop {
        parent.hear();
    }
}

fn start_server_as_nobody(binary: &Path, port: u16) -> Peer {
    let address = format!("127.0.0.1:{port}");
    let mut server = command(&[], binary, "start server", &[&address]);
    as_user(NOBODY, &mut server);
    let server = Peer::start_command(server);
    server.hear();
    server
}

/// Arguments: an address. Listens as `serve` does, with a worker.
fn serve_with_worker(parent: &Parent) {
    let address: String = parent.argument(0);
    let listener = TcpListener::bind(address).expect("free");
    let _worker = worker(OwnedFd::from(listener.try_clone().expect("a descriptor")));
    parent.say(id());
    loop {
        parent.hear();
    }
}

/// Starts a process that only has the socket.
fn worker(socket: OwnedFd) -> Process {
    let binary = env::current_exe().expect("this test binary");
    let mut worker = command(&[], &binary, "cat", &[]);
    worker.stderr(socket);
    Process::start(worker)
}

fn parent_of(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let (_, after_name) = stat.rsplit_once(") ").expect("a name");
    let parent = after_name.split(' ').nth(1).expect("a parent");
    parent.parse().expect("a pid")
}

/// Returns a command that starts a server, as `serve` does, whose parent ends immediately, in a
/// separate session or not.
fn orphan(address: &str, waits: &str, session: bool) -> Command {
    orphan_as("serve", &[address, waits], session)
}

fn orphan_as(role: &str, arguments: &[&str], session: bool) -> Command {
    // A shell redirects the input of background processes.
    let start = match session {
        true => "exec 3<&0; setsid \"$0\" \"$@\" <&3 &",
        false => "exec 3<&0; \"$0\" \"$@\" <&3 &",
    };
    let binary = env::current_exe().expect("this test binary");
    command(&["sh", "-c", start], &binary, role, arguments)
}

/// Arguments: an address. Becomes a subreaper, starts a process that will be a holder, and adopts a server.
fn adopt(parent: &Parent) {
    let address: String = parent.argument(0);
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .expect("every process may");
    let holder = cat();
    let server = Peer::start_command(orphan(&address, "false", true));
    parent.say(format!("{} {}", holder.id(), server.hear()));
    loop {
        parent.hear();
    }
}

/// Arguments: an address. Starts a server that leads a session, and stays its parent.
fn start_leader(parent: &Parent) {
    let address: String = parent.argument(0);
    let binary = env::current_exe().expect("this test binary");
    let leader = command(&["setsid"], &binary, "serve", &[&address, "false"]);
    let server = Peer::start_command(leader);
    parent.say(server.hear());
    loop {
        parent.hear();
    }
}

fn pid(text: &str) -> u32 {
    text.parse().expect("a pid")
}

#[test]
#[serial]
fn a_process_that_has_inherited_the_lease_is_in_the_family() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let lease = builder(dir.path(), block.first()).acquire().expect("free");
    let port = lease.port();
    let address = lease.addr().to_string();
    let mut command = orphan(&address, "false", true);
    // The descriptor has to pass through a shell.
    let descriptor = lease.into_fd().expect("ours");
    command.stderr(descriptor.try_clone().expect("a descriptor"));
    let server = Peer::start_command(command);
    let server_pid = pid(&server.hear());
    assert_found(dir.path(), port, BelongsTo::Holder, server_pid);
    drop(server);
    portlock_testkit::until("the server ends", || {
        TcpListener::bind(&address).ok().map(drop)
    });
    // A descendant of it is in the family too, although it has closed the descriptor.
    let mut command = orphan_as("start without lease", &[&address], true);
    command.stderr(descriptor);
    let heir = Peer::start_command(command);
    let server_pid = pid(&heir.hear());
    assert_found(dir.path(), port, BelongsTo::Holder, server_pid);
    let entry = LockDir::open(dir.path()).and_then(|dir| dir.entry(port));
    let state = entry.expect("seen").expect("its file").state;
    assert_eq!(
        state,
        EntryState::Held,
        "this process, in the record, lives"
    );
}

#[test]
#[serial]
fn a_stranger_on_the_port_of_an_inherited_lease_is_not_in_the_family() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let heir = Peer::start("bequeath", &[text(dir.path()), &port.to_string()]);
    heir.hear();
    let dir_of = LockDir::open(dir.path()).expect("ours");
    let heir_pid = portlock_testkit::until("the holder ends", || {
        let entry = dir_of.entry(port).expect("seen").expect("its file");
        (entry.state == EntryState::Inherited).then(|| entry.heir.expect("seen").pid)
    });
    assert_ne!(heir_pid, heir.id());
    let stranger = server_at(&format!("127.0.0.1:{port}"));
    assert_found(dir.path(), port, BelongsTo::Other, stranger.id());
    assert_other(wait_for_holder(dir.path(), port, LONG), stranger.id());
}

#[test]
#[serial]
fn a_server_is_unknown_if_the_record_of_the_lease_cannot_be_read() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let holder = Peer::start("hold", &[text(dir.path()), &port.to_string()]);
    holder.hear();
    let stranger = server_at(&format!("127.0.0.1:{port}"));
    assert_found(dir.path(), port, BelongsTo::Other, stranger.id());
    fs::write(dir.path().join(port.to_string()), "garbage\n").expect("our own");
    assert_found(dir.path(), port, BelongsTo::Unknown, stranger.id());
}

#[test]
#[serial]
fn any_process_that_shares_a_socket_is_enough() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let lease = builder(dir.path(), block.first()).acquire().expect("free");
    let listener = TcpListener::bind(lease.addr()).expect("leased to us");
    let share = || OwnedFd::from(listener.try_clone().expect("a descriptor"));
    // As with process 1 and other services of systemd, and with a server that forks.
    let (stranger, own) = (worker(share()), worker(share()));
    for pid in [stranger.id(), own.id()] {
        let server = lease.wait_for_server(pid, LONG).expect("it has the socket");
        assert_eq!(server.belongs_to, Some(BelongsTo::Holder));
        assert_eq!(server.process.expect("seen").pid, pid);
    }
    // For another process, each of them is a stranger, and one is named.
    let nobody = cat();
    let error = lease.wait_for_server(nobody.id(), LONG);
    let error = error.expect_err("another process's");
    let named = error.server().and_then(|server| server.process.as_ref());
    let named = named.expect("it is seen").pid;
    assert!([stranger.id(), own.id(), id()].contains(&named));
    // The workers continue after the process that started them has closed the socket.
    drop(listener);
    let server = lease.wait_for_server(id(), LONG).expect("a child has it");
    assert_eq!(server.belongs_to, Some(BelongsTo::Holder));
}

#[test]
#[serial]
fn every_socket_that_shares_an_address_must_be_the_holders() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let lease = builder(dir.path(), block.first()).acquire().expect("free");
    let listen = |host: [u8; 4]| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.expect("a socket");
        socket.set_reuse_port(true).expect("Linux has it");
        let address = SocketAddr::from((host, lease.port()));
        socket.bind(&address.into()).expect("leased to us");
        socket.listen(8).expect("bound");
        socket
    };
    let own = listen([127, 0, 0, 1]);
    let child = worker(OwnedFd::from(listen([127, 0, 0, 1])));
    // Both belong to this process or its descendants.
    let server = lease.wait_for_server(id(), LONG).expect("ours");
    assert_eq!(server.belongs_to, Some(BelongsTo::Holder));
    // Half of the child's clients reach this process, whichever socket is the first.
    assert_other(lease.wait_for_server(child.id(), LONG), id());
    let first = worker(OwnedFd::from(own));
    assert_other(lease.wait_for_server(child.id(), LONG), first.id());
    assert_other(lease.wait_for_server(first.id(), LONG), child.id());

    // A socket on another address gets none of these clients.
    first.end();
    let elsewhere = listen([127, 0, 0, 2]);
    let server = lease
        .wait_for_server(child.id(), LONG)
        .expect("the child's");
    assert_eq!(server.belongs_to, Some(BelongsTo::Holder));
    drop(elsewhere);
}

#[test]
#[serial]
fn a_server_on_one_of_several_addresses_is_enough() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let mut holder = Peer::start("serve", &[&format!("127.0.0.2:{port}"), "true"]);
    holder.hear();
    builder(dir.path(), port)
        .acquire_for(holder.id())
        .expect("free");
    let own = pid(&holder.ask("listen"));
    for strangers in ["127.0.0.1", "127.0.0.3"] {
        let stranger = server_at(&format!("{strangers}:{port}"));
        assert_found(dir.path(), port, BelongsTo::Holder, own);
        assert_other(
            LockDir::open(dir.path())
                .expect("ours")
                .wait_for_server((strangers, port), None, LONG),
            stranger.id(),
        );
    }
}

#[test]
#[serial]
fn a_socket_that_was_passed_to_another_process_belongs_to_both() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let socket = dir.path().join("socket");
    let mut receiver = Peer::start("receive", &[text(&socket)]);
    receiver.hear();
    let arguments = [text(dir.path()), &port.to_string(), text(&socket)];
    let mut holder = Peer::start("pass", &arguments);
    assert_eq!([holder.hear(), receiver.hear()], ["passed", "1"]);
    assert_found(dir.path(), port, BelongsTo::Holder, holder.id());
    wait_for_holder(dir.path(), port, LONG).expect("the holder has it");
    assert_eq!(holder.ask("close"), "closed");
    assert_found(dir.path(), port, BelongsTo::Other, receiver.id());
    assert_other(wait_for_holder(dir.path(), port, LONG), receiver.id());
    receiver.say("end");
}

#[test]
#[serial]
fn a_socket_that_process_1_keeps_for_a_service_belongs_to_the_service() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let arguments = [text(dir.path()), &block.first().to_string()];
    let options = "--pid --fork --mount-proc";
    let first = start_in_namespace(options, "true", "activate", &arguments);
    let Some(first) = first else { return };
    assert_eq!(first.hear(), "Some(Other) Some(1)", "older than the lease");
    let service = pid(&first.hear());
    assert_eq!(first.hear(), format!("Some(Unknown) Some({service})"));
    assert_eq!(first.hear(), format!("Some(Holder) Some({service})"));
}

#[test]
#[serial]
fn a_listener_for_ipv6_serves_ipv4_too() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let (holder, port) = (cat(), block.first());
    builder(dir.path(), port)
        .acquire_for(holder.id())
        .expect("free");
    for host in ["::", "::ffff:127.0.0.1"] {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None);
        let Ok(socket) = socket else {
            eprintln!("skipped: this machine has no IPv6");
            return;
        };
        socket.set_only_v6(false).expect("Linux has it");
        let address = SocketAddr::new(host.parse().expect("an address"), port);
        socket.bind(&address.into()).expect("leased by us");
        socket.listen(8).expect("bound");
        assert_found(dir.path(), port, BelongsTo::Other, id());
        assert_other(wait_for_holder(dir.path(), port, LONG), id());
    }
}

/// Listens on the port in the first argument, reports it, and starts another process that listens
/// on the port in the second. Its first thread has ended by then.
const WITHOUT_FIRST_THREAD: &str = "import ctypes, socket, subprocess, sys, threading, time\n\
    listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n\
    def stay():\n    \
        while ') Z ' not in open('/proc/self/stat').read(): time.sleep(0.001)\n    \
        print('listens', flush=True)\n    \
        code = \"import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); \
            print('listens', flush=True); sys.stdin.read()\"\n    \
        subprocess.run([sys.executable, '-c', code, sys.argv[2]])\n\
    threading.Thread(target=stay).start()\n\
    ctypes.CDLL(None).pthread_exit(None)";

#[test]
#[serial]
fn a_process_whose_first_thread_has_ended_is_alive() {
    if !is_installed("python3") {
        return;
    }
    let (dir, block) = (lock_dir(), Block::new(2));
    let (holder, ports) = (cat(), [block.first(), block.first() + 1]);
    for port in ports {
        builder(dir.path(), port)
            .acquire_for(holder.id())
            .expect("free");
    }
    let mut python = Command::new("python3");
    python.args(["-c", WITHOUT_FIRST_THREAD]);
    python.args(ports.map(|port| port.to_string()));
    python.stdin(Stdio::piped()).stdout(Stdio::piped());
    let python = Running::start(python);
    assert_eq!([python.hear(), python.hear()], ["listens", "listens"]);
    // The system shows the descriptors of the first thread.
    let server = found(dir.path(), ports[0]).expect("there is one");
    assert_eq!(server.belongs_to, Some(BelongsTo::Unknown));
    assert_eq!(server.process, None);
    // It is the living parent of the other server.
    let server = found(dir.path(), ports[1]).expect("there is one");
    assert_eq!(server.belongs_to, Some(BelongsTo::Other));
    let found = LockDir::open(dir.path()).expect("ours").wait_for_server(
        ("127.0.0.1", ports[1]),
        Some(python.id()),
        LONG,
    );
    let found = found.expect("a child's");
    assert_eq!(found.belongs_to, Some(BelongsTo::Holder));
}

#[test]
#[serial]
fn a_server_that_daemonized_is_unknown() {
    for session in [true, false] {
        let (dir, block) = (lock_dir(), Block::new(1));
        let (holder, port) = (cat(), block.first());
        builder(dir.path(), port)
            .acquire_for(holder.id())
            .expect("free");
        let daemon = Peer::start_command(orphan(&format!("127.0.0.1:{port}"), "false", session));
        let daemon_pid = pid(&daemon.hear());
        let is_adopted_elsewhere = portlock_testkit::until("its parent ends", || {
            let parent = parent_of(daemon_pid);
            (parent != daemon.id()).then_some(parent != 1)
        });
        if is_adopted_elsewhere && !session {
            eprintln!("skipped: these tests run below a subreaper");
            continue;
        }
        assert_found(dir.path(), port, BelongsTo::Unknown, daemon_pid);
        let server = wait_for_holder(dir.path(), port, LONG).expect("it may be the holder's");
        assert_eq!(server.belongs_to, Some(BelongsTo::Unknown));
    }
}

#[test]
#[serial]
fn a_server_that_daemonized_is_unknown_where_process_1_is_in_its_session() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let arguments = [text(dir.path()), &block.first().to_string()];
    let options = "--pid --fork --mount-proc";
    if let Some(first) = start_in_namespace(options, "true", "be first", &arguments) {
        assert_eq!(first.hear(), "1 Some(Unknown)");
    }
}

#[test]
#[serial]
fn the_workers_of_a_server_that_daemonized_are_unknown_too() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let (holder, port) = (cat(), block.first());
    builder(dir.path(), port)
        .acquire_for(holder.id())
        .expect("free");
    let arguments = [&format!("127.0.0.1:{port}")[..]];
    let daemon = Peer::start_command(orphan_as("serve with worker", &arguments, true));
    let daemon_pid = pid(&daemon.hear());
    portlock_testkit::until("its parent ends", || {
        (parent_of(daemon_pid) != daemon.id()).then_some(())
    });
    assert_found(dir.path(), port, BelongsTo::Unknown, daemon_pid);
    drop(daemon);

    // In whatever order they started.
    let listener = portlock_testkit::until("the socket is closed", || {
        TcpListener::bind(("127.0.0.1", port)).ok()
    });
    let share = || OwnedFd::from(listener.try_clone().expect("a descriptor"));
    let _child = worker(share());
    let mut orphan = orphan_as("cat", &[], true);
    orphan.stderr(share());
    let orphan = Peer::start_command(orphan);
    orphan.hear();
    portlock_testkit::until("its parent ends", || {
        let found = found(dir.path(), port).expect("there is one");
        (found.belongs_to == Some(BelongsTo::Unknown)).then_some(())
    });
}

#[test]
#[serial]
fn a_server_that_a_subreaper_adopted_is_unknown() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    // The lease must begin first: otherwise the server could have been started before it.
    let waiting = cat();
    builder(dir.path(), port)
        .acquire_for(waiting.id())
        .expect("free");
    let subreaper = Peer::start("adopt", &[&format!("127.0.0.1:{port}")]);
    let said = subreaper.hear();
    let (holder, server) = said.split_once(' ').expect("two pids");
    let (holder, server) = (pid(holder), pid(server));
    portlock_testkit::until("the server is adopted", || {
        (parent_of(server) == subreaper.id()).then_some(())
    });
    let dir_of = LockDir::open(dir.path()).expect("ours");
    let address = format!("127.0.0.1:{port}");
    let found = dir_of.wait_for_server(&address[..], Some(holder), LONG);
    let found = found.expect("it may be the holder's");
    assert_eq!(found.belongs_to, Some(BelongsTo::Unknown));
    assert_eq!(found.process.expect("seen").pid, server);
    // The subreaper may be an ancestor of a process that has ended.
    let ended = cat();
    let ended_pid = ended.id();
    ended.end();
    let found = dir_of.wait_for_server(&address[..], Some(ended_pid), LONG);
    let found = found.expect("it may be that one's");
    assert_eq!(found.belongs_to, Some(BelongsTo::Unknown));
    // It cannot be an orphan of a holder that is not a descendant of the subreaper.
    assert_other(wait_for_holder(dir.path(), port, LONG), server);
}

#[test]
#[serial]
fn a_server_that_leads_a_session_belongs_to_its_parent() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let (holder, port) = (cat(), block.first());
    builder(dir.path(), port)
        .acquire_for(holder.id())
        .expect("free");
    let parent = Peer::start("start leader", &[&format!("127.0.0.1:{port}")]);
    let server = pid(&parent.hear());
    assert_found(dir.path(), port, BelongsTo::Other, server);
}

#[test]
#[serial]
fn a_server_that_started_before_the_lease_belongs_to_another_process() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let (holder, [port, own]) = (cat(), [block.first(), block.first() + 1]);
    let start = |port| {
        let orphan = Peer::start_command(orphan(&format!("127.0.0.1:{port}"), "true", true));
        let server = pid(&orphan.hear());
        (orphan, server)
    };
    let ((mut first, server), (mut second, own_server)) = (start(port), start(own));
    // A lease is recorded with a resolution of one second.
    let start = Instant::now();
    thread::sleep(Duration::from_millis(1200));
    assert!(start.elapsed() > Duration::from_secs(1));
    builder(dir.path(), port)
        .acquire_for(holder.id())
        .expect("free");
    assert_eq!(pid(&first.ask("listen")), server);
    assert_found(dir.path(), port, BelongsTo::Other, server);
    assert_other(wait_for_holder(dir.path(), port, LONG), server);
    // Also in the process that holds the lease.
    let lease = builder(dir.path(), own).acquire().expect("free");
    assert_eq!(pid(&second.ask("listen")), own_server);
    assert_other(lease.wait_for_server(holder.id(), LONG), own_server);
}

#[test]
#[serial]
fn the_server_of_another_user_cannot_be_seen() {
    if !am_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let (dir, block) = (lock_dir(), Block::new(1));
    set_mode(dir.path(), 0o1777);
    let (holder, port) = (cat(), block.first());
    builder(dir.path(), port)
        .acquire_for(holder.id())
        .expect("free");
    let server = server_at(&format!("127.0.0.1:{port}"));
    assert_found(dir.path(), port, BelongsTo::Other, server.id());
    let arguments = [text(dir.path()), &port.to_string(), "false"];
    let mut reader = start_unprivileged("whose", &arguments);
    assert_eq!(reader.ask("?"), "Some(Unknown) None Some(0)");
}

#[test]
#[serial]
fn processes_of_other_pid_namespaces_are_unknown() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let (holder, port) = (cat(), block.first());
    builder(dir.path(), port)
        .acquire_for(holder.id())
        .expect("free");
    let address = format!("127.0.0.1:{port}");
    let server = server_at(&address);
    let arguments = [text(dir.path()), &port.to_string(), "false"];
    for (kind, is_mounted) in [("--pid --fork --mount-proc", true), ("--pid --fork", false)] {
        let Some(mut reader) = start_in_namespace(kind, "true", "whose", &arguments) else {
            return;
        };
        assert_eq!(reader.hear(), "started");
        let said = reader.ask("?");
        // Without its own /proc, the pids that it sees are those of other processes.
        let user = said.strip_prefix("Some(Unknown) None Some(");
        assert!(user.is_some(), "{said}, {is_mounted}");
    }
    drop(server);
    // The processes seen there may belong to the holder, which is not seen.
    let arguments = [text(dir.path()), &port.to_string(), "true"];
    let kind = "--pid --fork --mount-proc";
    let reader = start_in_namespace(kind, "true", "whose", &arguments);
    let mut reader = reader.expect("permitted");
    assert_eq!(reader.hear(), "started");
    let said = reader.ask("?");
    assert!(said.starts_with("Some(Unknown) Some("), "{said}");
    drop(reader);
    portlock_testkit::until("its server ends", || {
        TcpListener::bind(&address).ok().map(drop)
    });
    let inside = start_in_namespace("--pid --fork", "true", "serve", &[&address, "false"]);
    let inside = inside.expect("permitted");
    assert_eq!(inside.hear(), "1", "its pid in the namespace");
    let server = found(dir.path(), port).expect("there is one");
    assert_eq!(server.belongs_to, Some(BelongsTo::Unknown));
    // It can still be in the holder's family: holders start containers too.
    let dir_of = LockDir::open(dir.path()).expect("ours");
    let found = dir_of.wait_for_server(&address[..], Some(inside.id()), LONG);
    assert_eq!(found.expect("a child").belongs_to, Some(BelongsTo::Holder));
}

#[test]
#[serial]
fn a_server_below_a_process_that_is_hidden_is_unknown() {
    if !am_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let (dir, block) = (lock_dir(), Block::new(1));
    set_mode(dir.path(), 0o1777);
    let arguments = [text(dir.path()), &block.first().to_string()];
    let script = "mount -t proc -o hidepid=2 proc /proc";
    let hider = start_in_namespace("--mount --pid --fork", script, "hide", &arguments);
    let Some(hider) = hider else { return };
    // The holder itself is hidden too, except for its pid.
    let said = hider.hear();
    assert!(said.starts_with("Some(Holder) Some("), "{said}");
    let said = hider.hear();
    assert!(said.starts_with("Some(Unknown) Some("), "{said}");
    let said = hider.hear();
    assert_eq!(said, "Some(Unknown) None Some(0)", "hidden itself");
}

#[test]
#[serial]
fn the_sockets_of_another_network_namespace_are_not_seen() {
    if !is_installed("unshare") {
        return;
    }
    let (dir, block) = (lock_dir(), Block::new(1));
    let address = format!("127.0.0.1:{}", block.first());
    let script = "ip link set lo up";
    let Some(server) = start_in_namespace("--net", script, "serve", &[&address, "false"]) else {
        return;
    };
    server.hear();
    assert_eq!(found(dir.path(), block.first()), None);
}

#[test]
#[serial]
fn the_server_of_another_machine_is_unknown() {
    if !is_installed("ip") || !is_installed("nsenter") {
        return;
    }
    let (dir, block) = (lock_dir(), Block::new(1));
    let arguments = [text(dir.path()), &block.first().to_string()];
    let Some(reader) = start_in_namespace("--net", "true", "reach", &arguments) else {
        return;
    };
    let said = reader.hear();
    if said == "not permitted" {
        eprintln!("skipped: network namespaces cannot be connected here");
        return;
    }
    // A server of this machine listens on the same port.
    let other = format!("Some(Other) Some({})", reader.id());
    assert_eq!([said, reader.hear()], [other.clone(), other]);
    assert_eq!(reader.hear(), "Some(Unknown) None");
}

#[test]
#[serial]
fn a_server_is_unknown_without_proc() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let (holder, port) = (cat(), block.first());
    builder(dir.path(), port)
        .acquire_for(holder.id())
        .expect("free");
    let address = format!("127.0.0.1:{port}");
    let stranger = server_at(&address);
    assert_found(dir.path(), port, BelongsTo::Other, stranger.id());
    let arguments = [text(dir.path()), &address[..]];
    let script = "mount -t tmpfs none /proc";
    let reader = start_in_namespace("--mount", script, "wait", &arguments);
    let Some(reader) = reader else { return };
    assert_eq!(reader.hear(), "Some(Unknown) None");
}

#[test]
#[serial]
fn processes_that_joined_a_container_have_no_parent_there() {
    if !am_root() || !is_installed("nsenter") {
        eprintln!("skipped: only root can join a container of another user");
        return;
    }
    let (dir, block) = (lock_dir(), Block::new(1));
    let address = format!("127.0.0.1:{}", block.first());
    let arguments = [text(dir.path()), &block.first().to_string()];
    let options = "--pid --fork --mount-proc";
    let container = start_in_namespace(options, "true", "contain", &arguments);
    let Some(mut container) = container else {
        return;
    };
    container.hear();
    let children = format!("/proc/{0}/task/{0}/children", container.id());
    let first = fs::read_to_string(children).expect("it lives");
    let first = first.trim();
    let binary = env::current_exe().expect("this test binary");
    let prefix = ["nsenter", "--target", first, "--pid", "--mount"];
    let join = |waits| Peer::start_command(command(&prefix, &binary, "serve", &[&address, waits]));
    let joined = join("true");
    let joined_pid = pid(&joined.hear());
    // Process 1 also adopts their orphans.
    let said = container.ask(joined_pid);
    assert!(said.starts_with("Some(Unknown) Some("), "{said}");
    assert_eq!(container.hear(), "leased");
    // It must be younger than the lease.
    let younger = join("false");
    let joined_pid = pid(&younger.hear());
    let unknown = format!("Some(Unknown) Some({joined_pid})");
    assert_eq!(
        container.ask("?"),
        unknown,
        "no process sees who started it"
    );
}
