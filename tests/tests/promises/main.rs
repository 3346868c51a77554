//! The promises P1 to P8 of ARCHITECTURE.md, a module a promise, tested on the real binary from outside.
//!
//! A test's name is the promise it holds the gateway to. One found broken once stays here for ever, and then opens with the
//! fault, its cause and its fix.

mod disk;
mod p1_ack_means_on_disk;
mod p2_order_per_key;
mod p3_envelopes;
mod p3_stored_once;
mod p4_upstream_at_least_once;
mod p5_every_loss_is_told;
mod p6_bounded;
mod p7_back_in_seconds;
mod p8_bad_input_costs_its_sender;
mod p8_what_others_pay;
