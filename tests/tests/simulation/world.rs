//! The log on its simulated disk, the devices and sinks around it, and what each operation does to them.

use super::device::Device;
use super::operation::{Operation, Profile};
use super::oracle::{Allowed, Oracle, Pass, Verdict};
use bytes::Bytes;
use fastrand::Rng;
use headwater::clock::Clock;
use headwater::log::disk::sim::{Fault, SimDisk};
use headwater::log::sim::{SimStep, SteppedLog};
use headwater::log::{Appender, Batch, CursorState, Entry, OnFull, Position, Stream, StreamSettings, Table, Ticket};
use headwater::record::{Gap, Record, StreamName};
use headwater::units::{ByteSize, Span};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

const DEVICES: u32 = 8;
/// Name, shards, what happens when it is full.
const STREAMS: [(&str, u32, OnFull); 2] = [("readings", 3, OnFull::DropOldest), ("orders", 1, OnFull::Reject)];
/// Name, and whether it holds retention.
const SINKS: [(&str, bool); 2] = [("cloud", true), ("file", false)];
/// 2026-06-01, after the clock may be believed.
const START_MS: u64 = 1_780_272_000_000;
const ROOM_BYTES: u64 = 1 << 40;

pub struct World {
    pub sim: SimDisk,
    pub oracle: Oracle,
    log: Option<SteppedLog>,
    rng: Rng,
    clock: Clock,
    profile: Profile,
    devices: Vec<Device>,
    clerk: Clerk,
    slow: [bool; SINKS.len()],
    /// Highest cursor ever moved to, by sink, stream, shard.
    moved: BTreeMap<(usize, usize, u32), u64>,
    pub reopens: u32,
    /// What the last start reported, for a person.
    pub recovery: String,
}

/// Stores rows of state, one value after the other.
#[derive(Default)]
struct Clerk {
    appender: Option<Appender>,
    next: u64,
    pending: VecDeque<(Ticket, u8, u64)>,
}

impl World {
    pub fn new(seed: u64, profile: Profile) -> World {
        let mut oracle = Oracle::default();
        let devices = (0..DEVICES)
            .map(|id| {
                let numbered = id % 2 == 0;
                if numbered {
                    oracle.is_numbered(id);
                }
                Device::new(id, usize::from(id % 4 == 3), numbered)
            })
            .collect();
        World {
            sim: SimDisk::new(seed),
            oracle,
            log: None,
            rng: Rng::with_seed(seed ^ 0x5eed),
            clock: Clock::manual(1, START_MS),
            profile,
            devices,
            clerk: Clerk::default(),
            slow: [false; SINKS.len()],
            moved: BTreeMap::new(),
            reopens: 0,
            recovery: String::new(),
        }
    }

    pub fn apply(&mut self, operation: Operation) -> Verdict {
        if self.log.is_none() {
            self.reopen(None)?;
        }
        self.act(operation)?;
        if self.sim.power_is_cut() {
            self.crash(None)?;
        }
        Ok(())
    }

    fn act(&mut self, operation: Operation) -> Verdict {
        let Some(log) = &mut self.log else { return Ok(()) };
        match operation {
            Operation::Append { device, records } => {
                let device = &mut self.devices[device % DEVICES as usize];
                if let Some(stream) = log.stream(STREAMS[device.stream].0) {
                    device.send(log, &stream, records, &mut self.oracle);
                }
            }
            Operation::PutState { key } => self.clerk.put(log, key, &mut self.oracle),
            Operation::Commit => {
                if log.commit_step() == SimStep::NoRoom {
                    // A fold that fails leaves things as they are; the next step tries again.
                    let _ = log.fold_step(true);
                }
                self.take_answers();
            }
            Operation::Fold { all } => _ = log.fold_step(all),
            Operation::Tick => log.tick(),
            Operation::Read => return self.judge(true),
            Operation::MoveCursor { sink, records } => self.move_cursor(sink % SINKS.len(), records),
            Operation::SlowSink { sink } => self.slow[sink % SINKS.len()] ^= true,
            Operation::Advance { ms } => self.clock.advance(ms),
            Operation::ClockJump { ms } => self.clock.jump_wall(ms),
            Operation::DiskFull { left } => self.sim.set_capacity(self.sim.used_bytes() + left),
            Operation::DiskFree => self.sim.set_capacity(ROOM_BYTES),
            Operation::IoError(fault) => self.sim.arm(fault),
            Operation::Heal => self.sim.disarm(),
            Operation::CutPower { after } => self.sim.arm(Fault::CutPower { after }),
            Operation::Crash { again_after } => return self.crash(again_after),
            Operation::Kill => return self.end(SimDisk::kill),
            Operation::Close => return self.close(),
        }
        Ok(())
    }

    fn take_answers(&mut self) {
        for device in &mut self.devices {
            device.poll(&mut self.oracle);
        }
        self.clerk.poll(&mut self.oracle);
    }

    fn move_cursor(&mut self, sink: usize, records: u64) {
        let Some(log) = &self.log else { return };
        if self.slow[sink] {
            return;
        }
        for (index, (name, _, _)) in STREAMS.iter().enumerate() {
            let Some(stream) = log.stream(name) else { continue };
            for shard in stream.shards().iter() {
                let cursor = log.cursor(SINKS[sink].0, &stream, shard.index);
                let mut cursor = cursor.unwrap_or_else(|| CursorState::at(shard.oldest()));
                let to = (cursor.next + records).min(shard.newest() + 1);
                cursor.raise(to);
                let moved = self.moved.entry((sink, index, shard.index)).or_default();
                *moved = (*moved).max(to);
                log.move_cursor(SINKS[sink].0, &stream, shard.index, cursor);
            }
        }
    }
}

// Ends and starts.
impl World {
    fn crash(&mut self, again_after: Option<u64>) -> Verdict {
        self.end(SimDisk::crash)?;
        if let Some(after) = again_after {
            self.sim.arm(Fault::CutPower { after });
            // Recovery itself is cut off, or is through before the power goes.
            self.reopen(Some(()))?;
            self.end(SimDisk::crash)?;
        }
        self.reopen(None)
    }

    /// What was acknowledged up to this moment is a promise; then the process is no more.
    fn end(&mut self, how: fn(&SimDisk)) -> Verdict {
        self.take_answers();
        how(&self.sim);
        self.drop_log();
        Ok(())
    }

    fn close(&mut self) -> Verdict {
        if let Some(log) = self.log.take() {
            // What it could not fold is in the journal.
            let _ = log.close();
            self.take_answers();
        }
        if self.sim.power_is_cut() {
            return self.crash(None);
        }
        self.sim.kill();
        self.drop_log();
        self.reopen(None)
    }

    fn drop_log(&mut self) {
        self.devices.iter_mut().for_each(Device::disconnect);
        self.clerk = Clerk { next: self.clerk.next, ..Clerk::default() };
        self.log = None;
    }

    /// Starts the log and judges everything it shows. With `may_fail` a start may end in the power cut that was armed.
    fn reopen(&mut self, may_fail: Option<()>) -> Verdict {
        self.reopens += 1;
        if may_fail.is_none() {
            // An operator clears the fault before the gateway is started again.
            self.sim.disarm();
            self.sim.set_capacity(ROOM_BYTES);
        }
        let seed = self.rng.u64(..);
        match SteppedLog::open(self.sim.mount(), self.clock.clone(), seed, self.profile.sizes()) {
            Ok(log) => {
                self.recovery = format!("{:?}", log.recovery);
                self.log = Some(log);
            }
            Err(_) if may_fail.is_some() && self.sim.power_is_cut() => return Ok(()),
            Err(error) => return Err(format!("the log does not start: {error}")),
        }
        let made = self.make_streams();
        if self.sim.power_is_cut() {
            return Ok(());
        }
        made?;
        let judged = self.judge(false);
        if self.sim.power_is_cut() { Ok(()) } else { judged }
    }

    fn make_streams(&mut self) -> Verdict {
        let Some(log) = &mut self.log else { return Ok(()) };
        for (name, shards, on_full) in STREAMS {
            if log.stream(name).is_none() {
                let max_bytes = self.profile.tight.then_some(ByteSize(1 << 20));
                let settings = StreamSettings { shards, retention: Span::days(2), max_bytes, on_full };
                let name = StreamName::new(name).map_err(|error| error.to_string())?;
                log.create_stream(&name, settings).map_err(|error| error.to_string())?;
            }
        }
        for stream in STREAMS.iter().filter_map(|(name, _, _)| log.stream(name)) {
            for (sink, required) in SINKS {
                log.register_sink(sink, &stream, required);
            }
        }
        Ok(())
    }
}

// Judgement.
impl World {
    fn judge(&mut self, live: bool) -> Verdict {
        let Some(log) = &mut self.log else { return Ok(()) };
        if self.profile.io_errors && live {
            // A read may fail once; what comes after is judged.
            for stream in STREAMS.iter().filter_map(|(name, _, _)| log.stream(name)) {
                for shard in stream.shards().iter() {
                    let _ = read_all(log, &stream, shard.index);
                }
            }
            self.sim.disarm();
            if self.sim.power_is_cut() {
                return Ok(());
            }
            log.tick();
        }
        for (index, (name, _, on_full)) in STREAMS.iter().enumerate() {
            let Some(stream) = log.stream(name) else { return Err(format!("the stream {name} is gone")) };
            let ledger = log.gaps(&stream);
            let evicted = *on_full == OnFull::DropOldest && (self.profile.tight || self.profile.full_disk);
            for shard in stream.shards().iter() {
                let (records, met) = read_all(log, &stream, shard.index)?;
                let own: Vec<Gap> = ledger.iter().filter(|gap| gap.shard == shard.index).cloned().collect();
                let pass = Pass {
                    stream: index,
                    shard: shard.index,
                    first_number: shard.first_number(),
                    oldest: shard.oldest(),
                    newest: shard.newest(),
                    records: &records,
                    met: &met,
                    live,
                    ledger: &own,
                };
                self.oracle.judge(&pass, Allowed { evicted, corrupt: false })?;
                if !live {
                    self.oracle.forget_unused(index, shard.index, shard.newest());
                }
                judge_cursors(log, &stream, index, shard.index, shard.newest(), &self.moved)?;
            }
        }
        for key in 0..8 {
            let row = log.state(Table::Uplink, &[key]);
            let value = row.map(|row| u64::from_be_bytes(row.as_ref().try_into().unwrap_or_default()));
            self.oracle.judge_state(key, value)?;
        }
        Ok(())
    }
}

/// Law: a cursor stands neither beyond what its sink acknowledged nor beyond what is durable.
fn judge_cursors(
    log: &SteppedLog,
    stream: &Arc<Stream>,
    index: usize,
    shard: u32,
    newest: u64,
    moved: &BTreeMap<(usize, usize, u32), u64>,
) -> Verdict {
    let oldest = stream.shard(shard).map_or(1, |shard| shard.oldest());
    for (sink, (name, _)) in SINKS.iter().enumerate() {
        let Some(cursor) = log.cursor(name, stream, shard) else { continue };
        let most = moved.get(&(sink, index, shard)).copied().unwrap_or(1).max(oldest);
        if cursor.next > newest + 1 {
            return Err(format!("law: cursor {} of {name} <= durable {newest}", cursor.next));
        }
        if cursor.next > most {
            return Err(format!("the cursor of {name} stands at {} and was moved to {most} at most", cursor.next));
        }
    }
    Ok(())
}

fn read_all(log: &SteppedLog, stream: &Arc<Stream>, shard: u32) -> Result<(Vec<Record>, Vec<Gap>), String> {
    let mut reader = log.reader(stream, shard, Position::Oldest).map_err(|error| error.to_string())?;
    let (mut records, mut met) = (Vec::new(), Vec::new());
    loop {
        let entries = reader.next_blocking(1_000, 4 << 20).map_err(|error| error.to_string())?;
        if entries.is_empty() {
            return Ok((records, met));
        }
        for entry in entries {
            match entry {
                Entry::Record(record) => records.push(record),
                Entry::Gap(gap) => met.push(gap),
            }
        }
    }
}

impl Clerk {
    fn put(&mut self, log: &SteppedLog, key: u8, oracle: &mut Oracle) {
        self.next += 1;
        let value = self.next;
        let mut batch = Batch::new();
        batch.put_state(Table::Uplink, vec![key], Some(Bytes::copy_from_slice(&value.to_be_bytes())));
        let appender = self.appender.get_or_insert_with(|| log.appender());
        if let Ok(Some((ticket, _))) = log.append(appender, &mut batch) {
            oracle.state_sent(key, value);
            self.pending.push_back((ticket, key, value));
        }
    }

    fn poll(&mut self, oracle: &mut Oracle) {
        let Some(appender) = &self.appender else { return };
        let Ok(durable) = appender.durable_now() else {
            *self = Clerk { next: self.next, ..Clerk::default() };
            return;
        };
        while let Some((_, key, value)) = self.pending.pop_front_if(|(ticket, _, _)| *ticket <= durable) {
            oracle.state_acknowledged(key, value);
        }
    }
}
