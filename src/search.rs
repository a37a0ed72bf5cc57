//! A search of a set of ports: each is tried once in a given order, ports with lingering sockets
//! are retried, and the unavailable ones are counted.

use std::{mem, thread, time::Duration};

use crate::{
    error::{Error, ErrorKind, PortCounts},
    ports::{Order, PortSet},
    system_ports::PRIVILEGE,
    unavailable::{Attempt, Failure, Unavailable},
};

/// The pauses before each retry of ports with lingering sockets, 32 ms in total.
///
/// A child is between `fork` and `exec` for about 0.3 ms, or 5 ms on a busy machine. TIME_WAIT
/// takes a minute and is not worth waiting for.
const LINGERING_PAUSES: [Duration; 7] = {
    let mut pauses = [Duration::from_micros(250); 7];
    let mut i = 1;
    while i < pauses.len() {
        pauses[i] = Duration::from_micros(250 << i);
        i += 1;
    }
    pauses
};

/// How a port is treated that only closing connections, as in TIME_WAIT, keep from being bound
/// strictly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TimeWait {
    /// As free if no other port is free.
    #[default]
    LastResort,
    Free,
    Busy,
}

/// Tries each port of `ports` once, in the given order, until an attempt succeeds. Then tries
/// ports with lingering sockets, first as a last resort and then a few more times.
///
/// The second argument of `attempt` says whether ports with closing connections count as free.
pub(crate) fn search<T>(
    ports: &PortSet,
    order: Order,
    time_wait: TimeWait,
    mut attempt: impl FnMut(u16, bool) -> Attempt<T>,
) -> Attempt<T, Exhausted> {
    let mut exhausted = Exhausted::default();
    let mut lingering = Vec::new();
    for port in ports.in_order(order) {
        match attempt(port, time_wait == TimeWait::Free) {
            Ok(found) => return Ok(found),
            Err(Failure::Unavailable(Unavailable::Lingering)) => lingering.push(port),
            Err(Failure::Unavailable(why)) => exhausted.count(port, why),
            Err(Failure::Error(error)) => return Err(error.into()),
        }
    }
    let last_resort = (time_wait == TimeWait::LastResort).then_some((Duration::ZERO, true));
    let rounds = LINGERING_PAUSES.map(|pause| (pause, time_wait == TimeWait::Free));
    for (pause, closing_is_free) in last_resort.into_iter().chain(rounds) {
        if lingering.is_empty() {
            break;
        }
        thread::sleep(pause);
        for port in mem::take(&mut lingering) {
            match attempt(port, closing_is_free) {
                Ok(found) => return Ok(found),
                Err(Failure::Unavailable(Unavailable::Lingering)) => lingering.push(port),
                Err(Failure::Unavailable(why)) => exhausted.count(port, why),
                Err(Failure::Error(error)) => return Err(error.into()),
            }
        }
    }
    for port in lingering {
        exhausted.count(port, Unavailable::Lingering);
    }
    Err(Failure::Unavailable(exhausted))
}

/// Why no port of a set is available.
#[derive(Debug, Default)]
pub(crate) struct Exhausted {
    counts: PortCounts,
    /// The ports that a message may name, each once per attempt.
    ports: ByReason<u16>,
}

/// Unavailable ports, or what is known about them, by the reasons that a message explains.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByReason<T> {
    /// By which processes they are leased.
    pub(crate) leased: Vec<T>,
    /// For which names they are reserved.
    pub(crate) reserved: Vec<T>,
    /// By which processes they are bound.
    pub(crate) bound: Vec<T>,
}

/// A port, and what is known of it.
pub(crate) type Explained = (u16, Option<String>);

/// Largest number of ports of each reason that a message names.
const EXAMPLES: usize = 4;

impl FromIterator<(u16, Unavailable)> for Exhausted {
    fn from_iter<I: IntoIterator<Item = (u16, Unavailable)>>(reasons: I) -> Self {
        let mut exhausted = Self::default();
        for (port, why) in reasons {
            exhausted.count(port, why);
        }
        exhausted
    }
}

impl Exhausted {
    fn count(&mut self, port: u16, why: Unavailable) {
        match why {
            Unavailable::Leased(port) => {
                self.counts.leased += 1;
                self.ports.leased.push(port);
            }
            Unavailable::Reserved(port) => {
                self.counts.reserved += 1;
                self.ports.reserved.push(port);
            }
            Unavailable::Bound => {
                self.counts.bound += 1;
                self.ports.bound.push(port);
            }
            Unavailable::Lingering => self.counts.lingering += 1,
            Unavailable::NotPermitted => self.counts.not_permitted += 1,
            Unavailable::NotEnough => self.counts.not_enough += 1,
        }
    }

    /// Returns whether a later pass may succeed. A caller does not wait for a reservation to end:
    /// it may last for years.
    pub(crate) fn may_change(&self) -> bool {
        self.counts.leased + self.counts.bound + self.counts.lingering > 0
    }

    /// Returns the ports that were leased.
    pub(crate) fn leased(&self) -> &[u16] {
        &self.ports.leased
    }

    /// Returns the first few ports for a message to name.
    pub(crate) fn examples(&mut self) -> ByReason<u16> {
        let first = |ports: &mut Vec<u16>| {
            ports.sort_unstable();
            ports.dedup();
            ports.iter().copied().take(EXAMPLES).collect()
        };
        ByReason {
            leased: first(&mut self.ports.leased),
            reserved: first(&mut self.ports.reserved),
            bound: first(&mut self.ports.bound),
        }
    }

    /// Returns the numbers of unavailable ports, by reason.
    pub(crate) fn counts(&self) -> PortCounts {
        self.counts
    }

    /// Returns the error for this outcome. `headline` says what was requested and how long the
    /// call waited; `examples` explains some ports.
    pub(crate) fn into_error(self, headline: String, examples: &ByReason<Explained>) -> Error {
        let counts = self.counts;
        let kind = if self.may_change() || counts.reserved + counts.not_enough > 0 {
            ErrorKind::Exhausted
        } else {
            ErrorKind::PermissionDenied
        };
        let holder = |(port, by): &Explained| {
            let holder = by.as_deref().and_then(|by| by.strip_prefix("by "));
            (*port, holder.map(str::to_owned))
        };
        let holders = examples.leased.iter().map(holder).collect();
        Error::new(kind, counts.message(headline, examples))
            .with_counts(counts)
            .with_holders(holders)
    }
}

impl PortCounts {
    /// Returns the message of an error with these counts.
    pub(crate) fn message(self, headline: String, examples: &ByReason<Explained>) -> String {
        let one_bound = Self {
            bound: 1,
            ..Self::default()
        };
        if let [(_, Some(by_process))] = &examples.bound[..]
            && self == one_bound
        {
            return format!("{headline}: bound {by_process}");
        }
        let bound = match self.bound {
            1 => "bound by another program",
            _ => "bound by other programs",
        };
        let not_permitted = format!("not permitted ({PRIVILEGE})");
        let reasons = [
            (self.leased, "leased", &examples.leased[..]),
            (self.reserved, "reserved", &examples.reserved),
            (self.bound, bound, &examples.bound),
            (
                self.lingering,
                "in TIME_WAIT or bound with SO_REUSEADDR",
                &[],
            ),
            (self.not_permitted, &not_permitted, &[]),
            (self.not_enough, "free", &[]),
        ];
        let reasons: Vec<String> = reasons
            .into_iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, what, examples)| format!("{count} {what}{}", list(count, examples)))
            .collect();
        format!("{headline}: {}", reasons.join(", "))
    }
}

/// Returns the examples of `count` ports, such as ` (4000 by pid 812 "orders-test", 4001, …)`.
fn list(count: u32, examples: &[Explained]) -> String {
    if examples.is_empty() {
        return String::new();
    }
    let mut ports: Vec<String> = examples
        .iter()
        .map(|(port, explanation)| match explanation {
            Some(explanation) => format!("{port} {explanation}"),
            // Without a record it is still leased: the holder may be about to write one, or may
            // be another tool that writes none.
            None => port.to_string(),
        })
        .collect();
    if count as usize > ports.len() {
        ports.push("…".to_owned());
    }
    format!(" ({})", ports.join(", "))
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::HashMap};

    use super::*;

    fn order() -> Order {
        Order::random()
    }

    fn message(mut exhausted: Exhausted) -> String {
        let holder_of = |port| match port {
            4001 => None,
            4003 => Some("by pid 812 \"orders-test\" (api)".to_owned()),
            _ => Some("by pid 812 \"orders-test\"".to_owned()),
        };
        let examples = exhausted.examples();
        let leased = examples.leased.into_iter();
        let reserved = examples.reserved.into_iter();
        let examples = ByReason {
            leased: leased.map(|port| (port, holder_of(port))).collect(),
            reserved: reserved.map(|port| (port, None)).collect(),
            bound: Vec::new(),
        };
        let headline = "no free port in 4000-4009".to_owned();
        exhausted.into_error(headline, &examples).to_string()
    }

    #[test]
    fn exhaustion_counts_and_names_holders() {
        let unavailable = |port| match port {
            4000..=4001 | 4003..=4006 => Unavailable::Leased(port),
            4007 => Unavailable::Bound,
            4008 => Unavailable::Lingering,
            _ => Unavailable::NotPermitted,
        };
        let set = PortSet::from(4000..=4009);
        let outcome = search::<()>(&set, order(), TimeWait::Busy, |port, _| {
            Err(unavailable(port).into())
        });
        let Err(Failure::Unavailable(exhausted)) = outcome else {
            panic!("nothing is free: {outcome:?}");
        };
        let text = message(exhausted);
        assert!(
            text.starts_with("no free port in 4000-4009: 6 leased ("),
            "{text}"
        );
        assert!(
            text.contains(&format!(
                ", …), 1 bound by another program, 1 in TIME_WAIT or bound with SO_REUSEADDR, \
                 2 not permitted ({PRIVILEGE})"
            )),
            "{text}"
        );
    }

    #[test]
    fn holders_are_named_in_order_and_without_record_only_counted() {
        let mut exhausted = Exhausted::default();
        for port in [4003, 4001, 4000] {
            exhausted.count(port, Unavailable::Leased(port));
        }
        assert_eq!(
            message(exhausted),
            "no free port in 4000-4009: 3 leased (4000 by pid 812 \"orders-test\", 4001, 4003 by \
             pid 812 \"orders-test\" (api))"
        );
    }

    #[test]
    fn a_reserved_port_is_named_and_not_waited_for() {
        let mut exhausted = Exhausted::default();
        exhausted.count(4002, Unavailable::Reserved(4002));
        assert!(!exhausted.may_change());
        assert_eq!(
            message(exhausted),
            "no free port in 4000-4009: 1 reserved (4002)"
        );
        let mut exhausted = Exhausted::default();
        exhausted.count(4002, Unavailable::Reserved(4002));
        let error = exhausted.into_error(String::new(), &ByReason::default());
        assert_eq!(error.kind(), ErrorKind::Exhausted);
    }

    #[test]
    fn the_processes_of_bound_ports_are_named() {
        let message = |reasons: &[(u16, Unavailable)], known: &[u16]| {
            let exhausted: Exhausted = reasons.iter().copied().collect();
            let by_process = |&port: &u16| (port, Some("by pid 812 (postgres)".to_owned()));
            let examples = ByReason {
                bound: known.iter().map(by_process).collect(),
                ..ByReason::default()
            };
            let error = exhausted.into_error("no free port in 5432".to_owned(), &examples);
            error.to_string()
        };
        let bound = |port| (port, Unavailable::Bound);
        assert_eq!(
            message(&[bound(5432)], &[5432]),
            "no free port in 5432: bound by pid 812 (postgres)"
        );
        assert_eq!(
            message(&[bound(5432)], &[]),
            "no free port in 5432: 1 bound by another program"
        );
        assert_eq!(
            message(&[bound(5432), (5433, Unavailable::Lingering)], &[5432]),
            "no free port in 5432: 1 bound by another program (5432 by pid 812 (postgres)), 1 in \
             TIME_WAIT or bound with SO_REUSEADDR"
        );
        assert_eq!(
            message(&[bound(5432), bound(5433)], &[5433]),
            "no free port in 5432: 2 bound by other programs (5433 by pid 812 (postgres), …)"
        );
    }

    #[test]
    fn only_ports_with_lingering_sockets_are_tried_again() {
        let tries = RefCell::new(HashMap::<u16, usize>::new());
        let set = PortSet::from(1..=10);
        let outcome = search(&set, order(), TimeWait::Busy, |port, _| {
            let mut tries = tries.borrow_mut();
            let tries = tries.entry(port).or_default();
            *tries += 1;
            match (port, *tries) {
                (1..=9, _) => Err(Unavailable::Bound.into()),
                (_, 1..=3) => Err(Unavailable::Lingering.into()),
                _ => Ok(port),
            }
        });
        assert_eq!(outcome.expect("found"), 10);
        let tries = tries.into_inner();
        assert!((1..=9).all(|port| tries[&port] == 1));
        assert_eq!(tries[&10], 4);
    }

    #[test]
    fn closing_connections_are_a_last_resort_and_never_or_always_if_asked_for() {
        // Port 2 is strictly free; on 1 and 3 are closing connections.
        let found = |set: std::ops::RangeInclusive<u16>, time_wait| {
            let mut tries = 0;
            let found = search(
                &PortSet::from(set),
                order(),
                time_wait,
                |port, closing_is_free| {
                    tries += 1;
                    match port {
                        2 => Ok(port),
                        _ if closing_is_free => Ok(port),
                        _ => Err(Unavailable::Lingering.into()),
                    }
                },
            );
            (found.ok(), tries)
        };
        for _ in 0..20 {
            assert_eq!(found(1..=3, TimeWait::LastResort).0, Some(2));
            assert_eq!(found(1..=3, TimeWait::Busy).0, Some(2));
            assert_eq!(found(1..=3, TimeWait::Free).1, 1);
        }
        assert_eq!(found(1..=1, TimeWait::LastResort), (Some(1), 2));
        assert_eq!(
            found(1..=1, TimeWait::Busy),
            (None, 1 + LINGERING_PAUSES.len())
        );
    }

    #[test]
    fn an_error_ends_the_search() {
        let mut tries = 0;
        let set = PortSet::from(1..=10);
        let outcome = search::<()>(&set, order(), TimeWait::LastResort, |_, _| {
            tries += 1;
            Err(Error::new(ErrorKind::Lock, "EMFILE").into())
        });
        assert!(matches!(outcome, Err(Failure::Error(_))));
        assert_eq!(tries, 1);
    }

    #[test]
    fn every_reason_is_counted_and_reported() {
        let reasons = [
            (
                Unavailable::Leased(4000),
                2,
                true,
                "2 leased (4000 by pid 812",
            ),
            (Unavailable::Bound, 3, true, "3 bound by other programs"),
            (
                Unavailable::Lingering,
                4,
                true,
                "4 in TIME_WAIT or bound with SO_REUSEADDR",
            ),
            (Unavailable::NotPermitted, 5, false, "5 not permitted ("),
            (Unavailable::NotEnough, 6, false, "6 free"),
            (
                Unavailable::Reserved(4001),
                7,
                false,
                "7 reserved (4001, …)",
            ),
        ];
        let exhausted = |reasons: &[(Unavailable, usize, bool, &str)]| -> Exhausted {
            let each = |&(why, n, ..): &(Unavailable, usize, bool, &str)| vec![(4000, why); n];
            reasons.iter().flat_map(each).collect()
        };
        for reason in &reasons {
            let alone = exhausted(&[*reason]);
            assert_eq!(alone.may_change(), reason.2, "{reason:?}");
            let text = message(alone);
            let start = format!("no free port in 4000-4009: {}", reason.3);
            assert!(text.starts_with(&start), "{text}");
        }
        assert!(!exhausted(&[]).may_change());
        // The same number of ports for two reasons.
        let pair: Exhausted = [(4000, Unavailable::Bound), (4001, Unavailable::Lingering)]
            .into_iter()
            .collect();
        assert!(pair.may_change());

        let all = exhausted(&reasons);
        assert_eq!(all.leased(), [4000, 4000]);
        let of_all = all.counts();
        let error = all.into_error(String::new(), &ByReason::default());
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        let counts = PortCounts {
            leased: 2,
            reserved: 7,
            bound: 3,
            lingering: 4,
            not_permitted: 5,
            not_enough: 6,
        };
        assert_eq!((error.counts(), of_all), (Some(counts), counts));
        // Other ports are free, but not enough of them.
        let error = exhausted(&reasons[3..5]).into_error(String::new(), &ByReason::default());
        assert_eq!(error.kind(), ErrorKind::Exhausted);
    }

    #[test]
    fn no_permitted_port_is_a_separate_error_kind() {
        let mut exhausted = Exhausted::default();
        exhausted.count(80, Unavailable::NotPermitted);
        let error = exhausted.into_error("no free port in 80".to_owned(), &ByReason::default());
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("80"), "{error}");
    }

    #[test]
    fn a_search_waits_32_ms_for_lingering_sockets() {
        let total: Duration = LINGERING_PAUSES.iter().sum();
        assert_eq!(total, Duration::from_micros(31_750));
    }
}
