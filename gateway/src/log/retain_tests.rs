//! What goes, and that nothing goes before it is told: retention against a sync that fails and a power cut.

use super::disk::sim::{Fault, SimDisk};
use super::engine::lock;
use super::sim::{SimSizes, SimStep, SteppedLog};
use super::*;
use crate::metrics::{ReasonLabel, SinkLabel};
use crate::record::{GapReason, NewRecord};

const SIZES: SimSizes = SimSizes { budget: 1 << 30, ring: 1 << 20, segment: 128 << 10, blob_file: 256 << 10 };
/// Less than four segments take.
const KEPT: ByteSize = ByteSize(512 << 10);

fn open(sim: &SimDisk, seed: u64) -> SteppedLog {
    SteppedLog::open(sim.mount(), Clock::manual(1, 1_800_000_000_000), seed, SIZES).unwrap()
}

fn made(log: &SteppedLog, max_bytes: Option<ByteSize>) -> Arc<Stream> {
    let settings = StreamSettings { shards: 1, max_bytes, ..StreamSettings::default() };
    log.create_stream(&name(), settings).unwrap()
}

fn name() -> StreamName {
    StreamName::new("s").unwrap()
}

/// Commits and folds records of 1,000 bytes, ten a group.
fn fill(log: &SteppedLog, stream: &Arc<Stream>, groups: u32) {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut appender = log.appender();
    for _ in 0..groups {
        let mut batch = Batch::new();
        for _ in 0..10 {
            let data: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(1_000).collect();
            batch.push(stream, &NewRecord { key: b"k", data: &data, ..Default::default() }).unwrap();
        }
        log.append(&mut appender, &mut batch).unwrap().unwrap();
        assert_eq!(log.commit_step(), SimStep::Committed);
        log.fold_step(true).unwrap();
    }
}

/// Each number from the first to the newest: its record, or why it is gone.
fn read(log: &SteppedLog) -> Vec<Option<GapReason>> {
    let stream = log.stream("s").unwrap();
    let mut reader = log.reader(&stream, 0, Position::At(1)).unwrap();
    let mut found = Vec::new();
    loop {
        let entries = reader.next_blocking(1_000, 1 << 20).unwrap();
        if entries.is_empty() {
            return found;
        }
        for entry in entries {
            match entry {
                Entry::Record(_) => found.push(None),
                Entry::Gap(gap) => found.extend((gap.from..=gap.to).map(|_| Some(gap.reason))),
            }
        }
    }
}

// A start unlinked what the last frame called trimmed, and then made that frame durable. Where the power went in between,
// the file was gone, and the trim mark and the ledger's row with the frame: the records were told as damaged.
#[test]
fn a_start_unlinks_nothing_before_the_frame_that_says_so_is_durable() {
    let mut cuts = 0;
    for after in 0..60 {
        let sim = SimDisk::new(after);
        let mut log = open(&sim, 1);
        let stream = made(&log, Some(KEPT));
        fill(&log, &stream, 120);
        log.tick();
        // The frame stands in a cache that takes it for written.
        sim.arm(Fault::FailSync { after: 0 });
        assert_eq!(log.commit_step(), SimStep::Failed);
        drop(log);
        sim.kill();
        sim.disarm();
        sim.arm(Fault::CutPower { after });
        drop(SteppedLog::open(sim.mount(), Clock::manual(1, 1_800_000_000_000), 2, SIZES));
        cuts += u32::from(sim.power_is_cut());
        sim.crash();
        let log = open(&sim, 3);
        let found = read(&log);
        assert!(found.len() >= 1_200, "cut after {after}: {}", found.len());
        assert!(found.iter().all(|of| matches!(of, None | Some(GapReason::Evicted | GapReason::Unused))), "{after}");
    }
    assert!(cuts > 20, "{cuts}");
}

// A stream that was deleted in frames which a start replays left its records in the account of the window: each such start
// had less room, down to none.
#[test]
fn a_stream_that_is_deleted_behind_the_last_fold_takes_no_room_of_the_window() {
    let sim = SimDisk::new(1);
    let log = open(&sim, 1);
    let stream = made(&log, None);
    let mut batch = Batch::new();
    (0..10)
        .for_each(|_| batch.push(&stream, &NewRecord { key: b"k", data: &[7; 1_000], ..Default::default() }).unwrap());
    log.append(&mut log.appender(), &mut batch).unwrap().unwrap();
    log.commit_step();
    assert!(log.window_bytes() > 10_000);
    log.delete_stream(&name()).unwrap();
    sim.crash();
    drop(log);
    let log = open(&sim, 2);
    assert!(log.stream("s").is_none());
    assert_eq!(log.window_bytes(), 0);
}

// Rows of records that a destination refused stayed for ever, in memory and on the disk.
#[test]
fn the_ledger_forgets_refused_records_with_the_records() {
    let sim = SimDisk::new(1);
    let mut log = open(&sim, 1);
    let stream = made(&log, Some(KEPT));
    let refused = |log: &SteppedLog| log.gaps(&stream).iter().filter(|gap| gap.reason == GapReason::Rejected).count();
    fill(&log, &stream, 120);
    (1..=600).for_each(|n| log.record_gap(&stream, &Gap::of(0, 2 * n, 2 * n, GapReason::Rejected)));
    assert_eq!(log.commit_step(), SimStep::Committed);
    assert_eq!(refused(&log), 600);
    for _ in 0..3 {
        log.tick();
        log.commit_step();
    }
    let oldest = stream.shard(0).unwrap().oldest();
    assert!((100..1_200).contains(&oldest), "{oldest}");
    assert_eq!(refused(&log) as u64, 600 - (oldest - 1) / 2);
    assert!(read(&log).iter().all(|of| matches!(of, None | Some(GapReason::Evicted))));
}

/// How many numbers a reader is told of for a reason, and how many the metric counts as lost for it.
fn told_and_counted(log: &SteppedLog, reason: GapReason) -> (u64, u64) {
    let mut reader = log.reader(&log.stream("s").unwrap(), 0, Position::At(1)).unwrap();
    let mut told = 0;
    loop {
        let entries = reader.next_blocking(1_000, 1 << 20).unwrap();
        let gaps = entries.iter().filter_map(|entry| if let Entry::Gap(gap) = entry { Some(gap) } else { None });
        told += gaps.filter(|gap| gap.reason == reason).map(Gap::count).sum::<u64>();
        if entries.is_empty() {
            let label = ReasonLabel { part: "log", reason: reason.as_str() };
            return (told, log.engine.metrics.gap_records.get_or_create(&label).get());
        }
    }
}

// The figure was a difference of numbers: the first segment to go from behind the jump of a start added four million or four
// billion numbers that nobody was ever given.
#[test]
fn a_segment_behind_a_jump_of_numbers_counts_only_its_own_as_lost() {
    let tear = |sim: &SimDisk, head: u64| sim.damage("journal/0000", head + 5_000, 1);
    let lose_the_state = |sim: &SimDisk, _| sim.mount().remove("state.redb").unwrap();
    type Damage = fn(&SimDisk, u64);
    let damages: [(Damage, u64); 2] = [(tear, 4_000_000), (lose_the_state, 1 << 32)];
    for (damage, jump) in damages {
        let sim = SimDisk::new(1);
        let log = open(&sim, 1);
        let stream = made(&log, Some(KEPT));
        fill(&log, &stream, 10);
        let mut batch = Batch::new();
        batch.push(&stream, &NewRecord { key: b"k", data: &[7; 20_000], ..Default::default() }).unwrap();
        let head = lock(&log.engine.journal).head();
        log.append(&mut log.appender(), &mut batch).unwrap().unwrap();
        assert_eq!(log.commit_step(), SimStep::Committed);
        drop(log);
        sim.kill();
        damage(&sim, head);
        let mut log = open(&sim, 2);
        fill(&log, &log.stream("s").unwrap(), 200);
        for _ in 0..4 {
            log.tick();
            log.commit_step();
        }
        assert!(told_and_counted(&log, GapReason::Unused).0 >= jump, "the start jumped");
        let (told, counted) = told_and_counted(&log, GapReason::Evicted);
        assert!((200..2_200).contains(&told), "{told}: segments on both sides of the jump went");
        assert_eq!(counted, told);
    }
}

// What retention frees was counted as lost whether a sink still needed it or not, and the alert on it never went out.
#[test]
fn what_a_sink_lost_is_told_apart_from_what_it_had() {
    let sim = SimDisk::new(1);
    let mut log = open(&sim, 1);
    let stream = made(&log, Some(KEPT));
    for sink in ["behind", "done"] {
        log.register_sink(sink, &stream, false);
    }
    fill(&log, &stream, 240);
    log.move_cursor("done", &stream, 0, CursorState::at(2_401));
    log.move_cursor("behind", &stream, 0, CursorState { next: 11, done: vec![(21, 30), (1_001, 1_100)] });
    for _ in 0..3 {
        log.tick();
        log.commit_step();
    }
    let (evicted, _) = told_and_counted(&log, GapReason::Evicted);
    assert!((1_100..2_401).contains(&evicted), "{evicted}");
    let lost = |sink: &str| {
        let label = SinkLabel { sink: sink.to_owned(), stream: "s".to_owned() };
        log.engine.metrics.sink_lost.get_or_create(&label).get()
    };
    assert_eq!((lost("done"), lost("behind")), (0, evicted - 120));
}

#[test]
fn a_required_sink_holds_a_segment_down_to_its_last_record() {
    let (sim, clock) = (SimDisk::new(1), Clock::manual(1, 1_800_000_000_000));
    let mut log = SteppedLog::open(sim.mount(), clock.clone(), 1, SIZES).unwrap();
    let settings = StreamSettings { shards: 1, retention: Span::secs(60), ..StreamSettings::default() };
    let stream = log.create_stream(&name(), settings).unwrap();
    log.register_sink("cloud", &stream, true);
    fill(&log, &stream, 60);
    let last = log.engine.store.entries(stream.id)[0].extent.shards[&0].last;
    assert!(last < 600);
    clock.advance(120_000);
    for (next, oldest) in [(last, 1), (last + 1, last + 1)] {
        log.move_cursor("cloud", &stream, 0, CursorState::at(next));
        for _ in 0..4 {
            log.tick();
            log.commit_step();
        }
        assert_eq!(stream.shard(0).unwrap().oldest(), oldest, "the sink wants {next}");
        let label = crate::metrics::ReasonLabel { part: "log", reason: "expired" };
        assert_eq!(log.engine.metrics.gap_records.get_or_create(&label).get(), oldest - 1);
    }
}

// Records of an earlier boot: those of this one move with its clock.
#[test]
fn after_a_jump_of_the_wall_clock_age_takes_a_segment_an_hour() {
    const DAY_MS: i64 = 86_400_000;
    let sim = SimDisk::new(1);
    let log = open(&sim, 1);
    let settings = StreamSettings { shards: 1, retention: Span::secs(86_400), ..StreamSettings::default() };
    let stream = log.create_stream(&name(), settings).unwrap();
    fill(&log, &stream, 60);
    log.close().unwrap();
    let clock = Clock::manual(2, 1_800_000_060_000);
    let mut log = SteppedLog::open(sim.mount(), clock.clone(), 2, SIZES).unwrap();
    let stream = log.stream("s").unwrap();
    let segments = |log: &SteppedLog| log.engine.store.entries(stream.id).len();
    let all = segments(&log);
    assert!(all > 3, "{all}");
    let settle = |log: &mut SteppedLog| {
        for _ in 0..6 {
            log.tick();
            log.commit_step();
        }
    };
    settle(&mut log);
    clock.jump_wall(10 * DAY_MS);
    settle(&mut log);
    assert_eq!(segments(&log), all, "the clock may be wrong");
    for hours in 1..=2 {
        clock.advance(3_600_001);
        settle(&mut log);
        assert_eq!(segments(&log), all - hours);
    }
}

#[test]
fn p6_a_stream_that_rejects_is_full_at_the_budget_of_the_box() {
    const BUDGET: u64 = 16 << 20;
    let sim = SimDisk::new(1);
    let sizes = SimSizes { budget: BUDGET, ..SIZES };
    let mut log = SteppedLog::open(sim.mount(), Clock::manual(1, 1_800_000_000_000), 1, sizes).unwrap();
    let settings = StreamSettings { shards: 1, on_full: OnFull::Reject, ..StreamSettings::default() };
    let stream = log.create_stream(&name(), settings).unwrap();
    while !stream.refuses() {
        assert!(log.engine.bytes_used() < BUDGET, "it takes more than the box may hold");
        fill(&log, &stream, 10);
        log.tick();
        log.commit_step();
    }
    assert_eq!(stream.shard(0).unwrap().oldest(), 1);
}

// A fold had written a segment, but not to the disk, and retention dropped the segment as it was before. A start that found
// the file took what it held for folded, then heard that it went: what the journal alone had was lost (seed 13273).
#[test]
fn what_a_fold_that_failed_left_in_a_dropped_segment_is_taken_from_the_journal() {
    let mut dropped = 0;
    for after in 0..8 {
        let (sim, clock) = (SimDisk::new(1), Clock::manual(1, 1_800_000_000_000));
        let mut log = SteppedLog::open(sim.mount(), clock.clone(), 1, SIZES).unwrap();
        let settings = StreamSettings { shards: 1, retention: Span::secs(60), ..StreamSettings::default() };
        let stream = log.create_stream(&name(), settings).unwrap();
        fill(&log, &stream, 1);
        log.fold_step(true).unwrap();
        let folded = stream.shard(0).unwrap().newest();
        clock.advance(120_000);
        let mut batch = Batch::new();
        batch.push(&stream, &NewRecord { key: b"k", data: b"new", ..Default::default() }).unwrap();
        log.append(&mut log.appender(), &mut batch).unwrap().unwrap();
        assert_eq!(log.commit_step(), SimStep::Committed);
        let newest = stream.shard(0).unwrap().newest();
        sim.arm(Fault::FailSync { after });
        let failed = log.fold_step(true).is_err();
        sim.disarm();
        // The trim mark is durable, the segment not unlinked yet.
        log.tick();
        log.commit_step();
        sim.kill();
        let log = SteppedLog::open(sim.mount(), clock.clone(), 2, SIZES).unwrap();
        let oldest = log.stream("s").unwrap().shard(0).unwrap().oldest();
        dropped += u32::from(failed && oldest > folded);
        assert_eq!(read(&log)[newest as usize - 1], None, "{after}: {:?}", log.recovery);
    }
    assert!(dropped > 0);
}
