//! Who a session is: judged before it opens, and again when its client shows a new token.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant as StdInstant, SystemTime};

use secrecy::SecretString;
use tokio::select;
use tokio::time::{Instant, timeout_at};

use super::expiry::Expiry;
use super::greeting::{Door, Greeted, greet, no_access_control};
use super::quota::{Quota, too_many};
use super::run::{Arrival, Context, Peer, Settings, generated_client_id, let_go};
use super::socket::Socket;
use super::state::{InvalidFrames, judge_levels};
use crate::access::{Credential, Failure, Identity, Reason, Rights, Source};
use crate::audit::{Event, Request};
use crate::auth::Visitor;
use crate::wire::{Auth, Close, Code, Login, MsgId, Refusal, Reply, Secret};

/// A credential that came with the handshake.
#[derive(Clone, Debug)]
pub struct Presented {
    /// What is shown.
    pub credential: Credential,
    /// The browser or the network shows it by itself, whoever's page it is: one that the page gives takes its place.
    pub is_ambient: bool,
}

/// Says whether a client certificate is still believed: authorities and lists of revoked certificates change.
pub type Vouching = Arc<dyn Fn() -> bool + Send + Sync>;

/// A session that may open.
pub struct Greeting<T> {
    /// How.
    pub auth: Box<Auth>,
    /// An `auth` was sent, so it is answered, with this msgid.
    pub answer: Option<Option<MsgId>>,
    /// A first frame that is to be served after the welcome.
    pub first: Option<T>,
    /// Whose.
    pub guest: Guest,
}

/// Whoever opens a session.
pub struct Guest {
    /// What its client calls itself, or is called.
    pub client_id: String,
    /// What it may do; nothing where there is no access control.
    pub rights: Option<Arc<Rights>>,
    /// The token, for a broker that is shown it.
    pub token: Option<SecretString>,
    /// What its user may still do, with all of its sessions.
    pub quota: Arc<Quota>,
}

struct Known {
    identity: Identity,
    token: Option<SecretString>,
    is_ambient: bool,
}

/// Waits for the first frame that opens the session, or for the silence that does.
pub async fn greeted<S: Socket>(
    peer: &mut Peer<S>,
    context: &Context,
    settings: &Settings,
    arrival: &mut Arrival,
) -> Result<Greeting<S::Text>, Close> {
    let until = Instant::now() + settings.session.auth_timeout;
    let mut newcomer = arrival.newcomer.take();
    let mut known = match arrival.credential.take() {
        None => None,
        Some(_) if !settings.judge.is_on() => {
            peer.reply(Reply::refused(no_access_control(), None));
            return Err(Close::AuthenticationFailed);
        }
        Some(Presented { credential, is_ambient }) => {
            let known = check(peer, context, settings, until, (arrival.client, None), &credential, None).await?;
            Some(Known { is_ambient, ..known })
        }
    };
    let door = match &known {
        _ if !settings.judge.is_on() => Door::Unguarded,
        Some(_) => Door::Known,
        None if settings.judge.anonymous().is_some() => Door::Open,
        None => Door::Closed,
    };
    let mut invalid = InvalidFrames::default();
    loop {
        let text = select! {
            text = timeout_at(until, peer.text()) => text.ok().transpose()?,
            () = let_go(newcomer.as_deref()) => return Err(peer.turn_away(Reason::MaxUnauthenticated)),
            () = context.closing.cancelled() => return Err(Close::Drain),
        };
        newcomer = None;
        let (auth, answer, serve) = match greet(text.as_ref().map(AsRef::as_ref), door) {
            Greeted::Open { auth, answer, serve } => (auth, answer, serve),
            Greeted::Judge(auth, msgid) => {
                let credential = credential_of(&auth).expect("it has one, or it would not be judged");
                let visitor = (arrival.client, auth.client_id.clone());
                let now_known = check(peer, context, settings, until, visitor, &credential, msgid.clone()).await?;
                let is_another =
                    |earlier: &Known| !earlier.is_ambient && earlier.identity.user != now_known.identity.user;
                if known.as_ref().is_some_and(is_another) {
                    peer.reply(Reply::refused(another_user(), msgid));
                    return Err(Close::AuthenticationFailed);
                }
                known = Some(now_known);
                (auth, Some(msgid), false)
            }
            Greeted::Again(refusal, msgid) => {
                let too_many = invalid.count(refusal.code);
                peer.reply(Reply::refused(refusal, msgid));
                too_many?;
                continue;
            }
            Greeted::Refused(reply, close) => {
                if let Reply::Error { message, .. } = &reply {
                    let (session, user, topic) = (None, None, None);
                    let (address, request, why) = (Some(arrival.client), Request::Open, message.as_str());
                    context.audit.record(&Event::Refused { session, user, address, request, topic, why });
                }
                peer.reply(reply);
                return Err(close);
            }
        };
        let known_as = known.as_ref().map(|known| known.identity.clone());
        let identity = known_as.or_else(|| settings.judge.anonymous()).filter(|_| settings.judge.is_on());
        let client_id = auth.client_id.clone().unwrap_or_else(generated_client_id);
        let rights = identity.map(|identity| Arc::new(Rights::new(settings.policy.clone(), identity, &client_id)));
        match judge(&auth, context, settings, rights.as_deref()) {
            Ok(()) => {
                let quota = quota(context, rights.as_deref()).map_err(|most| {
                    peer.reply(Reply::refused(too_many(most), answer.clone().flatten()));
                    Close::OverLimit
                })?;
                let token = known.and_then(|known| known.token);
                let first = text.filter(|_| serve);
                let guest = Guest { client_id, rights, token, quota };
                return Ok(Greeting { auth, answer, first, guest });
            }
            Err(refusal) => {
                let will = auth.will.as_ref().filter(|_| refusal.code == Code::NotAuthorized);
                if let Some(will) = will {
                    let user = rights.as_ref().and_then(|rights| rights.identity().user.as_deref());
                    let (topic, why) = (Some(will.message.topic.as_ref()), refusal.message.as_ref());
                    let (session, address, request) = (None, Some(arrival.client), Request::Will);
                    context.audit.record(&Event::Refused { session, user, address, request, topic, why });
                }
                peer.reply(Reply::refused(refusal, answer.flatten()));
            }
        }
    }
}

/// Judges a credential before the session is open: a bad one ends it.
async fn check<S: Socket>(
    peer: &mut Peer<S>,
    context: &Context,
    settings: &Settings,
    until: Instant,
    (address, client_id): (IpAddr, Option<String>),
    credential: &Credential,
    msgid: Option<MsgId>,
) -> Result<Known, Close> {
    let visitor = Visitor { address, client_id };
    let checked = select! {
        checked = timeout_at(until, settings.judge.check(credential, &visitor)) => checked,
        () = peer.gone() => return Err(Close::Lost),
        () = context.closing.cancelled() => return Err(Close::Drain),
    };
    let failure = match checked {
        Ok(Ok(identity)) => {
            let token = token_of(credential);
            return Ok(Known { identity, token, is_ambient: false });
        }
        Ok(Err(failure)) => failure,
        Err(_) => Failure::Unavailable("the credential could not be judged in time (session.auth_timeout)".to_owned()),
    };
    note_failure(context, address, credential, &failure);
    peer.reply(Reply::refused(refusal(&failure), msgid));
    Err(close(&failure))
}

/// Has it recorded that a credential was not taken.
pub fn note_failure(context: &Context, address: IpAddr, credential: &Credential, failure: &Failure) {
    let (source, user) = match credential {
        Credential::Token(_) => (None, None),
        Credential::Password { user, .. } => (Some(Source::Password), Some(user.as_str())),
        Credential::Certificate(_) => (Some(Source::Certificate), None),
    };
    context.audit.record(&Event::AuthenticationFailed { address, source, user, failure });
}

/// A place among the sessions of its user; whoever is nobody stands alone.
fn quota(context: &Context, rights: Option<&Rights>) -> Result<Arc<Quota>, NonZeroUsize> {
    match rights.and_then(|rights| Some((rights.identity().user.as_deref()?, rights))) {
        None => Ok(Arc::default()),
        Some((user, rights)) => context.quotas.enter(user, rights.allowance().connections, StdInstant::now()),
    }
}

/// The limits that an `auth` is held to, and the will.
fn judge(auth: &Auth, context: &Context, settings: &Settings, rights: Option<&Rights>) -> Result<(), Refusal> {
    let levels = settings.wire.max_topic_levels.get();
    let filters = auth.subscriptions.iter().map(|subscription| subscription.filter.as_str());
    let topics = auth.will.iter().map(|will| will.message.topic.as_ref());
    filters.chain(topics).try_for_each(|topic| judge_levels(topic, levels))?;
    let max = max_subscriptions(settings, rights);
    if auth.subscriptions.len() > max {
        let message = format!("A session may have {max} subscriptions (session.max_subscriptions); ask for fewer.");
        return Err(Refusal::new(Code::QuotaExceeded, message));
    }
    let Some(will) = &auth.will else { return Ok(()) };
    rights.map_or(Ok(()), |rights| rights.publish(&will.message))?;
    context.broker.judge_will(&will.message)
}

/// The most subscriptions of a session: as its roles say, or else as all may have.
pub fn max_subscriptions(settings: &Settings, rights: Option<&Rights>) -> usize {
    let of_roles = rights.and_then(|rights| rights.allowance().subscriptions);
    of_roles.unwrap_or(settings.session.max_subscriptions).get()
}

/// What an `auth` shows.
pub fn credential_of(auth: &Auth) -> Option<Credential> {
    match (&auth.token, &auth.login) {
        (Some(Secret(token)), _) => Some(Credential::Token(token.clone())),
        (None, Some(Login { username, password: Secret(password) })) => {
            Some(Credential::Password { user: username.clone(), password: password.clone() })
        }
        (None, None) => None,
    }
}

/// What a broker may be shown of it.
fn token_of(credential: &Credential) -> Option<SecretString> {
    match credential {
        Credential::Token(token) => Some(token.clone()),
        Credential::Password { password, .. } => Some(password.clone()),
        Credential::Certificate(_) => None,
    }
}

/// What a client hears of a credential that is not taken.
pub fn refusal(failure: &Failure) -> Refusal {
    let sentence = format!("Not authenticated: {failure}.");
    match failure {
        Failure::Expired | Failure::NotYetValid | Failure::Refused(_) => Refusal::new(Code::NotAuthenticated, sentence),
        Failure::Unavailable(_) => Refusal::for_now(Code::NotAuthenticated, sentence),
    }
}

fn close(failure: &Failure) -> Close {
    match failure {
        Failure::Expired | Failure::NotYetValid => Close::TokenExpired,
        Failure::Refused(_) => Close::AuthenticationFailed,
        Failure::Unavailable(_) => Close::Fault,
    }
}

/// A session stays with whom it began.
pub fn another_user() -> Refusal {
    let message = "This session belongs to another user; open another connection for this token.";
    Refusal::new(Code::NotAuthenticated, message)
}

/// When the token of an identity ends.
pub fn expiry(identity: &Identity) -> Option<Expiry> {
    let unix_now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    identity.expires.map(|end| Expiry::new(end, unix_now, Instant::now()))
}

/// A new token that is being judged while the session goes on.
pub struct Renewing {
    /// As in the frame that is answered.
    pub msgid: Option<MsgId>,
    /// For a broker that is shown it.
    pub token: Option<SecretString>,
    /// What is judged.
    pub credential: Arc<Credential>,
    /// By what the configuration was when it came.
    pub settings: Arc<Settings>,
    judging: Pin<Box<dyn Future<Output = Result<Identity, Failure>> + Send>>,
}

impl Renewing {
    /// Begins to judge, for as long as that may take.
    pub fn begin(
        settings: Arc<Settings>,
        credential: Credential,
        visitor: Visitor,
        msgid: Option<MsgId>,
        patience: Duration,
    ) -> Renewing {
        let token = token_of(&credential);
        let judge = settings.judge.clone();
        let until = Instant::now() + patience;
        let credential = Arc::new(credential);
        let judged = credential.clone();
        let judging = Box::pin(async move {
            timeout_at(until, judge.check(&judged, &visitor)).await.unwrap_or_else(|_| {
                let why = "the token could not be judged in time (session.auth_timeout)";
                Err(Failure::Unavailable(why.to_owned()))
            })
        });
        Renewing { msgid, token, credential, settings, judging }
    }

    /// Resolves when it is judged. Safe to drop half-way.
    pub fn poll(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<Identity, Failure>> {
        self.judging.as_mut().poll(context)
    }
}
