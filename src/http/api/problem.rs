//! What went wrong, as RFC 9457 has it.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::wire::{Code, Refusal};

/// A request that was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    code: Option<Code>,
    detail: Cow<'static, str>,
}

impl Problem {
    /// The detail is a sentence that says what to mend.
    pub fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem { status, code: None, detail: detail.into() }
    }

    /// The request can't be meant so.
    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }

    /// The sentence.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        Problem { status: status(refusal.code), code: Some(refusal.code), detail: refusal.message }
    }
}

/// A refusal's status: whoever knows only HTTP knows by it whether to try again.
fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidJson
        | Code::InvalidFrame
        | Code::UnknownType
        | Code::InvalidTopic
        | Code::InvalidPayload
        | Code::Replayed
        | Code::BadSignature
        | Code::UnknownDevice
        | Code::UnknownScene => StatusCode::BAD_REQUEST,
        Code::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::NotAuthenticated => StatusCode::UNAUTHORIZED,
        Code::NotAuthorized => StatusCode::FORBIDDEN,
        Code::QuotaExceeded | Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::BrokerUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::BrokerRejected => StatusCode::BAD_GATEWAY,
        Code::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Code::Dropped | Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Problem { status, code, detail } = self;
        let title = status.canonical_reason().unwrap_or("Problem");
        let mut body = json!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail});
        if let Some(code) = code {
            body["code"] = json!(code);
        }
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
