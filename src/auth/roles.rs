//! The roles that the configuration gives, and what they are to be.

use std::collections::BTreeMap;

use super::Config;
use crate::access::{GroupConfig, Policy, RoleConfig};

impl Config {
    /// What each role allows. The error says what is wrong with the roles, or with who is given one that is not there.
    pub fn policy(
        &self,
        roles: &BTreeMap<String, RoleConfig>,
        groups: &BTreeMap<String, GroupConfig>,
    ) -> Result<Policy, String> {
        for (setting, given) in self.given_roles() {
            if let Some(unknown) = given.iter().find(|name| !roles.contains_key(*name)) {
                return Err(format!("{setting}: there is no [roles.{unknown}]"));
            }
        }
        Policy::new(roles.clone(), groups.clone(), self.narrow)
    }

    fn given_roles(&self) -> impl Iterator<Item = (String, &[String])> {
        let anonymous = [("auth.anonymous_roles".to_owned(), self.anonymous_roles.as_slice())];
        let certificates = self.certificate.iter();
        anonymous
            .into_iter()
            .chain(self.tokens.iter().map(|(name, token)| (format!("auth.tokens.{name}.roles"), &*token.roles)))
            .chain(self.users.iter().map(|(name, user)| (format!("auth.users.{name}.roles"), &*user.roles)))
            .chain(certificates.map(|all| ("auth.certificate.roles".to_owned(), &*all.roles)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::config::{Certificate, Token, User};

    #[test]
    fn whoever_is_given_a_role_that_is_not_there_is_told() {
        let roles = vec!["operator".to_owned()];
        let anonymous = Config { anonymous_roles: roles.clone(), ..Config::default() };
        let mut token = Config::default();
        token.tokens.insert("backend".to_owned(), Token { roles: roles.clone(), ..Token::default() });
        let mut user = Config::default();
        user.users.insert("anna".to_owned(), User { roles: roles.clone(), ..User::default() });
        let certificate =
            Config { certificate: Some(Certificate { roles, ..Certificate::default() }), ..Config::default() };
        let there = BTreeMap::from([("operator".to_owned(), RoleConfig::default())]);
        for (config, setting) in [
            (anonymous, "auth.anonymous_roles"),
            (token, "auth.tokens.backend.roles"),
            (user, "auth.users.anna.roles"),
            (certificate, "auth.certificate.roles"),
        ] {
            let error = config.policy(&BTreeMap::new(), &BTreeMap::new()).expect_err(setting);
            assert_eq!(error, format!("{setting}: there is no [roles.operator]"));
            assert!(config.policy(&there, &BTreeMap::new()).is_ok(), "{setting}");
        }
    }
}
