//! Stand-in until the part is merged; this file goes with that merge.
pub const CONTENT_TYPE: &str = "application/vnd.headwater.batch.v1";
pub const OFFER_HEADER: &str = "x-headwater-batch";
