//! A fault at every system call: the call fails with each error that it can return, it is
//! interrupted by signals repeatedly, or the process is killed at that point. Afterwards nothing
//! is lost, leaked or leased twice, and the error says what happened.
//!
//! The calls are found by tracing each scenario once without a fault. `faults/expected.rs` lists
//! the errors that they can return and the expected outcomes; a call that is not listed fails the
//! test.
//!
//! By default a random part of all cells is tried, and with `PORTLOCK_STRESS` of 2 or more all of
//! them. With `--nocapture` the table is printed.
//!
//! Only Linux has strace, and other systems make other calls.

#![cfg(target_os = "linux")]
#![allow(
    clippy::incompatible_msrv,
    reason = "tests need a newer Rust than the library"
)]

#[path = "faults/expected.rs"]
mod expected;
#[path = "faults/run.rs"]
mod run;
#[path = "faults/scenario.rs"]
mod scenario;
#[path = "faults/trace.rs"]
mod trace;

use std::{
    collections::{BTreeMap, HashMap},
    panic::catch_unwind,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use expected::{can_give, faults, is_possible};
use portlock_testkit::{Block, have_strace, run_child, stress};
use run::{Fault, Run, judge, leaves_a_socket, run};
use scenario::{PORTS, SCENARIOS, Scenario, cycle, namer, scenarios};
use trace::Call;

#[test]
fn child() {
    run_child(&[("cycle", cycle), ("namer", namer)]);
}

/// One fault at one call, by the number of its scenario and its index in the cycle.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Cell {
    scenario: usize,
    place: usize,
    fault: Fault,
}

type Outcomes = HashMap<Cell, Result<char, String>>;

#[test]
fn a_fault_at_any_system_call() {
    if !have_strace() {
        return;
    }
    let start = Instant::now();
    // More runs at the same time would only wait for each other.
    let blocks = [(); 2].map(|()| SCENARIOS.map(|_| Block::new(PORTS)));
    let clean = match run_without_fault(&blocks[0]) {
        Ok(clean) => clean,
        Err(line) => {
            eprintln!("skipped: strace cannot attach here: {line}");
            return;
        }
    };
    let mut wrong = calls_that_are_not_listed(&clean);

    let possible = cells(&clean);
    let chosen: Vec<Cell> = possible.iter().copied().filter(is_chosen).collect();
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Outcomes::new());
    thread::scope(|scope| {
        for blocks in &blocks {
            scope.spawn(|| {
                while let Some(&cell) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (clean, block) = (&clean[cell.scenario], &blocks[cell.scenario]);
                    let outcome = catch_unwind(|| try_cell(cell, clean, block));
                    // For example because it waits forever. Its output is on stderr.
                    let outcome = outcome.unwrap_or_else(|_| Err("a panic".to_owned()));
                    outcomes.lock().expect("no panic").insert(cell, outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("no panic");

    println!("{}", table(&clean, &outcomes));
    let seconds = start.elapsed().as_secs_f64();
    let (tried, of) = (chosen.len(), possible.len());
    println!("{tried} of {of} cells in {seconds:.1} s");
    for cell in &chosen {
        if let Err(error) = &outcomes[cell] {
            let call = clean[cell.scenario].cycle()[cell.place];
            let (scenario, fault) = (SCENARIOS[cell.scenario], cell.fault);
            wrong.push(format!("{scenario:?}: {fault} of {call}: {error}"));
        }
    }
    let report = wrong.join("\n");
    assert!(wrong.is_empty(), "{} are wrong:\n{report}", wrong.len());
}

fn run_without_fault(blocks: &[Block]) -> Result<Vec<Run>, String> {
    let one = |(scenario, block): (Scenario, &Block)| {
        let tries = (0..TRIES).map(|_| run(scenario, block, None));
        let mut tries = tries.skip_while(|run| run.as_ref().is_ok_and(Run::was_disturbed));
        let run = tries.next().expect("not disturbed each time")?;
        assert_eq!(run.problems, [""; 0], "{scenario:?}");
        Ok(run)
    };
    let scenarios = scenarios().iter().copied();
    scenarios.zip(blocks).map(one).collect()
}

fn calls_that_are_not_listed(clean: &[Run]) -> Vec<String> {
    let mut calls = Vec::new();
    for (scenario, run) in SCENARIOS.into_iter().zip(clean) {
        let cycle = run.cycle().into_iter();
        for call in cycle.filter(|call| !call.is_marker && can_give(call).is_none()) {
            calls.push(format!("{scenario:?}: a new system call: {call}"));
        }
    }
    calls
}

/// Returns all possible cells.
fn cells(clean: &[Run]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (scenario, run) in clean.iter().enumerate() {
        for (place, call) in run.cycle().into_iter().enumerate() {
            // If strace leaves a port's probe open, a wait for the port cannot succeed.
            let stays_bound = call.name == "close" && call.object == trace::Object::Socket;
            let scenario_of_cell = SCENARIOS[scenario];
            let is_probed_again =
                scenario_of_cell.is_loose() || scenario_of_cell == Scenario::Reserve;
            let in_vain = stays_bound && is_probed_again;
            let faults = faults()
                .filter(|&fault| is_possible(call, fault) && (fault == Fault::Kill || !in_vain));
            cells.extend(faults.map(|fault| Cell {
                scenario,
                place,
                fault,
            }));
        }
    }
    cells
}

/// Returns whether a cell is tried: a random selection each time, plus the most important ones.
fn is_chosen(cell: &Cell) -> bool {
    let scenario = SCENARIOS[cell.scenario];
    let always = cell.fault == Fault::Kill && matches!(scenario, Scenario::Again | Scenario::Fresh);
    stress(1) > 1 || always || rand::random_ratio(1, 3)
}

/// Number of times that a disturbed run is repeated.
const TRIES: usize = 20;

fn try_cell(cell: Cell, clean: &Run, block: &Block) -> Result<char, String> {
    let Cell { place, fault, .. } = cell;
    let scenario = SCENARIOS[cell.scenario];
    let call = clean.cycle()[place];
    let is_loose = scenario.is_loose();
    for _ in 0..TRIES {
        let run = run(scenario, block, Some((fault, call)))?;
        let cycle = run.cycle();
        let at = match run.place_of(fault) {
            None if is_loose => return Ok('-'),
            None => continue,
            Some(at) => at,
        };
        let is_hit = at == place && cycle[at].name == call.name;
        if is_loose && cycle.iter().any(|call| leaves_a_socket(call)) {
            // As above, caused by another call at this index.
            return Ok('-');
        }
        if run.was_disturbed() || !is_hit && !is_loose {
            continue;
        }
        if !is_possible(cycle[at], fault) {
            // Another call was hit, which cannot return that error.
            return Ok('-');
        }
        // A later call of the same name can end an operation that is interrupted repeatedly.
        let last = cycle.iter().rfind(|call| call.injected);
        return judge(scenario, &run, clean, last.unwrap_or(&cycle[at]), fault);
    }
    Err("it could not be hit: the calls differ from run to run".to_owned())
}

/// Formats all outcomes: a line for each part of a cycle, call and object.
fn table(clean: &[Run], outcomes: &Outcomes) -> String {
    let mut text = String::from(
        "\nD L P R N U: fails with kind LockDir, Lock, Probe, pRocess, InvalidName, Unsupported, as it should\n\
         o: comes to the same, as it should   m: passed over, as it should\n\
         k: killed, and nothing is lost       -: not reached   !: wrong\n\
         .: cannot be                         blank: left out this time\n",
    );
    let mut totals: BTreeMap<char, usize> = BTreeMap::new();
    for (scenario, run) in clean.iter().enumerate() {
        text += &format!("\n{:<51}", format!("{:?}", SCENARIOS[scenario]));
        for fault in faults() {
            text += &format!("{fault:<7}");
        }
        let cycle = run.cycle();
        for places in lines(&cycle) {
            let call = cycle[places[0]];
            let part = ["lease", "give back"][call.part.expect("in the cycle")];
            let times = format!("{}×", places.len());
            let object = call.object.to_string();
            text += &format!("\n{part:<10}{times:>3} {:<23} {object:<14}", call.label);
            for fault in faults() {
                let outcome = |&place| {
                    let cell = Cell {
                        scenario,
                        place,
                        fault,
                    };
                    let outcome = outcomes.get(&cell)?;
                    Some(*outcome.as_ref().unwrap_or(&'!'))
                };
                let mut letters: Vec<char> = places.iter().filter_map(outcome).collect();
                for &letter in &letters {
                    *totals.entry(letter).or_default() += 1;
                }
                letters.sort_unstable();
                letters.dedup();
                if !is_possible(call, fault) {
                    letters.push('.');
                }
                text += &format!("{:<7}", String::from_iter(letters));
            }
        }
        text.push('\n');
    }
    let totals: Vec<_> = totals
        .iter()
        .map(|(letter, n)| format!("{n} {letter}"))
        .collect();
    text + &format!("\ntotals: {}", totals.join(", "))
}

/// Returns the indexes in the cycle of calls that are alike.
fn lines(cycle: &[&Call]) -> Vec<Vec<usize>> {
    let mut lines: Vec<Vec<usize>> = Vec::new();
    for (place, call) in cycle.iter().enumerate() {
        let is_alike = |line: &&mut Vec<usize>| {
            let other = cycle[line[0]];
            (other.part, &other.label, &other.object) == (call.part, &call.label, &call.object)
        };
        match lines.iter_mut().find(is_alike) {
            Some(line) => line.push(place),
            None => lines.push(vec![place]),
        }
    }
    lines
}
