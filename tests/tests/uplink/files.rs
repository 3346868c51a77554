//! The file sink on a real disk.

use crate::rig::{Audit, Rig};
use std::path::Path;
use std::time::Duration;

fn sink(dir: &Path) -> String {
    let dir = dir.display();
    format!(r#"{{"type":"file","name":"disk","dir":"{dir}","roll_bytes":"64 KiB","roll_after":"300 ms"}}"#)
}

/// All lines of all complete files, in the order of their names.
fn lines(dir: &Path) -> Vec<serde_json::Value> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names.retain(|name| name.extension().is_some_and(|extension| extension == "zst"));
    let mut lines = Vec::new();
    for name in names {
        let text = zstd::decode_all(std::fs::File::open(&name).unwrap()).unwrap();
        lines.extend(
            text.split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
                .map(|line| serde_json::from_slice(line).unwrap()),
        );
    }
    lines
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
    assert!(rig.trouble().is_some());
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
