//! Scenes with an issuer that publishes its keys, on a real server.

use serde_json::{Value, json};

use super::*;
use crate::access::Identity;
use crate::auth::jwt::Jwt;
use crate::auth::support::{Issuer, Reply, Server, claims, nowhere};
use crate::auth::unix_now;

const MILLI: Duration = Duration::from_millis(1);

fn config(url: &str) -> config::Jwt {
    config::Jwt {
        algorithms: vec![Algorithm::Es256, Algorithm::EdDsa],
        jwks_url: Some(url.parse().expect("a URL")),
        jwks_min_interval: Duration::from_secs(60),
        jwks_timeout: Duration::from_secs(5),
        ..config::Jwt::default()
    }
}

fn jwt(config: &config::Jwt) -> Arc<Jwt> {
    Arc::new(Jwt::new(config, None).expect("a judge"))
}

fn issuer(id: impl Into<Option<&'static str>>) -> Issuer {
    Issuer::new(Algorithm::Es256, id)
}

async fn check(jwt: &Jwt, issuer: &Issuer) -> Result<Identity, Failure> {
    jwt.check(&issuer.token(&claims(json!({}))), unix_now()).await
}

fn is_unavailable(judged: &Result<Identity, Failure>) -> bool {
    matches!(judged, Err(Failure::Unavailable(why)) if why.contains("auth.jwt.jwks_url"))
}

fn is_refused(judged: &Result<Identity, Failure>) -> bool {
    matches!(judged, Err(Failure::Refused(_)))
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(5 * MILLI).await;
    }
}

#[tokio::test]
async fn tokens_are_taken_by_the_keys_that_the_issuer_publishes() {
    let (one, other) = (issuer("one"), Issuer::new(Algorithm::EdDsa, "other"));
    let server = Server::start(Reply::keys(&[&one, &other])).await;
    let jwt = jwt(&config(&server.url("/keys")));
    for issuer in [&one, &other] {
        assert_eq!(check(&jwt, issuer).await.expect("let in").user.as_deref(), Some("anna"));
    }
    assert!(is_refused(&check(&jwt, &issuer("one")).await), "signed with another key than it names");
    assert_eq!(server.count(), 1, "what was fetched is kept");
    assert_eq!((server.seen()[0].method.as_str(), server.seen()[0].path.as_str()), ("GET", "/keys"));
}

#[tokio::test]
async fn a_key_that_is_new_is_fetched_when_a_token_names_it() {
    let (old, new) = (issuer("old"), issuer("new"));
    let server = Server::start(Reply::keys(&[&old])).await;
    let jwt = jwt(&config::Jwt { jwks_min_interval: 20 * MILLI, ..config(&server.url("/")) });
    assert!(check(&jwt, &old).await.is_ok());
    server.replies(Reply::keys(&[&old, &new]));
    sleep(25 * MILLI).await;
    assert!(check(&jwt, &new).await.is_ok());
    assert_eq!(server.count(), 2);
    // And what the issuer has taken back is gone with the next fetch.
    server.replies(Reply::keys(&[&new]));
    sleep(25 * MILLI).await;
    assert!(is_refused(&check(&jwt, &issuer("made up")).await));
    assert!(is_refused(&check(&jwt, &old).await));
    assert!(check(&jwt, &new).await.is_ok());
}

#[tokio::test]
async fn a_token_that_names_no_key_brings_new_ones_too() {
    let (old, new) = (issuer(None), issuer(None));
    let server = Server::start(Reply::keys(&[&old])).await;
    let jwt = jwt(&config::Jwt { jwks_min_interval: 20 * MILLI, ..config(&server.url("/")) });
    assert!(check(&jwt, &old).await.is_ok());
    server.replies(Reply::keys(&[&new]));
    sleep(25 * MILLI).await;
    assert!(check(&jwt, &new).await.is_ok());
}

#[tokio::test]
async fn however_many_tokens_name_unknown_keys_the_issuer_is_asked_once_in_the_least_interval() {
    let one = issuer("one");
    let server = Server::start(Reply { after: 20 * MILLI, ..Reply::keys(&[&one]) }).await;
    let jwt = jwt(&config(&server.url("/")));
    let asking: Vec<_> = (0..50)
        .map(|number| {
            let jwt = jwt.clone();
            let header = json!({"alg": "ES256", "kid": format!("made up {number}")});
            let token = issuer(None).sign(&header, &claims(json!({})));
            tokio::spawn(async move { jwt.check(&token, unix_now()).await })
        })
        .collect();
    for one in asking {
        assert!(is_refused(&one.await.expect("no panic")));
    }
    assert_eq!(server.count(), 1, "also for those that come at the same time");
    for _ in 0..5 {
        assert!(is_refused(&check(&jwt, &issuer("made up")).await));
    }
    assert!(check(&jwt, &one).await.is_ok());
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn tokens_whose_algorithm_or_key_is_wrong_never_reach_the_issuer() {
    let one = issuer("one");
    let server = Server::start(Reply::keys(&[&one])).await;
    let jwt = jwt(&config::Jwt { jwks_min_interval: MILLI, ..config(&server.url("/")) });
    assert!(check(&jwt, &one).await.is_ok());
    sleep(5 * MILLI).await;
    for header in [json!({"alg": "HS256", "kid": "new"}), json!({"alg": "none", "kid": "new"}), json!({"alg": "RS256"})]
    {
        let judged = jwt.check(&one.sign(&header, &claims(json!({}))), unix_now()).await;
        assert!(matches!(judged, Err(Failure::Refused(why)) if why.contains("auth.jwt.algorithms")), "{header}");
    }
    assert!(is_refused(&check(&jwt, &issuer("one")).await));
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn who_goes_away_does_not_keep_the_keys_from_coming() {
    let one = issuer("one");
    let server = Server::start(Reply { after: 100 * MILLI, ..Reply::keys(&[&one]) }).await;
    let jwt = jwt(&config(&server.url("/")));
    let asked = timeout(30 * MILLI, check(&jwt, &one)).await;
    assert!(asked.is_err(), "it went before the answer was there");
    assert!(check(&jwt, &one).await.is_ok());
    assert_eq!(server.count(), 1, "the one fetch went on");
}

#[tokio::test]
async fn an_issuer_that_is_down_at_the_start_makes_tokens_wait_for_another_time() {
    let one = issuer("one");
    let address = nowhere().await;
    let jwt = jwt(&config::Jwt { jwks_min_interval: 20 * MILLI, ..config(&format!("http://{address}/")) });
    assert!(is_unavailable(&check(&jwt, &one).await));
    assert!(is_unavailable(&check(&jwt, &one).await), "also where it is too soon to ask again");
    let server = Server::start_at(address, Reply::keys(&[&one])).await;
    sleep(25 * MILLI).await;
    assert!(check(&jwt, &one).await.is_ok());
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn keys_stay_in_use_while_the_issuer_cannot_be_asked() {
    let one = issuer("one");
    let server = Server::start(Reply::keys(&[&one])).await;
    let jwt = jwt(&config::Jwt { jwks_min_interval: MILLI, jwks_timeout: 500 * MILLI, ..config(&server.url("/")) });
    assert!(check(&jwt, &one).await.is_ok());
    let html = Reply { body: b"<html>".to_vec(), ..Reply::json(200, &Value::Null) };
    let endless = Reply { body: vec![b' '; MAX_BODY + 1], ..Reply::json(200, &Value::Null) };
    let elsewhere = Server::start(Reply::keys(&[&issuer("new")])).await;
    let moved = Reply { location: Some(elsewhere.url("/")), ..Reply::json(302, &Value::Null) };
    for (what, reply) in [
        ("an error", Reply::json(500, &json!({"keys": []}))),
        ("no JSON", html),
        ("no set", Reply::json(200, &json!([]))),
        ("an empty set", Reply::json(200, &json!({"keys": []}))),
        ("a set of others", Reply::json(200, &json!({"keys": [{"kty": "oct", "k": "AAAA"}, {"kty": "new"}]}))),
        ("too much", endless),
        ("a redirection", moved),
        ("an answer that comes too late", Reply { after: Duration::from_secs(2), ..Reply::keys(&[&issuer("new")]) }),
    ] {
        server.replies(reply);
        sleep(5 * MILLI).await;
        let asked = server.count();
        assert!(is_unavailable(&check(&jwt, &issuer("new")).await), "{what}: the key may be a new one");
        assert_eq!(server.count(), asked + 1, "{what}");
        assert!(check(&jwt, &one).await.is_ok(), "{what}");
    }
    assert_eq!(elsewhere.count(), 0, "a redirection is not followed");
    server.replies(Reply::keys(&[&one]));
    sleep(5 * MILLI).await;
    assert!(is_refused(&check(&jwt, &issuer("new")).await), "the issuer answers again, and knows nothing of it");
}

#[tokio::test]
async fn a_set_may_be_as_large_as_the_bound_and_hold_as_many_keys() {
    let (first, last) = (issuer("first"), issuer("last"));
    let filler = issuer("filler").jwk();
    let set = |between: usize| {
        let keys: Vec<_> = [first.jwk()].into_iter().chain(vec![filler.clone(); between]).chain([last.jwk()]).collect();
        let mut body = json!({ "keys": keys }).to_string();
        let room = MAX_BODY - body.len();
        body.push_str(&" ".repeat(room));
        Reply { body: body.into_bytes(), ..Reply::json(200, &Value::Null) }
    };
    for (between, is_there) in [(MAX_KEYS - 2, true), (MAX_KEYS - 1, false)] {
        let server = Server::start(set(between)).await;
        let jwt = jwt(&config(&server.url("/")));
        assert!(check(&jwt, &first).await.is_ok());
        assert_eq!(check(&jwt, &last).await.is_ok(), is_there, "{between} keys between");
    }
}

#[tokio::test]
async fn keys_are_fetched_at_the_start_and_then_again_and_again() {
    let (old, new) = (issuer("old"), issuer("new"));
    let server = Server::start(Reply::keys(&[&old])).await;
    let refresh = 30 * MILLI;
    let jwt = jwt(&config::Jwt { jwks_refresh: refresh, jwks_min_interval: refresh, ..config(&server.url("/")) });
    let watched = jwt.clone();
    let watching = tokio::spawn(async move { watched.watch().await });
    eventually("fetched before anybody comes", || server.count() == 1).await;
    server.replies(Reply::keys(&[&new]));
    eventually("fetched again", || server.count() >= 3).await;
    assert!(check(&jwt, &new).await.is_ok());
    server.replies(Reply::json(500, &Value::Null));
    let asked = server.count();
    eventually("tried again after a failure", || server.count() >= asked + 3).await;
    watching.abort();
}

/// So many failures that a wait which only ever doubles is beyond all numbers.
#[tokio::test]
async fn however_long_the_issuer_is_away_its_keys_are_asked_for_again_and_again() {
    let one = issuer("one");
    let server = Server::start(Reply::json(500, &Value::Null)).await;
    let jwt = jwt(&config::Jwt { jwks_refresh: 2 * MILLI, jwks_min_interval: MILLI, ..config(&server.url("/")) });
    let watched = jwt.clone();
    let watching = tokio::spawn(async move { watched.watch().await });
    eventually("tried on", || server.count() > 100).await;
    server.replies(Reply::keys(&[&one]));
    let asked = server.count();
    eventually("fetched", || server.count() > asked + 1).await;
    assert!(check(&jwt, &one).await.is_ok() && !watching.is_finished());
    watching.abort();
}

#[tokio::test]
async fn a_configuration_that_is_read_again_keeps_the_keys_of_the_same_issuer() {
    let one = issuer("one");
    let server = Server::start(Reply::keys(&[&one])).await;
    let old = jwt(&config(&server.url("/")));
    assert!(check(&old, &one).await.is_ok());
    server.replies(Reply::json(500, &Value::Null));
    let renewed = |config: &config::Jwt| Jwt::new(config, Some(&old)).expect("a judge");
    let same =
        config::Jwt { audience: vec!["tidegate".to_owned()], leeway: Duration::ZERO, ..config(&server.url("/")) };
    let token = one.token(&claims(json!({"aud": "tidegate"})));
    assert!(renewed(&same).check(&token, unix_now()).await.is_ok());
    for other in
        [config(&server.url("/other")), config::Jwt { algorithms: vec![Algorithm::Es256], ..config(&server.url("/")) }]
    {
        assert!(is_unavailable(&check(&renewed(&other), &one).await), "nothing is known of {:?}", other.jwks_url);
    }
}
