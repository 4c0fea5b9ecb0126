//! A gateway that asks who comes: each session shows a JSON Web Token, and has twenty grants.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

const SECRET: &str = "what the gateway and this tool share";
static KEY: OnceLock<EncodingKey> = OnceLock::new();
static USERS: AtomicU64 = AtomicU64::new(0);

/// From now on sessions of this process show a token.
pub fn begin() {
    KEY.get_or_init(|| EncodingKey::from_secret(SECRET.as_bytes()));
}

/// What a session says that wants nothing of its own: who it is, where that is asked. No two are the same user.
pub fn auth() -> Value {
    let Some(key) = KEY.get() else { return json!({"type": "auth"}) };
    let user = format!("{:x}-{:x}", std::process::id(), USERS.fetch_add(1, Ordering::Relaxed));
    // In the year 2100.
    let claims =
        json!({"sub": user, "aud": "tidegate", "exp": 4_102_444_800_u64, "roles": ["reader"], "site": "north"});
    let token = encode(&Header::default(), &claims, key).expect("a token is signed");
    json!({"type": "auth", "token": token})
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
