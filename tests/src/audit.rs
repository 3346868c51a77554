//! A fleet that remembers what was acknowledged, and the audit that compares it with what a log holds.
//!
//! Every device counts its messages from 1 and sends them in order over a window. When the connection breaks it comes back
//! and sends again, in order, what was not acknowledged, under the same producer number (promise P3). So in the log each
//! device's numbers must be there up to the last acknowledged one, each once, rising.

use crate::aws::{self, Got};
use crate::mqtt::{Client, Version, kind};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Messages in flight a device.
const WINDOW: usize = 8;

/// What each device was told is on disk: its last acknowledged number, everything below included.
pub type Acked = BTreeMap<String, u64>;

/// Devices publishing in threads of their own until told to stop.
pub struct Fleet {
    stop: Arc<AtomicBool>,
    /// Where the gateway listens; changed when it moves.
    target: Arc<Mutex<SocketAddr>>,
    acked: Vec<(String, Arc<AtomicU64>)>,
    threads: Vec<JoinHandle<()>>,
}

impl Fleet {
    /// `devices` devices, each at most `rate` messages a second, on topic `dev/<name>`.
    pub fn start(target: SocketAddr, devices: usize, rate: u32) -> Fleet {
        let stop = Arc::new(AtomicBool::new(false));
        let target = Arc::new(Mutex::new(target));
        let mut fleet = Fleet { stop, target, acked: Vec::new(), threads: Vec::new() };
        for device in 0..devices {
            let name = format!("device-{device:03}");
            let acked = Arc::new(AtomicU64::new(0));
            fleet.acked.push((name.clone(), acked.clone()));
            let (stop, target) = (fleet.stop.clone(), fleet.target.clone());
            fleet.threads.push(std::thread::spawn(move || Device::new(name, rate, acked).live(&stop, &target)));
        }
        fleet
    }

    pub fn moved_to(&self, target: SocketAddr) {
        *self.target.lock().expect("no device panics with the lock held") = target;
    }

    pub fn acked(&self) -> Acked {
        self.acked.iter().map(|(name, acked)| (name.clone(), acked.load(Ordering::SeqCst))).collect()
    }

    pub fn acked_total(&self) -> u64 {
        self.acked().values().sum()
    }

    /// Waits until every device got `more` acknowledgements more.
    pub fn wait_for_more(&self, more: u64, bound: Duration) {
        let before = self.acked();
        let moved = || self.acked().iter().all(|(name, acked)| *acked >= before[name] + more);
        assert!(crate::tools::eventually(bound, moved), "no progress within {bound:?}: {:?}", self.acked());
    }

    /// Stops sending, waits for what is in flight, and returns what was acknowledged.
    pub fn finish(mut self) -> Acked {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("a device does not panic");
        }
        self.acked()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

struct Device {
    name: String,
    topic: String,
    gap: Duration,
    /// Sent and not acknowledged, oldest first.
    in_flight: VecDeque<u64>,
    next: u64,
    acked: Arc<AtomicU64>,
}

impl Device {
    fn new(name: String, rate: u32, acked: Arc<AtomicU64>) -> Device {
        let topic = format!("dev/{name}");
        let gap = Duration::from_secs(1) / rate.max(1);
        Device { name, topic, gap, in_flight: VecDeque::new(), next: 1, acked }
    }

    fn live(mut self, stop: &AtomicBool, target: &Mutex<SocketAddr>) {
        let mut given_up_at = None;
        loop {
            let stopping = stop.load(Ordering::SeqCst);
            if stopping && self.in_flight.is_empty() {
                return;
            }
            // The last words get a bound: a test may stop a fleet whose gateway is gone.
            let until = *given_up_at.get_or_insert_with(|| Instant::now() + Duration::from_secs(10));
            if !stopping {
                given_up_at = None;
            } else if Instant::now() > until {
                return;
            }
            let addr = *target.lock().expect("no device panics with the lock held");
            if self.connection(addr, stop).is_err() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// One connection's life: again what was in flight, then new ones.
    fn connection(&mut self, addr: SocketAddr, stop: &AtomicBool) -> io::Result<()> {
        let mut client = Client::connect(addr, &self.name, Version::V5)?;
        client.stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut ids = VecDeque::new();
        for number in self.in_flight.clone() {
            ids.push_back((self.send(&mut client, number, true)?, number));
        }
        let mut due = Instant::now();
        while !stop.load(Ordering::SeqCst) || !ids.is_empty() {
            while ids.len() < WINDOW && !stop.load(Ordering::SeqCst) && Instant::now() >= due {
                due += self.gap;
                let number = self.next;
                self.next += 1;
                // Noted before it is sent: a message half sent may be in the log.
                self.in_flight.push_back(number);
                ids.push_back((self.send(&mut client, number, false)?, number));
            }
            if ids.is_empty() {
                std::thread::sleep(due.saturating_duration_since(Instant::now()).min(Duration::from_millis(20)));
                continue;
            }
            self.take_ack(&mut client, &mut ids)?;
        }
        Ok(())
    }

    fn send(&self, client: &mut Client, number: u64, again: bool) -> io::Result<u16> {
        client.send_numbered(&self.topic, payload(&self.name, number).as_bytes(), (1, number), again)
    }

    fn take_ack(&mut self, client: &mut Client, ids: &mut VecDeque<(u16, u64)>) -> io::Result<()> {
        let answer = client.read()?;
        if answer.kind() != kind::PUBACK {
            return Err(io::Error::other(format!("{answer:?} in place of a PUBACK")));
        }
        let (id, number) = ids.pop_front().expect("an answer is read only while one is owed");
        assert_eq!(answer.id(), id, "MQTT-4.6.0-2: PUBACKs come in the order of their PUBLISHes");
        if answer.reason() >= 0x80 {
            return Err(io::Error::other(format!("refused with {:#04x}", answer.reason())));
        }
        assert_eq!(self.in_flight.pop_front(), Some(number));
        self.acked.store(number, Ordering::SeqCst);
        Ok(())
    }
}

/// About 100 bytes of telemetry that name device and number.
pub fn payload(device: &str, number: u64) -> String {
    let value = number.wrapping_mul(2_654_435_761) % 10_000;
    format!(
        r#"{{"device":"{device}","n":{number},"celsius":{}.{:02},"volts":3.{:02},"state":"running"}}"#,
        value / 100,
        value % 100,
        value % 97
    )
}

/// Device and number of a payload of ours.
pub fn parse_payload(data: &[u8]) -> Option<(String, u64)> {
    let value: serde_json::Value = serde_json::from_slice(data).ok()?;
    Some((value["device"].as_str()?.to_owned(), value["n"].as_u64()?))
}

/// What an audit found; all but `stored` must be 0.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub stored: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
}

/// Audits records as they were read, shard after shard, against what was acknowledged.
pub fn audit<'a>(acked: &Acked, records: impl IntoIterator<Item = &'a Got>) -> Verdict {
    let mut tally = Tally::default();
    tally.take(records);
    tally.against(acked)
}

/// What a log holds of each device, in its order. It grows with the log, so that a verdict costs nothing of what was before.
#[derive(Default)]
pub struct Tally {
    devices: BTreeMap<String, Numbers>,
}

#[derive(Default)]
struct Numbers {
    highest: u64,
    /// Below the highest, and not there.
    missing: BTreeSet<u64>,
    stored: u64,
    duplicated: u64,
    reordered: u64,
}

impl Tally {
    pub fn take<'a>(&mut self, records: impl IntoIterator<Item = &'a Got>) {
        for record in records {
            let Some((device, number)) = parse_payload(&record.data) else { continue };
            self.push(device, number);
        }
    }

    /// Numbers count from 1.
    pub fn push(&mut self, device: String, number: u64) {
        let seen = self.devices.entry(device).or_default();
        seen.stored += 1;
        if number > seen.highest {
            seen.missing.extend(seen.highest + 1..number);
            seen.highest = number;
        } else if seen.missing.remove(&number) {
            seen.reordered += 1;
        } else {
            seen.duplicated += 1;
        }
    }

    pub fn against(&self, acked: &Acked) -> Verdict {
        let mut verdict = Verdict::default();
        for numbers in self.devices.values() {
            verdict.stored += numbers.stored;
            verdict.duplicated += numbers.duplicated;
            verdict.reordered += numbers.reordered;
        }
        for (device, last) in acked {
            let absent =
                |seen: &Numbers| seen.missing.range(..=last).count() as u64 + last.saturating_sub(seen.highest);
            verdict.lost += self.devices.get(device).map_or(*last, absent);
        }
        verdict
    }
}

/// Reads a stream over several lives of its gateway: what was read once must stay what it was.
#[derive(Default)]
pub struct Follower {
    shards: BTreeMap<String, Vec<Got>>,
    tally: Tally,
}

impl Follower {
    /// Reads what is new since the last call.
    pub fn follow(&mut self, api: SocketAddr, stream: &str) {
        for shard in aws::shards(api, stream) {
            let known = self.shards.entry(shard.clone()).or_default();
            let after = known.last().map(|got| got.sequence.clone());
            let new = aws::read_shard(api, stream, &shard, after.as_deref());
            self.tally.take(&new);
            known.extend(new);
        }
    }

    pub fn records(&self) -> impl Iterator<Item = &Got> {
        self.shards.values().flatten()
    }

    /// On all that was read so far.
    pub fn audit(&self, acked: &Acked) -> Verdict {
        self.tally.against(acked)
    }

    /// Reads everything again: every record still has its sequence number, and they rise.
    pub fn same_again(&self, api: SocketAddr, stream: &str) {
        for (shard, known) in &self.shards {
            let again = aws::read_shard(api, stream, shard, None);
            assert_eq!(again.len(), known.len(), "{shard} read again");
            for (before, now) in known.iter().zip(&again) {
                assert_eq!(before, now, "{shard}: a record moved or changed");
            }
            let rising = |two: &[Got]| sequence(&two[0]) < sequence(&two[1]);
            assert!(again.windows(2).all(rising), "{shard}: sequence numbers must rise");
        }
    }
}

/// Orders as the number does; 56 digits fit into no integer.
fn sequence(got: &Got) -> (usize, &str) {
    let digits = got.sequence.trim_start_matches('0');
    assert!(digits.bytes().all(|digit| digit.is_ascii_digit()), "{:?} is no sequence number", got.sequence);
    (digits.len(), digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn got(device: &str, number: u64) -> Got {
        Got { sequence: number.to_string(), key: device.into(), data: payload(device, number).into_bytes() }
    }

    #[test]
    fn the_audit_sees_loss_duplicates_and_wrong_order() {
        let acked = Acked::from([("a".to_owned(), 4), ("b".to_owned(), 1)]);
        let good = [got("a", 1), got("b", 1), got("a", 2), got("a", 3), got("a", 4), got("a", 5)];
        assert_eq!(audit(&acked, &good), Verdict { stored: 6, ..Verdict::default() });
        let bad = [got("a", 1), got("a", 3), got("a", 2), got("a", 3)];
        assert_eq!(audit(&acked, &bad), Verdict { stored: 4, lost: 2, duplicated: 1, reordered: 1 });
    }
}
