//! Chunks through the real log: what is answered is there, once, whatever came before and after.

use super::read::tests::{mkv_chunk, mkv_init};
use super::*;
use crate::clock::Clock;
use crate::log::{Log, OnFull, Options, StreamSettings};
use crate::media::VideoConfig;
use crate::metrics::Metrics;
use crate::record::{Record, StreamName};
use crate::units::{ByteSize, Span};
use crate::wire::media::Media as Header;
use proptest::prelude::*;
use std::path::Path;
use std::time::Duration;

const JPEG: &[u8] = b"\xff\xd8\xff\xe0\x00\x04\x00\x00\xff\xff\xc0\x00\x0b\x08\x01\xe0\x02\x80\x01\x01\x11\x00\xff\xda";

fn open(dir: &Path, config: VideoConfig) -> (Media, Log) {
    let metrics = Metrics::new();
    let options = Options { max_bytes: ByteSize::mib(64), linger: Span::ms(1), ..Options::new(dir) };
    let log = Log::open(options, Clock::system(), metrics.clone()).unwrap();
    let media = Media::start(&config, log.clone(), Clock::system(), metrics, ("r".into(), "0".into()));
    (media, log)
}

/// Publishes as a connection does; what is not ready is waited for.
async fn publish(media: &Media, client: &str, topic: &str, payload: &[u8]) -> Result<(), ChunkError> {
    for _ in 0..3 {
        let mut batch = Batch::new();
        match media.take_chunk(client, topic, payload, &mut batch)? {
            Taken::Later(work) => {
                assert!(batch.is_empty());
                work.await;
            }
            Taken::Kept => return Ok(()),
            Taken::Stored | Taken::Noted => {
                media.inner.log.appender().commit(&mut batch).await.unwrap();
                return Ok(());
            }
        }
    }
    panic!("it is never ready");
}

fn kept(log: &Log, stream: &str) -> Vec<(Record, Header)> {
    let records = log.records(&log.stream(stream).unwrap()).unwrap();
    records.into_iter().map(|record| (record.clone(), Header::of(&record).unwrap())).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_chunk_is_a_fragment_as_any_producers() {
    let dir = tempfile::tempdir().unwrap();
    let (media, log) = open(dir.path(), VideoConfig::default());
    publish(&media, "c", "video/cam/init", &mkv_init()).await.unwrap();
    for number in 0..3 {
        publish(&media, "c", &format!("video/cam/{number}"), &mkv_chunk(number * 1_000)).await.unwrap();
    }
    let kept = kept(&log, "cam");
    let discontinuities: Vec<bool> = kept.iter().map(|(_, media)| media.discontinuity).collect();
    assert_eq!(discontinuities, [true, false, false]);
    for pair in kept.windows(2) {
        assert_eq!(pair[1].1.start_ms - pair[0].1.start_ms, 1_000);
    }
    let (record, header) = &kept[0];
    assert_eq!((header.parts, header.bytes as usize), (1, record.data.len()));
    let fragment = headwater_video::matroska::read_fragment(&record.data).unwrap();
    assert_eq!((fragment.frames.len(), fragment.start_ns() / MS), (2, header.start_ms));
    assert_eq!(header.head_id, crate::wire::media::head_id(&record.data[..header.head_bytes as usize]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_kept_already_is_answered_and_not_kept_twice_and_a_gap_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (media, log) = open(dir.path(), VideoConfig::default());
    publish(&media, "c", "video/cam/init", &mkv_init()).await.unwrap();
    for number in [1, 2, 2, 1, 5, 5, 6] {
        publish(&media, "c", &format!("video/cam/{number}"), &mkv_chunk(number * 1_000)).await.unwrap();
    }
    assert_eq!(
        kept(&log, "cam").iter().map(|(_, media)| media.discontinuity).collect::<Vec<_>>(),
        [true, false, true, false]
    );
    let label = StreamLabel { stream: "cam".into() };
    let metrics = &media.inner.metrics;
    let counted = [&metrics.video_chunks_missing, &metrics.video_chunks_repeated]
        .map(|family| family.get_or_create(&label).get());
    assert_eq!(counted, [2, 3]);
    // Another camera's numbers are its own.
    publish(&media, "d", "video/cam/6", &mkv_chunk(6_000)).await.unwrap();
    assert_eq!(kept(&log, "cam").len(), 5);
}

/// A chunk that was handed to a log which lost it must not count as kept, nor must one behind it speak for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_what_is_on_disk_counts_as_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let (media, log) = open(dir.path(), VideoConfig::default());
    publish(&media, "c", "video/cam/init", &mkv_init()).await.unwrap();
    publish(&media, "c", "video/cam/1", &mkv_chunk(1_000)).await.unwrap();
    let mut lost = Batch::new();
    assert!(matches!(media.take_chunk("c", "video/cam/2", &mkv_chunk(2_000), &mut lost), Ok(Taken::Stored)));
    drop(lost);
    publish(&media, "c", "video/cam/3", &mkv_chunk(3_000)).await.unwrap();
    publish(&media, "c", "video/cam/2", &mkv_chunk(2_000)).await.unwrap();
    assert_eq!(kept(&log, "cam").len(), 3);
}

#[test]
fn a_restart_forgets_neither_init_nor_numbers() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let runtime = runtime();
        let _inside = runtime.enter();
        let (media, log) = open(dir.path(), VideoConfig::default());
        runtime.block_on(async {
            if round == 0 {
                publish(&media, "c", "video/cam/init", &mkv_init()).await.unwrap();
            }
            for number in [1, 2, 2 + round] {
                publish(&media, "c", &format!("video/cam/{number}"), &mkv_chunk(number * 1_000)).await.unwrap();
            }
        });
        let kept = kept(&log, "cam");
        assert_eq!(kept.len() as i64, 2 + round);
        assert!(kept.iter().skip(1).all(|(_, media)| !media.discontinuity), "the clock goes on");
        log.close(Duration::from_secs(5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stream_that_is_made_again_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (media, log) = open(dir.path(), VideoConfig::default());
    let init = mkv_init();
    for _ in 0..2 {
        publish(&media, "c", "video/cam/init", &init).await.unwrap();
        publish(&media, "c", "video/cam/1", &mkv_chunk(0)).await.unwrap();
        assert_eq!(kept(&log, "cam").len(), 1);
        media.delete("cam").await.unwrap();
        assert!(log.state_scan(Table::Media, b"q/cam/").is_empty() && log.state(Table::Media, b"i/cam").is_none());
    }
    publish(&media, "c", "video/cam/2", JPEG).await.unwrap();
    let refused = publish(&media, "c", "video/cam/3", &mkv_chunk(0)).await.unwrap_err();
    assert!(refused.is_order() && refused.to_string().contains("publish the init"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_is_made_for_garbage_and_no_other_stream_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (media, log) = open(dir.path(), VideoConfig::default());
    let settings = StreamSettings { on_full: OnFull::DropOldest, ..StreamSettings::default() };
    log.create_stream(&StreamName::new("records").unwrap(), settings).unwrap();
    for (topic, payload, label) in [
        ("video/cam/1", &b"garbage"[..], "chunk_malformed"),
        ("video/cam/init", b"garbage", "chunk_malformed"),
        ("video/cam/1", &mkv_chunk(0), "chunk_before_init"),
        ("video/cam/mark", b"{}", "chunk_mark"),
        ("video/records/1", JPEG, "chunk_stream"),
        ("video/a b/1", JPEG, "chunk_stream"),
    ] {
        let refused = publish(&media, "c", topic, payload).await.unwrap_err();
        assert_eq!(refused.label(), label, "{topic}: {refused}");
    }
    assert_eq!(log.streams().len(), 1);
    let (closed, _) = (VideoConfig { create: false, ..VideoConfig::default() }, ());
    let other = tempfile::tempdir().unwrap();
    let (media, log) = open(other.path(), closed);
    assert_eq!(publish(&media, "c", "video/cam/1", JPEG).await.unwrap_err().label(), "chunk_stream");
    assert!(log.streams().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_mark_is_made_and_publishers_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let (media, log) = open(dir.path(), VideoConfig::default());
    for client in 0..20 {
        publish(&media, &format!("c{client}"), "video/cam/1", JPEG).await.unwrap();
    }
    assert_eq!(kept(&log, "cam").len(), 20);
    assert_eq!(log.state_scan(Table::Media, b"q/cam/").len(), 2 * PUBLISHERS_MAX);
    publish(&media, "c", "video/cam/mark", br#"{"name": "door", "at_ms": 5000, "pre_roll_s": 1}"#).await.unwrap();
    let marks = media.marks("cam", 0, 100_000).unwrap();
    assert_eq!((marks.len(), marks[0].from_ms, marks[0].name.as_str()), (1, 4_000, "door"));
    let refused = publish(&media, "c", "video/cam/mark", b"door").await.unwrap_err();
    assert!(refused.to_string().contains("JSON"), "{refused}");
}

#[test]
fn only_topics_of_video_are_videos() {
    for (topic, expected) in [
        ("video/cam/init", Some(("cam", What::Init))),
        ("video/cam/mark", Some(("cam", What::Mark))),
        ("video/cam/0017", Some(("cam", What::Chunk(17)))),
        ("video/cam/18446744073709551616", None),
        ("video/cam/-1", None),
        ("video/cam/", None),
        ("video/cam", None),
        ("video//1", None),
        ("video/cam/1/2", None),
        ("video/cam/state", None),
        ("videos/cam/1", None),
        ("a/video/cam/1", None),
    ] {
        assert_eq!(parse("video", topic), expected, "{topic}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn noise_costs_its_sender_alone(
        messages in prop::collection::vec((0u8..4, any::<u64>(), prop::collection::vec(any::<u8>(), 0..200)), 1..20),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime();
        let _inside = runtime.enter();
        let (media, log) = open(dir.path(), VideoConfig::default());
        runtime.block_on(async {
            publish(&media, "good", "video/cam/init", &mkv_init()).await.unwrap();
            for (at, (kind, number, noise)) in messages.iter().enumerate() {
                let topic = match kind {
                    0 => "video/other/init".to_owned(),
                    1 => "video/cam/mark".to_owned(),
                    _ => format!("video/cam/{number}"),
                };
                let _ = publish(&media, "bad", &topic, noise).await;
                publish(&media, "good", &format!("video/cam/{at}"), &mkv_chunk(at as i64 * 1_000)).await.unwrap();
            }
        });
        prop_assert!(kept(&log, "cam").len() >= messages.len());
        log.close(Duration::from_secs(5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn chunks_are_thinned_out_like_what_any_producer_sends() {
    let dir = tempfile::tempdir().unwrap();
    let config = VideoConfig { thin_every: Some(Span::secs(5)), ..VideoConfig::default() };
    let (media, log) = open(dir.path(), config);
    publish(&media, "c", "video/cam/init", &mkv_init()).await.unwrap();
    for number in 0..11 {
        publish(&media, "c", &format!("video/cam/{number}"), &mkv_chunk(number * 1_000)).await.unwrap();
    }
    assert_eq!(kept(&log, "cam").len(), 11);
    let three = async {
        while log.stream("cam.thin").is_none_or(|_| kept(&log, "cam.thin").len() < 3) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), three).await.expect("three pictures in eleven seconds");
    let pictures = kept(&log, "cam.thin");
    assert!(pictures.windows(2).all(|pair| pair[1].1.start_ms - pair[0].1.start_ms == 5_000));
    let fragment = headwater_video::matroska::read_fragment(&pictures[0].0.data).unwrap();
    assert_eq!(fragment.frames.len(), 1);
}
