//! Names of codecs, and private data that is short, long or wrong.

use super::*;
use crate::Kind;
use bytes::Bytes;
use proptest::prelude::*;

fn track(codec: Codec, private: &[u8]) -> Track {
    Track {
        number: 1,
        kind: Kind::Video,
        codec,
        private: Bytes::copy_from_slice(private),
        name: String::new(),
        width: 0,
        height: 0,
        sample_rate: 0,
        channels: 0,
        default_duration_ns: 0,
        codec_delay_ns: 0,
        seek_preroll_ns: 0,
    }
}

const AVCC: &[u8] = b"\x01\x64\x00\x1f\xff\xe1\x00\x02\x67\x64\x01\x00\x01\x68";
const AV1C: &[u8] = b"\x81\x04\x0c\x00";

fn hvcc() -> Vec<u8> {
    let mut out =
        b"\x01\x01\x60\x00\x00\x00\xb0\x00\x00\x00\x00\x00\x5d\xf0\x00\xfc\xfd\xf8\xf8\x00\x00\x0f\x03".to_vec();
    for kind in 32..35 {
        out.extend([kind, 0, 1, 0, 2, 1, 2]);
    }
    out
}

#[test]
fn names_are_those_of_rfc_6381() {
    let opus =
        OpusHead { channels: 2, pre_skip: 312, input_rate: 48000, gain: -3, family: 0, mapping: vec![] }.private();
    let cases: [(Codec, &[u8], &str); 9] = [
        (Codec::H264, AVCC, "avc1.64001f"),
        (Codec::Hevc, &hvcc(), "hvc1.1.6.L93.B0"),
        (Codec::Av1, AV1C, "av01.0.04M.08"),
        (Codec::Av1, b"\x81\x4d\xe0\x00", "av01.2.13H.12"),
        (Codec::Aac, b"\x12\x10", "mp4a.40.2"),
        (Codec::Aac, b"\x2b\x92\x08\x00", "mp4a.40.5"),
        // xHE-AAC, 42: the escape of five bits.
        (Codec::Aac, b"\xf9\x48\x40", "mp4a.40.42"),
        (Codec::Aac, b"\x11\x90", "mp4a.40.2"),
        (Codec::Opus, &opus, "opus"),
    ];
    for (codec, private, want) in cases {
        assert_eq!(name(&track(codec, private)).as_deref(), Ok(want));
    }
}

#[test]
fn an_aac_configuration_gives_rate_and_channels() {
    let config = AacConfig::parse(b"\x12\x10").unwrap();
    assert_eq!((config.sample_rate, config.channels), (44100, 2));
}

#[test]
fn an_opus_head_is_written_as_it_was_read() {
    let head = OpusHead {
        channels: 6,
        pre_skip: 1,
        input_rate: 2,
        gain: -3,
        family: 1,
        mapping: vec![4, 2, 0, 4, 1, 2, 3, 5],
    };
    assert_eq!(OpusHead::parse(&head.private()), Ok(head));
}

#[test]
fn what_is_missing_is_said_and_every_cut_is_an_error() {
    let error = name(&track(Codec::H264, b"")).unwrap_err();
    assert_eq!(error.to_string(), "H.264: private data is missing");
    assert!(name(&track(Codec::H264, b"\x01\x64\x00\x1f\xff\xe0\x00")).unwrap_err().to_string().contains("no SPS"));
    let hvcc = hvcc();
    for (codec, whole) in [(Codec::H264, AVCC), (Codec::Hevc, &hvcc), (Codec::Av1, AV1C)] {
        for end in 0..whole.len() {
            assert!(name(&track(codec.clone(), &whole[..end])).is_err(), "{codec:?} cut at {end}");
        }
    }
    assert!(matches!(name(&track(Codec::Mjpeg, b"")), Err(CodecError::Unsupported(_))));
}

#[test]
fn names_of_a_stream_leave_out_what_mp4_does_not_carry() {
    let tracks = Tracks(vec![track(Codec::H264, AVCC), track(Codec::Mjpeg, b""), track(Codec::Aac, b"\x12\x10")]);
    assert_eq!(names(&tracks).as_deref(), Ok("avc1.64001f,mp4a.40.2"));
    assert_eq!(names(&Tracks(vec![track(Codec::Mjpeg, b"")])), Err(CodecError::NoTrack));
}

proptest! {
    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..80), at in 0usize..30, byte: u8) {
        for codec in [Codec::H264, Codec::Hevc, Codec::Av1, Codec::Aac, Codec::Opus] {
            let _ = name(&track(codec, &noise));
        }
        let mut flipped = hvcc();
        flipped[at] = byte;
        let _ = name(&track(Codec::Hevc, &flipped));
    }
}
