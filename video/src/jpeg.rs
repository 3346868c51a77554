//! The size of a JPEG, read from its frame header, and a fragment that is one JPEG.
//!
//! A camera that sends stills is a stream of one-frame fragments. The picture itself is never decoded, and not
//! checked beyond its markers (ITU-T T.81 annex B). Pure.

use crate::media::{FRAGMENT_BYTES_MAX, Fragment, Frame, Track, Tracks};
use crate::{Codec, Kind};
use bytes::Bytes;
use std::sync::Arc;

/// Most marker segments before the frame header: a JPEG with all its metadata has some dozens.
pub const MARKERS_MAX: usize = 1024;
/// A picture alone is shown for so long, or until the next: without a length no time would show it.
const SHOWN_NS: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JpegError {
    #[error("not a JPEG: it does not begin with FF D8")]
    NotJpeg,
    #[error("JPEG ends, or its picture begins, before its frame header")]
    NoFrameHeader,
    #[error("JPEG says that it has no width or no height")]
    NoSize,
    #[error("JPEG is longer than a fragment may be")]
    TooLong,
}

/// A fragment of this picture alone.
pub fn fragment(data: Bytes, pts_ns: i64) -> Result<Fragment, JpegError> {
    if data.len() > FRAGMENT_BYTES_MAX {
        return Err(JpegError::TooLong);
    }
    let (width, height) = size(&data)?;
    let track = Track {
        number: 1,
        kind: Kind::Video,
        codec: Codec::Mjpeg,
        private: Bytes::new(),
        name: String::new(),
        width: width.into(),
        height: height.into(),
        sample_rate: 0,
        channels: 0,
        default_duration_ns: 0,
        codec_delay_ns: 0,
        seek_preroll_ns: 0,
    };
    let frame = Frame { track: 1, pts_ns, duration_ns: Some(SHOWN_NS), keyframe: true, data };
    Ok(Fragment { tracks: Arc::new(Tracks(vec![track])), frames: vec![frame], discontinuity: false, tags: Vec::new() })
}

/// Width and height in pixels.
pub fn size(data: &[u8]) -> Result<(u16, u16), JpegError> {
    let mut rest = data.strip_prefix(&[0xff, 0xd8]).ok_or(JpegError::NotJpeg)?;
    for _ in 0..MARKERS_MAX {
        let (marker, after) = next_marker(rest).ok_or(JpegError::NoFrameHeader)?;
        match marker {
            // TEM and the restart markers stand alone.
            0x01 | 0xd0..=0xd7 => rest = after,
            // End of image, start of scan.
            0xd9 | 0xda => return Err(JpegError::NoFrameHeader),
            // SOF0 to SOF15; between them are DHT (C4), JPG (C8) and DAC (CC).
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => return frame_header(after),
            _ => {
                let length = after.first_chunk::<2>().ok_or(JpegError::NoFrameHeader)?;
                let length = usize::from(u16::from_be_bytes(*length)).max(2);
                rest = after.get(length..).ok_or(JpegError::NoFrameHeader)?;
            }
        }
    }
    Err(JpegError::NoFrameHeader)
}

/// T.81 B.2.2: length, precision, lines, samples a line.
fn frame_header(data: &[u8]) -> Result<(u16, u16), JpegError> {
    let [_, _, _, h0, h1, w0, w1, ..] = data else { return Err(JpegError::NoFrameHeader) };
    match (u16::from_be_bytes([*w0, *w1]), u16::from_be_bytes([*h0, *h1])) {
        (0, _) | (_, 0) => Err(JpegError::NoSize),
        size => Ok(size),
    }
}

/// T.81 B.1.1.2: any number of FF may stand before a marker.
fn next_marker(data: &[u8]) -> Option<(u8, &[u8])> {
    let rest = data.strip_prefix(&[0xff])?;
    let at = rest.iter().position(|byte| *byte != 0xff)?;
    Some((*rest.get(at)?, rest.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SOI, an APP0 of four bytes, SOF0 of 640 by 480, and a scan.
    const JPEG: &[u8] =
        b"\xff\xd8\xff\xe0\x00\x04\x00\x00\xff\xff\xc0\x00\x0b\x08\x01\xe0\x02\x80\x01\x01\x11\x00\xff\xda";

    #[test]
    fn the_size_is_read_and_a_picture_is_a_fragment() {
        assert_eq!(size(JPEG), Ok((640, 480)));
        let fragment = fragment(Bytes::from_static(JPEG), 7).unwrap();
        assert_eq!((fragment.start_ns(), fragment.bytes()), (7, JPEG.len()));
        assert_eq!(fragment.tracks.video().map(|track| (track.width, track.height)), Some((640, 480)));
    }

    #[test]
    fn what_is_cut_or_no_jpeg_is_an_error() {
        assert_eq!(size(b"GIF89a"), Err(JpegError::NotJpeg));
        assert_eq!(size(b"\xff\xd8\xff\xd9"), Err(JpegError::NoFrameHeader));
        assert_eq!(
            size(&[[0xff, 0xd8].as_slice(), &[0xff, 0xd0].repeat(5000)].concat()),
            Err(JpegError::NoFrameHeader)
        );
        for end in 0..17 {
            assert!(size(&JPEG[..end]).is_err());
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..200), at in 0..JPEG.len(), byte: u8) {
            let _ = size(&noise);
            let _ = size(&[[0xff, 0xd8].as_slice(), &noise].concat());
            let mut flipped = JPEG.to_vec();
            flipped[at] = byte;
            let _ = size(&flipped);
        }
    }
}
