//! Sets of port numbers, their text form, and the order in which a search visits them.

use std::{
    borrow::Cow,
    cell::RefCell,
    fmt,
    hash::{Hash, Hasher},
    iter::FusedIterator,
    ops::{
        BitAnd, BitOr, Bound, Deref, Range, RangeBounds, RangeFrom, RangeFull, RangeInclusive,
        RangeTo, RangeToInclusive, Sub,
    },
    slice,
    str::FromStr,
};

use rand::{Rng, rngs::SmallRng};

use crate::error::{Error, ErrorKind, Result};

/// A set of TCP or UDP port numbers, 1 to 65535.
///
/// It can be created from one port, an array of ports, a range, an iterator of ports, or text.
/// Functions that choose ports, such as [`Builder::ports`](crate::Builder::ports) and
/// [`FreePort::new`](crate::FreePort::new), accept all of these except text. The text form is:
///
/// ```text
/// 4000-4999,!4045,7000     # a range without one of its ports, and one more port
/// ```
///
/// Parts are separated by commas, white space or newlines; `#` starts a comment that ends with
/// the line. A part is a port or a range `first-last`, both ends included. A part that begins
/// with `!` is excluded, wherever it stands. A set is written in the same form, in ascending
/// order.
///
/// Port 0 is never a member: to [`bind(2)`](https://man7.org/linux/man-pages/man7/ip.7.html) it
/// means "choose one for me", so it cannot be leased. A range that contains port 0 is treated as
/// if it did not. A reversed or empty range is the empty set, from which nothing can be leased:
/// every call that chooses from it returns the same [`InvalidPorts`](ErrorKind::InvalidPorts)
/// error.
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
/// assert!(PortSet::from(0).is_empty());
///
/// let ports: PortSet = "4000-4999,!4045,7000".parse()?;
/// assert_eq!(ports.to_string(), "4000-4044,4046-4999,7000");
///
/// let ports = &(ports - PortSet::from(4001..=6999)) | &PortSet::from([8080, 8081]);
/// assert_eq!(ports.to_string(), "4000,7000,8080-8081");
/// for port in &ports {
///     println!("{port}");
/// }
/// # Ok::<(), portlock::Error>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct PortSet {
    /// Ascending, disjoint and not adjacent, so that equal sets compare equal.
    spans: Spans,
}

/// The spans of a set. A single span, as for a range, takes no allocation.
#[derive(Clone, Debug)]
enum Spans {
    One(Span),
    Many(Vec<Span>),
}

impl Default for Spans {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Deref for Spans {
    type Target = [Span];

    fn deref(&self) -> &[Span] {
        match self {
            Self::One(span) => slice::from_ref(span),
            Self::Many(spans) => spans,
        }
    }
}

impl PartialEq for Spans {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Spans {}

impl Hash for Spans {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

/// The ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Span {
    first: u16,
    last: u16,
}

impl Span {
    fn len(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }
}

/// Returns the 64-bit FNV-1a hash, which will never change
/// (<http://www.isthe.com/chongo/tech/comp/fnv/>).
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl PortSet {
    fn of_spans(spans: Vec<Span>) -> Self {
        Self {
            spans: Spans::Many(spans),
        }
    }

    /// Returns an error if there is no port to choose from.
    pub(crate) fn must_not_be_empty(&self) -> Result<()> {
        if !self.is_empty() {
            return Ok(());
        }
        let message = "no ports to choose from: an empty set, a reversed range or port 0 alone has \
                       no port from 1 to 65535";
        Err(Error::new(ErrorKind::InvalidPorts, message))
    }

    fn of_bounds(range: &impl RangeBounds<u16>) -> Self {
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
            (Some(first), Some(last)) if first <= last => Spans::One(Span { first, last }),
            _ => Spans::default(),
        };
        Self { spans }
    }

    /// Returns the number of ports in the set, 0 to 65535.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.iter().map(|span| span.len() as usize).sum()
    }

    /// Returns whether the set has no ports.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Returns whether `port` is in the set.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.spans
            .iter()
            .any(|span| (span.first..=span.last).contains(&port))
    }

    /// Returns the ports in ascending order.
    pub fn iter(&self) -> Ports<'_> {
        Ports::of(Cow::Borrowed(&self.spans))
    }

    /// Returns the ports that are in this set, in `other`, or in both, as `|` does.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut spans = [&*self.spans, &*other.spans].concat();
        spans.sort_unstable_by_key(|span| span.first);
        let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
        for span in spans {
            match merged.last_mut() {
                Some(last) if u32::from(span.first) <= u32::from(last.last) + 1 => {
                    last.last = last.last.max(span.last);
                }
                _ => merged.push(span),
            }
        }
        Self::of_spans(merged)
    }

    /// Returns the ports that are in both sets, as `&` does.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.difference(&self.difference(other))
    }

    /// Returns the ports that are in this set and not in `other`, as `-` does.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut spans = Vec::with_capacity(self.spans.len() + other.spans.len());
        for &Span { first, last } in self.spans.iter() {
            // Start of the part of this span that is not processed yet.
            let mut next = Some(first);
            for hole in other.spans.iter() {
                let Some(first) = next else { break };
                if hole.last < first || hole.first > last {
                    continue;
                }
                if hole.first > first {
                    let last = hole.first - 1;
                    spans.push(Span { first, last });
                }
                next = hole.last.checked_add(1).filter(|&next| next <= last);
            }
            if let Some(first) = next {
                spans.push(Span { first, last });
            }
        }
        Self::of_spans(spans)
    }

    /// Returns whether the two sets have no port in common.
    #[must_use]
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.spans.iter().all(|a| {
            let mut others = other.spans.iter();
            others.all(|b| a.last < b.first || b.last < a.first)
        })
    }

    /// Returns the ports whose next `offset` ports are all in the set too.
    pub(crate) fn starts_of_blocks(&self, offset: u16) -> Self {
        let start = |span: &Span| {
            let last = span.last.checked_sub(offset)?;
            (last >= span.first).then_some(Span { last, ..*span })
        };
        Self::of_spans(self.spans.iter().filter_map(start).collect())
    }

    /// Returns a hash that distinguishes the set from others, for the name of a file.
    pub(crate) fn digest(&self) -> u64 {
        fnv1a(self.to_string().as_bytes())
    }

    /// Returns the set as text for a message, cut after a few ranges.
    pub(crate) fn brief(&self) -> String {
        const SPANS: usize = 4;
        if self.spans.len() <= SPANS {
            return self.to_string();
        }
        let first = Self::of_spans(self.spans[..SPANS].to_vec());
        format!("{first},… ({} ports)", self.len())
    }

    /// Returns the port at `index` in ascending order.
    fn nth(&self, mut index: u32) -> Option<u16> {
        for span in self.spans.iter() {
            if index < span.len() {
                return u16::try_from(u32::from(span.first) + index).ok();
            }
            index -= span.len();
        }
        None
    }

    /// Returns every port exactly once, in the given order.
    pub(crate) fn in_order(&self, order: Order) -> impl Iterator<Item = u16> {
        let (neighbors, len) = self.neighbors(order);
        let rest = self
            .all_in_order(order)
            .filter(move |port| !neighbors[..len].contains(port));
        neighbors.into_iter().take(len).chain(rest)
    }

    /// Returns the first ports of an order that has a neighborhood, and their number.
    fn neighbors(&self, order: Order) -> ([u16; MAX_NEIGHBORS], usize) {
        let mut neighbors = [0; MAX_NEIGHBORS];
        let len: u32 = self.spans.iter().map(|span| span.len()).sum();
        let Some(place) = order.neighborhood.filter(|_| len > MIN_DIVIDED_LEN) else {
            return (neighbors, 0);
        };
        let first = (place % u64::from(len)) as u32;
        let (mut next, step) = (order.start as u32, order.step as u32 | 1);
        for neighbor in &mut neighbors {
            next = next.wrapping_add(step) % NEIGHBORHOOD_LEN;
            let port = self.nth((first + next) % len);
            *neighbor = port.unwrap_or_default();
        }
        (neighbors, MAX_NEIGHBORS)
    }

    /// Returns whether the first `number` ports of an order include all of its neighborhood that it
    /// begins with, and others.
    pub(crate) fn is_beyond_neighbors(&self, order: Order, number: usize) -> bool {
        // It is hardly ever, and to compute them takes some time.
        number > MAX_NEIGHBORS && self.neighbors(order).1 > 0
    }

    /// Returns every port exactly once, without a list of them.
    ///
    /// It uses the order of a linear congruential generator modulo the next power of two, and
    /// skips indexes past the end. By the Hull-Dobell theorem (SIAM Review 4, 1962), the
    /// generator has the full period if the increment is odd and the multiplier is 1 modulo 4, so
    /// any such numbers can be used.
    fn all_in_order(&self, order: Order) -> impl Iterator<Item = u16> {
        let len: u32 = self.spans.iter().map(|span| span.len()).sum();
        let mask = len.next_power_of_two() - 1;
        let multiplier = ((order.step >> 32) as u32 & !3) | 1;
        let increment = order.step as u32 | 1;
        let mut next = order.start.checked_rem(u64::from(len)).unwrap_or(0) as u32;
        (0..=mask)
            .map(move |_| {
                let index = next;
                next = next.wrapping_mul(multiplier).wrapping_add(increment) & mask;
                index
            })
            .filter_map(|index| self.nth(index))
    }
}

/// Number of ports in a neighborhood, a power of two: the part of a large set that callers with
/// one lock directory search first, so that they use the same lock files repeatedly.
const NEIGHBORHOOD_LEN: u32 = 1024;

/// Number of ports of the neighborhood that are tried before the other ports of the set.
const MAX_NEIGHBORS: usize = 16;

/// Largest number of ports in a set that has no neighborhood.
const MIN_DIVIDED_LEN: u32 = 2048;

/// The order in which the ports of a set are tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// Index of the first port, modulo the size of the set.
    start: u64,
    /// How the order continues from there.
    step: u64,
    /// Index at which the neighborhood begins, modulo the size of a large set.
    neighborhood: Option<u64>,
}

impl Order {
    /// Returns a random order. The first port is uniform over the set, except for a bias of less
    /// than 2^-48.
    ///
    /// The order need not be unpredictable, so it uses a generator that takes a tenth of the time
    /// of the one that seeds it. A forked child continues the same sequence as its parent; then
    /// one of the two finds its ports leased and tries the next.
    pub(crate) fn random() -> Self {
        thread_local! {
            static RNG: RefCell<SmallRng> = RefCell::new(rand::make_rng());
        }
        RNG.with_borrow_mut(|rng| Self {
            start: rng.next_u64(),
            step: rng.next_u64(),
            neighborhood: None,
        })
    }

    /// Returns a random order that begins in the neighborhood `place`.
    pub(crate) fn random_near(place: u64) -> Self {
        Self {
            neighborhood: Some(place),
            ..Self::random()
        }
    }

    /// Returns whether it begins in a neighborhood, if the set is large enough to have one.
    pub(crate) fn begins_near(self) -> bool {
        self.neighborhood.is_some()
    }

    /// Returns the order that belongs to `name`, which never changes.
    pub(crate) fn of_name(name: &str) -> Self {
        let hash = fnv1a(name.as_bytes());
        Self {
            start: hash,
            step: hash,
            neighborhood: None,
        }
    }
}

/// Returns the set of this one port, or the empty set for port 0.
impl From<u16> for PortSet {
    fn from(port: u16) -> Self {
        Self::of_bounds(&(port..=port))
    }
}

/// Returns the set of these ports, in any order; port 0 is ignored.
impl<const N: usize> From<[u16; N]> for PortSet {
    fn from(ports: [u16; N]) -> Self {
        ports.into_iter().collect()
    }
}

impl From<&PortSet> for PortSet {
    fn from(ports: &PortSet) -> Self {
        ports.clone()
    }
}

/// A macro per type, because an implementation for every `RangeBounds` would conflict with the
/// one for `u16`.
macro_rules! from_ranges {
    ($($range:ty),*) => {$(
        /// Returns the set of the ports in the range, without port 0. A reversed range is the
        /// empty set.
        impl From<$range> for PortSet {
            fn from(range: $range) -> Self {
                Self::of_bounds(&range)
            }
        }
    )*};
}

from_ranges!(
    Range<u16>,
    RangeFrom<u16>,
    RangeFull,
    RangeInclusive<u16>,
    RangeTo<u16>,
    RangeToInclusive<u16>
);

/// Implements an operator with the method of the same meaning, for sets and references to them.
macro_rules! operator {
    ($operator:ident, $function:ident, $method:ident) => {
        impl $operator for &PortSet {
            type Output = PortSet;

            fn $function(self, other: Self) -> PortSet {
                self.$method(other)
            }
        }

        impl $operator for PortSet {
            type Output = Self;

            fn $function(self, other: Self) -> Self {
                self.$method(&other)
            }
        }

        impl $operator<&Self> for PortSet {
            type Output = Self;

            fn $function(self, other: &Self) -> Self {
                self.$method(other)
            }
        }
    };
}

operator!(BitAnd, bitand, intersection);
operator!(BitOr, bitor, union);
operator!(Sub, sub, difference);

/// The ports of a [`PortSet`] in ascending order.
///
/// # Examples
///
/// ```
/// use portlock::{PortSet, Ports};
///
/// /// Some ports, from both ends of a set.
/// struct Ends<'a>(Ports<'a>);
///
/// let ports = PortSet::from([4000, 4001, 7000]);
/// let mut ends = Ends(ports.iter());
/// assert_eq!((ends.0.next(), ends.0.next_back()), (Some(4000), Some(7000)));
/// assert_eq!(ends.0.len(), 1);
/// ```
#[derive(Clone, Debug)]
pub struct Ports<'a> {
    spans: Cow<'a, Spans>,
    front: Position,
    /// The position from the end.
    back: Position,
    left: usize,
}

/// Number of whole spans that an iterator has passed, and of ports in the next span.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    spans: usize,
    ports: u16,
}

impl Position {
    /// Moves past one port of `span`.
    fn advance(&mut self, span: Span) {
        if self.ports == span.last - span.first {
            self.spans += 1;
            self.ports = 0;
        } else {
            self.ports += 1;
        }
    }
}

impl<'a> Ports<'a> {
    fn of(spans: Cow<'a, Spans>) -> Self {
        Self {
            left: spans.iter().map(|span| span.len() as usize).sum(),
            spans,
            front: Position::default(),
            back: Position::default(),
        }
    }
}

impl Iterator for Ports<'_> {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        self.left = self.left.checked_sub(1)?;
        let span = *self.spans.get(self.front.spans)?;
        let port = span.first + self.front.ports;
        self.front.advance(span);
        Some(port)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl DoubleEndedIterator for Ports<'_> {
    fn next_back(&mut self) -> Option<u16> {
        self.left = self.left.checked_sub(1)?;
        let span = *self.spans.iter().rev().nth(self.back.spans)?;
        let port = span.last - self.back.ports;
        self.back.advance(span);
        Some(port)
    }
}

impl ExactSizeIterator for Ports<'_> {}

impl FusedIterator for Ports<'_> {}

impl<'a> IntoIterator for &'a PortSet {
    type Item = u16;
    type IntoIter = Ports<'a>;

    fn into_iter(self) -> Ports<'a> {
        self.iter()
    }
}

impl IntoIterator for PortSet {
    type Item = u16;
    type IntoIter = Ports<'static>;

    fn into_iter(self) -> Ports<'static> {
        Ports::of(Cow::Owned(self.spans))
    }
}

impl Extend<u16> for PortSet {
    /// Adds ports, in any order; port 0 is ignored.
    fn extend<I: IntoIterator<Item = u16>>(&mut self, ports: I) {
        *self = self.union(&ports.into_iter().collect());
    }
}

impl FromIterator<u16> for PortSet {
    /// Returns the set of the given ports, in any order; port 0 is ignored.
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let mut ports: Vec<u16> = ports.into_iter().filter(|&port| port > 0).collect();
        ports.sort_unstable();
        let mut spans: Vec<Span> = Vec::new();
        for port in ports {
            match spans.last_mut() {
                Some(span) if port <= span.last.saturating_add(1) => span.last = port,
                _ => spans.push(Span {
                    first: port,
                    last: port,
                }),
            }
        }
        Self::of_spans(spans)
    }
}

/// Parses a set in the form that [`PortSet`] describes. A text without any part is the empty set.
///
/// # Errors
///
/// [`InvalidPorts`](ErrorKind::InvalidPorts), with the part and its position, if a part is
/// neither a port from 1 to 65535 nor an ascending range of such ports, or if there is nothing
/// from which to exclude an exclusion.
impl FromStr for PortSet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (mut included, mut excluded) = (Vec::new(), Vec::new());
        let mut first_exclusion = None;
        for (row, line) in text.lines().enumerate() {
            let content = line.split('#').next().unwrap_or_default();
            let separator = |c: char| c == ',' || c.is_whitespace();
            for part in content.split(separator).filter(|part| !part.is_empty()) {
                let invalid = |why: &str| {
                    // Both pointers are into the same text.
                    let offset = part.as_ptr() as usize - line.as_ptr() as usize;
                    let column = line[..offset].chars().count() + 1;
                    let message = format!(
                        "invalid port set: \"{}\" at line {}, column {column}: {why}",
                        part.escape_debug(),
                        row + 1
                    );
                    Error::new(ErrorKind::InvalidPorts, message)
                };
                let exclusion = part.strip_prefix('!');
                let span = Span::parse(exclusion.unwrap_or(part)).map_err(invalid)?;
                let set = if exclusion.is_some() {
                    first_exclusion.get_or_insert_with(|| invalid("excluded from nothing"));
                    &mut excluded
                } else {
                    &mut included
                };
                set.push(span);
            }
        }
        match first_exclusion {
            Some(error) if included.is_empty() => Err(error),
            _ => {
                let sorted = |spans: Vec<Span>| Self::of_spans(spans).union(&Self::default());
                Ok(sorted(included).difference(&sorted(excluded)))
            }
        }
    }
}

impl Span {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let port = |text: &str| {
            // `parse` alone would also accept "+80".
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let port = text.parse().ok().filter(|&port: &u16| digits && port > 0);
            port.ok_or("not a port from 1 to 65535")
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err("the range is reversed");
        }
        Ok(Self { first, last })
    }
}

/// Writes the ports as text, such as `4000-4999,7000`.
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
    use std::{collections::HashSet, hash::DefaultHasher};

    use rand::RngExt;

    use super::*;

    #[test]
    fn ranges_of_every_form_leave_out_port_0() {
        assert_eq!(PortSet::from(..).len(), 65535);
        assert_eq!(PortSet::from(0..=3).to_string(), "1-3");
        assert_eq!(PortSet::from(65535..).to_string(), "65535");
        assert_eq!(PortSet::from(..2).to_string(), "1");
        assert_eq!(PortSet::from(7..9).to_string(), "7-8");
        assert_eq!(PortSet::from(..=2).to_string(), "1-2");
        assert_eq!(PortSet::from_iter([0, 1]).to_string(), "1");
        let after = (Bound::Excluded(7), Bound::Excluded(9));
        assert_eq!(PortSet::of_bounds(&after).to_string(), "8");
    }

    #[test]
    #[expect(clippy::reversed_empty_ranges, reason = "bad input is the point")]
    fn empty_reversed_and_zero_ranges_are_empty() {
        assert!(PortSet::from(4000..4000).is_empty());
        assert!(PortSet::from(4001..=4000).is_empty());
        assert!(PortSet::from(0..=0).is_empty());
        assert!(PortSet::from(..0).is_empty());
        assert!(PortSet::from(0).is_empty());
        assert!(PortSet::from([0, 0]).is_empty());
        let past_the_end = (Bound::Excluded(u16::MAX), Bound::Unbounded);
        assert!(PortSet::of_bounds(&past_the_end).is_empty());
    }

    #[test]
    fn ports_come_from_both_ends_each_once() {
        let set = PortSet::from([1, 5, 6, 7, 65_535]);
        for turns in 0_u32..1 << 5 {
            let mut ports = set.iter();
            let (mut front, mut back) = (Vec::new(), Vec::new());
            for turn in 0..5 {
                assert_eq!(ports.len(), 5 - turn);
                match turns >> turn & 1 {
                    0 => front.extend(ports.next()),
                    _ => back.extend(ports.next_back()),
                }
            }
            assert_eq!((ports.next(), ports.next_back()), (None, None));
            front.extend(back.into_iter().rev());
            assert_eq!(front, [1, 5, 6, 7, 65_535]);
        }
        assert!(set.clone().into_iter().eq(&set));
    }

    #[test]
    fn only_sets_of_the_same_ports_are_equal_and_have_the_same_hash() {
        let hash = |set: &PortSet| {
            let mut hasher = DefaultHasher::new();
            set.hash(&mut hasher);
            hasher.finish()
        };
        let range = PortSet::from(4000..=4002);
        assert!(!range.is_empty());
        let list: PortSet = [4002, 4000, 4001].into_iter().collect();
        assert_eq!((&range, hash(&range)), (&list, hash(&list)));
        for other in [
            PortSet::default(),
            (4000..=4001).into(),
            (4000..=4003).into(),
        ] {
            assert_ne!(range, other);
            assert_ne!(hash(&range), hash(&other));
        }
    }

    #[test]
    fn in_order_visits_each_port_exactly_once() {
        let lens = (0..70).chain([2000, 2001, 4095, 4096, 4097, 65535]);
        let ranges = lens.map(|len| PortSet::from(..=len));
        let parts: PortSet = "7,20-29,31-33,65534-65535".parse().expect("valid");
        for ports in ranges.chain([parts]) {
            let orders = [
                Order::random(),
                Order::random_near(fnv1a(b"a directory")),
                Order::of_name("my-worktree/api"),
            ];
            for order in orders {
                let visited: Vec<u16> = ports.in_order(order).collect();
                assert_eq!(visited.len(), ports.len());
                let distinct: HashSet<u16> = visited.iter().copied().collect();
                assert_eq!(distinct.len(), ports.len());
                assert!(distinct.iter().all(|&port| ports.contains(port)));
            }
        }
    }

    #[test]
    fn a_random_order_starts_anywhere() {
        let ports = PortSet::from(1..=8);
        let firsts: HashSet<u16> = (0..1000)
            .filter_map(|_| ports.in_order(Order::random()).next())
            .collect();
        assert_eq!(firsts.len(), 8);
    }

    #[test]
    fn a_large_set_is_searched_in_its_neighborhood_first() {
        let ports = PortSet::from(10_000..=29_999);
        // The neighborhood begins near the end of the set, and continues at the beginning.
        let place = 19_999 - 500;
        let far = 10_000 + 1024 - 501..29_499;
        let is_near = |port: u16| !far.contains(&port);
        let mut seen = HashSet::new();
        for _ in 0..1000 {
            let order = Order::random_near(place);
            let first: Vec<u16> = ports.in_order(order).take(MAX_NEIGHBORS + 1).collect();
            assert!(first[..MAX_NEIGHBORS].iter().all(|&port| is_near(port)));
            seen.extend(first);
        }
        let near = seen.iter().filter(|&&port| is_near(port)).count();
        assert_eq!(near, 1024, "all of it is used");
        assert!(seen.len() > 1500, "and then the rest");
        let order = Order::random_near(place);
        assert!(ports.is_beyond_neighbors(order, MAX_NEIGHBORS + 1));
        assert!(!ports.is_beyond_neighbors(order, MAX_NEIGHBORS));
        assert!(!ports.is_beyond_neighbors(Order::random(), MAX_NEIGHBORS + 1));
        let small = PortSet::from(1..=2048);
        assert!(!small.is_beyond_neighbors(order, MAX_NEIGHBORS + 1));
        let firsts: HashSet<u16> = (0..20_000)
            .filter_map(|_| small.in_order(Order::random_near(0)).next())
            .collect();
        assert!(firsts.len() > 1800, "a small set has no neighborhood");
    }

    #[test]
    fn the_order_of_a_name_never_changes() {
        // From the test vectors of the reference implementation of FNV-1a.
        assert_eq!(Order::of_name("").start, 0xcbf2_9ce4_8422_2325);
        assert_eq!(Order::of_name("foobar").start, 0x8594_4171_f739_67e8);
        let ports = PortSet::from(4000..=6000);
        let first: Vec<u16> = ports
            .in_order(Order::of_name("my-worktree/api"))
            .take(3)
            .collect();
        assert_eq!(first, [4320, 4157, 4078], "promised for all releases");
    }

    #[test]
    fn the_digest_of_a_set_never_changes() {
        let digest = |text: &str| text.parse::<PortSet>().expect("valid").digest();
        // FNV-1a of the text, from another implementation.
        assert_eq!(digest("7000,4000-4999"), 0x27e3_6a1d_1a62_4e14);
        assert_ne!(digest("4000-4999"), digest("4000-4998"));
    }

    #[test]
    fn blocks_start_where_they_fit() {
        let ports: PortSet = "10-14,20-21,30,65534-65535".parse().expect("valid");
        for (offset, starts) in [
            (0, "10-14,20-21,30,65534-65535"),
            (1, "10-13,20,65534"),
            (4, "10"),
            (5, ""),
            (u16::MAX, ""),
        ] {
            assert_eq!(ports.starts_of_blocks(offset).to_string(), starts);
        }
    }

    #[test]
    fn a_long_set_is_cut_in_messages() {
        let odd: PortSet = (1..=99).step_by(2).collect();
        assert_eq!(odd.brief(), "1,3,5,7,… (50 ports)");
        assert_eq!(PortSet::from(1..=99).brief(), "1-99");
    }

    #[test]
    fn text_is_read_in_every_form() {
        for (text, set) in [
            ("", ""),
            ("  # nothing\n,,", ""),
            ("4000", "4000"),
            ("1-65535", "1-65535"),
            ("4000-4999,!4045,7000", "4000-4044,4046-4999,7000"),
            ("!4045 4000-4999", "4000-4044,4046-4999"),
            ("7000 4000-4001\t4002,4001-4003", "4000-4003,7000"),
            ("1,3,5,2,4", "1-5"),
            ("# servers\r\n4000-4002 # three\r\n!4001\r\n", "4000,4002"),
            ("1-10,!1-3,!5,!9-20", "4,6-8"),
            ("5,!1-10", ""),
            ("65530-65535,!65535", "65530-65534"),
        ] {
            let parsed: PortSet = text.parse().expect(text);
            assert_eq!(parsed.to_string(), set, "{text:?}");
            assert_eq!(set.parse::<PortSet>().expect(set), parsed);
        }
    }

    #[test]
    fn errors_name_the_part_and_its_place() {
        for (text, part, place, why) in [
            ("0", "0", "line 1, column 1", "not a port"),
            ("65536", "65536", "line 1, column 1", "not a port"),
            (
                "80,\n 8x,90",
                "8x",
                "line 2, column 2",
                "not a port from 1 to 65535",
            ),
            ("ä,7", "ä", "line 1, column 1", "not a port"),
            ("7 ä 99-98", "ä", "line 1, column 3", "not a port"),
            ("7,99-98", "99-98", "line 1, column 3", "reversed"),
            ("4000 - 4999", "-", "line 1, column 6", "not a port"),
            ("+80", "+80", "line 1, column 1", "not a port"),
            ("80-90-95", "80-90-95", "line 1, column 1", "not a port"),
            ("!!80", "!!80", "line 1, column 1", "not a port"),
            ("# x\n!80", "!80", "line 2, column 1", "from nothing"),
        ] {
            let error = text.parse::<PortSet>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidPorts);
            let message = error.to_string();
            for expected in [&format!("\"{part}\""), place, why] {
                assert!(message.contains(expected), "{message}");
            }
        }
    }

    #[test]
    fn sets_agree_with_a_plain_list_of_ports() {
        let mut rng: SmallRng = rand::make_rng();
        let mut random_set = || -> (PortSet, HashSet<u16>) {
            let mut set = PortSet::default();
            for _ in 0..rng.random_range(0..6) {
                let first: u16 = rng.random_range(65_500..=65_535);
                set = set.union(&(first..=first.saturating_add(rng.random_range(0..5))).into());
            }
            let list = (65_490..=u16::MAX)
                .filter(|&port| set.contains(port))
                .collect();
            (set, list)
        };
        for _ in 0..300 {
            let ((a, list_a), (b, list_b)) = (random_set(), random_set());
            let same = |set: &PortSet, list: &HashSet<u16>| {
                assert_eq!(set.iter().collect::<HashSet<_>>(), *list, "{set}");
                assert!(set.iter().is_sorted() && set.iter().rev().count() == list.len());
                assert_eq!(set.len(), list.len());
                assert_eq!(*set, list.iter().copied().collect(), "one form for one set");
                assert_eq!(*set, set.to_string().parse().expect("our own text"));
            };
            same(&a, &list_a);
            same(&a.union(&b), &(&list_a | &list_b));
            same(&a.difference(&b), &(&list_a - &list_b));
            same(&a.intersection(&b), &(&list_a & &list_b));
            assert_eq!(a.is_disjoint(&b), list_a.is_disjoint(&list_b));
            same(&(&a | &b), &(&list_a | &list_b));
            same(&(a.clone() - &b), &(&list_a - &list_b));
            same(&(a.clone() & b.clone()), &(&list_a & &list_b));
            let mut extended = a.clone();
            extended.extend(&b);
            same(&extended, &(&list_a | &list_b));
        }
    }
}
