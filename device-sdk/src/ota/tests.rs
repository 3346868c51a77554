//! The updater, the boot loader and a gateway over one flash, with the power cut at steps all over an update. (The journal, which
//! is what has to survive them, has a test of its own with each step there is.)

use super::*;
use crate::downlink::Downlink;
use crate::sim::{FlashSim, FlashSimError};
use core::task::Context;
use embassy_boot::{BootLoader, BootLoaderConfig};
use embassy_futures::block_on;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embedded_storage_async::nor_flash::{ErrorType, ReadNorFlash};
use headwater_wire::firmware::{Offer, PART_TOPIC, Part, REQUEST_TOPIC, Request, STATUS_TOPIC};
use std::cell::RefCell;
use std::rc::Rc;
use std::string::String;
use std::vec;
use std::vec::Vec;

const PAGE: usize = 512;
const ACTIVE_PAGES: usize = 12;
type Sim = FlashSim<8, PAGE>;

/// Some pages of the one flash.
#[derive(Clone)]
struct Pages {
    chip: Rc<RefCell<Sim>>,
    first: usize,
    pages: usize,
}

impl Pages {
    fn at(&self, offset: u32) -> u32 {
        offset + (self.first * PAGE) as u32
    }
}

impl ErrorType for Pages {
    type Error = FlashSimError;
}

impl ReadNorFlash for Pages {
    const READ_SIZE: usize = 4;

    async fn read(&mut self, at: u32, bytes: &mut [u8]) -> Result<(), FlashSimError> {
        assert!(at as usize + bytes.len() <= self.pages * PAGE);
        block_on(self.chip.borrow_mut().read(self.at(at), bytes))
    }

    fn capacity(&self) -> usize {
        self.pages * PAGE
    }
}

impl NorFlash for Pages {
    const WRITE_SIZE: usize = 8;
    const ERASE_SIZE: usize = PAGE;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), FlashSimError> {
        assert!(to as usize <= self.pages * PAGE);
        block_on(self.chip.borrow_mut().erase(self.at(from), self.at(to)))
    }

    async fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), FlashSimError> {
        assert!(at as usize + bytes.len() <= self.pages * PAGE);
        block_on(self.chip.borrow_mut().write(self.at(at), bytes))
    }
}

/// The same for the boot loader, which blocks.
struct Blocking(Pages);

impl embedded_storage::nor_flash::ErrorType for Blocking {
    type Error = FlashSimError;
}

impl embedded_storage::nor_flash::ReadNorFlash for Blocking {
    const READ_SIZE: usize = 4;

    fn read(&mut self, at: u32, bytes: &mut [u8]) -> Result<(), FlashSimError> {
        block_on(self.0.read(at, bytes))
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl embedded_storage::nor_flash::NorFlash for Blocking {
    const WRITE_SIZE: usize = 8;
    const ERASE_SIZE: usize = PAGE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), FlashSimError> {
        block_on(self.0.erase(from, to))
    }

    fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), FlashSimError> {
        block_on(self.0.write(at, bytes))
    }
}

/// A board with a boot loader. What an image does stands in it: its first byte is its version, the second whether it works.
struct Board {
    chip: Rc<RefCell<Sim>>,
}

const WORKS: u8 = 1;
const VERSIONS: [&str; 5] = ["0", "1", "2", "3", "4"];

fn image(version: u8, works: bool, length: usize) -> Vec<u8> {
    let mut image: Vec<u8> = (0..length).map(|at| (at * 7 + at / 251) as u8 ^ version).collect();
    image[..2].copy_from_slice(&[version, u8::from(works)]);
    image
}

impl Board {
    fn new(image: &[u8]) -> Self {
        let mut sim = Sim::new(2 * ACTIVE_PAGES + 4);
        sim.bytes[..image.len()].copy_from_slice(image);
        Board { chip: Rc::new(RefCell::new(sim)) }
    }

    fn pages(&self, first: usize, pages: usize) -> Pages {
        Pages { chip: self.chip.clone(), first, pages }
    }

    fn active(&self) -> Pages {
        self.pages(0, ACTIVE_PAGES)
    }

    fn dfu(&self) -> Pages {
        self.pages(ACTIVE_PAGES, ACTIVE_PAGES + 1)
    }

    fn state(&self) -> Pages {
        self.pages(2 * ACTIVE_PAGES + 1, 1)
    }

    fn journal(&self) -> Pages {
        self.pages(2 * ACTIVE_PAGES + 2, 2)
    }

    fn running(&self, length: usize) -> Vec<u8> {
        self.chip.borrow().bytes[..length].to_vec()
    }

    /// From power-on until the firmware wants a reset, the power goes, or the gateway has heard enough.
    fn start(&self, gateway: &mut Gateway, until: impl Fn(&str) -> bool) -> Option<Restart> {
        let (active, dfu, state) = (Blocking(self.active()), Blocking(self.dfu()), Blocking(self.state()));
        let mut boot = BootLoader::new(BootLoaderConfig { active, dfu, state });
        boot.prepare_boot(&mut [0; PAGE]).ok()?;
        let head = self.running(2);
        let mailbox = Mailbox::<NoopRawMutex>::new(VERSIONS[usize::from(head[0])]);
        if head[1] == WORKS {
            mailbox.confirm();
        }
        let partitions = Partitions { dfu: self.dfu(), state: self.state(), journal: self.journal() };
        let mut updater = Updater::new(&mailbox, partitions, &gateway.public, Duration::from_millis(1)).unwrap();
        let mut downlink = mailbox.downlink(());
        let talk = async {
            if let Some(offer) = &gateway.offer {
                downlink.message("firmware", offer);
            }
            loop {
                poll_fn(|context| match self.chip.borrow().power {
                    Some(0) => Poll::Ready(()),
                    _ => downlink.poll_outgoing(context),
                })
                .await;
                if self.chip.borrow().power == Some(0) || gateway.hear(&mut downlink, &until) {
                    return;
                }
                yield_now().await;
            }
        };
        let cut = poll_fn(|context: &mut Context<'_>| {
            context.waker().wake_by_ref();
            if self.chip.borrow().power == Some(0) { Poll::Ready(()) } else { Poll::Pending }
        });
        match block_on(select(updater.run(), select(talk, cut))) {
            Either::First(restart) => Some(restart),
            Either::Second(_) => None,
        }
    }

    /// Starts again and again until the gateway has heard it, at most so often.
    fn start_until(&self, gateway: &mut Gateway, until: impl Fn(&str) -> bool) {
        for _ in 0..8 {
            self.start(gateway, &until);
            if gateway.said.last().is_some_and(|said| until(said)) {
                return;
            }
            let after = self.chip.borrow().after_reset();
            *self.chip.borrow_mut() = after;
        }
        panic!("it never said that: {:?}", gateway.said);
    }
}

struct Gateway {
    public: [u8; 32],
    offer: Option<Vec<u8>>,
    image: Vec<u8>,
    said: Vec<String>,
    asked_bytes: usize,
    /// Every n-th answer is lost.
    lose: Option<usize>,
    answers: usize,
}

impl Gateway {
    fn new() -> Self {
        let public = salty::Keypair::from(&[7; 32]).public.to_bytes();
        Gateway { public, offer: None, image: vec![], said: vec![], asked_bytes: 0, lose: None, answers: 0 }
    }

    fn offer(&mut self, id: u32, version: &str, image: &[u8]) {
        let signature = salty::Keypair::from(&[7; 32]).sign(&digest(image)).to_bytes();
        self.offer_as(Offer { id, length: image.len() as u32, signature: &signature, version }, image);
    }

    fn offer_as(&mut self, offer: Offer<'_>, image: &[u8]) {
        let mut bytes = [0; 128];
        let length = offer.write(&mut bytes).unwrap();
        self.offer = Some(bytes[..length].to_vec());
        self.image = image.to_vec();
        self.said.clear();
    }

    /// Takes a message and answers it; whether it was one that the test waits for.
    fn hear(&mut self, downlink: &mut impl Downlink, until: &impl Fn(&str) -> bool) -> bool {
        let mut bytes = [0; 128];
        let Some((what, length)) = downlink.outgoing(&mut bytes) else { return false };
        let payload = &bytes[..length];
        match what {
            STATUS_TOPIC => {
                self.said.push(String::from_utf8(payload.to_vec()).unwrap());
                return until(&self.said[self.said.len() - 1]);
            }
            REQUEST_TOPIC => {
                let request = Request::read(payload).unwrap();
                self.asked_bytes += usize::from(request.length);
                self.answers += 1;
                if self.lose.is_some_and(|every| self.answers.is_multiple_of(every)) {
                    return false;
                }
                let from = (request.offset as usize).min(self.image.len());
                let to = (from + usize::from(request.length)).min(self.image.len());
                let part = Part { id: request.id, offset: request.offset, bytes: &self.image[from..to] };
                downlink.message(PART_TOPIC, &[&part.head()[..], part.bytes].concat());
            }
            other => panic!("{other}"),
        }
        false
    }
}

fn digest(image: &[u8]) -> [u8; 64] {
    let mut digest = Sha512::new();
    digest.update(image);
    digest.finalize()
}

const LENGTH: usize = 5_001;

#[test]
fn a_firmware_is_downloaded_verified_tried_and_kept() {
    let board = Board::new(&image(1, true, LENGTH));
    let mut gateway = Gateway::new();
    let two = image(2, true, LENGTH);
    gateway.offer(1, "2", &two);
    assert_eq!(board.start(&mut gateway, |_| false), Some(Restart::Update));
    let tens = (0..=90).step_by(10).map(|done| std::format!("downloading 2 {done:03}%"));
    let mut expected: Vec<String> = tens.collect();
    expected.push("verified 2".into());
    assert_eq!(gateway.said[gateway.said.len() - expected.len()..], expected);
    assert_eq!(gateway.asked_bytes, LENGTH, "each byte is asked for once");
    board.start_until(&mut gateway, |said| said == "running 2");
    assert_eq!(board.running(LENGTH), two);
    // It stays, and is not downloaded again.
    board.start_until(&mut gateway, |said| said == "running 2");
    assert_eq!((board.running(LENGTH), gateway.asked_bytes), (two, LENGTH));
}

#[test]
fn what_does_not_work_is_rolled_back_told_and_not_tried_again() {
    let one = image(1, true, LENGTH);
    let board = Board::new(&one);
    let mut gateway = Gateway::new();
    gateway.offer(1, "4", &image(4, false, LENGTH));
    assert_eq!(board.start(&mut gateway, |_| false), Some(Restart::Update));
    assert_eq!(board.start(&mut gateway, |_| false), Some(Restart::Rollback));
    assert_eq!(gateway.said.last().unwrap(), "trying 4");
    for _ in 0..2 {
        board.start_until(&mut gateway, |said| said == "rolled back 4");
    }
    assert_eq!((board.running(LENGTH), gateway.asked_bytes), (one, LENGTH));
    // The next one is taken all the same.
    let two = image(2, true, LENGTH);
    gateway.offer(2, "2", &two);
    board.start_until(&mut gateway, |said| said == "running 2");
    assert_eq!(board.running(LENGTH), two);
}

#[test]
fn what_is_not_signed_does_not_fit_or_ends_early_is_refused_for_good() {
    let one = image(1, true, LENGTH);
    let board = Board::new(&one);
    let three = image(3, true, LENGTH);
    let signature = salty::Keypair::from(&[7; 32]).sign(&digest(&three)).to_bytes();
    let good = Offer { id: 1, length: LENGTH as u32, signature: &signature, version: "3" };
    let others = salty::Keypair::from(&[8; 32]).sign(&digest(&three)).to_bytes();
    let cases = [
        (Offer { signature: &others, ..good }, LENGTH, "rejected 3: wrong signature"),
        (Offer { id: 2, length: LENGTH as u32 - 1, ..good }, LENGTH, "rejected 3: wrong signature"),
        (Offer { id: 3, length: LENGTH as u32 + 1, ..good }, LENGTH, "rejected 3: truncated"),
        (Offer { id: 4, ..good }, 3_000, "rejected 3: truncated"),
        (Offer { id: 5, length: 0, ..good }, LENGTH, "rejected 3: does not fit"),
        (Offer { id: 6, length: (ACTIVE_PAGES * PAGE) as u32 + 1, ..good }, LENGTH, "rejected 3: does not fit"),
    ];
    for (offer, bytes, expected) in cases {
        let mut gateway = Gateway::new();
        gateway.offer_as(offer, &three[..bytes]);
        board.start_until(&mut gateway, |said| said == expected);
        let asked = gateway.asked_bytes;
        board.start_until(&mut gateway, |said| said == expected);
        assert_eq!((board.running(LENGTH), gateway.asked_bytes), (one.clone(), asked), "{expected}");
    }
    let mut gateway = Gateway::new();
    gateway.offer = Some(b"nonsense".to_vec());
    board.start_until(&mut gateway, |said| said == "rejected ?: malformed offer");
}

/// Every 503rd step, which is a prime: all kinds of steps come up. All of them, 18,000 updates with a signature each, would take
/// an hour.
#[test]
fn a_power_cut_anywhere_in_an_update_costs_at_most_a_page_and_never_the_board() {
    let (one, two) = (image(1, true, LENGTH), image(2, true, LENGTH));
    let mut steps = 0;
    for cut in (0..).step_by(503) {
        let board = Board::new(&one);
        let mut gateway = Gateway::new();
        gateway.offer(1, "2", &two);
        board.chip.borrow_mut().power = Some(cut);
        board.start_until(&mut gateway, |said| said == "running 2" || said == "rolled back 2");
        // A cut between the exchange and the confirmation is a trial that failed.
        let kept = if gateway.said.last().unwrap() == "running 2" { &two } else { &one };
        assert_eq!(board.running(LENGTH), *kept, "cut at {cut}: {:?}", gateway.said);
        let most = LENGTH + NOTE_EVERY_BYTES as usize + 2 * PART_BYTES;
        assert!(gateway.asked_bytes <= most, "cut at {cut}: {} bytes asked for", gateway.asked_bytes);
        steps = board.chip.borrow().steps;
        if cut > steps {
            break;
        }
    }
    assert!(steps > 10_000, "{steps}");
}

#[test]
fn lost_parts_are_asked_for_again() {
    let board = Board::new(&image(1, true, LENGTH));
    let mut gateway = Gateway { lose: Some(9), ..Gateway::new() };
    gateway.offer(1, "2", &image(2, true, LENGTH));
    board.start_until(&mut gateway, |said| said == "running 2");
    assert!(gateway.asked_bytes > LENGTH, "{}", gateway.asked_bytes);
}
