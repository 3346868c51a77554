//! A video stream: what the control plane knows of it, its archive, its live preview. A stream of the log with one shard,
//! whose kind is video; its settings beyond the log's are a row of the state.

use super::archive::Archive;
use super::keep::{HandedIn, Keeper};
use super::live::Live;
use crate::http::Budget;
use crate::log::{Log, Stream};
use headwater_video::Tracks;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use tokio::sync::Mutex;

/// Most tags of a stream.
pub const TAGS_MAX: usize = 50;

/// What CreateStream, UpdateStream and TagStream say. Kept as JSON in the table `Media`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Counts changes.
    pub version: u64,
    pub device_name: Option<String>,
    pub media_type: Option<String>,
    pub kms_key: Option<String>,
    /// `None`: made by its first frame, with the configuration's retention. 0: kept for a moment only.
    pub retention_hours: Option<u32>,
    pub tags: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        let (device_name, media_type, kms_key, retention_hours) = (None, None, None, None);
        Settings { version: 1, device_name, media_type, kms_key, retention_hours, tags: BTreeMap::new() }
    }
}

impl Settings {
    /// As AWS shows it: opaque, and other after each change.
    pub fn shown_version(&self) -> String {
        format!("v{:08}", self.version)
    }
}

/// Key of a stream's settings in the table `Media`.
pub fn settings_key(name: &str) -> Vec<u8> {
    format!("s/{name}").into_bytes()
}

/// Sets of tracks remembered of a stream: a camera has one, or two when it was set anew.
const HEADS_MAX: usize = 8;

/// What all streams share.
pub struct Shared {
    /// Memory of fragments on their way to the disk.
    pub memory: Budget,
    pub thin_every_ms: Option<i64>,
}

pub struct Camera {
    log: Log,
    pub shared: Arc<Shared>,
    /// Where its pictures are thinned out to, once there is one.
    thin: std::sync::Mutex<Option<Arc<Stream>>>,
    /// Tracks by the id of their head, the newest last.
    heads: std::sync::Mutex<Vec<(u64, Arc<Tracks>)>>,
    /// The longest target duration a live playlist has said, in seconds: it may never become less.
    target_s: AtomicU64,
    pub archive: Archive,
    pub live: Live,
    turn: Arc<Mutex<HandedIn>>,
}

impl Camera {
    pub fn new(log: Log, stream: Arc<Stream>, shared: Arc<Shared>) -> Camera {
        let archive = Archive::new(log.clone(), stream);
        let (heads, target_s) = (std::sync::Mutex::default(), AtomicU64::new(0));
        Camera {
            archive,
            live: Live::default(),
            turn: Arc::default(),
            log,
            heads,
            target_s,
            shared,
            thin: std::sync::Mutex::default(),
        }
    }

    pub fn name(&self) -> &str {
        self.archive.stream.name.as_str()
    }

    pub fn stream(&self) -> &Arc<Stream> {
        &self.archive.stream
    }

    /// Tracks that were seen under a head's id.
    pub fn head(&self, id: u64) -> Option<Arc<Tracks>> {
        let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.iter().find(|(known, _)| *known == id).map(|(_, tracks)| tracks.clone())
    }

    pub fn learn(&self, id: u64, tracks: Arc<Tracks>) {
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.retain(|(known, _)| *known != id);
        if heads.len() == HEADS_MAX {
            heads.remove(0);
        }
        heads.push((id, tracks));
    }

    /// The target duration of live playlists, given that of now.
    pub fn target_s(&self, now: u64) -> u64 {
        self.target_s.fetch_max(now, Ordering::Relaxed).max(now)
    }

    /// The stream that its pictures are thinned out to.
    pub fn thin_out_to(&self, stream: Arc<Stream>) {
        *self.thin.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    }

    pub fn thin_keeper(&self) -> Option<Keeper> {
        let thin = self.thin.lock().unwrap_or_else(PoisonError::into_inner).clone();
        thin.map(|stream| Keeper::new(&self.log, stream, Arc::default()))
    }

    pub fn keeper(&self) -> Keeper {
        Keeper::new(&self.log, self.archive.stream.clone(), self.turn.clone())
    }
}
