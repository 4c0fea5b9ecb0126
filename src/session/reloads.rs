//! Those who want the configuration read again, and what they are told.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

/// Where operators ask for the configuration to be read again, and whoever reads it hears of them.
#[derive(Debug, Default)]
pub struct Reloads {
    waiting: Mutex<Vec<oneshot::Sender<Outcome>>>,
    asked: Notify,
}

/// What became of a configuration that was read again; or what is wrong with it, without any secret.
pub type Outcome = Result<Reloaded, String>;

/// A configuration has been put in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// The settings that are not as they were.
    pub changed: usize,
    /// Those of them that need a restart.
    pub needing_restart: usize,
}

/// Those who had asked before a configuration was read: all of them are told what became of it.
#[derive(Debug)]
#[must_use = "they wait for an answer"]
pub struct Askers(Vec<oneshot::Sender<Outcome>>);

impl Reloads {
    /// Has the configuration read again. Nothing if the gateway ends before it was.
    pub async fn ask(&self) -> Option<Outcome> {
        let (tell, told) = oneshot::channel();
        self.lock().push(tell);
        self.asked.notify_one();
        told.await.ok()
    }

    /// Waits until somebody asks. Safe to drop half-way.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Whoever has asked by now; to be called before the configuration is read.
    pub fn askers(&self) -> Askers {
        Askers(std::mem::take(&mut self.lock()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<oneshot::Sender<Outcome>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Askers {
    /// Tells them.
    pub fn tell(self, outcome: &Outcome) {
        for asker in self.0 {
            // Whoever has gone meanwhile need not know.
            let _ = asker.send(outcome.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn all_who_asked_before_the_configuration_was_read_are_told_what_became_of_it() {
        let reloads = Reloads::default();
        assert!(reloads.asked().now_or_never().is_none());
        let outcome = Ok(Reloaded { changed: 2, needing_restart: 1 });
        let (mut one, mut other) = (Box::pin(reloads.ask()), Box::pin(reloads.ask()));
        assert!((&mut one).now_or_never().is_none() && (&mut other).now_or_never().is_none());
        reloads.asked().await;
        let askers = reloads.askers();
        let mut late = Box::pin(reloads.ask());
        assert!((&mut late).now_or_never().is_none());
        askers.tell(&outcome);
        assert_eq!((one.await, other.await), (Some(outcome.clone()), Some(outcome)));
        assert!((&mut late).now_or_never().is_none(), "it asked too late for that one");
        reloads.asked().await;
        drop(reloads.askers());
        assert_eq!(late.await, None);
    }
}
