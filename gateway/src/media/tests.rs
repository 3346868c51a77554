//! Fragments through a real log, without sockets: what goes in comes out, whatever its size, and is found again.

use super::archive::Select;
use super::index::{By, Entry};
use super::intake::{Intake, Timecodes};
use super::producer::{Producer, ProducerError};
use super::*;
use crate::log::Options;
use crate::units::ByteSize;
use bytes::Bytes;
use headwater_video::media::MS;
use headwater_video::{Codec, Fragment, Frame, Kind, Track, Tracks, matroska};
/// 2026-01-01.
const START_MS: i64 = 1_767_225_600_000;

struct Rig {
    media: Media,
    clock: Clock,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new(config: VideoConfig) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let (clock, metrics) = (Clock::manual(1, START_MS as u64), Metrics::new());
        let log = Log::open(Options::new(dir.path()), clock.clone(), metrics.clone()).unwrap();
        let media = Media::start(&config, log, clock.clone(), metrics, ("r".into(), "0".into()));
        Rig { media, clock, _dir: dir }
    }

    /// Sends fragments as one producer does, and waits until they are on disk.
    async fn send(&self, name: &str, fragments: &[Fragment]) -> Result<producer::Kept, ProducerError> {
        let camera = self.media.camera_for_producer(name).await.unwrap();
        let (mut producer, _) = Producer::begin(camera, self.clock.clone());
        let mut intake = Intake::new(Timecodes::Absolute);
        intake.thin(self.media.inner.shared.thin_every_ms);
        let mut bytes = matroska::head(&fragments[0].tracks);
        fragments.iter().for_each(|fragment| bytes.extend(matroska::cluster(fragment, 0)));
        for piece in bytes.chunks(100_000) {
            producer.push(&mut intake, piece).await?;
        }
        producer.finish(&mut intake).await?;
        producer.end().await
    }
}

fn tracks() -> Arc<Tracks> {
    Arc::new(Tracks(vec![Track {
        number: 1,
        kind: Kind::Video,
        codec: Codec::H264,
        private: Bytes::from_static(&[
            1, 0x64, 0, 0x28, 0xff, 0xe1, 0, 4, 0x67, 0x64, 0, 0x28, 1, 0, 4, 0x68, 0xee, 0x3c, 0x80,
        ]),
        name: String::new(),
        width: 640,
        height: 360,
        sample_rate: 0,
        channels: 0,
        default_duration_ns: 100 * MS as u64,
        codec_delay_ns: 0,
        seek_preroll_ns: 0,
    }]))
}

/// A second of ten pictures of so many bytes.
fn fragment(tracks: &Arc<Tracks>, start_ms: i64, bytes: usize) -> Fragment {
    let frame = |at: i64| Frame {
        track: 1,
        pts_ns: (start_ms + 100 * at) * MS,
        duration_ns: None,
        keyframe: at == 0,
        data: vec![(start_ms / 1000 + at) as u8; bytes].into(),
    };
    Fragment { tracks: tracks.clone(), frames: (0..10).map(frame).collect(), discontinuity: false, tags: Vec::new() }
}

fn seconds(count: i64, bytes: usize) -> Vec<Fragment> {
    let tracks = tracks();
    (0..count).map(|second| fragment(&tracks, START_MS + second * 1000, bytes)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_persisted_is_read_back_frame_by_frame_whatever_its_size() {
    let rig = Rig::new(VideoConfig::default());
    let mut sent = seconds(3, 500);
    // Beyond what one record may hold, beyond what the journal takes, and small again.
    sent.push(fragment(&sent[0].tracks, START_MS + 3000, 2_100_000));
    sent.push(fragment(&sent[0].tracks, START_MS + 4000, 20_000));
    let kept = rig.send("cam", &sent).await.unwrap();
    assert_eq!((kept.fragments, kept.dropped), (5, 0));
    let camera = rig.media.camera("cam").unwrap();
    let found = camera.archive.select(Select::showing(i64::MIN, i64::MAX)).await.unwrap();
    let starts: Vec<i64> = found.iter().map(|(_, entry)| entry.start_ms - START_MS).collect();
    assert_eq!(starts, [0, 1000, 2000, 3000, 4000]);
    assert_eq!(found[3].1.parts, 3, "21 MB are three records");
    for ((_, entry), sent) in found.iter().zip(&sent) {
        let read = camera.archive.read(entry).await.unwrap().fragment().unwrap();
        assert_eq!(read.frames, sent.frames);
        assert_eq!(entry.duration_ms, 1000);
    }
    assert_eq!(found.iter().filter(|(_, entry)| entry.discontinuity).count(), 1, "the first alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_makes_a_break_and_never_a_long_fragment() {
    let rig = Rig::new(VideoConfig::default());
    let tracks = tracks();
    let week = 7 * 86_400_000;
    let times = [0, 1000, week, week + 1000, 5000, 6000];
    let sent: Vec<_> = times.iter().map(|at| fragment(&tracks, START_MS + at, 300)).collect();
    rig.send("cam", &sent).await.unwrap();
    let camera = rig.media.camera("cam").unwrap();
    let found =
        camera.archive.select(Select { by: By::Server, from_ms: i64::MIN, to_ms: i64::MAX, showing: false }).await;
    let found = found.unwrap();
    assert!(found.iter().all(|(_, entry)| entry.duration_ms <= 1000), "{found:?}");
    let breaks: Vec<bool> = found.iter().map(|(_, entry)| entry.discontinuity).collect();
    assert_eq!(breaks, [true, false, true, false, true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_older_than_the_index_are_found_all_the_same() {
    let rig = Rig::new(VideoConfig::default());
    rig.send("cam", &seconds(30, 200)).await.unwrap();
    let camera = rig.media.camera("cam").unwrap();
    camera.archive.hold_at_most(5);
    let all = camera.archive.select(Select::showing(i64::MIN, i64::MAX)).await.unwrap();
    assert_eq!(all.len(), 30);
    assert!(all.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0 && pair[0].1.number < pair[1].1.number));
    let some = camera.archive.select(Select::showing(START_MS + 3_500, START_MS + 5_500)).await.unwrap();
    assert_eq!(some.len(), 3);
    let (_, entry, next) = camera.archive.entry(all[2].1.number).await.unwrap().unwrap();
    assert_eq!((entry.number, next.unwrap().number), (all[2].1.number, all[3].1.number));
    assert!(camera.media_segment(all[2].1.number, &mut rig.media.inner.readers.place().unwrap()).await.is_ok());
    let (mut after, mut met) = (0, 0);
    while let Some((entry, _)) = camera.archive.behind(after).await.unwrap() {
        (after, met) = (entry.next_number() - 1, met + 1);
    }
    assert_eq!(met, 30, "a reader from the earliest on meets all");
    let first = camera.archive.first_at(By::Producer, START_MS + 2_000).await.unwrap().unwrap();
    assert_eq!(first.start_ms, START_MS + 2_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_picture_in_so_many_is_kept_for_longer_in_a_stream_of_its_own() {
    let rig = Rig::new(VideoConfig { thin_every: Some(Span::secs(5)), ..VideoConfig::default() });
    rig.send("cam", &seconds(21, 200)).await.unwrap();
    let thin = rig.media.camera("cam.thin").unwrap();
    let looks = async {
        loop {
            let found = thin.archive.select(Select::showing(i64::MIN, i64::MAX)).await.unwrap();
            if found.len() == 5 {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(10), looks).await.expect("five pictures in 21 seconds");
    let starts: Vec<i64> = found.iter().map(|(_, entry)| entry.start_ms - START_MS).collect();
    assert_eq!(starts, [0, 5_000, 10_000, 15_000, 20_000]);
    let read = thin.archive.read(&found[1].1).await.unwrap().fragment().unwrap();
    assert_eq!((read.frames.len(), found[1].1.duration_ms, found[1].1.discontinuity), (1, 5_000, false));
    assert_eq!(thin.stream().settings().retention, Span::days(90));
}

/// The fault: the one picture that is kept for longer came first, and said of the whole stream that no picture waits for another.
#[tokio::test(flavor = "multi_thread")]
async fn thinning_out_says_nothing_of_how_pictures_are_ordered() {
    let rig = Rig::new(VideoConfig { thin_every: Some(Span::secs(5)), ..VideoConfig::default() });
    let sent: Vec<_> = seconds(3, 200)
        .into_iter()
        .map(|mut fragment| {
            // Decoded before the two that are shown before it.
            fragment.frames.swap(1, 3);
            fragment
        })
        .collect();
    rig.send("cam", &sent).await.unwrap();
    let found = rig.media.camera("cam").unwrap().archive.select(Select::showing(i64::MIN, i64::MAX)).await.unwrap();
    assert_eq!(found.iter().map(|(_, entry)| entry.delay_ms).collect::<Vec<_>>(), [200; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_comes_in_pages_wherever_the_index_begins() {
    let rig = Rig::new(VideoConfig::default());
    rig.send("cam", &seconds(30, 200)).await.unwrap();
    let camera = rig.media.camera("cam").unwrap();
    let what = Select { by: By::Producer, from_ms: START_MS + 1_000, to_ms: i64::MAX, showing: false };
    for held in [5, 18, 100] {
        camera.archive.hold_at_most(held);
        let (mut after, mut starts) = (None, Vec::new());
        loop {
            let page = camera.archive.page(what, after, 7).await.unwrap();
            starts.extend(page.iter().map(|entry| (entry.start_ms - START_MS) / 1000));
            let Some(last) = page.last() else { break };
            after = Some(last.number);
        }
        assert_eq!(starts, (1..30).collect::<Vec<_>>(), "{held}");
    }
}

/// A file that is sent as fast as it goes: its times run ahead of ours. The fault: they were set back every five seconds, and
/// what was sent lay on top of itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_comes_faster_than_it_plays_has_each_time_once() {
    let rig = Rig::new(VideoConfig::default());
    let camera = rig.media.camera_for_producer("cam").await.unwrap();
    let (mut producer, _) = Producer::begin(camera.clone(), rig.clock.clone());
    let mut intake = Intake::new(Timecodes::Anchored);
    let tracks = tracks();
    producer.push(&mut intake, &matroska::head(&tracks)).await.unwrap();
    let mut send = async |second: i64, wait_ms: u64| {
        rig.clock.advance(wait_ms);
        let cluster = matroska::cluster(&fragment(&tracks, second * 1000, 100), 0);
        producer.push(&mut intake, &cluster).await.unwrap();
    };
    for second in 0..60 {
        send(second, 20).await;
    }
    // Then as fast as it plays: after a minute of that its clock is called wrong, and set right once.
    for second in 60..200 {
        send(second, 1000).await;
    }
    // And silence, of which its times know nothing.
    send(200, 31_000).await;
    send(201, 1000).await;
    producer.finish(&mut intake).await.unwrap();
    producer.end().await.unwrap();
    let found = camera.archive.select(Select::showing(i64::MIN, i64::MAX)).await.unwrap();
    let breaks: Vec<usize> =
        found.iter().enumerate().filter(|(_, (_, entry))| entry.discontinuity).map(|(at, _)| at).collect();
    assert_eq!((found.len(), breaks.len(), breaks[0]), (202, 3, 0), "{breaks:?}");
    assert!((110..190).contains(&breaks[1]) && (198..202).contains(&breaks[2]), "{breaks:?}");
    let last = found.last().unwrap().1;
    assert!(last.end_ms().abs_diff(rig.clock.now().wall_ms as i64) < 6_000, "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_of_a_picture_that_is_not_whole_counts_as_memory() {
    let rig = Rig::new(VideoConfig { memory: ByteSize::mib(16), ..VideoConfig::default() });
    let begin = async |name: &str| {
        let camera = rig.media.camera_for_producer(name).await.unwrap();
        let (mut producer, _) = Producer::begin(camera, rig.clock.clone());
        let mut intake = Intake::new(Timecodes::Absolute);
        let mut bytes = matroska::head(&tracks());
        bytes.extend(matroska::cluster(&fragment(&tracks(), START_MS, 12 << 20), 0));
        let mut sent = Ok(());
        for piece in bytes[..11 << 20].chunks(1 << 20) {
            sent = producer.push(&mut intake, piece).await;
            if sent.is_err() {
                break;
            }
        }
        (sent, producer)
    };
    let (first, _open) = begin("one").await;
    let (second, _) = begin("two").await;
    assert!(first.is_ok() && matches!(second, Err(ProducerError::Memory)), "{first:?} {second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fragment_that_outgrows_the_memory_costs_its_producer_alone() {
    let rig = Rig::new(VideoConfig { memory: ByteSize::mib(16), ..VideoConfig::default() });
    let tracks = tracks();
    let large = [fragment(&tracks, START_MS, 100), fragment(&tracks, START_MS + 1000, 1_200_000)];
    let refused = rig.send("greedy", &large).await;
    assert!(matches!(refused, Err(ProducerError::Memory)), "{refused:?}");
    assert_eq!(rig.send("modest", &seconds(3, 1_000)).await.unwrap().fragments, 3, "what was held is given back");
}

/// The fault: a read of 128 KiB held 18,000 fragments of seven bytes, and each got its head of 192 KiB before the first was kept.
#[test]
fn fragments_of_a_read_are_cut_one_at_a_time() {
    let tracks = tracks();
    let mut bytes = matroska::head(&tracks);
    (0..500).for_each(|at| bytes.extend(matroska::cluster(&fragment(&tracks, at * 1000, 1), 0)));
    let mut intake = Intake::new(Timecodes::Absolute);
    intake.push(&bytes).unwrap();
    let (mut steps, mut done) = (Vec::new(), 0);
    while intake.cut(0, &mut steps) {
        let now = steps.drain(..).filter(|step| matches!(step, intake::Step::Done(_))).count();
        assert!(now <= 1);
        done += now;
    }
    assert_eq!(done, 499, "the last is not whole yet");
}

/// The fault: what a fragment had held that was dropped stayed with its producer, and others were refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_fragment_that_is_dropped_gives_its_memory_back() {
    let rig = Rig::new(VideoConfig { memory: ByteSize::mib(16), ..VideoConfig::default() });
    let camera = rig.media.camera_for_producer("rare-keyframes").await.unwrap();
    let (mut producer, _) = Producer::begin(camera, rig.clock.clone());
    let mut intake = Intake::new(Timecodes::Absolute);
    let frame = |at: i64, bytes: usize| Frame {
        track: 1,
        pts_ns: (START_MS + at * 1000) * MS,
        duration_ns: None,
        keyframe: at == 0,
        data: vec![7; bytes].into(),
    };
    let frames = (0..22).map(|at| frame(at, if at < 20 { 350_000 } else { 10 })).collect();
    let long = Fragment { tracks: tracks(), frames, discontinuity: false, tags: Vec::new() };
    let bytes = [matroska::head(&tracks()), matroska::cluster(&long, 0)].concat();
    for piece in bytes.chunks(100_000) {
        producer.push(&mut intake, piece).await.unwrap();
    }
    let others = rig.send("healthy", &seconds(3, 500_000)).await;
    assert_eq!(others.unwrap().fragments, 3);
    let kept = producer.end().await.unwrap();
    assert_eq!((kept.fragments, kept.dropped), (0, 1));
}

/// The fault: only what was durable was known again, so a producer that came back at once had its fragment kept twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_fragment_that_comes_again_before_it_is_durable_is_kept_once() {
    let rig = Rig::new(VideoConfig::default());
    let tracks = tracks();
    for round in 0..20 {
        let name = format!("cam-{round}");
        let camera = rig.media.camera_for_producer(&name).await.unwrap();
        let mut producers = Vec::new();
        for _ in 0..2 {
            let (mut producer, mut acks) = Producer::begin(camera.clone(), rig.clock.clone());
            let mut intake = Intake::new(Timecodes::Absolute);
            let mut bytes = matroska::head(&tracks);
            bytes.extend(matroska::cluster(&fragment(&tracks, START_MS, 50_000), 0));
            producer.push(&mut intake, &bytes).await.unwrap();
            producer.finish(&mut intake).await.unwrap();
            // The connection breaks here: handed in, and not durable.
            while let Some(ack) = acks.recv().await {
                if matches!(ack, ack::Ack::Received { .. } | ack::Ack::Persisted { .. }) {
                    break;
                }
            }
            producers.push(producer);
        }
        for producer in producers {
            producer.end().await.unwrap();
        }
        assert_eq!(camera.archive.index().await.unwrap().len(), 1, "round {round}");
    }
}

/// The fault: before the first fragment after a start was kept, the whole stream was read.
#[tokio::test(flavor = "multi_thread")]
async fn recording_waits_for_no_look_at_the_whole_stream() {
    let rig = Rig::new(VideoConfig::default());
    rig.send("cam", &seconds(30, 100)).await.unwrap();
    let camera = rig.media.camera("cam").unwrap();
    assert_eq!(camera.archive.indexed(), None);
    assert_eq!(camera.archive.index().await.unwrap().len(), 30);
    // Once somebody has looked it stays as new as the log, and what is sent again is known still.
    rig.send("cam", &seconds(40, 100)).await.unwrap();
    assert_eq!(camera.archive.indexed(), Some(40));
}

/// The fault: rows of a deleted stream stayed when who had asked went away, and the next of its name had its marks.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_deletion_nobody_waits_for_is_deleted_whole() {
    let rig = Rig::new(VideoConfig::default());
    rig.send("cam", &seconds(3, 100)).await.unwrap();
    let mark = marks::NewMark::called("m");
    rig.media
        .mark("cam", &marks::NewMark { from_ms: Some(START_MS), to_ms: Some(START_MS + 1000), ..mark })
        .await
        .unwrap();
    let rows = || rig.media.inner.log.state_scan(Table::Media, b"m/cam/").len();
    assert_eq!(rows(), 1);
    tokio::select! {
        biased;
        _ = rig.media.delete("cam") => panic!("it takes longer than that"),
        () = std::future::ready(()) => {}
    }
    for _ in 0..1_000 {
        if rig.media.camera("cam").is_err() && rows() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{} rows are left", rows());
}

/// The fault: a message that followed within a second was acknowledged without the mark, if that of the first was not kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_is_put_again_until_it_is_durable() {
    let rig = Rig::new(VideoConfig::default());
    rig.send("cam", &seconds(3, 100)).await.unwrap();
    let rule = serde_json::json!({ "topic": "door", "streams": ["cam"] });
    rig.media.mark_by(&[serde_json::from_value(rule).unwrap()], |filter, topic| filter == topic);
    let (mut lost, mut next, mut last) = (Batch::new(), Batch::new(), Batch::new());
    rig.media.notice("door", &mut lost);
    drop(lost);
    rig.media.notice("door", &mut next);
    rig.media.commit(&mut next).await.unwrap();
    let rows = || rig.media.inner.log.state_scan(Table::Media, b"m/cam/");
    assert_eq!(rows().len(), 1);
    rig.media.notice("door", &mut last);
    assert!(last.is_empty(), "an alarm that repeats costs a row a second");
}

/// The fault: an answer that its client does not read was in no bound, so a few connections could hold any number of them.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_keeps_its_place_until_it_is_sent() {
    use crate::http::{Guest, Input};
    let rig = Rig::new(VideoConfig { max_readers: 1, ..VideoConfig::default() });
    rig.send("cam", &seconds(3, 100)).await.unwrap();
    let door = pages::ConsoleDoor(rig.media.clone());
    let ask = async |path: &str| {
        let (head, ()) = http::Request::builder().uri(path).body(()).unwrap().into_parts();
        door.answer(head, Input::Whole(Bytes::new())).await
    };
    for path in ["/video/cam/fragment/1.m4s", "/video/cam/playlist.m3u8"] {
        let unread = ask(path).await;
        assert_eq!(unread.status(), 200, "{path}");
        assert_eq!(ask("/video/cam/fragment/2.m4s").await.status(), 429, "{path}");
        drop(unread);
        assert_eq!(ask("/video/cam/fragment/2.m4s").await.status(), 200, "{path}");
    }
}

/// The fault: places bounded how many read at once and not what they took, and a week's playlist is a hundred megabytes.
#[tokio::test(flavor = "multi_thread")]
async fn readers_answers_share_one_memory() {
    let config = VideoConfig { reader_memory: ByteSize(128 << 10), max_readers: 8, ..VideoConfig::default() };
    let rig = Rig::new(config);
    rig.send("cam", &seconds(3, 100)).await.unwrap();
    let camera = rig.media.camera("cam").unwrap();
    let what = Select::showing(i64::MIN, i64::MAX);
    let place = async || rig.media.inner.readers.place_soon().await.unwrap();
    // Two large ones have half of the answers' memory each, though they want more; for a third there is no room.
    let (mut first, mut second, mut third) = (place().await, place().await, place().await);
    assert_eq!(camera.selected(what, 1 << 20, &mut first).await.unwrap().len(), 3);
    assert_eq!(camera.selected(what, 1 << 20, &mut second).await.unwrap().len(), 3);
    assert!(camera.selected(what, 0, &mut third).await.is_err());
    // An answer takes what it is until it is sent: there is room again for small ones.
    let unread = first.keep(shape::json_response("x".repeat(1000)));
    assert!(camera.selected(what, 0, &mut third).await.is_ok());
    drop(third);
    let mut fourth = place().await;
    assert!(fourth.hold(32 << 10).await.is_err(), "the unread answer is in the memory still");
    drop(unread);
    assert!(fourth.hold(32 << 10).await.is_ok());
    // The answers' memory is taken, and fragments of streams go on; they wait for each other.
    let newest = camera.archive.index().await.unwrap().last().copied().unwrap();
    let large = Entry { bytes: 1 << 20, ..newest };
    let (one, other) = (second.room_for(&large).await, fourth.room_for(&large).await);
    let (one, other) = (one.ok().unwrap(), other.ok().unwrap().hold(vec![0; 10]));
    let mut next = std::pin::pin!(fourth.room_for(&newest));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut next).await.is_err());
    drop(other);
    assert!(next.await.is_ok());
    drop(one);
}

/// Sent again together with what is dropped: all that could be kept is there, and the producer hears so.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_already_counts_as_the_last() {
    let rig = Rig::new(VideoConfig::default());
    let first = rig.send("cam", &seconds(3, 100)).await.unwrap();
    let again = rig.send("cam", &seconds(3, 100)).await.unwrap();
    assert_eq!((first.fragments, again.fragments, again.last), (3, 0, first.last));
}

/// The fault: the page said 0 bytes of a camera until the log had folded its first fragments, minutes later.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_streams_bytes_are_shown_at_once() {
    use crate::http::{Guest, Input};
    let rig = Rig::new(VideoConfig::default());
    let kept = rig.send("cam", &seconds(3, 100)).await.unwrap();
    let (head, ()) = http::Request::builder().uri("/video/streams").body(()).unwrap().into_parts();
    let page = pages::ConsoleDoor(rig.media.clone()).answer(head, Input::Whole(Bytes::new())).await;
    let page = http_body_util::BodyExt::collect(page.into_body()).await.unwrap().to_bytes();
    let page: serde_json::Value = serde_json::from_slice(&page).unwrap();
    let row = &page["streams"][0];
    assert!(row["bytes"].as_u64().unwrap() >= kept.bytes && kept.bytes > 300, "{row}");
}
