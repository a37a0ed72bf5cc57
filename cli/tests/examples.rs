//! The shell scripts in `examples/`: each works, and leaves nothing behind.

#![cfg(unix)]

mod common;

use std::{
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
};

use common::{Running, Said, Scene, answer, is_installed};
use rustix::process::Signal;

/// Where the scripts are, or `None` in the published package, which has none.
fn scripts() -> Option<PathBuf> {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scripts = cli.with_file_name("examples").join("shell");
    if !scripts.is_dir() {
        eprintln!("left out: {} is not there", scripts.display());
        return None;
    }
    Some(scripts)
}

#[track_caller]
fn assert_nothing_is_left(scene: &Scene) {
    scene.assert_no_lease();
    for port in scene.ports() {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        assert!(server.is_err(), "something listens on port {port}");
    }
}

#[test]
fn each_script_does_what_it_says() {
    let Some(scripts) = scripts() else { return };
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
        let mut command = scene.command(scripts.join(name));
        command.env_remove("TEST_PORT").env_remove("PRIMARY");
        let run = answer(command).code(0);
        run.warns_of_nothing().prints_just(says);
        assert_nothing_is_left(&scene);
    }
}

#[test]
fn a_script_that_is_interrupted_takes_its_server_with_it() {
    let Some(scripts) = scripts() else { return };
    if !is_installed("python3") {
        return;
    }
    for signal in [Signal::TERM, Signal::HUP] {
        let scene = Scene::new(1);
        let mut command = scene.command(scripts.join("wait.sh"));
        command.stderr(Stdio::null());
        let mut running = Running::start(command);
        assert_eq!(running.hear(), "waiting for the server");
        running.signal(signal);
        assert!(!running.wait().success());
        assert_nothing_is_left(&scene);
    }
}
