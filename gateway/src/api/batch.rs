//! Headwater's own batch operation: what an uplink sends instead of PutRecords when it has met another Headwater.
//!
//! The form is `wire`'s; the rules are those of PutRecords: answered after the commit, results in the order of the
//! records, refused one by one.

use super::door::{Door, Session, heavy};
use super::error::{ApiError, Kind};
use crate::http::Charge;
use crate::log::{Batch, Placement, PushError};
use crate::wire::{self, BatchReader, Status, WireError};

/// What zstd makes of telemetry at best; a batch that unpacks to more is charged for as much as one may.
const RATIO_LIKELY: usize = 12;

pub async fn run(door: &Door, session: &Session, body: &[u8], charge: &mut Charge) -> Result<Vec<u8>, ApiError> {
    let sent = unpack(door, body, charge).await?;
    let (mut batch, taken) = heavy(body.len() * 4, || fill(door, sent))?;
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

/// The batch unpacked, charged with what it is and what it becomes.
async fn unpack(door: &Door, body: &[u8], charge: &mut Charge) -> Result<BatchReader, ApiError> {
    let mut most = body.len().saturating_mul(RATIO_LIKELY).min(wire::BATCH_BYTES_MAX);
    let whole = loop {
        door.budget.raise(charge, body.len() + most).await?;
        match heavy(most, || wire::inflate(body, most)) {
            Err(_) if most < wire::BATCH_BYTES_MAX => most = wire::BATCH_BYTES_MAX,
            inflated => break inflated.map_err(malformed)?,
        }
    };
    let length = whole.len();
    let sent = BatchReader::open(whole).map_err(malformed)?;
    door.budget.raise(charge, body.len() + length + sent.log_bytes_max()).await?;
    Ok(sent)
}

fn malformed(error: WireError) -> ApiError {
    ApiError::new(Kind::Serialization, error.to_string())
}

/// The batch for the log, and for each record sent whether it is in it: one that the log does not take is refused alone.
fn fill(door: &Door, sent: BatchReader) -> Result<(Batch, Vec<bool>), ApiError> {
    let stream = sent.stream.clone();
    let name = stream.as_str();
    let stream = door.log.stream(name).filter(|stream| !stream.is_deleted());
    let stream = stream.ok_or_else(|| door.account.stream_not_found(name))?;
    let mut batch = Batch::new();
    let mut taken = Vec::with_capacity(sent.left());
    for record in sent {
        let record = record.map_err(malformed)?;
        match batch.push(&stream, &record.as_new()) {
            Err(PushError::Deleted) => return Err(door.account.stream_not_found(name)),
            pushed => taken.push(pushed.is_ok()),
        }
    }
    Ok((batch, taken))
}
