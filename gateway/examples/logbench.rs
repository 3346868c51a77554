//! Appends from many threads' worth of producers, to profile the log alone.
use headwater::{clock::Clock, log::*, metrics::Metrics, record::*, units::*};
use std::time::*;
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let metrics = Metrics::new();
    let log = Log::open(
        Options { max_bytes: ByteSize(16 << 30), ..Options::new(dir.path()) },
        Clock::system(),
        metrics.clone(),
    )
    .unwrap();
    let stream = log.create_stream(&StreamName::new("s").unwrap(), StreamSettings::default()).unwrap();
    let n: u64 = std::env::args().nth(1).map_or(5_000_000, |n| n.parse().unwrap());
    let start = Instant::now();
    let mut tasks = Vec::new();
    for c in 0..50u64 {
        let (log, stream) = (log.clone(), stream.clone());
        tasks.push(tokio::spawn(async move {
            let mut app = log.appender();
            let key = format!("device-{c:04}");
            let hash = HashKey::of(key.as_bytes());
            let topic = [Header::new(HeaderId::Topic, format!("site/a/dev/{key}/t"))];
            let mut seq = 0u64;
            let mut rng = fastrand::Rng::with_seed(c);
            while seq < n / 50 {
                let mut batch = Batch::new();
                for _ in 0..100 {
                    seq += 1;
                    let data = format!("{{\"device\":\"{key}\",\"seq\":{seq},\"ts\":{},\"temperature\":{}.{},\"humidity\":{}.{},\"ok\":true}}", 1_800_000_000_000u64 + seq * 10, 20 + rng.u32(0..3), rng.u32(0..100), 40 + rng.u32(0..5), rng.u32(0..100));
                    batch.push_hashed(&stream, hash, &NewRecord { key: key.as_bytes(), headers: &topic, data: data.as_bytes(), ..Default::default() }).unwrap();
                }
                app.commit(&mut batch).await.unwrap();
            }
        }));
    }
    for t in tasks {
        t.await.unwrap();
    }
    let s = start.elapsed().as_secs_f64();
    let payload = metrics.payload_in.get_or_create(&headwater::metrics::StreamLabel { stream: "s".into() }).get();
    log.close(Duration::from_secs(30));
    let disk = metrics.journal_written.get() + metrics.segments_written.get();
    println!(
        "{:.0}/s commits={} folds={} journal/payload={:.3} segments/payload={:.3} total={:.3} stored={:.3} payload={}",
        n as f64 / s,
        metrics.commits.get(),
        metrics.folds.get(),
        metrics.journal_written.get() as f64 / payload as f64,
        metrics.segments_written.get() as f64 / payload as f64,
        disk as f64 / payload as f64,
        stream.size_bytes() as f64 / payload as f64,
        payload / n
    );
}
