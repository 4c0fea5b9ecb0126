//! The fields of a line: JSON that is one line of bounded length, whatever the texts in it are.

use std::fmt::Write;

/// The most bytes that a text takes as it is written, quotation marks and the mark of a cut aside. The texts of a list have so many
/// together, give or take the last one.
pub const MAX_TEXT: usize = 1024;

/// Fields, each with a comma before it.
#[derive(Debug, Default)]
pub(super) struct Fields(String);

impl Fields {
    /// Adds a text; one that is too long is cut, and its length told.
    pub fn text(&mut self, name: &str, text: &str) -> &mut Self {
        self.name(name);
        self.quote(text);
        self
    }

    /// Adds a text that need not be there.
    pub fn some_text(&mut self, name: &str, text: Option<&str>) -> &mut Self {
        if let Some(text) = text {
            self.text(name, text);
        }
        self
    }

    /// Adds a whole number.
    pub fn number(&mut self, name: &str, number: impl Into<u64>) -> &mut Self {
        self.raw(name, number.into())
    }

    /// Adds yes or no.
    pub fn flag(&mut self, name: &str, flag: bool) -> &mut Self {
        self.raw(name, flag)
    }

    /// Adds a list of texts, if there are any; one that is too long is cut, and the number of its texts told.
    pub fn texts<T: AsRef<str>>(&mut self, name: &str, texts: &[T]) -> &mut Self {
        if texts.is_empty() {
            return self;
        }
        self.name(name);
        let end = self.0.len() + MAX_TEXT;
        for (index, text) in texts.iter().enumerate() {
            self.0.push(if index == 0 { '[' } else { ',' });
            if self.0.len() > end {
                self.quote(&format!("… ({} in all)", texts.len()));
                break;
            }
            self.quote(text.as_ref());
        }
        self.0.push(']');
        self
    }

    /// All of them.
    pub fn finish(self) -> Box<str> {
        self.0.into()
    }

    fn raw(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        self.name(name);
        write!(self.0, "{value}").expect("a String takes it");
        self
    }

    fn name(&mut self, name: &str) {
        write!(self.0, ",\"{name}\":").expect("a String takes it");
    }

    fn quote(&mut self, text: &str) {
        self.0.push('"');
        let end = self.0.len() + MAX_TEXT;
        for letter in text.chars() {
            let before = self.0.len();
            self.letter(letter);
            if self.0.len() > end {
                self.0.truncate(before);
                write!(self.0, "… ({} bytes)", text.len()).expect("a String takes it");
                break;
            }
        }
        self.0.push('"');
    }

    fn letter(&mut self, letter: char) {
        match letter {
            '"' => self.0.push_str("\\\""),
            '\\' => self.0.push_str("\\\\"),
            letter if is_unseen(letter) => write!(self.0, "\\u{:04x}", u32::from(letter)).expect("a String takes it"),
            letter => self.0.push(letter),
        }
    }
}

/// Whether a letter could break a line, speak to a terminal, or make a text look like another: controls, what ends a line in Unicode,
/// and what hides or turns the letters around it.
fn is_unseen(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// What the fields are, in an object of JSON.
    fn read(fields: Fields) -> (String, Value) {
        let text = fields.finish();
        let object = format!("{{{}}}", text.trim_start_matches(','));
        (text.to_string(), serde_json::from_str(&object).expect("an object"))
    }

    fn of_text(text: &str) -> (String, Value) {
        let mut fields = Fields::default();
        fields.text("text", text);
        read(fields)
    }

    proptest! {
        #[test]
        fn any_text_stays_one_line_of_json_and_comes_back(text in any::<String>()) {
            let (line, value) = of_text(&text);
            prop_assert!(!line.chars().any(is_unseen), "{}", line);
            prop_assert!(line.len() <= MAX_TEXT || text.len() > MAX_TEXT / 6);
            prop_assert!(value["text"] == *text || text.len() > MAX_TEXT / 6);
        }

        #[test]
        fn a_list_of_any_texts_is_bounded(texts in prop::collection::vec(any::<String>(), 0..64)) {
            let mut fields = Fields::default();
            let (line, value) = { fields.texts("texts", &texts); read(fields) };
            prop_assert!(line.len() <= 2 * MAX_TEXT + 100);
            let written = value["texts"].as_array().map_or(0, Vec::len);
            prop_assert!(written == texts.len() || line.len() > MAX_TEXT);
        }
    }

    #[test]
    fn what_could_forge_a_line_or_steer_a_terminal_is_escaped() {
        for (text, written) in [
            ("a\r\n{\"seq\":1}", r#""a\u000d\u000a{\"seq\":1}""#),
            ("\u{1b}[2J\u{9b}2J\0\u{7f}", r#""\u001b[2J\u009b2J\u0000\u007f""#),
            ("a\u{2028}b\u{202e}c\u{2066}d\u{feff}", r#""a\u2028b\u202ec\u2066d\ufeff""#),
            (r"\u0041", r#""\\u0041""#),
            ("é 😀", "\"é 😀\""),
        ] {
            let (line, value) = of_text(text);
            assert_eq!(line, format!(",\"text\":{written}"));
            assert_eq!(value["text"], text);
        }
    }

    #[test]
    fn a_text_of_1024_bytes_is_whole_and_a_longer_one_is_cut_with_its_length() {
        for (text, cut) in [
            ("a".repeat(1024), None),
            ("a".repeat(1025), Some(format!("{}… (1025 bytes)", "a".repeat(1024)))),
            ("é".repeat(512), None),
            (format!("a{}", "é".repeat(512)), Some(format!("a{}… (1025 bytes)", "é".repeat(511)))),
            // Each takes six bytes as it is written.
            ("\n".repeat(170), None),
            ("\n".repeat(171), Some(format!("{}… (171 bytes)", "\n".repeat(170)))),
        ] {
            assert_eq!(of_text(&text).1["text"], cut.unwrap_or(text));
        }
    }

    #[test]
    fn a_list_that_is_too_long_tells_how_long_it_was() {
        let texts = vec!["a".repeat(100); 1000];
        let mut fields = Fields::default();
        fields.texts("roles", &texts);
        let (_, value) = read(fields);
        let roles = value["roles"].as_array().expect("a list");
        assert_eq!((roles.len(), roles.last()), (11, Some(&Value::from("… (1000 in all)"))));
    }
}
