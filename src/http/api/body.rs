//! Bodies of requests: JSON of a bounded size that comes in time.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::Problem;

/// The most bytes of a body of which only the gateway itself takes notice: the longest names, filters and tokens are shorter.
pub const MAX_BODY: usize = 64 << 10;
/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads a body of at most so many bytes, which is JSON by its own account.
pub async fn read(request: Request, most: usize) -> Result<String, Problem> {
    let (head, body) = request.into_parts();
    judge_type(&head.headers)?;
    match timeout(PATIENCE, gather(body, most)).await {
        Ok(text) => text,
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "The body did not come in time; send it in one go.")),
    }
}

/// What the text says, or where it is not what is wanted.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    let deserializer = &mut serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { format!(" at `{path}`") };
        Problem::bad_request(format!("The body is not as it should be{place}: {}.", error.inner()))
    })
}

/// A form in a page may be sent anywhere, but not as JSON.
fn judge_type(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Send JSON, and say so: Content-Type: application/json."))
}

async fn gather(body: Body, most: usize) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Problem::bad_request("The body broke off."))?;
        if bytes.len() + chunk.len() > most {
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("A body may have {most} bytes here; send a smaller one."),
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| Problem::bad_request("The body is no UTF-8."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kind: &str, body: &str) -> Request {
        Request::builder().header("content-type", kind).body(body.to_owned().into()).expect("a request")
    }

    #[tokio::test]
    async fn a_body_has_at_most_so_many_bytes() {
        let read = async |body: &str| read(request("application/json", body), 4).await;
        assert_eq!(read("1234").await, Ok("1234".to_owned()));
        assert!(read("12345").await.is_err_and(|problem| problem.detail().contains("4 bytes")));
        let chunks = futures_util::stream::iter(["12", "34", "5"].map(Ok::<_, std::io::Error>));
        assert!(gather(Body::from_stream(chunks), 4).await.is_err(), "whatever the pieces");
    }

    #[tokio::test]
    async fn only_json_is_taken() {
        for (kind, is_taken) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/x-www-form-urlencoded", false),
            ("text/plain", false),
            ("", false),
        ] {
            assert_eq!(read(request(kind, "{}"), 4).await.is_ok(), is_taken, "{kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let never = futures_util::stream::pending::<Result<&str, std::io::Error>>();
        let request = Request::builder().header("content-type", "application/json");
        let begun = tokio::time::Instant::now();
        let problem = read(request.body(Body::from_stream(never)).expect("a request"), 4).await;
        assert!(problem.is_err_and(|problem| problem.detail().contains("in time")));
        assert_eq!(begun.elapsed(), PATIENCE);
    }
}
