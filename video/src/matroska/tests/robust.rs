//! Whatever comes, in whatever pieces: the same events, no panic, no more memory than came in.

use crate::fragment::{Fragmenter, Limits};
use crate::matroska::{Event, Parser, head, read_fragment, tags, write_fragment};
use crate::testing::{SAMPLE, fragment, frames, parse, parse_pieces};
use proptest::prelude::*;

/// Parses and cuts, and asserts that no more is held or given than came in.
fn survives(input: &[u8]) {
    let mut parser = Parser::new();
    let mut events = Vec::new();
    for piece in input.chunks(1500) {
        if parser.push(piece, &mut events).is_err() {
            break;
        }
        assert!(parser.held_bytes() <= 2 << 20);
    }
    let _ = parser.finish(&mut events);
    let given: usize = frames(&events).iter().map(|frame| frame.data.len()).sum();
    assert!(given <= input.len());
    let mut fragmenter = Fragmenter::new(Limits::default());
    let fragments: Vec<_> = events.into_iter().filter_map(|event| fragmenter.push(event).ok().flatten()).collect();
    for fragment in fragments.into_iter().chain(fragmenter.finish()) {
        let written = write_fragment(&fragment, 0);
        assert_eq!(read_fragment(&written).unwrap().frames.len(), fragment.frames.len());
    }
}

#[test]
fn a_sample_cut_off_anywhere_gives_a_part_of_its_events_and_no_panic() {
    let (whole, _) = parse(SAMPLE);
    for bytes in 0..SAMPLE.len() {
        let mut parser = Parser::new();
        let mut events = Vec::new();
        parser.push(&SAMPLE[..bytes], &mut events).unwrap();
        assert_eq!(events, whole[..events.len()], "{bytes} bytes");
        let _ = parser.finish(&mut events);
    }
}

#[test]
fn a_sample_with_any_byte_flipped_does_not_panic() {
    let mut input = SAMPLE.to_vec();
    for at in 0..input.len() {
        // All bits of one byte, one bit of the next: heads and lengths break in different ways.
        let flip = if at % 2 == 0 { 0xFF } else { 1 << (at / 2 % 8) };
        input[at] ^= flip;
        survives(&input);
        input[at] ^= flip;
    }
}

#[test]
fn a_sample_byte_by_byte_gives_the_same_events() {
    assert_eq!(parse_pieces(SAMPLE.chunks(1)), parse(SAMPLE));
}

/// Two segments, tags, a group, and an error at the end, so that every path has its cut.
fn synthetic() -> Vec<u8> {
    let mut first = fragment(0, 20);
    first.frames[3].duration_ns = Some(40_000_000);
    first.tags = vec![("place".into(), "north".into())];
    let mut input = write_fragment(&first, 0);
    input.extend_from_slice(&head(&first.tracks));
    input.extend_from_slice(&tags(&first.tags));
    input.extend_from_slice(&write_fragment(&first, 1_000_000_000));
    input.extend_from_slice(&[0, 0, 0]);
    input
}

#[test]
fn an_error_comes_after_the_events_before_it_and_stays() {
    let (events, result) = parse(&synthetic());
    let error = result.unwrap_err();
    assert_eq!(error.at, synthetic().len() as u64 - 3);
    assert!(error.to_string().contains("no element id begins with 0x00"), "{error}");
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Frame(_))).count(), 80);
    let mut parser = Parser::new();
    let mut events = Vec::new();
    assert_eq!(parser.push(&synthetic(), &mut events), Err(error.clone()));
    events.clear();
    assert_eq!(parser.push(SAMPLE, &mut events), Err(error.clone()));
    assert_eq!(parser.finish(&mut events), Err(error));
    assert!(events.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_cut_of_the_input_gives_the_same(sizes in prop::collection::vec(0usize..700, 1..60), real: bool) {
        let input = if real { SAMPLE.to_vec() } else { synthetic() };
        let mut rest = input.as_slice();
        let mut pieces = vec![];
        for size in sizes.iter().cycle().take(input.len()) {
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        prop_assert_eq!(parse_pieces(pieces), parse(&input));
    }

    #[test]
    fn noise_does_not_panic(noise in prop::collection::vec(any::<u8>(), 0..3000), after in 0..SAMPLE.len()) {
        survives(&noise);
        let mut input = SAMPLE[..after].to_vec();
        input.extend_from_slice(&noise);
        survives(&input);
    }

    #[test]
    fn a_sample_with_many_wrong_bytes_does_not_panic(wrong in prop::collection::vec((0..SAMPLE.len(), any::<u8>()), 1..40)) {
        let mut input = SAMPLE.to_vec();
        wrong.iter().for_each(|(at, byte)| input[*at] = *byte);
        survives(&input);
    }
}
