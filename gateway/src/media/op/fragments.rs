//! ListFragments: what is there, by time.

use super::Call;
use crate::http::Body;
use crate::media::ack::{fragment_number, parse_fragment_number};
use crate::media::archive::Select;
use crate::media::index::{By, Entry};
use crate::media::shape::{FragmentSelector, Moment, Refusal, StreamRef, answer, read};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use serde::{Deserialize, Serialize};

/// Fragments on a page, unless the request says less.
const PAGE_MAX: usize = 1_000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Request {
    #[serde(flatten)]
    stream: StreamRef,
    max_results: Option<usize>,
    next_token: Option<String>,
    fragment_selector: Option<FragmentSelector>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Fragment {
    fragment_number: String,
    fragment_size_in_bytes: u32,
    producer_timestamp: Moment,
    server_timestamp: Moment,
    fragment_length_in_milliseconds: u32,
}

impl From<&Entry> for Fragment {
    fn from(entry: &Entry) -> Fragment {
        Fragment {
            fragment_number: fragment_number(entry.number),
            fragment_size_in_bytes: entry.bytes,
            producer_timestamp: Moment(entry.start_ms),
            server_timestamp: Moment(entry.server_ms as i64),
            fragment_length_in_milliseconds: entry.duration_ms,
        }
    }
}

/// A page goes on behind the fragment that its token names.
pub async fn list_fragments(call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let request: Request = read(call.body)?;
    let camera = call.media.camera(request.stream.name()?)?;
    let most = request.max_results.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let after = match &request.next_token {
        Some(token) => Some(after_token(token)?),
        None => None,
    };
    let range = request.fragment_selector.map(|selector| selector.range()).transpose()?;
    let (by, from_ms, to_ms) = range.unwrap_or((By::Server, i64::MIN, i64::MAX));
    let found = camera.archive.page(Select { by, from_ms, to_ms, showing: false }, after, most + 1).await?;
    let page: Vec<Fragment> = found.iter().take(most).map(Fragment::from).collect();
    let more = found.len() > most;
    let next = page.last().filter(|_| more).map(|last| STANDARD.encode(&last.fragment_number));
    let mut said = serde_json::json!({ "Fragments": page });
    if let Some(token) = next {
        said["NextToken"] = token.into();
    }
    answer(&said)
}

fn after_token(token: &str) -> Result<u64, Refusal> {
    let text = STANDARD.decode(token).ok().and_then(|text| String::from_utf8(text).ok());
    text.as_deref().and_then(parse_fragment_number).ok_or_else(|| Refusal::invalid("NextToken is not one of ours"))
}
