//! A position among the events that a user is sent, as the last argument of each event.
//!
//! Two forms exist: an event's number in the log of one process, or an update's place in the
//! log that a broker keeps for all instances, and which of the update's events it is. Both are
//! opaque to clients. Pure.

use std::fmt;

/// Bytes of a place's keyed hash: a guess is right once in 2^48.
pub(super) const CHECK_BYTES: usize = 6;

/// An update's place in the log of all instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub(super) offset: u64,
    /// A keyed hash of the place and the update: offsets are used again.
    pub(super) check: [u8; CHECK_BYTES],
}

/// A position among a user's events. Opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offset {
    /// The event of this number in the log of that tag.
    #[allow(missing_docs)] // The line above names both.
    Own { log: u32, number: u64 },
    /// An update, with all of its events (`is_last`) or the first of two.
    #[allow(missing_docs)] // The line above names both.
    Shared { place: Place, is_last: bool },
}

impl Offset {
    /// Parses what a client sent back.
    pub fn parse(text: &str) -> Option<Self> {
        let (first, second) = text.split_once('-')?;
        let Some((check, event)) = second.split_once('-') else {
            return Some(Self::Own {
                log: (first.len() == 8)
                    .then(|| hexadecimal(first))??
                    .try_into()
                    .ok()?,
                number: hexadecimal(second)?,
            });
        };
        let check = (check.len() == 2 * CHECK_BYTES).then(|| hexadecimal(check))??;
        let mut bytes = [0; CHECK_BYTES];
        bytes.copy_from_slice(&check.to_be_bytes()[8 - CHECK_BYTES..]);
        Some(Self::Shared {
            place: Place {
                offset: hexadecimal(first)?,
                check: bytes,
            },
            is_last: match event {
                "0" => false,
                "1" => true,
                _ => return None,
            },
        })
    }
}

/// `from_str_radix` alone would also accept a sign and any number of zeros.
fn hexadecimal(digits: &str) -> Option<u64> {
    let is_digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = (digits.len() <= 16 && is_digits).then(|| u64::from_str_radix(digits, 16));
    number?.ok()
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own { log, number } => write!(f, "{log:08x}-{number:x}"),
            Self::Shared { place, is_last } => {
                let Place { offset, check } = place;
                let mut bytes = [0; 8];
                bytes[8 - CHECK_BYTES..].copy_from_slice(check);
                let check = u64::from_be_bytes(bytes);
                write!(f, "{offset:x}-{check:012x}-{}", u8::from(*is_last))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_other_form_is_read() {
        for text in [
            "",
            "-",
            "12345678",
            "12345678-",
            "1234567-1",
            "12345678-+1",
            "+1234567-1",
            "12345678-1-1",
            "12345678-g",
            "123456789-1",
            "12345678-11111111111111111",
            "-1",
            "éé345678-1",
            "1-000000000000-2",
            "1-000000000000-",
            "1-00000000000-0",
            "1-0000000000000-0",
            "-000000000000-0",
            "1-000000000000-0-0",
            "+1-000000000000-0",
            "11111111111111111-000000000000-0",
        ] {
            assert_eq!(Offset::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn offsets_are_read_as_they_are_written(
            log: u32,
            number: u64,
            check: [u8; CHECK_BYTES],
            is_last: bool,
        ) {
            let place = Place { offset: number, check };
            for offset in [Offset::Own { log, number }, Offset::Shared { place, is_last }] {
                prop_assert_eq!(Offset::parse(&offset.to_string()), Some(offset));
            }
        }
    }
}
