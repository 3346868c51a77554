//! A producer's fragments into the log: a record each, or several in a row, and word of it when they are on disk.
//!
//! One keeper a producer; the fragments of a stream come one after the other, whoever sends them, so that the parts of one
//! have nothing between them.

use super::intake::Ready;
use crate::log::{AppendError, Appender, Batch, Log, Placement, PushError, Stream, Ticket};
use crate::record::{Header, HeaderId, NewRecord, Number};
use crate::wire::media::{Media, PART_BYTES_MAX};
use std::sync::Arc;
use tokio::sync::Mutex;

#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error("the stream is full and takes nothing")]
    Full,
    #[error(transparent)]
    Push(#[from] PushError),
}

pub struct Keeper {
    appender: Appender,
    stream: Arc<Stream>,
    turn: Arc<Mutex<HandedIn>>,
}

/// The last number of a stream that any keeper has handed in. Held while a fragment's parts go in: see the module.
pub type HandedIn = Number;

impl Keeper {
    pub fn new(log: &Log, stream: Arc<Stream>, turn: Arc<Mutex<HandedIn>>) -> Keeper {
        Keeper { appender: log.appender(), stream, turn }
    }

    /// Hands fragments in; returns their numbers, long before they are durable.
    pub async fn put(&mut self, fragments: &[Ready]) -> Result<(Ticket, Vec<Number>), KeepError> {
        let mut batch = Batch::new();
        let mut firsts = Vec::with_capacity(fragments.len());
        for ready in fragments {
            firsts.push(batch.len());
            push(&mut batch, &self.stream, ready)?;
        }
        let mut handed_in = self.turn.lock().await;
        let (ticket, placements) = self.appender.append(&mut batch).await?;
        if let Some(Placement::Stored { number, .. }) = placements.last() {
            *handed_in = *number;
        }
        drop(handed_in);
        let number = |at: usize| match placements.get(at) {
            Some(Placement::Stored { number, .. }) => Ok(*number),
            _ => Err(KeepError::Full),
        };
        Ok((ticket, firsts.into_iter().map(number).collect::<Result<_, _>>()?))
    }

    /// What was handed in up to now, durable or not, by whomever.
    pub async fn handed_in(&self) -> Number {
        *self.turn.lock().await
    }

    pub async fn durable(&mut self, ticket: Ticket) -> Result<(), KeepError> {
        Ok(self.appender.durable(ticket).await?)
    }

    /// Waits until more than `than` is durable. Cancel-safe.
    pub async fn progress(&mut self, than: Ticket) -> Result<Ticket, KeepError> {
        Ok(self.appender.progress(than).await?)
    }
}

/// The records of a fragment.
pub fn push(batch: &mut Batch, stream: &Arc<Stream>, ready: &Ready) -> Result<(), PushError> {
    let mut headers = vec![ready.media.header(), Header::new(HeaderId::ContentType, &b"video/x-matroska"[..])];
    headers.extend(ready.tags.iter().map(|(name, value)| Header::user(name, value)));
    for (part, data) in ready.bytes.chunks(PART_BYTES_MAX).enumerate() {
        headers[0] = Media { part: part as u8, ..ready.media }.header();
        batch.push(
            stream,
            &NewRecord { key: stream.name.as_str().as_bytes(), headers: &headers, data, ..Default::default() },
        )?;
        headers.truncate(2);
    }
    Ok(())
}
