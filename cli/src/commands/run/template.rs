//! An argument of a command, with placeholders for ports: `{port}`, `{port2}`, `{NAME}`, `{web}`.

use std::ffi::{OsStr, OsString};

use crate::{names::variable, sys};

/// The names of the ports that a command receives.
#[derive(Debug)]
pub(crate) struct Names<'a> {
    /// The values of --env or --name, one for each port; or none.
    chosen: &'a [String],
    option: &'static str,
    /// Number of ports.
    count: usize,
    variables: Vec<(String, usize)>,
}

impl<'a> Names<'a> {
    pub(crate) fn new(chosen: &'a [String], count: usize) -> Self {
        let variables = if chosen.is_empty() {
            let numbered = (0..count).map(|index| (format!("PORT_{}", index + 1), index));
            let first = ("PORT".to_owned(), 0);
            [first]
                .into_iter()
                .chain(numbered.filter(|_| count > 1))
                .collect()
        } else {
            chosen.iter().cloned().zip(0..).collect()
        };
        Self {
            chosen,
            option: match chosen {
                [] => "-n",
                _ => "--env",
            },
            count,
            variables,
        }
    }

    /// Returns the names of reserved ports.
    pub(crate) fn reserved(names: &'a [String]) -> Self {
        let variables = names.iter().map(|name| variable(name)).zip(0..);
        Self {
            chosen: names,
            option: "--name",
            count: names.len(),
            variables: [("PORT".to_owned(), 0)]
                .into_iter()
                .chain(variables)
                .collect(),
        }
    }

    /// Returns the environment variables for the command, each with the index of its port.
    pub(crate) fn variables(&self) -> &[(String, usize)] {
        &self.variables
    }

    /// Returns the index of the port that `{word}` stands for, or `None` if it is not a placeholder.
    ///
    /// # Errors
    ///
    /// The word was probably meant as a placeholder. If it were passed on unchanged, the command
    /// would fail in a less obvious way, or not at all.
    fn index(&self, word: &str) -> Result<Option<usize>, String> {
        /// Minimum length of a name for suggestions: too many words are one letter away from shorter
        /// names.
        const SHORTEST: usize = 4;
        // First, because `port` may be the name of a port other than the first.
        if let Some(index) = self.chosen.iter().position(|name| name == word) {
            return Ok(Some(index));
        }
        if let Some((_, index)) = self.variables.iter().find(|(name, _)| name == word) {
            return Ok(Some(*index));
        }
        if let Some(number) = self.number(word) {
            let index = number.and_then(|number| number.checked_sub(1));
            let is_ours = word.starts_with("port") && !word.contains('_');
            let meant = match index.filter(|&index| index < self.count) {
                Some(index) if is_ours => return Ok(Some(index)),
                Some(0) => "did you mean {port}?".to_owned(),
                Some(index) => format!("did you mean {{port{}}}?", index + 1),
                None => self.how_many(),
            };
            return Err(format!("{{{word}}} does not name a port: {meant}"));
        }
        // Names of reserved ports may contain dashes, variables underscores.
        let dash = if self.option == "--name" { b'-' } else { b'_' };
        let is_word = word
            .bytes()
            .all(|byte| byte == b'_' || byte == dash || byte.is_ascii_alphanumeric());
        let is_near = |name: &&String| {
            name.eq_ignore_ascii_case(word)
                || name.len() >= SHORTEST && strsim::osa_distance(name, word) <= 1
        };
        match self.chosen.iter().find(is_near) {
            Some(name) if is_word => Err(format!(
                "{{{word}}} does not name a port: did you mean {{{name}}}?"
            )),
            _ => Ok(None),
        }
    }

    /// Returns the number in `port2` or, unless there are chosen names, in `PORT_2`, ignoring case;
    /// 1 for `port`. The inner `None` means that the number is too large.
    fn number(&self, word: &str) -> Option<Option<usize>> {
        let (port, number) = word.split_at_checked("port".len())?;
        let number = match number.strip_prefix('_') {
            Some(digits) if self.chosen.is_empty() && !digits.is_empty() => digits,
            _ => number,
        };
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
        (port.eq_ignore_ascii_case("port") && is_number).then(|| match number {
            "" => Some(1),
            number => number.parse().ok(),
        })
    }

    fn how_many(&self) -> String {
        let how = match self.option {
            "-n" => "-n leases more".to_owned(),
            option => format!("each {option} adds one"),
        };
        match self.count {
            1 => format!("there is only one, {{port}} ({how})"),
            count => format!("there are only {count}, {{port1}} to {{port{count}}} ({how})"),
        }
    }
}

/// A parsed argument.
#[derive(Debug)]
pub(crate) struct Template<U> {
    parts: Vec<Part<U>>,
}

#[derive(Debug)]
enum Part<U> {
    Text(Vec<U>),
    /// The port at this index.
    Port(usize),
}

/// Parses an argument, which need not be UTF-8.
pub(crate) fn parse(text: &OsStr, names: &Names<'_>) -> Result<Template<sys::Unit>, String> {
    Template::parse(&sys::units(text), names)
        .map_err(|why| format!("in the argument {text:?}, {why}"))
}

/// Returns the argument with the ports filled in.
pub(crate) fn fill(template: &Template<sys::Unit>, ports: &[u16]) -> OsString {
    sys::from_units(template.fill(ports))
}

impl<U> Template<U>
where
    U: Copy + PartialEq + From<u8>,
    u8: TryFrom<U>,
{
    fn parse(text: &[U], names: &Names<'_>) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain: Vec<U> = Vec::new();
        let mut rest = text;
        while let Some((&unit, after)) = rest.split_first() {
            // `${PORT}` is a shell variable, and is left for the command.
            let is_brace = unit == U::from(b'{') && plain.last() != Some(&U::from(b'$'));
            let word = is_brace.then(|| word(after)).flatten();
            let index = match &word {
                Some(word) => names.index(word)?,
                None => None,
            };
            match (index, word) {
                (Some(index), Some(word)) => {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                    parts.push(Part::Port(index));
                    // Both braces are ASCII, and so is the word.
                    rest = &after[word.len() + 1..];
                }
                _ => {
                    plain.push(unit);
                    rest = after;
                }
            }
        }
        parts.push(Part::Text(plain));
        Ok(Self { parts })
    }

    fn fill(&self, ports: &[u16]) -> Vec<U> {
        let mut filled = Vec::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => filled.extend(text),
                Part::Port(index) => {
                    let port = ports.get(*index).map(u16::to_string).unwrap_or_default();
                    filled.extend(port.bytes().map(U::from));
                }
            }
        }
        filled
    }
}

/// Returns the text before the next closing brace, if it is ASCII.
fn word<U>(text: &[U]) -> Option<String>
where
    U: Copy + PartialEq + From<u8>,
    u8: TryFrom<U>,
{
    let end = text.iter().position(|&unit| unit == U::from(b'}'))?;
    let ascii = |&unit: &U| u8::try_from(unit).ok().filter(u8::is_ascii).map(char::from);
    text[..end].iter().map(ascii).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled<U>(text: &[U], names: &Names<'_>, ports: &[u16]) -> Result<Vec<U>, String>
    where
        U: Copy + PartialEq + From<u8>,
        u8: TryFrom<U>,
    {
        Ok(Template::parse(text, names)?.fill(ports))
    }

    #[test]
    fn every_placeholder_is_replaced_with_its_port() {
        let ports = [4000, 4001];
        let chosen = ["HTTP_PORT".to_owned(), "ADMIN".to_owned()];
        let names = Names::new(&chosen, 2);
        for (text, expected) in [
            ("--port={port}", "--port=4000"),
            ("{port1}{port2}", "40004001"),
            ("{HTTP_PORT}:{ADMIN}", "4000:4001"),
            ("{x} {} {", "{x} {} {"),
            ("{{port}}", "{4000}"),
            ("{\"a\": {port}}", "{\"a\": 4000}"),
            ("${port} ${PORT} ${ADMIN}", "${port} ${PORT} ${ADMIN}"),
            ("$ {port}", "$ 4000"),
            ("", ""),
        ] {
            let template = parse(OsStr::new(text), &names).expect(text);
            assert_eq!(fill(&template, &ports), OsStr::new(expected));
        }
        // Neither UTF-8 nor UTF-16.
        let names = Names::new(&[], 1);
        let bytes = filled(b"\xff{port}\xfe{\xc3}", &names, &ports).expect("valid");
        assert_eq!(bytes, b"\xff4000\xfe{\xc3}");
        let text = |text: &str| [&[0xd800], &text.encode_utf16().collect::<Vec<_>>()[..]].concat();
        let units = filled(&text("{port}"), &names, &ports).expect("valid");
        assert_eq!(units, text("4000"));
    }

    #[test]
    fn a_word_that_was_probably_meant_as_a_placeholder_is_an_error() {
        let check = |word: &str, chosen: &[&str], count: usize| -> Option<String> {
            let chosen: Vec<String> = chosen.iter().map(|&name| name.to_owned()).collect();
            let names = Names::new(&chosen, count);
            let argument = format!("--x={{{word}}}");
            let error = parse(OsStr::new(&argument), &names).err()?;
            let start =
                format!("in the argument \"--x={{{word}}}\", {{{word}}} does not name a port: ");
            let meant = error.strip_prefix(&start);
            Some(meant.unwrap_or_else(|| panic!("{error}")).to_owned())
        };
        let one = "there is only one, {port} (-n leases more)";
        let three = "there are only 3, {port1} to {port3} (-n leases more)";
        for (word, chosen, count, meant) in [
            ("port2", &[][..], 1, one),
            ("port0", &[], 1, one),
            ("PORT_2", &[], 1, one),
            ("PORT_1", &[], 1, "did you mean {port}?"),
            ("port99999999999999999999", &[], 1, one),
            ("port4", &[], 3, three),
            ("PORT_4", &[], 3, three),
            ("Port", &[], 1, "did you mean {port}?"),
            ("Port2", &[], 2, "did you mean {port2}?"),
            ("port_2", &[], 2, "did you mean {port2}?"),
            ("PORT", &["HTTP"], 1, "did you mean {port}?"),
            (
                "port2",
                &["HTTP"],
                1,
                "there is only one, {port} (each --env adds one)",
            ),
            // A wrong letter, two swapped letters, an extra letter, a missing letter, another case.
            ("HTPP", &["DB", "HTTP"], 2, "did you mean {HTTP}?"),
            ("HTPT", &["DB", "HTTP"], 2, "did you mean {HTTP}?"),
            ("HTTPS", &["DB", "HTTP"], 2, "did you mean {HTTP}?"),
            ("HTP", &["DB", "HTTP"], 2, "did you mean {HTTP}?"),
            ("http", &["DB", "HTTP"], 2, "did you mean {HTTP}?"),
            ("db", &["DB", "HTTP"], 2, "did you mean {DB}?"),
        ] {
            assert_eq!(check(word, chosen, count).as_deref(), Some(meant), "{word}");
        }
        for (word, chosen) in [
            ("", &[][..]),
            ("x", &[]),
            ("print", &[]),
            ("sort", &[]),
            ("ports", &[]),
            ("port_", &[]),
            ("port-2", &[]),
            ("portx", &[]),
            ("HOST", &[]),
            ("PORTS", &[]),
            ("PORT_2", &["HTTP"]),
            ("HOST", &["HTTP"]),
            ("HTTP ", &["HTTP"]),
            ("HT-P", &["HTTP"]),
            ("a", &["A1"]),
            ("DC", &["DB"]),
            ("APP", &["API"]),
            ("größe", &["grosse"]),
        ] {
            assert_eq!(check(word, chosen, chosen.len().max(1)), None, "{word}");
        }
        // A name that is one letter away from another name still stands for its own port.
        assert_eq!(check("HTTPS", &["HTTP", "HTTPS"], 2), None);
    }

    #[test]
    fn names_of_reserved_ports_stand_for_them() {
        let chosen = ["web", "api-v2", "port"].map(str::to_owned);
        let names = Names::reserved(&chosen);
        let variables: Vec<&str> = names.variables().iter().map(|(name, _)| &**name).collect();
        assert_eq!(variables, ["PORT", "WEB_PORT", "API_V2_PORT", "PORT_PORT"]);
        for (text, expected) in [
            ("{web} {api-v2}", "4000 4001"),
            ("{WEB_PORT}:{API_V2_PORT}", "4000:4001"),
            ("{port1} {port2} {PORT}", "4000 4001 4000"),
            // `port` is one of the names.
            ("{port}", "4002"),
            ("${web} {ui} {}", "${web} {ui} {}"),
        ] {
            let template = parse(OsStr::new(text), &names).expect(text);
            assert_eq!(fill(&template, &[4000, 4001, 4002]), OsStr::new(expected));
        }
        for (word, meant) in [
            ("Web", "did you mean {web}?"),
            ("api-v3", "did you mean {api-v2}?"),
            (
                "port4",
                "there are only 3, {port1} to {port3} (each --name adds one)",
            ),
        ] {
            let error = parse(OsStr::new(&format!("{{{word}}}")), &names).expect_err(word);
            assert!(error.ends_with(meant), "{error}");
        }
    }

    #[test]
    fn one_port_has_one_variable_and_several_ports_have_numbered_ones_too() {
        let names = |chosen: &[String], count| -> Vec<String> {
            let names = Names::new(chosen, count);
            let variables = names.variables().iter();
            variables.map(|(name, _)| name.clone()).collect()
        };
        assert_eq!(names(&[], 1), ["PORT"]);
        assert_eq!(names(&[], 2), ["PORT", "PORT_1", "PORT_2"]);
        assert_eq!(names(&["A".to_owned()], 1), ["A"]);
    }
}
