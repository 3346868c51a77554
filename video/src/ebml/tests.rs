//! The numbers of RFC 8794, by its own examples and by writing what is read.

use super::*;
use proptest::prelude::*;

#[test]
fn the_rfcs_own_examples_of_sizes_are_read() {
    // RFC 8794 section 4.4: the value 2 in one to four bytes.
    for bytes in [&[0x82u8][..], &[0x40, 0x02], &[0x20, 0x00, 0x02], &[0x10, 0x00, 0x00, 0x02]] {
        assert_eq!(vint(bytes), Ok(Some((2, bytes.len()))));
    }
}

#[test]
fn a_head_is_read_once_it_is_whole() {
    let head_bytes = [0x1A, 0x45, 0xDF, 0xA3, 0x40, 0x81];
    for bytes in 0..head_bytes.len() {
        assert_eq!(head(&head_bytes[..bytes]), Ok(None), "{bytes} bytes");
    }
    let whole = Head { id: 0x1A45_DFA3, size: Size::Known(0x81), bytes: 6 };
    assert_eq!(head(&head_bytes), Ok(Some(whole)));
}

#[test]
fn all_ones_is_the_unknown_size_in_every_length() {
    for bytes in 1..=SIZE_BYTES_MAX {
        let ones = (vint_ones(bytes) | 1 << (7 * bytes)).to_be_bytes();
        let mut input = vec![0xEC];
        input.extend_from_slice(&ones[8 - bytes..]);
        assert_eq!(head(&input).unwrap().unwrap().size, Size::Unknown, "{bytes} bytes");
    }
}

#[test]
fn what_is_no_id_or_no_size_is_refused() {
    assert_eq!(head(&[0x08, 1, 2, 3, 4]), Err(EbmlFault::Id(0x08)), "five bytes");
    assert_eq!(head(&[0x80, 0x81]), Err(EbmlFault::Id(0x80)), "all zeros");
    assert_eq!(head(&[0xFF, 0x81]), Err(EbmlFault::Id(0xFF)), "all ones");
    assert_eq!(head(&[0xEC, 0x00]), Err(EbmlFault::Size));
}

#[test]
fn a_child_longer_than_its_parent_is_an_error_and_the_last_item() {
    let mut elements = Elements::new(&[0xEC, 0x81, 7, 0xEC, 0x85, 7], 100);
    assert_eq!(elements.next().unwrap().unwrap().body, [7]);
    assert_eq!(elements.next().unwrap().unwrap_err(), EbmlError { at: 103, fault: EbmlFault::Overruns(0xEC) });
    assert!(elements.next().is_none());
}

#[test]
fn numbers_of_odd_lengths() {
    let element = |body: &'static [u8]| Element { id: 0xB5, at: 9, body };
    assert_eq!(element(&[]).uint(), Ok(0));
    assert_eq!(element(&[1, 0, 0]).uint(), Ok(0x10000));
    assert_eq!(element(&[1; 9]).uint().unwrap_err().fault, EbmlFault::Number { id: 0xB5, bytes: 9 });
    assert_eq!(element(&[0x47, 0x3B, 0x80, 0]).float(), Ok(48_000.0));
    assert_eq!(element(&[1; 5]).float().unwrap_err().fault, EbmlFault::Number { id: 0xB5, bytes: 5 });
    assert_eq!(element(b"ab\0cd").text(), "ab");
}

#[test]
fn a_master_can_be_closed_once_its_size_is_known() {
    let mut out = vec![];
    let body = begin_master(&mut out, 0xAE);
    put_uint(&mut out, 0xD7, 300);
    end_master(&mut out, body);
    let element = Elements::new(&out, 0).next().unwrap().unwrap();
    assert_eq!(element.children().next().unwrap().unwrap().uint(), Ok(300));
}

proptest! {
    #[test]
    fn what_is_written_is_read(id in 0x81u32..0xFE, value: u64, float: f64, text in "[^\0]*", size in 0..vint_ones(8)) {
        let mut out = vec![];
        put_uint(&mut out, id, value);
        put_float(&mut out, id, float);
        put_text(&mut out, id, &text);
        let elements: Result<Vec<Element>, _> = Elements::new(&out, 0).collect();
        let elements = elements.unwrap();
        prop_assert_eq!(elements[0].uint(), Ok(value));
        prop_assert_eq!(elements[1].float().unwrap().to_bits(), float.to_bits());
        prop_assert_eq!(elements[2].text(), text);
        let mut sized = vec![];
        put_size(&mut sized, size);
        prop_assert_eq!(vint(&sized), Ok(Some((size, sized.len()))));
    }

    #[test]
    fn noise_is_an_error_or_elements(noise: Vec<u8>) {
        let _ = head(&noise);
        let total: usize = Elements::new(&noise, 0).flatten().map(|element| element.body.len()).sum();
        prop_assert!(total <= noise.len());
    }
}
