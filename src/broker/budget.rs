//! The memory that the outboxes of all sessions share.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::metrics;

/// Sessions are charged in steps of so many bytes, so that few deliveries touch what all share.
const STEP: usize = 16 * 1024;
/// What a session may hold without a charge: a few deliveries that are taken at once.
const UNCHARGED: usize = 4 * 1024;

/// What all sessions hold for their browsers.
#[derive(Debug, Default)]
pub struct Budget {
    used: AtomicUsize,
}

impl Budget {
    /// What is left of that many bytes for all.
    pub fn left_of(&self, total: usize) -> usize {
        total.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    /// A session that was charged so much holds so many bytes now; gives back what it is charged from here on.
    pub fn charge(&self, charged: usize, held: usize) -> usize {
        let due = due(charged, held);
        if due > charged {
            self.used.fetch_add(due - charged, Ordering::Relaxed);
        } else if due < charged {
            self.used.fetch_sub(charged - due, Ordering::Relaxed);
        }
        if due != charged {
            metrics::outbox_bytes_changed(charged, due);
        }
        due
    }
}

/// At least what is held, but for a little; and at most two steps more, so that what goes up and down within one costs nothing.
fn due(charged: usize, held: usize) -> usize {
    if held <= UNCHARGED {
        return 0;
    }
    let least = held.next_multiple_of(STEP);
    if charged == least + STEP { charged } else { least }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_charged_for_what_it_holds_and_little_more() {
        let budget = Budget::default();
        let mut charged = 0;
        for (held, expected) in [
            (UNCHARGED, 0),
            (UNCHARGED + 1, STEP),
            (STEP, STEP),
            (STEP + 1, 2 * STEP),
            (STEP, 2 * STEP),
            (2 * STEP, 2 * STEP),
            (10 * STEP + 1, 11 * STEP),
            (3 * STEP, 3 * STEP),
            (0, 0),
        ] {
            charged = budget.charge(charged, held);
            assert_eq!((charged, budget.left_of(20 * STEP)), (expected, 20 * STEP - expected), "{held} held");
        }
        budget.charge(charged, 21 * STEP);
        assert_eq!(budget.left_of(20 * STEP), 0, "over the end is the end");
    }
}
