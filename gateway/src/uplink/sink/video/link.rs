//! One connection of PutMedia: bytes in, acknowledgements out, in a task of its own.

use super::ack::{Ack, Acks};
use super::service::{Service, fault_of};
use crate::uplink::sink::Fault;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Acknowledgements heard and not looked at.
const HEARD_MAX: usize = 64;
/// Of an answer that is an error, so much is read, in bytes.
const ERROR_BYTES_MAX: usize = 16 << 10;

#[derive(Debug)]
pub enum Heard {
    /// The connection stands; bytes go in here.
    Open(mpsc::Sender<Bytes>),
    Ack(Ack),
    /// Nothing more will come: in order, or for this.
    Ended(Result<(), Fault>),
}

/// Dropping it breaks the connection.
pub struct Link {
    heard: mpsc::Receiver<Heard>,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    pub fn open(service: Arc<Service>, start_ms: i64) -> Link {
        let (to, heard) = mpsc::channel(HEARD_MAX);
        let task = tokio::spawn(async move {
            let ended = exchange(&service, start_ms, &to).await;
            // Nobody listens: it was given up.
            let _ = to.send(Heard::Ended(ended)).await;
        });
        Link { heard, task: task.abort_handle() }
    }

    /// Cancel-safe.
    pub async fn hear(&mut self) -> Heard {
        let gone = || Heard::Ended(Err(Fault::Broken("the connection is gone".into())));
        self.heard.recv().await.unwrap_or_else(gone)
    }
}

async fn exchange(service: &Service, start_ms: i64, to: &mpsc::Sender<Heard>) -> Result<(), Fault> {
    let (duplex, body) = service.put_media(start_ms).await?;
    let given_up = |_| Fault::Broken("given up".into());
    to.send(Heard::Open(body)).await.map_err(given_up)?;
    let mut response = duplex.answer().await.map_err(fault_of)?;
    if !response.status().is_success() {
        let mut said = Vec::new();
        while let Ok(Some(bytes)) = response.body_mut().next().await {
            said.extend_from_slice(&bytes[..bytes.len().min(ERROR_BYTES_MAX - said.len())]);
            if said.len() == ERROR_BYTES_MAX {
                break;
            }
        }
        return Err(service.refused(&response, &said).await);
    }
    let (mut acks, mut out) = (Acks::default(), Vec::new());
    while let Some(bytes) = response.body_mut().next().await.map_err(fault_of)? {
        let read = acks.push(&bytes, &mut out);
        for ack in out.drain(..) {
            to.send(Heard::Ack(ack)).await.map_err(given_up)?;
        }
        read.map_err(Fault::Broken)?;
    }
    Ok(())
}
