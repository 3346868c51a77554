//! From an HTTP request to its operation and back: method, form, target, signature, body, answer, in this order.
//!
//! What AWS's own front end says to requests that are no operation at all is said here, in its words. No operation is
//! named here and none of their members.

use super::Call;
use super::arn::Account;
use super::batch;
use super::codec::Codec;
use super::config::ApiConfig;
use super::error::{ApiError, Kind};
use super::keys::{Keys, KeysError};
use super::operations::{Target, target};
use super::relay;
use super::sigv4::{self, Signed};
use super::token::{Issued, TokenKey};
use crate::clock::Clock;
use crate::http::{Body, BodyLimits, Budget, Charge, Guest, Handler, Input, Wants, read_body};
use crate::log::{Appender, Batch, Log, Placement};
use crate::metrics::{Metrics, OperationLabel};
use crate::wire;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, request};
use hyper::body::Incoming;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// Header by which a Headwater asks GetRecords for the headers and producer numbers of records.
pub const WANTS_HEADERS: &str = "x-headwater-headers";
/// What requests for video are signed for.
const VIDEO_SERVICE: &str = "kinesisvideo";
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
/// Answers up to this are not charged to the budget, in bytes.
const SMALL_ANSWER_BYTES: usize = 4 << 10;
/// Bodies above this are read and checked where that holds up nobody else's connection, in bytes.
const HEAVY_BYTES: usize = 256 << 10;
/// Appenders a connection keeps for its next requests; HTTP/2 may have several under way.
const SPARE_APPENDERS_MAX: usize = 8;

pub struct Door {
    pub log: Log,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub account: Account,
    pub tokens: TokenKey,
    pub budget: Budget,
    /// Answers the paths that are no operation of Kinesis Data Streams: video.
    guest: Option<Arc<dyn Guest>>,
    keys: Keys,
    body: BodyLimits,
    answer_within: Duration,
    gateway: HeaderValue,
    /// Nobody has to sign, but this is for programs on the box and not for pages in its browser.
    closed_to_pages: bool,
}

/// What the door remembers of a connection.
pub struct Session {
    spare: Mutex<Vec<Appender>>,
}

/// What an answer is made of.
struct Answer {
    status: u16,
    content_type: &'static str,
    body: Bytes,
}

impl Door {
    pub fn new(
        config: &ApiConfig,
        log: Log,
        clock: Clock,
        metrics: Arc<Metrics>,
        guest: Option<Arc<dyn Guest>>,
    ) -> Result<Self, KeysError> {
        let keys = Keys::load(&config.access_keys, config.keys_file.as_deref())?;
        Ok(Door {
            tokens: TokenKey::new(log.gateway_id(), &keys),
            gateway: HeaderValue::from_str(log.gateway_id()).unwrap_or(HeaderValue::from_static("?")),
            log,
            clock,
            metrics,
            account: config.account(),
            budget: Budget::new(config.in_flight.0),
            closed_to_pages: keys.is_empty() && !config.insecure_no_signature,
            guest,
            keys,
            body: config.body_limits(),
            answer_within: config.answer_timeout.0,
        })
    }

    pub fn issued(&self) -> Issued {
        Issued::new(self.clock.now(), self.clock.boot_id())
    }

    async fn answer(&self, session: &Session, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let (form, name) = match Form::of(&head) {
            Ok(form) => form.named(),
            Err(answer) => {
                self.count("unknown", answer.status);
                self.metrics.reject("api", "not_an_operation");
                return answer;
            }
        };
        let answer = match self.serve(session, &form, &head, body).await {
            Ok(answer) => answer,
            Err(error) => {
                self.metrics.reject("api", error.kind.wire().2);
                refusal(&error)
            }
        };
        self.count(name, answer.status);
        answer
    }

    /// A request of the guest's paths: who asks is judged here, what for is its matter.
    async fn visit(&self, guest: &dyn Guest, wants: Wants, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        match self.admit(&head, wants, body).await {
            Ok((input, _charge)) => guest.answer(head, input).await,
            Err(error) => {
                let (kind, _, reason) = error.kind.wire();
                self.metrics.reject("api", reason);
                let mut response = respond(refusal(&error));
                response.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static(kind));
                response
            }
        }
    }

    async fn admit(&self, head: &request::Parts, wants: Wants, body: Incoming) -> Result<(Input, Charge), ApiError> {
        let signed = signed(head);
        if wants == Wants::Open {
            return Ok((Input::Whole(Bytes::new()), Charge::default()));
        }
        let claim = match self.keys.is_empty() {
            true => None,
            false => Some(sigv4::claim(&signed, &self.keys, self.clock.now(), VIDEO_SERVICE)?),
        };
        self.turn_pages_away(claim.is_some(), head)?;
        match wants {
            Wants::Stream => {
                // Nobody can sign what has no end: PutMedia signs no body.
                claim.map_or(Ok(()), |claim| claim.prove(&signed, b""))?;
                Ok((Input::Stream(body), Charge::default()))
            }
            Wants::Whole(bytes_max) => {
                let limits = BodyLimits { bytes_max, ..self.body };
                let (body, charge) = read_body(body, limits, &self.budget).await?;
                claim.map_or(Ok(()), |claim| claim.prove(&signed, &body))?;
                Ok((Input::Whole(body), charge))
            }
            Wants::Open => Ok((Input::Whole(Bytes::new()), Charge::default())),
        }
    }

    fn turn_pages_away(&self, is_signed: bool, head: &request::Parts) -> Result<(), ApiError> {
        if !is_signed && self.closed_to_pages && head.headers.contains_key(ORIGIN) {
            // A page in a browser on this box reaches loopback too; no SDK outside of one sends this header.
            return Err(ApiError::new(Kind::AccessDenied, "Requests of web pages are taken only with access keys."));
        }
        Ok(())
    }

    async fn serve(
        &self,
        session: &Session,
        form: &Form,
        head: &request::Parts,
        body: Incoming,
    ) -> Result<Answer, ApiError> {
        let signed = signed(head);
        let claim = match self.keys.is_empty() {
            true => None,
            false => Some(sigv4::claim(&signed, &self.keys, self.clock.now(), sigv4::SERVICE)?),
        };
        self.turn_pages_away(claim.is_some(), head)?;
        let limits = match form {
            Form::Batch => BodyLimits { bytes_max: wire::BODY_BYTES_MAX, ..self.body },
            Form::Blocks => BodyLimits { bytes_max: wire::blocks::BODY_BYTES_MAX, ..self.body },
            Form::Operation(..) => self.body,
        };
        let (body, charge) = read_body(body, limits, &self.budget).await?;
        if let Some(claim) = claim {
            heavy(body.len(), || claim.prove(&signed, &body))?;
        }
        let (codec, run) = match form {
            Form::Batch => return self.batch(session, &body, charge).await,
            Form::Blocks => return self.blocks(session, &body, charge).await,
            Form::Operation(codec, Target::Offered(operation)) => (*codec, operation.run),
            Form::Operation(_, other) => return Err(not_offered(other)),
        };
        if body.is_empty() {
            return Err(ApiError::new(Kind::Serialization, "The request has no body."));
        }
        let wants_headers = head.headers.get(WANTS_HEADERS).is_some_and(|value| value == "1");
        let call = Call { door: self, session, codec, body: &body, charge: Mutex::new(charge), wants_headers };
        let answered = timeout(self.answer_within, run(&call)).await.map_err(|_| too_late())??;
        let body = self.charged(call.take_charge(), answered);
        Ok(Answer { status: 200, content_type: codec.content_type(), body })
    }

    async fn batch(&self, session: &Session, body: &[u8], mut charge: Charge) -> Result<Answer, ApiError> {
        let run = batch::run(self, session, body, &mut charge);
        let answered = timeout(self.answer_within, run).await.map_err(|_| too_late())??;
        Ok(Answer { status: 200, content_type: wire::CONTENT_TYPE, body: answered.into() })
    }

    async fn blocks(&self, session: &Session, body: &Bytes, mut charge: Charge) -> Result<Answer, ApiError> {
        let run = relay::run(self, session, body, &mut charge);
        let answered = timeout(self.answer_within, run).await.map_err(|_| too_late())??;
        Ok(Answer { status: 200, content_type: wire::blocks::CONTENT_TYPE, body: answered.into() })
    }

    /// An answer that is more than a few lines holds its part of the budget until the client has taken it. What was
    /// done is answered in any case: large answers have their charge already, the others are of the size of their request.
    fn charged(&self, mut charge: Charge, answer: Vec<u8>) -> Bytes {
        if answer.len() <= SMALL_ANSWER_BYTES {
            return answer.into();
        }
        let _ = self.budget.try_raise(&mut charge, answer.len());
        charge.lower(answer.len());
        charge.hold(answer)
    }

    fn count(&self, operation: &'static str, status: u16) {
        self.metrics.api_requests.get_or_create(&OperationLabel { operation, status }).inc();
    }
}

impl Handler for Door {
    type Session = Session;

    fn connected(&self) -> Session {
        Session { spare: Mutex::default() }
    }

    fn turned_away(&self) {
        self.metrics.reject("api", "too_many_connections");
    }

    async fn handle(&self, session: &Session, request: Request<Incoming>) -> Response<Body> {
        let wants = |guest: &Arc<dyn Guest>| guest.wants(request.method(), request.uri().path());
        let visit = self.guest.as_ref().and_then(|guest| Some((guest.clone(), wants(guest)?)));
        let mut response = match visit {
            Some((guest, wants)) => self.visit(&*guest, wants, request).await,
            None => respond(self.answer(session, request).await),
        };
        let headers = response.headers_mut();
        headers.insert(HeaderName::from_static("x-amzn-requestid"), request_id());
        headers.insert(HeaderName::from_static(wire::GATEWAY_HEADER), self.gateway.clone());
        headers.insert(HeaderName::from_static(wire::OFFER_HEADER), HeaderValue::from_static(wire::OFFER));
        response
    }
}

impl Session {
    /// Hands a batch in and waits until it is on disk. The requests of an HTTP/1.1 connection come one after the other,
    /// so what a client sends in order is kept in order; requests side by side on HTTP/2 have no order to keep.
    pub async fn commit(&self, log: &Log, batch: &mut Batch) -> Result<Vec<Placement>, ApiError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut appender = spare.unwrap_or_else(|| log.appender());
        // An appender whose group failed, or whose request was given up, is not used again.
        let placements = appender.commit(batch).await?;
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_APPENDERS_MAX {
            spare.push(appender);
        }
        Ok(placements)
    }
}

fn respond(answer: Answer) -> Response<Body> {
    let mut response = Response::new(answer.body.into());
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response
}

/// What a request asks for, by its method and headers.
enum Form {
    /// Headwater's own batch operation: see `wire`.
    Batch,
    /// Whole blocks: see `wire::blocks`.
    Blocks,
    Operation(Codec, Target),
}

impl Form {
    fn of(head: &request::Parts) -> Result<Form, Answer> {
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if head.method != Method::POST {
            return Err(no_operation());
        }
        let content_type = header("content-type").split(';').next().unwrap_or_default().trim();
        if content_type == wire::CONTENT_TYPE {
            return Ok(Form::Batch);
        }
        if content_type == wire::blocks::CONTENT_TYPE {
            return Ok(Form::Blocks);
        }
        let name = header("x-amz-target");
        match Codec::of_content_type(content_type) {
            Some(codec) => Ok(Form::Operation(codec, target(name))),
            None if content_type == "application/json" => Err(Answer {
                status: 404,
                content_type: "application/json",
                body: Bytes::from_static(
                    br#"{"Output":{"__type":"com.amazon.coral.service#UnknownOperationException"},"Version":"1.0"}"#,
                ),
            }),
            None if !name.contains('.') => Err(no_operation()),
            None => Err(Answer {
                status: 404,
                content_type: "application/xml",
                body: Bytes::from_static(b"<UnknownOperationException/>\n"),
            }),
        }
    }

    /// With the operation's name for the metrics: one of a fixed set.
    fn named(self) -> (Form, &'static str) {
        let name = match &self {
            Form::Batch => "HeadwaterBatch",
            Form::Blocks => "HeadwaterBlocks",
            Form::Operation(_, Target::Offered(operation)) => operation.name,
            Form::Operation(_, Target::Known(name)) => name,
            Form::Operation(_, Target::Unknown) => "unknown",
        };
        (self, name)
    }
}

fn no_operation() -> Answer {
    Answer {
        status: 403,
        content_type: "application/xml",
        body: Bytes::from_static(
            b"<AccessDeniedException>\n  <Message>Unable to determine service/operation name to be authorized</Message>\n\
              </AccessDeniedException>\n",
        ),
    }
}

fn not_offered(target: &Target) -> ApiError {
    // AWS says nothing but the type; the sentence is ours.
    let says = match target {
        Target::Known(name) => format!("{name} is not offered by this Headwater yet; docs/kinesis.md lists what is."),
        _ => "X-Amz-Target names no operation of Kinesis_20131202.".to_owned(),
    };
    ApiError::new(Kind::UnknownOperation, says)
}

fn too_late() -> ApiError {
    ApiError::new(
        Kind::ServiceUnavailable,
        "The request could not be completed in time. Whether it took effect is not known.",
    )
}

fn refusal(error: &ApiError) -> Answer {
    let (kind, status, _) = error.kind.wire();
    let (member, says) = (error.kind.message_member(), serde_json::Value::from(error.says.as_str()));
    let body = format!(r#"{{"__type":"{kind}","{member}":{says}}}"#);
    Answer { status, content_type: Codec::Json11.content_type(), body: body.into() }
}

fn signed(head: &request::Parts) -> Signed<'_> {
    Signed {
        method: head.method.as_str(),
        path: head.uri.path(),
        query: head.uri.query(),
        authority: head.uri.authority().map(|authority| authority.as_str()),
        headers: &head.headers as &HeaderMap,
    }
}

/// Runs work that takes longer the more bytes it has; a large piece of it hands this thread's other tasks to another thread.
pub fn heavy<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let threads = || Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
    if bytes > HEAVY_BYTES && threads() { tokio::task::block_in_place(work) } else { work() }
}

/// A random UUID, version 4.
fn request_id() -> HeaderValue {
    let id = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{id:032x}");
    let text = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("?"))
}
