//! The body of an answer: bytes that are there, or bytes that come while it is being sent.
//!
//! A stream is a bounded queue. Whoever fills it learns from [`Stream::send`] that the client takes nothing for so long that
//! it is given up, or is gone. While a stream is being filled its connection is busy, and is not closed for being idle; what
//! is left in the queue then is an answer like any other, and a client that does not read it loses its connection.

use super::Busy;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// Pieces of a stream that wait for the client.
const PIECES_MAX: usize = 4;
/// A client that takes no piece for so long is given up.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Body(Form);

#[derive(Debug)]
enum Form {
    /// `None` once it was taken.
    Whole(Option<Bytes>),
    Stream {
        pieces: mpsc::Receiver<Bytes>,
        filling: Arc<Filling>,
    },
}

/// The end of a streaming body that is filled. The body ends when it is dropped.
#[derive(Debug)]
pub struct Stream {
    pieces: mpsc::Sender<Bytes>,
    filling: Arc<Filling>,
}

/// What the two ends of a stream know of each other.
#[derive(Debug, Default)]
struct Filling(Mutex<Fill>);

#[derive(Debug, Default)]
struct Fill {
    busy: Option<Busy>,
    ended: bool,
    /// Why it ended before it was whole.
    why: Option<io::Error>,
}

impl Filling {
    fn lock(&self) -> MutexGuard<'_, Fill> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client is gone, or does not read")]
pub struct Gone;

impl Body {
    pub fn stream() -> (Stream, Body) {
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let filling = Arc::new(Filling::default());
        (Stream { pieces: sender, filling: filling.clone() }, Body(Form::Stream { pieces, filling }))
    }

    /// Bytes that are there already.
    pub fn bytes_there(&self) -> usize {
        match &self.0 {
            Form::Whole(bytes) => bytes.as_ref().map_or(0, Bytes::len),
            Form::Stream { .. } => 0,
        }
    }

    /// Bytes that hold something until the last of them is sent. What a stream holds is the matter of whoever fills it.
    pub fn holding(self, what: impl Send + 'static) -> Body {
        struct Held<T>(Bytes, T);
        impl<T> AsRef<[u8]> for Held<T> {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        match self.0 {
            Form::Whole(Some(bytes)) => Bytes::from_owner(Held(bytes, what)).into(),
            form => Body(form),
        }
    }

    /// Bytes that are not sent before they are all there count as an answer made; a stream goes on being one.
    pub(super) fn keep(&mut self, of: Busy) {
        if let Form::Stream { filling, .. } = &self.0 {
            let mut fill = filling.lock();
            if !fill.ended {
                fill.busy = Some(of);
            }
        }
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Body {
        Body(Form::Whole(Some(bytes.into()).filter(|bytes| !bytes.is_empty())))
    }
}

impl Stream {
    /// Waits until there is room. Never for long: see [`Gone`].
    pub async fn send(&self, bytes: impl Into<Bytes>) -> Result<(), Gone> {
        self.pieces.send_timeout(bytes.into(), TAKEN_WITHIN).await.map_err(|_| Gone)
    }

    /// Ends the body so that the client sees, behind what was sent, that it is not whole.
    pub fn break_off(self, why: impl Into<Box<dyn Error + Send + Sync>>) {
        self.filling.lock().why = Some(io::Error::other(why));
    }

    /// Returns when nobody wants the rest. Cancel-safe.
    pub async fn gone(&self) {
        self.pieces.closed().await;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut fill = self.filling.lock();
        (fill.ended, fill.busy) = (true, None);
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.get_mut().0 {
            Form::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Form::Stream { pieces, filling } => pieces.poll_recv(cx).map(|piece| match piece {
                Some(piece) => Some(Ok(Frame::data(piece))),
                None => filling.lock().why.take().map(Err),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Form::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Form::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Form::Stream { .. } => SizeHint::default(),
        }
    }
}
