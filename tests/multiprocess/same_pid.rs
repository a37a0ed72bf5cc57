//! A forked copy that has the same pid as its parent, in a separate pid namespace.

use std::{
    os::unix::process::CommandExt,
    process::{self, Command},
    sync::{Arc, Mutex},
    thread,
};

use portlock_testkit::{Block, Parent, lock_dir, start_in_namespace, text};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serial_test::serial;

use crate::builder;

/// The first process of a pid namespace leases a port, and forks the first one of another namespace,
/// which drops its copy of the lease. Arguments: lock directory and port.
pub(crate) fn copy(parent: &Parent) {
    let dir: String = parent.argument(0);
    let port: u16 = parent.argument(1);
    let builder = builder(&dir, port..=port);
    let lease = Arc::new(Mutex::new(Some(builder.try_acquire().expect("free"))));
    let own = process::id();
    let mut command = Command::new("true");
    let slot = Arc::clone(&lease);
    let in_child = move || {
        let is_same = process::id() == own;
        let is_refused = builder.try_acquire().is_err();
        drop(slot.lock().expect("unused by others").take());
        if is_same && is_refused {
            Ok(())
        } else {
            Err(std::io::Error::other("another pid, or leased twice"))
        }
    };
    // SAFETY: as in `fork.rs`.
    unsafe { command.pre_exec(in_child) };
    // For this thread only: no thread can be started afterwards.
    let forked = thread::spawn(move || {
        // SAFETY: descriptors stay shared with the other threads.
        unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.expect("the first process may");
        command.status()
    });
    let status = forked
        .join()
        .expect("no panic")
        .expect("the child says why");
    assert!(status.success());
    parent.say(own);
    parent.hear();
    let lease = lease.lock().expect("not poisoned").take();
    lease.expect("ours").release().expect("it is still ours");
    parent.say("released");
}

#[test]
#[serial]
fn a_forked_copy_with_the_same_pid_ends_nothing() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let arguments = [text(dir.path()), &block.first().to_string()];
    let kind = "--pid --fork --kill-child --mount-proc";
    let Some(mut peer) = start_in_namespace(kind, "true", "copy with the same pid", &arguments)
    else {
        return;
    };
    assert_eq!(peer.hear(), "1");
    let builder = builder(text(dir.path()), block.ports.clone());
    let error = builder.try_acquire().expect_err("leased in there");
    assert!(error.to_string().contains("1 leased"), "{error}");
    peer.say("release it");
    assert_eq!(peer.hear(), "released");
    builder.try_acquire().map(drop).expect("released");
    peer.finish();
}
