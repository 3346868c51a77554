//! A part of the gateway that keeps rows of its own in the log's state.

use super::oracle::Oracle;
use bytes::Bytes;
use headwater::log::sim::SteppedLog;
use headwater::log::{Appender, Batch, Table, Ticket};
use std::collections::VecDeque;

/// Stores rows of state, one value after the other.
#[derive(Default)]
pub struct Clerk {
    appender: Option<Appender>,
    next: u64,
    pending: VecDeque<(Ticket, u8, u64)>,
}

impl Clerk {
    pub fn hang_up(&mut self) {
        *self = Clerk { next: self.next, ..Clerk::default() };
    }

    pub fn put(&mut self, log: &SteppedLog, key: u8, oracle: &mut Oracle) {
        self.next += 1;
        let value = self.next;
        let mut batch = Batch::new();
        batch.put_state(Table::Uplink, vec![key], Some(Bytes::copy_from_slice(&value.to_be_bytes())));
        let appender = self.appender.get_or_insert_with(|| log.appender());
        if let Ok(Some((ticket, _))) = log.append(appender, &mut batch) {
            oracle.state_sent(key, value);
            self.pending.push_back((ticket, key, value));
        }
    }

    pub fn poll(&mut self, oracle: &mut Oracle) {
        let Some(appender) = &self.appender else { return };
        let Ok(durable) = appender.durable_now() else {
            self.hang_up();
            return;
        };
        while let Some((_, key, value)) = self.pending.pop_front_if(|(ticket, _, _)| *ticket <= durable) {
            oracle.state_acknowledged(key, value);
        }
    }
}
