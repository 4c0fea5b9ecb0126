//! The judge as the rest of the program sees it: who judges what, and who does not.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Issuer, Reply, Server, claims, token, visitor};
use super::*;
use crate::access::Revocation;
use crate::access::revocations::Subject;
use crate::auth::jwt::Algorithm;

const TOKEN: &str = "a-token-made-by-chance";
const PASSWORD: &str = "correct horse";

fn judge(config: &Config) -> Judge {
    config.check().expect("right");
    Judge::new(config, Revoked::open(config).expect("opened")).expect("a judge")
}

fn with_token() -> Config {
    let hash = Some(hash_token(&TOKEN.into()).expect("a hash").into());
    let token = config::Token { hash, ..config::Token::default() };
    Config { tokens: [("backend".to_owned(), token)].into(), ..Config::default() }
}

fn with_user(config: Config) -> Config {
    let hash = Some(hash_password(&PASSWORD.into()).expect("a hash").into());
    let user = config::User { hash, ..config::User::default() };
    Config { users: [("anna".to_owned(), user)].into(), ..config }
}

fn with_jwt(config: Config, issuer: &Issuer) -> Config {
    let jwt = config::Jwt {
        algorithms: vec![issuer.algorithm],
        secret: Some(issuer.secret().into()),
        ..config::Jwt::default()
    };
    Config { jwt: Some(jwt), ..config }
}

fn with_hook(config: Config, server: &Server) -> Config {
    let hook = config::Hook {
        url: Some(server.url("/").parse().expect("a URL")),
        timeout: Duration::from_secs(5),
        ..config::Hook::default()
    };
    Config { hook: Some(hook), ..config }
}

fn yes() -> Reply {
    Reply::json(200, &json!({"user": "bert"}))
}

async fn by_token(judge: &Judge, token: &str) -> Result<Identity, Failure> {
    judge.check(&Credential::Token(token.into()), &visitor()).await
}

async fn by_password(judge: &Judge, user: &str, password: &str) -> Result<Identity, Failure> {
    let credential = Credential::Password { user: user.to_owned(), password: password.into() };
    judge.check(&credential, &visitor()).await
}

fn source(judged: Result<Identity, Failure>) -> Source {
    judged.expect("let in").source
}

#[tokio::test]
async fn who_comes_without_a_credential_is_let_in_exactly_where_that_is_wanted() {
    let roles = vec!["guest".to_owned()];
    for (config, is_on, is_let_in) in [
        (Config::default(), false, true),
        (with_token(), true, false),
        (Config { anonymous: Some(true), ..with_token() }, true, true),
        (Config { anonymous: Some(true), ..Config::default() }, false, true),
    ] {
        let judge = judge(&Config { anonymous_roles: roles.clone(), ..config });
        let expected = is_let_in.then(|| Identity::anonymous(&roles));
        assert_eq!((judge.is_on(), judge.anonymous()), (is_on, expected));
    }
}

#[tokio::test]
async fn where_nothing_is_set_up_no_credential_is_taken() {
    let judge = judge(&Config::default());
    for credential in [
        Credential::Token(TOKEN.into()),
        Credential::Token(token(&json!({"alg": "none"}), &claims(json!({})), "").into()),
        Credential::Password { user: "anna".to_owned(), password: PASSWORD.into() },
        Credential::Certificate(vec![0x30]),
    ] {
        assert!(matches!(judge.check(&credential, &visitor()).await, Err(Failure::Refused(_))), "{credential:?}");
    }
}

#[tokio::test]
async fn each_credential_is_judged_by_the_source_that_recognises_it() {
    let (issuer, server) = (Issuer::new(Algorithm::Hs256, None), Server::start(yes()).await);
    let judge = judge(&with_hook(with_user(with_jwt(with_token(), &issuer)), &server));
    assert_eq!(source(by_token(&judge, TOKEN).await), Source::Token);
    assert_eq!(source(by_token(&judge, &issuer.token(&claims(json!({})))).await), Source::Jwt);
    assert_eq!(source(by_password(&judge, "anna", PASSWORD).await), Source::Password);
    assert_eq!(server.count(), 0, "nobody else needs to know");
    assert_eq!(source(by_token(&judge, "an opaque one").await), Source::Hook);
    assert_eq!(source(by_password(&judge, "bert", PASSWORD).await), Source::Hook);
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn what_one_source_has_found_bad_no_other_is_asked_about() {
    let (issuer, server) = (Issuer::new(Algorithm::Hs256, None), Server::start(yes()).await);
    let mut config = with_hook(with_user(with_jwt(with_token(), &issuer)), &server);
    config.tokens.get_mut("backend").expect("it is there").expires = Some(1);
    let judge = judge(&config);
    assert_eq!(by_token(&judge, TOKEN).await, Err(Failure::Expired));
    assert_eq!(by_token(&judge, &issuer.token(&claims(json!({"exp": 1})))).await, Err(Failure::Expired));
    for bad in [
        Issuer::new(Algorithm::Rs256, None).token(&claims(json!({}))),
        token(&json!({"alg": "none"}), &claims(json!({})), ""),
        token(&json!({"alg": "HS256"}), &claims(json!({})), "forged"),
    ] {
        assert!(matches!(by_token(&judge, &bad).await, Err(Failure::Refused(_))), "{bad}");
    }
    assert!(matches!(by_password(&judge, "anna", "wrong").await, Err(Failure::Refused(_))));
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn without_keys_for_web_tokens_the_hook_judges_them() {
    let server = Server::start(yes()).await;
    let judge = judge(&with_hook(with_token(), &server));
    let token = Issuer::new(Algorithm::Hs256, None).token(&claims(json!({})));
    assert_eq!(source(by_token(&judge, &token).await), Source::Hook);
}

#[tokio::test]
async fn what_is_empty_or_too_long_is_refused_before_anybody_looks_at_it() {
    let (issuer, server) = (Issuer::new(Algorithm::Hs256, None), Server::start(yes()).await);
    let config = with_hook(with_user(with_jwt(with_token(), &issuer)), &server);
    let max = config.max_token.get();
    let judge = judge(&config);
    let long = "x".repeat(max + 1);
    let web_token = issuer.token(&claims(json!({"x": long})));
    for judged in [
        by_token(&judge, "").await,
        by_token(&judge, &long).await,
        by_token(&judge, &web_token).await,
        by_password(&judge, "anna", "").await,
        by_password(&judge, "anna", &long).await,
        by_password(&judge, "bert", &long).await,
        by_password(&judge, "", PASSWORD).await,
        by_password(&judge, &long, PASSWORD).await,
    ] {
        assert!(matches!(judged, Err(Failure::Refused(_))), "{judged:?}");
    }
    assert_eq!(server.count(), 0);
    let longest = "x".repeat(max);
    assert_eq!(source(by_token(&judge, &longest).await), Source::Hook);
    assert_eq!(source(by_password(&judge, "bert", &longest).await), Source::Hook);
    // A web token of exactly so many bytes is read.
    let room =
        (0..).map(|more| issuer.token(&claims(json!({"x": "x".repeat(more)})))).find(|token| token.len() >= max - 1);
    let fits = room.expect("one of them");
    assert!(fits.len() <= max, "{}", fits.len());
    assert_eq!(source(by_token(&judge, &fits).await), Source::Jwt);
}

#[tokio::test]
async fn a_credential_that_was_good_is_not_after_it_was_revoked() {
    let (issuer, server) = (Issuer::new(Algorithm::Hs256, None), Server::start(yes()).await);
    let config = with_hook(with_user(with_jwt(with_token(), &issuer)), &server);
    let revoked = Revoked::open(&config).expect("opened");
    let judge = Judge::new(&config, revoked.clone()).expect("a judge");
    let [replayed, other] = ["t-1", "t-2"].map(|id| issuer.token(&claims(json!({"jti": id, "sub": "carl"}))));
    let press = Visitor { client_id: Some("press-7".to_owned()), ..visitor() };
    let until = unix_now() + 3600;
    let revoke = |subject| revoked.add(Revocation { subject, until }).expect("taken");
    let is_revoked =
        |judged| matches!(judged, Err(Failure::Refused(why)) if why == format!("revoked until {until} (Unix time)"));

    assert!(by_token(&judge, &replayed).await.is_ok());
    revoke(Subject::TokenId("t-1".into()));
    assert!(is_revoked(by_token(&judge, &replayed).await));
    assert!(by_token(&judge, &other).await.is_ok(), "another token of the same user");

    assert!(by_token(&judge, TOKEN).await.is_ok());
    revoke(Subject::TokenId("backend".into()));
    assert!(is_revoked(by_token(&judge, TOKEN).await), "a static token, by its name");

    assert!(by_password(&judge, "anna", PASSWORD).await.is_ok());
    revoke(Subject::User("anna".into()));
    assert!(is_revoked(by_password(&judge, "anna", PASSWORD).await));

    assert!(by_token(&judge, "an opaque one").await.is_ok());
    revoke(Subject::User("bert".into()));
    assert!(is_revoked(by_token(&judge, "an opaque one").await), "also what is remembered of the hook");

    let credential = Credential::Token(other.into());
    assert!(judge.check(&credential, &press).await.is_ok());
    revoke(Subject::Device("press-7".into()));
    assert!(is_revoked(judge.check(&credential, &press).await));
    assert!(judge.check(&credential, &visitor()).await.is_ok(), "another device");

    revoked.remove(&Subject::TokenId("t-1".into())).expect("lifted");
    assert!(by_token(&judge, &replayed).await.is_ok());
    // A configuration that is read again changes nothing of it.
    assert!(is_revoked(by_password(&judge.renewed(&config).expect("a judge"), "anna", PASSWORD).await));
}

#[tokio::test]
async fn a_judge_that_is_renewed_judges_by_the_new_configuration_and_remembers_what_it_may() {
    let server = Server::start(yes()).await;
    let old = judge(&with_hook(with_token(), &server));
    assert!(by_token(&old, TOKEN).await.is_ok() && by_token(&old, "an opaque one").await.is_ok());
    let new = old.renewed(&with_hook(with_user(Config::default()), &server)).expect("a judge");
    assert!(by_password(&new, "anna", PASSWORD).await.is_ok());
    assert!(by_token(&new, "an opaque one").await.is_ok());
    assert_eq!(server.count(), 1);
    assert_eq!(source(by_token(&new, TOKEN).await), Source::Hook, "no token of the configuration any more");
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_at_the_start() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let jwt = |jwt| Config { jwt: Some(jwt), ..Config::default() };
    let issuer = config::Jwt { algorithms: vec![Algorithm::Rs256], ..config::Jwt::default() };
    let url = || Some("https://id.example/".parse().expect("a URL"));
    let hook = config::Hook { url: url(), ca_file: Some(path("text", "no PEM")), ..config::Hook::default() };
    for (config, excerpts) in [
        (
            jwt(config::Jwt { public_key_file: Some(path("empty", "")), ..issuer.clone() }),
            ["auth.jwt.public_key_file", "holds no public key"],
        ),
        (
            jwt(config::Jwt { public_key_file: Some(folder.path().join("nowhere")), ..issuer.clone() }),
            ["auth.jwt.public_key_file", "can't be read"],
        ),
        (
            jwt(config::Jwt { jwks_url: url(), jwks_ca_file: Some(path("none", "")), ..issuer }),
            ["auth.jwt.jwks_ca_file", "holds no certificate"],
        ),
        (Config { hook: Some(hook), ..Config::default() }, ["auth.hook.ca_file", "holds no certificate"]),
    ] {
        let refusal = Judge::new(&config, Arc::default()).err().expect("no judge").to_string();
        assert!(excerpts.iter().all(|excerpt| refusal.contains(excerpt)), "{refusal}");
    }
}

/// A server with TLS that answers one request after another, whatever they are.
async fn tls_server(body: Value) -> (std::net::SocketAddr, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("signed");
    let pem = certificate.pem();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("they fit");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let body = body.to_string();
    let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (address, pem)
}

#[tokio::test]
async fn servers_are_believed_by_the_configured_authority_alone() {
    let issuer = Issuer::new(Algorithm::Es256, "one");
    let (address, pem) = tls_server(json!({"keys": [issuer.jwk()]})).await;
    let folder = tempfile::TempDir::new().expect("a folder");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, pem).expect("written");
    let believing = |jwks_ca_file| {
        let jwt = config::Jwt {
            algorithms: vec![Algorithm::Es256],
            jwks_url: Some(format!("https://{address}/").parse().expect("a URL")),
            jwks_ca_file,
            ..config::Jwt::default()
        };
        judge(&Config { jwt: Some(jwt), ..Config::default() })
    };
    let token = issuer.token(&claims(json!({})));
    assert_eq!(source(by_token(&believing(Some(ca)), &token).await), Source::Jwt);
    assert!(matches!(by_token(&believing(None), &token).await, Err(Failure::Unavailable(_))));
}

#[test]
fn a_hash_is_made_of_what_nobody_can_guess() {
    let hashed = |text: &str| hash_token(&text.into());
    assert!(hashed(&"t".repeat(tokens::MIN_TOKEN)).expect("a hash").starts_with("sha256:"));
    assert!(hashed(&"t".repeat(tokens::MIN_TOKEN - 1)).unwrap_err().contains("less than 16 bytes"));
    assert!(hash_password(&"p".into()).expect("a hash").starts_with("$argon2id$v=19$"));
    assert!(hash_password(&"".into()).unwrap_err().contains("empty"));
}
