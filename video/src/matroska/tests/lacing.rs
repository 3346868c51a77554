//! RFC 9559 section 10.3: several frames in a block.

use crate::ebml::{put_binary, put_master, put_uint};
use crate::matroska::{Fault, ParseError, head, ids};
use crate::media::{Frame, MS, Tracks};
use crate::testing::{audio_track, frames, parse, tracks};

/// Frames of one block of the sound track at 100 ms.
fn laced(tracks: &Tracks, flags: u8, body: &[u8], duration_ms: Option<u64>) -> Result<Vec<Frame>, ParseError> {
    let mut block = vec![0x82, 0, 100, flags];
    block.extend_from_slice(body);
    let mut input = head(tracks);
    put_master(&mut input, ids::CLUSTER, |out| {
        put_uint(out, ids::TIMESTAMP, 0);
        match duration_ms {
            None => put_binary(out, ids::SIMPLE_BLOCK, &block),
            Some(duration_ms) => put_master(out, ids::BLOCK_GROUP, |out| {
                put_binary(out, ids::BLOCK, &block);
                put_uint(out, ids::BLOCK_DURATION, duration_ms);
            }),
        }
    });
    let (events, result) = parse(&input);
    result.map(|()| frames(&events))
}

fn datas(flags: u8, body: &[u8]) -> Vec<Vec<u8>> {
    laced(&tracks(), flags, body, None).unwrap().iter().map(|frame| frame.data.to_vec()).collect()
}

fn refused(flags: u8, body: &[u8]) -> Fault {
    laced(&tracks(), flags, body, None).unwrap_err().fault
}

#[test]
fn xiph() {
    assert_eq!(datas(0x02, &[2, 1, 2, b'a', b'b', b'b', b'c']), [&b"a"[..], b"bb", b"c"]);
    let long = [&[1, 255, 45][..], &[7; 300], b"c"].concat();
    assert_eq!(datas(0x02, &long), [&[7u8; 300][..], b"c"]);
}

#[test]
fn fixed_size() {
    assert_eq!(datas(0x04, &[1, b'a', b'b', b'c', b'd']), [b"ab", b"cd"]);
}

#[test]
fn ebml() {
    // Size 1, then 2 more (63 is no difference in one byte, so 65 with its marker), then the rest.
    assert_eq!(datas(0x06, &[2, 0x81, 0xC1, b'a', b'b', b'b', b'b', b'c']), [&b"a"[..], b"bbb", b"c"]);
    // RFC 9559 section 10.3.3: 800, 500, 1000 bytes are 0x4320, 0x5ED3 and the rest.
    let sizes: Vec<usize> = {
        let body = [&[2, 0x43, 0x20, 0x5E, 0xD3][..], &[1; 2300]].concat();
        datas(0x06, &body).iter().map(Vec::len).collect()
    };
    assert_eq!(sizes, [800, 500, 1000]);
}

#[test]
fn a_lace_of_one_is_a_frame() {
    for flags in [0x02, 0x04, 0x06] {
        assert_eq!(datas(flags, &[0, b'a', b'b']), [b"ab"]);
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    assert_eq!(refused(0x02, &[]), Fault::Lacing("Xiph"));
    assert_eq!(refused(0x02, &[1, 9, b'a']), Fault::Lacing("Xiph"));
    assert_eq!(refused(0x02, &[3, 255]), Fault::Lacing("Xiph"));
    assert_eq!(refused(0x04, &[1, b'a', b'b', b'c']), Fault::Lacing("fixed-size"));
    assert_eq!(refused(0x06, &[1, 0x89, b'a']), Fault::Lacing("EBML"));
    assert_eq!(refused(0x06, &[2, 0x81, 0x80, b'a', b'b']), Fault::Lacing("EBML"), "a size below 0");
    assert_eq!(refused(0x06, &[2, 0x01, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE, 1]), Fault::Lacing("EBML"));
}

/// The fault this is for: five bytes of a fixed lace naming 256 frames, each dearer to hold than to send.
#[test]
fn frames_without_bytes_are_left_out() {
    assert_eq!(datas(0x04, &[255]), Vec::<Vec<u8>>::new());
    assert_eq!(datas(0x02, &[2, 0, 1, b'a']), [b"a"]);
}

#[test]
fn frames_of_a_lace_follow_each_other_in_time() {
    let times = |frames: Vec<Frame>| frames.iter().map(|frame| frame.pts_ns / MS).collect::<Vec<_>>();
    let body = [2, b'a', b'b', b'c'];
    assert_eq!(times(laced(&tracks(), 0x04, &body, None).unwrap()), [100, 100, 100], "nothing says how long they last");
    let mut track = audio_track();
    track.default_duration_ns = 20_000_000;
    assert_eq!(times(laced(&Tracks(vec![track]), 0x04, &body, None).unwrap()), [100, 120, 140]);
    let group = laced(&tracks(), 0x04, &body, Some(30)).unwrap();
    assert!(group.iter().all(|frame| frame.duration_ns == Some(10_000_000)));
    assert_eq!(times(group), [100, 110, 120]);
}
