//! The outbox over a simulated flash: power cuts at each step, flipped bits, a full ring, wear.

use super::*;
use crate::sim::{FlashSim, FlashSimError};
use embassy_futures::block_on;
use std::vec::Vec;

const PAGES: usize = 4;
const PAGE: usize = 512;
type Small = FlashSim<8, PAGE>;

fn open<const W: usize, const P: usize>(flash: FlashSim<W, P>, when_full: WhenFull) -> Outbox<FlashSim<W, P>> {
    let range = 0..flash.bytes.len() as u32;
    let seed = flash.steps;
    block_on(Outbox::open(flash, range, when_full, seed)).unwrap()
}

/// A frame whose body says which numbers it should have.
fn append<const W: usize, const P: usize>(
    outbox: &mut Outbox<FlashSim<W, P>>,
    count: u16,
    length: usize,
) -> Result<Option<u64>, Error<FlashSimError>> {
    let mut buffer = [0; 1_024];
    let next = outbox.next_number();
    buffer[HEAD_ROOM..HEAD_ROOM + length].fill(next as u8);
    block_on(outbox.append(Kind::Plain, count, &mut buffer, length))
}

/// All that is not sent yet: epoch, first number and count of each frame.
fn drain<const W: usize, const P: usize>(outbox: &mut Outbox<FlashSim<W, P>>) -> Vec<(u32, u64, u16)> {
    let (mut buffer, mut all) = ([0; 1_024], Vec::new());
    while let Some(frame) = block_on(outbox.load(&mut buffer)).unwrap() {
        assert!(buffer[HEAD_ROOM..HEAD_ROOM + frame.length].iter().all(|byte| *byte == frame.first as u8), "{frame:?}");
        outbox.sent(&frame);
        all.push((frame.epoch, frame.first, frame.count));
    }
    all
}

fn numbers(frames: &[(u32, u64, u16)]) -> Vec<u64> {
    frames.iter().flat_map(|(_, first, count)| *first..*first + u64::from(*count)).collect()
}

#[test]
fn records_go_round_the_ring_in_order_and_erases_with_them() {
    let mut outbox = open(Small::new(PAGES), WhenFull::Refuse);
    let mut expected = 1;
    for _ in 0..400 {
        for _ in 0..3 {
            append(&mut outbox, 2, 50).unwrap();
        }
        let sent = drain(&mut outbox);
        assert_eq!(numbers(&sent), (expected..expected + 6).collect::<Vec<_>>());
        expected += 6;
        block_on(outbox.release(expected - 1)).unwrap();
        assert!(outbox.is_empty());
    }
    let erased = &outbox.flash().erased;
    assert!(erased.iter().max().unwrap() - erased.iter().min().unwrap() <= 1, "{erased:?}");
    assert_eq!(outbox.counters().damaged, 0);
}

#[test]
fn after_a_reset_all_that_is_not_released_is_there_and_numbers_go_on() {
    let mut outbox = open(Small::new(PAGES), WhenFull::Refuse);
    (0..5).for_each(|_| _ = append(&mut outbox, 3, 60).unwrap());
    let epoch = outbox.epoch();
    drain(&mut outbox);
    block_on(outbox.release(6)).unwrap();
    block_on(outbox.mark()).unwrap();
    let mut again = open(outbox.flash().after_reset(), WhenFull::Refuse);
    assert_eq!((again.epoch(), again.next_number(), again.len()), (epoch, 16, 9));
    assert_eq!(numbers(&drain(&mut again)), (7..16).collect::<Vec<_>>());
    assert_eq!(append(&mut again, 1, 10).unwrap(), Some(16));
    assert_eq!(numbers(&drain(&mut again)), [16]);
    // Half a frame is not released.
    again.rewind();
    block_on(again.release(8)).unwrap();
    assert_eq!(numbers(&drain(&mut again)), (7..17).collect::<Vec<_>>());
}

#[test]
fn what_the_gateway_says_it_has_is_not_sent_again() {
    let mut outbox = open(Small::new(PAGES), WhenFull::Refuse);
    (0..5).for_each(|_| _ = append(&mut outbox, 3, 60).unwrap());
    let mut again = open(outbox.flash().after_reset(), WhenFull::Refuse);
    block_on(again.release_epoch(again.epoch() ^ 8, 12)).unwrap();
    assert_eq!(again.len(), 15, "an epoch that is not known here says nothing");
    block_on(again.release_epoch(again.epoch(), 9)).unwrap();
    assert_eq!(numbers(&drain(&mut again)), (10..16).collect::<Vec<_>>());
}

#[test]
fn a_flash_that_has_forgotten_its_end_gives_no_number_twice() {
    let outbox = open(Small::new(PAGES), WhenFull::Refuse);
    let mut early = outbox;
    append(&mut early, 3, 60).unwrap();
    let mut again = open(early.flash().after_reset(), WhenFull::Refuse);
    append(&mut again, 1, 60).unwrap();
    let epoch = again.epoch();
    block_on(again.release_epoch(epoch, 90)).unwrap();
    assert_ne!(again.epoch(), epoch);
    assert_eq!(again.counters().damaged, 1, "number 4 would be taken for one that the gateway has");
    append(&mut again, 1, 60).unwrap();
    assert_ne!(drain(&mut again)[0].0, epoch);
}

#[test]
fn a_full_ring_does_what_was_chosen() {
    for when_full in [WhenFull::Refuse, WhenFull::DropNewest, WhenFull::DropOldest, WhenFull::KeepEvery(3)] {
        let mut outbox = open(Small::new(PAGES), when_full);
        let (mut taken, mut refused, mut thinned) = (0, 0, 0);
        for turn in 0..100 {
            if outbox.keep_every().is_some_and(|every| turn % u64::from(every) != 0) {
                thinned += 1;
                continue;
            }
            match append(&mut outbox, 1, 64) {
                Ok(Some(_)) => taken += 1,
                Ok(None) => {}
                Err(error) => {
                    assert_eq!(error, Error::Full);
                    refused += 1;
                }
            }
        }
        let counters = outbox.counters();
        let sent = numbers(&drain(&mut outbox));
        assert!(sent.windows(2).all(|pair| pair[1] == pair[0] + 1), "{sent:?}");
        let kept = sent.len() as u64;
        match when_full {
            WhenFull::Refuse => assert_eq!((kept, refused), (taken, 100 - taken)),
            WhenFull::DropNewest => assert_eq!((kept, counters.dropped_newest), (taken, 100 - taken)),
            WhenFull::DropOldest => assert_eq!((taken, counters.dropped_oldest), (100, 100 - kept)),
            WhenFull::KeepEvery(_) => {
                assert_eq!(taken + thinned, 100);
                assert_eq!(taken, kept + counters.dropped_oldest);
                assert!(thinned > 40, "{counters:?}");
            }
        }
        // With room again it goes on.
        block_on(outbox.release(u64::MAX)).unwrap();
        assert!(append(&mut outbox, 1, 64).unwrap().is_some());
    }
}

/// Runs until the power goes at step `cut`, and returns the flash and what was appended, released, and the last try.
fn until_power_goes<const W: usize, const P: usize>(cut: u64, has_ecc: bool) -> (FlashSim<W, P>, Vec<u64>, u64) {
    let (mut flash, when_full) = (FlashSim::<W, P>::new(PAGES), WhenFull::DropOldest);
    flash.has_ecc = has_ecc;
    flash.power = Some(cut);
    let range = 0..flash.bytes.len() as u32;
    let Ok(mut outbox) = block_on(Outbox::open(flash.clone(), range, when_full, 1)) else {
        // The cut fell into the making of the ring: what it left is what the next start finds.
        let mut left = flash.clone();
        let _ = block_on(left.erase(0, left.bytes.len() as u32));
        return (left, Vec::new(), 0);
    };
    let (mut stored, mut released) = (Vec::new(), 0);
    for turn in 0..40u64 {
        let count = 1 + (turn % 3) as u16;
        let length = 20 + (turn as usize * 7) % 60;
        match append(&mut outbox, count, length) {
            Ok(Some(first)) => stored.extend(first..first + u64::from(count)),
            Ok(None) => unreachable!(),
            Err(_) => break,
        }
        if turn % 4 == 3 {
            released = stored[stored.len() - 3];
            let _ = block_on(outbox.release(released));
            if turn % 8 == 3 && block_on(outbox.mark()).is_err() {
                break;
            }
        }
    }
    (outbox.flash().clone(), stored, released)
}

fn every_cut<const W: usize, const P: usize>(has_ecc: bool) {
    let whole = until_power_goes::<W, P>(u64::MAX, has_ecc).0.steps;
    assert!(whole > 2_000);
    for cut in 0..whole {
        let (flash, stored, released) = until_power_goes::<W, P>(cut, has_ecc);
        let mut again = open(flash.after_reset(), WhenFull::DropOldest);
        let found = drain(&mut again);
        let got = numbers(&found);
        assert!(got.windows(2).all(|pair| pair[0] < pair[1]), "cut at {cut}: {got:?}");
        // Everything appended and not released is there, but for a page that the policy dropped when the cut came.
        let missing: Vec<u64> = stored.iter().filter(|n| **n > released && !got.contains(n)).copied().collect();
        let oldest = got.first().copied().unwrap_or(u64::MAX);
        assert!(missing.iter().all(|n| *n < oldest) || missing.is_empty(), "cut at {cut}: {missing:?} of {got:?}");
        // What was being written is there whole or not at all, and its number is not given again under this epoch.
        let last = stored.last().copied().unwrap_or(0);
        let extra: Vec<u64> = got.iter().filter(|n| **n > last).copied().collect();
        assert!(extra.len() <= 3, "cut at {cut}: {extra:?}");
        let (epoch, next) = (again.epoch(), again.next_number());
        let mut known: Vec<(u32, u64)> =
            found.iter().flat_map(|(e, f, c)| (*f..*f + u64::from(*c)).map(|n| (*e, n))).collect();
        known.extend(found.first().map(|(e, ..)| *e).into_iter().flat_map(|e| stored.iter().map(move |n| (e, *n))));
        assert!(!known.contains(&(epoch, next)), "cut at {cut}: {epoch}/{next} twice");
        // And it goes on, round and round, and is sound after the next reset.
        for _ in 0..30 {
            append(&mut again, 2, 40).unwrap_or_else(|error| panic!("cut at {cut}: {error:?}"));
        }
        let mut third = open(again.flash().after_reset(), WhenFull::DropOldest);
        assert_eq!(third.epoch(), again.epoch(), "cut at {cut}: nothing was cut this time");
        assert_eq!(numbers(&drain(&mut third)).last(), Some(&(again.next_number() - 1)), "cut at {cut}");
    }
}

#[test]
fn power_may_go_at_every_byte_of_every_operation() {
    every_cut::<8, PAGE>(false);
    every_cut::<4, 256>(false);
}

#[test]
fn power_may_go_at_every_byte_on_flash_of_words_of_32_bytes() {
    every_cut::<32, 512>(false);
}

/// As on an STM32H7: whoever reads a word that was not programmed to its end gets an error for its bytes.
#[test]
fn power_may_go_at_every_byte_on_flash_whose_torn_words_cannot_be_read() {
    every_cut::<32, 512>(true);
    every_cut::<8, PAGE>(true);
}

#[test]
fn each_flipped_bit_costs_its_frame_and_is_counted() {
    let mut outbox = open(Small::new(PAGES), WhenFull::Refuse);
    (0..15).for_each(|_| _ = append(&mut outbox, 2, 50).unwrap());
    let (flash, next) = (outbox.flash().after_reset(), outbox.next_number());
    let used: Vec<usize> = (0..flash.bytes.len()).filter(|at| flash.bytes[*at] != 0xff).collect();
    for bit in used.into_iter().flat_map(|at| (0..8).map(move |bit| at * 8 + bit)) {
        let mut damaged = flash.clone();
        damaged.bytes[bit / 8] ^= 1 << (bit % 8);
        costs_its_frame(damaged, outbox.epoch(), next, bit / 8, &std::format!("bit {bit}"));
    }
}

#[test]
fn a_word_that_cannot_be_read_costs_its_frame_and_is_counted() {
    let mut outbox = open(Small::new(PAGES), WhenFull::Refuse);
    (0..15).for_each(|_| _ = append(&mut outbox, 2, 50).unwrap());
    let (flash, next) = (outbox.flash().after_reset(), outbox.next_number());
    for word in 0..flash.unreadable.len() {
        let mut damaged = flash.clone();
        damaged.unreadable[word] = true;
        costs_its_frame(damaged, outbox.epoch(), next, word * 8, &std::format!("word {word}"));
    }
}

/// Fifteen frames of two records are there, but for the one in which something is wrong.
fn costs_its_frame(damaged: Small, epoch: u32, next: u64, at: usize, what: &str) {
    let mut again = open(damaged, WhenFull::Refuse);
    let got = numbers(&drain(&mut again));
    block_on(again.release(u64::MAX)).unwrap();
    let lost = 30 - got.len() as u64;
    let in_head_of_a_page = at % PAGE < 32;
    assert!(lost <= if in_head_of_a_page { 14 } else { 2 }, "{what}: {lost} lost");
    assert!(got.windows(2).all(|pair| pair[0] < pair[1]), "{what}: {got:?}");
    // What is lost at either end of the ring cannot be told from what was never there: the end gets a new epoch.
    let told = again.counters().damaged;
    let first_lost = got.first() != Some(&1);
    let end_lost = got.last() != Some(&(next - 1));
    assert!(told == lost || first_lost || (end_lost && again.epoch() != epoch), "{what}: {told} of {lost}");
}

/// The fault: records of a frame that the flash would not write were counted as lost, though the recorder keeps them and
/// they are written into the next page; and the numbers of that frame were counted as damaged on top.
#[test]
fn a_write_that_fails_loses_nothing_and_nothing_is_told_as_lost() {
    let whole = 64;
    for (released, fails_at) in [0, 1, 2].into_iter().flat_map(|r| [0, 8, 13, whole].map(|at| (r, at))) {
        let mut outbox = open(Small::new(PAGES), WhenFull::Refuse);
        outbox.flash().has_ecc = true;
        (0..2).for_each(|_| _ = append(&mut outbox, 1, 50).unwrap());
        block_on(outbox.release(released)).unwrap();
        outbox.flash().fail_next = Some(fails_at);
        let first = append(&mut outbox, 3, 50);
        let mut expected = ((released + 1)..3).collect::<Vec<_>>();
        if fails_at == whole {
            // It says no and has done it: then it is there, and whoever made it must not come again.
            assert_eq!(first, Ok(Some(3)), "{fails_at}");
            expected.extend(3..6);
        } else {
            assert_eq!(first, Err(Error::Flash(FlashSimError::Worn)), "{fails_at}");
            assert_eq!(append(&mut outbox, 3, 50), Ok(Some(6)), "no number is given twice");
            expected.extend(6..9);
        }
        let sent = drain(&mut outbox);
        assert_eq!(numbers(&sent), expected, "{released}, {fails_at}");
        block_on(outbox.release(*expected.last().unwrap())).unwrap();
        let counters = outbox.counters();
        assert_eq!((outbox.len(), counters.damaged, counters.unwritten), (0, 0, 0), "{released}, {fails_at}");
    }
}

#[test]
fn a_frame_that_failed_last_leaves_nothing_that_waits() {
    let mut outbox = open(Small::new(PAGES), WhenFull::Refuse);
    append(&mut outbox, 1, 50).unwrap();
    drain(&mut outbox);
    outbox.flash().fail_next = Some(20);
    append(&mut outbox, 3, 50).unwrap_err();
    assert!(drain(&mut outbox).is_empty());
    block_on(outbox.release(1)).unwrap();
    assert!(drain(&mut outbox).is_empty());
    assert_eq!((outbox.len(), outbox.counters().damaged), (0, 0));
}

#[test]
fn what_a_frame_says_of_those_before_it_outlives_a_reset() {
    let mut outbox = open(Small::new(PAGES), WhenFull::Refuse);
    for number in 1..=3 {
        append(&mut outbox, 1, 50).unwrap();
        block_on(outbox.release(number)).unwrap();
    }
    let mut again = open(outbox.flash().after_reset(), WhenFull::Refuse);
    assert_eq!(numbers(&drain(&mut again)), [3], "the last one's end is what the hello tells");
    append(&mut again, 1, 50).unwrap();
    let mut third = open(again.flash().after_reset(), WhenFull::Refuse);
    assert_eq!(numbers(&drain(&mut third)), [3, 4], "4 was written before 3 was released");
}
