//! Video on the AWS port: from a path to its operation.

use super::Media;
use super::op::{self, BODY_BYTES_MAX, Call, PUT_MEDIA_PATH};
use super::sessions;
use super::shape::{Kind, Refusal};
use crate::http::{Answering, Body, Guest, Input, Wants};
use http::{Method, Response, request};
use tokio::sync::OwnedSemaphorePermit;

/// Video as a guest of the AWS port.
pub struct AwsDoor(pub Media);

impl Guest for AwsDoor {
    fn wants(&self, method: &Method, path: &str) -> Option<Wants> {
        let sends = matches!(*method, Method::POST | Method::PUT);
        if sends && (path == PUT_MEDIA_PATH || plain_stream(path).is_some()) {
            return Some(Wants::Stream);
        }
        if sessions::is_page(method, path) {
            return Some(Wants::Open);
        }
        let known = op::operation(path).is_some() || op::refused(path).is_some();
        (*method == Method::POST && known).then_some(Wants::Whole(BODY_BYTES_MAX))
    }

    fn answer(&self, head: request::Parts, input: Input) -> Answering<'_> {
        Box::pin(async move {
            if let Some(page) = self.0.session_page(&head).await {
                return page;
            }
            let answered = self.run(&head, input).await;
            answered.unwrap_or_else(|refusal| {
                self.0.inner.metrics.reject("video", refusal.kind.label());
                refusal.response()
            })
        })
    }
}

impl AwsDoor {
    async fn run(&self, head: &request::Parts, input: Input) -> Result<Response<Body>, Refusal> {
        let path = head.uri.path();
        match (input, plain_stream(path), op::operation(path)) {
            (Input::Stream(body), Some(name), _) => op::post_media(&self.0, name, body).await,
            (Input::Stream(body), None, _) => op::put_media(&self.0, &head.headers, body).await,
            (Input::Whole(body), _, Some(operation)) => {
                tracing::debug!(service = operation.service, operation = operation.name, "asked");
                let call = Call { media: &self.0, headers: &head.headers, body: &body };
                (operation.run)(&call).await
            }
            (Input::Whole(_), _, None) => {
                let unknown = || Refusal::new(Kind::UnknownOperation, "There is no such operation");
                Err(op::refused(path).unwrap_or_else(unknown))
            }
        }
    }
}

/// `cam` in `/streams/cam/media`.
fn plain_stream(path: &str) -> Option<&str> {
    path.strip_prefix("/streams/")?.strip_suffix("/media").filter(|name| !name.is_empty() && !name.contains('/'))
}

impl Media {
    pub(super) fn producer_place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let place = self.inner.producers.clone().try_acquire_owned();
        place.map_err(|_| Refusal::new(Kind::ConnectionLimitExceeded, "Too many producers: see video.max_producers"))
    }
}
