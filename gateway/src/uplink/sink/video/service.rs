//! The other side's control plane: where the media of a stream goes, a stream that is made, and how requests are signed.

use super::KinesisVideoConfig;
use crate::uplink::aws::{Aws, KINESIS_VIDEO, trust};
use crate::uplink::http::{Bounds, Duplex, HttpClient, HttpError};
use crate::uplink::sink::kinesis::answer;
use crate::uplink::sink::{Fault, Identity};
use crate::wire;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde::Deserialize;
use tokio::sync::{OnceCell, mpsc};

const ANSWER_BYTES_MAX: usize = 64 << 10;
const USER_AGENT: &str = concat!("headwater/", env!("CARGO_PKG_VERSION"));

pub struct Service {
    config: KinesisVideoConfig,
    target: String,
    who: Identity,
    http: HttpClient,
    aws: OnceCell<Aws>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    data_endpoint: String,
}

impl Service {
    pub fn new(config: &KinesisVideoConfig, who: Identity) -> Service {
        let target = config.target.replace("{stream}", who.stream.as_str());
        let http = HttpClient::new(trust(&config.aws.ca));
        Service { config: config.clone(), target, who, http, aws: OnceCell::new() }
    }

    async fn aws(&self) -> &Aws {
        self.aws.get_or_init(|| async { Aws::find(KINESIS_VIDEO, &self.config.aws, self.http.clone()).await }).await
    }

    /// Where the media of the stream goes; the stream is made if it is missing and may be made.
    async fn data_endpoint(&self) -> Result<String, Fault> {
        let asked = serde_json::json!({ "StreamName": self.target, "APIName": "PUT_MEDIA" });
        match self.ask("getDataEndpoint", &asked).await? {
            Ok(body) => {
                let endpoint: Endpoint = serde_json::from_slice(&body).map_err(|error| {
                    Fault::Broken(format!("the answer to GetDataEndpoint is not understood: {error}"))
                })?;
                Ok(endpoint.data_endpoint)
            }
            Err((kind, fault)) if kind == "ResourceNotFoundException" => match self.config.create {
                true => self.create().await,
                false => Err(Fault::Broken(format!(
                    "{fault}; create the video stream {:?} there, or set create = true",
                    self.target
                ))),
            },
            Err((_, fault)) => Err(fault),
        }
    }

    async fn create(&self) -> Result<String, Fault> {
        let hours = self.config.create_retention.as_ms().div_ceil(3_600_000);
        let asked = serde_json::json!({ "StreamName": self.target, "DataRetentionInHours": hours });
        match self.ask("createStream", &asked).await? {
            // It may take a moment until it is there: the next try finds out.
            Ok(_) => Err(Fault::Broken(format!("the stream {:?} is being made there", self.target))),
            Err((_, fault)) => Err(fault),
        }
    }

    /// Asks an operation of the control plane: the answer's body, or the error's name and what it means.
    async fn ask(&self, operation: &str, body: &serde_json::Value) -> Result<Result<Bytes, (String, Fault)>, Fault> {
        let aws = self.aws().await;
        let address = format!("{}/{operation}", aws.endpoint.trim_end_matches('/'));
        let body = Bytes::from(body.to_string());
        let request = Request::post(address).header(http::header::CONTENT_TYPE, "application/json");
        let request = self.signed(request, &body).await?.map(|()| body);
        let bounds = Bounds { within: self.config.timeout.0, answer_bytes_max: ANSWER_BYTES_MAX };
        let response = self.http.send(request, bounds).await.map_err(fault_of)?;
        self.is_not_us(&response)?;
        if response.status().is_success() {
            return Ok(Ok(response.into_body()));
        }
        let (kind, fault) = refusal(response.status(), error_type(&response), response.body());
        if matches!(fault, Fault::Denied(_)) {
            aws.forget_credentials().await;
        }
        Ok(Err((kind, fault)))
    }

    /// Begins PutMedia: the exchange, and where its body goes in. `start_ms` is the time of the first fragment.
    pub async fn put_media(&self, start_ms: i64) -> Result<(Duplex, mpsc::Sender<Bytes>), Fault> {
        let endpoint = self.data_endpoint().await?;
        let start = format!("{}.{:03}", start_ms.div_euclid(1000), start_ms.rem_euclid(1000));
        let request = Request::post(format!("{}/putMedia", endpoint.trim_end_matches('/')))
            .header("x-amzn-stream-name", &self.target)
            .header("x-amzn-fragment-timecode-type", "ABSOLUTE")
            .header("x-amzn-producer-start-timestamp", start);
        // The body is not known yet: the signature is made over an empty one.
        let request = self.signed(request, b"").await?;
        self.http.duplex(request).await.map_err(fault_of)
    }

    async fn signed(&self, request: http::request::Builder, body: &[u8]) -> Result<Request<()>, Fault> {
        let aws = self.aws().await;
        let mut request = request.header(http::header::USER_AGENT, USER_AGENT);
        if aws.signs() {
            request = request.header("x-amz-content-sha256", reqsign_core::hash::hex_sha256(body));
        }
        let request = request.body(()).map_err(|error| Fault::Broken(error.to_string()))?;
        let (mut head, ()) = request.into_parts();
        if let Err(error) = aws.sign(&mut head).await {
            aws.forget_credentials().await;
            return Err(Fault::Denied(format!("has no usable credentials: {error}")));
        }
        Ok(Request::from_parts(head, ()))
    }

    /// The same for an answer to PutMedia that is no 200.
    pub async fn refused<T>(&self, response: &Response<T>, body: &[u8]) -> Fault {
        let (_, fault) = refusal(response.status(), error_type(response), body);
        if matches!(fault, Fault::Denied(_)) {
            self.aws().await.forget_credentials().await;
        }
        fault
    }

    fn is_not_us<T>(&self, response: &Response<T>) -> Result<(), Fault> {
        let gateway = response.headers().get(wire::GATEWAY_HEADER).and_then(|value| value.to_str().ok());
        if gateway == Some(self.who.gateway.as_str()) && self.target == self.who.stream.as_str() {
            return Err(Fault::Denied("the endpoint is this gateway's own stream: video would go in circles".into()));
        }
        Ok(())
    }
}

/// The error's name, as REST answers carry it: `ResourceNotFoundException:http://...`.
fn error_type<T>(response: &Response<T>) -> &str {
    let value = response.headers().get("x-amzn-errortype").and_then(|value| value.to_str().ok());
    value.and_then(|value| value.split(':').next()).unwrap_or_default()
}

fn refusal(status: StatusCode, kind: &str, body: &[u8]) -> (String, Fault) {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let message = ["Message", "message"].iter().find_map(|key| body[*key].as_str()).unwrap_or_default();
    let fault = match (kind, answer::fault_of(kind, status, message)) {
        ("NotAuthorizedException", _) => Fault::denied(message),
        ("ClientLimitExceededException" | "ConnectionLimitExceededException", _) => Fault::Throttled,
        // No single fragment was refused.
        (_, Fault::Refused(why)) => Fault::Broken(why),
        (_, fault) => fault,
    };
    (kind.to_owned(), fault)
}

pub fn fault_of(error: HttpError) -> Fault {
    match error {
        HttpError::Absent { .. } => Fault::Absent(error.to_string()),
        HttpError::Connect { .. } | HttpError::Address(_) => Fault::Unreachable(error.to_string()),
        _ => Fault::Broken(error.to_string()),
    }
}
