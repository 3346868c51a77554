//! The file sink on a real disk.

use crate::rig::{Audit, Rig};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// What the sink reads of a shard at once, as lines of records of a kilobyte.
const CHUNK: u64 = 320 << 10;

fn sink(dir: &Path) -> String {
    let dir = dir.display();
    format!(r#"{{"type":"file","name":"disk","dir":"{dir}","roll_bytes":"64 KiB","roll_after":"300 ms"}}"#)
}

/// What all complete files say, in the order of their names.
fn texts(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names.iter().filter_map(|name| text(name)).collect()
}

/// `None` if the file is not complete.
fn text(name: &Path) -> Option<String> {
    let (file, mut text) = (std::fs::File::open(name).unwrap(), String::new());
    let mut reader: Box<dyn Read> = match name.extension()?.to_str()? {
        "zst" => Box::new(zstd::Decoder::new(file).unwrap()),
        "gz" => Box::new(flate2::read::GzDecoder::new(file)),
        "ndjson" => Box::new(file),
        _ => return None,
    };
    reader.read_to_string(&mut text).unwrap();
    Some(text)
}

fn lines(dir: &Path) -> Vec<serde_json::Value> {
    texts(dir).iter().flat_map(|text| text.lines()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn audit(rig: &Rig, dir: &Path) -> Audit {
    let lines: Vec<serde_json::Value> = lines(dir);
    let text = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap().to_owned();
    let arrived: Vec<_> = lines.iter().map(|line| (text(line, "key"), text(line, "data"), text(line, "id"))).collect();
    rig.audit(arrived.iter().map(|(key, data, id)| (key.as_str(), data.as_bytes(), Some(id.as_str()))))
}

#[tokio::test(flavor = "multi_thread")]
async fn files_hold_every_record_in_order_over_restarts() {
    let out = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(3);
    rig.start(&sink(out.path())).await;
    for _ in 0..3 {
        rig.put(3000, 30).await;
        rig.restart(&sink(out.path())).await;
    }
    rig.put(100, 30).await;
    rig.drained("disk", Duration::from_secs(30)).await;
    let audit = audit(&rig, out.path());
    assert_eq!(audit, Audit { arrived: 9100, ..Audit::default() });
    assert!(std::fs::read_dir(out.path()).unwrap().count() >= 4, "one for each start at least");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_written_holds_the_cursor() {
    let out = tempfile::tempdir().unwrap();
    let blocked = out.path().join("blocked");
    std::fs::write(&blocked, "a file where the directory should be").unwrap();
    let mut rig = Rig::new(1);
    rig.put(100, 3).await;
    rig.start(&sink(&blocked)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(rig.backlog("disk"), 100);
    let why = rig.trouble().unwrap();
    assert!(why.starts_with(&format!("cannot write: {}: ", blocked.display())), "{why}");
    // The bytes and the age were 0 while nothing could be written: nothing was read.
    let figure = |unit: &str| rig.figure(&format!("headwater_sink_backlog{unit}"), "disk");
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while figure("_age_seconds") < 1.0 {
        assert!(std::time::Instant::now() < until, "{}", rig.metrics.render());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let each = figure("_size_bytes") / figure("");
    assert_eq!(figure(""), 100.0);
    assert!((30.0..60.0).contains(&each), "{each} bytes a record");
    std::fs::remove_file(&blocked).unwrap();
    rig.drained("disk", Duration::from_secs(30)).await;
    assert_eq!(audit(&rig, &blocked), Audit { arrived: 100, ..Audit::default() });
}

/// The cap was taken and never looked at: files were written as fast as the disk took them.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_written_no_faster_than_the_cap_and_a_stop_does_not_wait_for_it() {
    const RATE: u64 = 128 << 10;
    let out = tempfile::tempdir().unwrap();
    let capped = sink(out.path()).replace('}', r#","max_bytes_per_s":"128 KiB"}"#);
    let mut rig = Rig::new(2);
    rig.put_padded(800, 10, 1000).await;
    let started = Instant::now();
    rig.start(&capped).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stopping = Instant::now();
    rig.stop().await;
    assert!(stopping.elapsed() < Duration::from_millis(500), "{:?}", stopping.elapsed());
    assert!(rig.backlog("disk") > 0);
    let before: u64 = texts(out.path()).iter().map(|text| text.len() as u64).sum();
    assert!(before <= RATE / 2 + RATE + CHUNK, "{before} bytes in {:?}", started.elapsed());

    let started = Instant::now();
    rig.start(&capped).await;
    rig.drained("disk", Duration::from_secs(30)).await;
    let took = started.elapsed();
    assert_eq!(audit(&rig, out.path()), Audit { arrived: 800, ..Audit::default() });
    let bytes: u64 = texts(out.path()).iter().map(|text| text.len() as u64).sum::<u64>() - before;
    // A second's worth is in hand at the start, and the last chunk is paid for by nobody.
    assert!(took >= Duration::from_millis((bytes - RATE - CHUNK) * 1000 / RATE), "{bytes} bytes in {took:?}");
    assert!(took <= Duration::from_millis(bytes * 1000 / RATE + 5000), "{bytes} bytes in {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_what_was_evicted_before_it_could_be_written_is_told_in_its_place() {
    let out = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(1);
    rig.put(100, 10).await;
    rig.start(&sink(out.path())).await;
    rig.drained("disk", Duration::from_secs(30)).await;
    rig.stop().await;
    rig.put_until_evicted().await;
    rig.start(&sink(out.path())).await;
    rig.drained("disk", Duration::from_secs(30)).await;
    let lines = lines(out.path());
    let gaps: Vec<_> = lines.iter().filter(|line| line["headwater"] == "gap").cloned().collect();
    let lost = rig.told_as_evicted(&gaps, 100);
    assert!(lost > 0);
    let records = lines.iter().filter(|line| line["headwater"].is_null());
    let numbers: Vec<u64> = records.map(|line| line["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=100).chain(101 + lost..=rig.total()).collect::<Vec<_>>());
    // The first thing in the file that begins behind them.
    assert_eq!(lines[100], gaps[0]);
}

/// The file is never old enough here, so it is its size that completes it.
async fn rolls_at(bytes: u64, compression: &str, extension: &str) {
    let out = tempfile::tempdir().unwrap();
    let dir = out.path().display();
    let mut rig = Rig::new(1);
    rig.put_padded(3000, 10, 1000).await;
    rig.start(&format!(
        r#"{{"type":"file","name":"disk","dir":"{dir}","roll_bytes":"{bytes} B","roll_after":"1 h","compression":"{compression}"}}"#
    ))
    .await;
    let until = Instant::now() + Duration::from_secs(30);
    while rig.backlog("disk") as f64 > bytes as f64 / 1000.0 {
        assert!(Instant::now() < until, "{} records left, {:?}", rig.backlog("disk"), rig.status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The last file is not full, and complete all the same.
    rig.stop().await;
    assert_eq!(audit(&rig, out.path()), Audit { arrived: 3000, ..Audit::default() });
    for name in std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
        assert!(name.starts_with("disk-telemetry-") && name.ends_with(extension), "{name}");
    }
    let sizes: Vec<u64> = texts(out.path()).iter().map(|text| text.len() as u64).collect();
    let (_, full) = sizes.split_last().unwrap();
    assert!(full.len() >= 3 && full.iter().all(|size| (bytes..bytes + CHUNK).contains(size)), "{sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_complete_once_it_has_its_size_however_it_is_compressed() {
    for (compression, extension) in
        [("zstd", "-0000.ndjson.zst"), ("gzip", "-0000.ndjson.gz"), ("none", "-0000.ndjson")]
    {
        rolls_at(600_000, compression, extension).await;
    }
}
