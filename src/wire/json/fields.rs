//! A JSON object as its fields, each still as the text that the client wrote.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::wire::Refusal;

/// The fields of one JSON object, in order.
#[derive(Debug, Default)]
pub struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// Reads an object; `what` names it in refusals.
    pub fn of(json: &'a RawValue, what: &str) -> Result<Fields<'a>, Refusal> {
        let fields: Fields = serde_json::from_str(json.get())
            .map_err(|_| Refusal::invalid_frame(format!("{what} must be an object.")))?;
        match fields.duplicate() {
            None => Ok(fields),
            Some(name) => Err(duplicate(name)),
        }
    }

    /// A name that stands twice.
    pub fn duplicate(&self) -> Option<&str> {
        let mut seen = HashSet::with_capacity(self.0.len());
        self.0.iter().find(|(name, _)| !seen.insert(name)).map(|(name, _)| name.as_ref())
    }

    /// A name that is none of these.
    pub fn unknown(&self, known: &[&str]) -> Option<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).find(|name| !known.contains(name))
    }

    /// The text of a field's value.
    pub fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| *value)
    }

    /// The value of a field that may be absent; `must` completes the sentence "“name” must be …".
    pub fn get<T: DeserializeOwned>(&self, name: &str, must: &str) -> Result<Option<T>, Refusal> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        // `null` is a value for none of the fields, and serde would read it as an absent option.
        match serde_json::from_str(raw.get()) {
            Ok(value) if raw.get() != "null" => Ok(Some(value)),
            _ => Err(must_be(name, must)),
        }
    }

    /// A string that may be absent and fits a field of a packet.
    pub fn text(&self, name: &str) -> Result<Option<String>, Refusal> {
        let text: Option<String> = self.get(name, "a string")?;
        match text {
            Some(text) if !fits_packet(&text) => Err(must_be(name, "at most 65,535 bytes without control characters")),
            text => Ok(text),
        }
    }
}

/// Whether a string may stand in a packet: brokers may end the connection over any other (MQTT 5 section 1.5.4).
pub fn fits_packet(text: &str) -> bool {
    text.len() <= usize::from(u16::MAX) && text.chars().all(is_plain)
}

/// Neither a control character nor one of Unicode's non-characters.
pub fn is_plain(char: char) -> bool {
    !(char.is_control() || matches!(char, '\u{FDD0}'..='\u{FDEF}') || u32::from(char) & 0xFFFE == 0xFFFE)
}

/// A refusal of one field.
pub fn must_be(name: &str, must: &str) -> Refusal {
    Refusal::invalid_frame(format!("`{name}` must be {must}."))
}

/// A refusal of a name that stands twice.
pub fn duplicate(name: &str) -> Refusal {
    let name: String = name.chars().take(40).collect();
    Refusal::invalid_frame(format!("The key `{}` stands twice in one object; send it once.", name.escape_debug()))
}

impl<'a> IntoIterator for Fields<'a> {
    type Item = (Cow<'a, str>, &'a RawValue);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    /// The fields, in order.
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some(Name(name)) = map.next_key()? {
                    fields.push((name, map.next_value()?));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// A key: borrowed from the text unless it holds escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(name)))
            }
            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}
