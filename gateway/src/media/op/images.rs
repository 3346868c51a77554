//! GetImages: pictures of a stream at a pace, a page at a time.
//!
//! A page ends when it has MaxResults pictures, and earlier when they are large or slow to decode: its token says where the
//! next one goes on. So a request costs bounded memory and time, however much is asked for.

use super::Call;
use super::sessions::check_retention;
use crate::http::Body;
use crate::media::archive::{FragmentError, Select};
use crate::media::index::{By, Entry};
use crate::media::pictures::{Format, PICTURE_BYTES_MAX, Wanted};
use crate::media::readers::Place;
use crate::media::shape::{Kind, Moment, Refusal, SelectorType, StreamRef, answer, read};
use crate::media::stream::Camera;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

const PAGE_MAX: usize = 100;
const PAGE: usize = 25;
/// A page of pictures ends behind the one that makes it longer than this, in bytes of base64.
const PAGE_BYTES: usize = 8 << 20;
/// What the last picture may take beyond that, in base64.
const PICTURE_BYTES: usize = PICTURE_BYTES_MAX as usize / 3 * 4;
/// And behind the one that was decoded after so long.
const PAGE_WITHIN: Duration = Duration::from_secs(15);
/// Longest range, in milliseconds, as AWS has it.
const RANGE_MS_MAX: i64 = 300_000;
/// Time between two pictures, in milliseconds, unless the request says; and the least.
const INTERVAL_MS: i64 = 3_000;
const INTERVAL_MS_MIN: i64 = 200;
/// No fragment is longer, in milliseconds: a picture is in one that begins so long before, at the earliest.
const LONGEST_MS: i64 = 20_000;
const WIDTH_MAX: u32 = 3840;
const HEIGHT_MAX: u32 = 2160;
const QUALITY: u8 = 80;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Request {
    #[serde(flatten)]
    stream: StreamRef,
    image_selector_type: SelectorType,
    start_timestamp: Moment,
    end_timestamp: Moment,
    sampling_interval: Option<i64>,
    format: String,
    #[serde(default)]
    format_config: BTreeMap<String, String>,
    width_pixels: Option<u32>,
    height_pixels: Option<u32>,
    max_results: Option<usize>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    time_stamp: Moment,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_content: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    images: Vec<Image>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

pub async fn get_images(call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let request: Request = read(call.body)?;
    let camera = call.media.camera(request.stream.name()?)?;
    let wanted = request.wanted()?;
    let (mut at_ms, end_ms, step_ms, most) = request.pace()?;
    check_retention(call, &camera)?;
    let mut place = call.media.inner.readers.place_soon().await?;
    let by = By::from(request.image_selector_type);
    let what = Select { by, from_ms: at_ms.saturating_sub(LONGEST_MS), to_ms: end_ms, showing: false };
    let entries = camera.selected(what, 0, &mut place).await?;
    // The pictures, and the answer made of them.
    place.hold(entries.len() * size_of::<(u64, Entry)>() + 2 * (PAGE_BYTES + PICTURE_BYTES)).await?;
    let began = Instant::now();
    let (mut images, mut bytes) = (Vec::new(), 0);
    while at_ms <= end_ms && images.len() < most && bytes < PAGE_BYTES && began.elapsed() < PAGE_WITHIN {
        let image = image(call, &camera, &entries, by, at_ms, wanted, &place).await?;
        bytes += image.image_content.as_ref().map_or(0, String::len);
        images.push(image);
        at_ms = at_ms.saturating_add(step_ms);
    }
    let next_token = (at_ms <= end_ms).then(|| STANDARD.encode(at_ms.to_string()));
    let answer = answer(&Page { images, next_token })?;
    Ok(place.keep(answer))
}

async fn image(
    call: &Call<'_>,
    camera: &Camera,
    entries: &[(u64, Entry)],
    by: By,
    at_ms: i64,
    wanted: Wanted,
    place: &Place,
) -> Result<Image, Refusal> {
    let shows = |entry: &Entry| (0..i64::from(entry.duration_ms.max(1))).contains(&at_ms.saturating_sub(by.ms(entry)));
    let found = entries.iter().rev().map(|(_, entry)| *entry).find(shows);
    let failed = |error| Image { time_stamp: Moment(at_ms), error: Some(error), image_content: None };
    let Some(entry) = found else { return Ok(failed("NO_MEDIA")) };
    let _room = place.room_for(&entry).await?;
    let stored = match camera.archive.read(&entry).await {
        Ok(stored) => stored,
        Err(FragmentError::Gone) => return Ok(failed("NO_MEDIA")),
        Err(_) => return Ok(failed("MEDIA_ERROR")),
    };
    let within_ms = at_ms.saturating_sub(by.ms(&entry));
    match call.media.inner.decoder.picture(&entry, &stored, entry.start_ms.saturating_add(within_ms), wanted).await {
        Ok(picture) => {
            Ok(Image { time_stamp: Moment(at_ms), error: None, image_content: Some(STANDARD.encode(picture)) })
        }
        // Without a decoder there is no picture at all, and somebody has to hear what to install.
        Err(refusal) if refusal.kind == Kind::NoDecoder => Err(refusal),
        Err(refusal) => {
            tracing::warn!(stream = camera.name(), number = entry.number, error = %refusal, "no picture could be made");
            Ok(failed("MEDIA_ERROR"))
        }
    }
}

impl Request {
    /// Where the page begins, where it all ends, how far apart, how many.
    fn pace(&self) -> Result<(i64, i64, i64, usize), Refusal> {
        let (start, end) = (self.start_timestamp.0, self.end_timestamp.0);
        if !(0..=RANGE_MS_MAX).contains(&end.saturating_sub(start)) {
            return Err(Refusal::invalid("EndTimestamp is StartTimestamp or up to 300 seconds later"));
        }
        let step = self.sampling_interval.unwrap_or(INTERVAL_MS);
        if step < INTERVAL_MS_MIN {
            return Err(Refusal::invalid("SamplingInterval is at least 200 ms"));
        }
        let most = self.max_results.unwrap_or(PAGE);
        if !(1..=PAGE_MAX).contains(&most) {
            return Err(Refusal::invalid("MaxResults is 1 to 100"));
        }
        let at = match &self.next_token {
            None => start,
            Some(token) => {
                let text = STANDARD.decode(token).ok().and_then(|text| String::from_utf8(text).ok());
                let at = text.and_then(|text| text.parse().ok()).filter(|at| (start..=end).contains(at));
                at.ok_or_else(|| Refusal::invalid("NextToken is not one of this request"))?
            }
        };
        Ok((at, end, step, most))
    }

    fn wanted(&self) -> Result<Wanted, Refusal> {
        let format = match self.format.as_str() {
            "JPEG" => Format::Jpeg,
            "PNG" => Format::Png,
            other => return Err(Refusal::invalid(format!("Format {other:?} is not JPEG or PNG"))),
        };
        let mut quality = QUALITY;
        for (key, value) in &self.format_config {
            let right = format == Format::Jpeg && key == "JPEGQuality";
            let value = value.parse().ok().filter(|quality| right && (1..=100).contains(quality));
            quality =
                value.ok_or_else(|| Refusal::invalid("FormatConfig has JPEGQuality, 1 to 100, and is for JPEG"))?;
        }
        let fits = |pixels: Option<u32>, most: u32| pixels.is_none_or(|pixels| (1..=most).contains(&pixels));
        if !fits(self.width_pixels, WIDTH_MAX) || !fits(self.height_pixels, HEIGHT_MAX) {
            return Err(Refusal::invalid("WidthPixels is 1 to 3840 and HeightPixels 1 to 2160"));
        }
        let (width, height) = (self.width_pixels, self.height_pixels);
        Ok(Wanted { format, width, height, quality: ffmpeg_quality(quality), keyframe_only: false })
    }
}

/// From AWS's 1 (worst) to 100 to ffmpeg's 31 (worst) to 2.
fn ffmpeg_quality(quality: u8) -> u8 {
    31 - (u32::from(quality.clamp(1, 100) - 1) * 29 / 99) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(more: &str) -> Request {
        let body = format!(
            r#"{{"StreamName":"c","ImageSelectorType":"PRODUCER_TIMESTAMP","StartTimestamp":10,"EndTimestamp":20{more}}}"#
        );
        read(body.as_bytes()).unwrap()
    }

    #[test]
    fn a_request_for_pictures_is_checked_as_documented() {
        assert_eq!(request(r#","Format":"JPEG""#).pace().unwrap(), (10_000, 20_000, 3_000, 25));
        let png = request(r#","Format":"PNG","WidthPixels":320"#).wanted().unwrap();
        assert_eq!((png.format, png.width, png.height), (Format::Png, Some(320), None));
        assert_eq!([1, 80, 100].map(ffmpeg_quality), [31, 8, 2]);
        for wrong in [
            r#","Format":"GIF""#,
            r#","Format":"PNG","FormatConfig":{"JPEGQuality":"80"}"#,
            r#","Format":"JPEG","FormatConfig":{"JPEGQuality":"101"}"#,
            r#","Format":"JPEG","WidthPixels":4000"#,
            r#","Format":"JPEG","HeightPixels":0"#,
        ] {
            assert_eq!(request(wrong).wanted().unwrap_err().kind, Kind::InvalidArgument, "{wrong}");
        }
        for wrong in [r#","SamplingInterval":199"#, r#","MaxResults":101"#, r#","MaxResults":0"#, r#","NextToken":"x""#]
        {
            let wrong = format!(r#","Format":"JPEG"{wrong}"#);
            assert_eq!(request(&wrong).pace().unwrap_err().kind, Kind::InvalidArgument, "{wrong}");
        }
    }
}
