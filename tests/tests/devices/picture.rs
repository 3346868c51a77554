//! A picture from the emulated board's camera: in parts, behind the records, through resets, power cuts and a gateway that is
//! killed. What the stream's readers put together is the picture, to the byte.

use crate::board::{self, Board, When};
use crate::readings::assert_each_once_in_order;
use headwater_tests::aws;
use headwater_tests::gateway::Gateway;
use headwater_tests::tools;
use headwater_wire::{Envelope, Kind};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(120);
const RECORDS: u64 = 50;

/// The bytes of a picture that no compression shortens.
fn picture(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let noise = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    // It begins and ends as a JPEG does.
    [0xff, 0xd8, 0xff].into_iter().chain(noise.take(length - 5)).chain([0xff, 0xd9]).collect()
}

/// Parts of the picture, in the order of the log.
fn parts(gateway: &Gateway) -> Vec<Vec<u8>> {
    let all = aws::read_stream(gateway.api, "default").into_iter().map(|got| got.data);
    all.filter(|data| data.first() == Some(&(Kind::Chunk as u8))).collect()
}

/// The picture, put together as a reader of the stream would.
fn put_together(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = Vec::new();
    for (at, part) in (1..).zip(parts) {
        let envelope = Envelope::read(part).expect("an envelope");
        let chunk = envelope.chunk().expect("a part of a blob");
        assert_eq!((envelope.first, chunk.offset), (at, whole.len() as u64), "in order, and each once");
        whole.extend_from_slice(chunk.bytes);
    }
    whole
}

#[test]
fn p3_a_picture_arrives_whole_through_resets_power_cuts_and_a_killed_gateway() {
    if !board::is_there() {
        return;
    }
    let mut gateway = Gateway::plain();
    let home = tempfile::tempdir().unwrap();
    let (file, picture) = (home.path().join("picture.jpg"), picture(400_000));
    std::fs::write(&file, &picture).unwrap();
    let mut board = Board::new("camera", RECORDS, gateway.mqtt.port()).with(&["--picture", file.to_str().unwrap()]);
    board.switch_on();
    let wait_for = |gateway: &Gateway, at_least: usize| {
        let there = tools::eventually(BOUND, || parts(gateway).len() >= at_least);
        assert!(there, "{} parts after {BOUND:?}", parts(gateway).len());
    };
    let mut seen = 0;
    for turn in 0..4 {
        wait_for(&gateway, seen + 20);
        if board.ended().is_some() {
            break;
        }
        match turn {
            0 => board.reset(When::AnyTime),
            1 => {
                board.cut_power(When::AnyTime);
                board.switch_on();
            }
            2 => {
                gateway.kill();
                gateway.restart();
            }
            _ => board.reset(When::AnyTime),
        }
        seen = parts(&gateway).len();
    }
    assert!(seen > 60, "the picture was sent before anything happened to it");
    assert_eq!(board.finish(BOUND), 0, "{}", board.log());
    assert!(put_together(&parts(&gateway)) == picture, "the picture is another");
    let records = aws::read_stream(gateway.api, "default").into_iter().filter(|got| got.data.first() == Some(&b'{'));
    assert_each_once_in_order(["camera".to_owned()], RECORDS, &records.collect::<Vec<_>>());
}
