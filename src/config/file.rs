//! Settings from a TOML file, and where in it a mistake is.

use std::fs;
use std::ops::Range;
use std::path::Path;

use toml::Table;
use toml::de::{DeTable, DeValue, Deserializer};

use super::{Config, ConfigError, Setting, TEMPLATE_TABLE, every_setting, flatten, is_secret};

/// The settings that the file gives. They are judged here, where the line of each is known.
pub(super) fn settings(path: &Path) -> Result<Vec<Setting>, ConfigError> {
    let text = fs::read_to_string(path).map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
    judge(&text).map_err(|mistake| mistake.tell(path, &text))?;
    let sections: Table = text.parse().expect("what was judged is TOML");
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut settings = Vec::new();
    flatten(&sections, &mut Vec::new(), &mut |setting, value| {
        let value = match (setting.last(), value.as_str()) {
            // The audit log is a file that need not be there, so its setting has another name.
            (Some(key), Some(file)) if key.ends_with("_file") || setting == ["audit", "log"] => {
                folder.join(file).to_string_lossy().as_ref().into()
            }
            _ => value.clone(),
        };
        settings.push(Setting::new(setting, value, path.to_string_lossy()));
    });
    Ok(settings)
}

fn judge(text: &str) -> Result<Config, Mistake> {
    let file = DeTable::parse(text).map_err(|error| Mistake::from_toml(None, error))?;
    judge_sections(file.get_ref(), Some(&TEMPLATE_TABLE), "")?;
    serde_path_to_error::deserialize(Deserializer::from(file))
        .map_err(|error| Mistake::from_toml(Some(error.path().to_string()), error.into_inner()))
}

/// Serde would take a list for the settings of a section in their order.
fn judge_sections(table: &DeTable, template: Option<&Table>, prefix: &str) -> Result<(), Mistake> {
    for (name, value) in table {
        let path = format!("{prefix}{}", name.get_ref());
        let known = template.and_then(|template| template.get(name.get_ref().as_ref()));
        // What stands outermost is a section, whether it is known or not.
        let is_section = prefix.is_empty() || known.is_some_and(toml::Value::is_table);
        match value.get_ref() {
            DeValue::Table(section) => {
                judge_sections(section, known.and_then(toml::Value::as_table), &format!("{path}."))?;
            }
            _ if is_section => {
                return Err(Mistake {
                    message: format!("a section is written [{path}], with its settings below"),
                    span: name.span(),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

struct Mistake {
    message: String,
    /// The faulty bytes of the file.
    span: Range<usize>,
}

impl Mistake {
    fn from_toml(setting: Option<String>, error: toml::de::Error) -> Self {
        let message = match setting {
            Some(setting) => format!("{setting}: {}", error.message()),
            None => error.message().to_owned(),
        };
        Self { message, span: error.span().unwrap_or_default() }
    }

    fn tell(self, path: &Path, text: &str) -> ConfigError {
        let before = &text[..self.span.start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[line_start..].find('\n').map_or(text.len(), |length| line_start + length);
        let line = before.matches('\n').count() + 1;
        let column = text[line_start..self.span.start].chars().count() + 1;

        // Nothing is shown of what follows the fault, nor of a line that may hold a secret.
        let shown_end = self.span.end.clamp(self.span.start, line_end);
        let shown = &text[line_start..shown_end];
        let excerpt = match is_public(&text[..line_start], shown, &text[shown_end..line_end]) {
            true => {
                let carets = "^".repeat((shown.chars().count() + 1).saturating_sub(column).max(1));
                let shown = shown.replace('\t', " ");
                let margin = " ".repeat(line.to_string().len());
                let indent = " ".repeat(column - 1);
                format!("\n{margin} |\n{line} | {shown}\n{margin} | {indent}{carets}")
            }
            false => String::new(),
        };
        ConfigError::File { path: path.to_owned(), line, column, message: self.message, excerpt }
    }
}

/// Whether the part of a line before `rest` is a section or a key, or the value of a setting that is known and no secret.
fn is_public(before: &str, line: &str, rest: &str) -> bool {
    let is_inside_text = (before.matches("\"\"\"").count() + before.matches("'''").count()) % 2 == 1;
    let written = line.split(['=', '"', '\'']).next().unwrap_or(line);
    let key = written.rsplit('.').next().unwrap_or(written).trim();
    let mut known = every_setting().filter(|known| known.key() == key).peekable();
    let has_public_key = known.peek().is_some() && !known.any(|known| is_secret(&known.name()));
    // A line without a key may be one of a secret whose quotes are missing.
    let is_section_or_key = written == line && (line.starts_with('[') || rest.trim_start().starts_with('='));
    !is_inside_text && !line.contains('@') && (is_section_or_key || has_public_key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    const SECRET: &str = "hunter-31415";

    /// A sound file with a secret in it.
    const SOUND: &str = "\
[http]
listen = \"127.0.0.1:8080\" # é
[broker]
url = \"mqtt://broker\"
username = \"tide\"
password = \"hunter-31415\"
client_key = \"\"\"
hunter-31415
\"\"\"
keep_alive = 30
[session]
heartbeat = 2.5
";

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn a_slip_in_a_file_is_told_without_its_secrets(
            at: Index, cut in 0..3usize, put in "[\\n\\t \"'=.#é\\[\\]{}a-c0-9\\\\]{0,3}"
        ) {
            let mut text: Vec<_> = SOUND.chars().collect();
            let at = at.index(text.len());
            text.splice(at..(at + cut).min(text.len()), put.chars());
            let text: String = text.into_iter().collect();
            if let Err(mistake) = judge(&text) {
                let told = mistake.tell(Path::new("tidegate.toml"), &text).to_string();
                let is_whole = text.contains(SECRET);
                prop_assert!(!(is_whole && told.contains(SECRET)), "{}\n{}", text, told);
            }
        }

        #[test]
        fn any_text_is_a_configuration_or_a_mistake_that_can_be_told(text in prop_oneof![any::<String>(), "[\\[\\]a-c=.\"'\\n\\r\\t# 0é]{0,40}"]) {
            if let Err(mistake) = judge(&text) {
                let line = text.lines().count().max(1);
                let ConfigError::File { line: told, .. } = mistake.tell(Path::new("x"), &text) else { panic!() };
                prop_assert!(told <= line + 1);
            }
        }
    }

    fn told(text: &str) -> String {
        let mistake = judge(text).err().unwrap_or_else(|| panic!("no mistake in {text:?}"));
        mistake.tell(Path::new("tidegate.toml"), text).to_string()
    }

    #[test]
    fn a_line_of_a_secret_without_its_quotes_is_not_shown() {
        let told = told("[broker]\npassword =\"\"\nhunter-31415\n");
        assert!(told.contains("line 3, column 13") && !told.contains(SECRET), "{told}");
    }

    #[test]
    fn a_mistake_in_the_longest_line_is_told_too() {
        let text = format!("{}x =", " ".repeat(100_000));
        assert!(told(&text).starts_with("tidegate.toml, line 1, column 100004: "));
    }

    #[test]
    fn a_mistake_is_shown_where_it_is() {
        assert_eq!(
            told("[http]\n\n[log]\nlevel = \"warn\"\nformat = \"xml\" # for now\n"),
            "\
tidegate.toml, line 5, column 10: log.format: unknown variant `xml`, expected `text` or `json`
  |
5 | format = \"xml\"
  |          ^^^^^"
        );
    }

    #[test]
    fn a_mistake_is_told_what_would_be_right() {
        for (text, place, message) in [
            (
                "[broker]\nhots = 1",
                "line 2, column 1",
                "unknown field `hots`, expected one of `url`, `upstream`, `connections`, `username`",
            ),
            ("[brokr]\nurl = 1", "line 1, column 2", "expected one of `http`, `admin`, `tls`, `connections`"),
            ("listen = 1", "line 1, column 1", "a section is written [listen]"),
            ("broker = [\"embedded\"]", "line 1, column 1", "a section is written [broker]"),
            ("[[broker]]", "line 1, column 3", "a section is written [broker]"),
            ("[http]\nlisten = \":80\"", "line 2, column 10", "such as \"127.0.0.1:8080\""),
            ("[http]\r\nlisten = 80\r\n", "line 2, column 10", "such as \"127.0.0.1:8080\""),
            ("[session]\nheartbeat = 0", "line 2, column 13", "from 0.001 to 31536000"),
            ("[broker]\nkeep_alive = 0.5", "line 2, column 14", "whole seconds, from 1 to 65535"),
            ("[broker]\nreceive_maximum = 65536", "line 2, column 19", "from 1 to 65535"),
            ("[wire]\nmax_frame = \"1 MiB\"", "line 2, column 13", "a whole number, at least 1"),
            ("[broker]\nurl = \"ws://b\"", "line 2, column 7", "use `mqtt://HOST[:PORT]`"),
            ("[broker\nurl = 1", "line 1, column 8", "expected `]`"),
        ] {
            let told = told(text);
            assert!(told.contains(place) && told.contains(message), "{text:?}: {told}");
        }
    }

    #[test]
    fn a_secret_is_not_shown_with_the_mistake() {
        for text in [
            "[broker]\npassword = 31415",
            "[broker]\npassword = hunter31415",
            "[broker]\npassword = \"31415",
            "[broker]\npassword \"31415\"",
            "[broker]\npasswort = \"31415\"",
            "[broker]\npasswort = \"31415",
            "[broker]\nclient_key = \"\"\"\n31415\\q\n\"\"\"",
            "[broker]\nurl = \"mqtt://ann:31415@mosquitto\"",
            "[http]\npassword = \"31415\"",
            "password = \"31415\"",
            "broker.password = 31415",
            "broker = { password = 31415 }",
        ] {
            let told = told(text);
            assert!(!told.contains("31415"), "{text:?}: {told}");
        }
    }
}
