//! The log on its simulated disk, the devices and sinks around it, and what each operation does to them.

use super::clerk::Clerk;
use super::device::{Device, row_of};
use super::operation::{Damage, Operation, Profile, Step};
use super::oracle::{Allowed, Oracle, Pass, Verdict};
use fastrand::Rng;
use headwater::clock::Clock;
use headwater::log::disk::sim::{Fault, SimDisk};
use headwater::log::disk::{Mode, parent};
use headwater::log::sim::{SimStep, SteppedLog};
use headwater::log::{CursorState, Entry, OnFull, Position, Stream, StreamSettings, Table};
use headwater::record::{Gap, GapReason, Record, StreamName};
use headwater::units::{ByteSize, Span};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    crowd: Arc<Mutex<Crowd>>,
    log: Option<SteppedLog>,
    rng: Rng,
    clock: Clock,
    profile: Profile,
    slow: [bool; SINKS.len()],
    /// Highest cursor ever moved to, by sink, stream, shard.
    moved: BTreeMap<(usize, usize, u32), u64>,
    /// A segment was damaged, and may be so without anybody having noticed: the state must not be lost besides.
    hurt: bool,
    pub reopens: u32,
    /// What the last start reported, for a person.
    pub recovery: String,
    /// The last damage.
    pub what_happened: String,
    /// The start under way comes after damage of the journal.
    journal_damaged: Option<Damage>,
}

/// Everybody who is told that something is stored. Behind a lock, because they look for answers while the disk works.
struct Crowd {
    devices: Vec<Device>,
    /// What a device hands in at the next look at the disk: which one, how many records, into what.
    meanwhile: Option<(usize, u32, Arc<Stream>)>,
    clerk: Clerk,
    oracle: Oracle,
}

impl Crowd {
    fn send(&mut self, log: &SteppedLog, device: usize, records: u32) {
        let device = &mut self.devices[device % DEVICES as usize];
        if let Some(stream) = log.stream(STREAMS[device.stream].0) {
            device.send(log, &stream, records, &mut self.oracle);
        }
    }

    fn take_answers(&mut self) {
        for device in &mut self.devices {
            device.poll(&mut self.oracle);
        }
        self.clerk.poll(&mut self.oracle);
    }

    fn go_on(&mut self) {
        if let Some((device, records, stream)) = self.meanwhile.take() {
            self.devices[device].send_on(&stream, records, &mut self.oracle);
        }
    }
}

fn lock(crowd: &Mutex<Crowd>) -> MutexGuard<'_, Crowd> {
    crowd.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers reach nobody once the power is cut.
fn take_answers(crowd: &Mutex<Crowd>, sim: &SimDisk) {
    if !sim.power_is_cut() {
        lock(crowd).take_answers();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The observer has the disk in hand, and the disk the observer.
        self.sim.observe(|| {});
    }
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
        let sim = SimDisk::new(seed);
        let crowd = Arc::new(Mutex::new(Crowd { devices, meanwhile: None, clerk: Clerk::default(), oracle }));
        let (watching, disk) = (crowd.clone(), sim.clone());
        sim.observe(move || {
            // While a device hands something in, nobody else is listening; without power, nobody hears anything.
            if let Ok(mut crowd) = watching.try_lock()
                && !disk.power_is_cut()
            {
                crowd.take_answers();
                crowd.go_on();
            }
        });
        World {
            sim,
            crowd,
            log: None,
            rng: Rng::with_seed(seed ^ 0x5eed),
            clock: Clock::manual(1, START_MS),
            profile,
            slow: [false; SINKS.len()],
            moved: BTreeMap::new(),
            hurt: false,
            reopens: 0,
            recovery: String::new(),
            what_happened: String::new(),
            journal_damaged: None,
        }
    }

    pub fn apply(&mut self, operation: Operation) -> Verdict {
        if self.log.is_none() {
            self.reopen(None)?;
        }
        let acted = self.act(operation);
        match self.sim.power_is_cut() {
            // Whatever failed, failed for that.
            true => self.crash(None),
            false => acted,
        }
    }

    fn act(&mut self, operation: Operation) -> Verdict {
        let Some(log) = &mut self.log else { return Ok(()) };
        match operation {
            Operation::Append { device, records } => lock(&self.crowd).send(log, device, records),
            Operation::PutState { key } => {
                let Crowd { clerk, oracle, .. } = &mut *lock(&self.crowd);
                clerk.put(log, key, oracle);
            }
            Operation::Commit => {
                if log.commit_step() == SimStep::NoRoom {
                    // A fold that fails leaves things as they are; the next step tries again.
                    let _ = log.fold_step(true);
                }
                take_answers(&self.crowd, &self.sim);
            }
            Operation::CommitMeanwhile { device, records, fails } => {
                let device = device % DEVICES as usize;
                lock(&self.crowd).send(log, device, records);
                let stream = lock(&self.crowd).devices[device].stream;
                let stream = log.stream(STREAMS[stream].0);
                lock(&self.crowd).meanwhile = stream.map(|stream| (device, records, stream));
                fails.into_iter().for_each(|fault| self.sim.arm(fault));
                log.commit_step();
                lock(&self.crowd).meanwhile = None;
                take_answers(&self.crowd, &self.sim);
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
            Operation::Burst { rounds, kill } => {
                self.burst(rounds);
                if kill {
                    return self.end(SimDisk::kill);
                }
            }
            Operation::LostSync { device } => return self.lost_sync(device),
            Operation::CutIn { step, after } => {
                self.sim.arm(Fault::CutPower { after });
                match step {
                    Step::Commit => _ = log.commit_step(),
                    Step::Fold => _ = log.fold_step(true),
                    Step::Tick => log.tick(),
                }
            }
            Operation::Damage { file, how } => return self.damage(file, how),
            Operation::Refuse { shard, number } => self.refuse(shard, number),
            Operation::Crash { again_after } => return self.crash(again_after),
            Operation::Kill => return self.end(SimDisk::kill),
            Operation::Close => return self.close(),
        }
        Ok(())
    }

    pub fn acknowledged(&self) -> u64 {
        lock(&self.crowd).oracle.acknowledged
    }

    fn burst(&mut self, rounds: u32) {
        let Some(log) = &self.log else { return };
        for _ in 0..rounds {
            for device in 0..DEVICES as usize {
                lock(&self.crowd).send(log, device, 4);
            }
            let step = log.commit_step();
            take_answers(&self.crowd, &self.sim);
            if step != SimStep::Committed {
                break;
            }
        }
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
        take_answers(&self.crowd, &self.sim);
        // A machine without power does not go on after its process has ended.
        if self.sim.power_is_cut() {
            self.sim.crash()
        } else {
            how(&self.sim)
        }
        self.drop_log();
        Ok(())
    }

    fn lost_sync(&mut self, device: usize) -> Verdict {
        self.act(Operation::Append { device, records: 3 })?;
        self.sim.arm(Fault::FailSync { after: 0 });
        self.act(Operation::Commit)?;
        self.end(SimDisk::kill)?;
        self.reopen(None)?;
        self.crash(None)
    }

    /// Does something to a file of the log.
    fn damage(&mut self, file: usize, how: Damage) -> Verdict {
        let files: Vec<_> = self.sim.files().into_iter().filter(|(path, len)| path != "lock" && *len > 0).collect();
        let (path, len) = files[file % files.len()].clone();
        if path == "state.redb" && !self.can_lose_the_state() {
            return Ok(());
        }
        self.end(SimDisk::kill)?;
        let pages = self.sim.written_pages(&path);
        match how {
            Damage::Flip { at, xor } if !pages.is_empty() => {
                let page = pages[(at >> 12) as usize % pages.len()];
                self.sim.damage(&path, page * 4096 + at % 4096, xor);
            }
            Damage::Unreadable { at } if !pages.is_empty() => {
                self.sim.ruin(&path, pages[at as usize % pages.len()]);
            }
            Damage::Blank { at } if !pages.is_empty() => {
                let from = pages[at as usize % pages.len()] * 4096;
                let blanked = self.sim.mount().open(&path, Mode::Existing).and_then(|file| {
                    file.write_at(from, &vec![0; (len - from) as usize])?;
                    file.sync()
                });
                blanked.map_err(|error| error.to_string())?;
            }
            Damage::Flip { .. } | Damage::Unreadable { .. } | Damage::Blank { .. } => {}
            Damage::Remove => {
                let disk = self.sim.mount();
                disk.remove(&path).and_then(|()| disk.sync_dir(parent(&path))).map_err(|error| error.to_string())?;
            }
            Damage::Cut => {
                let cut = self.sim.mount().open(&path, Mode::Existing).and_then(|file| {
                    file.set_len(len / 2)?;
                    file.sync()
                });
                cut.map_err(|error| error.to_string())?;
            }
        }
        self.hurt |= path.starts_with("segments/");
        self.what_happened = format!("{how:?} of {path}, {len} bytes");
        self.journal_damaged = path.starts_with("journal/").then_some(how);
        let judged = self.reopen(None);
        self.journal_damaged = None;
        judged
    }

    /// The name and the numbers of every stream must be in a sound segment.
    fn can_lose_the_state(&mut self) -> bool {
        let Some(log) = &self.log else { return false };
        if self.hurt || log.fold_step(true).is_err() {
            return false;
        }
        let files = self.sim.files();
        STREAMS.iter().filter_map(|(name, ..)| log.stream(name)).all(|stream| {
            let dir = format!("segments/{:08x}/", stream.id);
            files.iter().any(|(path, _)| path.starts_with(&dir))
        })
    }

    fn refuse(&mut self, shard: u32, number: u64) {
        let Some(log) = &self.log else { return };
        let Some(stream) = log.stream(STREAMS[0].0) else { return };
        let shards = stream.shards();
        let shard = &shards[shard as usize % shards.len()];
        if shard.oldest() <= shard.newest() {
            let number = shard.oldest() + number % (shard.newest() + 1 - shard.oldest());
            log.record_gap(&stream, &Gap::of(shard.index, number, number, GapReason::Rejected));
        }
    }

    fn close(&mut self) -> Verdict {
        if let Some(log) = self.log.take() {
            // What it could not fold is in the journal.
            let _ = log.close();
            take_answers(&self.crowd, &self.sim);
        }
        if self.sim.power_is_cut() {
            return self.crash(None);
        }
        self.sim.kill();
        self.drop_log();
        self.reopen(None)
    }

    fn drop_log(&mut self) {
        {
            let mut crowd = lock(&self.crowd);
            crowd.devices.iter_mut().for_each(Device::lose_log);
            crowd.clerk.hang_up();
        }
        self.log = None;
    }

    /// Starts the log and judges everything it shows. With `may_fail` a start may end in the power cut that was armed.
    fn reopen(&mut self, may_fail: Option<()>) -> Verdict {
        self.reopens += 1;
        if may_fail.is_none() {
            // An operator clears the fault before the gateway is started again; a full disk need not be seen to.
            self.sim.disarm();
            let stays_full = self.profile.full_disk && !self.profile.damage && self.reopens > 2 && self.rng.bool();
            let left = self.rng.u64(0..64 << 10);
            self.sim.set_capacity(if stays_full { self.sim.used_bytes() + left } else { ROOM_BYTES });
        }
        let seed = self.rng.u64(..);
        match SteppedLog::open(self.sim.mount(), self.clock.clone(), seed, self.profile.sizes()) {
            Ok(log) => {
                self.recovery = format!("{:?}", log.recovery);
                if std::env::var_os("HEADWATER_SIM_STEPS").is_some() {
                    println!("{}{}", self.what_happened, self.recovery);
                }
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
                let settings =
                    StreamSettings { shards, retention: Span::days(2), max_bytes, on_full, ..Default::default() };
                let name = StreamName::new(name).map_err(|error| error.to_string())?;
                log.create_stream(&name, settings).map_err(|error| error.to_string())?;
                if self.profile.damage {
                    // The stream itself is out of harm's way.
                    let _ = log.fold_step(true);
                }
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
                    let _ = read_all(log, &stream, shard.index, &mut |error| Err(error));
                }
            }
            self.sim.disarm();
            if self.sim.power_is_cut() {
                return Ok(());
            }
            log.tick();
        }
        let (after_clean_stop, mut live, mut refusals, mut rows) = (!live && log.recovery.clean, live, 0, Vec::new());
        for (index, (name, _, on_full)) in STREAMS.iter().enumerate() {
            let Some(stream) = log.stream(name) else { return Err(format!("the stream {name} is gone")) };
            let evicted = self.profile.evicts(*on_full);
            for shard in stream.shards().iter() {
                // Neither says that anything was there.
                let untold = |how| log.recovery.torn || matches!(how, Damage::Blank { .. });
                if self.journal_damaged.is_some_and(untold) {
                    lock(&self.crowd).oracle.excuse_tail(index, shard.index, shard.newest());
                }
                let own = |log: &SteppedLog| -> Vec<Gap> {
                    log.gaps(&stream).into_iter().filter(|gap| gap.shard == shard.index).collect()
                };
                let explains = |known: &Gap, gap: &Gap| {
                    known.reason != GapReason::Rejected && known.from <= gap.from && gap.to <= known.to
                };
                let mut may_commit = true;
                let (records, met) = loop {
                    let (records, met) = match self.profile.damage {
                        false => read_all(log, &stream, shard.index, &mut |error| Err(error))?,
                        // A damaged file is refused to its readers, who ask again, and then healed.
                        true => read_all(log, &stream, shard.index, &mut |error| {
                            (live, refusals) = (true, refusals + 1);
                            log.heal();
                            log.commit_step();
                            if refusals > REFUSALS_MAX { Err(error) } else { Ok(()) }
                        })?,
                    };
                    let is_told = met.iter().all(|gap| own(log).iter().any(|known| explains(known, gap)));
                    if is_told || !std::mem::take(&mut may_commit) {
                        break (records, met);
                    }
                    // What a reader was told is in the ledger with the next commit, which brings new records besides.
                    if log.commit_step() == SimStep::NoRoom {
                        let _ = log.fold_step(true);
                        log.commit_step();
                    }
                    take_answers(&self.crowd, &self.sim);
                    if self.sim.power_is_cut() {
                        return Ok(());
                    }
                };
                let (oldest, newest) = (shard.oldest(), shard.newest());
                let ledger = own(log);
                let pass = Pass {
                    stream: index,
                    shard: shard.index,
                    first_number: shard.first_number(),
                    oldest,
                    newest,
                    records: &records,
                    met: &met,
                    live,
                    ledger: &ledger,
                };
                lock(&self.crowd).oracle.judge(&pass, Allowed { evicted, corrupt: self.profile.damage })?;
                if after_clean_stop {
                    lock(&self.crowd).oracle.forget_unused(index, shard.index, shard.newest());
                }
                // A frame that was damaged may have held a cursor's way back.
                judge_cursors(log, &stream, index, shard.index, shard.newest(), &self.moved)?;
            }
        }
        for device in lock(&self.crowd).devices.iter().filter(|device| device.keeps_row && !self.profile.damage) {
            rows.push((device.id, row_of(log, device.id), self.profile.evicts(STREAMS[device.stream].2)));
        }
        rows.into_iter().try_for_each(|(id, row, evicted)| lock(&self.crowd).oracle.judge_row(id, row, evicted))?;
        for key in 0..8 {
            let row = log.state(Table::Uplink, &[key]);
            let value = row.map(|row| u64::from_be_bytes(row.as_ref().try_into().unwrap_or_default()));
            if !self.profile.damage {
                lock(&self.crowd).oracle.judge_state(key, value)?;
            }
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

/// How often in all a reader is sent away.
const REFUSALS_MAX: u32 = 2_000;

/// Everything from the first number there ever was to the tail. `refused` says whether to ask again.
fn read_all(
    log: &SteppedLog,
    stream: &Arc<Stream>,
    shard: u32,
    refused: &mut dyn FnMut(String) -> Verdict,
) -> Result<(Vec<Record>, Vec<Gap>), String> {
    let (mut records, mut met) = (Vec::new(), Vec::new());
    let mut reader = log.reader(stream, shard, Position::At(0)).map_err(|error| error.to_string())?;
    loop {
        let entries = match reader.next_blocking(1_000, 4 << 20) {
            Ok(entries) if entries.is_empty() => return Ok((records, met)),
            Ok(entries) => entries,
            Err(error) => {
                refused(error.to_string())?;
                continue;
            }
        };
        for entry in entries {
            match entry {
                Entry::Record(record) => records.push(record),
                Entry::Gap(gap) => met.push(gap),
            }
        }
    }
}
