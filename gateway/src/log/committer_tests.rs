//! The door after a group that failed: who may go on, and with which numbers.

use super::disk::sim::{Fault, SimDisk};
use super::sim::{SimSizes, SimStep, SteppedLog};
use super::*;
use crate::record::{NewRecord, Producer};

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
    let group = log.engine.door.take();
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
