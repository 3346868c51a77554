//! The command line as a client of a running gateway: small HTTP over hyper, one connection a call.

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;

/// Largest answer we take, in bytes: GetRecords answers at most 10 MiB of data, in base64 with its JSON.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Which gateway.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Address of the gateway's AWS APIs.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4567", env = "HEADWATER_API")]
    api: String,
}

/// The gateway said no.
#[derive(Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Refused {
    /// As AWS names it: `ResourceNotFoundException`.
    pub kind: String,
    pub message: String,
}

pub struct Client {
    address: String,
}

impl Client {
    pub fn new(target: &Target) -> Self {
        Client { address: target.api.trim_start_matches("http://").trim_end_matches('/').to_owned() }
    }

    /// One Kinesis operation.
    pub async fn call(&self, operation: &str, body: Value) -> Result<Value> {
        let request = Request::builder()
            .method(Method::POST)
            .uri("/")
            .header("host", &self.address)
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", format!("Kinesis_20131202.{operation}"))
            .header("authorization", unsigned())
            .header("x-amz-date", "20260101T000000Z")
            .body(Full::new(Bytes::from(serde_json::to_vec(&body)?)))?;
        let (status, answer) = send(&self.address, request).await?;
        let value: Value = match answer.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&answer).with_context(|| {
                format!("{} did not answer as the Kinesis API does; is that the gateway's AWS port?", self.address)
            })?,
        };
        if status >= 400 {
            let text = |names: [&str; 2]| names.iter().find_map(|name| value[*name].as_str()).unwrap_or("?").to_owned();
            let kind = text(["__type", "code"]);
            let kind = kind.rsplit('#').next().unwrap_or_default().to_owned();
            return Err(Refused { kind, message: text(["message", "Message"]) }.into());
        }
        Ok(value)
    }
}

/// The shape of a signature with a name and no secret. A gateway without keys takes it; one with keys says what it wants.
fn unsigned() -> String {
    let key = std::env::var("AWS_ACCESS_KEY_ID").unwrap_or_else(|_| "headwater-cli".into());
    let signature = "0".repeat(64);
    format!(
        "AWS4-HMAC-SHA256 Credential={key}/20260101/local/kinesis/aws4_request, SignedHeaders=host;x-amz-date, Signature={signature}"
    )
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
