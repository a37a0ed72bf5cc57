//! `--portserver_static_pool`: ranges of ports as portpicker's server parses them.

use portlock::PortSet;

/// Parses `first-last` ranges, separated by commas, and returns their ports. Anything else is
/// ignored, with a message for the log.
pub(crate) fn parse(text: &str) -> (PortSet, Vec<String>) {
    let mut ports = PortSet::default();
    let mut complaints = Vec::new();
    for part in text.split(',') {
        let ends = part.split_once('-');
        let ends = ends.and_then(|(first, last)| Some((integer(first)?, integer(last)?)));
        let what = match ends {
            None => "unparsable",
            Some((first, last)) if first < 1 || last > i64::from(u16::MAX) => "out of bounds",
            Some((first, last)) => match (u16::try_from(first), u16::try_from(last)) {
                (Ok(first), Ok(last)) if first <= last => {
                    ports = ports.union(&PortSet::from(first..=last));
                    continue;
                }
                _ => "reversed",
            },
        };
        complaints.push(format!("Ignoring {what} port range {part:?}."));
    }
    (ports, complaints)
}

/// Parses an integer as Python's `int()` does: surrounding white space, a sign, and single
/// underscores between digits are allowed.
fn integer(text: &str) -> Option<i64> {
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut value: i64 = 0;
    for group in digits.split('_') {
        if group.is_empty() {
            return None;
        }
        for digit in group.chars() {
            let digit = i64::from(digit.to_digit(10)?);
            // Saturated numbers are far out of bounds, so the exact value does not matter.
            value = value.saturating_mul(10).saturating_add(digit);
        }
    }
    Some(sign * value)
}

#[cfg(test)]
mod tests {
    use super::parse;

    /// The first rows are those of portpicker's own test, `test_parse_port_ranges`.
    #[test]
    fn a_pool_is_parsed_as_portpicker_parses_it() {
        for (text, ports, ignored) in [
            ("", "", 1),
            ("1-1", "1", 0),
            ("1-1,3-8,375-378", "1,3-8,375-378", 0),
            ("1-2,not,numbers", "1-2", 2),
            ("8080-8081x", "", 1),
            ("0-1138", "", 1),
            ("1138-65536,19-84", "19-84", 1),
            // Python's int().
            (" 15000 - 15001 ,+7-1_0", "7-10,15000-15001", 0),
            ("1__0-20,_1-2,1_-2,-,--,1-,-2", "", 7),
            ("5-10,8-12", "5-12", 0),
            // In portpicker a single port is not a range, and there are no exclusions.
            ("8080", "", 1),
            ("4000-4009,!4005", "4000-4009", 1),
            // portpicker treats this as an empty range.
            ("16000-15000", "", 1),
            ("5--10", "", 1),
            ("99999999999999999999-5,1-99999999999999999999", "", 2),
        ] {
            let (parsed, complaints) = parse(text);
            assert_eq!(parsed.to_string(), ports, "{text:?}");
            assert_eq!(complaints.len(), ignored, "{text:?}: {complaints:?}");
        }
        let (_, complaints) = parse("x\u{1b}");
        assert_eq!(complaints, [r#"Ignoring unparsable port range "x\u{1b}"."#]);
    }
}
