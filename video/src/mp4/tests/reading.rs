//! What was written is read back, and what is damaged is refused.

use super::*;
use crate::mp4::{Init, ReadError, SAMPLES_MAX, Timing, init, media, read_init, read_media};
use proptest::prelude::*;

fn written() -> (Vec<u8>, Vec<u8>) {
    let mut frames = video(&[0, 80, 40]);
    frames.extend([frame(2, 0, true), frame(2, 20, true)]);
    (init(&tracks()).unwrap(), media(&fragment(frames), 1, Timing::default()).unwrap())
}

fn read(init: &[u8], media: &[u8]) -> Result<Fragment, ReadError> {
    read_media(&read_init(init)?, &Bytes::copy_from_slice(media))
}

fn parsed() -> Init {
    read_init(&written().0).unwrap()
}

#[test]
fn a_segment_of_several_moofs_and_other_boxes_is_one_fragment() {
    let (init, one) = written();
    let two = media(&fragment(video(&[120, 160])), 2, Timing::default()).unwrap();
    let skipped = b"\0\0\0\x0cstypmsdh\0\0\0\x09prft\0".to_vec();
    let read = read(&init, &[skipped, one, two].concat()).unwrap();
    assert_eq!(read.of_track(1).map(|frame| frame.pts_ns / MS).collect::<Vec<_>>(), [0, 80, 40, 120, 160]);
    assert_eq!(read.of_track(1).map(|frame| frame.data[0]).collect::<Vec<_>>(), [0, 80, 40, 120, 160]);
    assert_eq!(read.of_track(2).count(), 2);
    assert_eq!(read.duration_ns(), 200 * MS as u64);
}

#[test]
fn one_blob_may_have_both_the_init_and_the_media() {
    let (init, media) = written();
    let both = [init, media].concat();
    assert_eq!(read(&both, &both).unwrap().frames.len(), 5);
}

#[test]
fn every_cut_is_an_error() {
    let (init, media) = written();
    for end in 0..init.len() {
        // An ftyp alone is whole, but has no moov.
        assert!(read_init(&init[..end]).is_err(), "init cut at {end}");
    }
    let parsed = parsed();
    for end in 0..media.len() {
        assert!(read_media(&parsed, &Bytes::copy_from_slice(&media[..end])).is_err(), "media cut at {end}");
    }
}

#[test]
fn every_byte_may_have_any_of_some_values() {
    let (init, media) = written();
    let parsed = parsed();
    for value in [0, 1, 0x7f, 0x80, 0xff] {
        for at in 0..init.len() {
            let mut flipped = init.clone();
            flipped[at] = value;
            let _ = read(&flipped, &media);
        }
        for at in 0..media.len() {
            let mut flipped = media.clone();
            flipped[at] = value;
            let _ = read_media(&parsed, &flipped.into());
        }
    }
}

/// A trun without any field a sample costs nothing to claim four thousand million of.
#[test]
fn a_claim_of_samples_without_bytes_is_bounded() {
    let claim = |count: u32| {
        let mut boxes = crate::mp4::boxes::Boxes::default();
        boxes.open(b"moof", |b| {
            b.open(b"traf", |b| {
                b.full(b"tfhd", 0, 0x02_0000, |b| b.u32(1));
                b.full(b"trun", 0, 0, |b| b.u32(count));
            });
        });
        read_media(&parsed(), &boxes.finish().into())
    };
    assert_eq!(claim(u32::MAX), Err(ReadError::TooLarge));
    assert_eq!(claim(SAMPLES_MAX as u32 + 1), Err(ReadError::TooLarge));
    assert_eq!(claim(SAMPLES_MAX as u32).map(|fragment| fragment.frames.len()), Ok(SAMPLES_MAX));
}

/// Samples may overlap; their bytes count each time.
#[test]
fn overlapping_samples_do_not_multiply_bytes() {
    let mut boxes = crate::mp4::boxes::Boxes::default();
    boxes.open(b"moof", |b| {
        b.open(b"traf", |b| {
            b.full(b"tfhd", 0, 0x02_0010, |b| {
                b.u32(1);
                b.u32(1 << 20);
            });
            (0..60).for_each(|_| {
                b.full(b"trun", 0, 1, |b| {
                    b.u32(1);
                    b.u32(0);
                });
            });
        });
    });
    boxes.open(b"mdat", |b| b.zeros(1 << 20));
    assert_eq!(read_media(&parsed(), &boxes.finish().into()), Err(ReadError::TooLarge));
}

#[test]
fn tracks_that_the_init_segment_lacks_are_said() {
    let (_, media) = written();
    let alone = read_init(&init(&Tracks(vec![track(1, Codec::H264, AVCC)])).unwrap()).unwrap();
    assert_eq!(read_media(&alone, &media.into()), Err(ReadError::UnknownTrack(2)));
}

proptest! {
    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_init(&noise);
        let _ = read_media(&parsed(), &noise.into());
    }

    #[test]
    fn flipped_bytes_never_panic(flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6)) {
        let (mut init, mut media) = written();
        let lengths = (init.len(), media.len());
        for (at, byte) in flips {
            init[usize::from(at) % lengths.0] ^= byte;
            media[usize::from(at) % lengths.1] ^= byte;
        }
        let _ = read(&init, &media);
        let read = read_media(&parsed(), &media.into());
        // What was read can be written, or is refused.
        let _ = read.map(|fragment| crate::mp4::media(&fragment, 1, Timing::default()));
    }

    #[test]
    fn boxes_of_noise_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..60), kind in 0usize..4) {
        let mut boxes = crate::mp4::boxes::Boxes::default();
        boxes.open(b"moof", |b| b.open(b"traf", |b| {
            b.full(b"tfhd", 0, 0x02_0000, |b| b.u32(1));
            b.open([b"trun", b"tfdt", b"tfhd", b"trun"][kind], |b| b.bytes(&noise));
        }));
        let _ = read_media(&parsed(), &boxes.finish().into());
    }
}
