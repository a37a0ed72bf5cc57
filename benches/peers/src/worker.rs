//! The worker for the tools written in Rust: one process that picks ports.
//!
//! Like the workers in other languages, it answers each line of input with one line:
//!
//! ```text
//!              ready <version>           once, at the start
//! pick         <port>                    keeps the port; 0 if the tool found none
//! keep <n>     <nanoseconds> <port>...   picks n times
//! cycle <ms>   <times> <nanoseconds>     picks and releases for ms milliseconds
//! ```
//!
//! It ends when its standard input ends.

use std::{
    io::{self, Write},
    ops::Range,
    time::{Duration, Instant},
};

use portlock::{ErrorKind, FreePort};

use crate::{Result, version};

enum Picker {
    Portlock(Vec<FreePort>),
    Portpicker,
    Openport(openport::PortReservation),
    PortSelector,
    PortCheck,
    PortCheckRange,
}

impl Picker {
    fn named(id: &str, range: Range<u16>) -> Option<Self> {
        Some(match id {
            "portlock" => Self::Portlock(Vec::new()),
            "portpicker" => Self::Portpicker,
            "openport" => Self::Openport(openport::PortReservation::new(range)),
            "port-selector" => Self::PortSelector,
            "port_check" => Self::PortCheck,
            "port_check-range" => Self::PortCheckRange,
            _ => return None,
        })
    }

    fn crate_name(&self) -> &'static str {
        match self {
            Self::Portlock(_) => "portlock",
            Self::Portpicker => "portpicker",
            Self::Openport(_) => "openport",
            Self::PortSelector => "port-selector",
            Self::PortCheck | Self::PortCheckRange => "port_check",
        }
    }

    /// Picks a port, and keeps it if the tool can.
    fn pick(&mut self, range: Range<u16>) -> Result<Option<u16>> {
        Ok(match self {
            Self::Portlock(kept) => match FreePort::try_new(range) {
                Ok(lease) => {
                    let port = lease.port();
                    kept.push(lease);
                    Some(port)
                }
                Err(error) if error.kind() == ErrorKind::Exhausted => None,
                Err(error) => return Err(error.into()),
            },
            Self::Portpicker => portpicker::pick_unused_port(),
            Self::Openport(reservation) => reservation.reserve_port(),
            Self::PortSelector => port_selector::select_free_port(port_selector::Selector {
                port_range: (range.start, range.end),
                ..Default::default()
            }),
            Self::PortCheck => port_check::free_local_port(),
            Self::PortCheckRange => port_check::free_local_port_in_range(range),
        })
    }

    fn release(&mut self, port: u16) -> Result<()> {
        match self {
            Self::Portlock(kept) => match kept.pop() {
                Some(lease) => Ok(lease.release()?),
                None => Ok(()),
            },
            Self::Openport(reservation) => {
                reservation.release_port(port);
                Ok(())
            }
            _ => Err(format!("{} does not release", self.crate_name()).into()),
        }
    }
}

pub(crate) fn run(id: &str, first: u16, last: u16) -> Result<()> {
    let range = first..last + 1;
    let picker = Picker::named(id, range.clone());
    let mut picker = picker.ok_or_else(|| format!("no tool is named {id}"))?;
    send(&format!("ready {}", version::of(picker.crate_name())?))?;
    for line in io::stdin().lines() {
        let line = line.map_err(|error| format!("cannot read standard input: {error}"))?;
        let (command, number) = line.split_once(' ').unwrap_or((&line, "0"));
        let number: u32 = number.parse()?;
        let mut pick = || picker.pick(range.clone());
        match command {
            "pick" => send(&pick()?.unwrap_or(0).to_string())?,
            "keep" => {
                let start = Instant::now();
                let ports: Result<Vec<_>> = (0..number).map(|_| pick()).collect();
                let taken = start.elapsed().as_nanos();
                let mut reply = taken.to_string();
                for port in ports? {
                    reply += &format!(" {}", port.unwrap_or(0));
                }
                send(&reply)?;
            }
            "cycle" => {
                let long = Duration::from_millis(number.into());
                let (start, mut times) = (Instant::now(), 0);
                while start.elapsed() < long {
                    if let Some(port) = picker.pick(range.clone())? {
                        picker.release(port)?;
                        times += 1;
                    }
                }
                send(&format!("{times} {}", start.elapsed().as_nanos()))?;
            }
            _ => return Err(format!("{line:?} is not a command").into()),
        }
    }
    Ok(())
}

fn send(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let sent = out.write_all(format!("{line}\n").as_bytes());
    let sent = sent.and_then(|()| out.flush());
    sent.map_err(|error| format!("cannot write to standard output: {error}").into())
}
