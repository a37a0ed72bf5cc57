//! A client's request to the port server: a pid in decimal, normally followed by a newline.
//!
//! It is separate from the server so that it can be fuzzed alone.

/// Maximum length of a request in bytes, as in portpicker's server.
pub(crate) const LONGEST: usize = 20;

/// Returns the requested pid, as portpicker's server parses it. It does not check whether the
/// number is a valid pid.
pub(crate) fn parse(request: &[u8]) -> Option<i64> {
    if request.len() > LONGEST {
        return None;
    }
    let text = std::str::from_utf8(request).ok()?.trim_ascii();
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Twenty digits may overflow the type, and are not a valid pid anyway.
    Some(text.parse().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn requests_are_parsed_as_portpicker_parses_them() {
        for (request, pid) in [
            (&b"812"[..], Some(812)),
            (b"812\n", Some(812)),
            (b" 812\r\n", Some(812)),
            (b"-5\n", Some(-5)),
            (b"0\n", Some(0)),
            (b"99999999999999999999", Some(i64::MAX)),
            (b"", None),
            (b"\n", None),
            (b"-\n", None),
            (b"99Z\n", None),
            (b"99 8\n", None),
            (b"1\n2\n", None),
            (b"\xff\n", None),
            (b"12345678901234567890123456789012345", None),
        ] {
            assert_eq!(parse(request), pid, "{request:?}");
        }
    }
}
