//! The admin API as a program would use it, each answer held against the description that the gateway gives of itself.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// What the gateway says of its API.
pub fn description() -> Value {
    serde_json::from_str(include_str!("../../../protocol/openapi.json")).expect("JSON")
}

/// Somebody who asks.
pub struct Api {
    /// The listener.
    pub address: String,
    /// What each request has in its head.
    pub head: String,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    /// Nothing where there is no body.
    pub body: Value,
}

impl Api {
    /// Without a credential.
    pub fn at(address: &str) -> Api {
        Api { address: address.to_owned(), head: String::new() }
    }

    /// Whoever shows this token.
    pub fn with_token(address: &str, token: &str) -> Api {
        Api { address: address.to_owned(), head: format!("Authorization: Bearer {token}\r\n") }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, Some(body)).await
    }

    /// Asks, and sees that the answer is as it is described.
    pub async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let text = body.map(|body| body.to_string()).unwrap_or_default();
        let kind = if text.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let answer = self.raw(method, path, &format!("Host: {}\r\n{kind}", self.address), &text).await;
        judge(method, path, &answer);
        answer
    }

    /// Asks with these lines in the head and this body.
    pub async fn raw(&self, method: &str, path: &str, head: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).await.expect("it listens");
        let (own, length) = (&self.head, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{own}{head}\r\n{body}"
        );
        // One that is turned away unread may be answered before all of it is written.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut response = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut response)).await.expect("in time").expect("text");
        let status = response.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
        let body = if body.is_empty() { Value::Null } else { serde_json::from_str(body).expect("JSON") };
        Answer { status, head: head.to_lowercase(), body }
    }
}

/// Whether this is described as an answer to such a request.
fn judge(method: &str, path: &str, answer: &Answer) {
    let description = description();
    let path = path.split('?').next().expect("a split has a first part");
    let template = if path.starts_with("/api/v1/sessions/") { "/api/v1/sessions/{id}" } else { path };
    let operation = &description["paths"][template][method.to_lowercase()];
    if operation.is_null() {
        assert!(matches!(answer.status, 404 | 405), "{method} {path}: {answer:?}");
        return is_problem(&description, answer);
    }
    let responses = operation["responses"].as_object().expect("responses");
    let response = responses.get(&answer.status.to_string());
    let response = resolved(&description, response.unwrap_or_else(|| panic!("{method} {path}: {answer:?}")));
    let Some(content) = response["content"].as_object() else {
        return assert_eq!(answer.body, Value::Null, "{method} {path}");
    };
    let (kind, content) = content.iter().next().expect("a kind of content");
    assert!(answer.head.contains(&format!("content-type: {kind}")), "{method} {path}: {answer:?}");
    if let Err(why) = fits(&description, &content["schema"], &answer.body) {
        panic!("{method} {path}: {why}: {answer:?}");
    }
    if answer.status >= 400 {
        is_problem(&description, answer);
    }
}

fn is_problem(description: &Value, answer: &Answer) {
    assert!(answer.head.contains("content-type: application/problem+json"), "{answer:?}");
    assert_eq!(fits(description, &json!({"$ref": "#/components/schemas/Problem"}), &answer.body), Ok(()), "{answer:?}");
    assert_eq!(answer.body["status"], answer.status, "{answer:?}");
}

/// Follows a reference, if it is one.
pub fn resolved<'a>(description: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => description.pointer(reference.trim_start_matches('#')).expect("it leads somewhere"),
        None => value,
    }
}

/// Whether a value is as a schema wants it, of those that the description uses. What this does not know is an error.
pub fn fits(description: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let schema = resolved(description, schema).as_object().expect("a schema");
    let wrong = |what: &str| Err(format!("{value} is not {what}"));
    let fields = value.as_object();
    for (keyword, wanted) in schema {
        let is_right = match keyword.as_str() {
            "description" | "default" => true,
            "type" => match wanted.as_str().expect("a type") {
                "string" => value.is_string(),
                "integer" => value.is_i64() || value.is_u64(),
                "boolean" => value.is_boolean(),
                "array" => value.is_array(),
                "object" => value.is_object(),
                other => panic!("no type is called {other}"),
            },
            "const" => value == wanted,
            "enum" => wanted.as_array().expect("a list").contains(value),
            "minimum" => value.as_i64() >= wanted.as_i64(),
            "maximum" => value.as_i64() <= wanted.as_i64(),
            "minProperties" => fields.is_some_and(|fields| fields.len() as u64 >= wanted.as_u64().expect("a number")),
            "maxProperties" => fields.is_some_and(|fields| fields.len() as u64 <= wanted.as_u64().expect("a number")),
            "pattern" => {
                assert_eq!(wanted, "^[0-9a-f]{16}$", "the only one");
                let is_hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
                value.as_str().is_some_and(|text| text.len() == 16 && text.bytes().all(is_hex))
            }
            "required" => wanted
                .as_array()
                .expect("a list")
                .iter()
                .all(|name| value.get(name.as_str().expect("a name")).is_some()),
            "additionalProperties" => {
                assert_eq!(wanted, false);
                fields.is_some_and(|fields| fields.keys().all(|name| schema["properties"].get(name).is_some()))
            }
            "properties" => {
                for (name, schema) in wanted.as_object().expect("properties") {
                    value.get(name).map_or(Ok(()), |value| fits(description, schema, value))?;
                }
                true
            }
            "items" => {
                value.as_array().into_iter().flatten().try_for_each(|item| fits(description, wanted, item))?;
                true
            }
            other => panic!("a schema has {other}"),
        };
        if !is_right {
            return wrong(&format!("{keyword} {wanted}"));
        }
    }
    Ok(())
}
