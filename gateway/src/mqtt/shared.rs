//! What all connections of the MQTT door share.

use super::access::Access;
use super::auth::Users;
use super::burst::Bursts;
use super::bus::Bus;
use super::chunks::ChunkDoor;
use super::codec::Reason;
use super::config::MqttConfig;
use super::devices::Devices;
use super::inlet::Around;
use super::memory::Memory;
use super::registry::Registry;
use super::route::Routes;
use super::session::{Kept, Limits, kept};
use super::wills::Wills;
use crate::clock::Clock;
use crate::log::{AppendError, Batch, Log, Table};
use crate::metrics::Metrics;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub struct Shared {
    pub log: Log,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub routes: Routes,
    pub access: Access,
    pub users: Option<Users>,
    pub limits: Limits,
    pub connect_within: Duration,
    pub write_within: Duration,
    pub registry: Arc<Registry>,
    pub bus: Bus,
    pub memory: Arc<Memory>,
    pub devices: Devices,
    pub wills: Wills,
    pub chunks: Option<Arc<dyn ChunkDoor>>,
    /// Connections that wait for the log right now: while there are any, QoS 0 gives way.
    pub behind: AtomicUsize,
    /// Clients whose QoS 2 identifiers are on disk.
    pub kept_clients: AtomicUsize,
    bursts: Mutex<Bursts>,
    serial: AtomicU64,
}

/// Counts a connection as waiting for the log.
pub struct Behind<'a>(&'a AtomicUsize);

impl Shared {
    #[expect(clippy::too_many_arguments, reason = "what all connections share")]
    pub fn new(
        config: &MqttConfig,
        routes: Routes,
        access: Access,
        users: Option<Users>,
        log: Log,
        clock: Clock,
        metrics: Arc<Metrics>,
        chunks: Option<Arc<dyn ChunkDoor>>,
    ) -> Self {
        let limits = Limits {
            receive_maximum: config.receive_maximum,
            packet_bytes_max: config.packet_size_max.0 as usize,
            keep_alive_max_s: (config.keep_alive_max.as_ms() / 1000).clamp(1, 65_535) as u16,
            subscriptions_max: config.subscriptions_max,
            session_expiry_max_s: (kept::KEPT_MS / 1000) as u32,
        };
        let memory = Arc::new(Memory::default());
        Shared {
            kept_clients: AtomicUsize::new(0),
            devices: Devices::new(log.clone(), clock.clone()),
            wills: Wills::default(),
            chunks,
            log,
            clock,
            bus: Bus::new(metrics.clone(), memory.clone()),
            memory,
            metrics,
            routes,
            access,
            users,
            limits,
            connect_within: config.connect_within.0,
            write_within: config.write_within.0,
            registry: Arc::default(),
            behind: AtomicUsize::new(0),
            bursts: Mutex::default(),
            serial: AtomicU64::new(1),
        }
    }

    pub fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    pub fn now_ms(&self) -> u64 {
        self.clock.now().mono_ms
    }

    pub fn around(&self) -> Around<'_> {
        Around {
            routes: &self.routes,
            access: &self.access,
            log: &self.log,
            bus: &self.bus,
            devices: &self.devices,
            chunks: self.chunks.as_deref(),
            unpacked: &self.memory.unpacked,
        }
    }

    #[inline]
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed) > 0
    }

    pub fn mark_behind(&self) -> Behind<'_> {
        self.behind.fetch_add(1, Ordering::Relaxed);
        Behind(&self.behind)
    }

    /// Counts a refusal, and logs it if it starts a burst. `client` is its id, or its address as long as it has none.
    pub fn reject(&self, reason: Reason, client: &str, says: &str) {
        self.reject_as(reason.label(), client, says);
    }

    pub fn reject_as(&self, label: &'static str, client: &str, says: &str) {
        self.metrics.reject("mqtt", label);
        let line = self.bursts.lock().unwrap_or_else(PoisonError::into_inner).note(label, self.now_ms());
        if let Some(kept_back) = line {
            let client: String = client.chars().take(64).collect();
            tracing::warn!(reason = label, ?client, kept_back, "refused: {says}");
        }
    }

    /// A device has numbered records that it never sent: they are lost on it.
    pub fn tell_lost(&self, count: u64, client: &str) {
        self.metrics.device_lost.inc_by(count);
        let line = self.bursts.lock().unwrap_or_else(PoisonError::into_inner).note("device_lost", self.now_ms());
        if let Some(kept_back) = line {
            let client: String = client.chars().take(64).collect();
            tracing::warn!(?client, count, kept_back, "a device has lost records: their numbers are left out");
        }
    }

    /// What an earlier session of this client id left on disk, if it can be read.
    pub fn kept(&self, client_id: &str) -> Option<Kept> {
        Kept::decode(&self.log.state(Table::Sessions, client_id.as_bytes())?)
    }

    /// Removes what clients that never came back have left.
    pub async fn clear_stale(&self) -> Result<(), AppendError> {
        let now_ms = self.clock.now().wall_ms;
        let mut batch = Batch::new();
        let mut left = 0;
        for (client_id, value) in self.log.state_scan(Table::Sessions, &[]) {
            match Kept::decode(&value).is_none_or(|kept| kept.is_stale(now_ms)) {
                true => batch.put_state(Table::Sessions, client_id, None),
                false => left += 1,
            }
        }
        self.kept_clients.store(left, Ordering::Relaxed);
        if !batch.is_empty() {
            self.log.appender().commit(&mut batch).await?;
        }
        Ok(())
    }
}

impl Drop for Behind<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
