//! The command line as a client of Kinesis itself: endpoint, region and credentials as every AWS tool finds them. It is for
//! reading alone, for what it asks may be asked twice.

use super::client::{ANSWER_BYTES_MAX, CALL_TIMEOUT};
use crate::uplink::aws::{Aws, AwsConfig, KINESIS, trust};
use crate::uplink::http::{Bounds, HttpClient, HttpError};
use anyhow::{Result, anyhow};
use bytes::Bytes;
use http::Request;
use reqsign_core::hash::hex_sha256;
use std::time::Duration;

/// How often a call that broke is made.
const ATTEMPTS_MAX: u32 = 4;
/// Pause before the second attempt; it doubles.
const PAUSE: Duration = Duration::from_millis(200);

pub struct Kinesis {
    aws: Aws,
    http: HttpClient,
}

impl Kinesis {
    pub async fn find(config: &AwsConfig) -> Self {
        let http = HttpClient::new(trust(&None));
        Kinesis { aws: Aws::find(KINESIS, config, http.clone()).await, http }
    }

    pub fn endpoint(&self) -> &str {
        &self.aws.endpoint
    }

    /// Status and body of the answer to one operation.
    pub async fn ask(&self, operation: &str, body: Bytes) -> Result<(u16, Bytes)> {
        for attempt in 1.. {
            match self.ask_once(operation, body.clone()).await? {
                Ok((status, answer)) if status < 500 || attempt == ATTEMPTS_MAX => return Ok((status, answer)),
                Err(error @ HttpError::Address(_)) => return Err(error.into()),
                Err(error) if attempt == ATTEMPTS_MAX => {
                    let endpoint = &self.aws.endpoint;
                    return Err(anyhow!("{endpoint}: {error}; is AWS_REGION or AWS_ENDPOINT_URL the right one?"));
                }
                _ => tokio::time::sleep(PAUSE * 2u32.pow(attempt)).await,
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn ask_once(&self, operation: &str, body: Bytes) -> Result<Result<(u16, Bytes), HttpError>> {
        let request = Request::post(format!("{}/", self.aws.endpoint.trim_end_matches('/')))
            .header("content-type", "application/x-amz-json-1.1")
            .header("user-agent", concat!("headwater/", env!("CARGO_PKG_VERSION")))
            .header("x-amz-target", format!("Kinesis_20131202.{operation}"))
            .header("x-amz-content-sha256", hex_sha256(&body))
            .body(body)?;
        let (mut head, body) = request.into_parts();
        self.aws.sign(&mut head).await.map_err(|error| {
            anyhow!("no usable credentials: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
        })?;
        let bounds = Bounds { within: CALL_TIMEOUT, answer_bytes_max: ANSWER_BYTES_MAX };
        let sent = self.http.send(Request::from_parts(head, body), bounds).await;
        Ok(sent.map(|answer| (answer.status().as_u16(), answer.into_body())))
    }
}
