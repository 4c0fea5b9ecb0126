//! Patterns and what is kept under them, found again by topic.
//!
//! A node holds all the levels up to where patterns part, so there are at most two nodes for a
//! pattern, however many slashes it has. Every walk is a loop: patterns come from outside, and
//! with a recursion one who nests them deep enough would overflow the stack.

use std::collections::{HashMap, hash_map::Entry};
use std::mem;

/// A set of values under each pattern: the texts that [`TopicFilter::pattern`] gives.
/// While it is empty it holds no memory but itself.
///
/// [`TopicFilter::pattern`]: super::topic::TopicFilter::pattern
pub struct Trie<T> {
    /// Has no tail and no values, and may have a single child.
    root: Node<T>,
    len: usize,
}

impl<T> std::fmt::Debug for Trie<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trie").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<T> Trie<T> {
    /// A trie without patterns.
    pub fn new() -> Self {
        let (root, len) = (Node::new(""), 0);
        Self { root, len }
    }

    /// How many values there are, counted once for each pattern that holds them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is kept here.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Calls `found` for every value under a pattern that matches `topic`, in no promised order;
    /// for a value under several of them, several times. Allocates only where the topic can go on
    /// both by name and by `+`.
    pub fn for_each_match<'a>(&'a self, topic: &str, mut found: impl FnMut(&'a T)) {
        // Leading wildcards pass over these topics; the first node visited is the root.
        let mut passes_over = topic.starts_with('$');
        let mut ahead = Some((&self.root, Some(topic)));
        let mut aside = Vec::new();
        while let Some((node, rest)) = ahead.take().or_else(|| aside.pop()) {
            let wildcards = !mem::take(&mut passes_over);
            if wildcards && let Some(node) = node.children.get("#") {
                node.values.iter().for_each(&mut found);
            }
            let Some(rest) = rest else {
                node.values.iter().for_each(&mut found);
                continue;
            };
            let (name, behind) = first_level(rest);
            ahead = node.child(name, behind);
            if wildcards && let Some(other) = node.child("+", behind) {
                aside.extend(ahead.replace(other));
            }
        }
    }
}

impl<T: PartialEq> Trie<T> {
    /// Keeps `value` under `pattern`, and says whether it was not there before.
    pub fn insert(&mut self, pattern: &str, value: T) -> bool {
        let mut node = &mut self.root;
        let mut rest = Some(pattern);
        while let Some(text) = rest {
            let (level, tail) = first_level(text);
            node = match node.children.entry(level.into()) {
                Entry::Vacant(place) => {
                    rest = None;
                    place.insert(Node::new(tail))
                }
                Entry::Occupied(place) => {
                    let node = place.into_mut();
                    let shared = shared_levels(&node.tail, tail);
                    if shared < node.tail.len() {
                        node.split(shared);
                    }
                    rest = tail[shared..].strip_prefix('/');
                    node
                }
            };
        }
        if node.values.contains(&value) {
            return false;
        }
        node.values.push(value);
        self.len += 1;
        true
    }

    /// Takes `value` from under `pattern`, and says whether it was there.
    pub fn remove(&mut self, pattern: &str, value: &T) -> bool {
        if self.root.take(pattern, value).is_none() {
            return false;
        }
        self.len -= 1;
        true
    }
}

/// The first level of its pattern part is the key it has in the node above. But for the root, a
/// node without values has at least two children.
struct Node<T> {
    /// The further levels, each with the slash before it.
    tail: Box<str>,
    values: Vec<T>,
    children: HashMap<Box<str>, Node<T>>,
}

impl<T> Node<T> {
    fn new(tail: &str) -> Self {
        let (values, children) = (Vec::new(), HashMap::new());
        let tail = tail.into();
        Self { tail, values, children }
    }

    /// The child under `key`, if its tail fits what is `behind` that level in the topic, and the
    /// levels of the topic behind both.
    fn child<'t>(&self, key: &str, mut behind: &'t str) -> Option<(&Self, Option<&'t str>)> {
        let child = self.children.get(key)?;
        for level in child.tail.split('/').skip(1) {
            if level == "#" {
                return Some((child, None));
            }
            let (name, further) = first_level(behind.strip_prefix('/')?);
            if level != "+" && level != name {
                return None;
            }
            behind = further;
        }
        Some((child, behind.strip_prefix('/')))
    }

    /// Leaves `at` bytes of the tail, and moves all that is behind them into an only child.
    fn split(&mut self, at: usize) {
        let upper = Node::new(&self.tail[..at]);
        let lower = mem::replace(self, upper);
        let (level, tail) = first_level(&lower.tail[at + 1..]);
        let (key, tail) = (level.into(), tail.into());
        self.children.insert(key, Node { tail, ..lower });
    }

    /// Takes in an only child, unless there are values that its own would be mixed up with.
    fn join(&mut self) {
        if self.values.is_empty() && self.children.len() == 1 {
            for (key, child) in mem::take(&mut self.children) {
                let tail = format!("{}/{key}{}", self.tail, child.tail).into();
                *self = Node { tail, ..child };
            }
        }
    }
}

impl<T: PartialEq> Node<T> {
    /// Takes `value` from under `pattern`, where this is the root.
    fn take(&mut self, pattern: &str, value: &T) -> Option<T> {
        let (mut above, mut rest) = (self, pattern);
        loop {
            let (level, tail) = first_level(rest);
            let behind = tail.strip_prefix(&*above.children.get(level)?.tail)?;
            if behind.is_empty() {
                let taken = above.take_from_child(level, value)?;
                let is_root = rest.len() == pattern.len();
                if !is_root {
                    above.join();
                }
                return Some(taken);
            }
            rest = behind.strip_prefix('/')?;
            above = above.children.get_mut(level)?;
        }
    }

    /// Takes `value` from the child under `key`, and that child away when it is of no more use.
    fn take_from_child(&mut self, key: &str, value: &T) -> Option<T> {
        let child = self.children.get_mut(key)?;
        let at = child.values.iter().position(|kept| kept == value)?;
        let taken = child.values.swap_remove(at);
        child.join();
        if child.values.is_empty() && child.children.is_empty() {
            self.children.remove(key);
            if self.children.len() * 4 <= self.children.capacity() {
                self.children.shrink_to_fit();
            }
        }
        Some(taken)
    }
}

/// The first level, and what is behind it: nothing, or a slash and further levels.
fn first_level(text: &str) -> (&str, &str) {
    text.split_at(text.find('/').unwrap_or(text.len()))
}

/// How many bytes of whole levels two tails have in common.
fn shared_levels(one: &str, other: &str) -> usize {
    let levels = one.split('/').zip(other.split('/'));
    let shared = levels.take_while(|(one, other)| one == other);
    // Before the first slash both have an empty level, whose slash is one too many.
    shared.map(|(level, _)| level.len() + 1).sum::<usize>() - 1
}

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes the nodes apart one by one: by itself each would drop its children inside its own drop.
impl<T> Drop for Trie<T> {
    fn drop(&mut self) {
        let mut nodes: Vec<_> = mem::take(&mut self.root.children).into_values().collect();
        while let Some(node) = nodes.pop() {
            nodes.extend(node.children.into_values());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::topic::{
        matches,
        tests::{any_pattern, any_topic},
    };
    use proptest::{collection::vec, prelude::*};
    use std::{collections::BTreeSet, thread};

    fn found(trie: &Trie<u8>, topic: &str) -> Vec<u8> {
        let mut values = Vec::new();
        trie.for_each_match(topic, |value| values.push(*value));
        values.sort();
        values
    }

    /// The number of nodes but the root, each of which is seen to be of use.
    fn nodes(trie: &Trie<u8>) -> usize {
        let mut waiting: Vec<_> = trie.root.children.values().collect();
        let mut nodes = 0;
        while let Some(node) = waiting.pop() {
            assert!(!node.values.is_empty() || node.children.len() > 1);
            waiting.extend(node.children.values());
            nodes += 1;
        }
        nodes
    }

    #[test]
    fn every_matching_pattern_is_found() {
        let mut trie = Trie::new();
        let patterns = "# a/# a a/b/c a/+/c +/b/# $SYS/# / /+/é a/b/cd";
        for (value, pattern) in (0..).zip(patterns.split(' ')) {
            assert!(trie.insert(pattern, value), "{pattern}");
        }
        for (topic, values) in [
            ("a", vec![0, 1, 2]),
            ("a/b", vec![0, 1, 5]),
            ("a/b/c", vec![0, 1, 3, 4, 5]),
            ("a/b/cd", vec![0, 1, 5, 9]),
            ("a//c", vec![0, 1, 4]),
            ("$SYS", vec![6]),
            ("$SYS/b", vec![6]),
            ("/", vec![0, 7]),
            ("//é", vec![0, 8]),
            ("ab", vec![0]),
        ] {
            assert_eq!(found(&trie, topic), values, "{topic}");
        }
    }

    #[test]
    fn an_emptied_trie_holds_no_memory() {
        let mut trie = Trie::new();
        for round in 0..200 {
            trie.insert(&format!("a/{round}/+"), round);
        }
        for round in 0..200 {
            assert!(!trie.is_empty());
            assert!(trie.remove(&format!("a/{round}/+"), &round));
        }
        assert_eq!((trie.len(), trie.root.children.capacity()), (0, 0));
    }

    #[test]
    fn a_pattern_costs_one_node_however_many_levels_it_has() {
        let slashes = "/".repeat(65_535);
        let mut trie = Trie::new();
        trie.insert(&slashes, 1);
        assert_eq!((nodes(&trie), found(&trie, &slashes)), (1, vec![1]));
        trie.insert(&"+/".repeat(32_767), 2);
        let topic = &slashes[..32_767];
        assert_eq!((nodes(&trie), found(&trie, topic)), (2, vec![2]));
    }

    #[test]
    fn patterns_nested_thousands_deep_need_little_stack() {
        let scene = || {
            let slashes = "/".repeat(2_000);
            let mut trie = Trie::new();
            for depth in (1..=2_000).rev() {
                trie.insert(&slashes[..depth], 1);
                trie.insert(&format!("{}#", &slashes[..depth]), 2);
            }
            assert_eq!(found(&trie, &slashes).len(), 2_001);
            assert!(trie.remove(&slashes, &1));
        };
        let thread = thread::Builder::new().stack_size(64 * 1024);
        thread.spawn(scene).unwrap().join().unwrap();
    }

    proptest! {
        #[test]
        fn a_trie_finds_what_matching_each_pattern_finds(
            steps in vec((any_pattern(), 0u8..3, prop::bool::weighted(0.7)), 0..60),
            topics in vec(any_topic(), 1..20),
        ) {
            let (mut trie, mut model) = (Trie::new(), BTreeSet::new());
            for (pattern, value, is_insert) in steps {
                // Half of the removals are of something that is there.
                if is_insert {
                    prop_assert_eq!(trie.insert(&pattern, value), model.insert((pattern, value)));
                } else if value > 0 && let Some((pattern, value)) = model.pop_last() {
                    prop_assert!(trie.remove(&pattern, &value));
                } else {
                    prop_assert_eq!(trie.remove(&pattern, &value), model.remove(&(pattern, value)));
                }
                prop_assert_eq!(trie.len(), model.len());
                prop_assert!(nodes(&trie) <= 2 * model.len());
            }
            for topic in topics {
                let matched = model.iter().filter(|(pattern, _)| matches(pattern, &topic));
                let mut values: Vec<u8> = matched.map(|(_, value)| *value).collect();
                values.sort();
                prop_assert_eq!(found(&trie, &topic), values, "{}", topic);
            }
            for (pattern, value) in model {
                prop_assert!(trie.remove(&pattern, &value));
            }
            prop_assert_eq!((trie.len(), trie.root.children.capacity()), (0, 0));
        }
    }
}
