//! The door: what one group takes, and who may go on after one that failed, with which numbers.

use super::disk::sim::{Fault, SimDisk};
use super::sim::{SimSizes, SimStep, SteppedLog};
use super::*;
use crate::record::{GapReason, NewRecord, Producer};

const SIZES: SimSizes = SimSizes { budget: 1 << 30, ring: 4 << 20, segment: 1 << 20, blob_file: 1 << 20 };

fn log_and_stream(sim: &SimDisk) -> (SteppedLog, Arc<Stream>) {
    let log = SteppedLog::open(sim.mount(), Clock::manual(1, 1_800_000_000_000), 1, SIZES).unwrap();
    let settings = StreamSettings { shards: 1, ..StreamSettings::default() };
    let stream = log.create_stream(&StreamName::new("s").unwrap(), settings).unwrap();
    (log, stream)
}

fn numbered(stream: &Arc<Stream>, sequence: u64) -> Batch {
    let mut batch = Batch::new();
    let producer = Some(Producer { id: 1, epoch: 1, sequence });
    batch.push(stream, &NewRecord { key: b"k", producer, data: b"data", ..Default::default() }).unwrap();
    batch
}

// The door was open again before those who wait were told. One that handed in its next record in between had that one
// stored, was told that the one before failed, sent both again, and had the first taken for stored.
#[test]
fn whoever_waits_for_a_failed_group_is_told_before_the_door_opens_again() {
    let sim = SimDisk::new(1);
    let (log, stream) = log_and_stream(&sim);
    let mut appender = log.appender();
    log.append(&mut appender, &mut numbered(&stream, 1)).unwrap().unwrap();
    let group = log.engine.door.take(usize::MAX, &log.engine.state);
    log.append(&mut appender, &mut numbered(&stream, 2)).unwrap().unwrap();
    log.engine.door.failed(&group, "the disk said no");
    assert!(log.append(&mut appender, &mut numbered(&stream, 3)).is_err());

    let mut again = log.appender();
    for sequence in 1..=3 {
        let (_, places) = log.append(&mut again, &mut numbered(&stream, sequence)).unwrap().unwrap();
        assert!(matches!(places[..], [Placement::Stored { .. }]), "{sequence}: {places:?}");
    }
}

// Each group that fails uses its numbers up, and the entry that reserves more of them failed too. Once they were out, the
// shard waited for a reserve that nobody asked for, although the disk was well again.
#[test]
fn a_shard_whose_numbers_were_used_up_by_failures_goes_on_when_the_disk_does() {
    const RECORDS: u64 = 50_000;
    let sim = SimDisk::new(1);
    let (log, stream) = log_and_stream(&sim);
    let shard = stream.shard(0).unwrap();
    log.commit_step();
    let hand_in = || {
        let mut batch = Batch::new();
        let record = NewRecord { key: b"k", ..Default::default() };
        (0..RECORDS).for_each(|_| batch.push(&stream, &record).unwrap());
        batch
    };
    let mut rounds = 0;
    while shard.assigned() + RECORDS <= shard.reserved() {
        sim.arm(Fault::FailSync { after: 0 });
        let mut appender = log.appender();
        log.append(&mut appender, &mut hand_in()).unwrap();
        assert_eq!(log.commit_step(), SimStep::Failed);
        rounds += 1;
        assert!(rounds < 1_000, "{} of {}", shard.assigned(), shard.reserved());
    }
    sim.disarm();
    let mut appender = log.appender();
    let mut handed_in = false;
    for _ in 0..10 {
        handed_in = handed_in || log.append(&mut appender, &mut hand_in()).unwrap().is_some();
        log.commit_step();
        let _ = log.fold_step(true);
    }
    assert!(handed_in && appender.durable_now().unwrap() > Ticket::NONE);
}

const SMALL: SimSizes = SimSizes { budget: 1 << 30, ring: 512 << 10, segment: 128 << 10, blob_file: 256 << 10 };

fn open(sim: &SimDisk, seed: u64, sizes: SimSizes) -> SteppedLog {
    SteppedLog::open(sim.mount(), Clock::manual(1, 1_800_000_000_000), seed, sizes).unwrap()
}

fn row(n: u32) -> (Bytes, Bytes) {
    let mut noise = fastrand::Rng::with_seed(u64::from(n));
    (n.to_be_bytes().to_vec().into(), std::iter::repeat_with(|| noise.u8(..)).take(400).collect())
}

/// Commits until nothing is left to commit.
fn settle(log: &SteppedLog) {
    loop {
        match log.commit_step() {
            SimStep::Committed => {}
            SimStep::NoRoom => _ = log.fold_step(true).unwrap(),
            SimStep::Idle => return,
            SimStep::Failed => panic!("{:?}", log.trouble()),
        }
    }
}

// Changes of state had no bound: a frame that was longer than a file of the journal was written past the file's end and
// acknowledged, and the next start refused it with all that was in it. A shorter one found no room and ended the committer.
#[test]
fn changes_of_state_that_no_group_holds_come_in_pieces_and_stay() {
    const ROWS: u32 = 2_000;
    let sim = SimDisk::new(1);
    let (log, mut batch) = (open(&sim, 1, SMALL), Batch::new());
    (0..ROWS).map(row).for_each(|(key, value)| batch.put_state(Table::Sessions, key, Some(value)));
    let mut appender = log.appender();
    let ticket = loop {
        // What has found its place is not in the batch any more.
        match log.append(&mut appender, &mut batch).unwrap() {
            Some((ticket, _)) => break ticket,
            None => settle(&log),
        }
    };
    settle(&log);
    assert_eq!(appender.durable_now().unwrap(), ticket);
    sim.crash();
    drop(log);
    let log = open(&sim, 2, SMALL);
    assert_eq!(log.engine.state.scan(Table::Sessions, b""), (0..ROWS).map(row).collect::<Vec<_>>());
}

#[test]
fn many_changes_of_state_during_one_slow_sync_wait_for_the_next_group() {
    let sim = SimDisk::new(1);
    let log = open(&sim, 1, SMALL);
    let mut waiting = Vec::new();
    for n in 0..1_000 {
        let (mut batch, (key, value)) = (Batch::new(), row(n));
        batch.put_state(Table::Sessions, key, Some(value));
        let mut appender = log.appender();
        if log.append(&mut appender, &mut batch).unwrap().is_none() {
            waiting.push(n);
        }
    }
    assert!((1..1_000).contains(&waiting.len()), "{}", waiting.len());
    settle(&log);
    sim.crash();
    drop(log);
    let log = open(&sim, 2, SMALL);
    assert_eq!(log.engine.state.scan(Table::Sessions, b"").len(), 1_000 - waiting.len());
}

#[test]
fn changes_of_the_log_itself_go_over_as_many_groups_as_they_need() {
    const ROWS: u32 = 2_000;
    let sim = SimDisk::new(1);
    let log = open(&sim, 1, SMALL);
    let ticket = log.engine.door.put_state((0..ROWS).map(row).map(|(key, value)| (Table::Uplink, key, Some(value))));
    assert_eq!(log.commit_step(), SimStep::Committed);
    assert!(log.engine.door.durable_with(ticket) > ticket);
    settle(&log);
    sim.crash();
    drop(log);
    let log = open(&sim, 2, SMALL);
    assert_eq!(log.engine.state.scan(Table::Uplink, b"").len(), ROWS as usize);
}

#[test]
fn a_stream_with_a_long_ledger_is_deleted_and_a_crash_in_between_leaves_nothing_of_it() {
    let sim = SimDisk::new(1);
    let log = open(&sim, 1, SMALL);
    let name = StreamName::new("s").unwrap();
    let stream = log.create_stream(&name, StreamSettings { shards: 1, ..StreamSettings::default() }).unwrap();
    (0..5_000)
        .for_each(|n| log.record_gap(&stream, &Gap::of(0, 2 * n + 1, 2 * n + 1, crate::record::GapReason::Corrupt)));
    settle(&log);
    assert_eq!(log.gaps(&stream).len(), 5_000);
    log.delete_stream(&name).unwrap();
    sim.crash();
    drop(log);
    let log = open(&sim, 2, SMALL);
    assert!(log.stream("s").is_none());
    settle(&log);
    for table in Table::OF_STREAMS {
        assert_eq!(log.engine.state.scan(table, b""), [], "{table:?}");
    }
}

// A ring stays as large as it was made. With a larger budget, groups were larger than its files.
#[test]
fn groups_are_bounded_by_the_ring_there_is_and_not_by_the_one_a_new_budget_would_make() {
    let sim = SimDisk::new(1);
    let log = open(&sim, 1, SMALL);
    let name = StreamName::new("s").unwrap();
    log.create_stream(&name, StreamSettings { shards: 1, ..StreamSettings::default() }).unwrap();
    log.close().unwrap();
    let log = open(&sim, 2, SimSizes { ring: 16 << 20, ..SMALL });
    let stream = log.stream("s").unwrap();
    let mut numbers = 0;
    for n in 0..1_000 {
        let ((_, data), mut batch, mut appender) = (row(n), Batch::new(), log.appender());
        batch.push(&stream, &NewRecord { key: b"k", data: &data, ..Default::default() }).unwrap();
        numbers += u64::from(log.append(&mut appender, &mut batch).unwrap().is_some());
    }
    settle(&log);
    assert_eq!(stream.shard(0).unwrap().newest(), numbers);
    sim.crash();
    drop(log);
    let log = open(&sim, 3, SMALL);
    assert_eq!(log.stream("s").unwrap().shard(0).unwrap().newest(), numbers);
}

// Rows of producers went at a start alone. Until then there was one of everybody who ever sent, and the start read them in
// the order of their keys and kept the last.
#[test]
fn marks_on_disk_are_those_that_are_remembered() {
    use crate::log::producer::PRODUCERS_MAX;
    let sim = SimDisk::new(1);
    let (log, stream) = log_and_stream(&sim);
    let mut appender = log.appender();
    for from in (0..PRODUCERS_MAX as u128 + 5_000).step_by(500) {
        let mut batch = Batch::new();
        for id in from..from + 500 {
            // The first of all is never silent.
            for id in [id, 0] {
                let producer = Some(Producer { id: u128::MAX / 2 - id, epoch: 1, sequence: from as u64 + 1 });
                batch.push(&stream, &NewRecord { key: b"k", producer, ..Default::default() }).unwrap();
            }
        }
        log.append(&mut appender, &mut batch).unwrap().unwrap();
        settle(&log);
        if from % 5_000 == 0 {
            log.fold_step(true).unwrap();
        }
    }
    log.fold_step(true).unwrap();
    sim.crash();
    drop(log);
    let state_db = crate::log::state_db::StateDb::open(&*sim.mount(), disk::Written::default()).unwrap();
    let (mut marks, mut first) = (0, false);
    let count = |table, key: Bytes, _| {
        marks += usize::from(table == Table::Producers);
        first |= table == Table::Producers && key.ends_with(&(u128::MAX / 2).to_be_bytes());
    };
    state_db.load(count).unwrap();
    assert!((PRODUCERS_MAX / 2..=PRODUCERS_MAX).contains(&marks), "{marks}");
    assert!(first);
}

// A reader that met damage while the group that told of it was on its way to the disk had it counted, and logged, again.
#[test]
fn a_gap_is_counted_once_whoever_meets_it_while_it_is_being_written() {
    let sim = SimDisk::new(1);
    let (log, stream) = log_and_stream(&sim);
    let label = crate::metrics::ReasonLabel { part: "log", reason: "corrupt" };
    let meet = || {
        log.record_gap(&stream, &Gap::of(0, 1, 2, GapReason::Corrupt));
        log.engine.metrics.gap_records.get_or_create(&label).get()
    };
    assert_eq!((meet(), meet()), (2, 2));
    let group = log.engine.door.take(usize::MAX, &log.engine.state);
    assert_eq!(meet(), 2, "it is being written");
    log.engine.door.failed(&group, "the disk said no");
    assert_eq!(meet(), 2, "it waits again");
    log.commit_step();
    assert_eq!((meet(), log.gaps(&stream).len()), (2, 1));
}

fn four_shards(log: &SteppedLog, name: &str) -> Arc<Stream> {
    let settings = StreamSettings { shards: 4, on_full: OnFull::Reject, ..StreamSettings::default() };
    log.create_stream(&StreamName::new(name).unwrap(), settings).unwrap()
}

/// Numbers in order, over the shards as their keys fall.
fn push_numbered(batch: &mut Batch, stream: &Arc<Stream>, numbers: std::ops::RangeInclusive<u64>, data: &[u8]) {
    for sequence in numbers {
        let (key, producer) = (format!("key-{sequence}"), Some(Producer { id: 1, epoch: 1, sequence }));
        let record = NewRecord { key: key.as_bytes(), producer, data, ..Default::default() };
        batch.push(stream, &record).unwrap();
    }
}

// A higher number that is stored says that the lower ones are: one that a full stream has refused would be forgotten.
#[test]
fn numbered_records_that_go_as_one_are_refused_all_or_none() {
    let sim = SimDisk::new(1);
    let (log, open) = log_and_stream(&sim);
    let full = four_shards(&log, "full");
    full.full.store(true, std::sync::atomic::Ordering::Relaxed);
    for as_one in [false, true] {
        let mut batch = Batch::new();
        push_numbered(&mut batch, &full, 1..=2, b"x");
        push_numbered(&mut batch, &open, 3..=4, b"x");
        batch.push(&open, &NewRecord { key: b"k", ..Default::default() }).unwrap();
        batch
            .push(&four_shards(&log, &format!("ordinary-{as_one}")), &NewRecord { key: b"k", ..Default::default() })
            .unwrap();
        if as_one {
            batch.take_numbered_as_one();
        }
        let (_, places) = log.append(&mut log.appender(), &mut batch).unwrap().unwrap();
        let refused: Vec<bool> = places.iter().map(|place| matches!(place, Placement::Full { .. })).collect();
        assert_eq!(refused, [true, true, as_one, as_one, as_one, false], "what shares a shard with it goes with it");
    }
}

// Groups become durable one by one: were a batch in two of them, a crash in between would leave a higher number alone.
#[test]
fn what_goes_as_one_is_in_one_group_and_its_last_number_is_told_when_it_is_durable() {
    let sim = SimDisk::new(1);
    let log = open(&sim, 1, SMALL);
    let stream = four_shards(&log, "s");
    log.commit_step();
    let room = log.engine.door.group_bytes_max();
    let mut first = Batch::new();
    first.push(&stream, &NewRecord { key: b"k", data: &vec![0; room / 2], ..Default::default() }).unwrap();
    log.append(&mut log.appender(), &mut first).unwrap().unwrap();
    let mut batch = Batch::new();
    push_numbered(&mut batch, &stream, 1..=40, &vec![0; room / 60]);
    batch.take_numbered_as_one();
    let mut appender = log.appender();
    assert!(log.append(&mut appender, &mut batch).unwrap().is_none(), "not a part of it, though there is room for one");
    log.commit_step();
    assert_eq!(log.engine.kept.lock().unwrap().get(1), None);
    let mut batch = Batch::new();
    push_numbered(&mut batch, &stream, 1..=40, &vec![0; room / 60]);
    batch.take_numbered_as_one();
    log.append(&mut appender, &mut batch).unwrap().unwrap();
    assert_eq!(log.engine.kept.lock().unwrap().get(1), None, "not durable yet");
    log.commit_step();
    assert_eq!(log.engine.kept.lock().unwrap().get(1), Some((1, 40)));

    let mut lost = Batch::new();
    push_numbered(&mut lost, &stream, 41..=44, b"x");
    sim.arm(Fault::FailSync { after: 0 });
    log.append(&mut log.appender(), &mut lost).unwrap().unwrap();
    assert_eq!(log.commit_step(), SimStep::Failed);
    assert_eq!(log.engine.kept.lock().unwrap().get(1), Some((1, 40)));
    sim.disarm();
    drop(log);
    let log = open(&sim, 2, SMALL);
    // What a failed sync has left may be whole, and then it counts: as a whole.
    assert!(matches!(log.engine.kept.lock().unwrap().get(1), Some((1, 40 | 44))));
}
