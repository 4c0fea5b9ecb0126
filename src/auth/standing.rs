//! Whether those who were let in may stay when the configuration has changed.

use super::{Judge, Sources};
use crate::access::identity::names;
use crate::access::{Identity, Source};

impl Judge {
    /// Whom somebody is now that `then` let in; nothing if this one would not. What a token or an endpoint has said holds until that ends.
    pub fn stands(&self, identity: &Identity, client_id: &str, then: &Judge) -> Option<Identity> {
        let (Judge(now), Judge(then)) = (self, then);
        now.is_not_revoked(identity, client_id).then(|| now.identity(identity, then)).flatten()
    }

    /// Whether it was taken away from somebody to be here.
    pub fn has_revoked(&self, identity: &Identity, client_id: &str) -> bool {
        !self.0.is_not_revoked(identity, client_id)
    }
}

impl Sources {
    fn is_not_revoked(&self, identity: &Identity, client_id: &str) -> bool {
        self.revoked.judge(identity, Some(client_id)).is_none()
    }

    fn identity(&self, identity: &Identity, then: &Sources) -> Option<Identity> {
        match identity.source {
            Source::Anonymous => self.anonymous.clone(),
            Source::Token => self.tokens.still(identity.token_id.as_deref()?, &then.tokens).cloned(),
            Source::Password => {
                self.passwords.as_ref()?.still(identity.user.as_deref()?, then.passwords.as_ref()?).cloned()
            }
            Source::Jwt => self.jwt.as_ref().map(|_| identity.clone()),
            Source::Hook => self.hook.as_ref().map(|_| identity.clone()),
            Source::Certificate => self.certificate.as_ref().map(|config| Identity {
                roles: names(&config.roles),
                groups: names(&config.groups),
                ..identity.clone()
            }),
        }
    }
}
