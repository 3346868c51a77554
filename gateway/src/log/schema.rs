//! The on-disk tables, all on one screen. Ids are persisted: never change or reuse one; a dead one stays, named as dead. Pure.

/// Tables of the `state` database. All of them are held in memory, changed by control entries of the journal and folded
/// into redb; see `state.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Facts of the log itself. Key: a name. `gateway`, `incarnation`, `format`, `next_stream`.
    Meta = 1,
    /// Key: stream id (u32 BE). Value: JSON of `stream::Definition`.
    Streams = 2,
    /// Key: stream id, shard (u32 BE each), `t` (lowest number still there) or `r` (highest reserved). Value: u64 BE.
    Shards = 3,
    /// Key: stream id, segment (u32 BE each). Value: JSON of `segment::Extent` (numbers, times, bytes per shard).
    Segments = 4,
    /// Key: stream id, blob file (u32 BE each). Value: JSON of `blob::Extent`.
    Blobs = 5,
    /// The gap ledger. Key: stream id, shard (u32 BE each), 0 (lost) or 1 (refused by a destination), first number (u64
    /// BE). Value: JSON. See `ledger.rs`.
    Gaps = 6,
    /// Key: sink name, 0, stream name, 0, shard (u32 BE). Value: JSON of `cursor::CursorState`.
    Cursors = 7,
    /// Key: stream id (u32 BE), producer id (u128 BE). Value: epoch (u32 BE), sequence (u64 BE).
    Producers = 8,
    /// Key: boot id (u16 BE). Value: kernel boot id (u128 BE), wall ms of that boot's zero (u64 BE; 0 while unknown).
    Boots = 9,
    /// Owned by MQTT. Key: client id. Value: its own.
    Sessions = 10,
    /// Owned by MQTT. Key: topic. Value: its own.
    Retained = 11,
    /// Owned by the uplink. Key: `s3/`, sink, stream id and what of an upload; value: JSON. See `uplink::sink::video_s3`.
    Uplink = 12,
    /// Owned by media. Key: stream name. Value its own.
    Media = 13,
}

impl Table {
    pub const ALL: [Table; 13] = [
        Table::Meta,
        Table::Streams,
        Table::Shards,
        Table::Segments,
        Table::Blobs,
        Table::Gaps,
        Table::Cursors,
        Table::Producers,
        Table::Boots,
        Table::Sessions,
        Table::Retained,
        Table::Uplink,
        Table::Media,
    ];

    /// Those whose keys begin with a stream, and whose rows go behind it.
    pub const OF_STREAMS: [Table; 4] = [Table::Shards, Table::Segments, Table::Blobs, Table::Gaps];

    pub fn from_u8(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| *table as u8 == id)
    }
}
