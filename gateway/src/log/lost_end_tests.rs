//! A disk that takes back what it said was written: the newest groups read as if they had never been there.

use super::damage_tests::{read, stepped};
use super::disk::Mode;
use super::disk::sim::SimDisk;
use super::sim::SteppedLog;
use super::*;
use crate::record::{GapReason, NewRecord};

const PAGE: u64 = 4096;

fn clock() -> Clock {
    Clock::manual(1, 1_800_000_000_000)
}

/// A group of one record; returns the record's number.
fn store(log: &SteppedLog) -> u64 {
    let mut batch = Batch::new();
    batch.push(&log.stream("s").unwrap(), &NewRecord { key: b"k", data: b"new", ..Default::default() }).unwrap();
    let (_, placed) = log.append(&mut log.appender(), &mut batch).unwrap().unwrap();
    log.commit_step();
    let Placement::Stored { number, .. } = placed[0] else { panic!("{placed:?}") };
    number
}

/// One segment: five records, the numbers that the start after a kill jumped over, and five more. Stopped cleanly.
fn jumped(sim: &SimDisk) {
    let log = SteppedLog::open(sim.mount(), clock(), 1, super::damage_tests::SIZES).unwrap();
    let settings = StreamSettings { shards: 1, ..StreamSettings::default() };
    log.create_stream(&StreamName::new("s").unwrap(), settings).unwrap();
    store_all(&log, 5);
    log.fold_step(true).unwrap();
    drop(log);
    let log = again(sim);
    store_all(&log, 5);
    log.close().unwrap();
}

/// So many; the newest number.
fn store_all(log: &SteppedLog, groups: u64) -> u64 {
    (0..groups).fold(0, |_, _| store(log))
}

fn again(sim: &SimDisk) -> SteppedLog {
    sim.kill();
    SteppedLog::open(sim.mount(), clock(), 2, super::damage_tests::SIZES).unwrap()
}

/// Zeros over pages of a file.
fn blank(sim: &SimDisk, path: &str, pages: std::ops::Range<u64>) {
    let file = sim.mount().open(path, Mode::Existing).unwrap();
    file.write_at(pages.start * PAGE, &vec![0; ((pages.end - pages.start) * PAGE) as usize]).unwrap();
    file.sync().unwrap();
}

fn ring(sim: &SimDisk) -> Vec<(String, u64)> {
    sim.files().into_iter().filter(|(path, _)| path.starts_with("journal/")).collect()
}

// The last group that the state knew was gone with all behind it, and that looked like a ring in which nothing was behind:
// nobody was told, and the next records got the numbers of those that were lost.
#[test]
fn a_ring_that_reads_as_zeros_is_told_and_its_numbers_are_not_given_again() {
    let sim = SimDisk::new(1);
    let log = stepped(&sim, &clock());
    let newest = store_all(&log, 5);
    drop(log);
    for (path, bytes) in ring(&sim) {
        blank(&sim, &path, 0..bytes / PAGE);
    }
    let log = again(&sim);
    let (there, lost) = read(&log);
    assert!(there == 20 && lost >= 5, "{there} there, {lost} told as lost: {:?}", log.recovery);
    assert!(log.recovery.told.iter().any(|says| says.contains("newest records")), "{:?}", log.recovery);
    assert!(store(&log) > newest);
    let stream = log.stream("s").unwrap();
    assert_eq!(log.engine.record_count(&stream), 21, "neither what is lost nor numbers that nobody got");
    let told = read(&log).1;
    drop(log);
    let log = again(&sim);
    assert_eq!((log.recovery.told.len(), read(&log)), (0, (21, told)), "told once: {:?}", log.recovery);
    log.fold_step(true).unwrap();
    drop(log);
    assert_eq!(again(&sim).recovery.told, [""; 0], "and the ring is sound again");
}

// A card that says "written" too early keeps the older groups and loses the newest ones. Nobody can tell them from groups
// that were never written, but upstream may have them already, under their numbers.
#[test]
fn numbers_of_groups_that_a_disk_took_back_are_not_given_again() {
    let sim = SimDisk::new(2);
    let log = stepped(&sim, &clock());
    store(&log);
    let written: Vec<_> = ring(&sim).into_iter().map(|(path, _)| (sim.written_pages(&path), path)).collect();
    let newest = store_all(&log, 3);
    drop(log);
    for (before, path) in written {
        for page in sim.written_pages(&path).into_iter().filter(|page| !before.contains(page)) {
            blank(&sim, &path, page..page + 1);
        }
    }
    let log = again(&sim);
    assert_eq!(read(&log).0, 21, "three are lost");
    assert!(store(&log) > newest, "number {} was given before", newest);
}

// Behind the end of the journal stands whatever an earlier lap left there. A clean stop has nothing to look for, and was
// called a write that was cut short all the same.
#[test]
fn a_clean_stop_is_not_called_a_write_that_was_cut_short() {
    for groups in 1..12 {
        let sim = SimDisk::new(groups);
        drop(stepped(&sim, &clock()));
        sim.kill();
        let log = stepped(&sim, &clock());
        let newest = store_all(&log, groups);
        log.close().unwrap();
        let log = again(&sim);
        assert!(log.recovery.clean && !log.recovery.torn, "{groups}: {:?}", log.recovery);
        assert_eq!(log.recovery.told, [""; 0]);
        assert_eq!(store(&log), newest + 1);
    }
}

// The numbers that a start jumped over were known to the state alone. With the state lost they were told as records that
// are damaged, and counted as records until somebody read them.
#[test]
fn numbers_that_nobody_got_are_known_as_such_when_the_state_is_lost() {
    let sim = SimDisk::new(3);
    jumped(&sim);
    sim.mount().remove("state.redb").unwrap();
    let log = again(&sim);
    assert!(log.recovery.state_rebuilt);
    assert_eq!(log.engine.record_count(&log.stream("s").unwrap()), 10);
    assert_eq!(read(&log), (10, 0));
}

// With state and journal both gone the end was called unused: no loss.
#[test]
fn without_state_and_journal_the_end_is_told_as_lost() {
    let sim = SimDisk::new(4);
    let log = stepped(&sim, &clock());
    let newest = store_all(&log, 5);
    drop(log);
    sim.kill();
    let disk = sim.mount();
    disk.remove("state.redb").unwrap();
    ring(&sim).iter().for_each(|(path, _)| disk.remove(path).unwrap());
    let log = again(&sim);
    assert!(log.recovery.told.iter().any(|says| says.contains("newest records")), "{:?}", log.recovery);
    let gaps = log.gaps(&log.stream("s").unwrap());
    let lost =
        |number| gaps.iter().any(|gap| gap.reason == GapReason::Corrupt && (gap.from..=gap.to).contains(&number));
    assert!((newest - 4..=newest).all(lost), "{gaps:?}");
}

// All that a salvage missed was called lost, the numbers that an earlier start had jumped over among it.
#[test]
fn a_salvage_does_not_call_numbers_lost_that_nobody_got() {
    let sim = SimDisk::new(5);
    jumped(&sim);
    sim.kill();
    let newest = sim.files().into_iter().rfind(|(path, _)| path.starts_with("segments/")).unwrap().0;
    (0..64).for_each(|at| sim.damage(&newest, at, 0xff));
    let log = again(&sim);
    assert_eq!(read(&log), (10, 0));
    let said = log.recovery.told.join("; ");
    assert!(said.contains(" 0 records are lost"), "{said}");
}
