//! Reads sets of ports from any text, and compares them with a reading that is
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
            assert_eq!(set.overlaps(&set), !set.is_empty());
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
    assert_eq!(a.overlaps(b), both(|a, b| a && b).contains(&true));
}

/// All that `set` says of itself is as in `members`.
fn check_set(set: &PortSet, members: &Members) {
    let expected = || {
        let ports = (0..=u16::MAX).zip(members);
        ports.filter_map(|(port, &member)| member.then_some(port))
    };
    assert!(set.iter().eq(expected()), "ports of {set}");
    assert!(set.iter().rev().eq(expected().rev()), "ports of {set}");
    assert_eq!(set.len(), expected().count());
    assert_eq!(set.is_empty(), expected().next().is_none());
    assert!(!set.contains(0));
    // Where a range starts or ends is where `contains` can go wrong, and asking
    // for every port would take most of the fuzzer's time.
    for port in 1..=u16::MAX {
        let (before, here) = (members[usize::from(port) - 1], members[usize::from(port)]);
        if before != here || port == u16::MAX {
            assert_eq!(set.contains(port - 1), before, "{} in {set}", port - 1);
            assert_eq!(set.contains(port), here, "{port} in {set}");
        }
    }
    assert_eq!(*set, expected().collect(), "one form for one set");
    assert_eq!(*set, set.to_string().parse().expect("our own text"));
}

/// Reads a set as the documentation of [`PortSet`] says, or gives the line and
/// the column of the part that is wrong.
fn read(text: &str) -> Result<Members, (usize, usize)> {
    let (mut included, mut excluded) = (vec![false; PORTS], vec![false; PORTS]);
    let mut first_exclusion = None;
    for (part, place) in parts(text) {
        let (ports, members) = match part.strip_prefix('!') {
            Some(ports) => {
                first_exclusion = first_exclusion.or(Some(place));
                (ports, &mut excluded)
            }
            None => (&part[..], &mut included),
        };
        let ends: Option<Vec<usize>> = ports.split('-').map(number).collect();
        let (first, last) = match ends.as_deref() {
            Some(&[port]) => (port, port),
            Some(&[first, last]) if first <= last => (first, last),
            _ => return Err(place),
        };
        members[first..=last].fill(true);
    }
    match first_exclusion {
        Some(place) if !included.contains(&true) => Err(place),
        _ => {
            let ports = included.iter().zip(&excluded);
            Ok(ports.map(|(&member, &not)| member && !not).collect())
        }
    }
}

/// The parts of the text, each with its line and column.
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

/// A port from 1 to 65535, written in digits only.
fn number(text: &str) -> Option<usize> {
    let mut number = 0;
    for c in text.chars() {
        let digit = "0123456789".find(c)?;
        number = PORTS.min(number * 10 + digit);
    }
    (1..PORTS).contains(&number).then_some(number)
}
