//! The whole SDK over a flash simulator and a model of the gateway: promise P3 on the device's side.

mod model;
mod rest;
mod when_full;

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_time::{Duration, Instant};
use embedded_storage_async::nor_flash::{ErrorType, NorFlash, ReadNorFlash};
use headwater_device::link::Patience;
use headwater_device::outbox::{Outbox, WhenFull};
use headwater_device::sim::{FlashSim, FlashSimError};
use headwater_device::{Blob, Config, Device, Downlink, Recorder, Rest, memory_bytes};
use headwater_device_host as _;
use model::{Fault, Gateway, Shared, Wire, yield_once};
use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

const BATCH: usize = 48;
const WORD: usize = 8;
const PAGE: usize = 512;
type Sim = FlashSim<WORD, PAGE>;

/// Flash that outlives the device, and programs word by word with a place to stop between any two.
#[derive(Clone)]
struct Flash(Rc<RefCell<Sim>>);

impl ErrorType for Flash {
    type Error = FlashSimError;
}

impl ReadNorFlash for Flash {
    const READ_SIZE: usize = 4;

    async fn read(&mut self, at: u32, bytes: &mut [u8]) -> Result<(), FlashSimError> {
        ready(self.0.borrow_mut().read(at, bytes))
    }

    fn capacity(&self) -> usize {
        self.0.borrow().bytes.len()
    }
}

impl NorFlash for Flash {
    const WRITE_SIZE: usize = WORD;
    const ERASE_SIZE: usize = PAGE;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), FlashSimError> {
        yield_once().await;
        let done = ready(self.0.borrow_mut().erase(from, to));
        yield_once().await;
        done
    }

    async fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), FlashSimError> {
        for (word, bytes) in bytes.chunks(WORD).enumerate() {
            yield_once().await;
            ready(self.0.borrow_mut().write(at + (word * WORD) as u32, bytes))?;
        }
        yield_once().await;
        Ok(())
    }
}

/// What is always done at once.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

#[derive(Default)]
struct Heard {
    config: Vec<u8>,
    commands: Vec<Vec<u8>>,
    level: String,
    /// Still to be sent.
    picture: Option<Vec<u8>>,
    /// All records are made by a `flush` and not by a `run`.
    knock: bool,
    ended: Option<bool>,
}

impl Downlink for &mut Heard {
    fn config(&mut self, config: &[u8]) {
        self.config = config.to_vec();
    }

    fn command(&mut self, command: &[u8], answer: &mut [u8]) -> usize {
        self.commands.push(command.to_vec());
        answer[..4].copy_from_slice(b"done");
        4
    }

    fn blob(&mut self) -> Option<Blob> {
        self.picture.as_ref().map(|picture| Blob { id: 5, length: picture.len() as u64 })
    }

    async fn read_blob(&mut self, id: u32, offset: u64, into: &mut [u8]) -> bool {
        yield_once().await;
        let picture = self.picture.as_ref().filter(|_| id == 5).unwrap();
        into.copy_from_slice(&picture[offset as usize..][..into.len()]);
        true
    }

    fn blob_ended(&mut self, id: u32, delivered: bool) {
        assert_eq!(id, 5);
        self.picture = None;
        self.ended = Some(delivered);
    }

    fn log_level(&mut self, level: &str) {
        level.clone_into(&mut self.level);
    }
}

/// One life of the device, from power on: makes what was not made of `records`, sends all, and rests. `None` if it was
/// stopped after so many polls of its future; each operation of flash and network is one at least.
fn life(flash: &Flash, gateway: &Shared, records: u64, polls_max: u64, seed: u64) -> (Option<Rest>, u64, Heard) {
    life_with(flash, gateway, records, polls_max, seed, Heard::default())
}

fn life_with(
    flash: &Flash,
    gateway: &Shared,
    records: u64,
    polls_max: u64,
    seed: u64,
    mut heard: Heard,
) -> (Option<Rest>, u64, Heard) {
    let recorder = Recorder::<NoopRawMutex, BATCH>::new();
    let (mut memory, mut polls) = (vec![0; memory_bytes(BATCH)], 0);
    let rest = {
        let work = async {
            let outbox = Outbox::open(flash.clone(), 0..(4 * PAGE) as u32, WhenFull::Refuse, seed).await.unwrap();
            // Real time passes on a busy machine: only where no hello comes must it be short.
            let slow = gateway.borrow().faults.iter().any(|fault| matches!(fault, Fault::Silence(_)));
            let silent = gateway.borrow().faults.contains(&Fault::NoHello);
            let patience = Patience {
                pause_min: Duration::from_micros(1),
                pause_max: Duration::from_micros(1),
                answer_within: Duration::from_millis(if slow { 200 } else { 10_000 }),
                hello_within: Duration::from_millis(if silent { 5 } else { 10_000 }),
            };
            let config = Config { window: 3, linger: Duration::from_secs(0), patience, ..Config::new("device", "t") };
            let wire = Wire(Rc::clone(gateway));
            let mut device = Device::new(&recorder, outbox, wire, config, &mut memory, seed).unwrap();
            let first = recorder.status().next_number;
            let sensor = async {
                for number in first..=records {
                    recorder.record(number.to_string().as_bytes()).await.unwrap();
                    yield_once().await;
                }
                while !recorder.is_empty() || recorder.status().pending > 0 {
                    yield_once().await;
                }
            };
            let mut app = &mut heard;
            if app.knock {
                recorder.try_record(records.to_string().as_bytes()).unwrap();
            } else {
                embassy_futures::select::select(device.run(&mut app), sensor).await;
            }
            device.flush(&mut app, Duration::from_secs(5)).await
        };
        let mut work = pin!(work);
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if polls == polls_max {
                break None;
            }
            polls += 1;
            match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(rest) => break Some(rest),
                Poll::Pending => assert!(Instant::now() < end, "it does not come to an end: {gateway:?}"),
            }
        }
    };
    (rest, polls, heard)
}

fn flash() -> Flash {
    Flash(Rc::new(RefCell::new(Sim::new(4))))
}

fn check(gateway: &Shared, records: u64, what: &str) {
    let data = gateway.borrow().data();
    assert_eq!(data, (1..=records).collect::<Vec<_>>(), "{what}: {:?}", gateway.borrow());
}

#[test]
fn p3_a_reset_at_each_await_point_loses_and_doubles_nothing() {
    const RECORDS: u64 = 120;
    let whole = life(&flash(), &Gateway::new(&[]), RECORDS, u64::MAX, 0).1;
    assert!(whole > 150, "{whole}");
    for stop in 1..whole {
        let (flash, gateway) = (flash(), Gateway::new(&[]));
        life(&flash, &gateway, RECORDS, stop, stop);
        let (rest, ..) = life(&flash, &gateway, RECORDS, u64::MAX, stop ^ 0xffff);
        assert_eq!(rest, Some(Rest { pending: 0, retry_at: None }), "stopped at {stop}");
        check(&gateway, RECORDS, &format!("stopped at {stop}"));
    }
}

#[test]
fn p3_many_resets_and_lost_answers_lose_and_double_nothing() {
    for seed in 0..300u64 {
        let mut random = fastrand_like(seed);
        let faults: Vec<Fault> = (0..6)
            .map(|_| {
                let at = 1 + random(60) as u32;
                match random(4) {
                    0 => Fault::LoseAnswer(at),
                    1 => Fault::Refuse(at, 0x97),
                    2 => Fault::Garbage(at),
                    _ => Fault::HalfPacket(at),
                }
            })
            .collect();
        let (flash, gateway) = (flash(), Gateway::new(&faults));
        let records = 80;
        for _ in 0..8 {
            life(&flash, &gateway, records, 1 + random(900), random(u64::MAX));
        }
        life(&flash, &gateway, records, u64::MAX, random(u64::MAX));
        check(&gateway, records, &format!("seed {seed}, {faults:?}"));
    }
}

fn fastrand_like(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

#[test]
fn each_fault_of_a_gateway_is_survived() {
    for fault in [
        Fault::LoseAnswer(2),
        Fault::Refuse(2, 0x97),
        Fault::Refuse(1, 0x90),
        Fault::Garbage(3),
        Fault::HalfPacket(1),
        Fault::Silence(2),
        Fault::NoHello,
    ] {
        let (flash, gateway) = (flash(), Gateway::new(&[fault]));
        let (rest, ..) = life(&flash, &gateway, 40, u64::MAX, 5);
        assert_eq!(rest.map(|rest| rest.pending), Some(0), "{fault:?}");
        check(&gateway, 40, &format!("{fault:?}"));
    }
}

#[test]
fn what_a_gateway_calls_malformed_is_counted_and_not_sent_for_ever() {
    let (flash, gateway) = (flash(), Gateway::new(&[Fault::Refuse(2, 0x99)]));
    let (rest, ..) = life(&flash, &gateway, 40, u64::MAX, 5);
    assert_eq!(rest.map(|rest| rest.pending), Some(0));
    let data = gateway.borrow().data();
    assert!(data.len() < 40 && data.windows(2).all(|pair| pair[0] < pair[1]), "{data:?}");
    assert_eq!(gateway.borrow().connections, 1);
}

#[test]
fn a_device_that_lost_its_flash_is_not_taken_for_the_old_one() {
    let gateway = Gateway::new(&[]);
    life(&flash(), &gateway, 10, u64::MAX, 1);
    life(&flash(), &gateway, 10, u64::MAX, 2);
    let stored = &gateway.borrow().stored;
    assert_eq!(stored.len(), 20);
    assert_ne!(stored[0].epoch, stored[10].epoch);
}

#[test]
fn configuration_commands_and_log_level_come_down_and_an_answer_goes_up() {
    let gateway = Gateway::new(&[]);
    let down = |what: &str, payload: &[u8]| (format!("$headwater/d/device/{what}"), payload.to_vec());
    gateway.borrow_mut().down =
        vec![down("config", b"interval=5"), down("command", b"reboot"), down("log", b"debug"), down("nonsense", b"x")];
    let (_, _, heard) = life(&flash(), &gateway, 10, u64::MAX, 1);
    assert_eq!((&heard.config[..], &heard.commands[..]), (&b"interval=5"[..], &[b"reboot".to_vec()][..]));
    assert_eq!(heard.level, "debug");
    assert_eq!(gateway.borrow().answers, [b"done".to_vec()]);
}

#[test]
fn a_device_that_rests_says_goodbye() {
    let gateway = Gateway::new(&[]);
    life_with(&flash(), &gateway, 1, u64::MAX, 1, Heard { knock: true, ..Heard::default() });
    assert_eq!((gateway.borrow().connections, gateway.borrow().goodbyes), (1, 1));
}

#[test]
fn a_gateway_that_gives_no_sign_of_life_is_left() {
    for (faults, connections) in [(&[][..], 1), (&[Fault::NoPong][..], 2)] {
        let gateway = Gateway::new(faults);
        let recorder = Recorder::<NoopRawMutex, BATCH>::new();
        let mut memory = vec![0; memory_bytes(BATCH)];
        let outbox = Outbox::open(flash(), 0..(4 * PAGE) as u32, WhenFull::Refuse, 1);
        let outbox = embassy_futures::block_on(outbox).unwrap();
        let patience = Patience {
            pause_min: Duration::from_micros(1),
            pause_max: Duration::from_micros(1),
            answer_within: Duration::from_millis(400),
            ..Patience::default()
        };
        let config = Config { keep_alive: Duration::from_secs(1), patience, ..Config::new("device", "t") };
        let mut device = Device::new(&recorder, outbox, Wire(Rc::clone(&gateway)), config, &mut memory, 1).unwrap();
        let mut app = ();
        let mut work = pin!(device.run(&mut app));
        let end = Instant::now() + Duration::from_millis(1_600);
        while Instant::now() < end {
            assert!(work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            std::thread::yield_now();
        }
        assert_eq!(gateway.borrow().connections, connections, "{faults:?}");
    }
}

/// On a computer devices are tasks of a multi-threaded runtime; the demo of the gateway spawns them.
#[test]
fn a_device_may_move_between_threads() {
    use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
    use headwater_device::ram::RamFlash;
    use headwater_device_host::Tcp;
    static RECORDER: Recorder<CriticalSectionRawMutex, BATCH> = Recorder::new();
    fn is_send<T: Send>(_: &T) {}
    let (mut ram, mut memory) = ([0; 2048], vec![0; memory_bytes(BATCH)]);
    let outbox = ready(Outbox::open(RamFlash::<512>::new(&mut ram), 0..2048, WhenFull::Refuse, 1)).unwrap();
    let config = Config::new("device", "t");
    let device = Device::new(&RECORDER, outbox, Tcp(([127, 0, 0, 1], 1).into()), config, &mut memory, 1);
    let (mut device, mut app) = (device.unwrap(), ());
    is_send(&device.run(&mut app));
}

#[test]
fn a_blob_goes_on_after_a_reset_where_the_gateway_has_it() {
    let picture: Vec<u8> = (0..1_000u32).map(|at| (at * 7 % 251) as u8).collect();
    let with_picture = || Heard { picture: Some(picture.clone()), ..Heard::default() };
    let (all, gateway) = (flash(), Gateway::new(&[]));
    let (_, whole, heard) = life_with(&all, &gateway, 30, u64::MAX, 1, with_picture());
    assert_eq!(heard.ended, Some(true));
    assert!(gateway.borrow().blob_bytes == picture);
    let parts = gateway.borrow().chunks;
    assert!(parts > 30, "{parts}");
    for stop in 1..whole {
        let (flash, gateway) = (flash(), Gateway::new(&[Fault::LoseAnswer(9), Fault::Refuse(20, 0x97)]));
        life_with(&flash, &gateway, 30, stop, stop, with_picture());
        let (_, _, heard) = life_with(&flash, &gateway, 30, u64::MAX, stop ^ 0xff, with_picture());
        check(&gateway, 30, &format!("stopped at {stop}"));
        let gateway = gateway.borrow();
        assert_eq!(heard.ended, Some(true), "stopped at {stop}");
        assert!(gateway.blob_bytes == picture, "stopped at {stop}");
        // What was on its way at a reset, a lost answer or a refusal comes again, and nothing else does.
        assert!(gateway.chunks <= parts + 9, "stopped at {stop}: {} of {parts}", gateway.chunks);
    }
}

#[test]
fn a_device_that_has_nothing_to_send_takes_its_configuration_along() {
    let (flash, gateway) = (flash(), Gateway::new(&[]));
    life(&flash, &gateway, 10, u64::MAX, 1);
    // The hello says that the gateway has the next one already, as after a lost answer: there is nothing left to send.
    let kept = gateway.borrow().kept.map(|(epoch, _)| (epoch, 11));
    gateway.borrow_mut().kept = kept;
    gateway.borrow_mut().down = vec![("$headwater/d/device/config".to_owned(), b"interval=9".to_vec())];
    let mut heard = Heard { knock: true, ..Heard::default() };
    heard = life_with(&flash, &gateway, 11, u64::MAX, 2, heard).2;
    assert_eq!(heard.config, b"interval=9");
}

#[test]
fn p5_the_gateway_is_told_what_was_lost() {
    let knock = || Heard { knock: true, ..Heard::default() };
    let gateway = Gateway::new(&[Fault::Refuse(1, 0x99)]);
    life_with(&flash(), &gateway, 1, u64::MAX, 1, knock());
    let told = gateway.borrow().losses.clone();
    let rejected: Vec<_> = told.iter().map(|losses| (losses.records(), losses.rejected, losses.pending)).collect();
    assert_eq!(rejected, [(0, 0, 1), (1, 1, 0)], "with the hello, and before it sleeps");
    assert!(told[1].programmed_bytes > 20 && told[1].erases > 0, "{told:?}");
    // Nothing new is told once a connection.
    let gateway = Gateway::new(&[]);
    life(&flash(), &gateway, 60, u64::MAX, 1);
    assert_eq!(gateway.borrow().losses.len(), 1);
    // Whoever greets nobody does not understand it.
    let broker = Gateway::new(&[Fault::NoHello, Fault::Refuse(1, 0x99)]);
    life_with(&flash(), &broker, 1, u64::MAX, 1, knock());
    assert_eq!(broker.borrow().losses, []);
}
