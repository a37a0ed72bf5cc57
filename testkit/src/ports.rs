//! Ports for one test.
//!
//! They are reserved in steps of [`STEP`]. Every test of this work tree, in any process, locks
//! a file for each step.

use std::{
    fs::{self, File},
    ops::RangeInclusive,
    path::Path,
};

use socket2::{Socket, Type};

use crate::socket::{bind, bind_v4};

const STEP: u16 = 128;
/// The lowest port; the whole range is below the ephemeral ports of every system.
const FROM: u16 = 10_000;
const TO: u16 = 32_000;
const TRIES: usize = 10_000;

/// Returns the first port of a random step that is followed by `n` ports.
fn some_step(n: u16) -> u16 {
    // From 10,112; the last of the ports is below 32,000.
    rand::random_range(FROM.div_ceil(STEP)..=(TO - n) / STEP) * STEP
}

/// Reserves the step that begins with `first`, unless another test has reserved it.
#[expect(
    clippy::disallowed_methods,
    reason = "must not depend on the code under test"
)]
fn reserve(first: u16) -> Option<File> {
    // Not in the configured target directory or a temporary one: tests with another target
    // directory or another TMPDIR must share these files too.
    let work_tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let dir = work_tree.expect("a member").join("target/port-blocks");
    let path = dir.join(first.to_string());
    let file = fs::create_dir_all(&dir).and_then(|()| File::create(&path));
    let file = file.unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
    // A second lock of the same file by this process fails too.
    file.try_lock().is_ok().then_some(file)
}

/// Whether strict binds succeed. A child that another test is spawning has a duplicate of the
/// socket, which must not prevent the test from leasing the port. Windows has no such duplicates.
fn is_free(port: u16, types: &[Type]) -> bool {
    let is_closed = |socket: Socket| cfg!(windows) || socket.set_reuse_address(true).is_ok();
    types
        .iter()
        .all(|&ty| bind_v4(port, ty).is_ok_and(is_closed) && bind(port, ty).is_ok_and(is_closed))
}

/// Returns the ports as text, `first-last`.
pub fn set(ports: RangeInclusive<u16>) -> String {
    format!("{}-{}", ports.start(), ports.end())
}

/// A contiguous block of free ports. No other test, in this or another process, uses them
/// until it is dropped.
pub struct Block {
    /// The ports, in ascending order.
    pub ports: RangeInclusive<u16>,
    _reservations: Vec<File>,
}

impl Block {
    /// Returns `n` ports, at most 1024.
    ///
    /// Each was free for TCP on every address when the block was taken.
    pub fn new(n: u16) -> Self {
        assert!((1..=1024).contains(&n));
        for _ in 0..TRIES {
            let first = some_step(n);
            let ports = first..=first + n - 1;
            let steps = ports.clone().step_by(STEP.into());
            let Some(_reservations) = steps.map(reserve).collect() else {
                continue;
            };
            if ports.clone().all(|port| is_free(port, &[Type::STREAM])) {
                return Self {
                    ports,
                    _reservations,
                };
            }
        }
        panic!("no block of {n} free ports on this machine");
    }

    /// Returns the first port.
    pub fn first(&self) -> u16 {
        *self.ports.start()
    }

    /// Returns the block as it appears in messages.
    pub fn set(&self) -> String {
        set(self.ports.clone())
    }
}

/// Free ports, not all of them contiguous. No other test, in this or another process, uses
/// them until this is dropped.
pub struct Ports {
    /// The ports, in no particular order.
    pub numbers: Vec<u16>,
    _reservations: Vec<File>,
}

impl Ports {
    /// Returns exactly `n` ports, each of which was free for TCP and UDP on every address.
    pub fn new(n: usize) -> Self {
        let (mut numbers, mut reservations) = (Vec::new(), Vec::new());
        for _ in 0..TRIES {
            if numbers.len() == n {
                return Self {
                    numbers,
                    _reservations: reservations,
                };
            }
            let first = some_step(STEP);
            let Some(reservation) = reserve(first) else {
                continue;
            };
            let step = first..first + STEP;
            let both = [Type::STREAM, Type::DGRAM];
            if step.clone().all(|port| is_free(port, &both)) {
                numbers.extend(step.take(n - numbers.len()));
                reservations.push(reservation);
            }
        }
        panic!("no {n} free ports on this machine");
    }

    /// Returns the ports in the program's syntax.
    pub fn text(&self) -> String {
        let ports = self.numbers.iter().map(|port| format!("{port}-{port}"));
        ports.collect::<Vec<_>>().join(",")
    }

    /// Whether `port` is one of the ports.
    pub fn contains(&self, port: u16) -> bool {
        self.numbers.contains(&port)
    }
}
