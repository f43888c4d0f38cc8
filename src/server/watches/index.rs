//! Which watchers a key concerns.
//!
//! Watchers of one key are found in an ordered set. Those of a range are intervals, kept in a tree ordered by where
//! they begin, where each node knows the furthest end below it: looking up a key leaves out every subtree that ends
//! before it. The tree keeps its balance by random priorities (a treap).
//!
//! ```text
//! [b, f)  reach k            looking up g: [b, f) ends before it; left subtree reaches c only: left out;
//! ├── [a, c)  reach c        right subtree begins before g and reaches k: [d, k) has it, [h, i) begins after it
//! └── [d, k)  reach k
//!     └── [h, i)  reach i
//! ```

use std::cmp::Ordering;
use std::collections::BTreeSet;

use bytes::Bytes;

/// What a watcher watches, by etcd's conventions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// One key.
    One(Bytes),
    /// From a key up to, not including, another; or to the end of all keys.
    Span(Bytes, Option<Bytes>),
}

impl Keys {
    /// Of a request; nothing if the range is empty. No key is the first of all keys.
    pub fn new(key: &Bytes, range_end: &Bytes) -> Option<Keys> {
        let key = match key.is_empty() {
            true => Bytes::from_static(b"\0"),
            false => key.clone(),
        };
        match &range_end[..] {
            [] => Some(Keys::One(key)),
            [0] => Some(Keys::Span(key, None)),
            end => (key[..] < *end).then(|| Keys::Span(key, Some(range_end.clone()))),
        }
    }

    /// As a request's key and range end.
    pub fn as_range(&self) -> (&Bytes, Bytes) {
        match self {
            Keys::One(key) => (key, Bytes::new()),
            Keys::Span(start, Some(end)) => (start, end.clone()),
            Keys::Span(start, None) => (start, Bytes::from_static(b"\0")),
        }
    }
}

/// Watchers, by number, to be found by key.
#[derive(Default)]
pub struct Index {
    ones: BTreeSet<(Bytes, u64)>,
    spans: Tree,
}

impl Index {
    /// Adds a watcher, which is not there.
    pub fn insert(&mut self, keys: &Keys, number: u64) {
        match keys {
            Keys::One(key) => {
                self.ones.insert((key.clone(), number));
            }
            Keys::Span(start, end) => {
                let node = Node::new(start.clone(), end.clone(), number);
                self.spans = insert(self.spans.take(), node);
            }
        }
    }

    /// Removes a watcher, if it is there.
    pub fn remove(&mut self, keys: &Keys, number: u64) {
        match keys {
            Keys::One(key) => {
                self.ones.remove(&(key.clone(), number));
            }
            Keys::Span(start, _) => self.spans = remove(self.spans.take(), (start, number)),
        }
    }

    /// Whether nobody is in it.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.ones.is_empty() && self.spans.is_none()
    }

    /// Calls `visit` with each watcher of a key.
    pub fn watchers_of(&self, key: &Bytes, visit: &mut dyn FnMut(u64)) {
        for (_, number) in self.ones.range((key.clone(), 0)..=(key.clone(), u64::MAX)) {
            visit(*number);
        }
        stab(&self.spans, key, visit);
    }
}

type Tree = Option<Box<Node>>;

struct Node {
    start: Bytes,
    /// `None` is beyond every key.
    end: Option<Bytes>,
    number: u64,
    /// The furthest end in this subtree.
    reach: Option<Bytes>,
    /// No node has one above its parent's.
    priority: u32,
    left: Tree,
    right: Tree,
}

fn furthest<'a>(a: &'a Option<Bytes>, b: &'a Option<Bytes>) -> &'a Option<Bytes> {
    match (a, b) {
        (None, _) => a,
        (_, None) => b,
        (Some(x), Some(y)) => match x >= y {
            true => a,
            false => b,
        },
    }
}

fn ends_after(end: &Option<Bytes>, key: &Bytes) -> bool {
    end.as_ref().is_none_or(|end| key < end)
}

impl Node {
    fn new(start: Bytes, end: Option<Bytes>, number: u64) -> Box<Node> {
        Box::new(Node {
            reach: end.clone(),
            start,
            end,
            number,
            priority: rand::random(),
            left: None,
            right: None,
        })
    }

    fn place(&self) -> (&Bytes, u64) {
        (&self.start, self.number)
    }

    /// To be called when a child changed.
    fn update(&mut self) {
        let mut reach = &self.end;
        for child in [&self.left, &self.right].into_iter().flatten() {
            reach = furthest(reach, &child.reach);
        }
        self.reach = reach.clone();
    }
}

fn insert(tree: Tree, mut node: Box<Node>) -> Tree {
    match tree {
        Some(mut root) if root.priority >= node.priority => {
            match node.place() < root.place() {
                true => root.left = insert(root.left.take(), node),
                false => root.right = insert(root.right.take(), node),
            }
            root.update();
            Some(root)
        }
        tree => {
            (node.left, node.right) = split(tree, node.place());
            node.update();
            Some(node)
        }
    }
}

/// What is before a place, and what is not.
fn split(tree: Tree, place: (&Bytes, u64)) -> (Tree, Tree) {
    let Some(mut root) = tree else {
        return (None, None);
    };
    if root.place() < place {
        let (before, after) = split(root.right.take(), place);
        root.right = before;
        root.update();
        (Some(root), after)
    } else {
        let (before, after) = split(root.left.take(), place);
        root.left = after;
        root.update();
        (before, Some(root))
    }
}

/// Two trees, the one all before the other.
fn join(before: Tree, after: Tree) -> Tree {
    match (before, after) {
        (None, tree) | (tree, None) => tree,
        (Some(mut first), Some(mut second)) => {
            if first.priority >= second.priority {
                first.right = join(first.right.take(), Some(second));
                first.update();
                Some(first)
            } else {
                second.left = join(Some(first), second.left.take());
                second.update();
                Some(second)
            }
        }
    }
}

fn remove(tree: Tree, place: (&Bytes, u64)) -> Tree {
    let mut root = tree?;
    match place.cmp(&root.place()) {
        Ordering::Equal => return join(root.left.take(), root.right.take()),
        Ordering::Less => root.left = remove(root.left.take(), place),
        Ordering::Greater => root.right = remove(root.right.take(), place),
    }
    root.update();
    Some(root)
}

fn stab(tree: &Tree, key: &Bytes, visit: &mut dyn FnMut(u64)) {
    let Some(node) = tree else { return };
    if !ends_after(&node.reach, key) {
        return;
    }
    stab(&node.left, key, visit);
    if node.start <= *key {
        if ends_after(&node.end, key) {
            visit(node.number);
        }
        stab(&node.right, key, visit);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn ranges_follow_etcds_conventions() {
        let keys = |key: &str, end: &str| Keys::new(&bytes(key), &bytes(end));
        assert_eq!(keys("a", ""), Some(Keys::One(bytes("a"))));
        assert_eq!(keys("", ""), Some(Keys::One(bytes("\0"))));
        assert_eq!(keys("a", "b"), Some(Keys::Span(bytes("a"), Some(bytes("b")))));
        assert_eq!(keys("a", "\0"), Some(Keys::Span(bytes("a"), None)));
        assert_eq!(keys("", "\0"), Some(Keys::Span(bytes("\0"), None)));
        assert_eq!(keys("a", "a"), None);
        assert_eq!(keys("b", "a"), None);
    }

    fn contains(keys: &Keys, key: &Bytes) -> bool {
        match keys {
            Keys::One(one) => one == key,
            Keys::Span(start, end) => start <= key && ends_after(end, key),
        }
    }

    /// Heap order, reach and depth of a subtree.
    fn check(tree: &Tree) -> usize {
        let Some(node) = tree else { return 0 };
        let mut reach = node.end.clone();
        for child in [&node.left, &node.right].into_iter().flatten() {
            assert!(child.priority <= node.priority);
            reach = furthest(&reach, &child.reach).clone();
        }
        assert_eq!(reach, node.reach);
        1 + check(&node.left).max(check(&node.right))
    }

    #[test]
    fn finds_what_a_search_through_all_finds() {
        let seed = 3;
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut index, mut all) = (Index::default(), BTreeMap::new());
        let key = |rng: &mut StdRng| {
            let length = rng.random_range(1..3);
            Bytes::from(
                (0..length)
                    .map(|_| rng.random_range(b'a'..b'f'))
                    .collect::<Vec<u8>>(),
            )
        };
        for number in 0..3000 {
            let ends = [
                Bytes::new(),
                Bytes::from_static(b"\0"),
                key(&mut rng),
                key(&mut rng),
            ];
            if let Some(keys) = Keys::new(&key(&mut rng), &ends[rng.random_range(0..4)]) {
                index.insert(&keys, number);
                all.insert(number, keys);
            }
            if rng.random_bool(0.45)
                && !all.is_empty()
                && let Some(number) = all.keys().nth(rng.random_range(0..all.len())).copied()
                && let Some(keys) = all.remove(&number)
            {
                index.remove(&keys, number);
                // Not there any more: nothing happens.
                index.remove(&keys, number);
            }
            let key = key(&mut rng);
            let mut found = Vec::new();
            index.watchers_of(&key, &mut |number| found.push(number));
            found.sort_unstable();
            let expected: Vec<u64> = all
                .iter()
                .filter(|(_, keys)| contains(keys, &key))
                .map(|(number, _)| *number)
                .collect();
            assert_eq!(found, expected);
        }
        assert!(all.len() > 100 && check(&index.spans) < 60);
        for (number, keys) in all {
            index.remove(&keys, number);
        }
        assert!(index.is_empty());
    }
}
