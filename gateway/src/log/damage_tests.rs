//! Damage of every file of the log: quarantined, told, salvaged, and ingest goes on.

use super::tests::{Bench, STOP, all, fill, name, numbers, put};
use super::*;
use crate::record::GapReason;
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

#[test]
fn a_missing_segment_is_in_the_ledger_and_the_rest_is_served() {
    let bench = Bench::roomy();
    let newest = filled(&bench);
    std::fs::remove_file(&segments(&bench)[0]).unwrap();
    let log = bench.open();
    let lost = missing(&log, newest);
    assert!(lost > 100 && lost < newest - 500, "{lost}");
    let stream = log.stream("s").unwrap();
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
