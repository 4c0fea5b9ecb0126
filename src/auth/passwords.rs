//! Users with a password, of which the configuration has an Argon2 hash.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, PasswordHash};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::config;
use crate::access::identity::{Claims, is_name, names};
use crate::access::{Failure, Identity, Source};

/// The most memory that checking a password may take, in KiB, and the most passes over it. One check with both takes about as long as a
/// session may take to say who it is; what a slip of the pen asks for beyond that would hold up everybody.
const MAX_MEMORY: u32 = 1 << 20;
const MAX_PASSES: u32 = 64;
/// The most passwords that wait for each one that is being checked. At the usual cost of a hash they are through in less than a second.
const QUEUED_EACH: usize = 32;
/// How long a password waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// The Argon2 hash of a password, as a PHC string.
#[derive(Clone)]
pub struct Hash {
    phc: Arc<str>,
    /// What a check costs: KiB of memory, times passes over it.
    cost: u64,
}

impl Hash {
    /// Hashes a password, with a salt of its own.
    pub fn of(password: &SecretString) -> Result<String, String> {
        let hash = Argon2::default().hash_password(password.expose_secret().as_bytes());
        hash.map(|hash| hash.to_string()).map_err(|error| format!("the password can't be hashed: {error}"))
    }

    /// Reads a hash as the configuration has it. A refusal is what follows the setting's name.
    pub fn parse(text: &SecretString) -> Result<Hash, String> {
        const FORM: &str = "is no hash of a password: `tidegate hash password` makes one, `$argon2id$…`";
        let phc = text.expose_secret();
        let hash = PasswordHash::new(phc).map_err(|_| FORM)?;
        let is_argon2 = Algorithm::try_from(hash.algorithm.as_str()).is_ok();
        if !is_argon2 || hash.salt.is_none() || hash.hash.is_none() {
            return Err(FORM.to_owned());
        }
        let params = Params::try_from(&hash).map_err(|_| FORM)?;
        let (memory, passes) = (params.m_cost(), params.t_cost());
        if memory > MAX_MEMORY || passes > MAX_PASSES {
            return Err(format!(
                "takes {passes} passes over {memory} KiB for each check: at most {MAX_PASSES} over {MAX_MEMORY}"
            ));
        }
        Ok(Hash { phc: phc.into(), cost: u64::from(memory) * u64::from(passes) })
    }

    /// Whether this is the password. Takes its time on purpose, and memory.
    fn is_of(&self, password: &SecretString) -> bool {
        let hash = PasswordHash::new(&self.phc).expect("a hash was parsed when it was read");
        Argon2::default().verify_password(password.expose_secret().as_bytes(), &hash).is_ok()
    }
}

/// All users.
pub struct Passwords {
    users: HashMap<String, User>,
    /// What the password of a user that nobody knows is checked against, in vain: the time tells nothing of who there is.
    decoy: Hash,
    /// A place for each password that is checked or waits for that.
    queue: Semaphore,
    /// A place for each password that is checked.
    checks: Arc<Semaphore>,
    patience: Duration,
}

struct User {
    hash: Hash,
    identity: Identity,
}

impl Passwords {
    /// Those of a configuration that was checked; nothing where it has none. So many are checked at a time.
    pub fn new(users: &BTreeMap<String, config::User>, checks: Option<NonZeroUsize>) -> Option<Passwords> {
        let users: HashMap<_, _> =
            users.iter().filter_map(|(name, user)| Some((name.clone(), known(name, user)?))).collect();
        // The costliest, so that it takes no less time than any other.
        let decoy = users.values().map(|user| &user.hash).max_by_key(|hash| hash.cost)?.clone();
        let checks = checks.or_else(|| available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        Some(Passwords {
            users,
            decoy,
            queue: Semaphore::new(checks * (1 + QUEUED_EACH)),
            checks: Arc::new(Semaphore::new(checks)),
            patience: PATIENCE,
        })
    }

    /// Whether there is such a user.
    pub fn know(&self, user: &str) -> bool {
        self.users.contains_key(user)
    }

    /// Who the user of this name is, if the password is the same as among those.
    pub fn still(&self, name: &str, those: &Passwords) -> Option<&Identity> {
        let (now, then) = (self.users.get(name)?, those.users.get(name)?);
        (now.hash.phc == then.hash.phc).then_some(&now.identity)
    }

    /// Checks a password. For a user that is not there it does the same work, and says the same.
    pub async fn check(&self, user: &str, password: &SecretString) -> Result<Identity, Failure> {
        if !is_name(user) {
            return Err(refused());
        }
        let user = self.users.get(user);
        let hash = user.map_or(&self.decoy, |user| &user.hash);
        let is_right = self.is_of(hash.clone(), password.clone()).await?;
        user.filter(|_| is_right).map(|user| user.identity.clone()).ok_or_else(refused)
    }

    /// Waits for a turn, and for the work. What was begun keeps its place until it is done, whoever still waits for it.
    async fn is_of(&self, hash: Hash, password: SecretString) -> Result<bool, Failure> {
        let Ok(_queued) = self.queue.try_acquire() else {
            return Err(busy());
        };
        let Ok(Ok(place)) = timeout(self.patience, self.checks.clone().acquire_owned()).await else {
            return Err(busy());
        };
        let work = spawn_blocking(move || {
            let _place = place;
            hash.is_of(&password)
        });
        work.await.map_err(|_| busy())
    }
}

fn known(name: &str, user: &config::User) -> Option<User> {
    let hash = Hash::parse(user.hash.as_ref()?).ok()?;
    let identity = Identity {
        user: Some(name.into()),
        source: Source::Password,
        roles: names(&user.roles),
        groups: names(&user.groups),
        claims: Claims::of(&user.claims),
        token_id: None,
        expires: None,
    };
    Some(User { hash, identity })
}

fn refused() -> Failure {
    Failure::Refused("the user or the password is wrong".to_owned())
}

fn busy() -> Failure {
    Failure::Unavailable("too many passwords are being checked (auth.max_password_checks); try again".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;

    const PASSWORD: &str = "correct horse";

    /// A hash that costs next to nothing, or as much as these passes.
    fn hashed(password: &str, passes: u32) -> SecretString {
        let params = Params::new(64, passes, 1, None).expect("sound");
        let hash = Argon2::from(params).hash_password(password.as_bytes()).expect("hashed");
        hash.to_string().into()
    }

    fn user(hash: SecretString) -> config::User {
        config::User { hash: Some(hash), roles: vec!["viewer".to_owned()], ..config::User::default() }
    }

    fn passwords(checks: usize, users: impl IntoIterator<Item = (&'static str, SecretString)>) -> Passwords {
        let users = users.into_iter().map(|(name, hash)| (name.to_owned(), user(hash))).collect();
        Passwords::new(&users, NonZeroUsize::new(checks)).expect("there are some")
    }

    fn secret(text: &str) -> SecretString {
        text.into()
    }

    #[tokio::test]
    async fn a_user_comes_in_with_its_password_and_no_other() {
        let all = passwords(1, [("anna", hashed(PASSWORD, 1)), ("bert", hashed("another", 1))]);
        let anna = all.check("anna", &secret(PASSWORD)).await.expect("let in");
        assert_eq!(
            (anna.user.as_deref(), anna.source, &*anna.roles),
            (Some("anna"), Source::Password, &*names(&["viewer"]))
        );
        for (name, password) in [
            ("anna", "another"),
            ("anna", ""),
            ("anna", "correct horse "),
            ("bert", PASSWORD),
            ("carl", PASSWORD),
            ("", PASSWORD),
        ] {
            assert_eq!(all.check(name, &secret(password)).await, Err(refused()), "{name} {password:?}");
        }
        assert!(all.know("anna") && !all.know("carl") && !all.know("Anna"));
    }

    #[tokio::test]
    async fn a_user_that_is_not_there_costs_the_work_of_the_costliest_and_gets_the_same_answer() {
        let all = passwords(1, [("anna", hashed("cheap", 1)), ("bert", hashed("costly", 5))]);
        assert!(all.decoy.phc.contains("t=5"), "{}", all.decoy.phc);
        // Not even the password of the decoy opens the door.
        assert_eq!(all.check("carl", &secret("costly")).await, Err(refused()));
        assert_eq!(all.check("anna", &secret("costly")).await, Err(refused()));
        assert!(all.check("bert", &secret("costly")).await.is_ok());
        // Where no work can be done, neither gets an answer.
        all.checks.close();
        for name in ["anna", "carl"] {
            let judged = all.check(name, &secret("cheap")).await;
            assert_eq!(judged, Err(busy()), "{name} needs a place for the work");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn so_many_passwords_are_checked_at_a_time_and_so_many_wait() {
        let all = Arc::new(passwords(2, [("anna", hashed(PASSWORD, 1))]));
        let held: Vec<_> = (0..2).map(|_| all.checks.clone().try_acquire_owned().expect("free")).collect();
        let unavailable = Arc::new(AtomicUsize::new(0));
        let more = 5;
        let asking: Vec<_> = (0..2 * (1 + QUEUED_EACH) + more)
            .map(|_| {
                let (all, unavailable) = (all.clone(), unavailable.clone());
                tokio::spawn(async move {
                    let judged = all.check("anna", &secret(PASSWORD)).await;
                    unavailable.fetch_add(usize::from(judged == Err(busy())), Ordering::Relaxed);
                    judged.is_ok()
                })
            })
            .collect();
        let deadline = Instant::now() + Duration::from_secs(10);
        while unavailable.load(Ordering::Relaxed) < more && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(unavailable.load(Ordering::Relaxed), more, "those over the queue are told at once");
        drop(held);
        let mut let_in = 0;
        for one in asking {
            let_in += usize::from(one.await.expect("no panic"));
        }
        assert_eq!(let_in, 2 * (1 + QUEUED_EACH), "all that waited come in");
    }

    #[tokio::test]
    async fn who_waits_too_long_for_its_turn_is_told_and_a_place_is_free_again() {
        let all = Passwords { patience: Duration::from_millis(20), ..passwords(1, [("anna", hashed(PASSWORD, 1))]) };
        let held = all.checks.clone().acquire_owned().await.expect("open");
        assert_eq!(all.check("anna", &secret(PASSWORD)).await, Err(busy()));
        drop(held);
        assert!(all.check("anna", &secret(PASSWORD)).await.is_ok());
        assert_eq!((all.queue.available_permits(), all.checks.available_permits()), (1 + QUEUED_EACH, 1));
    }

    #[tokio::test]
    async fn work_that_was_begun_keeps_its_place_when_nobody_waits_for_it() {
        let all = Arc::new(passwords(1, [("anna", hashed(PASSWORD, 60))]));
        // The first poll hands the work on; then its session is gone.
        let asked = all.clone();
        let mut asking = Box::pin(async move { asked.check("anna", &secret("wrong")).await });
        assert!(futures_util::poll!(asking.as_mut()).is_pending());
        drop(asking);
        let place = timeout(Duration::from_secs(10), all.checks.acquire()).await;
        assert!(place.is_ok(), "the place comes back with the end of the work");
    }

    #[test]
    fn a_hash_that_is_none_or_takes_too_much_is_refused() {
        let phc = |params: &str| {
            format!("$argon2id$v=19${params}$c29tZXNhbHRzb21lc2FsdA$Yk0Wo0MbYfkmGqUMjEbkUYz4RlPLWNVHqHGxiU9cGfM")
        };
        let parsed = |text: &str| Hash::parse(&secret(text)).map(|hash| hash.cost);
        assert_eq!(parsed(&phc("m=19456,t=2,p=1")), Ok(2 * 19456));
        assert_eq!(parsed(&phc("m=1048576,t=64,p=1")), Ok(64 << 20));
        for (text, excerpt) in [
            (phc("m=1048577,t=2,p=1"), "at most 64 over 1048576"),
            (phc("m=19456,t=65,p=1"), "at most 64 over 1048576"),
            (phc("m=1,t=1,p=1"), "tidegate hash password"),
            (phc("m=19456,t=2,p=1").replace("argon2id", "scrypt"), "tidegate hash password"),
            ("$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA".to_owned(), "tidegate hash password"),
            ("$argon2id$v=19$m=19456,t=2,p=1".to_owned(), "tidegate hash password"),
            ("hunter2".to_owned(), "tidegate hash password"),
            (String::new(), "tidegate hash password"),
        ] {
            let refusal = parsed(&text).expect_err(&text);
            assert!(refusal.contains(excerpt) && !refusal.contains("hunter2"), "{text}: {refusal}");
        }
    }

    #[test]
    fn a_password_is_hashed_with_a_salt_of_its_own() {
        let [one, other] = [(); 2].map(|()| Hash::of(&secret(PASSWORD)).expect("hashed"));
        assert!(one.starts_with("$argon2id$") && one != other);
        assert!(Hash::parse(&secret(&one)).expect("a hash").is_of(&secret(PASSWORD)));
    }
}
