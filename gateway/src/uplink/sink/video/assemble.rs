//! Records of a video stream, in order, put together to the fragments they are the parts of. Pure.
//!
//! What is no fragment, or one of which parts are missing, comes out as refused: a video stream upstream takes nothing else.

use crate::record::{Number, Record};
use crate::wire::media::Media;
use bytes::Bytes;
use headwater_video::matroska;

/// Largest fragment that Kinesis Video takes, in bytes.
const FRAGMENT_BYTES_MAX: usize = 50 << 20;
/// `Cluster` and its `Timestamp`, as EBML writes them.
const CLUSTER: [u8; 4] = [0x1f, 0x43, 0xb6, 0x75];
const TIMESTAMP: u8 = 0xe7;

/// A whole fragment.
#[derive(Clone, Debug)]
pub struct Fragment {
    pub records: Vec<Record>,
    pub media: Media,
    /// By what it may be named in an acknowledgement: the time of its cluster, and of its first picture.
    pub timecodes: [i64; 2],
}

#[derive(Clone, Debug)]
pub enum Assembled {
    Fragment(Fragment),
    /// Records that cannot be sent, and why.
    Refused(Vec<Record>, &'static str),
}

impl Assembled {
    pub fn records(&self) -> &[Record] {
        match self {
            Assembled::Fragment(fragment) => &fragment.records,
            Assembled::Refused(records, _) => records,
        }
    }
}

impl Fragment {
    fn of(records: Vec<Record>, media: Media, bytes_max: usize) -> Assembled {
        let (whole, head) = (records.iter().map(|record| record.data.len()).sum::<usize>(), media.head_bytes as usize);
        let first = records.first().map(|record| record.data.clone()).unwrap_or_default();
        if whole != media.bytes as usize || head > first.len() {
            return Assembled::Refused(records, "it is not as long as its header says");
        }
        if whole > bytes_max {
            return Assembled::Refused(records, "it has more than 50 MiB, and Kinesis Video takes no more");
        }
        match cluster_ms(&first[head..]) {
            Some(cluster_ms) => {
                Assembled::Fragment(Fragment { timecodes: [cluster_ms, media.start_ms], records, media })
            }
            None => Assembled::Refused(records, "no cluster stands behind its head"),
        }
    }

    pub fn first(&self) -> Number {
        self.records.first().map_or(0, |record| record.number)
    }

    pub fn arrival_ms(&self) -> u64 {
        self.records.first().map_or(0, |record| record.arrival_ms)
    }

    /// The first number behind it.
    pub fn next(&self) -> Number {
        self.records.last().map_or(0, |record| record.number) + 1
    }

    pub fn end_ms(&self) -> i64 {
        self.media.start_ms.saturating_add(i64::from(self.media.duration_ms))
    }

    /// Name and value of what its producer tagged it with.
    pub fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.records.iter().take(1).flat_map(|record| &record.headers).filter_map(|header| header.as_user())
    }

    pub fn head(&self) -> Bytes {
        self.records.first().map(|record| record.data.slice(..self.media.head_bytes as usize)).unwrap_or_default()
    }

    /// Its clusters, and its tags behind them: a tag belongs to the fragment that was begun before it.
    pub fn body(&self) -> impl Iterator<Item = Bytes> + '_ {
        let head = self.media.head_bytes as usize;
        let data = move |(at, record): (usize, &Record)| record.data.slice(if at == 0 { head } else { 0 }..);
        let tags: Vec<_> = self.tags().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let tags = Bytes::from(matroska::tags(&tags));
        self.records.iter().enumerate().map(data).chain([tags]).filter(|bytes| !bytes.is_empty())
    }
}

/// The time of the cluster that begins here, in milliseconds: `Timestamp` is the first element in it.
fn cluster_ms(bytes: &[u8]) -> Option<i64> {
    let rest = bytes.strip_prefix(&CLUSTER)?;
    let size = rest.first()?.leading_zeros() as usize + 1;
    let rest = rest.get(size..)?.strip_prefix(&[TIMESTAMP])?;
    let length = usize::from(rest.first()? & 0x7f);
    let value = rest.get(1..1 + length).filter(|value| value.len() <= 8)?;
    i64::try_from(value.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))).ok()
}

#[derive(Debug)]
pub struct Assembler {
    /// Longest fragment that the destination takes, in bytes.
    bytes_max: usize,
    /// Parts of a fragment that is not whole yet.
    open: Vec<Record>,
}

impl Default for Assembler {
    fn default() -> Self {
        Assembler { bytes_max: FRAGMENT_BYTES_MAX, open: Vec::new() }
    }
}

impl Assembler {
    /// For a destination that takes fragments of any length.
    pub fn unbounded() -> Self {
        Assembler { bytes_max: usize::MAX, open: Vec::new() }
    }

    pub fn push(&mut self, record: Record, out: &mut Vec<Assembled>) {
        let Some(media) = Media::of(&record) else {
            self.give_up(out);
            return out.push(Assembled::Refused(vec![record], "it is no fragment of video"));
        };
        let continues = self.open.last().is_some_and(|last| {
            last.number + 1 == record.number
                && Media::of(last).is_some_and(|before| Media { part: before.part + 1, ..before } == media)
        });
        if !continues {
            self.give_up(out);
            if media.part > 0 {
                return out.push(Assembled::Refused(vec![record], "the parts before it are not there"));
            }
        }
        self.open.push(record);
        if media.part + 1 == media.parts {
            out.push(Fragment::of(std::mem::take(&mut self.open), media, self.bytes_max));
        }
    }

    /// What was begun will not go on.
    pub fn give_up(&mut self, out: &mut Vec<Assembled>) {
        if !self.open.is_empty() {
            out.push(Assembled::Refused(std::mem::take(&mut self.open), "the parts behind it are not there"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::records;
    use super::*;

    fn assemble(records: impl IntoIterator<Item = Record>) -> Vec<Assembled> {
        let (mut assembler, mut out) = (Assembler::default(), Vec::new());
        records.into_iter().for_each(|record| assembler.push(record, &mut out));
        assembler.give_up(&mut out);
        out
    }

    #[test]
    fn parts_become_one_fragment_and_know_the_time_of_their_cluster() {
        let out = assemble(records(5, 1_700_000_000_123, 1000, 300, b"head"));
        let [Assembled::Fragment(fragment)] = &out[..] else { panic!("{out:?}") };
        assert_eq!((fragment.first(), fragment.timecodes), (5, [1_700_000_000_123; 2]));
        let sent: Vec<u8> = fragment.body().flatten().collect();
        assert_eq!((&fragment.head()[..], sent.len() + 4), (&b"head"[..], fragment.media.bytes as usize));
    }

    #[test]
    fn what_is_not_whole_or_no_video_is_refused_and_costs_nothing_else() {
        let mut torn = records(1, 1000, 1000, 300, b"head");
        torn.remove(1);
        let plain = Record { headers: Vec::new(), ..torn[0].clone() };
        let whole = records(10, 3000, 10, 300, b"head");
        let out = assemble(torn.into_iter().chain([plain]).chain(whole));
        let whole = out.iter().filter(|out| matches!(out, Assembled::Fragment(_))).count();
        let refused: usize =
            out.iter().filter(|out| matches!(out, Assembled::Refused(..))).map(|out| out.records().len()).sum();
        assert_eq!((whole, refused), (1, 4));
    }
}
