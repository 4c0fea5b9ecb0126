//! What has changed between two JSON values, as RFC 7396 writes it.
//!
//! Values are compared as text, so that a number never becomes another one: 1 and 1.0 differ, and what no machine holds stays whole.

use std::borrow::Cow;

use xxhash_rust::xxh3::xxh3_64;

use crate::wire::json::{self, Fields};

/// The patch that makes `new` of `base`, both valid JSON; `{}` says that they are the same. Nothing, where none can: one of them is no
/// object, has a name twice, or `new` has a null that a patch would take for a removal.
pub fn diff(base: &str, new: &str) -> Option<String> {
    let mut patch = String::new();
    difference(base, new, &mut patch)?;
    Some(patch)
}

/// The text of a JSON object in a payload, if it is one.
pub fn object(payload: &[u8]) -> Option<&str> {
    let text = simdutf8::basic::from_utf8(payload).ok()?.trim_ascii();
    (text.starts_with('{') && json::is_json(text)).then_some(text)
}

/// Writes the patch of two objects.
fn difference(base: &str, new: &str, patch: &mut String) -> Option<()> {
    let (base, new) = (Object::parse(base)?, Object::parse(new)?);
    patch.push('{');
    let empty = patch.len();
    let name = |patch: &mut String, name: &str| {
        if patch.len() > empty {
            patch.push(',');
        }
        patch.push_str(&serde_json::to_string(name).expect("a string is JSON"));
        patch.push(':');
    };
    let mut kept = 0;
    for (at, (key, value)) in new.members.iter().enumerate() {
        let before = base.get(key, at);
        kept += if before.is_some() { 1 } else { 0 };
        match before {
            Some(before) if is_same(before, value) => {}
            Some(before) if before.starts_with('{') && value.starts_with('{') => {
                let begins = patch.len();
                name(patch, key);
                let nested = patch.len();
                difference(before, value, patch)?;
                if &patch[nested..] == "{}" {
                    patch.truncate(begins);
                }
            }
            Some(_) | None => {
                if holds_null(value) {
                    return None;
                }
                name(patch, key);
                patch.push_str(value);
            }
        }
    }
    if kept < base.members.len() {
        for (at, (key, _)) in base.members.iter().enumerate() {
            if new.get(key, at).is_none() {
                name(patch, key);
                patch.push_str("null");
            }
        }
    }
    patch.push('}');
    Some(())
}

/// A patch would remove what it says is null, wherever it stands in objects; in arrays null is a value like others.
fn holds_null(value: &str) -> bool {
    if !value.starts_with('{') {
        return value == "null";
    }
    // What could not be read is not written either.
    Object::parse(value).is_none_or(|object| object.members.iter().any(|(_, value)| holds_null(value)))
}

/// The same text, the space between its parts aside.
fn is_same(one: &str, two: &str) -> bool {
    one == two || without_space(one).eq(without_space(two))
}

fn without_space(json: &str) -> impl Iterator<Item = u8> {
    let (mut in_string, mut is_escaped) = (false, false);
    json.bytes().filter(move |byte| {
        if !in_string {
            in_string = *byte == b'"';
            return !byte.is_ascii_whitespace();
        }
        if is_escaped {
            is_escaped = false;
        } else if *byte == b'\\' {
            is_escaped = true;
        } else if *byte == b'"' {
            in_string = false;
        }
        true
    })
}

/// A JSON object whose members' values are still text.
struct Object<'a> {
    members: Vec<(Cow<'a, str>, &'a str)>,
    /// Where each is, by the hash of its name.
    index: Vec<(u64, usize)>,
}

impl<'a> Object<'a> {
    /// Nothing for what is no object, or one with a name that stands twice: what it means is anybody's guess. Two names of one hash
    /// count as the same: nothing is lost by that.
    fn parse(text: &'a str) -> Option<Object<'a>> {
        let fields: Fields = serde_json::from_str(text).ok()?;
        let members: Vec<_> = fields.into_iter().map(|(name, value)| (name, value.get())).collect();
        let mut index: Vec<_> =
            members.iter().enumerate().map(|(at, (name, _))| (xxh3_64(name.as_bytes()), at)).collect();
        index.sort_unstable();
        let is_unique = index.windows(2).all(|pair| pair[0].0 != pair[1].0);
        is_unique.then_some(Object { members, index })
    }

    /// The value of a member that is likely to be at that place.
    fn get(&self, name: &str, likely: usize) -> Option<&'a str> {
        let named = |at: usize| self.members.get(at).filter(|(member, _)| member == name).map(|(_, value)| *value);
        named(likely).or_else(|| {
            let found = self.index.binary_search_by_key(&xxh3_64(name.as_bytes()), |(hash, _)| *hash).ok()?;
            named(self.index[found].1)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    /// MergePatch as RFC 7396 section 2 has it.
    fn apply(target: Value, patch: &Value) -> Value {
        let Value::Object(patch) = patch else { return patch.clone() };
        let mut target = match target {
            Value::Object(target) => target,
            _ => Map::new(),
        };
        for (name, value) in patch {
            if value.is_null() {
                target.remove(name);
            } else {
                let before = target.remove(name).unwrap_or(Value::Null);
                target.insert(name.clone(), apply(before, value));
            }
        }
        Value::Object(target)
    }

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn the_table_of_the_rfc_is_what_we_apply_and_what_we_write() {
        // RFC 7396, appendix A: original, patch, result; and the patch that we write, if any.
        let table = [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#, Some(r#"{"a":"c"}"#)),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#, Some(r#"{"b":"c"}"#)),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#, Some(r#"{"a":null}"#)),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#, Some(r#"{"a":null}"#)),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#, Some(r#"{"a":"c"}"#)),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#, Some(r#"{"a":["b"]}"#)),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#, Some(r#"{"a":{"b":"d"}}"#)),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#, Some(r#"{"a":[1]}"#)),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#, None),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#, None),
            (r#"{"a":"foo"}"#, r#"null"#, r#"null"#, None),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#, None),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#, Some(r#"{"a":1}"#)),
            (r#"[1,2]"#, r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#, None),
            (r#"{}"#, r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#, Some(r#"{"a":{"bb":{}}}"#)),
        ];
        for (original, patch, result, ours) in table {
            assert_eq!(apply(parsed(original), &parsed(patch)), parsed(result), "{original} and {patch}");
            assert_eq!(diff(original, result).as_deref(), ours, "{original} to {result}");
        }
    }

    #[test]
    fn what_a_patch_cannot_say_is_not_written() {
        for (base, new) in [
            (r#"{"a":1}"#, r#"{"a":null}"#),
            (r#"{}"#, r#"{"a":{"b":null}}"#),
            (r#"{"a":[]}"#, r#"{"a":{"b":{"c":null}}}"#),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            (r#"{"a":2}"#, r#"{"a":1,"\u0061":2}"#),
            (r#"{"a":{"b":1}}"#, r#"{"a":{"b":1,"b":1}}"#),
        ] {
            assert_eq!(diff(base, new), None, "{base} to {new}");
        }
    }

    #[test]
    fn what_is_the_same_is_not_written_and_numbers_stay_as_they_are() {
        for (base, new, patch) in [
            (r#"{"a": [1, "x y"], "b":{"c":1}}"#, r#"{"b" : { "c":1 },"a":[1,"x y"]}"#, "{}"),
            (r#"{"a":null}"#, r#"{"a": null}"#, "{}"),
            (r#"{"a":[1,null]}"#, r#"{"a":[null]}"#, r#"{"a":[null]}"#),
            (r#"{"a":"x y"}"#, r#"{"a":"x  y"}"#, r#"{"a":"x  y"}"#),
            (r#"{"a":1}"#, r#"{"a":1.0}"#, r#"{"a":1.0}"#),
            (
                r#"{"n":12345678901234567890123,"b":0}"#,
                r#"{"n":12345678901234567890124,"b":0}"#,
                r#"{"n":12345678901234567890124}"#,
            ),
            (r#"{"a":{"b":{"c":1,"d":2}},"e":[]}"#, r#"{"a":{"b":{"c":1}},"e":[]}"#, r#"{"a":{"b":{"d":null}}}"#),
            (r#"{"\"":1}"#, r#"{"\"":2}"#, r#"{"\"":2}"#),
        ] {
            assert_eq!(diff(base, new).as_deref(), Some(patch), "{base} to {new}");
        }
    }

    #[test]
    fn only_an_object_is_a_base() {
        for (payload, is_object) in [
            (&br#" {"a":1} "#[..], true),
            (br#"{}"#, true),
            (br#"[1]"#, false),
            (br#"{"a":"#, false),
            (br#"{"a":1}x"#, false),
            (br#"{"a":"\ud800"}"#, false),
            (b"\xFF", false),
            (b"", false),
        ] {
            assert_eq!(object(payload).is_some(), is_object, "{}", String::from_utf8_lossy(payload));
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-3i64..3).prop_map(Value::from),
            "[a-c\"\\\\ ]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 20, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-d\"]|k[0-9]{1,2}", inner, 0..20)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_texts_make_it_stop(one in r#"[{}\[\]:,"\\\\a1 ]{0,40}"#, two: String) {
            for (base, new) in [(&one, &two), (&two, &one), (&one, &one)] {
                if object(base.as_bytes()).is_none() || object(new.as_bytes()).is_none() {
                    let _ = diff(base, new);
                }
            }
        }

        #[test]
        fn a_patch_makes_exactly_the_new_value_of_its_base(base in any_value(), new in any_value()) {
            if let Some(patch) = diff(&base.to_string(), &new.to_string()) {
                prop_assert_eq!(apply(base.clone(), &parsed(&patch)), new.clone(), "{} to {} by {}", base, new, patch);
                prop_assert_eq!(patch == "{}", base == new);
            } else {
                let is_object = base.is_object() && new.is_object();
                prop_assert!(!is_object || new.to_string().contains("null"), "{} to {} can be said", base, new);
            }
        }
    }

    #[test]
    fn examples_are_equal_to_themselves() {
        let value = json!({"a": [1, {"b": null}], "c": {"d": {}}});
        assert_eq!(diff(&value.to_string(), &value.to_string()).as_deref(), Some("{}"));
    }
}
