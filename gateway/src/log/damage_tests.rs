//! Damage of every file of the log: quarantined, told, salvaged, and ingest goes on.

use super::disk::Mode;
use super::disk::sim::{Fault, SimDisk};
use super::sim::{SimSizes, SteppedLog};
use super::tests::{Bench, STOP, all, fill, name, numbers, put};
use super::*;
use crate::metrics::{ReasonLabel, SinkLabel};
use crate::record::{GapReason, NewRecord};
use std::os::unix::fs::FileExt;

/// A closed log with three segments of one stream: 12 MB of records of 10,000 bytes, then 500 small ones.
fn filled(bench: &Bench) -> u64 {
    let log = bench.open();
    let stream = log.create_stream(&name("s"), StreamSettings { shards: 1, ..Default::default() }).unwrap();
    fill(&log, &stream, 24);
    put(&log, &stream, 0..500, 100);
    let newest = stream.shard(0).unwrap().newest();
    log.close(STOP);
    newest
}

fn segments(bench: &Bench) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(bench.path().join("segments/00000001")).unwrap().map(|e| e.unwrap().path()).collect();
    found.sort();
    assert!(found.len() >= 2, "{found:?}");
    found
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0xff], at).unwrap();
}

/// Every number up to `newest` is read, or told of with a reason; returns how many are missing.
fn missing(log: &Log, newest: u64) -> u64 {
    let stream = log.stream("s").unwrap();
    let mut next = 1;
    let mut lost = 0;
    for entry in all(log, &stream) {
        match entry {
            Entry::Record(record) => {
                assert_eq!(record.number, next);
                next += 1;
            }
            Entry::Gap(gap) => {
                assert_eq!(gap.from, next);
                if gap.reason == GapReason::Corrupt {
                    lost += gap.count();
                }
                next = gap.to + 1;
            }
        }
    }
    assert!(next > newest, "read up to {next}, wrote {newest}");
    lost
}

#[test]
fn a_damaged_block_costs_its_own_records_and_is_told() {
    let bench = Bench::roomy();
    let newest = filled(&bench);
    let file = &segments(&bench)[0];
    let bytes = std::fs::read(file).unwrap();
    let blocks: Vec<usize> = bytes.windows(4).enumerate().filter(|(_, at)| at == b"HWB1").map(|(at, _)| at).collect();
    flip(file, blocks[blocks.len() / 2] as u64 + 100);
    let log = bench.open();
    let lost = missing(&log, newest);
    assert!((1..200).contains(&lost), "{lost}");
    let stream = log.stream("s").unwrap();
    put(&log, &stream, 0..10, 10);
    assert_eq!(missing(&log, newest + 10), lost, "told once, the same each time");
    log.close(STOP);
}

#[test]
fn a_segment_whose_tree_is_gone_is_salvaged() {
    let bench = Bench::roomy();
    let newest = filled(&bench);
    let files = segments(&bench);
    for file in &files {
        // redb's own header.
        for at in 0..512 {
            flip(file, at);
        }
    }
    let report = tool::verify(bench.path(), &mut |_, _| {}).unwrap();
    assert!(!report.problems.is_empty());
    assert_eq!(segments(&bench), files, "verify touches nothing");
    let report = tool::repair(bench.path(), &mut |_, _| {}).unwrap();
    assert!(report.actions.iter().any(|action| action.contains("moved to quarantine")), "{:?}", report.actions);
    let log = bench.open();
    assert_eq!(missing(&log, newest), 0, "every block was whole");
    log.close(STOP);
}

// A bit of redb's own tables: the reading goes well, and redb panics where the database is closed or written. It took the
// thread that folds along. What redb checks differs in a release build: `tests/tests/cli.rs` has the same for the tools.
#[test]
fn a_segment_with_a_flipped_bit_anywhere_takes_nothing_along() {
    let bench = Bench::roomy();
    let newest = filled(&bench);
    let last = segments(&bench).pop().unwrap();
    let sound = std::fs::read(&last).unwrap();
    for n in 0..20 {
        let mut bytes = sound.clone();
        let at = 4096 + n * 173 % (12 << 10);
        bytes[at] ^= 1 << (n % 8);
        std::fs::write(&last, &bytes).unwrap();
        let copy = Bench::copy_of(&bench);
        let log = copy.open();
        // Asserts that each number is read or told.
        missing(&log, newest);
        put(&log, &log.stream("s").unwrap(), 0..10, 100);
        log.close(STOP);
        drop(log);
        let log = copy.open();
        assert!(log.recovery().clean, "{at}: what was stored is folded at the stop: {:?}", log.recovery());
        log.close(STOP);
    }
}

#[test]
fn a_missing_segment_is_in_the_ledger_and_the_rest_is_served() {
    let bench = Bench::roomy();
    let newest = filled(&bench);
    std::fs::remove_file(&segments(&bench)[0]).unwrap();
    let log = bench.open();
    let lost = missing(&log, newest);
    assert!(lost > 100 && lost < newest - 500, "{lost}");
    // What a start finds used to be in the ledger and in no figure.
    let label = ReasonLabel { part: "log", reason: "corrupt" };
    assert_eq!(log.inner.engine.metrics.gap_records.get_or_create(&label).get(), lost);
    let stream = log.stream("s").unwrap();
    for _ in 0..2 {
        log.register_sink("cloud", std::slice::from_ref(&stream), true);
        let label = SinkLabel { sink: "cloud".into(), stream: "s".into() };
        assert_eq!(log.inner.engine.metrics.sink_lost.get_or_create(&label).get(), lost, "and in none of a sink");
    }
    put(&log, &stream, 500..510, 10);
    log.close(STOP);
    let log = bench.open();
    assert_eq!(missing(&log, newest + 10), lost);
    log.close(STOP);
}

#[test]
fn a_lost_state_is_rebuilt_and_no_number_is_given_twice() {
    for damage in ["missing", "noise", "cut"] {
        let bench = Bench::roomy();
        let newest = filled(&bench);
        let state = bench.path().join("state.redb");
        match damage {
            "missing" => std::fs::remove_file(&state).unwrap(),
            "noise" => std::fs::write(&state, vec![0x5a; 50_000]).unwrap(),
            _ => std::fs::OpenOptions::new().write(true).open(&state).unwrap().set_len(5_000).unwrap(),
        }
        let log = bench.open();
        assert!(log.recovery().state_rebuilt, "{damage}");
        assert!(log.recovery().told[0].starts_with("the state database"), "{damage}: {:?}", log.recovery());
        assert_eq!(missing(&log, newest), 0, "{damage}");
        let stream = log.stream("s").unwrap();
        let Placement::Stored { number, .. } = put(&log, &stream, 0..1, 10)[0] else { panic!() };
        assert!(number > newest + 1_000_000, "{damage}: {number} after {newest}");
        assert_eq!(log.incarnation(), 2, "record ids are not given twice either");
        log.close(STOP);
    }
}

#[test]
fn damage_in_the_journal_costs_its_frame_and_is_told() {
    let bench = Bench::roomy();
    let log = bench.open();
    let stream = log.create_stream(&name("s"), StreamSettings { shards: 1, ..Default::default() }).unwrap();
    for n in 0..20 {
        put(&log, &stream, n * 10..n * 10 + 10, 100);
    }
    // A copy of the directory is what a power cut leaves: nothing is folded yet.
    let cut = Bench::copy_of(&bench);
    log.close(STOP);
    let journal = cut.path().join("journal/0000");
    // Frames of one page each; the first is the stream's creation.
    flip(&journal, 5 * 4096 + 200);
    flip(&journal, 9 * 4096 + 3);
    let log = cut.open();
    assert_eq!(log.recovery().damaged, 2, "{:?}", log.recovery());
    assert_eq!(missing(&log, 200), 20);
    assert_eq!(numbers(&all(&log, &log.stream("s").unwrap())).len(), 180);
    log.close(STOP);
}

// The damaged frame was the last of its shard: nothing behind it gave its numbers away, and they were called unused.
#[test]
fn damage_behind_which_a_shard_has_no_record_is_told_all_the_same() {
    for at in [200, 3] {
        let bench = Bench::roomy();
        let log = bench.open();
        let streams: Vec<_> = ["s", "t"]
            .map(|of| log.create_stream(&name(of), StreamSettings { shards: 1, ..Default::default() }).unwrap())
            .into();
        put(&log, &streams[0], 0..10, 100);
        put(&log, &streams[0], 10..20, 100);
        put(&log, &streams[1], 0..3, 100);
        let cut = Bench::copy_of(&bench);
        log.close(STOP);
        flip(&cut.path().join("journal/0000"), 3 * 4096 + at);
        let log = cut.open();
        assert_eq!(missing(&log, 20), 10, "{:?}", log.recovery());
        let stream = log.stream("s").unwrap();
        let Placement::Stored { number, .. } = put(&log, &stream, 0..1, 10)[0] else { panic!() };
        assert!(number > 20);
        log.close(STOP);
    }
}

// What came to a stream whose creation was damaged was left out without a word.
#[test]
fn records_of_a_stream_whose_creation_is_damaged_are_kept_under_its_number() {
    let bench = Bench::roomy();
    let log = bench.open();
    let stream = log.create_stream(&name("s"), StreamSettings { shards: 3, ..Default::default() }).unwrap();
    for n in 0..5 {
        put(&log, &stream, n * 10..n * 10 + 10, 100);
    }
    let cut = Bench::copy_of(&bench);
    log.close(STOP);
    flip(&cut.path().join("journal/0000"), 100);
    let log = cut.open();
    assert!(log.stream("s").is_none());
    let made_again = log.create_stream(&name("s"), StreamSettings::default()).unwrap();
    assert_ne!(made_again.id, stream.id);
    let kept = log.stream("recovered-1").unwrap();
    assert_eq!(numbers(&all(&log, &kept)), (0..50).collect::<Vec<_>>());
    log.close(STOP);
    let log = cut.open();
    assert_eq!(numbers(&all(&log, &log.stream("recovered-1").unwrap())), (0..50).collect::<Vec<_>>());
    log.close(STOP);
}

// A ring whose first file was cut had every frame in another place, and nothing of it was found.
#[test]
fn a_journal_file_that_is_cut_or_missing_costs_its_own_frames_and_is_told() {
    for damage in ["cut", "missing"] {
        let bench = Bench::roomy();
        let log = bench.open();
        let stream = log.create_stream(&name("s"), StreamSettings { shards: 1, ..Default::default() }).unwrap();
        for n in 0..20 {
            put(&log, &stream, n * 10..n * 10 + 10, 100);
        }
        let cut = Bench::copy_of(&bench);
        log.close(STOP);
        let file = cut.path().join("journal/0000");
        let kept = match damage {
            "cut" => {
                std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(11 * 4096 + 7).unwrap();
                100
            }
            _ => {
                std::fs::remove_file(&file).unwrap();
                0
            }
        };
        let log = cut.open();
        match log.stream("s") {
            // Its creation was in that file, and nothing is left to adopt.
            None => assert_eq!(kept, 0),
            Some(stream) => {
                assert_eq!(numbers(&all(&log, &stream)).len(), kept);
                assert!(missing(&log, 200) >= 200 - kept as u64, "told at once, as a range");
            }
        }
        assert!(log.recovery().told.iter().any(|says| says.contains("too short")), "{:?}", log.recovery());
        log.close(STOP);
    }
}

#[test]
fn a_missing_journal_is_made_anew_and_no_number_is_given_twice() {
    let bench = Bench::roomy();
    let newest = filled(&bench);
    std::fs::remove_dir_all(bench.path().join("journal")).unwrap();
    let log = bench.open();
    assert_eq!(missing(&log, newest), 0, "a clean stop had folded everything");
    let stream = log.stream("s").unwrap();
    let Placement::Stored { number, .. } = put(&log, &stream, 0..1, 10)[0] else { panic!() };
    assert!(number > newest);
    log.close(STOP);
}

#[test]
fn a_sound_directory_has_no_problems() {
    let bench = Bench::roomy();
    filled(&bench);
    let report = tool::verify(bench.path(), &mut |_, _| {}).unwrap();
    assert_eq!(report.streams[0].name, "s");
    assert!(report.streams[0].segments.iter().all(|segment| segment.blocks > 0 && segment.damaged_blocks == 0));
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

// redb does not check what it reads: a flipped bit gave a row another key, and nobody noticed.
#[test]
fn a_flipped_bit_in_the_state_is_noticed() {
    let bench = Bench::roomy();
    let newest = filled(&bench);
    let bytes = std::fs::read(bench.path().join("state.redb")).unwrap();
    // Where the rows of the stream's definition, its shard and its segments lie, in whatever page.
    let places = |what: &[u8]| -> Vec<u64> {
        bytes.windows(what.len()).enumerate().filter(|(_, at)| *at == what).map(|(at, _)| at as u64).collect()
    };
    let rows = [&b"on_full"[..], b"folded_group", b"incarnation"].map(places);
    assert!(rows.iter().all(|places| !places.is_empty()));
    let mut noticed = 0;
    for place in rows.iter().flatten() {
        let cut = Bench::copy_of(&bench);
        flip(&cut.path().join("state.redb"), *place);
        let log = cut.open();
        assert_eq!(missing(&log, newest), 0);
        noticed += u32::from(log.recovery().state_rebuilt);
        log.close(STOP);
    }
    assert!(noticed > 0, "at least one of them lies in a page that is in use");
}

// A segment that could not be read when the state was lost besides had no row any more, and was unlinked as one that
// nothing refers to.
#[test]
fn with_the_state_lost_a_damaged_segment_is_salvaged_too() {
    let bench = Bench::roomy();
    let newest = filled(&bench);
    for file in segments(&bench) {
        (0..512).for_each(|at| flip(&file, at));
    }
    std::fs::remove_file(bench.path().join("state.redb")).unwrap();
    let log = bench.open();
    let stream = log.stream("recovered-1").expect("its name is lost with every copy of it");
    let read = all(&log, &stream).into_iter().filter(|entry| matches!(entry, Entry::Record(_))).count();
    assert_eq!(read as u64, newest);
    log.close(STOP);
}

pub(super) const SIZES: SimSizes =
    SimSizes { budget: 1 << 30, ring: 512 << 10, segment: 128 << 10, blob_file: 256 << 10 };

/// A stepped log of one stream, on a clock: a few segments, all folded.
pub(super) fn stepped(sim: &SimDisk, clock: &Clock) -> SteppedLog {
    let log = SteppedLog::open(sim.mount(), clock.clone(), 1, SIZES).unwrap();
    let stream = log.stream("s").unwrap_or_else(|| {
        let settings = StreamSettings { shards: 1, retention: Span::days(1), ..StreamSettings::default() };
        log.create_stream(&name("s"), settings).unwrap()
    });
    let mut appender = log.appender();
    let mut noise = fastrand::Rng::with_seed(3);
    for _ in 0..20 {
        let mut batch = Batch::new();
        let data: Vec<u8> = std::iter::repeat_with(|| noise.u8(..)).take(20_000).collect();
        batch.push(&stream, &NewRecord { key: b"k", data: &data, ..Default::default() }).unwrap();
        log.append(&mut appender, &mut batch).unwrap().unwrap();
        log.commit_step();
        log.fold_step(true).unwrap();
    }
    log
}

/// Records that are read, and those that are told as lost, without numbers that nobody got.
pub(super) fn read(log: &SteppedLog) -> (u64, u64) {
    let mut reader = log.reader(&log.stream("s").unwrap(), 0, Position::At(0)).unwrap();
    let (mut there, mut lost) = (0, 0);
    loop {
        let entries = reader.next_blocking(100, 1 << 20).unwrap();
        if entries.is_empty() {
            return (there, lost);
        }
        for entry in entries {
            match entry {
                Entry::Record(_) => there += 1,
                Entry::Gap(gap) if gap.reason == GapReason::Unused => {}
                Entry::Gap(gap) => lost += gap.count(),
            }
        }
    }
}

// Between moving the damaged file away and writing the new one, the power went: the next start found an empty segment,
// salvaged nothing out of it, and moved it over the damaged one.
#[test]
fn a_salvage_that_is_cut_off_anywhere_saves_the_same() {
    let clock = Clock::manual(1, 1_800_000_000_000);
    let mut cuts = 0;
    for after in 0..200 {
        let sim = SimDisk::new(after);
        drop(stepped(&sim, &clock));
        sim.kill();
        let newest = sim.files().into_iter().rfind(|(path, _)| path.starts_with("segments/")).unwrap().0;
        (0..64).for_each(|at| sim.damage(&newest, at, 0xff));
        sim.arm(Fault::CutPower { after });
        let first = SteppedLog::open(sim.mount(), clock.clone(), 2, SIZES);
        let was_cut = sim.power_is_cut();
        cuts += u32::from(was_cut);
        drop(first);
        sim.crash();
        let log = SteppedLog::open(sim.mount(), clock.clone(), 3, SIZES).unwrap();
        assert_eq!(read(&log), (20, 0), "cut after {after}: {:?}", log.recovery);
        if !was_cut {
            break;
        }
    }
    assert!((20..200).contains(&cuts), "{cuts}");
}

// A rebuilt state knew no boots: every record of an earlier one counted as of 1970 and expired at the first look.
#[test]
fn records_of_earlier_boots_do_not_expire_with_a_lost_state() {
    let sim = SimDisk::new(1);
    for boot in 1..=3 {
        let clock = Clock::manual(boot, 1_800_000_000_000 + boot as u64 * 3_600_000);
        drop(stepped(&sim, &clock));
        sim.kill();
    }
    sim.mount().remove("state.redb").unwrap();
    let clock = Clock::manual(4, 1_800_000_000_000 + 5 * 3_600_000);
    let mut log = SteppedLog::open(sim.mount(), clock.clone(), 9, SIZES).unwrap();
    assert!(log.recovery.state_rebuilt);
    for _ in 0..3 {
        log.tick();
        log.commit_step();
    }
    assert_eq!(read(&log), (60, 0));
    clock.advance(24 * 3_600_000);
    log.fold_step(true).unwrap();
    for _ in 0..4 {
        log.tick();
        log.commit_step();
    }
    assert_eq!(read(&log).0, 0, "a day later they are old");
}

// A disk that had gone away was taken for one whose every page is bad: the file was set aside as soon as the disk was there
// again, and all of it told as lost.
#[test]
fn a_segment_of_which_the_disk_refuses_much_is_left_alone() {
    let clock = Clock::manual(1, 1_800_000_000_000);
    for is_salvaged in [true, false] {
        let sim = SimDisk::new(1);
        drop(stepped(&sim, &clock));
        sim.kill();
        let (newest, length) = sim.files().into_iter().rfind(|(path, _)| path.starts_with("segments/")).unwrap();
        let refused = if is_salvaged { 4 } else { length / 4096 / 2 };
        (0..refused).for_each(|page| sim.ruin(&newest, page));
        let log = SteppedLog::open(sim.mount(), clock.clone(), 2, SIZES).unwrap();
        let aside = sim.files().iter().any(|(path, _)| path.starts_with("quarantine/"));
        assert_eq!(aside, is_salvaged, "{refused}");
        let is_told = log.gaps(&log.stream("s").unwrap()).iter().any(|gap| gap.reason != GapReason::Unused);
        assert!(is_salvaged || !is_told);
        log.heal();
        assert_eq!(sim.files().iter().any(|(path, _)| path.starts_with("quarantine/")), is_salvaged);
    }
}

// The disk refused the last of the two renames of a salvage: until the next start, nobody found what had been saved.
#[test]
fn what_a_salvage_saved_is_put_in_its_place_by_the_next_healing() {
    let clock = Clock::manual(1, 1_800_000_000_000);
    let sim = SimDisk::new(1);
    let log = stepped(&sim, &clock);
    log.engine.store.close_all();
    let newest = sim.files().into_iter().rfind(|(path, _)| path.starts_with("segments/")).unwrap().0;
    sim.mount().rename(&newest, &newest.replace(".redb", ".salvaged")).unwrap();
    let mut reader = log.reader(&log.stream("s").unwrap(), 0, Position::At(0)).unwrap();
    while reader.next_blocking(100, 1 << 20).is_ok_and(|entries| !entries.is_empty()) {}
    log.heal();
    assert_eq!(read(&log), (20, 0));
}

// The ledger knew the rest of the block alone, and a later reader was told the front of it as something else.
#[test]
fn a_reader_that_comes_into_a_damaged_block_enters_all_of_it_into_the_ledger() {
    let (sim, clock) = (SimDisk::new(1), Clock::manual(1, 1_800_000_000_000));
    let log = SteppedLog::open(sim.mount(), clock.clone(), 1, SIZES).unwrap();
    let settings = StreamSettings { shards: 1, ..StreamSettings::default() };
    let stream = log.create_stream(&name("s"), settings).unwrap();
    let mut batch = Batch::new();
    let marked = [0xab; 2_000];
    (0..10).for_each(|_| batch.push(&stream, &NewRecord { key: b"k", data: &marked, ..Default::default() }).unwrap());
    log.append(&mut log.appender(), &mut batch).unwrap().unwrap();
    log.commit_step();
    log.fold_step(true).unwrap();
    log.close().unwrap();
    let (path, len) = sim.files().into_iter().rfind(|(path, _)| path.starts_with("segments/")).unwrap();
    let mut bytes = vec![0; len as usize];
    sim.mount().open(&path, Mode::Existing).unwrap().read_at(0, &mut bytes).unwrap();
    let heads = bytes.windows(4).enumerate().filter(|(_, four)| four == b"HWB1").map(|(at, _)| at as u64);
    heads.for_each(|at| sim.damage(&path, at + 80, 0xff));
    let log = SteppedLog::open(sim.mount(), clock, 2, SIZES).unwrap();
    let stream = log.stream("s").unwrap();
    let mut reader = log.reader(&stream, 0, Position::At(6)).unwrap();
    let told = reader.next_blocking(10, 1 << 20).unwrap();
    assert!(matches!(&told[..], [Entry::Gap(gap)] if (gap.from, gap.to) == (6, 10)), "{told:?}");
    log.commit_step();
    let rows: Vec<_> = log.gaps(&stream).iter().map(|gap| (gap.from, gap.to)).collect();
    assert_eq!(rows, [(1, 10)]);
}

// The frame that made a stream was all that knew of it until the first fold, minutes later: with that frame damaged another
// stream was made under the name, from number 1 on, behind the cursors of the first.
#[test]
fn a_stream_outlives_the_journal_it_was_made_in_before_its_records_are_folded() {
    let bench = Bench::new();
    let log = bench.open();
    let stream = log.create_stream(&name("s"), StreamSettings { shards: 1, ..Default::default() }).unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while log.inner.engine.metrics.folds.get() == 0 {
        assert!(std::time::Instant::now() < until, "what a stream is is not folded");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    put(&log, &stream, 0..8, 100);
    let (cut, flipped) = (Bench::copy_of(&bench), Bench::copy_of(&bench));
    log.close(STOP);
    std::fs::remove_dir_all(cut.path().join("journal")).unwrap();
    flip(&flipped.path().join("journal/0000"), 4);
    for damaged in [cut, flipped] {
        let log = damaged.open();
        let stream = log.stream("s").expect("the state knows it");
        let placed = put(&log, &stream, 0..1, 100);
        let Placement::Stored { number, .. } = placed[0] else { panic!("{placed:?}") };
        assert!(number > 8, "a number is never given twice: {number}");
        log.close(STOP);
    }
}

/// Two streams: the record of the first waits in the journal, with all that came behind it; of the other, `s`, a segment
/// holds what was folded of 15 records.
fn folded_ahead(sim: &SimDisk, clock: &Clock) {
    let log = SteppedLog::open(sim.mount(), clock.clone(), 1, SIZES).unwrap();
    let store = |of: &str, data: &[u8]| {
        let mut batch = Batch::new();
        batch.push(&log.stream(of).unwrap(), &NewRecord { key: b"k", data, ..Default::default() }).unwrap();
        log.append(&mut log.appender(), &mut batch).unwrap().unwrap();
        log.commit_step();
    };
    let settings = StreamSettings { shards: 1, ..StreamSettings::default() };
    log.create_stream(&name("first"), settings.clone()).unwrap();
    log.fold_step(true).unwrap();
    store("first", b"waits for more");
    log.create_stream(&name("s"), settings).unwrap();
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(20_000).collect();
    (0..15).for_each(|_| store("s", &noise));
    // The first segment has the number 2: without the journal nobody would know of it.
    sim.arm(Fault::Fail { after: 0 });
    log.fold_step(false).unwrap_err();
    sim.disarm();
    let folded = log.fold_step(false).unwrap();
    assert!(folded.blocks > 0 && log.window_bytes() > 0, "what is small waits: {folded:?}");
}

// A fold had written the first segment of a stream whose creation it left in the journal: the start removed the segment as
// one that nobody knows, kept its row, and the start after that told all of it as lost.
#[test]
fn a_segment_is_not_folded_ahead_of_the_stream_it_belongs_to() {
    let (sim, clock) = (SimDisk::new(1), Clock::manual(1, 1_800_000_000_000));
    folded_ahead(&sim, &clock);
    for _ in 0..2 {
        sim.kill();
        let log = SteppedLog::open(sim.mount(), clock.clone(), 1, SIZES).unwrap();
        assert_eq!((log.recovery.told.len(), read(&log)), (0, (15, 0)), "{:?}", log.recovery);
        log.fold_step(true).unwrap();
    }
}

// What a damaged segment had held was told as lost while the journal had it still, and the start after that took it from
// there: numbers were lost and could be read (seed 7734).
#[test]
fn what_a_segment_lost_and_the_journal_still_has_is_not_lost() {
    for is_removed in [true, false] {
        let (sim, clock) = (SimDisk::new(1), Clock::manual(1, 1_800_000_000_000));
        folded_ahead(&sim, &clock);
        sim.kill();
        let (segment, _) = sim.files().into_iter().rfind(|(path, _)| path.starts_with("segments/")).unwrap();
        match is_removed {
            true => sim.mount().remove(&segment).unwrap(),
            false => (0..4096).for_each(|at| sim.damage(&segment, at, 0xff)),
        }
        for start in 0..3 {
            sim.kill();
            let log = SteppedLog::open(sim.mount(), clock.clone(), 1, SIZES).unwrap();
            assert_eq!(read(&log), (15, 0), "{start}: {:?}", log.recovery);
            let gaps = log.gaps(&log.stream("s").unwrap());
            assert!(gaps.iter().all(|gap| gap.reason == GapReason::Unused), "{gaps:?}");
        }
    }
}
