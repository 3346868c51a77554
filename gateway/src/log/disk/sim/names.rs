//! The directories of the simulated disk: a name is durable only after a sync of the directory that holds it.

use super::super::parent;
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};

pub(super) type Inode = u64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Node {
    Dir,
    File(Inode),
}

/// A change of names that no sync of its directory has made durable yet.
enum Pending {
    Create { path: String, node: Node },
    Remove { path: String },
    Rename { from: String, to: String },
}

type Tree = BTreeMap<String, Node>;

#[derive(Default)]
pub(super) struct Names {
    live: Tree,
    durable: Tree,
    pending: Vec<Pending>,
}

impl Names {
    pub fn get(&self, path: &str) -> Option<Node> {
        if path.is_empty() { Some(Node::Dir) } else { self.live.get(path).copied() }
    }

    pub fn list(&self, dir: &str) -> Vec<String> {
        self.live.keys().filter(|path| parent(path) == dir).map(|path| last(path).to_owned()).collect()
    }

    pub fn create(&mut self, path: &str, node: Node) {
        self.change(Pending::Create { path: path.to_owned(), node });
    }

    pub fn remove(&mut self, path: &str) {
        self.change(Pending::Remove { path: path.to_owned() });
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        self.change(Pending::Rename { from: from.to_owned(), to: to.to_owned() });
    }

    fn change(&mut self, change: Pending) {
        change.reach(&mut self.live);
        self.pending.push(change);
    }

    pub fn sync(&mut self, dir: &str) {
        let (now, later) = std::mem::take(&mut self.pending).into_iter().partition(|change| change.dir() == dir);
        self.pending = later;
        let now: Vec<Pending> = now;
        now.iter().for_each(|change| change.reach(&mut self.durable));
    }

    /// A power cut: each change that was not synced happened or did not, none of it half.
    pub fn crash(&mut self, rng: &mut Rng) {
        let keep_percent = [0, 50, 90, 100][rng.usize(0..4)];
        for change in std::mem::take(&mut self.pending) {
            if rng.u32(0..100) < keep_percent {
                change.reach(&mut self.durable);
            }
        }
        self.drop_orphans();
        self.live = self.durable.clone();
    }

    /// What stands in a directory that did not survive is gone with it. Parents sort before their children.
    fn drop_orphans(&mut self) {
        let mut kept = Tree::new();
        for (path, node) in &self.durable {
            if parent(path).is_empty() || kept.get(parent(path)) == Some(&Node::Dir) {
                kept.insert(path.clone(), *node);
            }
        }
        self.durable = kept;
    }

    pub fn files(&self) -> impl Iterator<Item = (&String, Inode)> {
        self.live.iter().filter_map(|(path, node)| match node {
            Node::File(inode) => Some((path, *inode)),
            Node::Dir => None,
        })
    }

    /// Files that have a name now.
    pub fn linked(&self) -> BTreeSet<Inode> {
        files(&self.live).collect()
    }

    /// Files that have a name now or may have one again after a power cut.
    pub fn reachable(&self) -> BTreeSet<Inode> {
        let pending = self.pending.iter().filter_map(|change| match change {
            Pending::Create { node: Node::File(inode), .. } => Some(*inode),
            _ => None,
        });
        files(&self.live).chain(files(&self.durable)).chain(pending).collect()
    }
}

fn files(tree: &Tree) -> impl Iterator<Item = Inode> {
    tree.values().filter_map(|node| match node {
        Node::File(inode) => Some(*inode),
        Node::Dir => None,
    })
}

fn last(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

impl Pending {
    /// The directory whose sync makes it durable.
    fn dir(&self) -> &str {
        match self {
            Pending::Create { path, .. } | Pending::Remove { path } => parent(path),
            Pending::Rename { to, .. } => parent(to),
        }
    }

    fn reach(&self, tree: &mut Tree) {
        match self {
            Pending::Create { path, node } => {
                tree.insert(path.clone(), *node);
            }
            Pending::Remove { path } => {
                tree.remove(path);
            }
            Pending::Rename { from, to } => {
                if let Some(node) = tree.remove(from) {
                    tree.insert(to.clone(), node);
                }
            }
        }
    }
}
