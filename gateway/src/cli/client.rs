//! The command line as a client of the Kinesis API: of a running gateway, by small HTTP over hyper and one connection a call, or
//! of Kinesis itself (`kinesis`).

use super::kinesis::Kinesis;
use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use reqsign_aws_v4::{Credential, RequestSigner};
use reqsign_core::hash::hex_sha256;
use reqsign_core::{Context as SignContext, SignRequest};
use serde_json::Value;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};

/// Largest answer we take, in bytes: GetRecords answers at most 10 MiB of data, in base64 with its JSON.
pub(super) const ANSWER_BYTES_MAX: usize = 32 << 20;
/// How long one call may take.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before whoever is busy is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// What a gateway with access keys says to a request that none of them has signed.
const SIGNATURE_KINDS: [&str; 4] = [
    "MissingAuthenticationTokenException",
    "IncompleteSignatureException",
    "UnrecognizedClientException",
    "InvalidSignatureException",
];

/// Which gateway.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Address of the gateway's AWS APIs.
    #[arg(long, global = true, value_name = "ADDR", default_value = "127.0.0.1:4567", env = "HEADWATER_API", value_parser = address)]
    api: String,
}

/// `host:port`, as the user may write it: with `http://` in front, or a `/` behind.
fn address(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    match bare.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
        Some((host, Ok(_))) if !host.is_empty() && !host.contains(['/', ' ']) => Ok(bare.to_owned()),
        _ => Err("write a host and a port, such as 127.0.0.1:4567".to_owned()),
    }
}

/// The gateway said no.
#[derive(Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Refused {
    /// As AWS names it: `ResourceNotFoundException`.
    pub kind: String,
    pub message: String,
}

pub fn is_kind(error: &anyhow::Error, kinds: &[&str]) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| kinds.contains(&refused.kind.as_str()))
}

/// The gateway is busy, or the stream is: to be asked again.
pub fn is_throttled(error: &anyhow::Error) -> bool {
    let busy = [
        "ProvisionedThroughputExceededException",
        "LimitExceededException",
        "ThrottlingException",
        "KMSThrottlingException",
        "ServiceUnavailable",
    ];
    is_kind(error, &busy)
}

pub enum Client {
    /// A gateway at its address.
    Gateway(String),
    /// Kinesis, or what `AWS_ENDPOINT_URL` names.
    Kinesis(Box<Kinesis>),
}

impl Client {
    pub fn new(target: &Target) -> Self {
        Client::Gateway(target.api.clone())
    }

    /// One Kinesis operation.
    pub async fn call(&self, operation: &str, body: Value) -> Result<Value> {
        let body = serde_json::to_vec(&body)?;
        let (address, (status, answer)) = match self {
            Client::Gateway(address) => (address.as_str(), ask(address, operation, body).await?),
            Client::Kinesis(kinesis) => (kinesis.endpoint(), kinesis.ask(operation, body.into()).await?),
        };
        let value: Value = match answer.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&answer).with_context(|| {
                format!("{address} did not answer as the Kinesis API does; is that the gateway's AWS port?")
            })?,
        };
        if status >= 400 {
            let text = |names: [&str; 2]| names.iter().find_map(|name| value[*name].as_str()).unwrap_or("?").to_owned();
            let kind = text(["__type", "code"]);
            let kind = kind.rsplit('#').next().unwrap_or_default().to_owned();
            // Kinesis answers a missing signature with 400 and a wrong one with 400 or 403.
            let keys = status == 403 || SIGNATURE_KINDS.contains(&kind.as_str());
            let refused = anyhow::Error::from(Refused { kind, message: text(["message", "Message"]) });
            return Err(match self {
                Client::Gateway(_) if keys => refused
                    .context("this gateway asks for access keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
                _ => refused,
            });
        }
        Ok(value)
    }

    /// The same, and again for as long as it is throttled.
    pub async fn call_patiently(&self, operation: &str, body: &Value) -> Result<Value> {
        loop {
            match self.call(operation, body.clone()).await {
                Err(error) if is_throttled(&error) => tokio::time::sleep(PAUSE).await,
                other => return other,
            }
        }
    }
}

/// One exchange with a gateway.
async fn ask(address: &str, operation: &str, body: Vec<u8>) -> Result<(u16, Bytes)> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{address}/"))
        .header("host", address)
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amz-target", format!("Kinesis_20131202.{operation}"))
        .header("x-amz-content-sha256", hex_sha256(&body))
        .body(Full::new(Bytes::from(body)))?;
    let (mut head, body) = request.into_parts();
    sign(&mut head).await?;
    // To the gateway itself, not through a proxy: the path alone.
    head.uri = Uri::from_static("/");
    send(address, Request::from_parts(head, body)).await
}

/// Signs with the keys of the environment, as every AWS tool takes them. Without keys the request goes unsigned, which a
/// gateway without access keys takes.
async fn sign(head: &mut http::request::Parts) -> Result<()> {
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(id), Some(secret)) = (var("AWS_ACCESS_KEY_ID"), var("AWS_SECRET_ACCESS_KEY")) else { return Ok(()) };
    let region = var("AWS_REGION").or_else(|| var("AWS_DEFAULT_REGION")).unwrap_or_else(|| "us-east-1".into());
    let credential = Credential {
        access_key_id: id,
        secret_access_key: secret,
        session_token: var("AWS_SESSION_TOKEN"),
        ..Credential::default()
    };
    let signer = RequestSigner::new("kinesis", &region);
    let signed = signer.sign_request(&SignContext::new(), head, Some(&credential), None).await;
    signed.map_err(|error| anyhow::anyhow!("the request could not be signed: {error}"))
}

/// `GET` of the console: `/metrics`, `/readyz`.
pub async fn get(address: &str, path: &str) -> Result<(u16, Bytes)> {
    let request = Request::builder().method(Method::GET).uri(path).header("host", address).body(Full::default())?;
    send(address, request).await
}

async fn send(address: &str, request: Request<Full<Bytes>>) -> Result<(u16, Bytes)> {
    let call = async {
        let stream = TcpStream::connect(address).await.with_context(|| unreachable_advice(address))?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the answer of {address} could not be read: {error}"))?;
        driver.abort();
        anyhow::Ok((status, body.to_bytes()))
    };
    let timeout = || format!("{address} did not answer within {CALL_TIMEOUT:?}");
    tokio::time::timeout(CALL_TIMEOUT, call).await.with_context(timeout)?
}

fn unreachable_advice(address: &str) -> String {
    format!("no gateway answers at {address}: is it running? Start it with `headwater run`, or name another with --api")
}

/// A runtime for a client: one thread, nothing else.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// For work that leaves something behind, a process or a directory: Ctrl-C and SIGTERM end it as an error does, so that
/// everything is taken down on the way out.
pub async fn until_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    heed_interrupts()?;
    let interruption = async {
        while !is_interrupted() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = interruption => Err(Interrupted.into()),
    }
}

/// How soon an interruption is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(50);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the user has had enough. Blocking work between two calls of [`until_interrupted`] asks this.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// From now on Ctrl-C and SIGTERM are noted instead of ending the process on the spot; a second one ends it.
pub fn heed_interrupts() -> Result<()> {
    static STARTED: OnceLock<()> = OnceLock::new();
    if STARTED.set(()).is_err() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let inside = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    drop(inside);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if INTERRUPTED.swap(true, Ordering::Relaxed) {
                    std::process::exit(1);
                }
            }
        });
    })?;
    Ok(())
}

/// The user wants no more of it: nothing to look into afterwards.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for text in ["127.0.0.1:4567", "http://127.0.0.1:4567/", "box.local:80", "[::1]:4567"] {
            assert!(address(text).is_ok_and(|bare| text.contains(&bare)), "{text}");
        }
        for text in ["", "127.0.0.1", "box", ":4567", "box:99999", "https://box:443", "http://box:80/path"] {
            assert!(address(text).is_err(), "{text}");
        }
    }
}
