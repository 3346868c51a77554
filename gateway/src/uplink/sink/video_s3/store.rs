//! S3's side: one request, its signature, its answer. It tries once; what is to be done about an error is decided by who asked.
//!
//! Bodies go out piece by piece, within the bandwidth cap, and are given up when nothing moves for `timeout`, however long
//! they are: a part of megabytes may take minutes on a thin link.

use super::{S3VideoConfig, plan, xml};
use crate::clock::Clock;
use crate::uplink::aws::{Aws, S3, trust};
use crate::uplink::budget::Budget;
use crate::uplink::http::{Answering, Bounds, HttpClient};
use crate::uplink::sink::Fault;
use crate::uplink::sink::video::fault_of;
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;

/// Bytes given to the connection at once.
const PIECE_BYTES: usize = 64 << 10;
/// What may lie between us and the other side, and the thinnest link that it gets through, in bytes and bytes a second.
const ON_ITS_WAY_MAX: u64 = 4 << 20;
const LINK_BYTES_PER_S_MIN: u64 = 16 << 10;
/// What an index may take to come on a thin link, beside `timeout`.
const INDEX_WITHIN: Duration = Duration::from_secs(60);
/// An index of 50,000 fragments with a few tags.
const ANSWER_BYTES_MAX: usize = 32 << 20;
const USER_AGENT: &str = concat!("headwater/", env!("CARGO_PKG_VERSION"));

/// Why something was not done.
#[derive(Debug, PartialEq, Eq)]
pub enum No {
    Fault(Fault),
    /// The upload, or a part of it, is not there any more.
    Gone,
    /// There is an object of this key already.
    Exists,
}

/// What may be asked of an object.
#[derive(Clone, Debug)]
pub enum Op {
    IsThere {
        key: String,
    },
    Get {
        key: String,
    },
    /// Stores it in one piece; `only_new`: unless there is one.
    Put {
        key: String,
        body: Bytes,
        kind: &'static str,
        only_new: bool,
    },
    /// Begins an upload in parts.
    Create {
        key: String,
        kind: &'static str,
    },
    /// Stores a part; `number` counts from 1.
    Part {
        key: String,
        upload_id: String,
        number: usize,
        body: Bytes,
    },
    /// Makes the object of its parts, unless there is one.
    Complete {
        key: String,
        upload_id: String,
        etags: Vec<String>,
    },
    Abort {
        key: String,
        upload_id: String,
    },
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Done {
    Nothing,
    There(bool),
    Object(Option<Bytes>),
    /// An upload's id, or a part's ETag.
    Name(String),
}

pub struct Store {
    config: S3VideoConfig,
    http: HttpClient,
    aws: OnceCell<Aws>,
    clock: Clock,
    budget: Arc<Mutex<Budget>>,
}

/// A request to an object.
struct Ask<'a> {
    method: Method,
    key: &'a str,
    query: String,
    headers: &'a [(&'static str, &'a str)],
    body: Bytes,
}

impl Store {
    pub fn new(config: &S3VideoConfig, clock: Clock, budget: Arc<Mutex<Budget>>) -> Store {
        let http = HttpClient::new(trust(&config.aws.ca));
        Store { config: config.clone(), http, aws: OnceCell::new(), clock, budget }
    }

    pub async fn run(&self, op: &Op) -> Result<Done, No> {
        match op {
            Op::IsThere { key } => self.is_there(key).await.map(Done::There),
            Op::Get { key } => self.get(key).await.map(Done::Object),
            Op::Put { key, body, kind, only_new } => {
                self.put(key, body.clone(), kind, *only_new).await.map(|()| Done::Nothing)
            }
            Op::Create { key, kind } => self.create(key, kind).await.map(Done::Name),
            Op::Part { key, upload_id, number, body } => {
                self.part(key, upload_id, *number, body.clone()).await.map(Done::Name)
            }
            Op::Complete { key, upload_id, etags } => {
                self.complete(key, upload_id, etags).await.map(|()| Done::Nothing)
            }
            Op::Abort { key, upload_id } => self.abort(key, upload_id).await.map(|()| Done::Nothing),
        }
    }

    async fn is_there(&self, key: &str) -> Result<bool, No> {
        let ask = Ask { method: Method::HEAD, key, query: String::new(), headers: &[], body: Bytes::new() };
        let response = self.ask(ask).await.map_err(No::Fault)?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            _ => self.sorted(response).await.map(|_| true),
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, No> {
        let ask = Ask { method: Method::GET, key, query: String::new(), headers: &[], body: Bytes::new() };
        let response = self.ask(ask).await.map_err(No::Fault)?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            _ => Ok(Some(self.sorted(response).await?.into_body())),
        }
    }

    async fn put(&self, key: &str, body: Bytes, content_type: &str, only_new: bool) -> Result<(), No> {
        let headers = [("content-type", content_type), ("if-none-match", "*")];
        let headers = &headers[..if only_new { 2 } else { 1 }];
        let response = self.ask(Ask { method: Method::PUT, key, query: String::new(), headers, body }).await;
        self.sorted(response.map_err(No::Fault)?).await.map(drop)
    }

    async fn create(&self, key: &str, content_type: &str) -> Result<String, No> {
        let headers = &[("content-type", content_type)];
        let ask = Ask { method: Method::POST, key, query: "uploads=".into(), headers, body: Bytes::new() };
        let response = self.sorted(self.ask(ask).await.map_err(No::Fault)?).await?;
        xml::text(response.body(), "UploadId").ok_or_else(|| unclear("CreateMultipartUpload"))
    }

    async fn part(&self, key: &str, upload_id: &str, number: usize, body: Bytes) -> Result<String, No> {
        let query = format!("partNumber={number}&uploadId={}", query_value(upload_id));
        let response = self.ask(Ask { method: Method::PUT, key, query, headers: &[], body }).await;
        let response = self.sorted(response.map_err(No::Fault)?).await?;
        let etag = response.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok());
        etag.map(str::to_owned).ok_or_else(|| unclear("UploadPart"))
    }

    async fn complete(&self, key: &str, upload_id: &str, etags: &[String]) -> Result<(), No> {
        let query = format!("uploadId={}", query_value(upload_id));
        let headers = &[("content-type", "application/xml"), ("if-none-match", "*")];
        let ask = Ask {
            method: Method::POST,
            key,
            query,
            headers,
            body: xml::parts(etags.iter().map(String::as_str)).into(),
        };
        let response = self.sorted(self.ask(ask).await.map_err(No::Fault)?).await?;
        // It answers 200 before it knows, and may say in the body that it went wrong.
        match xml::text(response.body(), "ETag") {
            Some(_) => Ok(()),
            None => Err(meaning(StatusCode::INTERNAL_SERVER_ERROR, response.body(), &self.config.bucket)),
        }
    }

    async fn abort(&self, key: &str, upload_id: &str) -> Result<(), No> {
        let query = format!("uploadId={}", query_value(upload_id));
        let ask = Ask { method: Method::DELETE, key, query, headers: &[], body: Bytes::new() };
        self.sorted(self.ask(ask).await.map_err(No::Fault)?).await.map(drop)
    }

    async fn aws(&self) -> &Aws {
        let find = || Box::pin(Aws::find(S3, &self.config.aws, self.http.clone()));
        self.aws.get_or_init(find).await
    }

    async fn ask(&self, ask: Ask<'_>) -> Result<Response<Bytes>, Fault> {
        let aws = self.aws().await;
        let base = address(&aws.endpoint, aws.is_public, &self.config.bucket);
        let query = if ask.query.is_empty() { String::new() } else { format!("?{}", ask.query) };
        let uri = format!("{base}/{}{query}", plan::encoded(ask.key));
        let is_get = ask.method == Method::GET;
        let has_body = matches!(ask.method, Method::PUT | Method::POST);
        let mut request = Request::builder().method(ask.method).uri(uri).header(header::USER_AGENT, USER_AGENT);
        for (name, value) in ask.headers {
            request = request.header(*name, *value);
        }
        if has_body {
            request = request.header(header::CONTENT_LENGTH, ask.body.len());
        }
        if aws.signs() {
            request = request.header("x-amz-content-sha256", digest(ask.body.clone()).await);
        }
        let request = request.body(()).map_err(|error| Fault::Broken(error.to_string()))?;
        let (mut head, ()) = request.into_parts();
        if let Err(error) = Box::pin(aws.sign(&mut head)).await {
            aws.forget_credentials().await;
            return Err(Fault::Denied(format!("has no usable credentials: {error}")));
        }
        match ask.body.is_empty() {
            true => {
                let extra = if is_get { INDEX_WITHIN } else { Duration::ZERO };
                let within = self.config.timeout.0 + extra;
                let bounds = Bounds { within, answer_bytes_max: ANSWER_BYTES_MAX };
                self.http.send(Request::from_parts(head, Bytes::new()), bounds).await.map_err(fault_of)
            }
            false => self.send(Request::from_parts(head, ()), ask.body).await,
        }
    }

    /// Sends a body piece by piece, and stops when it is answered before its end.
    async fn send(&self, request: Request<()>, body: Bytes) -> Result<Response<Bytes>, Fault> {
        let silence = || Fault::Broken(format!("nothing moved for {:?}", self.config.timeout.0));
        let on_its_way = (body.len() as u64).min(ON_ITS_WAY_MAX);
        let (duplex, to) = self.http.duplex(request).await.map_err(fault_of)?;
        let mut answer = std::pin::pin!(duplex.answer());
        let mut left = body;
        let response = loop {
            if left.is_empty() {
                let within = self.config.timeout.0 + Duration::from_secs(on_its_way / LINK_BYTES_PER_S_MIN);
                break tokio::time::timeout(within, &mut answer).await.map_err(|_| silence())?;
            }
            let piece = left.slice(..left.len().min(PIECE_BYTES));
            tokio::select! {
                biased;
                answered = &mut answer => break answered,
                gave = tokio::time::timeout(self.config.timeout.0, to.send(piece.clone())) => match gave {
                    Err(_) => return Err(silence()),
                    // Why will be heard.
                    Ok(Err(_)) => left.clear(),
                    Ok(Ok(())) => {
                        left = left.slice(piece.len()..);
                        self.budget(|budget| budget.spend(piece.len()));
                    }
                },
            }
            let wait_ms = self.budget(|budget| budget.wait_ms(self.clock.now().mono_ms));
            if wait_ms > 0 && !left.is_empty() {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            }
        };
        let (head, mut answering) = response.map_err(fault_of)?.into_parts();
        let body =
            tokio::time::timeout(self.config.timeout.0, whole(&mut answering)).await.map_err(|_| silence())??;
        Ok(Response::from_parts(head, body))
    }

    fn budget<T>(&self, what: impl FnOnce(&mut Budget) -> T) -> T {
        what(&mut self.budget.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells an answer that is none of success.
    async fn sorted(&self, response: Response<Bytes>) -> Result<Response<Bytes>, No> {
        if response.status().is_success() {
            return Ok(response);
        }
        let mut no = meaning(response.status(), response.body(), &self.config.bucket);
        if let (No::Fault(Fault::Broken(says)), Some(region)) = (&mut no, response.headers().get("x-amz-bucket-region"))
            && !response.status().is_server_error()
        {
            says.push_str(&format!("; the bucket is in region {}", region.to_str().unwrap_or("?")));
        }
        if matches!(no, No::Fault(Fault::Denied(_))) {
            self.aws().await.forget_credentials().await;
        }
        Err(no)
    }
}

async fn whole(answering: &mut Answering) -> Result<Bytes, Fault> {
    let mut body = BytesMut::new();
    while let Some(bytes) = answering.next().await.map_err(fault_of)? {
        if body.len() + bytes.len() > ANSWER_BYTES_MAX {
            return Err(Fault::Broken(format!("the answer is larger than {ANSWER_BYTES_MAX} bytes")));
        }
        body.extend_from_slice(&bytes);
    }
    Ok(body.freeze())
}

/// SHA-256 in hexadecimal. On a thread of its own: of megabytes it takes a while.
pub async fn digest(bytes: Bytes) -> String {
    let work = move || {
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

/// Where a bucket's objects are: a host of their own at AWS, a folder elsewhere and where the name has dots, which its
/// certificate would not cover.
fn address(endpoint: &str, is_public: bool, bucket: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    match endpoint.split_once("://") {
        Some((scheme, host)) if is_public && !bucket.contains('.') => format!("{scheme}://{bucket}.{host}"),
        _ => format!("{endpoint}/{bucket}"),
    }
}

fn query_value(text: &str) -> String {
    plan::encoded(text).replace('/', "%2F")
}

fn unclear(operation: &str) -> No {
    No::Fault(Fault::Broken(format!("the answer to {operation} is not understood")))
}

/// What an error says that is to be done.
fn meaning(status: StatusCode, body: &[u8], bucket: &str) -> No {
    let code = xml::text(body, "Code").unwrap_or_default();
    let message = xml::text(body, "Message").unwrap_or_default();
    let said = match (code.is_empty(), message.is_empty()) {
        (true, _) => status.to_string(),
        (false, true) => code.clone(),
        (false, false) => format!("{code}: {message}"),
    };
    match (code.as_str(), status) {
        ("NoSuchUpload" | "InvalidPart" | "InvalidPartOrder" | "EntityTooSmall", _) => No::Gone,
        ("PreconditionFailed", _) | (_, StatusCode::PRECONDITION_FAILED) => No::Exists,
        ("NoSuchBucket", _) => {
            No::Fault(Fault::Broken(format!("there is no bucket {bucket:?}; make it, or set `bucket`")))
        }
        ("SlowDown" | "RequestLimitExceeded" | "TooManyRequests", _) | (_, StatusCode::TOO_MANY_REQUESTS) => {
            No::Fault(Fault::Throttled)
        }
        ("ExpiredToken" | "InvalidToken", _) | (_, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) => {
            No::Fault(Fault::denied(&said))
        }
        _ => No::Fault(Fault::Broken(said)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_a_host_at_aws_and_a_folder_elsewhere() {
        let aws = "https://s3.eu-west-1.amazonaws.com";
        assert_eq!(address(aws, true, "film"), "https://film.s3.eu-west-1.amazonaws.com");
        assert_eq!(address(aws, true, "film.example"), "https://s3.eu-west-1.amazonaws.com/film.example");
        assert_eq!(address("http://127.0.0.1:9000/", false, "film"), "http://127.0.0.1:9000/film");
        assert_eq!(query_value("a/b+c="), "a%2Fb%2Bc%3D");
    }

    #[test]
    fn errors_are_told_apart_by_what_is_to_be_done() {
        let meaning = |status: u16, code: &str| {
            let body = format!("<Error><Code>{code}</Code><Message>so</Message></Error>");
            meaning(StatusCode::from_u16(status).unwrap(), body.as_bytes(), "b")
        };
        assert_eq!(meaning(404, "NoSuchUpload"), No::Gone);
        assert_eq!(meaning(412, "PreconditionFailed"), No::Exists);
        assert_eq!(meaning(503, "SlowDown"), No::Fault(Fault::Throttled));
        assert!(matches!(meaning(403, "AccessDenied"), No::Fault(Fault::Denied(_))));
        assert!(matches!(meaning(400, "ExpiredToken"), No::Fault(Fault::Denied(_))));
        assert!(matches!(meaning(404, "NoSuchBucket"), No::Fault(Fault::Broken(says)) if says.contains("\"b\"")));
        assert!(matches!(meaning(500, "InternalError"), No::Fault(Fault::Broken(_))));
    }
}
