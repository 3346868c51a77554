//! Bugs on purpose: each takes one rule of `docs/durability.md` out of the code, so that the simulation can prove that it
//! notices. One may be on at a time, on the thread that steps the log. In product builds none exists: [`is_on`] is `false`
//! at compile time.

macro_rules! mutations {
    ($($name:ident: $says:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutation {
            $(#[doc = $says] $name,)*
        }

        #[cfg(any(test, feature = "sim"))]
        impl Mutation {
            pub const ALL: &[Mutation] = &[$(Mutation::$name,)*];

            /// What the log does then.
            pub fn says(self) -> &'static str {
                match self {
                    $(Mutation::$name => $says,)*
                }
            }
        }
    };
}

mutations! {
    SkipSync: "frames of the journal are written and not synced",
    IgnoreFailedSync: "a sync of the journal that failed counts as one that worked",
    AcknowledgeEarly: "producers are told before the frame is written",
    SkipBlobSync: "large values are written and not synced",
    SkipDirSync: "the directory of a new segment is not synced",
    FreeRingEarly: "a fold frees the whole ring, also what stays in the window",
    SwapSegmentAndState: "the state with the new folded position is committed before the segments",
    UnlinkBeforeLedger: "a segment is unlinked before its trim mark and its ledger row are durable",
    FillGoingSegment: "a segment that is going still takes blocks",
    DropTail: "recovery leaves the last frame out as if it were torn",
    TrustTail: "recovery neither writes the last frame again nor syncs",
    ReplayTwice: "recovery takes records that a segment holds already for new ones",
    IgnoreBodyChecksum: "recovery believes frames whose body does not have its checksum",
    LoseQuietly: "recovery enters nothing of what it lost or jumped over into the ledger",
    ChainGivenUp: "a frame that was given up stays in the chain",
    KeepGroupBehind: "the group behind a failed one goes on alone",
    ForgetLostNumbers: "the numbers of a failed group are not entered into the ledger",
    ReuseNumbers: "numbers that the trim mark or the ledger name are given again",
    TrustTheEnd: "a start after a crash goes on with the number behind the last one it found",
    OneMark: "the last number of a producer counts for all shards",
    ForgetMarks: "producer numbers are not read off the records at recovery",
    KeepStaleRow: "what a fold that was cut off left in a segment is not entered into its row",
    ForgetPlaces: "a change of state that goes with records does not ask what became of them",
    PartFromRecords: "a change of state goes into another group than the records it belongs to",
    CursorAhead: "a cursor is saved one record further than its sink is",
}

#[cfg(any(test, feature = "sim"))]
mod switch {
    use super::Mutation;
    use std::cell::Cell;
    use std::sync::OnceLock;

    thread_local! {
        static ON: Cell<Option<Mutation>> = const { Cell::new(None) };
    }
    static ON_EVERYWHERE: OnceLock<Mutation> = OnceLock::new();

    /// Turns one on for this thread, or all off.
    pub fn turn_on(mutation: Option<Mutation>) {
        ON.set(mutation);
    }

    /// Turns one on for all threads, for good, by its name; what is wrong, if there is none of that name.
    pub fn turn_on_for_process(name: &str) -> Result<(), String> {
        let known = |mutation: &&Mutation| format!("{mutation:?}") == name;
        let mutation = Mutation::ALL.iter().find(known).ok_or_else(|| format!("there is no mutation {name}"))?;
        ON_EVERYWHERE.get_or_init(|| *mutation);
        Ok(())
    }

    pub fn is_on(mutation: Mutation) -> bool {
        ON.get() == Some(mutation) || ON_EVERYWHERE.get() == Some(&mutation)
    }
}

#[cfg(any(test, feature = "sim"))]
pub use switch::{is_on, turn_on, turn_on_for_process};

#[cfg(not(any(test, feature = "sim")))]
pub const fn is_on(_: Mutation) -> bool {
    false
}
