//! The processors that the process may use, and who of its threads runs on which.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors that this process was given, by whoever started it.
pub struct Processors(CpuSet);

impl Processors {
    /// Those that this thread may use. Asked before anything is pinned, these are all there are.
    pub fn available() -> io::Result<Processors> {
        Ok(Processors(sched_getaffinity(None)?))
    }

    /// Keeps this thread on one processor. There may be more workers than processors: these are given out in turn.
    pub fn pin(&self, worker: usize) -> io::Result<()> {
        let mut one = CpuSet::new();
        one.set(turn(&self.numbers(), worker));
        Ok(sched_setaffinity(None, &one)?)
    }

    /// Lets this thread run on any of them.
    pub fn unpin(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.0)?)
    }

    fn numbers(&self) -> Vec<usize> {
        (0..CpuSet::MAX_CPU).filter(|&number| self.0.is_set(number)).collect()
    }
}

fn turn(processors: &[usize], worker: usize) -> usize {
    processors[worker % processors.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_given_out_in_turn_and_none_that_is_not_ours() {
        let given: Vec<_> = (0..5).map(|worker| turn(&[2, 3, 7], worker)).collect();
        assert_eq!(given, [2, 3, 7, 2, 3]);
    }

    #[test]
    fn a_thread_is_pinned_to_one_processor_and_set_free_again() {
        let processors = Processors::available().unwrap();
        let all = processors.numbers();
        for (worker, &number) in all.iter().enumerate() {
            processors.pin(worker).unwrap();
            assert_eq!(Processors::available().unwrap().numbers(), [number]);
        }
        processors.unpin().unwrap();
        assert_eq!(Processors::available().unwrap().numbers(), all);
    }
}
