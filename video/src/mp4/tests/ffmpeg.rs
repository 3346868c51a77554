//! ffmpeg encodes, we read and write again, ffmpeg decodes: frames, times and samples are those of the source.

use crate::mp4::{Clip, Init, PartCutter, Timing, init, media, part, read_init, read_media, reorder_ns};
use crate::{Codec, Fragment, Tracks, dash, hls};
use bytes::Bytes;
use std::path::Path;
use std::process::Command;

/// Runs ffmpeg and gives what it wrote to stdout, or `None` if there is none, or no such encoder.
fn ffmpeg(arguments: &[&str]) -> Option<Vec<u8>> {
    let output =
        Command::new("ffmpeg").args(["-hide_banner", "-loglevel", "error", "-nostdin"]).args(arguments).output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: no ffmpeg here, nothing is tested against it");
        return None;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("Unknown encoder") {
        eprintln!("SKIPPED: {errors}");
        return None;
    }
    assert!(output.status.success() && errors.trim().is_empty(), "ffmpeg {arguments:?}: {errors}");
    Some(output.stdout)
}

/// Three seconds of fragmented MP4, a fragment a second.
fn source(file: &Path, coding: &[&str]) -> Option<()> {
    let mut arguments =
        vec!["-f", "lavfi", "-i", "testsrc=size=320x240:rate=25", "-f", "lavfi", "-i", "sine=frequency=440"];
    arguments.extend(["-t", "3", "-g", "25", "-pix_fmt", "yuv420p"]);
    arguments.extend(["-movflags", "frag_keyframe+empty_moov+default_base_moof"]);
    arguments.extend(coding);
    arguments.extend(["-f", "mp4", "-video_track_timescale", "90000", "-y", file.to_str()?]);
    ffmpeg(&arguments).map(|_| ())
}

type Decoded = (String, i64, String, String);

/// Every decoded frame as `stream, time, size, hash`, by stream and time.
fn decoded(file: &Path) -> Vec<Decoded> {
    decoded_streams(file, "0")
}

fn decoded_streams(file: &Path, map: &str) -> Vec<Decoded> {
    let arguments = ["-copyts", "-i", file.to_str().unwrap(), "-map", map, "-fps_mode", "passthrough"];
    let out = ffmpeg(&[&arguments[..], &["-enc_time_base", "-1", "-f", "framemd5", "-"]].concat()).unwrap();
    let lines = String::from_utf8(out).unwrap();
    let frames = lines.lines().filter(|line| !line.starts_with('#'));
    // The duration of a decoded picture is a guess of ffmpeg's.
    let frame = |line: &str| {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        (fields[0].to_owned(), fields[2].parse().unwrap(), fields[4].to_owned(), fields[5].to_owned())
    };
    let mut frames: Vec<_> = frames.map(frame).collect();
    frames.sort_unstable();
    frames
}

fn fragments(bytes: &[u8]) -> (Init, Vec<Fragment>) {
    let init = read_init(bytes).unwrap();
    let (mut at, mut starts) = (0, Vec::new());
    while at < bytes.len() {
        if &bytes[at + 4..at + 8] == b"moof" {
            starts.push(at);
        }
        at += u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    }
    starts.push(bytes.len());
    let read = |span: &[usize]| read_media(&init, &Bytes::copy_from_slice(&bytes[span[0]..span[1]])).unwrap();
    let fragments = starts.windows(2).map(read).collect();
    (init, fragments)
}

/// Written as whole fragments, as parts, and as a clip: all decode as the source does, frames and times.
fn same_frames(name: &str, codecs: &[Codec], coding: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    if source(&file("source.mp4"), coding).is_none() {
        return;
    }
    let want = decoded(&file("source.mp4"));
    assert!(want.len() >= 75, "{name}: {} frames", want.len());
    let (read, fragments) = fragments(&std::fs::read(file("source.mp4")).unwrap());
    assert_eq!(read.tracks.0.iter().map(|track| track.codec.clone()).collect::<Vec<_>>(), codecs);
    assert!(fragments.len() >= 3 && fragments.iter().all(|fragment| fragment.of_track(1).next().unwrap().keyframe));
    let next = |index: usize| fragments.get(index + 1).map(Fragment::start_ns);

    let timing = Timing { decode_delay_ns: reorder_ns(&fragments[0]), ..Timing::default() };
    let mut whole = init(&read.tracks).unwrap();
    let (mut parts, mut signed) = (whole.clone(), whole.clone());
    let (mut clip, mut clipped) = Clip::begin(&read.tracks).unwrap();
    let mut cutter = PartCutter::new(&read.tracks, 410_000_000);
    let mut cuts = 0;
    for (index, fragment) in fragments.iter().enumerate() {
        let next_start_ns = next(index);
        let sequence = index as u32 + 1;
        whole.extend(media(fragment, sequence, Timing { next_start_ns, ..timing }).unwrap());
        signed.extend(media(fragment, sequence, Timing { next_start_ns, ..Timing::default() }).unwrap());
        clipped.extend(clip.push(fragment, next_start_ns).unwrap());
        let mut pieces: Vec<_> = fragment.frames.iter().cloned().filter_map(|frame| cutter.push(frame)).collect();
        pieces.extend(cutter.finish(next_start_ns));
        for piece in pieces {
            cuts += 1;
            let timing = Timing { decode_delay_ns: timing.decode_delay_ns, ..piece.timing };
            parts.extend(part(&read.tracks, &piece.frames, cuts, timing).unwrap());
        }
    }
    assert!(cuts as usize > fragments.len(), "{name}: {cuts} parts");
    let written = |bytes: &[u8]| {
        std::fs::write(file("written.mp4"), bytes).unwrap();
        decoded(&file("written.mp4"))
    };
    assert_eq!(written(&whole), want, "{name}, whole");
    assert_eq!(written(&parts), want, "{name}, parts");
    // A clip has its own clock, on which the tracks stay together.
    let clipped = written(&clipped);
    let shift = clipped[0].1 - want[0].1;
    let shifted = |frame: &Decoded| (frame.0.clone(), frame.1 + shift, frame.2.clone(), frame.3.clone());
    let video = |frames: &[Decoded]| frames.iter().filter(|frame| frame.0 == "0").cloned().collect::<Vec<_>>();
    assert_eq!(video(&clipped), video(&want).iter().map(shifted).collect::<Vec<_>>(), "{name}, clip");
    // With signed offsets ffmpeg has all pictures later by the same time; what they are is the same.
    let hashes = |frames: &[Decoded]| frames.iter().map(|frame| frame.3.clone()).collect::<Vec<_>>();
    assert_eq!(hashes(&written(&signed)), hashes(&want), "{name}, signed");
}

#[test]
fn h264_with_b_frames_and_aac_decodes_as_before() {
    let coding = ["-c:v", "libx264", "-bf", "3", "-b_strategy", "0", "-x264-params", "b-pyramid=normal", "-c:a", "aac"];
    same_frames("H.264, AAC", &[Codec::H264, Codec::Aac], &coding);
}

#[test]
fn h264_without_reordering_and_opus_decodes_as_before() {
    let coding = ["-c:v", "libx264", "-tune", "zerolatency", "-c:a", "libopus", "-ac", "2"];
    same_frames("H.264, Opus", &[Codec::H264, Codec::Opus], &coding);
}

#[test]
fn hevc_decodes_as_before() {
    let coding = ["-an", "-c:v", "libx265", "-tag:v", "hvc1", "-x265-params", "log-level=none:bframes=3:open-gop=0"];
    same_frames("HEVC", &[Codec::Hevc], &coding);
}

#[test]
fn hevc_with_open_gops_decodes_as_before() {
    let coding = ["-an", "-c:v", "libx265", "-tag:v", "hvc1", "-x265-params", "log-level=none:bframes=3:open-gop=1"];
    same_frames("HEVC, open", &[Codec::Hevc], &coding);
}

#[test]
fn av1_decodes_as_before() {
    // delay_moov: before the first frame this encoder has no av1C.
    let coding = [
        "-an",
        "-c:v",
        "libaom-av1",
        "-cpu-used",
        "8",
        "-b:v",
        "300k",
        "-movflags",
        "frag_keyframe+delay_moov+default_base_moof",
    ];
    same_frames("AV1", &[Codec::Av1], &coding);
}

#[test]
fn what_hls_and_dash_list_plays() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let coding = ["-c:v", "libx264", "-bf", "2", "-c:a", "aac"];
    if source(&file("source.mp4"), &coding).is_none() {
        return;
    }
    let (read, fragments) = fragments(&std::fs::read(file("source.mp4")).unwrap());
    let timing = Timing { decode_delay_ns: reorder_ns(&fragments[0]), ..Timing::default() };
    std::fs::write(file("init.mp4"), init(&read.tracks).unwrap()).unwrap();
    for (index, fragment) in fragments.iter().enumerate() {
        let next_start_ns = fragments.get(index + 1).map(Fragment::start_ns);
        let bytes = media(fragment, index as u32 + 1, Timing { next_start_ns, ..timing }).unwrap();
        std::fs::write(file(&format!("{index}.m4s")), bytes).unwrap();
        for track in &read.tracks.0 {
            let alone = Tracks(vec![track.clone()]);
            std::fs::write(file(&format!("init-{}.mp4", track.number)), init(&alone).unwrap()).unwrap();
            let bytes = part(&alone, &fragment.frames, index as u32 + 1, timing).unwrap();
            std::fs::write(file(&format!("{}-{index}.m4s", track.number)), bytes).unwrap();
        }
    }
    std::fs::write(file("media.m3u8"), m3u8(&fragments)).unwrap();
    std::fs::write(file("manifest.mpd"), mpd(&read, &fragments)).unwrap();
    let hashes = |name: &str, map: &str| {
        let mut hashes: Vec<_> =
            decoded_streams(&file(name), map).into_iter().map(|frame| (frame.0, frame.3)).collect();
        hashes.sort();
        hashes
    };
    assert_eq!(hashes("media.m3u8", "0"), hashes("source.mp4", "0"));
    // ffmpeg's DASH demuxer stops when the first of its streams ends, and drops what is left of the others.
    for stream in ["0:0", "0:1"] {
        assert_eq!(hashes("manifest.mpd", stream), hashes("source.mp4", stream));
    }
}

fn m3u8(fragments: &[Fragment]) -> String {
    let segments = fragments.iter().enumerate().map(|(index, fragment)| hls::Segment {
        uri: Some(format!("{index}.m4s")),
        duration_ns: fragment.duration_ns(),
        program_date_time_ms: Some(0),
        discontinuity: false,
        map: "init.mp4",
        map_range: None,
        byte_range: None,
        gap: false,
        parts: &[],
    });
    let playlist = hls::MediaPlaylist {
        target_duration_s: 1,
        media_sequence: 0,
        discontinuity_sequence: 0,
        kind: hls::Kind::Vod,
        ended: true,
        low_latency: None,
    };
    let mut out = String::new();
    hls::media(&mut out, &playlist, segments);
    out
}

fn mpd(init: &Init, fragments: &[Fragment]) -> String {
    let segment = |fragment: &Fragment| dash::Segment {
        start_ns: fragment.start_ns().unsigned_abs(),
        duration_ns: fragment.duration_ns(),
    };
    type Set<'a> = dash::AdaptationSet<'a, &'a str, Vec<dash::Segment>>;
    let set = |(init_uri, media, codecs, size)| -> Set {
        dash::AdaptationSet {
            media_start_ns: 0,
            init_uri,
            codecs,
            size,
            bandwidth: 500_000,
            addressing: dash::Addressing::Template { media, start_number: 0 },
            segments: fragments.iter().map(segment).collect(),
        }
    };
    let names: Vec<String> = init.tracks.0.iter().map(|track| crate::codecs::name(track).unwrap()).collect();
    let video = ("init-1.mp4", "1-$Number$.m4s", names[0].as_str(), Some((320, 240)));
    let audio = ("init-2.mp4", "2-$Number$.m4s", names[1].as_str(), None);
    let period = dash::Period { id: "0", start_ns: 0, sets: vec![set(video), set(audio)] };
    let mut out = String::new();
    let duration_ns = fragments.iter().map(Fragment::duration_ns).sum();
    dash::mpd(
        &mut out,
        &dash::Mpd { kind: dash::Kind::Static { duration_ns }, min_buffer_ns: 1_000_000_000 },
        [period],
    );
    out
}
