//! Sets of port numbers, and the order in which a search visits them.

use std::{
    fmt,
    ops::{Bound, RangeBounds},
};

use rand::{Rng, RngExt};

use crate::error::{Error, ErrorKind, Result};

/// A set of TCP or UDP port numbers, 1 to 65535.
///
/// Port 0 is never a member: to [`bind(2)`](https://man7.org/linux/man-pages/man7/ip.7.html)
/// it means "choose one for me", so it cannot be leased. A range that contains
/// it counts without it.
///
/// # Examples
///
/// ```
/// use portlock::PortSet;
///
/// let ports = PortSet::from(4000..=4009);
/// assert_eq!(ports.len(), 10);
/// assert!(ports.contains(4009) && !ports.contains(4010));
/// assert_eq!(ports.to_string(), "4000-4009");
/// assert!(PortSet::from(0..1).is_empty());
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PortSet {
    /// Ascending, disjoint and never touching, so that equal sets are equal.
    spans: Vec<Span>,
}

/// The ports from `first` to `last`, both included.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Span {
    first: u16,
    last: u16,
}

impl Span {
    fn len(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }
}

impl PortSet {
    /// The ports of `range`, or an error that names it if there are none.
    pub(crate) fn from_range(range: impl RangeBounds<u16>) -> Result<Self> {
        let (start, end) = (range.start_bound(), range.end_bound());
        let ports = Self::from((start.cloned(), end.cloned()));
        if ports.is_empty() {
            let start = match start {
                Bound::Included(first) => first.to_string(),
                Bound::Excluded(before) => format!("(after {before})"),
                Bound::Unbounded => String::new(),
            };
            let end = match end {
                Bound::Included(last) => format!("={last}"),
                Bound::Excluded(after) => after.to_string(),
                Bound::Unbounded => String::new(),
            };
            let message = format!("the range {start}..{end} has no port from 1 to 65535");
            return Err(Error::new(ErrorKind::InvalidPorts, message));
        }
        Ok(ports)
    }

    /// How many ports the set has, 0 to 65535.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.iter().map(|span| span.len() as usize).sum()
    }

    /// Whether the set has no port at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Whether `port` is in the set.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.spans
            .iter()
            .any(|span| (span.first..=span.last).contains(&port))
    }

    /// The port at `index` in ascending order.
    fn nth(&self, mut index: u32) -> Option<u16> {
        for span in &self.spans {
            if index < span.len() {
                return u16::try_from(u32::from(span.first) + index).ok();
            }
            index -= span.len();
        }
        None
    }

    /// Every port exactly once, in a random order, without a list of them.
    ///
    /// The order is that of a linear congruential generator modulo the next
    /// power of two, leaving out what lies past the end. By the Hull-Dobell
    /// theorem (SIAM Review 4, 1962) it has the full period whenever the
    /// increment is odd and the multiplier is 1 modulo 4, so both can be drawn
    /// at random. The first port is uniform over the set.
    pub(crate) fn shuffled(&self, rng: &mut impl Rng) -> impl Iterator<Item = u16> {
        let len: u32 = self.spans.iter().map(|span| span.len()).sum();
        let mask = len.next_power_of_two() - 1;
        let multiplier = (rng.next_u32() & !3) | 1;
        let increment = rng.next_u32() | 1;
        let mut next = if len == 0 {
            0
        } else {
            rng.random_range(0..len)
        };
        (0..=mask)
            .map(move |_| {
                let index = next;
                next = next.wrapping_mul(multiplier).wrapping_add(increment) & mask;
                index
            })
            .filter_map(|index| self.nth(index))
    }
}

/// Any range of `u16`, without port 0. An empty or reversed range gives the
/// empty set.
impl<R: RangeBounds<u16>> From<R> for PortSet {
    fn from(range: R) -> Self {
        let first = match range.start_bound() {
            Bound::Included(&first) => Some(first),
            Bound::Excluded(&before) => before.checked_add(1),
            Bound::Unbounded => Some(1),
        };
        let last = match range.end_bound() {
            Bound::Included(&last) => Some(last),
            Bound::Excluded(&after) => after.checked_sub(1),
            Bound::Unbounded => Some(u16::MAX),
        };
        let spans = match (first.map(|first| first.max(1)), last) {
            (Some(first), Some(last)) if first <= last => vec![Span { first, last }],
            _ => Vec::new(),
        };
        Self { spans }
    }
}

/// The ports as text, such as `4000-4999,7000`.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Span { first, last }) in self.spans.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortSet({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ranges_of_every_form_leave_out_port_0() {
        assert_eq!(PortSet::from(..).len(), 65535);
        assert_eq!(PortSet::from(0..=3).to_string(), "1-3");
        assert_eq!(PortSet::from(65535..).to_string(), "65535");
        assert_eq!(PortSet::from(..2).to_string(), "1");
        let after = (Bound::Excluded(7), Bound::Excluded(9));
        assert_eq!(PortSet::from(after).to_string(), "8");
    }

    #[test]
    #[expect(clippy::reversed_empty_ranges, reason = "bad input is the point")]
    fn empty_reversed_and_zero_ranges_are_empty() {
        assert!(PortSet::from(4000..4000).is_empty());
        assert!(PortSet::from(4001..=4000).is_empty());
        assert!(PortSet::from(0..=0).is_empty());
        assert!(PortSet::from(..0).is_empty());
        let past_the_end = (Bound::Excluded(u16::MAX), Bound::Unbounded);
        assert!(PortSet::from(past_the_end).is_empty());
    }

    #[test]
    fn shuffled_visits_each_port_exactly_once() {
        let mut rng = rand::rng();
        for len in (0..70).chain([2000, 2001, 4095, 4096, 4097, 65535]) {
            let ports = PortSet::from((Bound::Excluded(0), Bound::Included(len)));
            let visited: Vec<u16> = ports.shuffled(&mut rng).collect();
            assert_eq!(visited.len(), usize::from(len));
            let distinct: HashSet<u16> = visited.iter().copied().collect();
            assert_eq!(distinct.len(), usize::from(len));
            assert!(distinct.iter().all(|&port| ports.contains(port)));
        }
    }

    #[test]
    fn shuffled_starts_anywhere() {
        let mut rng = rand::rng();
        let ports = PortSet::from(1..=8);
        let firsts: HashSet<u16> = (0..1000)
            .filter_map(|_| ports.shuffled(&mut rng).next())
            .collect();
        assert_eq!(firsts.len(), 8);
    }
}
