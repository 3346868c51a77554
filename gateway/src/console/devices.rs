//! What operators do with devices: see them, leave them a setting, ask one a command.
//!
//! The devices are the MQTT door's, behind a trait: the parts do not know each other. What changes something is not for a
//! page of the web, whatever name it came by, and not for whoever happens to reach an open port.

use super::pages::{BYTES, JSON, Page};
use crate::http::{BodyError, BodyLimits, Budget, read_body};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Longest body, in bytes; the door has bounds of its own.
const BODY_BYTES_MAX: usize = 4 << 10;
/// A body is there within this.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// How long an answer is waited for, if the request does not say, and at most.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN_MAX: Duration = Duration::from_secs(60);

/// Status and sentence for what did not work.
pub type Refused = (StatusCode, String);
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Refused>> + Send + 'a>>;

/// The devices, as the console needs them.
pub trait DeviceDoor: Send + Sync {
    fn list(&self) -> serde_json::Value;
    fn set_config<'a>(&'a self, id: &'a str, config: Bytes) -> Answer<'a, ()>;
    fn set_log<'a>(&'a self, id: &'a str, level: Bytes) -> Answer<'a, ()>;
    fn command<'a>(&'a self, id: &'a str, command: Bytes, within: Duration) -> Answer<'a, Bytes>;
}

/// Filled once the MQTT door is open, which is after the console.
pub type Devices = Arc<OnceLock<Box<dyn DeviceDoor>>>;

/// Whether the path is one of a device's.
pub fn is_device_path(path: &str) -> bool {
    path == "/devices" || path.starts_with("/devices/")
}

/// `may_change`: whether this console lets anyone change something.
pub async fn page(request: Request<Incoming>, devices: &Devices, may_change: bool) -> Page {
    let Some(door) = devices.get() else {
        return Page::text(StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n");
    };
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let Some(rest) = path.strip_prefix("/devices/") else {
        return match method {
            Method::GET | Method::HEAD => {
                let body = format!("{:#}\n", door.list()).into();
                Page { status: StatusCode::OK, content_type: JSON, body }
            }
            _ => Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n"),
        };
    };
    let Some((id, what)) = rest.rsplit_once('/').and_then(|(id, what)| Some((decode(id)?, what))) else {
        return not_there();
    };
    let wanted = match what {
        "config" | "log" => Method::PUT,
        "command" => Method::POST,
        _ => return not_there(),
    };
    if method != wanted {
        return Page::text(StatusCode::METHOD_NOT_ALLOWED, format!("only {wanted} is answered here\n"));
    }
    if !may_change || request.headers().contains_key(http::header::ORIGIN) {
        let says = "devices are for whoever has the token of [console] token_file, or for programs on this machine; not \
                    for a page of the web\n";
        return Page::text(StatusCode::FORBIDDEN, says);
    }
    let Ok(within) = answer_within(request.uri().query()) else {
        return Page::text(StatusCode::BAD_REQUEST, "write timeout=5s, 60s at most\n");
    };
    let body = match body_of(request).await {
        Ok(body) => body,
        Err((status, says)) => return Page::text(status, says),
    };
    let done = match what {
        "config" => door.set_config(&id, body).await.map(|()| Bytes::new()),
        "log" => door.set_log(&id, body).await.map(|()| Bytes::new()),
        _ => door.command(&id, body, within).await,
    };
    match done {
        Ok(body) if what == "command" => Page { status: StatusCode::OK, content_type: BYTES, body },
        Ok(_) => Page::text(StatusCode::OK, "ok\n"),
        Err((status, says)) => Page::text(status, says + "\n"),
    }
}

fn not_there() -> Page {
    let says = "there are GET /devices, PUT /devices/ID/config, PUT /devices/ID/log and POST /devices/ID/command\n";
    Page::text(StatusCode::NOT_FOUND, says)
}

async fn body_of(request: Request<Incoming>) -> Result<Bytes, Refused> {
    let limits = BodyLimits { bytes_max: BODY_BYTES_MAX, within: BODY_WITHIN, cost: 1 };
    // Few requests are under way at once, each with a small body: they need no budget in common.
    let read = read_body(request.into_body(), limits, &Budget::new(BODY_BYTES_MAX as u64)).await;
    read.map(|(body, _)| body).map_err(|error| {
        let status = match error {
            BodyError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::Slow => StatusCode::REQUEST_TIMEOUT,
            BodyError::OverBudget(_) | BodyError::Broken => StatusCode::BAD_REQUEST,
        };
        (status, format!("{error}\n"))
    })
}

fn answer_within(query: Option<&str>) -> Result<Duration, ()> {
    let given = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("timeout="));
    let Some(given) = given else { return Ok(ANSWER_WITHIN) };
    let span: crate::units::Span = given.parse().map_err(|_| ())?;
    if span.0 > ANSWER_WITHIN_MAX { Err(()) } else { Ok(span.0) }
}

/// A client id out of a path, percent signs decoded.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        let nibble = |digit: u8| (digit as char).to_digit(16);
        bytes.push((nibble(digits[0])? << 4 | nibble(digits[1])?) as u8);
        rest = behind;
    }
    String::from_utf8(bytes).ok().filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_spans_are_read_out_of_a_request() {
        assert_eq!(decode("d%201%C3%bc"), Some("d 1ü".into()));
        for bad in ["", "%", "%2", "%zz", "%ff"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        assert_eq!(answer_within(None), Ok(ANSWER_WITHIN));
        assert_eq!(answer_within(Some("a=b&timeout=250ms")), Ok(Duration::from_millis(250)));
        for bad in ["timeout=", "timeout=5", "timeout=61s", "timeout=-1s"] {
            assert_eq!(answer_within(Some(bad)), Err(()), "{bad}");
        }
    }
}
