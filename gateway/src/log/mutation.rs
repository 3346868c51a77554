//! Bugs on purpose: each takes one rule of `docs/durability.md` out of the code, so that the simulation can prove that it
//! notices. One may be on at a time, on the thread that steps the log. In product builds none exists: [`is_on`] is `false`
//! at compile time.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The journal's frames are written and not synced.
    SkipSync,
    /// A sync that failed counts as one that worked.
    IgnoreFailedSync,
    /// Producers are told before the frame is written.
    AcknowledgeEarly,
    /// Large values are written and not synced.
    SkipBlobSync,
    /// A new segment's directory is not synced.
    SkipDirSync,
    /// The whole ring is freed by a fold, also what stays in the window.
    FreeRingEarly,
    /// The state with the new folded position is committed before the segments.
    SwapSegmentAndState,
    /// A segment is unlinked before its trim mark and its ledger row are durable.
    UnlinkBeforeLedger,
    /// A segment that is going still takes blocks.
    FillGoingSegment,
    /// Recovery leaves the last frame out as if it were torn.
    DropTail,
    /// Recovery neither writes the last frame again nor syncs.
    TrustTail,
    /// Recovery takes records that a segment holds already, as new ones.
    ReplayTwice,
    /// Recovery believes frames whose body does not have its checksum.
    IgnoreBodyChecksum,
    /// A frame that was given up stays in the chain.
    ChainGivenUp,
    /// The group behind a failed one goes on alone.
    KeepGroupBehind,
    /// The numbers of a failed group are not entered into the ledger.
    ForgetLostNumbers,
    /// Numbers that the trim mark or the ledger name are given again.
    ReuseNumbers,
    /// Producer numbers are not read off the records at recovery.
    ForgetMarks,
    /// What a cut-short fold left in a segment is not entered into its row.
    KeepStaleRow,
    /// A cursor is saved one record further than its sink is.
    CursorAhead,
}

#[cfg(any(test, feature = "sim"))]
impl Mutation {
    pub const ALL: [Mutation; 20] = [
        Mutation::SkipSync,
        Mutation::IgnoreFailedSync,
        Mutation::AcknowledgeEarly,
        Mutation::SkipBlobSync,
        Mutation::SkipDirSync,
        Mutation::FreeRingEarly,
        Mutation::SwapSegmentAndState,
        Mutation::UnlinkBeforeLedger,
        Mutation::FillGoingSegment,
        Mutation::DropTail,
        Mutation::TrustTail,
        Mutation::ReplayTwice,
        Mutation::IgnoreBodyChecksum,
        Mutation::ChainGivenUp,
        Mutation::KeepGroupBehind,
        Mutation::ForgetLostNumbers,
        Mutation::ReuseNumbers,
        Mutation::ForgetMarks,
        Mutation::KeepStaleRow,
        Mutation::CursorAhead,
    ];
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
        let known = |mutation: &Mutation| format!("{mutation:?}") == name;
        let mutation = Mutation::ALL.into_iter().find(known).ok_or_else(|| format!("there is no mutation {name}"))?;
        ON_EVERYWHERE.get_or_init(|| mutation);
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
