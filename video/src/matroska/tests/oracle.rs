//! Against others: files of ffmpeg read as `matroska-demuxer` reads them, and files of ours decoded by ffmpeg to the same
//! pictures. Where ffmpeg is not installed, the sample alone.

use crate::matroska::{cluster, head, write_fragment};
use crate::media::MS;
use crate::testing::{SAMPLE, TempFile, cut, ffmpeg, frames, parse};
use matroska_demuxer::MatroskaFile;
use std::io::Cursor;

const VIDEO: &str = "-f lavfi -i testsrc=s=160x120:r=25:d=3";
const SOUND: &str = "-f lavfi -i sine=d=3:r=48000";
const PIPE: &str = "-f matroska -cluster_time_limit 700 pipe:1";

/// Name and file of every kind of stream that this machine can make.
fn streams() -> Vec<(&'static str, Vec<u8>)> {
    let made = [
        ("h264-b-aac", format!("{VIDEO} {SOUND} -c:v libx264 -preset veryfast -g 25 -bf 3 -c:a aac {PIPE}")),
        ("h264-zerolatency-opus", format!("{VIDEO} {SOUND} -c:v libx264 -tune zerolatency -g 25 -c:a libopus {PIPE}")),
        (
            "hevc-opus",
            format!(
                "{VIDEO} {SOUND} -c:v libx265 -preset ultrafast -x265-params log-level=0:keyint=25 -c:a libopus {PIPE}"
            ),
        ),
        ("av1", format!("{VIDEO} -c:v libsvtav1 -preset 12 -g 25 {PIPE}")),
        ("mjpeg", format!("{VIDEO} -c:v mjpeg {PIPE}")),
        ("aac-alone", format!("{SOUND} -c:a aac {PIPE}")),
        ("webm-known-sizes", format!("{VIDEO} -c:v libvpx -g 25 -f webm -live 1 pipe:1")),
    ];
    let mut streams = vec![("sample", SAMPLE.to_vec())];
    streams.extend(made.into_iter().filter_map(|(name, args)| Some((name, ffmpeg(&args)?))));
    streams
}

#[derive(Debug, PartialEq)]
struct Plain {
    track: u64,
    ms: u64,
    keyframe: Option<bool>,
    data: Vec<u8>,
}

fn oracle(input: &[u8]) -> Vec<Plain> {
    let mut file = MatroskaFile::open(Cursor::new(input)).expect("the oracle opens it");
    let mut frame = matroska_demuxer::Frame::default();
    let mut all = vec![];
    while file.next_frame(&mut frame).expect("the oracle reads it") {
        let data = std::mem::take(&mut frame.data);
        all.push(Plain { track: frame.track, ms: frame.timestamp, keyframe: frame.is_keyframe, data });
    }
    all
}

fn ours(input: &[u8], like: &[Plain]) -> Vec<Plain> {
    let (events, result) = parse(input);
    result.expect("the whole file is read");
    let plain = |(index, frame): (usize, crate::Frame)| Plain {
        track: frame.track.into(),
        ms: (frame.pts_ns / MS) as u64,
        // The oracle does not say it of a group.
        keyframe: like.get(index).and_then(|like| like.keyframe).map(|_| frame.keyframe),
        data: frame.data.to_vec(),
    };
    frames(&events).into_iter().enumerate().map(plain).collect()
}

#[test]
fn every_frame_is_as_another_demuxer_reads_it() {
    for (name, input) in streams() {
        let theirs = oracle(&input);
        assert!(theirs.len() > 20, "{name}");
        assert!(ours(&input, &theirs) == theirs, "{name}");
        for fragment in cut(parse(&input).0) {
            let written = write_fragment(&fragment, 0);
            let theirs = oracle(&written);
            assert!(ours(&written, &theirs) == theirs, "{name}, written");
            assert_eq!(theirs.len(), fragment.frames.len());
        }
    }
}

/// Time and MD5 of every decoded picture and sound.
fn decoded(name: &str, input: &[u8]) -> Option<Vec<String>> {
    let file = TempFile::new(name, input);
    let output = ffmpeg(&format!("-f matroska -i {} -f framemd5 -", file.0.display()))?;
    let output = String::from_utf8(output).expect("framemd5 is text");
    Some(output.lines().filter(|line| !line.starts_with('#')).map(String::from).collect())
}

#[test]
fn ffmpeg_decodes_what_is_written_to_the_same_pictures() {
    for (name, input) in streams() {
        let fragments = cut(parse(&input).0);
        let mut live = head(&fragments[0].tracks);
        fragments.iter().for_each(|fragment| live.extend_from_slice(&cluster(fragment, 0)));
        let (Some(before), Some(after)) = (decoded(name, &input), decoded(name, &live)) else { continue };
        // The decoder of Opus skips samples of the first packet it gets, which may lie before the first keyframe, and of
        // the last, by a DiscardPadding that frames do not have.
        let compared = |line: &String| !name.ends_with("opus") || line.starts_with("0,");
        let (before, after): (Vec<_>, Vec<_>) =
            (before.into_iter().filter(compared).collect(), after.into_iter().filter(compared).collect());
        assert!(before.len() > 20, "{name}");
        assert!(before == after, "{name}: {:?}", before.iter().zip(&after).find(|(before, after)| before != after));
    }
}

#[test]
fn ffmpeg_decodes_each_fragment_alone() {
    let hashes = |lines: Vec<String>| -> Vec<String> {
        let pictures = lines.into_iter().filter(|line| line.starts_with("0,"));
        pictures.map(|line| line.rsplit(',').next().unwrap_or_default().to_string()).collect()
    };
    let Some(whole) = decoded("whole", SAMPLE) else { return };
    let mut alone = vec![];
    for fragment in cut(parse(SAMPLE).0) {
        alone.extend(hashes(
            decoded("alone", &write_fragment(&fragment, 1_767_225_600_000 * MS)).expect("it did before"),
        ));
    }
    assert_eq!(alone, hashes(whole));
}
