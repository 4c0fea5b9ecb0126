//! Connections that have said nothing yet: bounded, and the oldest goes first.

use std::collections::BTreeMap;

/// Those who have said nothing yet, by the order in which they came.
///
/// Over the limit the oldest is let go, as a full listen queue drops its oldest half-open connection: a client that means it is through
/// within a round trip, so those that only hold a place are the oldest.
#[derive(Debug)]
pub struct Newcomers<T> {
    max: usize,
    next: u64,
    by_age: BTreeMap<u64, T>,
}

impl<T> Newcomers<T> {
    /// Nobody, and room for so many.
    pub fn new(max: usize) -> Newcomers<T> {
        Newcomers { max, next: 0, by_age: BTreeMap::new() }
    }

    /// Takes one more, under the number given back; beside it the oldest, if it has to go.
    pub fn add(&mut self, newcomer: T) -> (u64, Option<T>) {
        let number = self.next;
        self.next += 1;
        self.by_age.insert(number, newcomer);
        (number, self.over_limit())
    }

    /// It has spoken, or is gone. False where it was let go before.
    pub fn remove(&mut self, number: u64) -> bool {
        self.by_age.remove(&number).is_some()
    }

    /// From now on there is room for so many; those over it are given back, the oldest first.
    pub fn set_max(&mut self, max: usize) -> Vec<T> {
        self.max = max;
        std::iter::from_fn(|| self.over_limit()).collect()
    }

    fn over_limit(&mut self) -> Option<T> {
        if self.by_age.len() <= self.max {
            return None;
        }
        self.by_age.pop_first().map(|(_, oldest)| oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_the_limit_the_oldest_that_still_says_nothing_goes() {
        let mut newcomers = Newcomers::new(2);
        let (anna, gone) = newcomers.add("anna");
        assert_eq!(gone, None);
        assert_eq!(newcomers.add("ben").1, None, "just within");
        assert!(newcomers.remove(anna), "anna spoke");
        assert_eq!(newcomers.add("cleo").1, None, "her place is free");
        assert_eq!(newcomers.add("dora").1, Some("ben"), "just over");
        assert!(!newcomers.remove(1), "ben was let go");
    }

    #[test]
    fn a_lower_limit_lets_the_oldest_go_at_once() {
        let mut newcomers = Newcomers::new(9);
        for name in ["anna", "ben", "cleo"] {
            newcomers.add(name);
        }
        assert_eq!(newcomers.set_max(1), ["anna", "ben"]);
        assert_eq!(newcomers.set_max(9), Vec::<&str>::new());
    }
}
