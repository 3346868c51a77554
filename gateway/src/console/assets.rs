//! The files of the console's pages, in the binary. They hold no secret, so they are for everybody: a sign-in form has to
//! come from somewhere. The policy lets a page load nothing but these and talk to nobody but this console.

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use std::io::Write;
use std::sync::OnceLock;
use xxhash_rust::xxh3::xxh3_64;

use crate::http::Body;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; \
                      connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
/// Files from this length on are sent compressed, in bytes.
const GZIP_FROM: usize = 1 << 10;

struct Asset {
    name: &'static str,
    bytes: &'static [u8],
    gzip: OnceLock<Bytes>,
}

macro_rules! assets {
    ($( $name:literal, )*) => {
        static ASSETS: [Asset; [$($name),*].len()] = [$(
            Asset { name: $name, bytes: include_bytes!(concat!("assets/", $name)), gzip: OnceLock::new() },
        )*];
    };
}

assets! {
    "api.js",
    "clip.js",
    "codecs.js",
    "hls-1.7.4.LICENSE.txt",
    "hls-1.7.4.light.min.mjs",
    "playback_film.js",
    "playback_images.js",
    "player.css",
    "player.html",
    "player.js",
    "preview.js",
    "ranges.js",
    "sign_in.js",
    "streams.js",
    "timeline.js",
    "timeline_draw.js",
    "times.js",
    "watch.js",
}

/// The page or file of a path, if there is one.
pub fn answer(path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    let name = if path == "/video" { "player.html" } else { path.strip_prefix("/assets/")? };
    let asset = ASSETS.iter().find(|asset| asset.name == name)?;
    let tag = format!("\"{:016x}\"", xxh3_64(asset.bytes));
    let known = headers.get(IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == tag.as_bytes());
    let takes_gzip =
        headers.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains("gzip"));
    let gzip = takes_gzip && asset.bytes.len() >= GZIP_FROM;
    let body = match (known, gzip) {
        (true, _) => Bytes::new(),
        (false, true) => asset.gzip.get_or_init(|| compress(asset.bytes)).clone(),
        (false, false) => Bytes::from_static(asset.bytes),
    };
    let mut response = Response::new(Body::from(body));
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let set = response.headers_mut();
    set.insert(CONTENT_TYPE, HeaderValue::from_static(content_type(name)));
    // A name with a version in it stands for the same bytes for ever; the others are asked for each time.
    let cache = if name.starts_with("hls-") { "public, max-age=31536000, immutable" } else { "no-cache" };
    set.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    set.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    set.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    set.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        set.insert(ETAG, tag);
    }
    if gzip && !known {
        set.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Some(response)
}

fn compress(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to memory does not fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().map(Bytes::from).unwrap_or_default()
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("js" | "mjs") => "text/javascript",
        Some("css") => "text/css",
        Some("html") => "text/html; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_file_of_the_folder_is_in_the_binary() {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/console/assets")).unwrap();
        let there: BTreeSet<_> = folder.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let named: BTreeSet<_> = ASSETS.iter().map(|asset| asset.name.to_owned()).collect();
        assert_eq!(there, named);
    }

    #[test]
    fn a_file_that_the_browser_has_is_not_sent_again() {
        let first = answer("/assets/player.js", &HeaderMap::new()).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
        assert_eq!(answer("/assets/player.js", &headers).unwrap().status(), StatusCode::NOT_MODIFIED);
        assert!(answer("/assets/../player.js", &headers).is_none());
        assert!(
            answer("/video", &headers).unwrap().headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().contains("'none'")
        );
    }
}
