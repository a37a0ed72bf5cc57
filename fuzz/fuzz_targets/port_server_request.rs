//! Reads client requests to the port server, and compares the result with a separate
//! parser.

#![no_main]

// The program has no library, so its parser is compiled in.
#[path = "../../cli/src/commands/serve/request.rs"]
mod request;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let pid = request::parse(data);
    match (pid, read(data)) {
        (None, None) => {}
        (Some(pid), Some(expected)) => match u32::try_from(expected) {
            Ok(_) => assert_eq!(i128::from(pid), expected),
            // The number itself does not matter, only that it is not a pid.
            Err(_) => assert!(u32::try_from(pid).is_err(), "{expected} is {pid}"),
        },
        (Some(pid), None) => panic!("read as {pid}, but it is not a request"),
        (None, Some(expected)) => panic!("not read, but it asks for {expected}"),
    }
});

/// Reads spaces, an optional minus, digits, spaces; at most 20 bytes.
fn read(request: &[u8]) -> Option<i128> {
    const SPACES: &[u8] = b" \t\n\x0c\r";
    enum Place {
        Before,
        Sign,
        Digits,
        After,
    }
    let (mut place, mut sign, mut number) = (Place::Before, 1, 0_i128);
    for (at, byte) in request.iter().enumerate() {
        place = match (place, byte) {
            _ if at == 20 => return None,
            (Place::Before, byte) if SPACES.contains(byte) => Place::Before,
            (Place::Before, b'-') => {
                sign = -1;
                Place::Sign
            }
            (Place::Before | Place::Sign | Place::Digits, b'0'..=b'9') => {
                number = number * 10 + i128::from(byte - b'0');
                Place::Digits
            }
            (Place::Digits | Place::After, byte) if SPACES.contains(byte) => Place::After,
            _ => return None,
        };
    }
    matches!(place, Place::Digits | Place::After).then_some(sign * number)
}
