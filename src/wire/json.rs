//! Frames as JSON text (`tidegate.v1.json`): decoding what a client sent, encoding what it gets.

mod decode;
mod encode;
mod fields;

pub use decode::{decode, decode_message, filter, topic};
pub use encode::{BatchText, HEAD_AT, delivery, head, is_json, patched, reply};
pub use fields::Fields;

/// How deep JSON may be nested, the frame's own object included.
const MAX_DEPTH: usize = 64;

/// What may be wrong with JSON that a parser lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    TooDeep,
    LoneSurrogate,
}

/// Looks for nesting beyond [`MAX_DEPTH`] and for escaped surrogates without their other half, in one pass.
fn flaw(json: &[u8]) -> Option<Flaw> {
    let mut depth = 0;
    let mut rest = json.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Some(Flaw::TooDeep);
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let string = rest.as_slice();
                let length = end_of_string(string)?;
                if has_lone_surrogate(&string[..length]) {
                    return Some(Flaw::LoneSurrogate);
                }
                rest = string[length..].iter();
                rest.next();
            }
            _ => {}
        }
    }
    None
}

/// Where the closing quote is.
fn end_of_string(string: &[u8]) -> Option<usize> {
    let mut escaped = false;
    string.iter().position(|byte| match byte {
        _ if escaped => {
            escaped = false;
            false
        }
        b'\\' => {
            escaped = true;
            false
        }
        b'"' => true,
        _ => false,
    })
}

fn has_lone_surrogate(mut string: &[u8]) -> bool {
    let mut high = false;
    loop {
        let unit = match string {
            [b'\\', b'u', digits @ ..] => {
                let unit =
                    digits.get(..4).and_then(|digits| u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
                string = digits.get(4..).unwrap_or_default();
                unit
            }
            [b'\\', _, rest @ ..] | [_, rest @ ..] => {
                string = rest;
                None
            }
            [] => return high,
        };
        match unit {
            Some(0xD800..=0xDBFF) if !high => high = true,
            Some(0xDC00..=0xDFFF) if high => high = false,
            Some(0xD800..=0xDFFF) => return true,
            _ if high => return true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flaws_that_parsers_let_pass_are_found() {
        let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        let cases = [
            (deep(64), None),
            (deep(65), Some(Flaw::TooDeep)),
            (format!(r#""{}""#, "[".repeat(100)), None),
            (format!(r#""\"{}""#, "[".repeat(100)), None),
            (r#""\ud83d\ude00""#.to_owned(), None),
            (r#""\uD83D\uDE00\u00e9""#.to_owned(), None),
            (r#""\ud83d""#.to_owned(), Some(Flaw::LoneSurrogate)),
            (r#""\ude00""#.to_owned(), Some(Flaw::LoneSurrogate)),
            (r#""\ude00\ud83d""#.to_owned(), Some(Flaw::LoneSurrogate)),
            (r#""\ud83d\ud83d\ude00""#.to_owned(), Some(Flaw::LoneSurrogate)),
            (r#""\ud83dx\ude00""#.to_owned(), Some(Flaw::LoneSurrogate)),
            (r#""\\ud83d""#.to_owned(), None),
            (r#"{"\ud83d":1}"#.to_owned(), Some(Flaw::LoneSurrogate)),
            (r#""unfinished"#.to_owned(), None),
        ];
        for (json, expected) in cases {
            assert_eq!(flaw(json.as_bytes()), expected, "{json}");
        }
    }
}
