//! A link that is broken on purpose, so that it can be seen that the audit notices: of the entries of a PutRecords one is
//! dropped though it is answered as stored, stored twice, or stored in front of an earlier one of its key. Pure.
//!
//! Or the gateway is one that no device may publish to: it loses nothing, and takes nothing.
//!
//! Not a fault: no gateway could know. The upstream's own defence, that a numbered record is stored once, is taken away
//! from the entries concerned. Behind a hidden flag, for `tests/run`.

use clap::ValueEnum;
use serde_json::Value;

/// How often it happens in one demo: the audit must count exactly this.
const TIMES: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    Lost,
    Duplicated,
    Reordered,
    Unacknowledged,
}

/// What goes on to the upstream, and which of its answers each entry of the request gets.
#[derive(Debug, PartialEq)]
pub struct Spoilt {
    pub entries: Vec<Value>,
    pub answer_of: Vec<usize>,
}

impl Sabotage {
    /// How many requests it spoils in one demo.
    pub fn times(self) -> u64 {
        if self == Sabotage::Unacknowledged { 0 } else { TIMES }
    }

    /// `None` if no two entries have the same key: these two are in one shard, so the answer of one suits the other.
    pub fn spoil(self, entries: &[Value]) -> Option<Spoilt> {
        let (first, second) = twins(entries)?;
        let mut spoilt = Spoilt { entries: entries.to_vec(), answer_of: (0..entries.len()).collect() };
        match self {
            Sabotage::Lost => {
                spoilt.entries.remove(first);
                for at in &mut spoilt.answer_of[first + 1..] {
                    *at -= 1;
                }
                spoilt.answer_of[first] = second - 1;
            }
            Sabotage::Unacknowledged => return None,
            Sabotage::Duplicated => spoilt.entries.push(without_number(&entries[first])),
            Sabotage::Reordered => {
                spoilt.entries[first] = without_number(&entries[second]);
                spoilt.entries[second] = without_number(&entries[first]);
            }
        }
        Some(spoilt)
    }
}

/// The first two entries of one key.
fn twins(entries: &[Value]) -> Option<(usize, usize)> {
    let key = |at: usize| entries[at]["PartitionKey"].as_str();
    (1..entries.len()).find_map(|second| Some(((0..second).find(|first| key(*first) == key(second))?, second)))
}

fn without_number(entry: &Value) -> Value {
    let mut entry = entry.clone();
    if let Some(fields) = entry.as_object_mut() {
        fields.remove("Headwater");
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entries(keys: &str) -> Vec<Value> {
        let entry = |(at, key): (usize, char)| json!({"PartitionKey": key, "Data": at, "Headwater": {"Sequence": at}});
        keys.chars().enumerate().map(entry).collect()
    }

    fn shown(sabotage: Sabotage) -> (Vec<(u64, bool)>, Vec<usize>) {
        let spoilt = sabotage.spoil(&entries("abcbd")).unwrap();
        let entry = |entry: &Value| (entry["Data"].as_u64().unwrap(), entry["Headwater"].is_object());
        (spoilt.entries.iter().map(entry).collect(), spoilt.answer_of)
    }

    #[test]
    fn each_breaks_what_it_says_and_every_entry_gets_an_answer_of_its_shard() {
        assert_eq!(shown(Sabotage::Lost), (vec![(0, true), (2, true), (3, true), (4, true)], vec![0, 2, 1, 2, 3]));
        let twice = vec![(0, true), (1, true), (2, true), (3, true), (4, true), (1, false)];
        assert_eq!(shown(Sabotage::Duplicated), (twice, vec![0, 1, 2, 3, 4]));
        let swapped = vec![(0, true), (3, false), (2, true), (1, false), (4, true)];
        assert_eq!(shown(Sabotage::Reordered), (swapped, vec![0, 1, 2, 3, 4]));
    }

    #[test]
    fn without_two_entries_of_a_key_nothing_is_broken() {
        assert_eq!(Sabotage::Lost.spoil(&entries("abcd")), None);
        assert_eq!(Sabotage::Lost.spoil(&[]), None);
    }
}
