//! The masters that say what follows: the EBML header, Info, Tracks and Tags, each read from its whole body.
//!
//! What is read is what a [`Track`] has and what is needed to undo a track's encoding; all else is left. Only header
//! stripping is undone: cameras compress their frames by their codec, and zlib on top would be a way to send little and
//! fill much memory. Pure.

use super::ids;
use super::parse::{Fault, ParseError, SCALE_NS_DEFAULT};
use crate::ebml::{self, Element};
use crate::media::{Codec, Kind, TRACKS_MAX, Track};
use bytes::Bytes;

/// Most tags of a fragment. This and the next two are Kinesis Video Streams' limits on fragment metadata.
pub const TAGS_MAX: usize = 10;
/// Longest name of a tag, in bytes.
pub const TAG_NAME_BYTES_MAX: usize = 128;
/// Longest value of a tag, in bytes.
pub const TAG_VALUE_BYTES_MAX: usize = 256;
/// Longest CodecPrivate, in bytes.
const PRIVATE_BYTES_MAX: usize = 64 << 10;
/// Longest CodecID, in bytes.
const CODEC_ID_BYTES_MAX: usize = 64;
/// Longest name of a track, in characters; the rest is cut off.
const NAME_CHARS_MAX: usize = 256;
/// Longest header that stripping takes off a frame, in bytes: it is put before each one, and some have one byte.
const STRIP_BYTES_MAX: usize = 64;

/// A track as it comes in.
#[derive(Clone, Debug)]
pub(super) struct TrackIn {
    pub track: Track,
    /// What header stripping took off the front of each frame.
    pub strip: Bytes,
}

/// Refuses what is EBML but not Matroska, or newer than what is known here.
pub(super) fn check_ebml(header: &Element<'_>) -> Result<(), ParseError> {
    for element in header.children() {
        let element = element?;
        let refused = match element.id {
            ids::DOC_TYPE => Some(element.text()).filter(|name| name != "matroska" && name != "webm"),
            ids::EBML_READ_VERSION => over(&element, 1)?,
            ids::EBML_MAX_ID_LENGTH => over(&element, ebml::ID_BYTES_MAX as u64)?,
            ids::EBML_MAX_SIZE_LENGTH => over(&element, ebml::SIZE_BYTES_MAX as u64)?,
            ids::DOC_TYPE_READ_VERSION => over(&element, 4)?,
            _ => None,
        };
        if let Some(refused) = refused {
            let refused: String = refused.chars().take(64).collect();
            return Err(Fault::Header(format!("{refused:?} in element {:#X}", element.id)).at(element.at));
        }
    }
    Ok(())
}

fn over(element: &Element<'_>, most: u64) -> Result<Option<String>, ParseError> {
    let value = element.uint()?;
    Ok((value > most).then(|| value.to_string()))
}

/// Nanoseconds of a tick, from Info.
pub(super) fn scale_ns(info: &Element<'_>) -> Result<i64, ParseError> {
    let mut scale = SCALE_NS_DEFAULT;
    for element in info.children() {
        let element = element?;
        if element.id == ids::TIMESTAMP_SCALE {
            scale = i64::try_from(element.uint()?).unwrap_or(i64::MAX);
        }
    }
    if scale == 0 { Err(Fault::NoScale.at(info.at)) } else { Ok(scale) }
}

pub(super) fn tracks(master: &Element<'_>) -> Result<Vec<TrackIn>, ParseError> {
    let mut tracks: Vec<TrackIn> = Vec::new();
    for element in master.children() {
        let element = element?;
        if element.id != ids::TRACK_ENTRY {
            continue;
        }
        if tracks.len() == TRACKS_MAX {
            return Err(Fault::TooManyTracks.at(element.at));
        }
        let track = entry(&element)?;
        if tracks.iter().any(|before| before.track.number == track.track.number) {
            return Err(Fault::TrackNumber(track.track.number.into()).at(element.at));
        }
        tracks.push(track);
    }
    Ok(tracks)
}

fn entry(master: &Element<'_>) -> Result<TrackIn, ParseError> {
    let mut number = 0;
    let mut codec = None;
    let mut encodings = None;
    let mut track = Track {
        number: 0,
        kind: Kind::Other,
        codec: Codec::Other("".into()),
        private: Bytes::new(),
        name: String::new(),
        width: 0,
        height: 0,
        sample_rate: 0,
        channels: 0,
        default_duration_ns: 0,
        codec_delay_ns: 0,
        seek_preroll_ns: 0,
    };
    for element in master.children() {
        let element = element?;
        match element.id {
            ids::TRACK_NUMBER => number = element.uint()?,
            ids::TRACK_TYPE => track.kind = kind(element.uint()?),
            ids::CODEC_ID => codec = Some(element.text()).filter(|id| (1..=CODEC_ID_BYTES_MAX).contains(&id.len())),
            ids::CODEC_PRIVATE => track.private = private(&element)?,
            ids::NAME => track.name = element.text().chars().take(NAME_CHARS_MAX).collect(),
            ids::DEFAULT_DURATION => track.default_duration_ns = element.uint()?,
            ids::CODEC_DELAY => track.codec_delay_ns = element.uint()?,
            ids::SEEK_PRE_ROLL => track.seek_preroll_ns = element.uint()?,
            ids::VIDEO => video(&element, &mut track)?,
            ids::AUDIO => audio(&element, &mut track)?,
            ids::CONTENT_ENCODINGS => encodings = Some(element),
            _ => {}
        }
    }
    track.number = u8::try_from(number)
        .ok()
        .filter(|number| (1..=127).contains(number))
        .ok_or_else(|| Fault::TrackNumber(number).at(master.at))?;
    track.codec = Codec::from_id(&codec.ok_or_else(|| Fault::NoCodec(track.number).at(master.at))?);
    let strip = encodings.map(|encodings| strip(&encodings, track.number)).transpose()?.unwrap_or_default();
    Ok(TrackIn { track, strip })
}

fn kind(track_type: u64) -> Kind {
    match track_type {
        1 => Kind::Video,
        2 => Kind::Audio,
        _ => Kind::Other,
    }
}

fn private(element: &Element<'_>) -> Result<Bytes, ParseError> {
    let (bytes, bytes_max) = (element.body.len() as u64, PRIVATE_BYTES_MAX);
    if element.body.len() > bytes_max {
        return Err(Fault::TooLarge { id: element.id, bytes, bytes_max }.at(element.at));
    }
    Ok(Bytes::copy_from_slice(element.body))
}

fn video(master: &Element<'_>, track: &mut Track) -> Result<(), ParseError> {
    for element in master.children() {
        let element = element?;
        let value = match element.id {
            ids::PIXEL_WIDTH => &mut track.width,
            ids::PIXEL_HEIGHT => &mut track.height,
            _ => continue,
        };
        *value = u32::try_from(element.uint()?).unwrap_or(u32::MAX);
    }
    Ok(())
}

fn audio(master: &Element<'_>, track: &mut Track) -> Result<(), ParseError> {
    // RFC 9559 sections 5.1.4.1.29.1 and .3: what is not said is 8000 Hz and one channel.
    (track.sample_rate, track.channels) = (8000, 1);
    for element in master.children() {
        let element = element?;
        match element.id {
            // A cast from a float saturates, and what is no number is 0.
            ids::SAMPLING_FREQUENCY => track.sample_rate = element.float()?.round() as u32,
            ids::CHANNELS => track.channels = u8::try_from(element.uint()?).unwrap_or(u8::MAX),
            _ => {}
        }
    }
    Ok(())
}

/// What header stripping took off each frame; every other encoding is refused by name.
fn strip(encodings: &Element<'_>, number: u8) -> Result<Bytes, ParseError> {
    let mut stripped = None;
    for element in encodings.children() {
        let element = element?;
        if element.id == ids::CONTENT_ENCODING {
            if stripped.is_some() {
                return Err(Fault::Encoding { number, encoding: "more than one encoding" }.at(element.at));
            }
            stripped = Some(one_strip(&element, number)?);
        }
    }
    Ok(stripped.unwrap_or_default())
}

fn one_strip(encoding: &Element<'_>, number: u8) -> Result<Bytes, ParseError> {
    let refuse = |encoding: &'static str, at: u64| Fault::Encoding { number, encoding }.at(at);
    // RFC 9559 section 5.1.4.1.31: the defaults are every frame, compression, zlib.
    let (mut scope, mut kind, mut algo) = (1, 0, 0);
    let mut settings = Bytes::new();
    for element in encoding.children() {
        let element = element?;
        match element.id {
            ids::CONTENT_ENCODING_SCOPE => scope = element.uint()?,
            ids::CONTENT_ENCODING_TYPE => kind = element.uint()?,
            ids::CONTENT_COMPRESSION => {
                for element in element.children() {
                    let element = element?;
                    match element.id {
                        ids::CONTENT_COMP_ALGO => algo = element.uint()?,
                        ids::CONTENT_COMP_SETTINGS => settings = Bytes::copy_from_slice(element.body),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    match (kind, algo) {
        (0, 3) if scope != 1 => Err(refuse("header stripping of its CodecPrivate", encoding.at)),
        (0, 3) if settings.len() > STRIP_BYTES_MAX => Err(refuse("header stripping of a long header", encoding.at)),
        (0, 3) => Ok(settings),
        (0, 0) => Err(refuse("zlib", encoding.at)),
        (0, 1) => Err(refuse("bzlib", encoding.at)),
        (0, 2) => Err(refuse("lzo1x", encoding.at)),
        (0, _) => Err(refuse("an unknown compression", encoding.at)),
        (1, _) => Err(refuse("encryption", encoding.at)),
        _ => Err(refuse("an unknown encoding", encoding.at)),
    }
}

type TagList = Vec<(String, String)>;

/// Tags of the whole stream, and how many of them were too many or too long.
pub(super) fn tags(master: &Element<'_>) -> Result<(TagList, u64), ParseError> {
    let mut tags = Vec::new();
    let mut dropped = 0;
    for element in master.children() {
        let element = element?;
        if element.id == ids::TAG {
            let before = tags.len();
            if !one_tag(&element, &mut tags, &mut dropped)? {
                tags.truncate(before);
            }
        }
    }
    Ok((tags, dropped))
}

/// Reads a Tag; `false` if it is of one track, chapter or attachment.
fn one_tag(tag: &Element<'_>, tags: &mut TagList, dropped: &mut u64) -> Result<bool, ParseError> {
    for element in tag.children() {
        let element = element?;
        match element.id {
            ids::TARGETS if has_target(&element)? => return Ok(false),
            ids::SIMPLE_TAG => match simple_tag(&element)? {
                Some((name, value)) if tags.len() < TAGS_MAX && fits(&name, &value) => tags.push((name, value)),
                Some(_) => *dropped += 1,
                None => {}
            },
            _ => {}
        }
    }
    Ok(true)
}

fn fits(name: &str, value: &str) -> bool {
    name.len() <= TAG_NAME_BYTES_MAX && value.len() <= TAG_VALUE_BYTES_MAX
}

fn has_target(targets: &Element<'_>) -> Result<bool, ParseError> {
    for element in targets.children() {
        let element = element?;
        let named = matches!(
            element.id,
            ids::TAG_TRACK_UID | ids::TAG_EDITION_UID | ids::TAG_CHAPTER_UID | ids::TAG_ATTACHMENT_UID
        );
        // RFC 9559 section 5.1.8.1.1: a UID of 0 is all of them.
        if named && element.uint()? != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Name and value; `None` for a binary tag or one without a name.
fn simple_tag(master: &Element<'_>) -> Result<Option<(String, String)>, ParseError> {
    let mut name = None;
    let mut value = None;
    for element in master.children() {
        let element = element?;
        match element.id {
            ids::TAG_NAME => name = Some(element.text()),
            ids::TAG_STRING => value = Some(element.text()),
            _ => {}
        }
    }
    Ok(name.filter(|name| !name.is_empty()).zip(value))
}
