//! What an open session may do: judged anew when its client shows a new token, or when somebody outside says so.

use std::future::{pending, poll_fn};
use std::sync::Arc;

use tokio::time::Instant;

use super::{Open, auth_response};
use crate::access::{Credential, Failure, Identity, Rights};
use crate::audit::{Event as Recorded, Request};
use crate::auth;
use crate::broker::{Credentials, Renewal};
use crate::mqtt::Message;
use crate::session::greeting::no_access_control;
use crate::session::guard::{self, Renewing, another_user, expiry, max_subscriptions};
use crate::session::roster::Summons;
use crate::session::socket::Socket;
use crate::wire::{self, Close, MsgId, Refusal, Reply};

impl<S: Socket> Open<'_, S> {
    /// Somebody outside has something to say.
    pub(super) fn on_summons(&mut self, summons: Summons) -> Result<(), Close> {
        match summons {
            Summons::End(close, refusal) => {
                self.peer.refuse(refusal);
                Err(close)
            }
            Summons::Judge => self.judge_anew().map_err(|why| {
                self.peer.refuse(Some(Refusal::new(wire::Code::NotAuthenticated, why)));
                Close::Revoked
            }),
        }
    }

    /// Sees anew who it is and what it may do, by the configuration as it is now; the error says why it may not be here any more.
    fn judge_anew(&mut self) -> Result<(), &'static str> {
        if self.visitor.vouching.as_ref().is_some_and(|is_believed| !is_believed()) {
            return Err("The client certificate is not believed any more.");
        }
        let settings = self.context.settings.load();
        let rights = if settings.judge.is_on() {
            let identity = match self.visitor.rights.load_full() {
                Some(rights) => settings.judge.stands(rights.identity(), rights.client_id(), &self.judged_by),
                None => settings.judge.anonymous(),
            };
            let identity =
                identity.ok_or("The configuration does not let this session go on; connect with a new token.")?;
            Some(Arc::new(Rights::new(settings.policy.clone(), identity, &self.visitor.client_id)))
        } else {
            None
        };
        self.judged_by = settings.judge.clone();
        self.set_rights(rights, self.credentials.clone());
        Ok(())
    }

    /// From now on the session may do that.
    fn set_rights(&mut self, rights: Option<Arc<Rights>>, credentials: Option<Arc<Credentials>>) {
        self.state.set_rights(rights.clone(), max_subscriptions(self.settings, rights.as_deref()));
        self.expiry = rights.as_ref().and_then(|rights| expiry(rights.identity()));
        self.visitor.rights.store(rights.clone());
        self.credentials.clone_from(&credentials);
        self.link.downlink.renew(Renewal { rights, credentials });
    }

    /// A later `auth`: it renews the token, and all else in it is ignored.
    pub(super) fn on_renewal(&mut self, credential: Option<Credential>, msgid: Option<MsgId>) {
        let rights = self.visitor.rights.load_full();
        let (credential, rights) = match (credential, rights) {
            (Some(credential), Some(rights)) => (credential, rights),
            (None, Some(rights)) if rights.identity().user.is_some() => {
                let message = "An `auth` on an open session renews its token: give the new one.";
                let refusal = Refusal::new(wire::Code::NotAuthenticated, message);
                return self.peer.reply(Reply::refused(refusal, msgid));
            }
            (Some(_), None) => return self.peer.reply(Reply::refused(no_access_control(), msgid)),
            (None, _) => return self.peer.reply(auth_response(msgid, None)),
        };
        let visitor = auth::Visitor { address: self.visitor.address, client_id: Some(rights.client_id().to_owned()) };
        // As the configuration is now, and not as it was when the session began.
        let settings = self.context.settings.load_full();
        let patience = self.settings.session.auth_timeout;
        self.renewing = Some(Box::new(Renewing::begin(settings, credential, visitor, msgid, patience)));
    }

    pub(super) fn on_renewed(&mut self, judged: Result<Identity, Failure>) {
        let Some(renewing) = self.renewing.take() else { return };
        let Renewing { msgid, token, credential, settings, .. } = *renewing;
        let refusal = match (judged, self.visitor.rights.load_full()) {
            (Err(failure), _) => {
                guard::note_failure(self.context, self.visitor.address, &credential, &failure);
                guard::refusal(&failure)
            }
            // Access control was turned off meanwhile.
            (Ok(_), None) => no_access_control(),
            (Ok(identity), Some(rights)) if identity.user != rights.identity().user => another_user(),
            (Ok(identity), Some(rights)) => {
                match self.context.broker.names(Some(&identity), rights.client_id(), token.as_ref()) {
                    Err(lacking) => {
                        let message = format!("The broker is to be told the {lacking}, which the token does not say.");
                        Refusal::new(wire::Code::NotAuthenticated, message)
                    }
                    Ok((_, credentials)) => {
                        let expires_in = expiry(&identity).map(|expiry| expiry.left(Instant::now()));
                        self.peer.reply(auth_response(msgid, expires_in));
                        let session = &self.visitor.session();
                        self.context.audit.record(&Recorded::Renewed { session, identity: &identity });
                        let now = self.context.settings.load();
                        let rights = Rights::new(now.policy.clone(), identity, rights.client_id());
                        self.judged_by = settings.judge.clone();
                        if !Arc::ptr_eq(&now, &settings) {
                            // Whoever let it in may not be there any more.
                            self.visitor.summon(Summons::Judge);
                        }
                        self.set_rights(Some(Arc::new(rights)), credentials);
                        // One that was made since the token was judged may have missed it.
                        return self.visitor.judge_revocations(self.context);
                    }
                }
            }
        };
        self.peer.reply(Reply::refused(refusal, msgid));
    }

    pub(super) fn note_publish(&self, message: &Message) {
        if self.context.audit.covers(&message.topic) {
            let (session, user) = (&self.visitor.session(), self.visitor.user());
            self.context.audit.record(&Recorded::Published { session, user: user.as_deref(), message });
        }
    }

    pub(super) fn note_denied(&self, request: Request, topic: &str, why: &str) {
        let (session, user) = (self.visitor.session(), self.visitor.user());
        let (session, user, topic) = (Some(&*session), user.as_deref(), Some(topic));
        self.context.audit.record(&Recorded::Refused { session, user, address: None, request, topic, why });
    }
}

/// Resolves when a new token is judged, if one is being judged.
pub(super) async fn judged(renewing: &mut Option<Box<Renewing>>) -> Result<Identity, Failure> {
    match renewing {
        Some(renewing) => poll_fn(|context| renewing.poll(context)).await,
        None => pending().await,
    }
}
