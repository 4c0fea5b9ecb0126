//! What one user may do with all of its sessions together.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::access::{Allowance, Rate};
use crate::wire::{Code, Refusal};

const SECOND: Duration = Duration::from_secs(1);
/// Users that are remembered without looking which of them have gone.
const FEW: usize = 1024;

/// The quota of each user who is here.
#[derive(Debug, Default)]
pub struct Quotas(Mutex<Users>);

#[derive(Debug, Default)]
struct Users {
    by_name: HashMap<Box<str>, Arc<Quota>>,
    /// With so many, those who have gone are looked for.
    look_at: usize,
}

/// What one user has done of late; each of its sessions holds it.
#[derive(Debug, Default)]
pub struct Quota(Mutex<Spent>);

#[derive(Debug, Default)]
struct Spent {
    publishes: Option<Rate>,
    bytes: Option<Rate>,
}

impl Quotas {
    /// One more session of this user, if it may have so many; the error says how many those are.
    pub fn enter(&self, user: &str, most: Option<NonZeroUsize>, now: Instant) -> Result<Arc<Quota>, NonZeroUsize> {
        let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let quota = users.quota(user, now);
        // Each session holds it once, and this map does.
        match most {
            Some(most) if Arc::strong_count(quota) > most.get() => Err(most),
            Some(_) | None => Ok(quota.clone()),
        }
    }

    /// Takes a publish of so many bytes, without a session, out of what this user is allowed with all that it has.
    pub fn publish(&self, user: &str, allowance: &Allowance, bytes: usize, now: Instant) -> Result<(), Refusal> {
        if *allowance == Allowance::default() {
            return Ok(());
        }
        let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        users.quota(user, now).publish(allowance, bytes, now)
    }
}

impl Users {
    /// What a user has spent outlasts its sessions: by coming again it would get anew what it may spend.
    fn quota(&mut self, user: &str, now: Instant) -> &Arc<Quota> {
        if self.by_name.len() >= self.look_at.max(FEW) {
            self.by_name.retain(|_, quota| Arc::strong_count(quota) > 1 || !quota.lock().is_unspent(now));
            self.look_at = 2 * self.by_name.len();
        }
        self.by_name.entry(user.into()).or_default()
    }
}

impl Quota {
    /// Takes a publish of so many bytes out of what is allowed.
    pub fn publish(&self, allowance: &Allowance, bytes: usize, now: Instant) -> Result<(), Refusal> {
        let mut spent = self.lock();
        if let Some(most) = allowance.publishes_per_second
            && !rate(&mut spent.publishes, most).take(now)
        {
            return Err(over(format!("{most} messages a second (max_publishes_per_second of its roles)")));
        }
        if let Some(most) = allowance.bytes_per_second
            && !rate(&mut spent.bytes, most).take_many(u32::try_from(bytes).unwrap_or(u32::MAX), now)
        {
            return Err(over(format!("{most} bytes a second (max_bytes_per_second of its roles)")));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Spent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spent {
    /// All that is allowed at one time is there.
    fn is_unspent(&self, now: Instant) -> bool {
        [&self.publishes, &self.bytes].into_iter().flatten().all(|rate| rate.is_full(now))
    }
}

/// Goes on with what was spent, whatever was allowed before: the sessions of a user may have other roles each.
fn rate(rate: &mut Option<Rate>, most: NonZeroU32) -> &mut Rate {
    let rate = rate.get_or_insert_with(|| Rate::new(most, SECOND));
    rate.set(most);
    rate
}

fn over(what: String) -> Refusal {
    Refusal::for_now(Code::RateLimited, format!("A user may publish {what}; send it again later."))
}

/// A user has as many sessions as it may have.
pub fn too_many(most: NonZeroUsize) -> Refusal {
    let message = format!("A user may have {most} sessions (max_connections of its roles); end another first.");
    Refusal::for_now(Code::RateLimited, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowance(publishes: u32, bytes: u32) -> Allowance {
        Allowance {
            publishes_per_second: NonZeroU32::new(publishes),
            bytes_per_second: NonZeroU32::new(bytes),
            ..Allowance::default()
        }
    }

    #[test]
    fn all_sessions_of_a_user_share_what_it_may_publish() {
        let quotas = Quotas::default();
        let [one, other] = [(); 2].map(|()| quotas.enter("anna", None, Instant::now()).expect("no limit"));
        let someone_else = quotas.enter("bob", None, Instant::now()).expect("no limit");
        let (now, two) = (Instant::now(), allowance(2, 0));
        assert!(one.publish(&two, 1, now).is_ok() && other.publish(&two, 1, now).is_ok());
        let refusal = one.publish(&two, 1, now).expect_err("a third");
        assert_eq!((refusal.code, refusal.retryable), (Code::RateLimited, true));
        assert!(someone_else.publish(&two, 1, now).is_ok());
        assert!(other.publish(&two, 1, now + SECOND / 2).is_ok(), "a half of them is there again");
        assert!(one.publish(&allowance(0, 0), 1, now).is_ok(), "without a limit there is none");
    }

    #[test]
    fn bytes_are_counted_and_a_large_message_takes_what_is_to_come() {
        let (quota, now, most) = (Quota::default(), Instant::now(), allowance(0, 100));
        assert!(quota.publish(&most, 60, now).is_ok() && quota.publish(&most, 60, now).is_ok());
        assert!(quota.publish(&most, 1, now).is_err());
        assert!(quota.publish(&most, 1, now + SECOND / 10).is_err(), "twenty were too many");
        assert!(quota.publish(&most, 1000, now + SECOND).is_ok(), "larger than a second's worth, it goes all the same");
        assert!(quota.publish(&most, 1, now + 5 * SECOND).is_err());
        assert!(quota.publish(&most, 1, now + 12 * SECOND).is_ok());
    }

    #[test]
    fn what_is_published_without_a_session_counts_and_makes_none() {
        let (quotas, now, two) = (Quotas::default(), Instant::now(), allowance(2, 0));
        assert!(quotas.publish("anna", &two, 1, now).is_ok());
        let session = quotas.enter("anna", NonZeroUsize::new(1), now).expect("it is the only one");
        assert!(session.publish(&two, 1, now).is_ok());
        assert!(quotas.publish("anna", &two, 1, now).is_err(), "it has spent all");
        assert!(quotas.enter("anna", NonZeroUsize::new(1), now).is_err(), "it has a session");
        drop(session);
        assert!(quotas.enter("anna", NonZeroUsize::new(1), now).is_ok(), "it has none any more");
        for _ in 0..2 {
            assert!(quotas.publish("bob", &two, 1, now).is_ok());
        }
        assert!(quotas.publish("bob", &two, 1, now).is_err());
        assert!(quotas.publish("carl", &Allowance::default(), 1, now).is_ok(), "without a limit there is none");
    }

    #[test]
    fn what_is_spent_stays_spent_when_a_user_leaves_and_comes_again() {
        let (quotas, now, two) = (Quotas::default(), Instant::now(), allowance(2, 10));
        for _ in 0..2 {
            let session = quotas.enter("anna", None, now).expect("no limit");
            assert!(session.publish(&two, 5, now).is_ok());
        }
        let session = quotas.enter("anna", None, now).expect("no limit");
        assert!(session.publish(&two, 0, now).is_err());
        assert!(session.publish(&two, 5, now + SECOND).is_ok());
    }

    #[test]
    fn what_is_spent_with_some_roles_is_spent_with_others() {
        let (quota, now) = (Quota::default(), Instant::now());
        let (small, large, boundless) = (allowance(2, 0), allowance(100, 0), allowance(0, 1));
        assert!(quota.publish(&small, 1, now).is_ok() && quota.publish(&small, 1, now).is_ok());
        for other in [&large, &boundless] {
            let _ = quota.publish(other, 1, now);
            assert!(quota.publish(&small, 1, now).is_err(), "{other:?}");
        }
        assert!(quota.publish(&small, 1, now + SECOND).is_ok());
    }

    #[test]
    fn a_user_has_no_more_sessions_than_its_roles_allow() {
        let (quotas, most) = (Quotas::default(), NonZeroUsize::new(2));
        let one = quotas.enter("anna", most, Instant::now()).expect("the first");
        let _other = quotas.enter("anna", most, Instant::now()).expect("the second");
        assert_eq!(quotas.enter("anna", most, Instant::now()).err(), most);
        assert!(quotas.enter("bob", most, Instant::now()).is_ok());
        drop(one);
        assert!(quotas.enter("anna", most, Instant::now()).is_ok());
    }

    #[test]
    fn users_who_have_gone_and_owe_nothing_are_forgotten() {
        let (quotas, begun) = (Quotas::default(), Instant::now());
        let _stays = quotas.enter("stays", None, begun).expect("no limit");
        for number in 0..10 * FEW as u32 {
            let now = begun + number * SECOND;
            assert!(quotas.publish(&format!("program {number}"), &allowance(1, 0), 1, now).is_ok());
            let _goes = quotas.enter(&format!("user {number}"), None, now);
        }
        let users = quotas.0.lock().expect("nobody panicked");
        assert!(users.by_name.len() <= 2 * FEW && users.by_name.contains_key("stays"), "{}", users.by_name.len());
    }
}
