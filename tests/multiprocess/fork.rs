//! Forked copies of a process that holds leases.

use std::{
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use portlock::{ErrorKind, FreePort};
use portlock_testkit::{Block, Peer, lock_dir, text};
use serial_test::serial;

use crate::builder;

/// Lets a forked copy continue, even if the test that waits beside it panics.
struct EndOnDrop(io::PipeWriter);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        let _ = self.0.write_all(b"!");
    }
}

/// Runs `in_child` in a forked copy of this process and calls `then` while that copy is alive,
/// with the descriptors and memory that it inherited.
fn with_forked_copy(in_child: impl FnMut() + Send + Sync + 'static, then: impl FnOnce()) {
    let (mut child_says, says) = io::pipe().expect("a pipe");
    let (hears, end) = io::pipe().expect("a pipe");
    let (mut in_child, mut says, mut hears) = (in_child, Some(says), Some(hears));
    let mut command = Command::new("true");
    let before_exec = move || {
        in_child();
        let Some(says) = &mut says else { return Ok(()) };
        says.write_all(b"!")?;
        // Wait until the parent writes. The child would not see the parent close it, because it
        // also has a copy of that end.
        let mut byte = [0];
        let Some(hears) = &mut hears else {
            return Ok(());
        };
        hears.read_exact(&mut byte)
    };
    // SAFETY: the closure runs in the child of a process with other threads. Beyond
    // async-signal-safe calls, it locks a mutex that no other thread uses and frees memory, which
    // glibc keeps usable after fork (pthread_atfork(3), "malloc").
    unsafe { command.pre_exec(before_exec) };
    thread::scope(|scope| {
        // `spawn` returns only after exec.
        let child = scope.spawn(move || command.status());
        let mut byte = [0];
        child_says.read_exact(&mut byte).expect("the copy runs");
        let end = EndOnDrop(end);
        then();
        drop(end);
        let status = child.join().expect("no panic").expect("true is installed");
        assert!(status.success());
    });
}

#[test]
#[serial]
fn an_inherited_descriptor_does_not_keep_a_released_port() {
    an_inherited_descriptor_does_not_keep_the_port(|port| port.release().expect("released"));
}

#[test]
#[serial]
fn an_inherited_descriptor_does_not_keep_a_dropped_port() {
    an_inherited_descriptor_does_not_keep_the_port(drop);
}

fn an_inherited_descriptor_does_not_keep_the_port(end: fn(FreePort)) {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(text(dir.path()), block.ports.clone());
    let mut other = Peer::start("try once", &[text(dir.path()), &block.first().to_string()]);
    let port = builder.try_acquire().expect("free");
    with_forked_copy(
        || {},
        || {
            other.say("now");
            assert_eq!(other.hear(), "Exhausted");
            end(port);
            other.say("now");
            assert_eq!(other.hear(), "leased");
        },
    );
}

#[test]
#[serial]
fn a_forked_copy_that_is_dropped_does_not_free_the_port() {
    the_port_stays_leased_whatever_a_copy_does(drop);
}

#[test]
#[serial]
fn a_forked_copy_cannot_delegate() {
    the_port_stays_leased_whatever_a_copy_does(|copy| {
        // It would be permanent if it were recorded.
        let _ = copy.delegate_to(1);
    });
}

#[test]
#[serial]
fn a_forked_copy_cannot_pass_on_the_lease() {
    // The parent could end such a lease, and the copy has nothing of its own to share.
    the_port_stays_leased_whatever_a_copy_does(|copy| {
        if copy.into_fd().is_ok() {
            std::process::abort();
        }
    });
}

fn the_port_stays_leased_whatever_a_copy_does(end: fn(FreePort)) {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(text(dir.path()), block.ports.clone());
    let mut other = Peer::start("try once", &[text(dir.path()), &block.first().to_string()]);
    let port = builder.try_acquire().expect("free");
    let slot = Arc::new(Mutex::new(Some(port)));
    let in_child = {
        let slot = Arc::clone(&slot);
        move || {
            if let Some(copy) = slot.lock().expect("unused by others").take() {
                end(copy);
            }
        }
    };
    with_forked_copy(in_child, || {
        other.say("now");
        assert_eq!(other.hear(), "Exhausted");
    });
    other.say("now");
    assert_eq!(other.hear(), "Exhausted");
    let port = slot.lock().expect("not poisoned").take();
    port.expect("this process still has it")
        .release()
        .expect("released");
    other.say("now");
    assert_eq!(other.hear(), "leased");
}

#[test]
#[serial]
fn a_forked_copy_cannot_release_and_can_lease_for_itself() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let builder = builder(text(dir.path()), block.ports.clone());
    let slot = Arc::new(Mutex::new(Some(builder.try_acquire().expect("free"))));
    let (mut answer, mut answers) = io::pipe().expect("a pipe");
    let in_child = {
        let (slot, builder) = (Arc::clone(&slot), builder.clone());
        move || {
            let copy = slot.lock().expect("unused by others").take();
            let refused = copy.map(|copy| {
                let taken = copy.port();
                let refused = copy.release().is_err_and(|e| e.kind() == ErrorKind::Lock);
                // A separate lease, so not on the port that its parent holds.
                let own = builder.try_acquire().map(|own| own.port());
                refused && own.is_ok_and(|own| own != taken)
            });
            let byte = if refused == Some(true) { b"+" } else { b"-" };
            let _ = answers.write_all(byte);
        }
    };
    with_forked_copy(in_child, || {
        let mut byte = [0];
        answer.read_exact(&mut byte).expect("the copy answers");
        assert_eq!(&byte, b"+");
    });
    drop(slot);
    let both = [builder.try_acquire(), builder.try_acquire()];
    assert!(both.iter().all(Result::is_ok));
}
