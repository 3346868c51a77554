//! One connection per client id. Who comes later takes the session over: the old connection commits its queue or drops
//! it, and only then is the new one answered, so that their records cannot change order.

use super::codec::Reason;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

#[derive(Default)]
pub struct Registry {
    seats: Mutex<HashMap<String, Held>>,
}

struct Held {
    connection: u64,
    identity: Option<String>,
    leave: watch::Sender<bool>,
    /// Closed once the connection is gone.
    gone: watch::Receiver<()>,
}

/// A connection's hold on its client id; dropping it makes room for the next.
pub struct Seat {
    registry: Arc<Registry>,
    client_id: String,
    connection: u64,
    /// True once another connection wants the seat.
    pub leave: watch::Receiver<bool>,
    _gone: watch::Sender<()>,
}

impl Registry {
    /// Waits until an earlier connection of the client has left, at most `within`.
    pub async fn sit(
        self: &Arc<Self>,
        client_id: &str,
        identity: Option<&str>,
        connection: u64,
        within: Duration,
    ) -> Result<Seat, Reason> {
        let wait = async {
            loop {
                match self.try_sit(client_id, identity, connection)? {
                    Ok(seat) => return Ok(seat),
                    // An error says that the sender is gone, which is what we wait for.
                    Err(mut gone) => drop(gone.changed().await),
                }
            }
        };
        tokio::time::timeout(within, wait).await.unwrap_or(Err(Reason::ServerUnavailable))
    }

    fn try_sit(
        self: &Arc<Self>,
        client_id: &str,
        identity: Option<&str>,
        connection: u64,
    ) -> Result<Result<Seat, watch::Receiver<()>>, Reason> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        match seats.entry(client_id.to_owned()) {
            // Another user's client id would let a stranger push that user's device out.
            Entry::Occupied(held) if held.get().identity.as_deref() != identity => {
                Err(Reason::ClientIdentifierNotValid)
            }
            Entry::Occupied(held) => {
                held.get().leave.send_replace(true);
                Ok(Err(held.get().gone.clone()))
            }
            Entry::Vacant(free) => {
                let (leave, leaving) = watch::channel(false);
                let (gone_sender, gone) = watch::channel(());
                free.insert(Held { connection, identity: identity.map(str::to_owned), leave, gone });
                Ok(Ok(Seat {
                    registry: self.clone(),
                    client_id: client_id.to_owned(),
                    connection,
                    leave: leaving,
                    _gone: gone_sender,
                }))
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.registry.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if seats.get(&self.client_id).is_some_and(|held| held.connection == self.connection) {
            seats.remove(&self.client_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn the_second_connection_sits_down_only_when_the_first_has_left() {
        let registry = Arc::new(Registry::default());
        let first = registry.sit("c", None, 1, SOON).await.unwrap();
        assert_eq!(registry.sit("c", None, 2, SOON).await.err(), Some(Reason::ServerUnavailable));
        assert!(*first.leave.borrow());
        let waiting = tokio::spawn({
            let registry = registry.clone();
            async move { registry.sit("c", None, 3, Duration::from_secs(5)).await }
        });
        tokio::task::yield_now().await;
        drop(first);
        let third = waiting.await.unwrap().unwrap();
        assert!(!*third.leave.borrow());
    }

    #[tokio::test]
    async fn nobody_takes_a_client_id_from_another_identity() {
        let registry = Arc::new(Registry::default());
        let _first = registry.sit("c", Some("pump"), 1, SOON).await.unwrap();
        assert_eq!(registry.sit("c", Some("valve"), 2, SOON).await.err(), Some(Reason::ClientIdentifierNotValid));
    }
}
