//! What Kinesis answers, read leniently: the shard map, the fate of each entry, and errors by what is to be done. Pure.

use crate::record::HashKey;
use crate::uplink::map::UpstreamShard;
use crate::uplink::sink::{Answer, Fault, Outcome, Request, Taken};
use crate::wire::Status;
use http::StatusCode;
use serde::Deserialize;
use std::borrow::Cow;

pub struct ShardPage {
    pub open: Vec<UpstreamShard>,
    pub next: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListShards {
    shards: Vec<Shard>,
    next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Shard {
    shard_id: String,
    hash_key_range: HashKeyRange,
    sequence_number_range: SequenceNumberRange,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HashKeyRange {
    starting_hash_key: String,
    ending_hash_key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SequenceNumberRange {
    ending_sequence_number: Option<String>,
}

/// The open shards of one page of ListShards.
pub fn shards(body: &[u8]) -> Result<ShardPage, Fault> {
    let page: ListShards = serde_json::from_slice(body).map_err(not_understood)?;
    let mut open = Vec::new();
    for shard in page.shards.into_iter().filter(|shard| shard.sequence_number_range.ending_sequence_number.is_none()) {
        let range = &shard.hash_key_range;
        let (Ok(from), Ok(to)) = (range.starting_hash_key.parse(), range.ending_hash_key.parse()) else {
            return Err(Fault::Broken(format!("{} has no hash key range", shard.shard_id)));
        };
        open.push(UpstreamShard { id: shard.shard_id, range: (HashKey(from), HashKey(to)) });
    }
    Ok(ShardPage { open, next: page.next_token.filter(|token| !token.is_empty()) })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PutRecords<'a> {
    #[serde(borrow)]
    records: Vec<Entry<'a>>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "PascalCase")]
pub struct Entry<'a> {
    #[serde(borrow)]
    shard_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    error_code: Option<Cow<'a, str>>,
    #[serde(borrow)]
    error_message: Option<Cow<'a, str>>,
}

impl Entry<'_> {
    fn fault(&self) -> Option<Fault> {
        let code = self.error_code.as_deref().filter(|code| !code.is_empty())?;
        Some(fault_of(code, StatusCode::BAD_REQUEST, self.error_message.as_deref().unwrap_or_default()))
    }
}

pub fn put_records(body: &[u8]) -> Result<Vec<Entry<'_>>, Fault> {
    let answer: PutRecords<'_> = serde_json::from_slice(body).map_err(not_understood)?;
    Ok(answer.records)
}

/// One entry a group; an aggregate that landed elsewhere says where. A group that went as single records has one too.
pub fn per_group(request: &Request, entries: &[Entry<'_>]) -> Result<Answer, Fault> {
    expect(entries, request.groups.len())?;
    let mut answer = Answer { outcomes: Vec::with_capacity(entries.len()), map_is_stale: false, whole: None };
    for (group, entry) in request.groups.iter().zip(entries) {
        let expected = request.map.shards().get(group.upstream).map(|shard| shard.id.as_str());
        answer.outcomes.push(match (entry.fault(), entry.shard_id.as_deref()) {
            (Some(fault), _) => Outcome::Failed(fault),
            (None, Some(shard)) if Some(shard) != expected => {
                answer.map_is_stale = true;
                Outcome::Landed(shard.to_owned())
            }
            (None, Some(_)) => Outcome::Stored,
            (None, None) => Outcome::Failed(Fault::Broken("an entry has neither a shard nor an error".into())),
        });
    }
    Ok(answer)
}

/// One entry a record, each on its own.
pub fn per_record(request: &Request, entries: &[Entry<'_>]) -> Result<Answer, Fault> {
    by_group(request, entries, |stored, fault| match fault {
        None => Outcome::Stored,
        Some(fault) if stored.contains(&true) => Outcome::Partly(stored, fault),
        Some(fault) => Outcome::Failed(fault),
    })
}

/// One entry a record, but what of a group was stored before a failure is known to the receiver by its number.
pub fn all_or_nothing(request: &Request, entries: &[Entry<'_>]) -> Result<Answer, Fault> {
    by_group(request, entries, |_, fault| fault.map_or(Outcome::Stored, Outcome::Failed))
}

fn by_group(
    request: &Request,
    entries: &[Entry<'_>],
    outcome: impl Fn(Vec<bool>, Option<Fault>) -> Outcome,
) -> Result<Answer, Fault> {
    expect(entries, request.groups.iter().map(|group| group.records.len()).sum())?;
    let mut answer = Answer { outcomes: Vec::with_capacity(request.groups.len()), map_is_stale: false, whole: None };
    let mut rest = entries;
    for group in &request.groups {
        let (own, others) = rest.split_at(group.records.len());
        rest = others;
        let expected = request.map.shards().get(group.upstream).map(|shard| shard.id.as_str());
        let elsewhere = |entry: &Entry<'_>| entry.shard_id.is_some() && entry.shard_id.as_deref() != expected;
        answer.map_is_stale |= own.iter().any(elsewhere);
        let stored = own.iter().map(|entry| entry.error_code.is_none() && entry.shard_id.is_some()).collect::<Vec<_>>();
        let fault = own.iter().find_map(Entry::fault).or_else(|| {
            stored.contains(&false).then(|| Fault::Broken("an entry has neither a shard nor an error".into()))
        });
        answer.outcomes.push(outcome(stored, fault));
    }
    Ok(answer)
}

/// The statuses of the compact batch.
pub fn statuses(request: &Request, statuses: &[Status]) -> Answer {
    let mut rest = statuses;
    let mut outcomes = Vec::with_capacity(request.groups.len());
    for group in &request.groups {
        let (own, others) = rest.split_at(group.records.len().min(rest.len()));
        rest = others;
        let failed = own.iter().find(|status| !matches!(status, Status::Stored | Status::Duplicate));
        outcomes.push(match failed {
            None => Outcome::Stored,
            Some(Status::Full) => Outcome::Failed(Fault::Throttled),
            Some(Status::Refused) => Outcome::Failed(Fault::Refused("a record of the batch".into())),
            Some(_) => Outcome::Failed(Fault::Broken("it could not store a record".into())),
        });
    }
    Answer { outcomes, map_is_stale: false, whole: None }
}

/// What became of relayed records.
pub fn taken(payload: u64, statuses: &[Status]) -> Taken {
    let is_stored = |status: &Status| matches!(status, Status::Stored | Status::Duplicate);
    match statuses.iter().all(is_stored) {
        true => Taken::All(payload),
        false => Taken::Some(statuses.iter().map(is_stored).collect()),
    }
}

fn expect(entries: &[Entry<'_>], count: usize) -> Result<(), Fault> {
    if entries.len() == count {
        return Ok(());
    }
    Err(Fault::Broken(format!("{} entries in the answer to {count}", entries.len())))
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorBody {
    #[serde(rename = "__type")]
    kind: String,
    message: String,
    #[serde(rename = "Message")]
    framework_message: String,
}

/// What an answer that is no success means.
pub fn fault(status: StatusCode, body: &[u8]) -> Fault {
    let error: ErrorBody = serde_json::from_slice(body).unwrap_or_default();
    let kind = error.kind.rsplit('#').next().unwrap_or_default();
    let message = if error.message.is_empty() { &error.framework_message } else { &error.message };
    fault_of(kind, status, message)
}

pub fn fault_of(kind: &str, status: StatusCode, message: &str) -> Fault {
    let said: String = if kind.is_empty() { status.to_string() } else { format!("{kind}: {message}") };
    let said = said.chars().take(300).collect();
    match kind {
        "ProvisionedThroughputExceededException"
        | "ThrottlingException"
        | "Throttling"
        | "LimitExceededException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException"
        | "KMSThrottlingException" => Fault::Throttled,
        "ValidationException" | "InvalidArgumentException" | "SerializationException" => Fault::Refused(said),
        _ if kind.starts_with("KMS") || kind.starts_with("AccessDenied") || kind.contains("Token") => {
            Fault::denied(&said)
        }
        "UnrecognizedClientException"
        | "IncompleteSignature"
        | "InvalidSignatureException"
        | "IncompleteSignatureException"
        | "SignatureDoesNotMatch"
        | "InvalidClientTokenId"
        | "OptInRequired" => Fault::denied(&said),
        "ResourceNotFoundException" => Fault::Broken(format!("{said} (create the stream there; records are held)")),
        _ => match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Fault::Throttled,
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Fault::denied(&said),
            StatusCode::PAYLOAD_TOO_LARGE => Fault::Refused(said),
            _ => Fault::Broken(said),
        },
    }
}

fn not_understood(error: serde_json::Error) -> Fault {
    Fault::Broken(format!("the answer is not what Kinesis answers: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_shards_are_no_part_of_the_map() {
        let body = br#"{"Shards":[
            {"ShardId":"shardId-000000000000","HashKeyRange":{"StartingHashKey":"0","EndingHashKey":"9"},"SequenceNumberRange":{"StartingSequenceNumber":"1","EndingSequenceNumber":"2"}},
            {"ShardId":"shardId-000000000001","ParentShardId":"x","HashKeyRange":{"StartingHashKey":"0","EndingHashKey":"4"},"SequenceNumberRange":{"StartingSequenceNumber":"3"}}],"NextToken":"n"}"#;
        let page = shards(body).unwrap();
        assert_eq!(page.open.len(), 1);
        assert_eq!((page.open[0].range, page.next.as_deref()), ((HashKey(0), HashKey(4)), Some("n")));
        assert!(shards(b"{}").is_err());
    }

    #[test]
    fn errors_are_sorted_by_what_is_to_be_done() {
        let fault = |status: u16, body: &str| fault(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        let throttled = r#"{"__type":"com.amazonaws.kinesis#ProvisionedThroughputExceededException","message":"slow"}"#;
        assert_eq!(fault(400, throttled), Fault::Throttled);
        assert!(matches!(fault(400, r#"{"__type":"ValidationException","message":"m"}"#), Fault::Refused(_)));
        assert!(matches!(fault(400, r#"{"__type":"SerializationException","Message":"m"}"#), Fault::Refused(_)));
        assert!(matches!(fault(400, r#"{"__type":"ExpiredTokenException","message":"m"}"#), Fault::Denied(_)));
        assert!(matches!(fault(403, ""), Fault::Denied(_)));
        assert!(matches!(fault(500, "<html>"), Fault::Broken(_)));
        assert!(matches!(fault(404, ""), Fault::Broken(_)));
        assert!(matches!(fault(400, r#"{"__type":"ResourceNotFoundException","message":"m"}"#), Fault::Broken(_)));
        assert_eq!(fault(503, ""), Fault::Throttled);
        assert!(matches!(fault(413, ""), Fault::Refused(_)), "it is made smaller, not sent again as it is");
    }

    #[test]
    fn what_a_full_stream_did_not_take_is_not_stored() {
        let stored = [Status::Stored, Status::Duplicate];
        assert_eq!(taken(7, &stored), Taken::All(7));
        for not in [Status::Full, Status::Refused, Status::Failed] {
            assert_eq!(taken(7, &[Status::Stored, not, Status::Duplicate]), Taken::Some(vec![true, false, true]));
        }
    }
}
