//! Who is shut out for a time, however good the credential is.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::identity::{Identity, MAX_NAME, is_name};

/// The most revocations that hold at a time: enough for every device of a large floor.
pub const MAX_REVOCATIONS: usize = 10_000;

/// Whom a revocation shuts out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// A user, whatever it shows.
    User(Box<str>),
    /// A token, by its `jti` or, of a static token, by its name.
    TokenId(Box<str>),
    /// A device, by its client identifier, whoever connects as it.
    Device(Box<str>),
}

impl Subject {
    /// Whether this identity is meant, or the device that it connects as; whoever has no identity may be a device.
    pub fn is(&self, identity: Option<&Identity>, client_id: &str) -> bool {
        let identity = |name: fn(&Identity) -> Option<&str>| identity.and_then(name);
        match self {
            Subject::User(user) => identity(|identity| identity.user.as_deref()) == Some(user),
            Subject::TokenId(id) => identity(|identity| identity.token_id.as_deref()) == Some(id),
            Subject::Device(device) => **device == *client_id,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::User(name) => write!(f, "the user {name}"),
            Subject::TokenId(name) => write!(f, "the token {name}"),
            Subject::Device(name) => write!(f, "the device {name}"),
        }
    }
}

/// Somebody is shut out until some time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Revocation {
    /// Whom it shuts out.
    #[serde(flatten)]
    pub subject: Subject,
    /// Unix seconds when it ends by itself.
    pub until: u64,
}

/// Why a revocation was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotTaken {
    /// No name like that can come.
    #[error("a name to revoke has 1 to {MAX_NAME} bytes, and no control characters")]
    Name,
    /// It would be over already.
    #[error("a revocation ends in the future: give `until` in Unix seconds")]
    Over,
    /// There are [`MAX_REVOCATIONS`] that hold.
    #[error("{MAX_REVOCATIONS} revocations hold already: lift one first")]
    Full,
}

/// Every revocation that holds. Each ends by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations(BTreeMap<Subject, u64>);

impl Revocations {
    /// Shuts somebody out. A revocation of the same subject is replaced.
    pub fn add(&mut self, Revocation { subject, until }: Revocation, now: u64) -> Result<(), NotTaken> {
        let (Subject::User(name) | Subject::TokenId(name) | Subject::Device(name)) = &subject;
        if !is_name(name) {
            return Err(NotTaken::Name);
        }
        if until <= now {
            return Err(NotTaken::Over);
        }
        self.prune(now);
        if self.0.len() >= MAX_REVOCATIONS && !self.0.contains_key(&subject) {
            return Err(NotTaken::Full);
        }
        self.0.insert(subject, until);
        Ok(())
    }

    /// Lets somebody in again; says whether there was such a revocation.
    pub fn remove(&mut self, subject: &Subject) -> bool {
        self.0.remove(subject).is_some()
    }

    /// Forgets what is over.
    pub fn prune(&mut self, now: u64) {
        self.0.retain(|_, until| now < *until);
    }

    /// The revocation that shuts out this identity, or the device it connects as.
    pub fn judge(&self, identity: &Identity, client_id: Option<&str>, now: u64) -> Option<Revocation> {
        let user = identity.user.clone().map(Subject::User);
        let token = identity.token_id.clone().map(Subject::TokenId);
        let device = client_id.map(|id| Subject::Device(id.into()));
        [user, token, device].into_iter().flatten().find_map(|subject| {
            let until = self.0.get(&subject).copied().filter(|until| now < *until)?;
            Some(Revocation { subject, until })
        })
    }

    /// All of them, those that are over and not yet forgotten too.
    pub fn iter(&self) -> impl Iterator<Item = Revocation> {
        self.0.iter().map(|(subject, until)| Revocation { subject: subject.clone(), until: *until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000;

    fn identity(user: Option<&str>, token_id: Option<&str>) -> Identity {
        Identity { user: user.map(Into::into), token_id: token_id.map(Into::into), ..Identity::anonymous(&[]) }
    }

    fn user(name: &str) -> Subject {
        Subject::User(name.into())
    }

    #[test]
    fn a_subject_is_whoever_the_revocation_shuts_out() {
        let identity = identity(Some("anna"), Some("t1"));
        let name = |name: &str| -> Box<str> { name.into() };
        for (subject, is_it) in [
            (user("anna"), true),
            (user("t1"), false),
            (Subject::TokenId(name("t1")), true),
            (Subject::TokenId(name("anna")), false),
            (Subject::Device(name("c1")), true),
            (Subject::Device(name("anna")), false),
        ] {
            assert_eq!(subject.is(Some(&identity), "c1"), is_it, "{subject}");
            let judged = revocations([subject.clone()]).judge(&identity, Some("c1"), NOW);
            assert_eq!(judged.is_some(), is_it, "{subject}");
            assert_eq!(subject.is(None, "c1"), subject == Subject::Device(name("c1")), "{subject}");
        }
    }

    fn revocations(all: impl IntoIterator<Item = Subject>) -> Revocations {
        let mut revocations = Revocations::default();
        for subject in all {
            revocations.add(Revocation { subject, until: NOW + 10 }, NOW).expect("taken");
        }
        revocations
    }

    #[test]
    fn users_tokens_and_devices_are_shut_out_each_by_its_own_name() {
        let out = revocations([user("anna"), Subject::TokenId("t-1".into()), Subject::Device("press-7".into())]);
        for (who, token, device, is_out) in [
            (Some("anna"), None, None, true),
            (Some("anna"), Some("t-2"), Some("press-8"), true),
            (Some("bert"), Some("t-1"), None, true),
            (Some("bert"), Some("t-2"), Some("press-7"), true),
            (None, None, Some("press-7"), true),
            (Some("bert"), Some("t-2"), Some("press-8"), false),
            (Some("Anna"), None, None, false),
            (Some("t-1"), Some("press-7"), Some("anna"), false),
            (None, None, None, false),
        ] {
            let found = out.judge(&identity(who, token), device, NOW);
            assert_eq!(found.is_some(), is_out, "{who:?} {token:?} {device:?}");
        }
    }

    #[test]
    fn a_revocation_ends_by_itself_and_is_forgotten() {
        let mut out = revocations([user("anna")]);
        let anna = identity(Some("anna"), None);
        let found = Revocation { subject: user("anna"), until: NOW + 10 };
        assert_eq!(out.judge(&anna, None, NOW + 9), Some(found));
        assert_eq!(out.judge(&anna, None, NOW + 10), None);
        out.prune(NOW + 9);
        assert_eq!(out.iter().count(), 1);
        out.prune(NOW + 10);
        assert_eq!(out.iter().count(), 0);
    }

    #[test]
    fn a_revocation_is_replaced_by_the_next_and_can_be_lifted() {
        let mut out = revocations([user("anna")]);
        out.add(Revocation { subject: user("anna"), until: NOW + 5 }, NOW).expect("taken");
        assert_eq!(out.judge(&identity(Some("anna"), None), None, NOW + 6), None);
        assert!(out.remove(&user("anna")) && !out.remove(&user("anna")));
        assert_eq!(out, Revocations::default());
    }

    #[test]
    fn what_could_never_shut_anybody_out_is_not_taken() {
        let mut out = Revocations::default();
        let long = "n".repeat(MAX_NAME);
        for (name, until, expected) in [
            ("anna", NOW + 1, Ok(())),
            ("anna", NOW, Err(NotTaken::Over)),
            (&long, NOW + 1, Ok(())),
            (&format!("{long}n"), NOW + 1, Err(NotTaken::Name)),
            ("", NOW + 1, Err(NotTaken::Name)),
            ("an\nna", NOW + 1, Err(NotTaken::Name)),
        ] {
            assert_eq!(out.add(Revocation { subject: user(name), until }, NOW), expected, "{name:?} until {until}");
        }
    }

    #[test]
    fn there_is_room_for_so_many_and_what_is_over_makes_room() {
        let mut out = revocations((0..MAX_REVOCATIONS).map(|number| user(&number.to_string())));
        let next = |until| Revocation { subject: user("one more"), until };
        assert_eq!(out.add(next(NOW + 20), NOW), Err(NotTaken::Full));
        assert_eq!(out.add(Revocation { subject: user("0"), until: NOW + 20 }, NOW), Ok(()), "in place of the same");
        assert_eq!(out.add(next(NOW + 20), NOW + 10), Ok(()));
        assert_eq!(out.iter().count(), 2);
    }

    #[test]
    fn a_revocation_is_written_by_the_kind_of_its_subject() {
        for (subject, text) in [
            (user("anna"), r#"{"user":"anna","until":7}"#),
            (Subject::TokenId("t-1".into()), r#"{"tokenId":"t-1","until":7}"#),
            (Subject::Device("press-7".into()), r#"{"device":"press-7","until":7}"#),
        ] {
            let revocation = Revocation { subject, until: 7 };
            assert_eq!(serde_json::to_string(&revocation).expect("JSON"), text);
            assert_eq!(serde_json::from_str::<Revocation>(text).expect("a revocation"), revocation);
        }
    }
}
