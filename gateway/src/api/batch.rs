//! Headwater's own batch operation: what an uplink sends instead of PutRecords when it has met another Headwater.
//!
//! The form is `wire`'s; the rules are those of PutRecords: answered after the commit, results in the order of the
//! records, refused one by one.

use super::door::{Door, Session, heavy};
use super::error::{ApiError, Kind};
use crate::log::{Batch, Placement, PushError};
use crate::wire::{self, Status};

pub async fn run(door: &Door, session: &Session, body: &[u8]) -> Result<Vec<u8>, ApiError> {
    let (mut batch, taken) = heavy(body.len() * 4, || fill(door, body))?;
    let mut placements = session.commit(&door.log, &mut batch).await?.into_iter();
    let statuses: Vec<_> = taken
        .into_iter()
        .map(|taken| match taken.then(|| placements.next()) {
            None => Status::Refused,
            Some(Some(placement)) => status(&placement),
            Some(None) => Status::Failed,
        })
        .collect();
    Ok(wire::encode_answer(&statuses))
}

pub fn status(placement: &Placement) -> Status {
    match placement {
        Placement::Stored { .. } => Status::Stored,
        Placement::Duplicate { .. } => Status::Duplicate,
        Placement::Full { .. } => Status::Full,
    }
}

/// The batch for the log, and for each record sent whether it is in it: one that the log does not take is refused alone.
fn fill(door: &Door, body: &[u8]) -> Result<(Batch, Vec<bool>), ApiError> {
    let sent = wire::decode(body).map_err(|error| ApiError::new(Kind::Serialization, error.to_string()))?;
    let name = sent.stream.as_str();
    let stream = door.log.stream(name).filter(|stream| !stream.is_deleted());
    let stream = stream.ok_or_else(|| door.account.stream_not_found(name))?;
    let mut batch = Batch::new();
    let mut taken = Vec::with_capacity(sent.records.len());
    for record in &sent.records {
        match batch.push(&stream, &record.as_new()) {
            Err(PushError::Deleted) => return Err(door.account.stream_not_found(name)),
            pushed => taken.push(pushed.is_ok()),
        }
    }
    Ok((batch, taken))
}
