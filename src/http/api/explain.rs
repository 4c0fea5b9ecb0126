//! Why?: what somebody may do, and by which rule.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Problem;
use super::body::{self, MAX_BODY};
use super::sessions::ShownIdentity;
use crate::access::identity::{Claims, is_name, names};
use crate::access::{Action, Credential, Identity, Source};
use crate::http::serving::Peer;
use crate::mqtt::Qos;
use crate::session::Context;
use crate::session::explaining::{Answer, Question, Wanted, Who, explain};
use crate::wire::json::{filter, topic};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Asked {
    token: Option<SecretString>,
    user: Option<Box<str>>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    claims: Map<String, Value>,
    client_id: Option<String>,
    action: Action,
    topic: String,
    #[serde(default)]
    qos: u64,
    #[serde(default)]
    retain: bool,
}

/// Answers as a session would be answered that opens now.
pub async fn answer(
    State(context): State<Arc<Context>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Problem> {
    let asked: Asked = body::parse(&body::read(request, MAX_BODY).await?)?;
    let question = asked.question()?;
    let settings = context.settings.load_full();
    let levels = settings.wire.max_topic_levels.get();
    let Answer { identity, qos, why } =
        explain(&settings.judge, &settings.policy, levels, peer.address, question).await;
    let mut body = json!({"allowed": qos.is_some(), "message": why});
    if let Some(qos) = qos {
        body["qos"] = json!(qos.number());
    }
    if let Some(identity) = &identity {
        body["identity"] = json!(ShownIdentity::from(identity));
    }
    Ok(Json(body).into_response())
}

impl Asked {
    fn question(self) -> Result<Question, Problem> {
        let qos = Qos::from_number(self.qos).ok_or_else(|| Problem::bad_request("`qos` must be 0, 1 or 2."))?;
        let wanted = match self.action {
            Action::Publish => Wanted::Publish { topic: topic(&self.topic)?, qos, retain: self.retain },
            Action::Subscribe if self.retain => {
                return Err(Problem::bad_request("`retain` is for publishes; leave it out."));
            }
            Action::Subscribe => Wanted::Subscribe { filter: filter(&self.topic)?, qos },
        };
        let is_described = !self.roles.is_empty() || !self.groups.is_empty() || !self.claims.is_empty();
        let who = match (self.token, self.user) {
            (Some(_), Some(_)) => {
                return Err(Problem::bad_request("Give a `token`, or a `user` with what a token would say, not both."));
            }
            (_, None) if is_described => {
                return Err(Problem::bad_request("`roles`, `groups` and `claims` are those of a `user`; name it."));
            }
            (Some(token), None) => Who::Shows(Credential::Token(token)),
            (None, None) => Who::Anonymous,
            (None, Some(user)) if !is_name(&user) => {
                return Err(Problem::bad_request("`user` must be 1 to 256 bytes without control characters."));
            }
            (None, Some(user)) => Who::Is(Identity {
                user: Some(user),
                source: Source::Token,
                roles: names(&self.roles),
                groups: names(&self.groups),
                claims: Claims::of(&self.claims),
                token_id: None,
                expires: None,
            }),
        };
        Ok(Question { who, client_id: self.client_id, wanted })
    }
}
