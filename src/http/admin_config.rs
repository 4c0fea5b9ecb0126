//! The `[admin]` section.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::auth::tokens::MIN_TOKEN;
use crate::units;

/// Who may do what operators do.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// The token that operators show to the admin API, from here or from `token_file`. Without one the API is for programs on this
    /// machine: it is off where the listener can be reached from others.
    #[serde(with = "units::secret")]
    pub token: Option<SecretString>,
    /// The file that `token` was read from.
    pub token_file: Option<PathBuf>,
}

impl AdminConfig {
    /// Judges the settings together; the error is a sentence that says what would be right.
    pub fn check(&self) -> Result<(), String> {
        let Some(token) = &self.token else { return Ok(()) };
        let token = token.expose_secret();
        if token.len() < MIN_TOKEN {
            return Err(format!(
                "admin.token has less than {MIN_TOKEN} bytes and can be guessed: make a longer one, as `openssl rand -hex 32` does"
            ));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "admin.token holds something else than ASCII letters, digits and signs: a header can't hold it"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_and_can_stand_in_a_header() {
        let judged = |token: &str| AdminConfig { token: Some(token.into()), ..AdminConfig::default() }.check();
        assert_eq!(AdminConfig::default().check(), Ok(()));
        assert_eq!(judged(&"x".repeat(MIN_TOKEN)), Ok(()));
        for bad in [
            &"x".repeat(MIN_TOKEN - 1),
            "sixteen letters, and a space",
            "ünterwegs-mit-umlaut",
            "sixteen-letters\u{7f}!",
        ] {
            assert!(judged(bad).is_err_and(|why| !why.contains(bad)), "{bad}");
        }
    }
}
