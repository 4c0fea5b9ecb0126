//! Scenes with an endpoint that judges, on a real server.

use std::net::Ipv6Addr;

use serde_json::json;

use super::*;
use crate::auth::support::{Reply, Server, nowhere, visitor};
use crate::auth::unix_now;

const MILLI: Duration = Duration::from_millis(1);

fn config(url: &str) -> config::Hook {
    config::Hook { url: Some(url.parse().expect("a URL")), timeout: Duration::from_secs(5), ..config::Hook::default() }
}

fn hook(config: &config::Hook) -> Arc<Hook> {
    Arc::new(Hook::new(config, None).expect("a client").expect("a URL"))
}

fn yes() -> Reply {
    Reply::json(200, &json!({"user": "anna"}))
}

fn no() -> Reply {
    Reply::json(401, &Value::Null)
}

fn secret(text: &str) -> SecretString {
    text.into()
}

async fn check(hook: &Hook, token: &str) -> Result<Identity, Failure> {
    hook.check(Question::Token(&secret(token)), &visitor(), unix_now()).await
}

fn is_unavailable(judged: &Result<Identity, Failure>) -> bool {
    matches!(judged, Err(Failure::Unavailable(why)) if why.contains("auth.hook.url"))
}

fn is_refused(judged: &Result<Identity, Failure>) -> bool {
    matches!(judged, Err(Failure::Refused(why)) if why.contains("auth.hook.url"))
}

#[tokio::test]
async fn the_endpoint_is_told_what_was_shown_and_by_whom() {
    let server = Server::start(yes()).await;
    let hook = hook(&config::Hook { secret: Some(secret("hunter2")), ..config(&server.url("/auth")) });
    let visitor = Visitor { address: Ipv6Addr::LOCALHOST.into(), client_id: Some("press-7".to_owned()) };
    let now = unix_now();
    hook.check(Question::Token(&secret("a token")), &visitor, now).await.expect("let in");
    hook.check(Question::Password("anna", &secret("a \"pass\"")), &visitor, now).await.expect("let in");
    check(&hook, "a token").await.expect("let in");
    let posted = [
        json!({"token": "a token", "clientId": "press-7", "address": "::1"}),
        json!({"username": "anna", "password": "a \"pass\"", "clientId": "press-7", "address": "::1"}),
        json!({"token": "a token", "address": "127.0.0.1"}),
    ];
    let seen = server.seen();
    assert_eq!(seen.len(), posted.len());
    for (seen, posted) in seen.iter().zip(posted) {
        assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/auth"));
        assert_eq!(seen.authorization.as_deref(), Some("Bearer hunter2"));
        assert_eq!(serde_json::from_slice::<Value>(&seen.body).expect("JSON"), posted);
    }
}

#[tokio::test]
async fn a_yes_says_who_it_is() {
    let body = json!({
        "user": "anna", "roles": ["operator"], "groups": ["hall-2"], "claims": {"site": "north", "x": {}},
        "expiresIn": 60, "tokenId": "t-1", "more": true,
    });
    let server = Server::start(Reply::json(200, &body)).await;
    let now = unix_now();
    let identity = hook(&config(&server.url("/"))).check(Question::Token(&secret("t")), &visitor(), now).await;
    let expected = Identity {
        user: Some("anna".into()),
        source: Source::Hook,
        roles: names(&["operator"]),
        groups: names(&["hall-2"]),
        claims: Claims::of(&serde_json::Map::from_iter([("site".to_owned(), json!("north"))])),
        token_id: Some("t-1".into()),
        expires: Some(now + 60),
    };
    assert_eq!(identity, Ok(expected));

    server.replies(yes());
    let identity = check(&hook(&config(&server.url("/"))), "t").await.expect("let in");
    assert_eq!((identity.user.as_deref(), identity.expires, identity.roles.len()), (Some("anna"), None, 0));
}

#[tokio::test]
async fn a_no_is_a_no_and_all_else_is_no_judgement() {
    let server = Server::start(no()).await;
    let hook = hook(&config::Hook { cache: Duration::ZERO, ..config(&server.url("/")) });
    for status in [401, 403] {
        server.replies(Reply::json(status, &json!({"user": "anna"})));
        assert!(is_refused(&check(&hook, "t").await), "{status}");
    }
    let elsewhere = Server::start(yes()).await;
    let raw = |body: &[u8]| Reply { body: body.to_vec(), ..Reply::json(200, &Value::Null) };
    let large = format!("{}{}", json!({"user": "anna"}), " ".repeat(MAX_BODY));
    for reply in [
        Reply::json(201, &json!({"user": "anna"})),
        Reply::json(204, &Value::Null),
        Reply { location: Some(elsewhere.url("/")), ..Reply::json(307, &Value::Null) },
        Reply::json(400, &Value::Null),
        Reply::json(404, &Value::Null),
        Reply::json(429, &Value::Null),
        Reply::json(500, &Value::Null),
        raw(b""),
        raw(b"<html>"),
        raw(b"{\"user\":\"anna\""),
        raw(large.as_bytes()),
        Reply::json(200, &json!({})),
        Reply::json(200, &json!({"user": ""})),
        Reply::json(200, &json!({"user": null})),
        Reply::json(200, &json!({"user": "an\nna"})),
        Reply::json(200, &json!({"user": "n".repeat(257)})),
        Reply::json(200, &json!({"user": "anna", "roles": "operator"})),
        Reply::json(200, &json!({"user": "anna", "roles": [""]})),
        Reply::json(200, &json!({"user": "anna", "tokenId": ""})),
        Reply::json(200, &json!({"user": "anna", "claims": []})),
        Reply::json(200, &json!({"user": "anna", "expiresIn": -1})),
        Reply::json(200, &json!({"user": "anna", "expiresIn": "60"})),
    ] {
        server.replies(reply.clone());
        let judged = check(&hook, "t").await;
        assert!(is_unavailable(&judged), "{} {}: {judged:?}", reply.status, String::from_utf8_lossy(&reply.body));
    }
    assert_eq!(elsewhere.count(), 0, "a redirection is not followed");
    let fits = format!("{}{}", json!({"user": "anna"}), " ".repeat(MAX_BODY - 15));
    assert_eq!(fits.len(), MAX_BODY);
    server.replies(raw(fits.as_bytes()));
    assert!(check(&hook, "t").await.is_ok());
}

#[tokio::test]
async fn an_endpoint_that_is_down_or_slow_lets_nobody_in() {
    let down = hook(&config(&format!("http://{}/", nowhere().await)));
    assert!(is_unavailable(&check(&down, "t").await));
    let server = Server::start(Reply { after: Duration::from_secs(3), ..yes() }).await;
    let slow = hook(&config::Hook { timeout: 500 * MILLI, ..config(&server.url("/")) });
    let begun = Instant::now();
    assert!(is_unavailable(&check(&slow, "t").await));
    assert!(begun.elapsed() < Duration::from_secs(2));
    server.replies(yes());
    assert!(check(&slow, "t").await.is_ok(), "what could not be judged is asked again");
}

#[tokio::test]
async fn a_yes_is_remembered_for_a_while() {
    let server = Server::start(yes()).await;
    let hook = hook(&config::Hook { cache: 500 * MILLI, ..config(&server.url("/")) });
    for _ in 0..3 {
        assert!(check(&hook, "t").await.is_ok());
    }
    assert_eq!(server.count(), 1);
    server.replies(no());
    assert!(is_refused(&check(&hook, "another").await), "another question");
    tokio::time::sleep(600 * MILLI).await;
    assert!(is_refused(&check(&hook, "t").await));
    assert_eq!(server.count(), 3);
}

#[tokio::test]
async fn only_the_same_question_of_the_same_visitor_has_the_same_answer() {
    let server = Server::start(yes()).await;
    let hook = hook(&config(&server.url("/")));
    let (one, other) = (secret("one"), secret("other"));
    let here = visitor();
    let press = Visitor { client_id: Some("press-7".to_owned()), ..visitor() };
    let there = Visitor { address: Ipv6Addr::LOCALHOST.into(), ..visitor() };
    for (question, visitor) in [
        (Question::Token(&one), &here),
        (Question::Token(&other), &here),
        (Question::Token(&one), &press),
        (Question::Token(&one), &there),
        (Question::Password("one", &other), &here),
        (Question::Password("other", &one), &here),
    ] {
        let asked = server.count();
        for _ in 0..2 {
            hook.check(question, visitor, unix_now()).await.expect("let in");
        }
        assert_eq!(server.count(), asked + 1);
    }
}

#[tokio::test]
async fn a_no_is_remembered_for_a_moment() {
    let server = Server::start(no()).await;
    let hook = hook(&config(&server.url("/")));
    assert!(is_refused(&check(&hook, "t").await) && is_refused(&check(&hook, "t").await));
    assert_eq!(server.count(), 1);
    let kept = hook.answers.lock().expect("no panic").cells.values().next().expect("one").1.clone();
    let left = kept.get().expect("answered").until.saturating_duration_since(Instant::now());
    assert!(left <= REFUSAL_KEPT && left > REFUSAL_KEPT / 2, "{left:?}");
}

#[tokio::test]
async fn nothing_is_remembered_where_that_is_not_wanted() {
    let server = Server::start(yes()).await;
    let hook = hook(&config::Hook { cache: Duration::ZERO, ..config(&server.url("/")) });
    assert!(check(&hook, "t").await.is_ok());
    server.replies(no());
    assert!(is_refused(&check(&hook, "t").await));
    server.replies(yes());
    assert!(check(&hook, "t").await.is_ok());
    assert_eq!(server.count(), 3);
}

#[tokio::test]
async fn what_is_remembered_ends_with_the_identity() {
    let server = Server::start(Reply::json(200, &json!({"user": "anna", "expiresIn": 60}))).await;
    let hook = hook(&config(&server.url("/")));
    let (token, now) = (secret("t"), unix_now());
    let at = async |now| hook.check(Question::Token(&token), &visitor(), now).await.map(|_| ());
    assert_eq!((at(now).await, at(now + 59).await), (Ok(()), Ok(())));
    assert_eq!((at(now + 60).await, server.count()), (Err(Failure::Expired), 1));
}

#[tokio::test]
async fn of_many_that_ask_the_same_one_asks_the_endpoint() {
    let server = Server::start(Reply { after: 50 * MILLI, ..yes() }).await;
    let hook = hook(&config(&server.url("/")));
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let hook = hook.clone();
            tokio::spawn(async move { check(&hook, "t").await.is_ok() })
        })
        .collect();
    for one in asking {
        assert!(one.await.expect("no panic"));
    }
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn where_the_one_that_asks_goes_away_the_next_asks() {
    let server = Server::start(Reply { after: 500 * MILLI, ..yes() }).await;
    let hook = hook(&config(&server.url("/")));
    let waiting = {
        let hook = hook.clone();
        async move { check(&hook, "t").await }
    };
    let gone = timeout(200 * MILLI, check(&hook, "t"));
    let (gone, waiting) = tokio::join!(gone, waiting);
    assert!(gone.is_err() && waiting.is_ok());
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn no_more_questions_are_on_their_way_than_there_may_be() {
    let server = Server::start(Reply { after: Duration::from_secs(6), ..yes() }).await;
    let hook = hook(&config::Hook { timeout: Duration::from_secs(3), ..config(&server.url("/")) });
    let asking: Vec<_> = (0..MAX_ASKED + 10)
        .map(|number| {
            let hook = hook.clone();
            tokio::spawn(async move { is_unavailable(&check(&hook, &format!("t-{number}")).await) })
        })
        .collect();
    while server.count() < MAX_ASKED {
        tokio::time::sleep(10 * MILLI).await;
    }
    tokio::time::sleep(100 * MILLI).await;
    assert_eq!(server.count(), MAX_ASKED);
    for one in asking {
        assert!(one.await.expect("no panic"), "each is told in its time");
    }
}

#[tokio::test]
async fn so_many_answers_are_remembered_and_the_oldest_make_room() {
    let server = Server::start(yes()).await;
    let hook = hook(&config::Hook {
        max_cached: const { std::num::NonZeroUsize::new(2).unwrap() },
        ..config(&server.url("/"))
    });
    for (token, asked) in
        [("a", 1), ("b", 2), ("a", 2), ("b", 2), ("c", 3), ("b", 3), ("c", 3), ("a", 4), ("c", 4), ("b", 5)]
    {
        assert!(check(&hook, token).await.is_ok());
        assert_eq!(server.count(), asked, "{token}");
        let answers = hook.answers.lock().expect("no panic");
        assert!(answers.cells.len() <= 2 && answers.order.len() <= 2);
    }
}

#[test]
fn an_answer_that_is_over_makes_room_for_a_new_one_and_nothing_piles_up() {
    let mut answers = Answers { max: 3, ..Answers::default() };
    let start = Instant::now();
    let over = |cell: &OnceCell<Remembered>| {
        let _ = cell.set(Remembered { answer: Err(Failure::Expired), until: start });
    };
    for round in 0..100 {
        over(&answers.cell([round % 2; 32], start));
        assert!(answers.order.len() <= 3 && answers.cells.len() <= 2, "{round}");
    }
    let cell = answers.cell([7; 32], start);
    assert!(Arc::ptr_eq(&cell, &answers.cell([7; 32], start)), "one that is on its way is waited for");
}

#[tokio::test]
async fn a_configuration_that_is_read_again_keeps_the_answers_of_the_same_endpoint() {
    let server = Server::start(yes()).await;
    let old = hook(&config(&server.url("/")));
    assert!(check(&old, "t").await.is_ok());
    let renewed = |config: &config::Hook| Hook::new(config, Some(&old)).expect("a client").expect("a URL");
    let same = config::Hook { timeout: Duration::from_secs(1), ..config(&server.url("/")) };
    assert!(check(&renewed(&same), "t").await.is_ok());
    assert_eq!(server.count(), 1);
    for other in
        [config(&server.url("/other")), config::Hook { secret: Some(secret("another")), ..config(&server.url("/")) }]
    {
        let asked = server.count();
        assert!(check(&renewed(&other), "t").await.is_ok());
        assert_eq!(server.count(), asked + 1);
    }
}
