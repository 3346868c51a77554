//! Devices that sleep: what `flush` promises, also without a gateway, and the time that they learn from it.

use super::{BATCH, Flash, Heard, PAGE, check, flash, life_with, model};
use embassy_futures::block_on;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_time::{Duration, Instant};
use headwater_device::link::Patience;
use headwater_device::outbox::{Outbox, WhenFull};
use headwater_device::ram::RamFlash;
use headwater_device::{Config, Device, Failure, Recorder, Rest, Transport, memory_bytes};
use model::{Fault, Gateway, Shared, Socket, Wire};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Waker};

/// Nobody is there.
struct Nobody {
    /// The other side does not even say so.
    is_silent: bool,
}

impl Transport for Nobody {
    type Stream<'a> = Socket;
    type Error = ();

    async fn connect(&mut self) -> Result<Socket, ()> {
        if self.is_silent { std::future::pending().await } else { Err(()) }
    }
}

/// One wake of a device with `n` records to make: what `flush` says, and the recorder as it is left.
fn wake<T: Transport>(
    flash: &Flash,
    transport: T,
    recorder: &Recorder<NoopRawMutex, BATCH>,
    records: u64,
    (patience, within): (Patience, Duration),
) -> Rest {
    let mut memory = vec![0; memory_bytes(BATCH)];
    let config = Config { patience, ..Config::new("device", "t") };
    block_on(async {
        let outbox = Outbox::open(flash.clone(), 0..(4 * PAGE) as u32, WhenFull::Refuse, 7).await.unwrap();
        let mut device = Device::new(recorder, outbox, transport, config, &mut memory, 7).unwrap();
        (1..=records).for_each(|number| recorder.try_record(number.to_string().as_bytes()).unwrap());
        device.flush(&mut (), within).await
    })
}

#[test]
fn a_flush_without_a_gateway_ends_in_time_and_says_what_is_left_and_when_to_try_again() {
    for is_silent in [false, true] {
        let (flash, recorder, started) = (flash(), Recorder::new(), Instant::now());
        let (pause, within) = (Duration::from_secs(3_600), Duration::from_millis(80));
        let patience = Patience { pause_min: pause, pause_max: pause, ..Patience::default() };
        let rest = wake(&flash, Nobody { is_silent }, &recorder, 3, (patience, within));
        let took = started.elapsed();
        assert!(took >= within && took < Duration::from_secs(5), "{took:?}");
        assert_eq!(rest.pending, 3);
        let retry_at = rest.retry_at.expect("a time");
        assert!(retry_at <= Instant::now() + pause, "{retry_at:?}");
        let why = if is_silent { Failure::TimedOut } else { Failure::NoStream };
        assert_eq!(recorder.status().failure, Some(why));
        // They are in flash: the next wake finds a gateway and has them delivered.
        let gateway = Gateway::new(&[]);
        let rest = wake(&flash, Wire(Rc::clone(&gateway)), &recorder, 0, (Patience::default(), pause));
        assert_eq!(rest, Rest { pending: 0, retry_at: None });
        check(&gateway, 3, "after a wake without a gateway");
    }
}

#[test]
fn a_flush_with_nothing_to_send_does_not_connect() {
    let started = Instant::now();
    let all = (Patience::default(), Duration::from_secs(60));
    let rest = wake(&flash(), Nobody { is_silent: true }, &Recorder::new(), 0, all);
    assert_eq!(rest, Rest { pending: 0, retry_at: None });
    assert!(started.elapsed() < Duration::from_secs(30));
}

/// Sixty wakes, with a reset before each.
fn sleeps(faults: &[Fault]) -> (u64, Shared) {
    const WAKES: u64 = 60;
    let (flash, gateway) = (flash(), Gateway::new(faults));
    for number in 1..=WAKES {
        let heard = Heard { knock: true, ..Heard::default() };
        let (rest, ..) = life_with(&flash, &gateway, number, u64::MAX, number, heard);
        assert_eq!(rest, Some(Rest { pending: 0, retry_at: None }), "wake {number}");
    }
    check(&gateway, WAKES, "sleeps");
    {
        let gateway = gateway.borrow();
        assert_eq!((u64::from(gateway.publishes), gateway.duplicates), (WAKES, 0), "nothing is sent twice");
    }
    let programmed = flash.0.borrow().programmed;
    (programmed, gateway)
}

/// The fault: each sleep wrote a mark, which on words of 32 bytes is half of what a record of 64 takes.
#[test]
fn a_device_that_sleeps_behind_each_record_programs_its_records_and_sends_each_once() {
    // A frame of one or two digits is two words of eight; a page's head has 32 bytes, and two pages are needed.
    assert_eq!(sleeps(&[]).0, 60 * 16 + 3 * 32);
    // A broker tells nobody what it has: there the mark is written down.
    let with_marks = sleeps(&[Fault::NoHello]).0;
    assert!(with_marks >= 60 * (16 + 24), "{with_marks}");
}

#[test]
fn time_is_the_gateways_as_soon_as_it_has_said_it_and_whatever_it_says() {
    let (flash, recorder, all) = (flash(), Recorder::new(), (Patience::default(), Duration::from_secs(60)));
    let hear = |time_ms: Option<u64>| {
        let gateway = Gateway::new(&[]);
        gateway.borrow_mut().time_ms = time_ms;
        wake(&flash, Wire(gateway), &recorder, 1, all);
        recorder.unix_ms()
    };
    let near = |time: Option<u64>, expected: u64| {
        let time = time.expect("a time");
        assert!((expected..expected + 60_000).contains(&time), "{time} and not {expected}");
    };
    assert_eq!(recorder.unix_ms(), None, "nobody has said it");
    assert_eq!(hear(Some(0)), None, "a gateway that does not know it either");
    near(hear(None), 1_790_000_000_000);
    near(hear(Some(0)), 1_790_000_000_000);
    // The gateway's clock was wrong, one way and the other.
    near(hear(Some(1_600_000_000_000)), 1_600_000_000_000);
    near(hear(Some(9_000_000_000_000)), 9_000_000_000_000);
    // The fault: the end of time wrapped around to its beginning.
    assert_eq!(hear(Some(u64::MAX)), Some(u64::MAX));
    near(hear(None), 1_790_000_000_000);
    recorder.set_unix_ms(1_800_000_000_000);
    near(recorder.unix_ms(), 1_800_000_000_000);
}

/// A deep sleep with the RAM kept, or a reset: the records are there, and their numbers go on.
#[test]
fn an_outbox_in_retained_ram_outlives_a_reset() {
    let mut ram = [0xa5; 2_048];
    let patience = Patience::default();
    let config = Config { patience, ..Config::new("device", "t") };
    let mut wake = |gateway: Option<&Shared>, seed, record: &[u8]| {
        let (recorder, mut memory) = (Recorder::<NoopRawMutex, BATCH>::new(), vec![0; memory_bytes(BATCH)]);
        let flash = RamFlash::<512>::new(&mut ram);
        let range = flash.range();
        block_on(async {
            let outbox = Outbox::open(flash, range, WhenFull::DropOldest, seed).await.unwrap();
            recorder.try_record(record).unwrap();
            let within = Duration::from_millis(if gateway.is_some() { 20_000 } else { 5 });
            match gateway {
                Some(gateway) => {
                    let wire = Wire(Rc::clone(gateway));
                    let mut device = Device::new(&recorder, outbox, wire, config, &mut memory, seed).unwrap();
                    device.flush(&mut (), within).await
                }
                None => {
                    let nobody = Nobody { is_silent: false };
                    let mut device = Device::new(&recorder, outbox, nobody, config, &mut memory, seed).unwrap();
                    device.flush(&mut (), within).await
                }
            }
        })
    };
    let gateway = Gateway::new(&[]);
    assert_eq!(wake(None, 1, b"1").pending, 1);
    assert_eq!(wake(None, 2, b"2").pending, 2);
    assert_eq!(wake(Some(&gateway), 3, b"3").pending, 0);
    assert_eq!(wake(Some(&gateway), 4, b"4").pending, 0);
    check(&gateway, 4, "retained RAM");
    let epochs: Vec<u32> = gateway.borrow().stored.iter().map(|stored| stored.epoch).collect();
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "one life: {epochs:?}");
}

/// The fault: the numbers of a batch that was on its way into flash were counted as records that the flash had lost; and
/// if it was there already, it was stored twice.
#[test]
fn p3_a_run_that_is_dropped_at_any_await_point_loses_and_doubles_nothing_and_tells_no_loss() {
    const RECORDS: u64 = 12;
    for stop in 1..400u32 {
        let (flash, gateway) = (flash(), Gateway::new(&[]));
        let (recorder, mut memory) = (Recorder::<NoopRawMutex, BATCH>::new(), vec![0; memory_bytes(BATCH)]);
        let config = Config { linger: Duration::from_secs(0), ..Config::new("device", "t") };
        let opened = Outbox::open(flash, 0..(4 * PAGE) as u32, WhenFull::Refuse, 7);
        let wire = Wire(Rc::clone(&gateway));
        let mut device = Device::new(&recorder, block_on(opened).unwrap(), wire, config, &mut memory, 7).unwrap();
        let mut number = 0;
        for _ in 0..2 {
            let (mut app, mut polls) = ((), 0);
            let mut run = pin!(device.run(&mut app));
            while polls < stop {
                if number < RECORDS && recorder.try_record((number + 1).to_string().as_bytes()).is_ok() {
                    number += 1;
                }
                let _ = run.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                polls += 1;
            }
        }
        while number < RECORDS {
            block_on(device.flush(&mut (), Duration::from_secs(20)));
            number += u64::from(recorder.try_record((number + 1).to_string().as_bytes()).is_ok());
        }
        let rest = block_on(device.flush(&mut (), Duration::from_secs(20)));
        assert_eq!(rest, Rest { pending: 0, retry_at: None }, "dropped after {stop} polls");
        check(&gateway, RECORDS, &std::format!("dropped after {stop} polls"));
        assert_eq!(recorder.status().outbox.damaged, 0, "dropped after {stop} polls");
    }
}
