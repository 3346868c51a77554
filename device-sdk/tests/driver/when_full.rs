//! A full outbox, as the firmware has chosen, while frames are on their way to a gateway that does not answer.

use super::{BATCH, PAGE, flash, model};
use embassy_futures::block_on;
use embassy_futures::select::select;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_time::{Duration, Instant};
use headwater_device::link::Patience;
use headwater_device::outbox::{Outbox, WhenFull};
use headwater_device::{Config, Device, Recorder, Rest, Status, memory_bytes};
use model::{Fault, Gateway, Shared, Wire, yield_once};
use std::rc::Rc;

const RECORDS: u64 = 1_500;
const WINDOW: usize = 3;

/// Makes all records while the gateway says nothing, and delivers what is left once it does.
fn outage(when_full: WhenFull) -> (Shared, Status, u64) {
    let (flash, gateway) = (flash(), Gateway::new(&[Fault::Silence(5)]));
    let (recorder, mut memory) = (Recorder::<NoopRawMutex, BATCH>::new(), vec![0; memory_bytes(BATCH)]);
    let patience = Patience {
        pause_min: Duration::from_micros(1),
        pause_max: Duration::from_micros(1),
        answer_within: Duration::from_millis(400),
        ..Patience::default()
    };
    let config = Config { window: WINDOW, linger: Duration::from_secs(0), patience, ..Config::new("device", "t") };
    let rest = block_on(async {
        let outbox = Outbox::open(flash, 0..(4 * PAGE) as u32, when_full, 7).await.unwrap();
        let mut device = Device::new(&recorder, outbox, Wire(Rc::clone(&gateway)), config, &mut memory, 7).unwrap();
        let sensor = async {
            for number in 1..=RECORDS {
                recorder.record(number.to_string().as_bytes()).await.unwrap();
                yield_once().await;
            }
        };
        let started = Instant::now();
        select(device.run(&mut ()), sensor).await;
        assert!(started.elapsed() < Duration::from_secs(60));
        device.flush(&mut (), Duration::from_secs(30)).await
    });
    assert_eq!(rest, Rest { pending: 0, retry_at: None }, "{when_full:?}");
    let status = recorder.status();
    (gateway, status, recorder.thinned())
}

#[test]
fn p5_what_a_full_outbox_drops_while_frames_are_on_their_way_is_told_and_nothing_else_is_missing() {
    for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::KeepEvery(5)] {
        let (gateway, status, thinned) = outage(when_full);
        let gateway = gateway.borrow();
        let data = gateway.data();
        assert!(data.windows(2).all(|pair| pair[0] < pair[1]), "{when_full:?}: each once, in order: {data:?}");
        let missing = RECORDS - data.len() as u64;
        let lost = status.outbox;
        assert!(missing > 100, "{when_full:?}: only {missing} are missing");
        assert_eq!((lost.damaged, lost.unwritten, gateway.duplicates), (0, 0, gateway.duplicates));
        let told = lost.dropped_oldest + lost.dropped_newest + thinned;
        // Those on their way were stored, and had no answer: whoever drops them cannot know.
        let on_their_way = (WINDOW * BATCH / 2) as u64;
        assert!((missing..=missing + on_their_way).contains(&told), "{when_full:?}: {told} told, {missing} missing");
        match when_full {
            WhenFull::DropNewest => assert_eq!((lost.dropped_oldest, thinned, told), (0, 0, missing)),
            WhenFull::DropOldest => assert_eq!((lost.dropped_newest, thinned), (0, 0)),
            _ => assert!(thinned > 100 && lost.dropped_newest == 0, "{thinned} {lost:?}"),
        }
        // The gateway knows it as well.
        let last = gateway.losses.last().expect("losses");
        assert_eq!((last.records(), last.thinned), (told, thinned), "{when_full:?}");
        if when_full == WhenFull::DropNewest {
            assert!(data.contains(&1), "the oldest are there");
        } else {
            assert!(data.iter().any(|number| *number > RECORDS - 10), "{when_full:?}: the newest are there");
        }
    }
}
