//! Which bytes of a blob are there, and where in the file that gathers them. Pure.
//!
//! Parts may come in any order. Bytes that are new go to the file's end, so the file is as long as what is there, whatever
//! offsets a part names; bytes that come again stand where they stood. A blob that came in order is its file.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Pieces {
    /// By where they begin in the blob. They do not overlap.
    by_start: BTreeMap<u64, Piece>,
    bytes: u64,
}

#[derive(Debug)]
struct Piece {
    /// Behind its last byte in the blob.
    end: u64,
    /// Where it begins in the file.
    at: u64,
}

/// Where bytes of a part stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub at: u64,
    pub length: u64,
    /// At the file's end, where nothing stood before.
    pub is_new: bool,
}

impl Pieces {
    /// How many bytes are there, which is how long the file is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn count(&self) -> usize {
        self.by_start.len()
    }

    /// Takes in a part: where its bytes go, in order. `offset + length` is at most 2^64 - 1.
    pub fn add(&mut self, offset: u64, length: u64) -> Vec<Place> {
        let (mut from, end) = (offset, offset + length);
        let mut places = Vec::new();
        while from < end {
            let before = self.by_start.range(..=from).next_back().filter(|(_, piece)| piece.end > from);
            let place = match before {
                Some((start, piece)) => {
                    Place { at: piece.at + (from - start), length: piece.end.min(end) - from, is_new: false }
                }
                None => {
                    let until = self.by_start.range(from..).next().map_or(end, |(start, _)| end.min(*start));
                    let place = Place { at: self.bytes, length: until - from, is_new: true };
                    self.append(from, until);
                    place
                }
            };
            from += place.length;
            places.push(place);
        }
        places
    }

    fn append(&mut self, start: u64, end: u64) {
        let at = self.bytes;
        self.bytes += end - start;
        // One piece with the one before, if that ends here in the blob and in the file.
        if let Some((before_start, before)) = self.by_start.range_mut(..start).next_back()
            && before.end == start
            && before.at + (start - before_start) == at
        {
            before.end = end;
        } else {
            self.by_start.insert(start, Piece { end, at });
        }
    }

    /// The file's bytes are in the blob's order.
    pub fn are_in_order(&self) -> bool {
        self.by_start.values().is_sorted_by_key(|piece| piece.at)
    }

    /// Start in the blob, start in the file, and length of each piece, in the blob's order.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.by_start.iter().map(|(start, piece)| (*start, piece.at, piece.end - start))
    }

    /// What lacks of a blob of so many bytes: from, and behind the last. At most `most` of them.
    pub fn missing(&self, total: u64, most: usize) -> Vec<(u64, u64)> {
        let ends = std::iter::once(0).chain(self.by_start.values().map(|piece| piece.end));
        let starts = self.by_start.keys().copied().chain(std::iter::once(total));
        ends.zip(starts).filter(|(from, until)| from < until).take(most).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_blob_that_comes_in_order_is_one_piece() {
        let mut pieces = Pieces::default();
        for offset in [0, 10, 20] {
            assert_eq!(pieces.add(offset, 10), [Place { at: offset, length: 10, is_new: true }]);
        }
        assert_eq!((pieces.count(), pieces.bytes(), pieces.are_in_order()), (1, 30, true));
        assert_eq!(pieces.add(5, 10), [Place { at: 5, length: 10, is_new: false }]);
        assert_eq!(pieces.missing(30, 9), []);
        assert_eq!(pieces.missing(40, 9), [(30, 40)]);
    }

    #[test]
    fn an_offset_makes_no_file_longer() {
        let mut pieces = Pieces::default();
        let far = u64::MAX - 4;
        assert_eq!(pieces.add(far, 4), [Place { at: 0, length: 4, is_new: true }]);
        assert_eq!(pieces.missing(u64::MAX, 9), [(0, far)]);
        pieces.add(2, 1);
        assert_eq!(pieces.missing(u64::MAX, 9), [(0, 2), (3, far)]);
        assert_eq!(pieces.missing(u64::MAX, 1), [(0, 2)]);
        assert!(!pieces.are_in_order() && pieces.bytes() == 5);
    }

    proptest! {
        /// Against a plain array: each byte is the last that came for it, and nothing is told to be there that is not.
        #[test]
        fn parts_in_any_order_are_the_blob(parts in prop::collection::vec((0u64..60, 1u64..20, any::<u8>()), 0..40)) {
            let mut expected = [None; 80];
            let (mut pieces, mut file) = (Pieces::default(), Vec::new());
            for (offset, length, byte) in parts {
                expected[offset as usize..(offset + length) as usize].fill(Some(byte));
                let places = pieces.add(offset, length);
                prop_assert_eq!(places.iter().map(|place| place.length).sum::<u64>(), length);
                for Place { at, length, is_new } in places {
                    let end = (at + length) as usize;
                    prop_assert_eq!(is_new, end > file.len());
                    prop_assert!(!is_new || at as usize == file.len());
                    file.resize(file.len().max(end), 0);
                    file[at as usize..end].fill(byte);
                }
                prop_assert_eq!(pieces.bytes(), file.len() as u64);
            }
            let mut got = [None; 80];
            for (start, at, length) in pieces.ranges() {
                for n in 0..length as usize {
                    got[start as usize + n] = Some(file[at as usize + n]);
                }
            }
            prop_assert_eq!(got, expected);
            let missing = pieces.missing(80, usize::MAX).into_iter().flat_map(|(from, until)| from..until);
            let holes = (0..80).filter(|at| expected[*at as usize].is_none());
            prop_assert_eq!(missing.collect::<Vec<_>>(), holes.collect::<Vec<_>>());
        }
    }
}
