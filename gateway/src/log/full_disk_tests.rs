//! A disk without a byte free (promise P6): a state, not an error. The log on the simulated disk, stepped by hand.

use super::disk::sim::SimDisk;
use super::sim::{SimSizes, SimStep, SteppedLog};
use super::*;
use crate::record::{GapReason, NewRecord};

const SIZES: SimSizes = SimSizes { budget: 1 << 30, ring: 512 << 10, segment: 128 << 10, blob_file: 256 << 10 };

fn open(sim: &SimDisk, seed: u64) -> SteppedLog {
    SteppedLog::open(sim.mount(), Clock::manual(1, 1_800_000_000_000), seed, SIZES).unwrap()
}

fn made(log: &SteppedLog, on_full: OnFull) -> Arc<Stream> {
    let settings = StreamSettings { shards: 1, on_full, ..StreamSettings::default() };
    log.create_stream(&StreamName::new("s").unwrap(), settings).unwrap()
}

/// One producer and the two threads of the log, a second at a time; returns what was acknowledged as stored.
fn rounds(log: &mut SteppedLog, stream: &Arc<Stream>, rounds: u32) -> Vec<u64> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut appender = log.appender();
    let (mut waiting, mut stored) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        if waiting.is_empty() {
            let mut batch = Batch::new();
            for _ in 0..20 {
                let data: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(500).collect();
                batch.push(stream, &NewRecord { key: b"k", data: &data, ..Default::default() }).unwrap();
            }
            waiting.extend(log.append(&mut appender, &mut batch).unwrap());
        }
        if log.commit_step() == SimStep::NoRoom {
            let _ = log.fold_step(true);
        }
        log.tick();
        let durable = appender.durable_now().unwrap();
        for (_, placements) in waiting.extract_if(.., |(ticket, _)| *ticket <= durable) {
            stored.extend(placements.iter().filter_map(|placement| match placement {
                Placement::Stored { number, .. } => Some(*number),
                _ => None,
            }));
        }
    }
    stored
}

/// Every number up to the newest is there or told; returns how many are told.
fn judge(log: &SteppedLog, stream: &Arc<Stream>) -> u64 {
    let mut reader = log.reader(stream, 0, Position::At(1)).unwrap();
    let (mut next, mut told) = (1, 0);
    loop {
        let entries = reader.next_blocking(1000, 1 << 20).unwrap();
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            match entry {
                Entry::Record(record) => {
                    assert_eq!(record.number, next);
                    next += 1;
                }
                Entry::Gap(gap) => {
                    assert_eq!((gap.from, gap.reason), (next, GapReason::Evicted));
                    (next, told) = (gap.to + 1, told + gap.count());
                }
            }
        }
    }
    assert_eq!(next, stream.shard(0).unwrap().newest() + 1);
    told
}

// With the ring full and no room for a fold, the trim marks of retention had no room in the ring either, and the log stood
// still until somebody made room by hand.
#[test]
fn a_full_disk_drops_the_oldest_and_ingest_goes_on_by_itself() {
    let sim = SimDisk::new(1);
    let mut log = open(&sim, 1);
    let stream = made(&log, OnFull::DropOldest);
    rounds(&mut log, &stream, 50);
    log.fold_step(true).unwrap();
    sim.set_capacity(sim.used_bytes() + (1 << 20));
    rounds(&mut log, &stream, 600);
    let stored = rounds(&mut log, &stream, 300);
    assert!(stored.len() > 1_000, "{} records in 300 rounds; {:?}", stored.len(), log.trouble());
    assert!(judge(&log, &stream) > 1_000);
    sim.crash();
    drop(log);
    // Nobody has made room.
    let mut log = open(&sim, 2);
    let stream = log.stream("s").unwrap();
    assert!(stored.iter().all(|number| *number <= stream.shard(0).unwrap().newest()));
    judge(&log, &stream);
    assert!(rounds(&mut log, &stream, 300).len() > 1_000, "{:?}", log.trouble());
}

#[test]
fn a_full_disk_stops_a_stream_that_rejects_until_there_is_room() {
    let sim = SimDisk::new(1);
    let mut log = open(&sim, 1);
    let stream = made(&log, OnFull::Reject);
    rounds(&mut log, &stream, 50);
    sim.set_capacity(sim.used_bytes());
    rounds(&mut log, &stream, 300);
    assert!(rounds(&mut log, &stream, 100).is_empty());
    assert_eq!(judge(&log, &stream), 0);
    sim.crash();
    drop(log);
    let mut log = open(&sim, 2);
    let stream = log.stream("s").unwrap();
    assert_eq!(judge(&log, &stream), 0);
    sim.set_capacity(1 << 40);
    assert!(rounds(&mut log, &stream, 100).len() > 1_000, "{:?}", log.trouble());
}

// The identifier of a QoS 2 message was durable although its record had been refused: a retransmission after a crash would
// have been acknowledged, and the message stored nowhere.
#[test]
fn a_change_that_goes_with_records_knows_which_were_refused_and_is_in_their_group() {
    let sim = SimDisk::new(1);
    let mut log = open(&sim, 1);
    let full = made(&log, OnFull::Reject);
    let settings = StreamSettings { shards: 1, ..StreamSettings::default() };
    let other = log.create_stream(&StreamName::new("t").unwrap(), settings).unwrap();
    rounds(&mut log, &full, 50);
    sim.set_capacity(sim.used_bytes());
    rounds(&mut log, &full, 300);
    sim.set_capacity(1 << 40);
    log.fold_step(true).unwrap();
    let mut appender = log.appender();
    let batch = || {
        let mut batch = Batch::new();
        for stream in [&full, &other, &full] {
            batch.push(stream, &NewRecord { key: b"k", data: &[7; 5_000], ..Default::default() }).unwrap();
        }
        batch.put_state_on_places(Table::Sessions, &b"c"[..], |places| {
            let stored = places.iter().map(|place| u8::from(matches!(place, Placement::Stored { .. })));
            Some(stored.collect::<Vec<_>>().into())
        });
        batch
    };
    let (_, places) = log.append(&mut appender, &mut batch()).unwrap().unwrap();
    assert!(
        matches!(places[..], [Placement::Full { .. }, Placement::Stored { .. }, Placement::Full { .. }]),
        "{places:?}"
    );
    log.commit_step();
    assert_eq!(log.state(Table::Sessions, b"c").as_deref(), Some(&[0, 1, 0][..]));

    // A group that has no room for all of the batch takes none of it.
    let mut filler = Batch::new();
    let filling = [7; 4_000];
    (0..6).for_each(|_| filler.push(&other, &NewRecord { key: b"k", data: &filling, ..Default::default() }).unwrap());
    log.append(&mut appender, &mut filler).unwrap().unwrap();
    let newest = other.shard(0).unwrap().assigned();
    log.tick();
    let mut second = log.appender();
    assert!(log.append(&mut second, &mut batch()).unwrap().is_none());
    assert_eq!(other.shard(0).unwrap().assigned(), newest);
    log.commit_step();
    let (ticket, _) = log.append(&mut second, &mut batch()).unwrap().unwrap();
    log.commit_step();
    assert_eq!(second.durable_now().unwrap(), ticket);
}

fn large(stream: &Arc<Stream>, bytes: usize) -> Batch {
    let mut batch = Batch::new();
    batch.push(stream, &NewRecord { key: b"k", data: &vec![7; bytes], ..Default::default() }).unwrap();
    batch
}

/// Appends a large value and commits; what became of it.
fn put_large(log: &SteppedLog, stream: &Arc<Stream>, bytes: usize) -> Result<Placement, AppendError> {
    let (_, places) = log.append(&mut log.appender(), &mut large(stream, bytes))?.expect("there is room in the group");
    log.commit_step();
    Ok(places[0])
}

// Each value that a full stream refused had been written and synced before, and stayed until the next start.
#[test]
fn a_large_value_that_is_refused_takes_no_room() {
    let sim = SimDisk::new(1);
    let mut log = open(&sim, 1);
    let stream = made(&log, OnFull::Reject);
    assert!(matches!(put_large(&log, &stream, 100_000).unwrap(), Placement::Stored { .. }));
    log.fold_step(true).unwrap();

    // Before the log knows: what was begun is given back, and the sender is told as of any full stream.
    sim.set_capacity(sim.used_bytes() + (64 << 10));
    let used = sim.used_bytes();
    for _ in 0..5 {
        assert!(matches!(put_large(&log, &stream, 200_000).unwrap(), Placement::Full { .. }));
        assert!(sim.used_bytes() <= used, "{} then {}", used, sim.used_bytes());
    }
    // And when it does: nothing is written at all.
    rounds(&mut log, &stream, 300);
    sim.set_capacity(1 << 40);
    let used = sim.used_bytes();
    assert!(stream.refuses());
    assert!(matches!(put_large(&log, &stream, 200_000).unwrap(), Placement::Full { .. }));
    assert_eq!(sim.used_bytes(), used);
    log.fold_step(true).unwrap();
    log.tick();
    assert!(matches!(put_large(&log, &stream, 200_000).unwrap(), Placement::Stored { .. }));
}

// Segments knew of their blocks alone. All images of a stream lay behind the few kilobytes of one segment, so that at the
// limit every one of them went at once; and a box that was full of them dropped the telemetry instead.
#[test]
fn large_values_go_a_file_at_a_time_and_from_the_stream_that_has_them() {
    let sim = SimDisk::new(1);
    let sizes = SimSizes { budget: 24 << 20, ..SIZES };
    let mut log = SteppedLog::open(sim.mount(), Clock::manual(1, 1_800_000_000_000), 1, sizes).unwrap();
    let telemetry = made(&log, OnFull::DropOldest);
    let settings = StreamSettings { shards: 1, ..StreamSettings::default() };
    let images = log.create_stream(&StreamName::new("images").unwrap(), settings).unwrap();
    let stored = rounds(&mut log, &telemetry, 100).len() as u64;
    assert!(stored > 0);
    for n in 0..120 {
        assert!(matches!(put_large(&log, &images, 200_000).unwrap(), Placement::Stored { .. }), "{n}");
        if n % 2 == 0 {
            log.fold_step(true).unwrap();
        }
        log.tick();
        log.commit_step();
        log.tick();
        let shard = images.shard(0).unwrap();
        let there = shard.newest() + 1 - shard.oldest();
        assert!(there >= 15.min(n), "{there} of {n}: they go one file after the other");
    }
    assert_eq!(telemetry.shard(0).unwrap().oldest(), 1, "the telemetry is not what fills the disk");
    assert!(images.shard(0).unwrap().oldest() > 50);
}

// Retention began where streams that reject were called full, so a box that its cameras had filled refused the telemetry of
// such streams again and again, until the oldest of the video was durably on its way out.
#[test]
fn video_gives_way_before_a_stream_that_rejects_sees_a_full_box() {
    let sim = SimDisk::new(1);
    let sizes = SimSizes { budget: 48 << 20, ..SIZES };
    let mut log = SteppedLog::open(sim.mount(), Clock::manual(1, 1_800_000_000_000), 1, sizes).unwrap();
    let telemetry = made(&log, OnFull::Reject);
    let settings = StreamSettings { shards: 1, kind: StreamKind::Video, ..StreamSettings::default() };
    let cameras: Vec<_> = ["a", "b"]
        .map(|name| log.create_stream(&StreamName::new(name).unwrap(), settings.clone()).unwrap())
        .into_iter()
        .collect();
    let mut sent = 0;
    for n in 0..300 {
        for camera in &cameras {
            assert!(matches!(put_large(&log, camera, 200_000).unwrap(), Placement::Stored { .. }), "{n}");
        }
        assert!(!telemetry.refuses(), "{n}: refused because of video");
        sent += u64::from(matches!(put_large(&log, &telemetry, 500).unwrap(), Placement::Stored { .. }));
        if n % 2 == 0 {
            log.fold_step(true).unwrap();
        }
        log.tick();
    }
    // Minutes of a camera at once, more than retention has kept free.
    for n in 0..120 {
        assert!(matches!(put_large(&log, &cameras[0], 200_000).unwrap(), Placement::Stored { .. }), "{n}");
        if n % 20 == 19 {
            log.fold_step(true).unwrap();
            log.tick();
            assert!(!telemetry.refuses(), "{n}: refused because of a burst of video");
        }
    }
    let shard = telemetry.shard(0).unwrap();
    assert_eq!((sent, shard.oldest(), shard.newest()), (300, 1, 300), "all of the telemetry is there");
    for camera in &cameras {
        // What is gone is told, and the rest is whole: `judge` reads it all.
        assert!(camera.shard(0).unwrap().oldest() > 100 && judge(&log, camera) > 100);
    }
}

// A block took one record more than it had room for. Of pictures of 20 KB, which do not compress, that was a quarter, and redb
// keeps a value in a power of two of pages: they took three times their size.
#[test]
fn records_that_do_not_compress_take_little_more_than_their_size() {
    let mut rng = fastrand::Rng::with_seed(7);
    for each in [300, 5_000, 20_000] {
        let sim = SimDisk::new(1);
        let sizes = SimSizes { ring: 8 << 20, segment: 64 << 20, ..SIZES };
        let mut log = SteppedLog::open(sim.mount(), Clock::manual(1, 1_800_000_000_000), 1, sizes).unwrap();
        let stream = made(&log, OnFull::DropOldest);
        let (before, mut sent) = (sim.used_bytes(), 0);
        let mut appender = log.appender();
        while sent < 12 << 20 {
            let mut batch = Batch::new();
            for _ in 0..(100_000 / each) {
                let data: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(each).collect();
                batch.push(&stream, &NewRecord { key: b"k", data: &data, ..Default::default() }).unwrap();
                sent += each;
            }
            log.append(&mut appender, &mut batch).unwrap().expect("one batch at a time has room");
            log.commit_step();
            if sent % 2_000_000 < 100_000 {
                log.fold_step(true).unwrap();
            }
            log.tick();
        }
        log.fold_step(true).unwrap();
        let took = (sim.used_bytes() - before) as f64 / sent as f64;
        // What redb frees while it grows is in it.
        assert!(took < 2.0, "{each} bytes a record: {took:.2} of their size");
    }
}
