//! The shell scripts in `examples/`: each works, and leaves nothing behind.

#![cfg(unix)]

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use portlock_testkit::{Running, Said, Scene, answer, is_ignored, is_installed};
use rustix::process::Signal;

/// Returns the directory of the scripts.
fn scripts() -> PathBuf {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
    cli.with_file_name("examples").join("shell")
}

/// Returns a command that runs a script with `files` as its home and temporary directory.
fn command(scene: &Scene, script: &Path, files: &Path) -> Command {
    let mut command = scene.command(script);
    command.env_remove("TEST_PORT").env_remove("PRIMARY");
    command.current_dir(files).env("TMPDIR", files);
    command
}

#[track_caller]
fn assert_nothing_is_left(scene: &Scene, files: &Path) {
    let left: Vec<_> = fs::read_dir(files).expect("our own").collect();
    assert!(left.is_empty(), "{left:?}");
    scene.assert_no_lease();
    for port in scene.ports() {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        assert!(server.is_err(), "something listens on port {port}");
    }
}

#[test]
fn each_script_works_as_described() {
    let scripts = scripts();
    for (name, server, says) in [
        ("run.sh", "redis-server", "it says hello\n"),
        (
            "several_ports.sh",
            "redis-server",
            "the replica says hello\n",
        ),
        ("pick.sh", "python3", "it says hello\n"),
        (
            "wait.sh",
            "python3",
            "waiting for the server\nthe server listens\nits port is free\n",
        ),
    ] {
        if !is_installed(server) {
            continue;
        }
        let scene = Scene::new(4);
        let files = tempfile::tempdir().expect("a temporary directory");
        let run = answer(command(&scene, &scripts.join(name), files.path())).code(0);
        run.warns_of_nothing().prints_just(says);
        assert_nothing_is_left(&scene, files.path());
    }
}

#[test]
fn an_interrupted_script_ends_its_server() {
    let scripts = scripts();
    if !is_installed("python3") {
        return;
    }
    // Each Python process waits for permission to continue.
    let gates = tempfile::tempdir().expect("a temporary directory");
    let hook = "import os\nopen(os.environ['GATE']).readline()\n";
    fs::write(gates.path().join("sitecustomize.py"), hook).expect("our own directory");
    for signal in [Signal::TERM, Signal::HUP] {
        if is_ignored(signal) {
            continue;
        }
        let scene = Scene::new(1);
        let files = tempfile::tempdir().expect("a temporary directory");
        let gate = gates.path().join(format!("{signal:?}"));
        let mut mkfifo = Command::new("mkfifo");
        mkfifo.arg(&gate);
        answer(mkfifo).code(0);
        let mut command = command(&scene, &scripts.join("wait.sh"), files.path());
        command.env("PYTHONPATH", gates.path()).env("GATE", &gate);
        command.stderr(Stdio::null());
        let mut running = Running::start(command);
        assert_eq!(running.hear(), "waiting for the server");
        running.signal(signal);
        // Opening it for both reading and writing does not wait for a reader.
        let gate = fs::OpenOptions::new().read(true).write(true).open(&gate);
        let mut gate = gate.expect("our own");
        gate.write_all(b"\n").expect("there is room");
        assert!(!running.wait().success());
        assert_nothing_is_left(&scene, files.path());
    }
}
