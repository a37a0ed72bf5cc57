//! Reads sets of ports from any text, and compares the result with a parser that is
//! too simple to be wrong.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portlock::{ErrorKind, PortSet};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    check_text(text);
    // No set contains a NUL, so it can separate two of them.
    if let Some((a, b)) = text.split_once('\0')
        && let (Some(a), Some(b)) = (check_text(a), check_text(b))
    {
        check_operations(&a, &b);
        check_operations(&b, &a);
    }
});

/// Whether a port is in the set, for each port from 0 to 65535.
type Members = Vec<bool>;

const PORTS: usize = 65536;

fn check_text(text: &str) -> Option<(PortSet, Members)> {
    match (text.parse::<PortSet>(), read(text)) {
        (Ok(set), Ok(members)) => {
            check_set(&set, &members);
            assert_eq!(set.union(&set), set);
            assert_eq!(set.difference(&set), PortSet::default());
            assert_eq!(set.is_disjoint(&set), set.is_empty());
            Some((set, members))
        }
        (Err(error), Err((line, column))) => {
            assert_eq!(error.kind(), ErrorKind::InvalidPorts);
            let place = format!(" at line {line}, column {column}: ");
            assert!(error.to_string().contains(&place), "not{place}{error}");
            None
        }
        (Ok(set), Err(place)) => panic!("accepted as {set}, but it is wrong at {place:?}"),
        (Err(error), Ok(_)) => panic!("refused, but it is right: {error}"),
    }
}

fn check_operations((a, in_a): &(PortSet, Members), (b, in_b): &(PortSet, Members)) {
    let both = |operation: fn(bool, bool) -> bool| -> Members {
        let pairs = in_a.iter().zip(in_b);
        pairs.map(|(&a, &b)| operation(a, b)).collect()
    };
    check_set(&a.union(b), &both(|a, b| a || b));
    check_set(&a.difference(b), &both(|a, b| a && !b));
    check_set(&a.intersection(b), &both(|a, b| a && b));
    assert_eq!(a.is_disjoint(b), !both(|a, b| a && b).contains(&true));
}

/// Checks that all methods of `set` agree with `members`.
fn check_set(set: &PortSet, members: &Members) {
    let mut expected = Vec::new();
    let mut next = 0;
    for run in members.chunk_by(|a, b| a == b) {
        let (first, last) = (next, next + run.len() - 1);
        // `contains` can go wrong at the ends; checking every port would take most of
        // the fuzzer's time.
        for port in [first, last].map(port) {
            assert_eq!(set.contains(port), run[0], "{port} in {set}");
        }
        if run[0] {
            expected.extend(port(first)..=port(last));
        }
        next = last + 1;
    }
    assert!(!set.contains(0));
    assert!(set.iter().eq(expected.iter().copied()));
    assert!(set.iter().rev().eq(expected.iter().copied().rev()));
    assert_eq!(set.len(), expected.len());
    assert_eq!(set.is_empty(), expected.is_empty());
    assert_eq!(
        *set,
        expected.into_iter().collect(),
        "one representation for one set"
    );
    assert_eq!(*set, set.to_string().parse().expect("our own text"));
}

fn port(index: usize) -> u16 {
    index.try_into().expect("an index of `Members`")
}

/// Reads a set as the documentation of [`PortSet`] says, or returns the line and
/// column of the wrong part.
fn read(text: &str) -> Result<Members, (usize, usize)> {
    let mut members = vec![false; PORTS];
    let (mut included, mut exclusions) = (false, Vec::new());
    for (part, place) in parts(text) {
        let exclusion = part.strip_prefix('!');
        let ends = exclusion.unwrap_or(&part).split('-').map(number);
        let ports = match ends.collect::<Option<Vec<_>>>().as_deref() {
            Some(&[port]) => port..=port,
            Some(&[first, last]) if first <= last => first..=last,
            _ => return Err(place),
        };
        if exclusion.is_some() {
            exclusions.push((ports, place));
        } else {
            members[ports].fill(true);
            included = true;
        }
    }
    for (ports, place) in exclusions {
        if !included {
            return Err(place);
        }
        members[ports].fill(false);
    }
    Ok(members)
}

/// Returns the parts of the text, each with its line and column.
fn parts(text: &str) -> Vec<(String, (usize, usize))> {
    let mut parts: Vec<(String, (usize, usize))> = Vec::new();
    let (mut line, mut column) = (1, 1);
    let (mut in_part, mut in_comment) = (false, false);
    for c in text.chars() {
        in_comment = c != '\n' && (in_comment || c == '#');
        if in_comment || c == ',' || c.is_whitespace() {
            in_part = false;
        } else if let (true, Some((part, _))) = (in_part, parts.last_mut()) {
            part.push(c);
        } else {
            in_part = true;
            parts.push((c.to_string(), (line, column)));
        }
        (line, column) = match c {
            '\n' => (line + 1, 1),
            _ => (line, column + 1),
        };
    }
    parts
}

/// Reads a port from 1 to 65535 that consists of digits only.
fn number(text: &str) -> Option<usize> {
    let mut number = 0;
    for c in text.chars() {
        let digit = "0123456789".find(c)?;
        number = PORTS.min(number * 10 + digit);
    }
    (1..PORTS).contains(&number).then_some(number)
}
