//! TLS client certificates: one of its names is the user.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::config::{self, UserName};
use crate::access::identity::{Claims, is_name, names};
use crate::access::{Failure, Identity, Source};

/// Whom a certificate stands for. The handshake has checked who signed it; it may have ended since.
pub fn judge(config: &config::Certificate, der: &[u8], now: u64) -> Result<Identity, Failure> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Err(Failure::Refused("the client certificate can't be read".to_owned()));
    };
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let validity = certificate.validity();
    let (from, until) = (seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp()));
    if now < from {
        return Err(Failure::NotYetValid);
    }
    // It is good for the whole of its last second.
    if until < now {
        return Err(Failure::Expired);
    }
    Ok(Identity {
        user: Some(user(config.user, &certificate)?.into()),
        source: Source::Certificate,
        roles: names(&config.roles),
        groups: names(&config.groups),
        claims: claims(certificate.subject()),
        token_id: None,
        expires: Some(until + 1),
    })
}

/// The one name of its kind. With several, an authority that vouches for one of them could be taken to vouch for another.
fn user<'c>(kind: UserName, certificate: &'c X509Certificate<'_>) -> Result<&'c str, Failure> {
    let refused = |why: &str| {
        Err(Failure::Refused(format!("the client certificate {why} (auth.certificate.user = \"{}\")", written(kind))))
    };
    let mut found = match kind {
        UserName::Cn => certificate.subject().iter_common_name().map(|name| name.as_str().ok()).collect::<Vec<_>>(),
        UserName::SanDns | UserName::SanEmail | UserName::SanUri => {
            let Ok(extension) = certificate.subject_alternative_name() else {
                return refused("has alternative names that can't be read");
            };
            let all = extension.iter().flat_map(|extension| &extension.value.general_names);
            all.filter_map(|name| alternative(kind, name)).map(Some).collect()
        }
    };
    match (found.pop(), found.pop()) {
        (None, _) => refused("has no such name"),
        (Some(_), Some(_)) => refused("has more than one such name"),
        (Some(Some(name)), None) if is_name(name) => Ok(name),
        (Some(_), None) => refused("has a name that is none"),
    }
}

fn alternative<'n>(kind: UserName, name: &GeneralName<'n>) -> Option<&'n str> {
    match (kind, name) {
        (UserName::SanDns, GeneralName::DNSName(name))
        | (UserName::SanEmail, GeneralName::RFC822Name(name))
        | (UserName::SanUri, GeneralName::URI(name)) => Some(name),
        (UserName::Cn | UserName::SanDns | UserName::SanEmail | UserName::SanUri, _) => None,
    }
}

fn written(kind: UserName) -> &'static str {
    match kind {
        UserName::Cn => "cn",
        UserName::SanDns => "san-dns",
        UserName::SanEmail => "san-email",
        UserName::SanUri => "san-uri",
    }
}

/// The organization and its units, for the placeholders of grants.
fn claims(subject: &X509Name<'_>) -> Claims {
    fn texts<'n>(names: impl Iterator<Item = &'n AttributeTypeAndValue<'n>>) -> serde_json::Value {
        names.filter_map(|name| name.as_str().ok()).filter(|name| is_name(name)).collect()
    }
    let all = [
        ("o".to_owned(), texts(subject.iter_organization())),
        ("ou".to_owned(), texts(subject.iter_organizational_unit())),
    ];
    Claims::of(all.iter().map(|(name, value)| (name, value)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType, date_time_ymd};

    use super::*;

    /// The 15th of January of 2030.
    const NOW: u64 = 1_894_665_600;
    const DAY: u64 = 86_400;

    fn params() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "press-7");
        params.distinguished_name.push(DnType::OrganizationName, "Works");
        params.distinguished_name.push(DnType::OrganizationalUnitName, "Hall 2");
        params.not_before = date_time_ymd(2030, 1, 1);
        params.not_after = date_time_ymd(2030, 2, 1);
        params
    }

    fn signed(params: &CertificateParams) -> Vec<u8> {
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("signed").der().to_vec()
    }

    fn user_of(user: UserName, params: &CertificateParams) -> Result<String, Failure> {
        let config = config::Certificate { user, ..config::Certificate::default() };
        let judged = judge(&config, &signed(params), NOW);
        judged.map(|identity| identity.user.expect("a certificate has a user").into())
    }

    proptest! {
        #[test]
        fn no_bytes_stop_the_judge(at: Index, byte: u8, noise: Vec<u8>) {
            let mut der = signed(&params());
            let at = at.index(der.len());
            der[at] = byte;
            for user in [UserName::Cn, UserName::SanDns, UserName::SanEmail, UserName::SanUri] {
                let config = config::Certificate { user, ..config::Certificate::default() };
                let _ = judge(&config, &der, NOW);
                prop_assert!(judge(&config, &noise, NOW).is_err());
            }
        }
    }

    #[test]
    fn the_common_name_is_the_user() {
        let config = config::Certificate {
            user: UserName::Cn,
            roles: vec!["device".to_owned()],
            groups: vec!["presses".to_owned()],
        };
        let identity = judge(&config, &signed(&params()), NOW).expect("let in");
        assert_eq!((identity.user.as_deref(), identity.source), (Some("press-7"), Source::Certificate));
        assert_eq!((&*identity.roles, &*identity.groups), (&*names(&["device"]), &*names(&["presses"])));
        assert_eq!((identity.claims.get("o"), identity.claims.get("ou")), (&*names(&["Works"]), &*names(&["Hall 2"])));
        // The last of January is over with the first second of the first of February.
        assert_eq!((identity.expires, identity.token_id), (Some(NOW + 17 * DAY + 1), None));
    }

    #[test]
    fn an_alternative_name_is_the_user_if_there_is_one_of_its_kind() {
        let uri = |text: &str| SanType::URI(text.try_into().expect("ASCII"));
        let mut params = params();
        params.subject_alt_names = vec![
            SanType::DnsName("press-7.works.example".try_into().expect("ASCII")),
            SanType::Rfc822Name("press-7@works.example".try_into().expect("ASCII")),
            uri("spiffe://works.example/press-7"),
        ];
        for (kind, expected) in [
            (UserName::SanDns, "press-7.works.example"),
            (UserName::SanEmail, "press-7@works.example"),
            (UserName::SanUri, "spiffe://works.example/press-7"),
            (UserName::Cn, "press-7"),
        ] {
            assert_eq!(user_of(kind, &params).as_deref(), Ok(expected), "{kind:?}");
        }
        params.subject_alt_names.push(uri("spiffe://works.example/press-8"));
        let refusal = user_of(UserName::SanUri, &params).expect_err("there are two").to_string();
        assert!(refusal.contains("more than one") && refusal.contains("\"san-uri\""), "{refusal}");
        params.subject_alt_names.clear();
        let refusal = user_of(UserName::SanDns, &params).expect_err("there is none").to_string();
        assert!(refusal.contains("no such name") && refusal.contains("auth.certificate.user"), "{refusal}");
    }

    #[test]
    fn a_common_name_that_is_no_name_is_refused() {
        for wrong in ["", "press-7\0.works.example", "press\n7", &"n".repeat(257)] {
            let mut params = params();
            params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(wrong.to_owned()));
            assert!(matches!(user_of(UserName::Cn, &params), Err(Failure::Refused(_))), "{wrong:?}");
        }
        let mut without = params();
        without.distinguished_name.remove(DnType::CommonName);
        assert!(matches!(user_of(UserName::Cn, &without), Err(Failure::Refused(_))));
    }

    #[test]
    fn a_certificate_is_good_from_its_first_to_its_last_second() {
        let der = signed(&params());
        let (first, last) = (NOW - 14 * DAY, NOW + 17 * DAY);
        for (now, expected) in
            [(first - 1, Err(Failure::NotYetValid)), (first, Ok(())), (last, Ok(())), (last + 1, Err(Failure::Expired))]
        {
            assert_eq!(judge(&config::Certificate::default(), &der, now).map(|_| ()), expected, "{now}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let whole = signed(&params());
        for der in [&[][..], b"no certificate", &whole[..whole.len() / 2]] {
            assert!(matches!(judge(&config::Certificate::default(), der, NOW), Err(Failure::Refused(_))));
        }
    }
}
