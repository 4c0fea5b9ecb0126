//! Who may open a WebSocket, who waits for a place, and whose turn it is.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::{Address, Config, Rate, Reason};

/// So much of the new connections of an address may come at once.
const BURST: Duration = Duration::from_secs(BURST_SECONDS.get() as u64);
const BURST_SECONDS: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// Everybody who is in or waits, and the limits they are held to.
///
/// Places are given in the order of arrival: nobody waits while a place is free.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    addresses: HashMap<Address, Visits>,
    inside: usize,
    /// The numbers of those who wait, in the order of arrival and so sorted.
    queue: VecDeque<u64>,
    next: u64,
    sweep_at: Option<Instant>,
}

/// What [`Admission`] takes from the configuration.
#[derive(Clone, Debug)]
struct Limits {
    max: usize,
    max_per_address: usize,
    max_queued: usize,
    /// As an address has it that was never here.
    rate: Rate,
}

/// One WebSocket, in or waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Whose it is.
    pub address: Address,
    /// Its own, in the order of arrival.
    pub number: u64,
}

/// What is known of an address.
#[derive(Debug)]
struct Visits {
    open: usize,
    rate: Rate,
}

impl Admission {
    /// Nobody yet.
    pub fn new(config: &Config) -> Admission {
        Admission {
            limits: Limits::of(config),
            addresses: HashMap::new(),
            inside: 0,
            queue: VecDeque::new(),
            next: 0,
            sweep_at: None,
        }
    }

    /// Lets a WebSocket in, or has it wait: [`position`](Admission::position) tells which. It must [`leave`](Admission::leave).
    pub fn arrive(&mut self, address: Address, now: Instant) -> Result<Visit, Reason> {
        self.sweep(now);
        let limits = &self.limits;
        let visits = self.addresses.entry(address).or_insert_with(|| Visits { open: 0, rate: limits.rate.clone() });
        if visits.open >= limits.max_per_address {
            return Err(Reason::MaxPerAddress);
        }
        let is_full = self.inside >= limits.max;
        if is_full && self.queue.len() >= limits.max_queued {
            return Err(Reason::MaxQueued);
        }
        if !visits.rate.take(now) {
            return Err(Reason::MaxNewPerSecond);
        }
        visits.open += 1;
        let number = self.next;
        self.next += 1;
        if is_full {
            self.queue.push_back(number);
        } else {
            self.inside += 1;
        }
        Ok(Visit { address, number })
    }

    /// Its place in the queue, counted from 1; nothing once it is in.
    pub fn position(&self, visit: Visit) -> Option<usize> {
        self.queue.binary_search(&visit.number).ok().map(|index| index + 1)
    }

    /// The WebSocket has ended, wherever it was. Gives back who comes in for it.
    pub fn leave(&mut self, visit: Visit, now: Instant) -> Option<u64> {
        if let Some(visits) = self.addresses.get_mut(&visit.address) {
            visits.open -= 1;
            if visits.is_forgettable(now) {
                self.addresses.remove(&visit.address);
            }
        }
        self.sweep(now);
        if let Ok(index) = self.queue.binary_search(&visit.number) {
            self.queue.remove(index);
            return None;
        }
        self.inside -= 1;
        self.admit()
    }

    /// From now on these limits hold. Nobody who is in has to leave; gives back who comes in.
    pub fn set_limits(&mut self, config: &Config) -> Vec<u64> {
        self.limits = Limits::of(config);
        for visits in self.addresses.values_mut() {
            visits.rate = self.limits.rate.clone();
        }
        std::iter::from_fn(|| self.admit()).collect()
    }

    /// Those who are in.
    pub fn inside(&self) -> usize {
        self.inside
    }

    /// Those who wait.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    fn admit(&mut self) -> Option<u64> {
        if self.inside >= self.limits.max {
            return None;
        }
        let first = self.queue.pop_front()?;
        self.inside += 1;
        Some(first)
    }

    /// Forgets the addresses that nothing is known of any more, now and then.
    fn sweep(&mut self, now: Instant) {
        if self.sweep_at.is_none_or(|at| now >= at) {
            self.addresses.retain(|_, visits| !visits.is_forgettable(now));
            if self.addresses.len() < self.addresses.capacity() / 4 {
                self.addresses.shrink_to_fit();
            }
            self.sweep_at = Some(now + BURST);
        }
    }
}

impl Limits {
    fn of(config: &Config) -> Limits {
        Limits {
            max: config.max.get(),
            max_per_address: config.max_per_address.get(),
            max_queued: config.max_queued.get(),
            rate: Rate::new(config.max_new_per_second.saturating_mul(BURST_SECONDS), BURST),
        }
    }
}

impl Visits {
    fn is_forgettable(&self, now: Instant) -> bool {
        self.open == 0 && self.rate.is_full(now)
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroUsize};

    use proptest::prelude::*;

    use super::*;

    fn config(max: usize, max_per_address: usize, max_queued: usize, max_new_per_second: u32) -> Config {
        Config {
            max: NonZeroUsize::new(max).expect("not 0"),
            max_per_address: NonZeroUsize::new(max_per_address).expect("not 0"),
            max_queued: NonZeroUsize::new(max_queued).expect("not 0"),
            max_new_per_second: NonZeroU32::new(max_new_per_second).expect("not 0"),
            ..Config::default()
        }
    }

    fn address(number: u8) -> Address {
        Address::of([10, 0, 0, number].into())
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_address_has_so_many_connections_and_others_have_theirs() {
        let now = Instant::now();
        let mut admission = Admission::new(&config(9, 2, 9, 1000));
        let first = admission.arrive(address(1), now).expect("just within");
        admission.arrive(address(1), now).expect("just within");
        assert_eq!(admission.arrive(address(1), now), Err(Reason::MaxPerAddress), "just over");
        admission.arrive(address(2), now).expect("another address");
        admission.leave(first, now);
        admission.arrive(address(1), now).expect("one has left");
        assert_eq!(admission.inside(), 3);
    }

    #[test]
    fn ten_seconds_worth_may_come_at_once_and_are_earned_again() {
        let now = Instant::now();
        let mut admission = Admission::new(&config(999, 999, 9, 3));
        let arrivals = |admission: &mut Admission, now| {
            let mut count = 0;
            while let Ok(visit) = admission.arrive(address(1), now) {
                admission.leave(visit, now);
                count += 1;
            }
            assert_eq!(admission.arrive(address(1), now), Err(Reason::MaxNewPerSecond));
            count
        };
        assert_eq!(arrivals(&mut admission, now), 30);
        assert_eq!(arrivals(&mut admission, now), 0, "none is earned yet");
        assert_eq!(arrivals(&mut admission, now + SECOND), 3, "those of a second");
        assert_eq!(arrivals(&mut admission, now + 60 * SECOND), 30, "never more than ten seconds' worth");
    }

    #[test]
    fn places_are_given_in_the_order_of_arrival() {
        let now = Instant::now();
        let mut admission = Admission::new(&config(1, 9, 3, 1000));
        let inside = admission.arrive(address(1), now).expect("a place");
        let waiting: Vec<Visit> = (0..3).map(|_| admission.arrive(address(2), now).expect("waits")).collect();
        assert_eq!(admission.arrive(address(3), now), Err(Reason::MaxQueued), "just over");
        let positions = |admission: &Admission| waiting.iter().map(|it| admission.position(*it)).collect::<Vec<_>>();
        assert_eq!((admission.position(inside), positions(&admission)), (None, vec![Some(1), Some(2), Some(3)]));

        assert_eq!(admission.leave(waiting[1], now), None, "who leaves the queue frees no place");
        assert_eq!(positions(&admission), [Some(1), None, Some(2)]);
        assert_eq!(admission.leave(inside, now), Some(waiting[0].number));
        assert_eq!(admission.leave(waiting[0], now), Some(waiting[2].number));
        assert_eq!(admission.leave(waiting[2], now), None);
        assert_eq!((admission.inside(), admission.queued()), (0, 0));
    }

    #[test]
    fn limits_may_change_at_any_time() {
        let now = Instant::now();
        let mut admission = Admission::new(&config(1, 9, 9, 1000));
        let visits: Vec<Visit> = (0..4).map(|_| admission.arrive(address(1), now).expect("in or waits")).collect();
        assert_eq!(admission.set_limits(&config(3, 9, 9, 1000)), [visits[1].number, visits[2].number]);
        assert!(admission.set_limits(&config(1, 9, 9, 1000)).is_empty(), "nobody who is in has to leave");
        assert_eq!(admission.leave(visits[0], now), None, "and a place is free below the limit only");
        assert_eq!(admission.leave(visits[1], now), None);
        assert_eq!(admission.leave(visits[2], now), Some(visits[3].number));
    }

    #[test]
    fn an_address_that_left_takes_no_memory() {
        let now = Instant::now();
        let mut admission = Admission::new(&config(999, 9, 9, 1));
        for number in 0..200 {
            let visit = admission.arrive(address(number), now).expect("a place");
            admission.leave(visit, now);
        }
        assert_eq!(admission.addresses.len(), 200, "what it may open is earned again only in time");
        let late = admission.arrive(address(201), now + BURST).expect("a place");
        assert_eq!((admission.addresses.len(), admission.addresses.capacity() < 50), (1, true));
        admission.leave(late, now + 2 * BURST);
        assert_eq!(admission.addresses.len(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arrive(u8),
        Leave(usize),
        Limit(usize),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (0..4u8).prop_map(Step::Arrive),
            4 => (0..50usize).prop_map(Step::Leave),
            1 => (1..6usize).prop_map(Step::Limit),
            1 => (0..3000u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Against a list of everybody in the order of arrival.
        #[test]
        fn whatever_happens_the_books_are_right(steps in prop::collection::vec(step(), 1..120)) {
            let (mut max, mut now) = (3, Instant::now());
            let mut admission = Admission::new(&config(max, 4, 5, 2));
            let mut here: Vec<(Visit, bool)> = Vec::new();
            for step in steps {
                let inside = here.iter().filter(|(_, is_in)| *is_in).count();
                let mut came = Vec::new();
                match step {
                    Step::Arrive(number) => {
                        let own = here.iter().filter(|(visit, _)| visit.address == address(number)).count();
                        match admission.arrive(address(number), now) {
                            Ok(visit) => {
                                prop_assert!(own < 4 && (inside < max || here.len() - inside < 5));
                                here.push((visit, inside < max));
                            }
                            Err(Reason::MaxPerAddress) => prop_assert_eq!(own, 4),
                            Err(Reason::MaxQueued) => prop_assert!(inside >= max && here.len() - inside == 5),
                            Err(reason) => prop_assert_eq!(reason, Reason::MaxNewPerSecond),
                        }
                    }
                    Step::Leave(index) if !here.is_empty() => {
                        let (visit, _) = here.remove(index % here.len());
                        came.extend(admission.leave(visit, now));
                    }
                    Step::Leave(_) => {}
                    Step::Limit(new) => {
                        max = new;
                        came = admission.set_limits(&config(max, 4, 5, 2));
                    }
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                }
                for number in came {
                    let first = here.iter_mut().find(|(_, is_in)| !is_in).expect("somebody waits");
                    prop_assert_eq!(first.0.number, number, "the first in line comes in");
                    first.1 = true;
                }
                let waiting: Vec<Visit> = here.iter().filter(|(_, is_in)| !is_in).map(|(visit, _)| *visit).collect();
                prop_assert_eq!((admission.inside(), admission.queued()), (here.len() - waiting.len(), waiting.len()));
                prop_assert!(waiting.is_empty() || admission.inside() >= max, "nobody waits while a place is free");
                for (index, visit) in waiting.iter().enumerate() {
                    prop_assert_eq!(admission.position(*visit), Some(index + 1));
                }
            }
        }

        #[test]
        fn in_any_time_no_more_come_than_were_earned(pauses in prop::collection::vec(0..900u64, 1..200)) {
            const RATE: u32 = 2;
            let mut now = Instant::now();
            let mut admission = Admission::new(&config(999, 999, 9, RATE));
            let mut came: Vec<Instant> = Vec::new();
            for pause in pauses {
                now += Duration::from_millis(pause);
                if admission.arrive(address(1), now).is_ok() {
                    came.push(now);
                }
                for (index, since) in came.iter().enumerate() {
                    let earned = (now - *since + BURST).as_secs_f64() * f64::from(RATE);
                    prop_assert!((came.len() - index) as f64 <= earned + 1e-6);
                }
            }
        }

        #[test]
        fn whoever_comes_no_faster_than_allowed_is_never_turned_away(rate in 1..5000u32, count in 1..200usize) {
            let mut now = Instant::now();
            let mut admission = Admission::new(&config(999, 999, 9, rate));
            for _ in 0..count {
                prop_assert!(admission.arrive(address(1), now).is_ok());
                now += Duration::from_nanos(1_000_000_000_u64.div_ceil(u64::from(rate)));
            }
        }
    }
}
