//! One exchange that goes both ways at once: the answer is read while the request's body is still being sent.
//!
//! A connection of its own, never kept for others: it ends with the exchange, and dropping the [`Duplex`] breaks it at once.

use super::{Connection, HttpClient, HttpError, Place, origin_form};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Pieces of a body that nobody has taken yet.
const PIECES_MAX: usize = 1;

/// A body that is made while it is sent; it ends when its sender is dropped.
struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

pub struct Duplex {
    connection: Connection<Pieces>,
    request: Request<Pieces>,
}

/// The answer, as it comes.
pub struct Answering {
    _connection: Connection<Pieces>,
    body: Incoming,
}

impl HttpClient {
    /// Connects for one exchange; the request's body goes into the sender.
    pub async fn duplex(&self, request: Request<()>) -> Result<(Duplex, mpsc::Sender<Bytes>), HttpError> {
        let place = Place::of(request.uri())?;
        let connection = self.connect(&place).await?;
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let request = origin_form(request.map(|()| Pieces(pieces)), &place);
        Ok((Duplex { connection, request }, sender))
    }
}

impl Duplex {
    /// Sends the head and waits for the answer's; the body goes on behind it.
    pub async fn answer(mut self) -> Result<Response<Answering>, HttpError> {
        let answered = self.connection.sender.send_request(self.request).await;
        let response = answered.map_err(|error| HttpError::Broken(error.to_string()))?;
        Ok(response.map(|body| Answering { _connection: self.connection, body }))
    }
}

impl Answering {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| HttpError::Broken(error.to_string()))?;
            match frame.into_data() {
                Ok(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                _ => {}
            }
        }
        Ok(None)
    }
}
