//! Shutting somebody out: from now on nobody comes in as that, and the sessions that are open end, here and at the broker.

use std::io;

use super::roster::{Summons, Visitor};
use super::{Context, guard};
use crate::access::revocations::{NotTaken, Revocation};
use crate::access::{Failure, Identity};
use crate::audit::Event;
use crate::wire::{Close, Refusal};

/// Somebody is shut out.
#[derive(Debug)]
pub struct Shut {
    /// The sessions that end by it.
    pub sessions: usize,
    /// Whether the revocation holds over a restart too.
    pub kept: io::Result<()>,
}

impl Context {
    /// Shuts somebody out, as somebody wants it. Waits for the disk.
    pub fn revoke(&self, revocation: Revocation, by: &str) -> Result<Shut, NotTaken> {
        let Revocation { subject, until } = revocation.clone();
        let kept = self.revoked.add(revocation);
        if let Err(error) = &kept
            && let Some(not_taken) = error.get_ref().and_then(|error| error.downcast_ref::<NotTaken>())
        {
            return Err(*not_taken);
        }
        let is_meant = |visitor: &Visitor| {
            let rights = visitor.rights.load();
            subject.is(rights.as_ref().map(|rights| rights.identity()), &visitor.client_id)
        };
        // Whoever is not in the roster yet sees the revocation when it is.
        let sessions = self.roster.summon(is_meant, || Summons::End(Close::Revoked, Some(refusal(until))));
        self.audit.record(&Event::Revoked { by, what: &subject.to_string(), until: Some(until), sessions });
        Ok(Shut { sessions, kept })
    }

    /// Why somebody may not be here, if it was shut out.
    pub fn shut_out(&self, identity: Option<&Identity>, client_id: &str) -> Option<Refusal> {
        let judged = match identity {
            Some(identity) => self.revoked.judge(identity, Some(client_id)),
            None => self.revoked.judge(&Identity::anonymous(&[]), Some(client_id)),
        };
        judged.map(|revocation| refusal(revocation.until))
    }
}

impl Visitor {
    /// Sees to it that the session ends if it was shut out a moment ago, while it was not to be found.
    pub fn judge_revocations(&self, context: &Context) {
        let rights = self.rights.load();
        if let Some(refusal) = context.shut_out(rights.as_ref().map(|rights| rights.identity()), &self.client_id) {
            self.summon(Summons::End(Close::Revoked, Some(refusal)));
        }
    }
}

/// As it is told to whoever comes later.
fn refusal(until: u64) -> Refusal {
    guard::refusal(&Failure::Refused(format!("revoked until {until} (Unix time)")))
}
