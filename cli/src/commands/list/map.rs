//! `list --map`: draws a set of ports as a grid, so that crowded areas stand out.

use std::{collections::HashMap, fmt::Write as _};

use anstyle::{AnsiColor, Style};
use portlock::{PortSet, ephemeral_port_range};

use crate::failure::Failure;

use super::snapshot::{Snapshot, State};

const CELLS_PER_ROW: usize = 64;
const MOST_ROWS: usize = 32;

/// What a cell shows. A cell for several ports shows the first of these that applies to any of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    LeasedAndBound,
    Leased,
    Unknown,
    Bound,
    Reserved,
    Ephemeral,
    Free,
}

impl Mark {
    const ALL: [Self; 7] = [
        Self::LeasedAndBound,
        Self::Leased,
        Self::Unknown,
        Self::Bound,
        Self::Reserved,
        Self::Ephemeral,
        Self::Free,
    ];

    fn style(self) -> (char, &'static str, Style) {
        let color = |color: AnsiColor| color.on_default();
        match self {
            Self::LeasedAndBound => ('#', "leased and bound", color(AnsiColor::Green).bold()),
            Self::Leased => (
                'o',
                "leased, not bound yet",
                color(AnsiColor::Yellow).bold(),
            ),
            Self::Unknown => (
                '?',
                "unknown: no access to its lock file",
                color(AnsiColor::Magenta),
            ),
            Self::Bound => ('x', "bound without a lease", color(AnsiColor::Red)),
            Self::Reserved => ('r', "reserved for a name", color(AnsiColor::Cyan)),
            Self::Ephemeral => ('~', "free, but ephemeral", color(AnsiColor::Blue)),
            Self::Free => ('.', "free", Style::new().dimmed()),
        }
    }
}

pub(crate) fn draw(ports: &PortSet, snapshot: &Snapshot) -> Result<String, Failure> {
    let ephemeral = ephemeral_port_range()?;
    let states: HashMap<u16, State> = snapshot
        .ports
        .iter()
        .map(|known| (known.port, known.state()))
        .collect();
    let mark = |port: u16| match (states.get(&port), snapshot.servers.contains_key(&port)) {
        (Some(State::Unknown), false) => Mark::Unknown,
        (None | Some(State::Stale | State::Reserved | State::Unknown), true) => Mark::Bound,
        (Some(State::Reserved), false) => Mark::Reserved,
        (None | Some(State::Stale), false) if ephemeral.contains(&port) => Mark::Ephemeral,
        (None | Some(State::Stale), false) => Mark::Free,
        (Some(State::Held | State::Inherited | State::Delegated), true) => Mark::LeasedAndBound,
        (Some(State::Held | State::Inherited | State::Delegated), false) => Mark::Leased,
    };

    let all: Vec<u16> = ports.iter().collect();
    let per_cell = all.len().div_ceil(CELLS_PER_ROW * MOST_ROWS).max(1);
    let mut text = String::new();
    for row in all.chunks(CELLS_PER_ROW * per_cell) {
        let _ = write!(text, "{:>5} ", row[0]);
        for cell in row.chunks(per_cell) {
            let Some(mark) = cell.iter().map(|&port| mark(port)).min() else {
                continue;
            };
            let (character, _, style) = mark.style();
            let _ = write!(text, "{style}{character}{style:#}");
        }
        text.push('\n');
    }

    let count = |wanted: Mark| all.iter().filter(|&&port| mark(port) == wanted).count();
    let each = match per_cell {
        1 => "each character is one port".to_owned(),
        n => {
            format!(
                "each character is {n} ports, and shows the first state below that any of them has"
            )
        }
    };
    let _ = writeln!(text, "\n{} ports; {each}:", all.len());
    for mark in Mark::ALL {
        let (character, name, style) = mark.style();
        let count = count(mark);
        // Most systems have no such ports.
        if count > 0 || !matches!(mark, Mark::Unknown | Mark::Reserved) {
            let _ = writeln!(text, "  {style}{character}{style:#} {name}: {count}");
        }
    }
    Ok(text)
}
