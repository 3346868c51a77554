//! The bad link: an HTTP proxy in front of the upstream that refuses, throttles, fails in part, loses answers.

use super::sabotage::Sabotage;
use crate::wire;
use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Largest request or answer that goes through, in bytes.
const BODY_BYTES_MAX: usize = 32 << 20;

/// What the link does to the gateway's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Connections are closed before a byte is read.
    Refuse,
    /// Every put is throttled.
    Throttle,
    /// About half of the entries of every PutRecords fail.
    Partial,
    /// About half of the puts are carried out and their answer never arrives.
    AnswerLost,
    /// Every put is answered with status 500, and not carried out.
    ServerError,
}

impl Fault {
    pub fn says(self) -> &'static str {
        match self {
            Fault::None => "the link is good",
            Fault::Refuse => "the upstream refuses connections",
            Fault::Throttle => "the upstream throttles",
            Fault::Partial => "half of every PutRecords fails",
            Fault::AnswerLost => "answers are lost after the commit",
            Fault::ServerError => "the upstream answers 500",
        }
    }
}

pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    upstream: SocketAddr,
    fault: watch::Sender<Fault>,
    /// Whether the upstream's offer of the batch operation is kept from the gateway.
    hide_offer: AtomicBool,
    random: Mutex<fastrand::Rng>,
    hurt: AtomicU64,
    sabotage: Option<Sabotage>,
    /// How often it was done.
    sabotaged: AtomicU64,
}

impl Proxy {
    pub async fn start(upstream: SocketAddr, seed: u64, sabotage: Option<Sabotage>) -> Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("the demo's proxy")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            fault: watch::channel(Fault::None).0,
            hide_offer: AtomicBool::new(true),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            hurt: AtomicU64::new(0),
            sabotage,
            sabotaged: AtomicU64::new(0),
        });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Ok(Proxy { address, shared, task })
    }

    pub fn set(&self, fault: Fault) {
        self.shared.fault.send_replace(fault);
    }

    pub fn fault(&self) -> Fault {
        *self.shared.fault.borrow()
    }

    /// Sabotage works on the entries of PutRecords, so with it the offer stays hidden.
    pub fn show_offer(&self) {
        self.shared.hide_offer.store(self.shared.sabotage.is_some(), Ordering::Relaxed);
    }

    /// How often the link was broken on purpose.
    pub fn sabotaged(&self) -> u64 {
        self.shared.sabotaged.load(Ordering::Relaxed)
    }

    /// Calls that a fault has hurt so far.
    pub fn hurt(&self) -> u64 {
        self.shared.hurt.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Connections end with the proxy, because this set is dropped with the task.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) if *shared.fault.borrow() != Fault::Refuse => {
                    connections.spawn(serve(socket, shared.clone()));
                }
                Ok((socket, _)) => {
                    shared.hurt.fetch_add(1, Ordering::Relaxed);
                    drop(socket);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(socket: TcpStream, shared: Arc<Shared>) {
    let mut fault = shared.fault.subscribe();
    let _ = socket.set_nodelay(true);
    let service = service_fn(|request| answer(request, shared.clone()));
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection(TokioIo::new(socket), service);
    tokio::select! {
        // An error here is an answer that was lost on purpose.
        _ = connection => {}
        _ = fault.wait_for(|fault| *fault == Fault::Refuse) => {}
    }
}

/// Makes the server drop the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("lost on purpose")]
struct Lost;

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Full<Bytes>>, Lost> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|_| Lost)?.to_bytes();
    let fault = if is_put(&head.headers) { *shared.fault.borrow() } else { Fault::None };
    let chance = || shared.random.lock().unwrap_or_else(PoisonError::into_inner).bool();
    let hurt = || shared.hurt.fetch_add(1, Ordering::Relaxed);
    let mut response = match fault {
        Fault::Throttle => {
            hurt();
            error(400, "ProvisionedThroughputExceededException", "Rate exceeded (the demo's proxy)")
        }
        Fault::ServerError => {
            hurt();
            error(500, "InternalFailure", "The demo's proxy")
        }
        Fault::Partial if is_put_records(&head.headers) => {
            hurt();
            partial(&shared, &head.headers, &body, chance).await?
        }
        Fault::AnswerLost => {
            let response = forward(shared.upstream, &head.headers, body).await?;
            if chance() {
                hurt();
                return Err(Lost);
            }
            response
        }
        Fault::Refuse => return Err(Lost),
        Fault::None if is_put_records(&head.headers) => match sabotage(&shared, &body) {
            Some((spoilt, answer_of)) => {
                let response = forward(shared.upstream, &head.headers, spoilt).await?;
                rewrite(response, |results| answer_of.iter().filter_map(|at| results.get(*at).cloned()).collect())
                    .await?
            }
            None => forward(shared.upstream, &head.headers, body).await?,
        },
        Fault::None | Fault::Partial => forward(shared.upstream, &head.headers, body).await?,
    };
    if shared.hide_offer.load(Ordering::Relaxed) {
        response.headers_mut().remove(wire::OFFER_HEADER);
    }
    Ok(response)
}

fn target(headers: &HeaderMap) -> &str {
    headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn is_put_records(headers: &HeaderMap) -> bool {
    target(headers).ends_with(".PutRecords") && content_type(headers).contains("json")
}

fn is_put(headers: &HeaderMap) -> bool {
    let whole = [wire::CONTENT_TYPE, wire::blocks::CONTENT_TYPE];
    target(headers).contains(".PutRecord") || whole.contains(&content_type(headers))
}

fn content_type(headers: &HeaderMap) -> &str {
    headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn error(status: u16, kind: &str, message: &str) -> Response<Full<Bytes>> {
    let body = json!({"__type": kind, "message": message}).to_string();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/x-amz-json-1.1"));
    if let Ok(kind) = HeaderValue::from_str(kind) {
        headers.insert("x-amzn-errortype", kind);
    }
    response
}

/// Forwards some entries of a PutRecords and answers for the others as a throttled shard does.
async fn partial(
    shared: &Shared,
    headers: &HeaderMap,
    body: &Bytes,
    fails: impl Fn() -> bool,
) -> Result<Response<Full<Bytes>>, Lost> {
    let mut ask: Value = serde_json::from_slice(body).map_err(|_| Lost)?;
    let entries = ask["Records"].as_array().cloned().ok_or(Lost)?;
    let failed = choose(&entries, fails);
    let good: Vec<Value> =
        entries.iter().zip(&failed).filter(|(_, failed)| !**failed).map(|(e, _)| e.clone()).collect();
    ask["Records"] = good.into();
    let response = forward(shared.upstream, headers, Bytes::from(ask.to_string())).await?;
    rewrite(response, |results| merge(&failed, results)).await
}

/// The body of a PutRecords that is broken on purpose, and which result of its answer each entry gets.
fn sabotage(shared: &Shared, body: &Bytes) -> Option<(Bytes, Vec<usize>)> {
    let sabotage = shared.sabotage.filter(|how| shared.sabotaged.load(Ordering::Relaxed) < how.times())?;
    let mut ask: Value = serde_json::from_slice(body).ok()?;
    let spoilt = sabotage.spoil(ask["Records"].as_array()?)?;
    shared.sabotaged.fetch_add(1, Ordering::Relaxed);
    ask["Records"] = spoilt.entries.into();
    Some((Bytes::from(ask.to_string()), spoilt.answer_of))
}

/// The answer of a PutRecords with other results.
async fn rewrite(
    response: Response<Full<Bytes>>,
    change: impl FnOnce(Vec<Value>) -> Vec<Value>,
) -> Result<Response<Full<Bytes>>, Lost> {
    if !response.status().is_success() {
        return Ok(response);
    }
    let mut head = response.headers().clone();
    let answer = response.into_body().collect().await.map_err(|_| Lost)?.to_bytes();
    let mut answer: Value = serde_json::from_slice(&answer).map_err(|_| Lost)?;
    let results = change(answer["Records"].as_array_mut().map(std::mem::take).unwrap_or_default());
    let count = results.iter().filter(|result| result["ErrorCode"].is_string()).count();
    let body = json!({"FailedRecordCount": count, "Records": results}).to_string();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    head.remove("content-length");
    head.entry("content-type").or_insert(HeaderValue::from_static("application/x-amz-json-1.1"));
    *response.headers_mut() = head;
    Ok(response)
}

/// Which entries fail: of each producer everything from a random entry on, because a Headwater refuses what comes behind a
/// refused record of a producer too. Entries without a producer fail one by one, as at Kinesis. The first never fails: an
/// answer that the upstream had no part in would not say, as its answers do, that it is a Headwater.
fn choose(entries: &[Value], fails: impl Fn() -> bool) -> Vec<bool> {
    let mut failing = HashSet::new();
    let entries = entries.iter().enumerate().map(|(at, entry)| {
        if at == 0 {
            return false;
        }
        let Some(producer) = entry["Headwater"]["Producer"].as_str() else { return fails() };
        failing.contains(producer) || (fails() && failing.insert(producer))
    });
    entries.collect()
}

/// One result for each entry, in the order of the request.
fn merge(failed: &[bool], results: Vec<Value>) -> Vec<Value> {
    let mut results = results.into_iter();
    let refused = || {
        json!({
            "ErrorCode": "ProvisionedThroughputExceededException",
            "ErrorMessage": "Rate exceeded for shard (the demo's proxy)",
        })
    };
    failed.iter().map(|failed| if *failed { refused() } else { results.next().unwrap_or_else(refused) }).collect()
}

async fn forward(upstream: SocketAddr, headers: &HeaderMap, body: Bytes) -> Result<Response<Full<Bytes>>, Lost> {
    let socket = TcpStream::connect(upstream).await.map_err(|_| Lost)?;
    let _ = socket.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(|_| Lost)?;
    let driver = tokio::spawn(connection);
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.headers_mut() = headers.clone();
    for hop in ["content-length", "transfer-encoding", "connection"] {
        request.headers_mut().remove(hop);
    }
    if let Ok(host) = HeaderValue::from_str(&upstream.to_string()) {
        request.headers_mut().entry("host").or_insert(host);
    }
    let (head, body) = sender.send_request(request).await.map_err(|_| Lost)?.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|_| Lost)?.to_bytes();
    driver.abort();
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    for hop in ["content-length", "transfer-encoding", "connection"] {
        response.headers_mut().remove(hop);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_a_failed_entry_of_a_producer_everything_of_it_fails() {
        let entry = |producer: &str| json!({"Data": "", "Headwater": {"Producer": producer}});
        let entries = [entry("a"), entry("b"), entry("a"), entry("b"), json!({"Data": ""})];
        let calls = std::cell::Cell::new(0);
        let at_once = || calls.replace(calls.get() + 1) == 0;
        assert_eq!(choose(&entries, at_once), [false, true, false, true, false]);
        assert_eq!(choose(&entries[..1], || true), [false], "something is always forwarded");
    }

    #[test]
    fn answers_stay_aligned_with_the_request() {
        let results = vec![json!({"SequenceNumber": "1"}), json!({"SequenceNumber": "2"})];
        let merged = merge(&[true, false, true, false], results);
        let sequence: Vec<_> = merged.iter().map(|result| result["SequenceNumber"].as_str()).collect();
        assert_eq!(sequence, [None, Some("1"), None, Some("2")]);
        assert!(merged[0]["ErrorCode"].is_string() && merged[3]["ErrorCode"].is_null());
    }
}
