//! What the simulated disk knows: files, names, the faults that wait, and the trace.

use super::super::{PAGE_BYTES, parent};
use super::image::{FileState, SECTOR_BYTES};
use super::names::{Inode, Names, Node};
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Operations kept for a person to read.
const RECENT_MAX: usize = 64;

/// Something that goes wrong once so many more operations that change the disk have gone well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One operation fails; a write may have been done in part.
    Fail { after: u64 },
    /// Every operation fails from then on, until the faults are taken away.
    FailFrom { after: u64 },
    /// The next sync after so many others fails and loses what it was to keep.
    FailSync { after: u64 },
    /// The next read after so many others fails.
    FailRead { after: u64 },
    /// The power goes: the operation may be done in part, it and all later ones fail until `crash`.
    CutPower { after: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    Create,
    CreateDir,
    Remove,
    Rename,
    SyncDir,
    Read,
    SetLen,
    Write,
    Sync,
}

/// What the faults make of an operation.
enum Verdict {
    Go,
    /// It fails and may be done in part.
    Fail(io::Error),
}

#[derive(Clone, Copy)]
struct Done {
    op: Op,
    inode: Inode,
    offset: u64,
    len: u64,
    failed: bool,
}

#[derive(Default)]
struct Entry {
    file: FileState,
    opens: u32,
    /// Pages that the device cannot read.
    ruined: BTreeSet<u64>,
}

pub(super) struct State {
    rng: Rng,
    /// Counts the lives of the processes on this disk; handles of an earlier one fail.
    life: u64,
    files: BTreeMap<Inode, Entry>,
    next_inode: Inode,
    names: Names,
    faults: Vec<Fault>,
    power_is_cut: bool,
    capacity: u64,
    operations: u64,
    trace: u64,
    recent: VecDeque<Done>,
}

fn broken(says: &str) -> io::Error {
    io::Error::other(says.to_owned())
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("no such file on the simulated disk: {path}"))
}

fn full() -> io::Error {
    io::Error::new(ErrorKind::StorageFull, "the simulated disk is full")
}

fn pages_of(len: u64) -> u64 {
    len.next_multiple_of(PAGE_BYTES as u64)
}

// The disk's owner.
impl State {
    pub fn new(seed: u64) -> Self {
        State {
            rng: Rng::with_seed(seed),
            life: 0,
            files: BTreeMap::new(),
            next_inode: 1,
            names: Names::default(),
            faults: Vec::new(),
            power_is_cut: false,
            capacity: u64::MAX >> 1,
            operations: 0,
            trace: seed,
            recent: VecDeque::new(),
        }
    }

    pub fn life(&self) -> u64 {
        self.life
    }

    pub fn check_life(&self, life: u64) -> io::Result<()> {
        if life != self.life {
            return Err(broken("the process that opened this on the simulated disk is gone"));
        }
        Ok(())
    }

    pub fn crash(&mut self) {
        self.kill();
        self.faults.clear();
        self.power_is_cut = false;
        for entry in self.files.values_mut() {
            entry.file.crash(&mut self.rng);
        }
        self.names.crash(&mut self.rng);
        self.drop_unreachable();
    }

    pub fn kill(&mut self) {
        self.life += 1;
        self.files.values_mut().for_each(|entry| entry.opens = 0);
        self.drop_unreachable();
    }

    pub fn arm(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    pub fn disarm(&mut self) {
        self.faults.clear();
    }

    pub fn power_is_cut(&self) -> bool {
        self.power_is_cut
    }

    pub fn set_capacity(&mut self, bytes: u64) {
        self.capacity = bytes;
    }

    pub fn damage(&mut self, path: &str, offset: u64, xor: u8) {
        if let Some(Node::File(inode)) = self.names.get(path) {
            self.entry(inode).file.damage(offset, xor);
        }
    }

    pub fn ruin(&mut self, path: &str, page: u64) {
        if let Some(Node::File(inode)) = self.names.get(path) {
            self.entry(inode).ruined.insert(page);
        }
    }

    pub fn written_pages(&self, path: &str) -> Vec<u64> {
        match self.names.get(path) {
            Some(Node::File(inode)) => self.files.get(&inode).map_or(Vec::new(), |entry| entry.file.written_pages()),
            _ => Vec::new(),
        }
    }

    pub fn list_files(&self) -> Vec<(String, u64)> {
        self.names.files().map(|(path, inode)| (path.clone(), self.len(inode))).collect()
    }

    pub fn operations(&self) -> u64 {
        self.operations
    }

    pub fn trace(&self) -> u64 {
        self.trace
    }

    pub fn recent(&self) -> Vec<String> {
        let line = |done: &Done| {
            let Done { op, inode, offset, len, failed } = *done;
            format!("{op:?} file {inode} at {offset} len {len}{}", if failed { ": failed" } else { "" })
        };
        self.recent.iter().map(line).collect()
    }

    /// Files take whole pages; one without a name takes them until its last handle is closed.
    pub fn used_bytes(&self) -> u64 {
        let linked = self.names.linked();
        let counts = |(inode, entry): &(&Inode, &Entry)| entry.opens > 0 || linked.contains(*inode);
        self.files.iter().filter(counts).map(|(_, entry)| pages_of(entry.file.len())).sum()
    }

    fn drop_unreachable(&mut self) {
        let reachable = self.names.reachable();
        self.files.retain(|inode, entry| entry.opens > 0 || reachable.contains(inode));
    }
}

// Faults and trace.
impl State {
    /// Decides what happens to an operation, and counts it.
    fn judge(&mut self, op: Op) -> Verdict {
        if self.power_is_cut {
            return Verdict::Fail(broken("the power of the simulated disk is cut"));
        }
        if op != Op::Read {
            self.operations += 1;
        }
        let mut verdict = Verdict::Go;
        let mut waiting = Vec::new();
        for fault in std::mem::take(&mut self.faults) {
            match fault.count(op) {
                Counted::Waits(fault) => waiting.push(fault),
                Counted::Strikes(stays) => {
                    waiting.extend(stays);
                    self.power_is_cut |= matches!(fault, Fault::CutPower { .. });
                    verdict = Verdict::Fail(broken("an I/O error of the simulated disk"));
                }
            }
        }
        self.faults = waiting;
        verdict
    }

    fn note(&mut self, op: Op, inode: Inode, offset: u64, len: u64, data: u64, failed: bool) {
        let mut bytes = [0; 34];
        bytes[0] = op as u8;
        bytes[1] = u8::from(failed);
        for (at, value) in [inode, offset, len, data].into_iter().enumerate() {
            bytes[2 + at * 8..10 + at * 8].copy_from_slice(&value.to_le_bytes());
        }
        self.trace = xxh3_64_with_seed(&bytes, self.trace);
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(Done { op, inode, offset, len, failed });
    }
}

enum Counted {
    Waits(Fault),
    /// Strikes now; a lasting fault stays.
    Strikes(Option<Fault>),
}

impl Fault {
    fn count(self, op: Op) -> Counted {
        use Fault::*;
        let (counts, after) = match self {
            Fail { after } | FailFrom { after } | CutPower { after } => (op != Op::Read, after),
            FailSync { after } => (matches!(op, Op::Sync | Op::SyncDir), after),
            FailRead { after } => (op == Op::Read, after),
        };
        if !counts {
            return Counted::Waits(self);
        }
        let Some(after) = after.checked_sub(1) else {
            return Counted::Strikes(matches!(self, FailFrom { .. }).then_some(self));
        };
        Counted::Waits(match self {
            Fail { .. } => Fail { after },
            FailFrom { .. } => FailFrom { after },
            FailSync { .. } => FailSync { after },
            FailRead { .. } => FailRead { after },
            CutPower { .. } => CutPower { after },
        })
    }
}

// Names.
impl State {
    pub fn open(&mut self, path: &str, create: bool) -> io::Result<Inode> {
        let inode = match self.names.get(path) {
            Some(Node::File(inode)) => inode,
            Some(Node::Dir) => return Err(io::Error::new(ErrorKind::IsADirectory, path.to_owned())),
            None if create => self.create(path)?,
            None => return Err(not_found(path)),
        };
        self.entry(inode).opens += 1;
        Ok(inode)
    }

    fn create(&mut self, path: &str) -> io::Result<Inode> {
        if self.names.get(parent(path)) != Some(Node::Dir) {
            return Err(not_found(parent(path)));
        }
        let inode = self.next_inode;
        self.change_names(Op::Create, path, |names| names.create(path, Node::File(inode)))?;
        self.next_inode += 1;
        Ok(inode)
    }

    pub fn close(&mut self, inode: Inode, life: u64) {
        if life != self.life {
            return;
        }
        let entry = self.entry(inode);
        entry.opens -= 1;
        if entry.opens == 0 {
            self.drop_unreachable();
        }
    }

    pub fn exists(&self, path: &str) -> bool {
        self.names.get(path).is_some()
    }

    pub fn list(&self, dir: &str) -> Vec<String> {
        self.names.list(dir)
    }

    pub fn create_dir(&mut self, dir: &str) -> io::Result<()> {
        let ends = dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]);
        for path in ends.map(|end| &dir[..end]) {
            match self.names.get(path) {
                Some(Node::Dir) => {}
                Some(Node::File(_)) => return Err(io::Error::new(ErrorKind::NotADirectory, path.to_owned())),
                None => self.change_names(Op::CreateDir, path, |names| names.create(path, Node::Dir))?,
            }
        }
        Ok(())
    }

    pub fn remove(&mut self, path: &str) -> io::Result<()> {
        match self.names.get(path) {
            None => return Err(not_found(path)),
            Some(Node::Dir) if !self.names.list(path).is_empty() => {
                return Err(io::Error::new(ErrorKind::DirectoryNotEmpty, path.to_owned()));
            }
            Some(_) => {}
        }
        self.change_names(Op::Remove, path, |names| names.remove(path))?;
        self.drop_unreachable();
        Ok(())
    }

    pub fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        if !matches!(self.names.get(from), Some(Node::File(_))) {
            return Err(not_found(from));
        }
        self.change_names(Op::Rename, to, |names| names.rename(from, to))
    }

    pub fn sync_dir(&mut self, dir: &str) -> io::Result<()> {
        if self.names.get(dir) != Some(Node::Dir) {
            return Err(not_found(dir));
        }
        let verdict = self.judge(Op::SyncDir);
        self.note(Op::SyncDir, 0, 0, 0, hash(dir.as_bytes()), matches!(verdict, Verdict::Fail(_)));
        match verdict {
            Verdict::Fail(error) => Err(error),
            Verdict::Go => {
                self.names.sync(dir);
                self.drop_unreachable();
                Ok(())
            }
        }
    }

    fn change_names(&mut self, op: Op, path: &str, change: impl FnOnce(&mut Names)) -> io::Result<()> {
        let verdict = self.judge(op);
        self.note(op, self.next_inode, 0, 0, hash(path.as_bytes()), matches!(verdict, Verdict::Fail(_)));
        match verdict {
            Verdict::Fail(error) => Err(error),
            Verdict::Go => {
                change(&mut self.names);
                if op == Op::Create {
                    self.files.insert(self.next_inode, Entry::default());
                }
                Ok(())
            }
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, 0)
}

// Files.
impl State {
    fn entry(&mut self, inode: Inode) -> &mut Entry {
        self.files.entry(inode).or_default()
    }

    pub fn len(&self, inode: Inode) -> u64 {
        self.files.get(&inode).map_or(0, |entry| entry.file.len())
    }

    pub fn free_bytes(&self) -> u64 {
        self.capacity.saturating_sub(self.used_bytes())
    }

    pub fn read(&mut self, inode: Inode, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let verdict = self.judge(Op::Read);
        let inside = self.entry(inode).file.read(offset, into);
        let (len, failed) = (into.len() as u64, matches!(verdict, Verdict::Fail(_)));
        let end = (offset + len).max(offset + 1);
        let mut pages = offset / PAGE_BYTES as u64..=(end - 1) / PAGE_BYTES as u64;
        let ruined = pages.any(|page| self.entry(inode).ruined.contains(&page));
        self.note(Op::Read, inode, offset, len, 0, failed || ruined);
        match verdict {
            Verdict::Fail(error) => Err(error),
            Verdict::Go if ruined => Err(broken("a page of the simulated disk cannot be read")),
            Verdict::Go if inside => Ok(()),
            Verdict::Go => Err(io::Error::new(ErrorKind::UnexpectedEof, "the simulated file ends before")),
        }
    }

    pub fn write(&mut self, inode: Inode, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let verdict = self.judge(Op::Write);
        let room = self.room(inode, offset, bytes.len());
        let failed = room < bytes.len() || matches!(verdict, Verdict::Fail(_));
        self.note(Op::Write, inode, offset, bytes.len() as u64, hash(bytes), failed);
        let written = match verdict {
            Verdict::Go => room,
            Verdict::Fail(_) => self.rng.usize(0..=room / SECTOR_BYTES) * SECTOR_BYTES,
        };
        if written > 0 {
            let entry = self.entry(inode);
            entry.file.write(offset, &bytes[..written]);
            let pages = offset / PAGE_BYTES as u64..=(offset + written as u64 - 1) / PAGE_BYTES as u64;
            entry.ruined.retain(|page| !pages.contains(page));
        }
        match verdict {
            Verdict::Fail(error) => Err(error),
            Verdict::Go if room < bytes.len() => Err(full()),
            Verdict::Go => Ok(()),
        }
    }

    /// How many of `len` bytes at `offset` the disk has room for.
    fn room(&self, inode: Inode, offset: u64, len: usize) -> usize {
        let now = pages_of(self.len(inode));
        if offset + len as u64 <= now {
            return len;
        }
        let end_max = now.saturating_add(self.free_bytes() / PAGE_BYTES as u64 * PAGE_BYTES as u64);
        len.min(usize::try_from(end_max.saturating_sub(offset)).unwrap_or(usize::MAX))
    }

    pub fn set_len(&mut self, inode: Inode, len: u64) -> io::Result<()> {
        let verdict = self.judge(Op::SetLen);
        let growth = pages_of(len).saturating_sub(pages_of(self.len(inode)));
        let fits = growth == 0 || growth <= self.free_bytes();
        self.note(Op::SetLen, inode, 0, len, 0, !fits || matches!(verdict, Verdict::Fail(_)));
        match verdict {
            Verdict::Fail(error) => Err(error),
            Verdict::Go if !fits => Err(full()),
            Verdict::Go => {
                self.entry(inode).file.set_len(len);
                Ok(())
            }
        }
    }

    pub fn sync(&mut self, inode: Inode) -> io::Result<()> {
        let verdict = self.judge(Op::Sync);
        self.note(Op::Sync, inode, 0, 0, 0, matches!(verdict, Verdict::Fail(_)));
        let power_is_cut = self.power_is_cut;
        let State { files, rng, .. } = self;
        let file = &mut files.entry(inode).or_default().file;
        match verdict {
            Verdict::Go => file.sync(),
            // What a sync that was cut off had done is for `crash` to draw.
            Verdict::Fail(error) if power_is_cut => return Err(error),
            Verdict::Fail(error) => {
                file.fail_sync(rng);
                return Err(error);
            }
        }
        Ok(())
    }
}
