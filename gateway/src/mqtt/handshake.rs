//! From the first byte to CONNACK: who is it, may it come in, and has its earlier connection left?

use super::access::Who;
use super::buffers::Input;
use super::codec::{Connect, DecodeError, Packet, PacketId, Reason, Version, decode, frame, write};
use super::memory::Memory;
use super::registry::Seat;
use super::session::{Accepted, accept};
use super::shared::Shared;
use super::{inlet, wills};
use crate::log::Table;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest CONNECT, in bytes: nobody has been let in yet, so it is not what a packet may have later.
const CONNECT_BYTES_MAX: usize = 64 << 10;
/// A refusal is written within this, or not at all.
const REFUSAL_WITHIN: Duration = Duration::from_secs(1);

/// A connection that has been let in, before its CONNACK is written.
pub struct Welcome {
    pub accepted: Accepted,
    pub who: Who,
    pub seat: Seat,
    /// QoS 2 identifiers left by an earlier connection.
    pub kept: Vec<PacketId>,
    pub session_present: bool,
    /// Whether QoS 2 identifiers are to outlive this connection.
    pub keeps: bool,
    /// Whether there is an entry of this client in `Table::Sessions`.
    pub on_disk: bool,
    pub owner: u64,
    /// For a will that needs some.
    pub will_room: wills::Room,
}

/// Why a connection was not let in. `None`: it left by itself, or has no claim to an answer.
pub struct Refusal {
    pub answer: Option<(Version, Reason)>,
    pub label: &'static str,
    pub says: &'static str,
}

impl Refusal {
    fn silent(label: &'static str, says: &'static str) -> Self {
        Refusal { answer: None, label, says }
    }
    fn told(version: Version, reason: Reason, says: &'static str) -> Self {
        Refusal { answer: Some((version, reason)), label: reason.label(), says }
    }
}

/// Lets a client in, or says why not, within the bound for it. `identity`: what a client certificate said.
pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    input: &mut Input,
    shared: &Shared,
    identity: Option<String>,
    serial: u64,
) -> Result<Welcome, Refusal> {
    let bounded = tokio::time::timeout(shared.connect_within, greet(stream, input, shared, identity, serial)).await;
    let refusal = match bounded {
        Ok(Ok(welcome)) => return Ok(welcome),
        Ok(Err(refusal)) => refusal,
        Err(_) => Refusal::silent("connect_late", "no CONNECT in time"),
    };
    if let Some((version, reason)) = refusal.answer {
        let mut out = Vec::new();
        write::connack_refused(&mut out, version, reason);
        let said = async { stream.write_all(&out).await.is_ok() && stream.shutdown().await.is_ok() };
        let _ = tokio::time::timeout(REFUSAL_WITHIN, said).await;
    }
    Err(refusal)
}

/// Answers the CONNECT of a client that there is no place for. Whoever does not send one at once is not answered.
pub async fn turn_away<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, reason: Reason, memory: Arc<Memory>) {
    let told = async {
        let mut input = Input::new(memory.hello.clone());
        let (body, end) = read_first(&mut stream, &mut input).await.ok()?;
        let Ok(Packet::Connect(connect)) = decode(Version::V4, input.filled()[0], &input.filled()[body..end]) else {
            return None;
        };
        let mut out = Vec::new();
        write::connack_refused(&mut out, connect.version, reason);
        stream.write_all(&out).await.ok()?;
        stream.shutdown().await.ok()
    };
    let _ = tokio::time::timeout(REFUSAL_WITHIN, told).await;
}

async fn greet<S: AsyncRead + Unpin>(
    stream: &mut S,
    input: &mut Input,
    shared: &Shared,
    identity: Option<String>,
    serial: u64,
) -> Result<Welcome, Refusal> {
    let (body, end) = read_first(stream, input).await?;
    // The packet is taken out of the buffer so that what came behind it can stay there.
    let packet = input.filled()[..end].to_vec();
    input.consume(end);
    let connect = match decode(Version::V4, packet[0], &packet[body..]) {
        Ok(Packet::Connect(connect)) => connect,
        // [MQTT-3.1.0-1] the first packet is a CONNECT.
        Ok(_) => return Err(Refusal::silent("protocol_error", "the first packet is not CONNECT")),
        // [MQTT-3.1.2-2]; the four bytes of 3.1.1 are what older clients read.
        Err(DecodeError::Version) => {
            return Err(Refusal::told(Version::V4, Reason::UnsupportedProtocolVersion, "neither MQTT 3.1.1 nor 5"));
        }
        Err(error) => return Err(malformed(&packet[body..], error)),
    };
    let fresh_id = || format!("auto-{:016x}{serial:x}", fastrand::u64(..));
    let accepted = accept(&connect, &shared.limits, fresh_id)
        .map_err(|reason| Refusal::told(connect.version, reason, "CONNECT asks for what is not offered"))?;
    let identity = authenticate(&connect, shared, identity).await?;
    let who = Who { identity, client_id: accepted.client_id.clone() };
    let will_room = judge_will(&accepted, &who, shared)
        .map_err(|reason| Refusal::told(connect.version, reason, "its last will would not be taken"))?;
    let seat = shared
        .registry
        .sit(&accepted.client_id, who.identity.as_deref(), serial, shared.connect_within)
        .await
        .map_err(|reason| Refusal::told(connect.version, reason, "the client id is in use"))?;
    shared.wills.client_is_back(&who, accepted.clean).await;
    resume(shared, accepted, who, seat, will_room).await
}

/// A will that could not be published is refused while there is somebody to tell (3.2.2.2: 0x87, 0x90).
fn judge_will(accepted: &Accepted, who: &Who, shared: &Shared) -> Result<wills::Room, Reason> {
    let Some(will) = &accepted.will else { return Ok(None) };
    inlet::may_publish(&will.topic, who, shared.around())?;
    shared.wills.room(will).map_err(|()| Reason::QuotaExceeded)
}

/// Body and end of the first packet, once it is whole.
async fn read_first<S: AsyncRead + Unpin>(stream: &mut S, input: &mut Input) -> Result<(usize, usize), Refusal> {
    loop {
        if let Some(first) = input.filled().first()
            && first >> 4 != 1
        {
            return Err(Refusal::silent("protocol_error", "the first packet is not CONNECT"));
        }
        match frame(input.filled(), CONNECT_BYTES_MAX) {
            Ok(Some(frame)) => return Ok((frame.body, frame.end)),
            Ok(None) => {}
            Err(error) => return Err(Refusal::silent(error.reason().label(), "the first packet is not a CONNECT")),
        }
        if input.prepare().is_none() {
            return Err(Refusal::silent("busy", "too many large CONNECT packets at once"));
        }
        match stream.read(input.space()).await {
            Ok(0) | Err(_) => return Err(Refusal::silent("connect_left", "it left before its CONNECT")),
            Ok(count) => input.filled_more(count),
        }
    }
}

/// Only MQTT 5 has reasons for it [MQTT-3.1.4-1], and it must have said that it is MQTT 5.
fn malformed(body: &[u8], error: DecodeError) -> Refusal {
    let reason = error.reason();
    match body.starts_with(b"\x00\x04MQTT\x05") {
        true => Refusal::told(Version::V5, reason, "CONNECT is malformed"),
        false => Refusal::silent(reason.label(), "CONNECT is malformed"),
    }
}

async fn authenticate(
    connect: &Connect<'_>,
    shared: &Shared,
    certificate: Option<String>,
) -> Result<Option<String>, Refusal> {
    match (certificate, &shared.users) {
        (Some(name), _) => Ok(Some(name)),
        (None, None) => Ok(None),
        (None, Some(users)) => match users.verify(connect.user_name, connect.password).await {
            Ok(name) => Ok(Some(name)),
            Err(reason) => Err(Refusal::told(connect.version, reason, "user name and password are not right")),
        },
    }
}

/// Takes up what an earlier session left, or clears it away [MQTT-3.1.2-4], [MQTT-3.1.2-5].
async fn resume(
    shared: &Shared,
    accepted: Accepted,
    who: Who,
    seat: Seat,
    will_room: wills::Room,
) -> Result<Welcome, Refusal> {
    let owner = xxhash_rust::xxh3::xxh3_64(who.identity.as_deref().unwrap_or("").as_bytes());
    let key = accepted.client_id.as_bytes();
    let found = shared.kept(&accepted.client_id);
    let mut on_disk = shared.log.state(Table::Sessions, key).is_some();
    let now_ms = shared.clock.now().wall_ms;
    // What another identity left under this client id is neither ours to use nor to clear away.
    let foreign = found.as_ref().is_some_and(|kept| kept.owner != owner && !kept.is_stale(now_ms));
    let kept = found.filter(|kept| !accepted.clean && kept.owner == owner && !kept.is_stale(now_ms));
    if on_disk && !foreign && (kept.is_none() || !accepted.is_persistent()) {
        let mut batch = crate::log::Batch::new();
        batch.put_state(Table::Sessions, key.to_vec(), None);
        let cleared = shared.log.appender().commit(&mut batch).await;
        cleared.map_err(|_| Refusal::told(accepted.version, Reason::ServerUnavailable, "the log takes nothing now"))?;
        shared.kept_clients.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        on_disk = false;
    }
    let session_present = kept.as_ref().is_some_and(|kept| !kept.subscribed);
    let kept = kept.map_or(Vec::new(), |kept| kept.ids);
    let keeps = accepted.is_persistent() && !foreign;
    Ok(Welcome { accepted, who, seat, kept, session_present, keeps, on_disk, owner, will_room })
}
