//! What the simulated disk promises, as traces.

use super::super::{Disk, Mode, PAGE_BYTES, Store, Written};
use super::{Fault, SimDisk};
use redb::{ReadableDatabase, TableDefinition};
use std::collections::BTreeSet;
use std::io::ErrorKind;

const PAGE: u64 = PAGE_BYTES as u64;

fn bytes(disk: &dyn Disk, path: &str) -> Vec<u8> {
    let file = disk.open(path, Mode::Existing).unwrap();
    let mut all = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut all).unwrap();
    all
}

fn synced_file(disk: &dyn Disk, path: &str, content: &[u8]) {
    let file = disk.open(path, Mode::Create).unwrap();
    file.write_at(0, content).unwrap();
    file.sync().unwrap();
    disk.sync_dir(super::super::parent(path)).unwrap();
}

#[test]
fn what_was_synced_survives_every_power_cut() {
    for seed in 0..50 {
        let sim = SimDisk::new(seed);
        synced_file(&*sim.mount(), "f", &[1; 10_000]);
        let file = sim.mount().open("f", Mode::Existing).unwrap();
        file.write_at(20_000, &[2; 100]).unwrap();
        sim.crash();
        let kept = bytes(&*sim.mount(), "f");
        assert_eq!(kept[..10_000], [1; 10_000]);
        assert!(kept[10_000..].iter().all(|b| *b == 0 || *b == 2), "seed {seed}");
    }
}

#[test]
fn pages_without_a_sync_reach_the_disk_in_any_order_and_torn() {
    let (mut later_without_earlier, mut torn) = (false, false);
    for seed in 0..300 {
        let sim = SimDisk::new(seed);
        synced_file(&*sim.mount(), "f", &[0; 4 * PAGE_BYTES]);
        let file = sim.mount().open("f", Mode::Existing).unwrap();
        for page in 0..4 {
            file.write_at(page * PAGE, &[1; PAGE_BYTES]).unwrap();
        }
        sim.crash();
        let kept = bytes(&*sim.mount(), "f");
        let full = |page: usize| kept[page * PAGE_BYTES..(page + 1) * PAGE_BYTES].iter().all(|b| *b == 1);
        let empty = |page: usize| kept[page * PAGE_BYTES..(page + 1) * PAGE_BYTES].iter().all(|b| *b == 0);
        later_without_earlier |= full(3) && empty(0);
        torn |= (0..4).any(|page| !full(page) && !empty(page));
    }
    assert!(later_without_earlier && torn);
}

#[test]
fn two_writes_of_one_page_never_arrive_in_the_wrong_order() {
    for seed in 0..200 {
        let sim = SimDisk::new(seed);
        synced_file(&*sim.mount(), "f", &[0; PAGE_BYTES]);
        let file = sim.mount().open("f", Mode::Existing).unwrap();
        file.write_at(0, &[1; 512]).unwrap();
        file.write_at(512, &[2; 512]).unwrap();
        sim.crash();
        let kept = bytes(&*sim.mount(), "f");
        assert!(kept[512] == 0 || kept[0] == 1, "seed {seed}");
    }
}

#[test]
fn a_change_of_length_without_a_sync_may_or_may_not_survive() {
    let mut lengths = BTreeSet::new();
    for seed in 0..100 {
        let sim = SimDisk::new(seed);
        synced_file(&*sim.mount(), "f", &[1; 100]);
        sim.mount().open("f", Mode::Existing).unwrap().set_len(50).unwrap();
        sim.crash();
        lengths.insert(bytes(&*sim.mount(), "f").len());
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [50, 100]);
}

#[test]
fn a_name_is_durable_only_after_a_sync_of_its_directory() {
    let (mut vanished, mut came_back, mut old_name) = (false, false, false);
    for seed in 0..100 {
        let sim = SimDisk::new(seed);
        let disk = sim.mount();
        disk.create_dir("d").unwrap();
        disk.sync_dir("").unwrap();
        synced_file(&*disk, "d/kept", b"kept");
        synced_file(&*disk, "d/removed", b"removed");
        synced_file(&*disk, "d/old", b"renamed");
        let created = disk.open("d/created", Mode::Create).unwrap();
        created.write_at(0, b"created").unwrap();
        created.sync().unwrap();
        disk.remove("d/removed").unwrap();
        disk.rename("d/old", "d/new").unwrap();
        sim.crash();
        let names = sim.mount().list("d").unwrap();
        let has = |name: &str| names.iter().any(|n| n == name);
        assert!(has("kept"));
        assert!(has("old") != has("new"), "a rename is whole: {names:?}");
        vanished |= !has("created");
        came_back |= has("removed") && bytes(&*sim.mount(), "d/removed") == b"removed";
        old_name |= has("old");
    }
    assert!(vanished && came_back && old_name);
}

#[test]
fn a_directory_that_was_never_synced_takes_its_files_with_it() {
    let lost = (0..50).any(|seed| {
        let sim = SimDisk::new(seed);
        sim.mount().create_dir("a/b").unwrap();
        synced_file(&*sim.mount(), "a/b/f", b"x");
        sim.crash();
        !sim.mount().exists("a/b/f").unwrap()
    });
    assert!(lost);
}

#[test]
fn handles_of_an_earlier_life_fail_and_a_killed_process_loses_nothing() {
    let sim = SimDisk::new(1);
    let disk = sim.mount();
    let file = disk.open("f", Mode::Create).unwrap();
    file.write_at(0, b"in the page cache").unwrap();
    sim.kill();
    assert!(file.write_at(0, b"late").is_err());
    assert!(disk.list("").is_err());
    assert_eq!(bytes(&*sim.mount(), "f"), b"in the page cache");
}

#[test]
fn faults_strike_when_they_are_due() {
    let sim = SimDisk::new(1);
    let disk = sim.mount();
    let file = disk.open("f", Mode::Create).unwrap();
    sim.arm(Fault::Fail { after: 1 });
    file.write_at(0, &[1; 512]).unwrap();
    assert!(file.write_at(0, &[2; 512]).is_err());
    file.write_at(0, &[3; 512]).unwrap();
    sim.arm(Fault::FailFrom { after: 0 });
    assert!(file.set_len(9).is_err());
    assert!(disk.create_dir("d").is_err());
    file.read_at(0, &mut [0; 512]).unwrap();
    sim.disarm();
    sim.arm(Fault::FailRead { after: 0 });
    assert!(file.read_at(0, &mut [0; 512]).is_err());
    file.sync().unwrap();
}

#[test]
fn after_a_failed_sync_the_next_one_does_not_bring_the_bytes_back() {
    let lost = (0..20).any(|seed| {
        let sim = SimDisk::new(seed);
        synced_file(&*sim.mount(), "f", &[0; 512]);
        let file = sim.mount().open("f", Mode::Existing).unwrap();
        file.write_at(0, &[1; 512]).unwrap();
        sim.arm(Fault::FailSync { after: 0 });
        assert!(file.sync().is_err());
        file.sync().unwrap();
        let seen = bytes(&*sim.mount(), "f");
        sim.crash();
        seen[0] == 1 && bytes(&*sim.mount(), "f")[0] == 0
    });
    assert!(lost);
}

#[test]
fn a_power_cut_in_the_middle_stops_everything_until_the_crash() {
    let sim = SimDisk::new(3);
    synced_file(&*sim.mount(), "f", &[0; 512]);
    let file = sim.mount().open("f", Mode::Existing).unwrap();
    sim.arm(Fault::CutPower { after: 1 });
    file.write_at(0, &[1; 512]).unwrap();
    assert!(file.sync().is_err());
    assert!(sim.power_is_cut());
    assert!(file.read_at(0, &mut [0; 1]).is_err());
    sim.crash();
    assert_eq!(bytes(&*sim.mount(), "f").len(), 512);
}

#[test]
fn a_full_disk_says_so_and_space_comes_back_with_the_last_handle() {
    let sim = SimDisk::new(1);
    let disk = sim.mount();
    sim.set_capacity(4 * PAGE);
    let file = disk.open("f", Mode::Create).unwrap();
    file.write_at(0, &[1; 2 * PAGE_BYTES]).unwrap();
    let other = disk.open("g", Mode::Create).unwrap();
    assert_eq!(other.set_len(3 * PAGE).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(other.write_at(0, &[1; 3 * PAGE_BYTES]).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(disk.free_bytes().unwrap(), 0);
    file.write_at(0, &[2; 2 * PAGE_BYTES]).unwrap();
    disk.remove("f").unwrap();
    assert_eq!(disk.free_bytes().unwrap(), 0);
    drop(file);
    assert_eq!(disk.free_bytes().unwrap(), 2 * PAGE);
}

#[test]
fn damage_is_seen_by_readers_and_survives_a_power_cut() {
    let sim = SimDisk::new(1);
    synced_file(&*sim.mount(), "f", &[7; 10]);
    sim.damage("f", 3, 0x80);
    assert_eq!(bytes(&*sim.mount(), "f")[3], 0x87);
    sim.crash();
    assert_eq!(bytes(&*sim.mount(), "f")[3], 0x87);
}

const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("t");

fn open_redb(disk: &dyn Disk) -> redb::Result<redb::Database, redb::DatabaseError> {
    let file = disk.open("db", Mode::Create).map_err(redb::StorageError::from)?;
    redb::Builder::new().create_with_backend(Store::new(file, Written::default()))
}

/// Commits until the power goes; returns how many commits were answered.
fn commit_some(db: &redb::Database, count: u64, from: u64) -> u64 {
    for i in from..from + count {
        let done = (|| -> Result<(), redb::Error> {
            let mut write = db.begin_write()?;
            write.set_quick_repair(true);
            write.open_table(TABLE)?.insert(i, [i as u8; 3_000].as_slice())?;
            write.commit()?;
            Ok(())
        })();
        if done.is_err() {
            return i;
        }
    }
    from + count
}

fn redb_run(seed: u64) -> u64 {
    let sim = SimDisk::new(seed);
    let mut committed = 0;
    drop(open_redb(&*sim.mount()));
    sim.mount().sync_dir("").unwrap();
    for round in 0..4 {
        let db = open_redb(&*sim.mount()).unwrap_or_else(|error| panic!("seed {seed} round {round}: {error}"));
        let read = db.begin_read().unwrap();
        if let Ok(table) = read.open_table(TABLE) {
            let all = (0..committed).all(|i| table.get(i).unwrap().is_some_and(|v| v.value()[0] == i as u8));
            assert!(all, "seed {seed} round {round}: a commit was lost");
        } else {
            assert_eq!(committed, 0, "seed {seed} round {round}");
        }
        drop(read);
        sim.arm(Fault::CutPower { after: 5 + (seed * 7 + round * 13) % 90 });
        committed = commit_some(&db, 8, committed);
        sim.crash();
        drop(db);
    }
    sim.trace()
}

#[test]
fn redb_keeps_every_commit_through_power_cuts_in_the_middle_of_one() {
    for seed in 0..40 {
        redb_run(seed);
    }
}

#[test]
fn one_seed_run_twice_traces_the_same() {
    for seed in 0..5 {
        assert_eq!(redb_run(seed), redb_run(seed));
    }
    assert_ne!(redb_run(1), redb_run(2));
}
