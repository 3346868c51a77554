//! Who reads video, and what their answers take in memory until they are sent.
//!
//! Anybody may ask for a week and then not read it. So a reader has a place, of which there are `video.max_readers`, and asks
//! for room before its answer is made, of the `video.reader_memory` that all of them share. Half of it is for answers, the
//! other for the fragments of streams and clips: who has the list of a clip and waits for room for its next fragment waits
//! for nobody who waits for it. Who wants more than half of a half gets that, and the rest goes uncounted: a long playlist or
//! a large fragment can be had, but no more than two at once.

use super::archive::Select;
use super::index::Entry;
use super::shape::{Kind, Refusal};
use super::stream::Camera;
use crate::http::{Body, Budget, Charge};
use http::Response;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How long a player waits for a place.
const PLACE_WAIT: Duration = Duration::from_secs(3);
/// How often a reader asks for room, a second each time: a player soon hears no, GetMedia and clips go on when others have
/// read, or have lost their connections for not reading.
const ROOM_TRIES: u32 = 3;
const FRAGMENT_TRIES: u32 = 150;
/// What a fragment's answer takes, of its size: as it is stored, its pictures, and what is made of them.
const MADE_OF: usize = 3;

pub struct Readers {
    places: Arc<Semaphore>,
    memory: Memory,
}

/// Of all readers.
#[derive(Clone)]
struct Memory {
    answers: Budget,
    fragments: Budget,
    /// What one is charged at the most.
    largest: usize,
}

/// A reader's place, and its part of the memory.
pub struct Place {
    memory: Memory,
    charge: Charge,
    _place: OwnedSemaphorePermit,
}

impl Readers {
    pub fn new(most: u32, bytes: u64) -> Readers {
        let (answers, fragments) = (Budget::new(bytes / 2), Budget::new(bytes / 2));
        let memory = Memory { answers, fragments, largest: usize::try_from(bytes / 4).unwrap_or(usize::MAX) };
        Readers { places: Arc::new(Semaphore::new(most as usize)), memory }
    }

    /// At once or not at all.
    pub fn place(&self) -> Result<Place, Refusal> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| full())?;
        Ok(self.at(place))
    }

    /// For one who would rather wait a moment.
    pub async fn place_soon(&self) -> Result<Place, Refusal> {
        let place = timeout(PLACE_WAIT, self.places.clone().acquire_owned()).await;
        Ok(self.at(place.map_err(|_| full())?.map_err(|_| full())?))
    }

    fn at(&self, place: OwnedSemaphorePermit) -> Place {
        Place { memory: self.memory.clone(), charge: Charge::default(), _place: place }
    }
}

fn full() -> Refusal {
    Refusal::new(Kind::ConnectionLimitExceeded, "Too many readers: see video.max_readers")
}

fn over() -> Refusal {
    Refusal::new(Kind::ConnectionLimitExceeded, "Too much is being read at once: see video.reader_memory")
}

impl Place {
    /// Room for an answer of so many bytes in all, what was asked for before included.
    pub async fn hold(&mut self, bytes: usize) -> Result<(), Refusal> {
        raise(&self.memory.answers, &mut self.charge, bytes.min(self.memory.largest), ROOM_TRIES).await
    }

    /// The same for what is made of a fragment.
    pub async fn hold_fragment(&mut self, entry: &Entry) -> Result<(), Refusal> {
        self.hold(cost(entry)).await
    }

    /// Room for one fragment of many, beside what the place has, until it is sent.
    pub async fn room_for(&self, entry: &Entry) -> Result<Charge, Refusal> {
        let mut charge = Charge::default();
        raise(&self.memory.fragments, &mut charge, cost(entry).min(self.memory.largest), FRAGMENT_TRIES).await?;
        Ok(charge)
    }

    /// Gives back what is over `bytes`.
    pub fn lower(&mut self, bytes: usize) {
        self.charge.lower(bytes);
    }

    /// An answer that keeps its place until the last byte is sent, and of the memory what it still takes.
    pub fn keep(mut self, answer: Response<Body>) -> Response<Body> {
        self.charge.lower(answer.body().bytes_there());
        answer.map(|body| body.holding(self))
    }
}

fn cost(entry: &Entry) -> usize {
    MADE_OF * entry.bytes as usize
}

async fn raise(memory: &Budget, charge: &mut Charge, bytes: usize, tries: u32) -> Result<(), Refusal> {
    for _ in 0..tries {
        if memory.raise(charge, bytes).await.is_ok() {
            return Ok(());
        }
    }
    Err(over())
}

impl Camera {
    /// The fragments of a range, once there is room for them and for `each` bytes that are said of every one.
    pub async fn selected(&self, what: Select, each: usize, place: &mut Place) -> Result<Vec<(u64, Entry)>, Refusal> {
        let each = each + size_of::<(u64, Entry)>();
        place.hold(self.archive.count(what).await? * each).await?;
        let found = self.archive.select(what).await?;
        // What is older than the index was counted with all that it might be.
        place.lower(found.len() * each);
        Ok(found)
    }
}
