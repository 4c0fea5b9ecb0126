//! Tokens that are good, and every way in which one is not.

use std::io::Write;

use proptest::prelude::*;
use proptest::sample::Index;
use rcgen::CertificateParams;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::*;
use crate::access::Source;
use crate::access::identity::names;
use crate::auth::support::{Issuer, base64url, claims, token};

const NOW: u64 = 1_800_000_000;

/// A judge of the tokens of this issuer, by its secret or by its public key in a file.
fn jwt_with(issuer: &Issuer, more: impl FnOnce(&mut config::Jwt)) -> Jwt {
    let mut config = config::Jwt { algorithms: vec![issuer.algorithm], ..config::Jwt::default() };
    let mut file = NamedTempFile::new().expect("a file");
    match issuer.algorithm.min_secret() {
        Some(_) => config.secret = Some(issuer.secret().into()),
        None => {
            file.write_all(issuer.pem().as_bytes()).expect("written");
            config.public_key_file = Some(file.path().to_owned());
        }
    }
    more(&mut config);
    Jwt::new(&config, None).expect("a judge")
}

fn jwt(issuer: &Issuer) -> Jwt {
    jwt_with(issuer, |_| {})
}

/// Claims that are good for an hour from [`NOW`], and these.
fn at_now(more: Value) -> Value {
    let mut all = claims(more.clone());
    if more.get("exp").is_none() {
        all["exp"] = json!(NOW + 3600);
    }
    all
}

async fn refusal(jwt: &Jwt, token: &str) -> String {
    match jwt.check(token, NOW).await {
        Err(Failure::Refused(why)) => {
            assert!(!why.contains(token), "the token is never repeated");
            why
        }
        judged => panic!("not refused: {judged:?}"),
    }
}

proptest! {
    /// Only what was signed is let in, whatever is made of it.
    #[test]
    fn no_text_stops_the_judge_and_none_but_the_token_is_taken(
        at: Index, cut in 0..3usize, put in "[A-Za-z0-9_.=é-]{0,3}", other in prop_oneof![any::<String>(), "[A-Za-z0-9_-]{0,20}(\\.[A-Za-z0-9_-]{0,20}){0,4}"]
    ) {
        let issuer = Issuer::new(Algorithm::Hs256, None);
        let (judge, good) = (jwt(&issuer), issuer.token(&at_now(json!({}))));
        let at = at.index(good.len());
        let mut changed = good.clone();
        changed.replace_range(at..(at + cut).min(good.len()), &put);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for text in [&changed, &other] {
            Token::is_meant(text);
            prop_assert_eq!(runtime.block_on(judge.check(text, NOW)).is_ok(), *text == good, "{}", text);
        }
    }
}

#[tokio::test]
async fn a_token_of_every_algorithm_is_taken_by_its_key_alone() {
    for algorithm in Algorithm::ALL {
        let issuer = Issuer::new(algorithm, None);
        let judge = jwt(&issuer);
        let good = issuer.token(&at_now(json!({"roles": ["viewer"]})));
        let identity = judge.check(&good, NOW).await.unwrap_or_else(|why| panic!("{}: {why}", algorithm.name()));
        assert_eq!((identity.user.as_deref(), identity.source), (Some("anna"), Source::Jwt), "{}", algorithm.name());

        // Any letter of what is signed, or of the signature.
        let (signed, signature) = good.rsplit_once('.').expect("three parts");
        let other_claims = token(&issuer.header(), &at_now(json!({"roles": ["admin"]})), "");
        let forged = format!("{other_claims}{signature}");
        assert!(refusal(&judge, &forged).await.contains("signature"), "{}", algorithm.name());
        let cut = format!("{signed}.{}", &signature[..signature.len() / 4 * 4 - 4]);
        assert!(refusal(&judge, &cut).await.contains("signature"), "{}", algorithm.name());
        assert!(refusal(&judge, &format!("{signed}.")).await.contains("signature"), "{}", algorithm.name());

        if algorithm.min_secret().is_none() {
            let other = Issuer::new(algorithm, None).token(&at_now(json!({})));
            assert!(refusal(&judge, &other).await.contains("key"), "{}", algorithm.name());
        }
    }
}

/// RFC 7515, appendix A, and RFC 8037, appendix A.
#[test]
fn the_examples_of_the_rfcs_are_signed_by_their_keys() {
    let claims = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let secret = base64_simd::URL_SAFE_NO_PAD
        .decode_to_vec("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
        .expect("a key");
    let jwk = |jwk: Value| Key::of_jwk(&jwk, &Algorithm::ALL).expect("a key");
    for (name, token, key) in [
        (
            "RFC 7515, A.1",
            format!("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{claims}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            Key::secret(secret.into(), &[Algorithm::Hs256]),
        ),
        (
            "RFC 7515, A.2",
            format!(
                "eyJhbGciOiJSUzI1NiJ9.{claims}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5\
                 jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOL\
                 n6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlU\
                 PQGe77Rw"
            ),
            jwk(json!({
                "kty": "RSA", "e": "AQAB",
                "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMs\
                      D1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQ\
                      Y4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
            })),
        ),
        (
            "RFC 7515, A.3",
            format!(
                "eyJhbGciOiJFUzI1NiJ9.{claims}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
            ),
            jwk(json!({
                "kty": "EC", "crv": "P-256",
                "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
            })),
        ),
        (
            "RFC 8037, A.4",
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsP\
             t9g7sVvpAr_MuM0KAg"
                .to_owned(),
            jwk(json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})),
        ),
    ] {
        assert!(Token::is_meant(&token), "{name}");
        let token = Token::parse(&token).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!(key::verify(&[key], &token), Verdict::Signed, "{name}");
    }
}

#[tokio::test]
async fn a_token_that_is_not_signed_is_refused_however_it_says_so() {
    let issuer = Issuer::new(Algorithm::Rs256, None);
    let judge = jwt(&issuer);
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        for signature in ["", "signature"] {
            let unsigned = token(&json!({"alg": alg}), &at_now(json!({})), signature);
            assert!(Token::is_meant(&unsigned), "{unsigned}");
            assert!(refusal(&judge, &unsigned).await.contains("auth.jwt.algorithms"), "{alg:?}");
        }
    }
}

#[test]
fn a_secret_that_is_shorter_than_its_hash_is_told() {
    for (algorithm, least) in [(Algorithm::Hs256, 32), (Algorithm::Hs384, 48), (Algorithm::Hs512, 64)] {
        assert_eq!(too_short(&vec![b's'; least - 1], &[algorithm]), Some(least));
        assert_eq!(too_short(&vec![b's'; least], &[algorithm]), None);
    }
    assert_eq!(too_short(&[b's'; 40], &[Algorithm::Hs256, Algorithm::Hs384]), Some(48), "the longest counts");
}

#[tokio::test]
async fn a_public_key_is_no_secret() {
    let issuer = Issuer::new(Algorithm::Rs256, None);
    let judge = jwt(&issuer);
    let der = {
        let mut pems = pem_sections(&issuer.pem());
        pems.pop().expect("one section")
    };
    // Whoever knows the public key, in any form of it, signs with it as if it were a secret.
    for secret in [issuer.pem().into_bytes(), issuer.pem().trim_end().as_bytes().to_vec(), der, Vec::new()] {
        for algorithm in
            [jsonwebtoken::Algorithm::HS256, jsonwebtoken::Algorithm::HS384, jsonwebtoken::Algorithm::HS512]
        {
            let key = jsonwebtoken::EncodingKey::from_secret(&secret);
            let forged = jsonwebtoken::encode(&jsonwebtoken::Header::new(algorithm), &at_now(json!({})), &key);
            let forged = forged.expect("a token");
            assert!(refusal(&judge, &forged).await.contains("auth.jwt.algorithms"));
            // Nor would the key itself take it, whatever the configuration said.
            let keys = Key::of_pem(issuer.pem().as_bytes(), &[Algorithm::Rs256]).expect("a key");
            assert_eq!(key::verify(&keys, &Token::parse(&forged).expect("well-formed")), Verdict::UnknownKey);
        }
    }
    let secret = Key::secret(b"secret".to_vec().into(), &Algorithm::ALL);
    let signed = issuer.token(&at_now(json!({})));
    assert_eq!(key::verify(&[secret], &Token::parse(&signed).expect("well-formed")), Verdict::UnknownKey);
}

fn pem_sections(pem: &str) -> Vec<Vec<u8>> {
    use rustls::pki_types::pem::{PemObject, SectionKind};
    let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes());
    sections.map(|section| section.expect("PEM").1).collect()
}

#[tokio::test]
async fn a_key_is_for_the_algorithms_of_the_configuration_alone() {
    // The key could do it, and has signed it; nobody wanted that algorithm.
    for (wanted, used) in [
        (Algorithm::Rs256, Algorithm::Rs384),
        (Algorithm::Rs256, Algorithm::Ps256),
        (Algorithm::Ps512, Algorithm::Rs512),
    ] {
        let issuer = Issuer::new(wanted, None);
        let judge = jwt(&issuer);
        let issuer = issuer.with(used);
        refusal(&judge, &issuer.token(&at_now(json!({})))).await;
    }
    let secret = Issuer::new(Algorithm::Hs512, None);
    let judge = jwt_with(&secret, |config| config.algorithms = vec![Algorithm::Hs256, Algorithm::Hs512]);
    assert!(judge.check(&secret.token(&at_now(json!({}))), NOW).await.is_ok());
    let secret = secret.with(Algorithm::Hs384);
    refusal(&judge, &secret.token(&at_now(json!({})))).await;
}

#[tokio::test]
async fn what_a_header_says_of_keys_changes_nothing() {
    let issuer = Issuer::new(Algorithm::Es256, None);
    let judge = jwt(&issuer);
    let stranger = Issuer::new(Algorithm::Es256, None);
    let nowhere = "http://127.0.0.1:1/keys";
    for more in [
        json!({"kid": "../../../../dev/null"}),
        json!({"kid": "x' UNION SELECT 'secret"}),
        json!({"kid": ""}),
        json!({"kid": "k".repeat(4000)}),
        json!({"jku": nowhere}),
        json!({"x5u": nowhere}),
        json!({"jwk": stranger.jwk()}),
        json!({"x5c": ["MIIB"]}),
        json!({"typ": "at+jwt"}),
        json!({"unknown": {"a": [1]}}),
    ] {
        let header = |issuer: &Issuer| {
            let mut header = issuer.header();
            header.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            header
        };
        let good = issuer.sign(&header(&issuer), &at_now(json!({})));
        assert!(judge.check(&good, NOW).await.is_ok(), "{more}");
        let forged = stranger.sign(&header(&stranger), &at_now(json!({})));
        assert!(refusal(&judge, &forged).await.contains("key"), "{more}");
    }
}

#[tokio::test]
async fn a_token_that_must_be_understood_in_another_way_is_refused() {
    let issuer = Issuer::new(Algorithm::Hs256, None);
    let judge = jwt(&issuer);
    for header in [
        json!({"alg": "HS256", "crit": ["b64"], "b64": false}),
        json!({"alg": "HS256", "crit": ["exp"], "exp": 1}),
        json!({"alg": "HS256", "crit": []}),
        json!({"alg": "HS256", "b64": false}),
    ] {
        let signed = issuer.sign(&header, &at_now(json!({})));
        assert!(refusal(&judge, &signed).await.contains("extension"), "{header}");
    }
    for header in [json!({}), json!({"alg": null}), json!({"alg": ["HS256"]}), json!({"alg": "HS256", "kid": 7})] {
        let signed = issuer.sign(&header, &at_now(json!({})));
        assert!(refusal(&judge, &signed).await.contains("malformed"), "{header}");
    }
}

#[tokio::test]
async fn a_header_that_says_a_thing_twice_is_refused() {
    let issuer = Issuer::new(Algorithm::Hs256, None);
    let twice = base64url(r#"{"alg":"HS256","alg":"none"}"#);
    assert!(refusal(&jwt(&issuer), &format!("{twice}.{}.", base64url("{}"))).await.contains("malformed"));
}

#[tokio::test]
async fn what_is_signed_and_no_object_is_refused() {
    let issuer = Issuer::new(Algorithm::Hs256, None);
    let judge = jwt(&issuer);
    // The last is a token in a token (RFC 7519, section 5.2).
    let nested = Value::String(issuer.token(&at_now(json!({}))));
    for claims in [json!([]), json!("anna"), json!(7), json!(null), nested] {
        assert!(refusal(&judge, &issuer.token(&claims)).await.contains("malformed"), "{claims}");
    }
    let deep = format!(r#"{{"sub":"anna","x":{}1{}}}"#, "[".repeat(2000), "]".repeat(2000));
    let signed = format!("{}.{}", base64url(issuer.header().to_string()), base64url(deep));
    let key = jsonwebtoken::EncodingKey::from_secret(issuer.secret().as_bytes());
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
    assert!(refusal(&judge, &format!("{signed}.{}", signature.expect("signed"))).await.contains("malformed"));
}

#[test]
fn a_text_is_meant_as_a_token_if_it_has_three_parts_and_begins_with_an_object() {
    let header = base64url(r#"{"alg":"none"}"#);
    for (text, is_meant) in [
        (format!("{header}.e30.c2ln"), true),
        (format!("{header}.e30."), true),
        (format!("{header}.."), true),
        (format!("{}.e30.c2ln", base64url("{not json")), true),
        (format!("{header}.e30"), false),
        (format!("{header}.e30.c2ln.more"), false),
        (format!("{header}.a.b.c.d"), false),
        (format!("{header}.e30.c2ln="), false),
        (format!("{header}.e30.c2+n"), false),
        (format!(" {header}.e30.c2ln"), false),
        ("v4.public.c2ln".to_owned(), false),
        ("a.b.c".to_owned(), false),
        ("..".to_owned(), false),
        ("a-token-made-by-chance".to_owned(), false),
        (String::new(), false),
    ] {
        assert_eq!(Token::is_meant(&text), is_meant, "{text}");
    }
}

#[tokio::test]
async fn a_token_is_good_from_its_beginning_to_its_end_and_a_leeway() {
    let issuer = Issuer::new(Algorithm::Hs256, None);
    let judge = jwt(&issuer);
    let exact = jwt_with(&issuer, |config| config.leeway = std::time::Duration::ZERO);
    let failing = |failure| Err::<(), _>(failure);
    for (claims, by_default, without_leeway) in [
        (json!({"exp": NOW + 1}), Ok(()), Ok(())),
        (json!({"exp": NOW}), Ok(()), failing(Failure::Expired)),
        (json!({"exp": NOW - 4}), Ok(()), failing(Failure::Expired)),
        (json!({"exp": NOW - 5}), failing(Failure::Expired), failing(Failure::Expired)),
        (json!({"exp": NOW as f64 + 0.5}), Ok(()), Ok(())),
        (json!({"exp": -1}), failing(Failure::Expired), failing(Failure::Expired)),
        (json!({"exp": 0}), failing(Failure::Expired), failing(Failure::Expired)),
        (json!({"exp": u64::MAX}), Ok(()), Ok(())),
        (json!({"exp": 1e300}), Ok(()), Ok(())),
        (json!({"nbf": NOW}), Ok(()), Ok(())),
        (json!({"nbf": NOW + 5}), Ok(()), failing(Failure::NotYetValid)),
        (json!({"nbf": NOW + 6}), failing(Failure::NotYetValid), failing(Failure::NotYetValid)),
        (json!({"iat": NOW}), Ok(()), Ok(())),
        (json!({"iat": NOW + 5}), Ok(()), failing(Failure::NotYetValid)),
        (json!({"iat": NOW + 6}), failing(Failure::NotYetValid), failing(Failure::NotYetValid)),
        (json!({"nbf": -1, "iat": 1.5}), Ok(()), Ok(())),
    ] {
        let token = issuer.token(&at_now(claims.clone()));
        assert_eq!(judge.check(&token, NOW).await.map(|_| ()), by_default, "{claims}");
        assert_eq!(exact.check(&token, NOW).await.map(|_| ()), without_leeway, "{claims} without a leeway");
    }
    for claims in [json!({"exp": "1900000000"}), json!({"nbf": [1]}), json!({"iat": true})] {
        assert!(refusal(&judge, &issuer.token(&at_now(claims.clone()))).await.contains("no number"), "{claims}");
    }
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    let issuer = Issuer::new(Algorithm::Hs256, None);
    let judge = jwt(&issuer);
    for (exp, expires) in [
        (json!(NOW + 60), NOW + 60),
        (json!(NOW as f64 + 60.9), NOW + 60),
        (json!(NOW - 3), NOW - 3),
        (json!(1e300), u64::MAX),
    ] {
        let identity = judge.check(&issuer.token(&at_now(json!({"exp": exp}))), NOW).await.expect("let in");
        assert_eq!(identity.expires, Some(expires), "{exp}");
    }
}

#[tokio::test]
async fn a_token_that_never_ends_or_ends_too_late_is_refused_where_that_is_wanted() {
    let issuer = Issuer::new(Algorithm::Hs256, None);
    let endless = issuer.token(&json!({"sub": "anna"}));
    assert!(refusal(&jwt(&issuer), &endless).await.contains("auth.jwt.require_expiry"));
    let lenient = jwt_with(&issuer, |config| config.require_expiry = false);
    assert_eq!(lenient.check(&endless, NOW).await.expect("let in").expires, None);
    let bounded = jwt_with(&issuer, |config| {
        config.require_expiry = false;
        config.max_lifetime = Some(std::time::Duration::from_secs(60));
    });
    assert!(refusal(&bounded, &endless).await.contains("auth.jwt.max_lifetime"));
    let until = |exp| issuer.token(&json!({"sub": "anna", "exp": exp}));
    assert!(bounded.check(&until(NOW + 65), NOW).await.is_ok(), "60 seconds, and the leeway");
    assert!(refusal(&bounded, &until(NOW + 66)).await.contains("auth.jwt.max_lifetime"));
}

#[tokio::test]
async fn a_token_for_others_or_of_others_is_refused() {
    let issuer = Issuer::new(Algorithm::Hs256, None);
    let anyone = jwt(&issuer);
    let strict = jwt_with(&issuer, |config| {
        config.audience = vec!["tidegate".to_owned(), "floor".to_owned()];
        config.issuer = vec!["https://id.example".to_owned()];
    });
    let (aud, iss) = (Some("auth.jwt.audience"), Some("auth.jwt.issuer"));
    let id = "https://id.example";
    for (claims, by_anyone, by_strict) in [
        (json!({"aud": "tidegate", "iss": id}), aud, None),
        (json!({"aud": ["other", "floor"], "iss": id}), aud, None),
        (json!({"aud": "other", "iss": id}), aud, aud),
        (json!({"aud": ["other"], "iss": id}), aud, aud),
        (json!({"aud": [], "iss": id}), aud, aud),
        (json!({"aud": "Tidegate", "iss": id}), aud, aud),
        (json!({"aud": "", "iss": id}), aud, aud),
        (json!({"aud": 7, "iss": id}), aud, aud),
        (json!({"aud": ["tidegate", 7], "iss": id}), aud, aud),
        (json!({"aud": {"tidegate": true}, "iss": id}), aud, aud),
        (json!({"iss": id}), None, aud),
        (json!({"aud": null, "iss": id}), None, aud),
        (json!({"aud": "tidegate"}), aud, iss),
        (json!({"aud": "tidegate", "iss": "https://id.example/"}), aud, iss),
        (json!({"aud": "tidegate", "iss": ["https://id.example"]}), aud, iss),
        (json!({"iss": "https://elsewhere.example"}), None, aud),
    ] {
        let token = issuer.token(&at_now(claims.clone()));
        for (judge, expected, name) in [(&anyone, by_anyone, "anyone"), (&strict, by_strict, "strict")] {
            match expected {
                None => assert!(judge.check(&token, NOW).await.is_ok(), "{claims} by {name}"),
                Some(setting) => {
                    let why = refusal(judge, &token).await;
                    assert!(why.contains(setting), "{claims} by {name}: {why}");
                }
            }
        }
    }
}

#[tokio::test]
async fn who_bears_a_token_is_read_from_the_claims_that_the_configuration_names() {
    let issuer = Issuer::new(Algorithm::Hs256, None);
    let all = json!({
        "sub": "4711", "preferred_username": "anna", "realm_access": {"roles": ["operator", "viewer"], "x": 1},
        "https://works.example/groups": "hall-2", "site": "north", "iat": NOW, "nbf": NOW, "jti": "t-1", "iss": "id",
    });
    let judge = jwt_with(&issuer, |config| {
        config.user_claim = "preferred_username".to_owned();
        config.role_claim = "realm_access.roles".to_owned();
        config.group_claim = "https://works.example/groups".to_owned();
    });
    let identity = judge.check(&issuer.token(&at_now(all.clone())), NOW).await.expect("let in");
    assert_eq!((identity.user.as_deref(), identity.token_id.as_deref()), (Some("anna"), Some("t-1")));
    assert_eq!((&*identity.roles, &*identity.groups), (&*names(&["operator", "viewer"]), &*names(&["hall-2"])));
    let mut known: Vec<_> = identity.claims.iter().map(|(name, _)| name.to_owned()).collect();
    known.sort();
    assert_eq!(known, ["https://works.example/groups", "iss", "jti", "preferred_username", "site", "sub"]);

    let identity = jwt(&issuer).check(&issuer.token(&at_now(all)), NOW).await.expect("let in");
    assert_eq!((identity.user.as_deref(), identity.roles.len(), identity.groups.len()), (Some("4711"), 0, 0));
}

#[tokio::test]
async fn a_claim_by_its_whole_name_goes_before_one_by_its_path() {
    let issuer = Issuer::new(Algorithm::Hs256, None);
    let judge = jwt_with(&issuer, |config| config.role_claim = "a.b".to_owned());
    for (claims, role) in [
        (json!({"a.b": "whole", "a": {"b": "path"}}), Some("whole")),
        (json!({"a": {"b": "path"}}), Some("path")),
        (json!({"a": {"b.c": "no"}}), None),
        (json!({"a": "b"}), None),
        (json!({"b": "no"}), None),
    ] {
        let identity = judge.check(&issuer.token(&at_now(claims.clone())), NOW).await.expect("let in");
        assert_eq!(identity.roles.first().map(AsRef::as_ref), role, "{claims}");
    }
}

#[tokio::test]
async fn claims_that_name_nobody_or_nothing_are_refused() {
    let issuer = Issuer::new(Algorithm::Hs256, None);
    let judge = jwt(&issuer);
    let longest = "n".repeat(256);
    assert!(judge.check(&issuer.token(&at_now(json!({"sub": longest, "jti": longest}))), NOW).await.is_ok());
    let long = "n".repeat(257);
    for (claims, excerpt) in [
        (json!({"sub": ""}), "auth.jwt.user_claim"),
        (json!({"sub": long}), "auth.jwt.user_claim"),
        (json!({"sub": "an\nna"}), "auth.jwt.user_claim"),
        (json!({"sub": "an\0na"}), "auth.jwt.user_claim"),
        (json!({"sub": 7}), "auth.jwt.user_claim"),
        (json!({"sub": null}), "auth.jwt.user_claim"),
        (json!({"sub": ["anna"]}), "auth.jwt.user_claim"),
        (json!({"jti": ""}), "`jti`"),
        (json!({"jti": long}), "`jti`"),
        (json!({"jti": 7}), "`jti`"),
        (json!({"roles": 7}), "auth.jwt.role_claim"),
        (json!({"roles": ["viewer", 7]}), "auth.jwt.role_claim"),
        (json!({"roles": [["viewer"]]}), "auth.jwt.role_claim"),
        (json!({"roles": [""]}), "auth.jwt.role_claim"),
        (json!({"groups": {"hall-2": true}}), "auth.jwt.group_claim"),
    ] {
        let why = refusal(&judge, &issuer.token(&at_now(claims.clone()))).await;
        assert!(why.contains(excerpt), "{claims}: {why}");
    }
}

#[tokio::test]
async fn a_file_may_hold_several_keys_and_certificates() {
    let (rsa, ec) = (Issuer::new(Algorithm::Ps256, None), Issuer::new(Algorithm::Es384, None));
    let certified = Issuer::new(Algorithm::Es384, None);
    let pair = rcgen::KeyPair::from_pem(&certified.private_pem()).expect("a key");
    let certificate = CertificateParams::default().self_signed(&pair).expect("signed").pem();
    let pem = format!("{}{}{certificate}", rsa.pem(), ec.pem());
    let keys = Key::of_pem(pem.as_bytes(), &[Algorithm::Ps256, Algorithm::Es384]).expect("keys");
    for (issuer, expected) in [
        (rsa, Verdict::Signed),
        (ec, Verdict::Signed),
        (certified, Verdict::Signed),
        (Issuer::new(Algorithm::Es384, None), Verdict::UnknownKey),
    ] {
        let text = issuer.token(&at_now(json!({})));
        assert_eq!(key::verify(&keys, &Token::parse(&text).expect("well-formed")), expected);
    }
}

#[test]
fn a_file_that_holds_no_key_for_the_algorithms_is_refused() {
    let (rsa, ec) = (Issuer::new(Algorithm::Rs256, None), Issuer::new(Algorithm::Es256, None));
    let small = {
        use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
        // 1024 bits, made of nothing: nobody has signed with it, and nobody is to.
        let mut n = vec![0xd5; 128];
        n[127] = 0xd7;
        let key = aws_lc_rs::signature::RsaPublicKeyComponents { n, e: vec![1, 0, 1] };
        let der: PublicKeyX509Der<'_> = key.as_der().expect("DER");
        let text = base64_simd::STANDARD.encode_to_string(der.as_ref());
        format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    };
    let both = format!("{}{}", rsa.pem(), ec.pem());
    for (pem, algorithms, excerpt) in [
        (rsa.pem(), &[Algorithm::Es256][..], "for none of auth.jwt.algorithms"),
        (ec.pem(), &[Algorithm::Es384], "for none of auth.jwt.algorithms"),
        (ec.pem(), &[Algorithm::Es256, Algorithm::EdDsa], "holds no key for EdDSA"),
        (both, &[Algorithm::Es256], "for none of auth.jwt.algorithms"),
        (rsa.private_pem(), &[Algorithm::Rs256], "a private key"),
        (small, &[Algorithm::Rs256], "an RSA key of 1024 bits"),
        (String::new(), &[Algorithm::Rs256], "holds no public key"),
        ("a key".to_owned(), &[Algorithm::Rs256], "holds no public key"),
        (rsa.pem().replace("MII", "!!!"), &[Algorithm::Rs256], "holds no usable PEM"),
        (
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".to_owned(),
            &[Algorithm::Rs256],
            "can't be read",
        ),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
            &[Algorithm::Rs256],
            "can't be read",
        ),
    ] {
        let refusal = Key::of_pem(pem.as_bytes(), algorithms).err().unwrap_or_else(|| panic!("{excerpt}"));
        assert!(refusal.contains(excerpt), "{refusal}");
    }
}

#[test]
fn keys_of_a_set_that_do_not_sign_or_are_not_public_are_left_out() {
    let (rsa, ec, ed) =
        (Issuer::new(Algorithm::Rs256, "r"), Issuer::new(Algorithm::Es256, "e"), Issuer::new(Algorithm::EdDsa, "d"));
    let with = |issuer: &Issuer, more: Value| {
        let mut jwk = issuer.jwk();
        jwk.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        jwk
    };
    let coordinate = |bytes: usize| base64url(vec![1; bytes]);
    for (jwk, is_taken) in [
        (with(&rsa, json!({})), true),
        (with(&rsa, json!({"use": "sig", "alg": "RS256", "key_ops": ["verify"], "x5t": "x", "more": 1})), true),
        (with(&rsa, json!({"alg": "PS512"})), true),
        (with(&rsa, json!({"use": "enc"})), false),
        (with(&rsa, json!({"key_ops": ["encrypt"]})), false),
        (with(&rsa, json!({"alg": "RSA-OAEP"})), false),
        (with(&rsa, json!({"alg": "HS256"})), false),
        (with(&rsa, json!({"alg": "ES256"})), false),
        (with(&rsa, json!({"alg": "none"})), false),
        (with(&rsa, json!({"n": base64url([0xff; 128])})), false),
        (with(&rsa, json!({"n": base64url(vec![0xff; 1025])})), false),
        (with(&rsa, json!({"n": "!"})), false),
        (with(&rsa, json!({"kid": 7})), false),
        (with(&ec, json!({})), true),
        (with(&ec, json!({"crv": "secp256k1"})), false),
        (with(&ec, json!({"crv": "P-384"})), false),
        (with(&ec, json!({"y": coordinate(32)})), false),
        (with(&ec, json!({"y": coordinate(31)})), false),
        (with(&ed, json!({})), true),
        (with(&ed, json!({"crv": "X25519"})), false),
        (with(&ed, json!({"x": coordinate(31)})), false),
        (json!({"kty": "oct", "k": base64url([7; 64]), "alg": "HS256"}), false),
        (json!({"kty": "RSA"}), false),
        (json!({}), false),
        (json!("RSA"), false),
    ] {
        assert_eq!(Key::of_jwk(&jwk, &Algorithm::ALL).is_some(), is_taken, "{jwk}");
    }
    // A key is for what it says it is for, and for what is wanted.
    assert!(Key::of_jwk(&with(&rsa, json!({"alg": "RS256"})), &[Algorithm::Rs512]).is_none());
    assert!(Key::of_jwk(&ec.jwk(), &[Algorithm::Rs256, Algorithm::Hs256]).is_none());
}

#[test]
fn a_key_that_is_named_is_the_only_one_that_is_tried() {
    let [one, other, stranger] = [("one"), ("other"), ("stranger")].map(|id| Issuer::new(Algorithm::Es256, id));
    let keys: Vec<_> = [&one, &other].map(|issuer| Key::of_jwk(&issuer.jwk(), &Algorithm::ALL).expect("a key")).into();
    let verdict = |signer: &Issuer, header: Value| {
        let text = signer.sign(&header, &at_now(json!({})));
        key::verify(&keys, &Token::parse(&text).expect("well-formed"))
    };
    let header = |kid: Option<&str>| match kid {
        Some(kid) => json!({"alg": "ES256", "kid": kid}),
        None => json!({"alg": "ES256"}),
    };
    for (signer, kid, expected) in [
        (&one, Some("one"), Verdict::Signed),
        (&one, Some("other"), Verdict::Forged),
        (&one, Some("stranger"), Verdict::UnknownKey),
        (&one, None, Verdict::Signed),
        (&other, None, Verdict::Signed),
        (&stranger, Some("one"), Verdict::Forged),
        (&stranger, Some("stranger"), Verdict::UnknownKey),
        (&stranger, Some("ONE"), Verdict::UnknownKey),
        (&stranger, None, Verdict::UnknownKey),
    ] {
        assert_eq!(verdict(signer, header(kid)), expected, "signed by {:?}, named {kid:?}", signer.id);
    }
    // Of another kind than the key that it names: no reason to look for more keys.
    assert_eq!(verdict(&one, json!({"alg": "RS256", "kid": "one"})), Verdict::Forged);
}

#[test]
fn a_token_is_tried_with_so_many_keys_and_no_more() {
    let issuer = Issuer::new(Algorithm::EdDsa, None);
    let stranger = || Key::of_jwk(&Issuer::new(Algorithm::EdDsa, None).jwk(), &Algorithm::ALL).expect("a key");
    let own = || Key::of_jwk(&issuer.jwk(), &Algorithm::ALL).expect("a key");
    let text = issuer.token(&at_now(json!({})));
    let token = Token::parse(&text).expect("well-formed");
    let behind = |count: usize| (0..count).map(|_| stranger()).chain([own()]).collect::<Vec<_>>();
    assert_eq!(key::verify(&behind(15), &token), Verdict::Signed);
    assert_eq!(key::verify(&behind(16), &token), Verdict::UnknownKey);
}
