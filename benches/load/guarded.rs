//! A gateway that asks who comes: each session shows a JSON Web Token, and has twenty grants.

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use std::fmt::Write;
use std::sync::OnceLock;

const SECRET: &str = "what the gateway and this tool share";
static TOKEN: OnceLock<String> = OnceLock::new();

/// From now on sessions of this process show a token.
pub fn begin() {
    // In the year 2100.
    let claims =
        json!({"sub": "load", "aud": "tidegate", "exp": 4_102_444_800_u64, "roles": ["reader"], "site": "north"});
    let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes()));
    TOKEN.get_or_init(|| token.expect("a token is signed"));
}

/// What a session says that wants nothing of its own.
pub fn auth() -> Value {
    match TOKEN.get() {
        Some(token) => json!({"type": "auth", "token": token}),
        None => json!({"type": "auth"}),
    }
}

/// The gateway's configuration. What the sessions read is allowed by the grant that is looked at last.
pub fn configuration() -> String {
    let mut text = format!(
        "[auth]\nanonymous = false\n[auth.jwt]\nalgorithms = [\"HS256\"]\nsecret = \"{SECRET}\"\naudience = \"tidegate\"\n\
         [roles.reader]\ngrants = [\n{{ allow = [\"subscribe\", \"publish\"], topics = [\"load/#\"] }},\n"
    );
    for number in 1..20 {
        let topics = format!("plant/{{claim.site}}/hall-{number}/#");
        writeln!(text, "{{ allow = [\"subscribe\"], topics = [\"{topics}\"] }},").expect("memory takes it");
    }
    text + "]\n"
}
