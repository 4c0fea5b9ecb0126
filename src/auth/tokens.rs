//! Static tokens: whoever shows one is the user that the configuration names for it.

use std::collections::BTreeMap;

use aws_lc_rs::{constant_time, digest};
use secrecy::{ExposeSecret, SecretString};

use super::config;
use crate::access::identity::{Claims, names};
use crate::access::{Failure, Identity, Source};

/// The shortest token that `tidegate hash token` takes, in bytes. One hash a guess is cheap, so what can be guessed is no token: sixteen
/// letters by chance are beyond guessing.
pub const MIN_TOKEN: usize = 16;

const PREFIX: &str = "sha256:";

/// The SHA-256 hash of a token. Enough for what nobody can guess; passwords need Argon2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash([u8; digest::SHA256_OUTPUT_LEN]);

impl Hash {
    /// The hash of this token.
    pub fn of(token: &SecretString) -> Hash {
        let hash = digest::digest(&digest::SHA256, token.expose_secret().as_bytes());
        Hash(hash.as_ref().try_into().expect("a hash of SHA-256 has its length"))
    }

    /// Reads a hash as the configuration has it. A refusal is what follows the setting's name.
    pub fn parse(text: &SecretString) -> Result<Hash, &'static str> {
        const FORM: &str =
            "is no hash of a token: `tidegate hash token` makes one, `sha256:` and 64 hexadecimal digits";
        let digits = text.expose_secret().strip_prefix(PREFIX).ok_or(FORM)?;
        if digits.len() != 2 * digest::SHA256_OUTPUT_LEN || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(FORM);
        }
        let mut hash = [0; digest::SHA256_OUTPUT_LEN];
        for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).expect("two hexadecimal digits are a byte");
        }
        Ok(Hash(hash))
    }

    /// The hash as the configuration has it.
    pub fn text(&self) -> String {
        let digits = self.0.iter().map(|byte| format!("{byte:02x}"));
        PREFIX.to_owned() + &digits.collect::<String>()
    }

    fn is(&self, other: &Hash) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

/// All of them.
pub struct Tokens(Vec<Token>);

struct Token {
    hash: Hash,
    identity: Identity,
}

impl Tokens {
    /// Those of a configuration that was checked.
    pub fn new(tokens: &BTreeMap<String, config::Token>) -> Tokens {
        let tokens = tokens.iter().filter_map(|(name, token)| {
            let hash = Hash::parse(token.hash.as_ref()?).ok()?;
            let identity = Identity {
                user: Some(token.user.as_ref().unwrap_or(name).as_str().into()),
                source: Source::Token,
                roles: names(&token.roles),
                groups: names(&token.groups),
                claims: Claims::of(&token.claims),
                token_id: Some(name.as_str().into()),
                expires: token.expires,
            };
            Some(Token { hash, identity })
        });
        Tokens(tokens.collect())
    }

    /// Whom the token of this name stands for, if it is the same token as among those.
    pub fn still(&self, name: &str, those: &Tokens) -> Option<&Identity> {
        let token = |all: &Tokens| all.0.iter().position(|token| token.identity.token_id.as_deref() == Some(name));
        let (now, then) = (&self.0[token(self)?], &those.0[token(those)?]);
        now.hash.is(&then.hash).then_some(&now.identity)
    }

    /// Whom the token stands for; nothing if it is none of these.
    pub fn find(&self, token: &SecretString, now: u64) -> Option<Result<Identity, Failure>> {
        let hash = Hash::of(token);
        let Token { identity, .. } = find(&self.0, |token| token.hash.is(&hash))?;
        Some(match identity.expires {
            Some(expires) if expires <= now => Err(Failure::Expired),
            _ => Ok(identity.clone()),
        })
    }
}

/// Compares with all, the one that is found and those behind it, so that the time tells nothing of where it stands; each comparison takes
/// the same time too. What is compared are hashes, so not even a time that told how far two agree would help to make up a token.
fn find<T>(all: &[T], mut is_it: impl FnMut(&T) -> bool) -> Option<&T> {
    all.iter().fold(None, |found, one| if is_it(one) { Some(one) } else { found })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECRET: &str = "a-token-made-by-chance";

    fn secret(text: &str) -> SecretString {
        text.into()
    }

    fn hashed(token: &str) -> Option<SecretString> {
        Some(Hash::of(&secret(token)).text().into())
    }

    fn backend() -> config::Token {
        config::Token {
            hash: hashed(SECRET),
            roles: vec!["operator".to_owned()],
            groups: vec!["hall-2".to_owned()],
            claims: [("site".to_owned(), json!("north"))].into(),
            ..config::Token::default()
        }
    }

    #[test]
    fn whoever_shows_a_token_is_its_user() {
        let other =
            config::Token { hash: hashed("another-token-of-somebody"), user: Some("anna".to_owned()), ..backend() };
        let tokens = Tokens::new(&[("backend".to_owned(), backend()), ("spare".to_owned(), other)].into());
        let found = tokens.find(&secret(SECRET), 0).expect("found").expect("good");
        assert_eq!((found.user.as_deref(), found.token_id.as_deref()), (Some("backend"), Some("backend")));
        assert_eq!(
            (found.source, &*found.roles, &*found.groups),
            (Source::Token, &*names(&["operator"]), &*names(&["hall-2"]))
        );
        assert_eq!((found.claims.get("site"), found.expires), (&*names(&["north"]), None));
        let found = tokens.find(&secret("another-token-of-somebody"), 0).expect("found").expect("good");
        assert_eq!((found.user.as_deref(), found.token_id.as_deref()), (Some("anna"), Some("spare")));
        let hash = Hash::of(&secret(SECRET)).text();
        for wrong in ["", "a-token-made-by-chancf", "a-token-made-by-chanc", "a-token-made-by-chance ", &hash] {
            assert!(tokens.find(&secret(wrong), 0).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn a_token_ends_when_it_expires() {
        let token = config::Token { expires: Some(100), ..backend() };
        let tokens = Tokens::new(&[("backend".to_owned(), token)].into());
        let at = |now| tokens.find(&secret(SECRET), now).expect("found").map(|identity| identity.expires);
        assert_eq!((at(99), at(100)), (Ok(Some(100)), Err(Failure::Expired)));
    }

    #[test]
    fn a_token_is_compared_with_all_wherever_it_is_found() {
        for sought in 0..4 {
            let mut compared = 0;
            let found = find(&[0, 1, 2], |one| {
                compared += 1;
                *one == sought
            });
            assert_eq!((found.copied(), compared), ((sought < 3).then_some(sought), 3), "{sought}");
        }
    }

    #[test]
    fn a_hash_is_read_as_it_was_written_and_in_no_other_form() {
        // `printf abc | sha256sum`
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Hash::of(&secret("abc")).text(), abc);
        assert!(Hash::parse(&secret(abc)).expect("a hash") == Hash::of(&secret("abc")));
        assert!(Hash::parse(&secret(&abc.to_uppercase().replace("SHA", "sha"))).is_ok());
        for wrong in [
            "",
            "sha256:",
            &abc[..70],
            &format!("{abc}0"),
            &abc.replace("ba", "bx"),
            &abc.replace("ba", "+a"),
            &abc.replace("sha256", "sha512"),
            &abc[7..],
            &abc.replace("ba", "é"),
            SECRET,
        ] {
            let refusal = Hash::parse(&secret(wrong)).err().unwrap_or_else(|| panic!("{wrong:?} is none"));
            assert!(refusal.contains("tidegate hash token") && !refusal.contains(SECRET), "{refusal}");
        }
    }
}
