//! What may happen to a log in one step, and how often: drawn from the seed alone.

use fastrand::Rng;
use headwater::log::OnFull;
use headwater::log::disk::sim::Fault;
use headwater::log::sim::SimSizes;

/// One step of a run. Numbers are raw draws; the world maps them to what there is.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// A device hands in its next records.
    Append {
        device: usize,
        records: u32,
    },
    /// Another part stores a row of its state.
    PutState {
        key: u8,
    },
    Commit,
    /// While the group is on its way to the disk, a device hands in more.
    CommitMeanwhile {
        device: usize,
        records: u32,
        fails: Option<Fault>,
    },
    /// `all`: nothing stays in the window.
    Fold {
        all: bool,
    },
    /// Retention, cursors, healing: what the second thread does each second.
    Tick,
    /// Everything readable is read and judged.
    Read,
    /// A sink acknowledges so many more records of every shard.
    MoveCursor {
        sink: usize,
        records: u64,
    },
    /// From now on the sink acknowledges nothing, or does so again.
    SlowSink {
        sink: usize,
    },
    Advance {
        ms: u64,
    },
    ClockJump {
        ms: i64,
    },
    /// So many bytes may still be written.
    DiskFull {
        left: u64,
    },
    DiskFree,
    IoError(Fault),
    Heal,
    /// Everybody sends and all is committed, round after round, until the ring is full; then the process may end.
    Burst {
        rounds: u32,
        kill: bool,
    },
    /// A commit whose sync fails; the process ends, starts, and then the power goes.
    LostSync {
        device: usize,
    },
    /// The power goes so many operations into a step.
    CutIn {
        step: Step,
        after: u64,
    },
    /// The process ends, something happens to a file, it starts again.
    Damage {
        file: usize,
        how: Damage,
    },
    /// A destination refuses a record for good.
    Refuse {
        shard: u32,
        number: u64,
    },
    /// The power goes when so many more operations have reached the disk.
    CutPower {
        after: u64,
    },
    /// The power goes now; so many operations into the start that follows it may go again.
    Crash {
        again_after: Option<u64>,
    },
    /// SIGKILL: the page cache survives.
    Kill,
    /// A graceful stop.
    Close,
}

#[derive(Clone, Copy, Debug)]
pub enum Damage {
    /// Bits of one byte flip, in a page that was written.
    Flip {
        at: u64,
        xor: u8,
    },
    /// The disk refuses to read a page, until it is written again.
    Unreadable {
        at: u64,
    },
    Remove,
    /// Half of it is gone.
    Cut,
    /// From one of the pages that were written everything reads as zeros.
    Blank {
        at: u64,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Commit,
    Fold,
    Tick,
}

/// What a seed is about: most seeds stay away from some of the faults, so that what is left is judged strictly.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    pub crashes: bool,
    pub io_errors: bool,
    pub full_disk: bool,
    pub clock_jumps: bool,
    /// Files are damaged: losses are allowed then, if they are told.
    pub damage: bool,
    /// Streams small enough to evict.
    pub tight: bool,
    pub steps: u32,
}

impl Profile {
    pub fn of(seed: u64, rng: &mut Rng) -> Profile {
        Profile {
            crashes: seed % 8 != 7,
            io_errors: seed % 4 == 1,
            full_disk: seed % 6 == 2,
            clock_jumps: seed % 5 == 3,
            damage: seed % 8 == 6,
            tight: !seed.is_multiple_of(3),
            steps: rng.u32(60..320),
        }
    }

    /// A stream loses its oldest records in this run.
    pub fn evicts(&self, on_full: OnFull) -> bool {
        on_full == OnFull::DropOldest && (self.tight || self.full_disk)
    }

    /// Small enough that a run laps the ring and rolls segments.
    pub fn sizes(&self) -> SimSizes {
        let budget = if self.tight { 20 << 20 } else { 1 << 30 };
        SimSizes { budget, ring: 512 << 10, segment: 128 << 10, blob_file: 256 << 10 }
    }
}

impl Operation {
    pub fn draw(profile: &Profile, rng: &mut Rng) -> Operation {
        loop {
            let operation = any(rng);
            if operation.is_of(profile) {
                return operation;
            }
        }
    }

    fn is_of(&self, profile: &Profile) -> bool {
        match self {
            Operation::CutPower { .. } | Operation::Crash { .. } => profile.crashes,
            Operation::CutIn { .. } => profile.crashes,
            Operation::IoError(_) | Operation::CommitMeanwhile { fails: Some(_), .. } => profile.io_errors,
            Operation::LostSync { .. } => profile.io_errors && profile.crashes,
            Operation::Damage { .. } => profile.damage,
            Operation::DiskFull { .. } => profile.full_disk,
            Operation::ClockJump { .. } => profile.clock_jumps,
            _ => true,
        }
    }
}

fn any(rng: &mut Rng) -> Operation {
    match rng.u32(0..1000) {
        0..362 => Operation::Append { device: rng.usize(..), records: rng.u32(1..12) },
        362..370 => Operation::Refuse { shard: rng.u32(..), number: rng.u64(..) },
        370..380 => Operation::Damage { file: rng.usize(..), how: damage(rng) },
        380..400 => Operation::PutState { key: rng.u8(0..8) },
        400..610 => Operation::Commit,
        610..640 => Operation::CommitMeanwhile {
            device: rng.usize(..),
            records: rng.u32(1..12),
            fails: rng.bool().then(|| match rng.bool() {
                true => Fault::FailSync { after: 0 },
                false => Fault::Fail { after: 0 },
            }),
        },
        640..710 => Operation::Fold { all: rng.bool() },
        710..760 => Operation::Tick,
        760..780 => Operation::Read,
        780..840 => Operation::MoveCursor { sink: rng.usize(..), records: rng.u64(1..60) },
        840..850 => Operation::SlowSink { sink: rng.usize(..) },
        850..870 => Operation::Advance { ms: rng.u64(1..600_000) },
        870..880 => Operation::ClockJump { ms: rng.i64(-86_400_000..400_000_000) },
        880..892 => Operation::DiskFull { left: rng.u64(0..4 << 20) },
        892..915 => Operation::DiskFree,
        915..932 => Operation::IoError(fault(rng)),
        932..950 => Operation::Heal,
        950..958 => Operation::CutPower { after: rng.u64(0..200) },
        958..968 => Operation::CutIn { step: Step::Commit, after: rng.u64(0..3) },
        968..976 => Operation::CutIn { step: Step::Fold, after: rng.u64(0..70) },
        976..980 => Operation::CutIn { step: Step::Tick, after: rng.u64(0..12) },
        980..986 => Operation::Crash { again_after: rng.bool().then(|| rng.u64(0..120)) },
        986..991 => Operation::Kill,
        991..994 => Operation::Burst { rounds: rng.u32(5..60), kill: rng.bool() },
        994..996 => Operation::LostSync { device: rng.usize(..) },
        _ => Operation::Close,
    }
}

fn damage(rng: &mut Rng) -> Damage {
    match rng.u32(0..9) {
        0..5 => Damage::Flip { at: rng.u64(..), xor: 1 << rng.u32(0..8) },
        5 => Damage::Unreadable { at: rng.u64(..) },
        6 => Damage::Remove,
        7 => Damage::Blank { at: rng.u64(..) },
        _ => Damage::Cut,
    }
}

fn fault(rng: &mut Rng) -> Fault {
    match rng.u32(0..8) {
        0..4 => Fault::Fail { after: rng.u64(0..40) },
        4..6 => Fault::FailSync { after: rng.u64(0..6) },
        6 => Fault::FailRead { after: rng.u64(0..40) },
        _ => Fault::FailFrom { after: rng.u64(0..40) },
    }
}
