//! What devices of the SDK have in a log: JSON objects whose `seq` counts from 1, under the device's id as partition key.

use headwater_tests::audit::{Acked, Tally, Verdict};
use headwater_tests::aws::Got;
use std::collections::BTreeMap;

pub fn seq(got: &Got) -> u64 {
    let value = serde_json::from_slice::<serde_json::Value>(&got.data);
    let seq = value.ok().and_then(|value| value.as_object()?.get("seq")?.as_u64());
    seq.unwrap_or_else(|| panic!("no JSON object with a seq: {:?}", String::from_utf8_lossy(&got.data)))
}

pub fn by_device<'a>(records: impl IntoIterator<Item = &'a Got>) -> BTreeMap<String, Vec<u64>> {
    let mut seen = BTreeMap::<_, Vec<_>>::new();
    for got in records {
        seen.entry(got.key.clone()).or_default().push(seq(got));
    }
    seen
}

/// Each of the devices has its readings 1 to `last` in the log, once, in order, and there is nothing else.
pub fn assert_each_once_in_order(devices: impl IntoIterator<Item = String>, last: u64, log: &[Got]) {
    let acked: Acked = devices.into_iter().map(|device| (device, last)).collect();
    let mut tally = Tally::default();
    log.iter().for_each(|got| tally.push(got.key.clone(), seq(got)));
    let verdict = tally.against(&acked);
    let stored = last * acked.len() as u64;
    assert_eq!(verdict, Verdict { stored, ..Verdict::default() }, "{} devices, {last} readings each", acked.len());
    let strangers = log.iter().filter(|got| !acked.contains_key(&got.key)).count();
    assert_eq!(strangers, 0, "records under other keys than the devices' ids");
}
