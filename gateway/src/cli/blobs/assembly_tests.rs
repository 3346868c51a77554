//! Blobs out of parts as strangers send them: every bound, sabotaged.

use super::assembly::{Assembly, Bounds, Fate, Parts, Told, Why};
use super::folder::{Folder, Kept};
use headwater_wire::Chunk;
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

const BOUNDS: Bounds = Bounds { open: 4, pieces: 64, whole: 4 };

struct Bench {
    dir: tempfile::TempDir,
    assembly: Assembly,
}

impl Bench {
    fn new() -> Self {
        Self::with(BOUNDS)
    }

    fn with(bounds: Bounds) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let assembly = Assembly::new(Some(Folder::open(dir.path()).unwrap()), bounds);
        Bench { dir, assembly }
    }

    /// The next run, into the same directory.
    fn again(&mut self) {
        self.assembly = Assembly::new(None, BOUNDS);
        self.assembly = Assembly::new(Some(Folder::open(self.dir.path()).unwrap()), BOUNDS);
    }

    fn take(&mut self, id: u32, offset: u64, total: u64, bytes: &[u8]) -> Vec<Told> {
        self.assembly.take("cam", id, &Chunk { offset, total, bytes }).unwrap()
    }

    /// All parts of a blob; what is told with the last.
    fn whole(&mut self, id: u32, bytes: &[u8]) -> Vec<Told> {
        let total = bytes.len() as u64;
        let mut told = Vec::new();
        for (at, part) in bytes.chunks(4).enumerate() {
            assert_eq!(told, []);
            told = self.take(id, at as u64 * 4, total, part);
        }
        told
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Names in the directory, without the gathering one.
    fn names(&self) -> Vec<String> {
        let mut names = names(self.dir.path());
        names.retain(|name| !name.starts_with('.'));
        names
    }

    /// Files and bytes that are gathered.
    fn gathered(&self) -> (usize, u64) {
        let files: Vec<_> = fs::read_dir(self.path(".headwater-blobs")).unwrap().map(Result::unwrap).collect();
        (files.len(), files.iter().map(|file| file.metadata().unwrap().len()).sum())
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn is_written(told: &[Told]) -> bool {
    matches!(told, [Told { fate: Fate::Whole { kept: Some(Kept::Written(_)) }, .. }])
}

fn is_there(told: &[Told]) -> bool {
    matches!(told, [Told { fate: Fate::Whole { kept: Some(Kept::There(_)) }, .. }])
}

#[track_caller]
fn incomplete(told: &[Told]) -> (u32, u64, Vec<(u64, u64)>, Why) {
    match told {
        [Told { blob, fate: Fate::Incomplete { have, missing, why }, .. }] => (blob.id, *have, missing.clone(), *why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_blob_is_a_file_once_its_last_part_came() {
    let mut bench = Bench::new();
    assert_eq!(bench.take(7, 0, 10, b"\xff\xd8\xff\xe0one"), []);
    assert_eq!(bench.names(), [""; 0]);
    assert!(is_written(&bench.take(7, 7, 10, b"two")));
    assert_eq!(bench.read("cam-7.jpg"), b"\xff\xd8\xff\xe0onetwo");
    assert_eq!((bench.assembly.end().unwrap(), bench.gathered()), (vec![], (0, 0)));
    drop(bench.assembly);
    assert_eq!(names(bench.dir.path()), ["cam-7.jpg"], "nothing else is left");
}

#[test]
fn what_is_missing_is_told_and_its_file_goes() {
    let mut bench = Bench::new();
    bench.take(7, 4, 20, b"four");
    bench.take(7, 12, 20, b"four");
    let told = bench.assembly.end().unwrap();
    assert_eq!(incomplete(&told), (7, 8, vec![(0, 4), (8, 12), (16, 20)], Why::End));
    assert_eq!((bench.gathered(), bench.names().len()), ((0, 0), 0));
}

/// A length of 2^63 and an offset just below it must make no file that long, sparse or not.
#[test]
fn a_length_that_lies_costs_what_was_stored() {
    let mut bench = Bench::new();
    for (id, offset, total) in [(1, 0, 1 << 63), (2, (1 << 63) - 4, 1 << 63), (3, u64::MAX - 4, u64::MAX)] {
        assert_eq!(bench.take(id, offset, total, b"four"), []);
    }
    assert_eq!(bench.gathered(), (3, 12));
    assert_eq!(bench.assembly.end().unwrap().len(), 3);
    assert_eq!(bench.gathered(), (0, 0));
}

#[test]
fn another_length_is_another_blob() {
    let mut bench = Bench::new();
    bench.take(7, 0, 8, b"real");
    bench.take(7, 0, 9, b"liar");
    assert!(is_written(&bench.take(7, 4, 8, b"real")));
    assert_eq!(bench.read("cam-7.bin"), b"realreal");
    assert_eq!(incomplete(&bench.assembly.end().unwrap()).1, 4);
}

#[test]
fn of_too_many_blobs_at_once_the_one_that_waits_longest_gives_way() {
    let mut bench = Bench::new();
    for id in 0..4 {
        bench.take(id, 0, 8, b"four");
    }
    bench.take(0, 1, 8, b"four");
    assert_eq!(incomplete(&bench.take(4, 0, 8, b"four")).0, 1, "0 has just been sent a part");
    for id in 10..5_000 {
        assert_eq!(incomplete(&bench.take(id, 0, 8, b"four")).3, Why::TooManyBlobs);
    }
    assert_eq!(bench.gathered(), (4, 16));
    assert!(is_written(&bench.take(4_999, 4, 8, b"more")), "the others go on");
}

#[test]
fn of_too_many_pieces_the_blob_that_has_most_gives_way() {
    let mut bench = Bench::new();
    bench.take(1, 0, 8, b"four");
    let told: Vec<_> = (0..64).flat_map(|at| bench.take(2, at * 2, 1 << 40, b"x")).collect();
    assert_eq!(incomplete(&told), (2, 64, (0..8).map(|at| (at * 2 + 1, at * 2 + 2)).collect(), Why::TooManyPieces));
    assert!(is_written(&bench.take(1, 4, 8, b"more")));
}

#[test]
fn a_part_that_comes_again_is_counted_and_changes_nothing() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.take(7, 0, 8, b"four");
    }
    let told = bench.take(7, 4, 8, b"more");
    assert_eq!(told[0].parts, Parts { taken: 4, again: 2, replaced: 0 });
    assert_eq!(bench.read("cam-7.bin"), b"fourmore");
}

/// A device whose upload was broken off and that begins again with the same id and length has other bytes: the file is of the
/// second, not half of each.
#[test]
fn a_part_with_other_bytes_replaces_and_is_counted() {
    let mut bench = Bench::new();
    bench.take(7, 0, 12, b"old1");
    bench.take(7, 4, 12, b"old2");
    bench.take(7, 0, 12, b"new1");
    bench.take(7, 4, 12, b"new2");
    let told = bench.take(7, 8, 12, b"new3");
    assert_eq!(told[0].parts, Parts { taken: 5, again: 2, replaced: 2 });
    assert_eq!(bench.read("cam-7.bin"), b"new1new2new3");
}

#[test]
fn parts_of_a_whole_blob_that_come_again_are_no_blob() {
    let mut bench = Bench::new();
    assert!(is_written(&bench.whole(7, b"picturepicture")));
    assert_eq!(bench.whole(7, b"picturepicture"), [], "all of it");
    assert_eq!(bench.take(7, 8, 14, b"turepi"[..4].as_ref()), []);
    bench.take(7, 4, 14, b"urep");
    let told = bench.assembly.end().unwrap();
    assert_eq!(incomplete(&told).1, 8, "other bytes are another blob");
    bench.take(7, 4, 14, b"urep");
    assert_eq!(bench.assembly.end().unwrap(), [], "some of it");
    assert_eq!((bench.names(), bench.gathered()), (vec!["cam-7.bin".to_owned()], (0, 0)));
}

#[test]
fn an_id_that_comes_again_has_a_file_of_its_own() {
    let mut bench = Bench::new();
    assert!(is_written(&bench.whole(7, b"first picture")));
    assert!(is_written(&bench.whole(8, b"between")));
    assert!(is_written(&bench.whole(7, b"other picture")));
    assert_eq!(
        (bench.read("cam-7.bin"), bench.read("cam-7.2.bin")),
        (b"first picture".into(), b"other picture".into())
    );
}

#[test]
fn a_second_run_writes_nothing_and_changes_nothing() {
    let mut bench = Bench::new();
    bench.whole(7, b"first picture");
    bench.whole(7, b"other picture");
    bench.again();
    assert!(is_there(&bench.whole(7, b"first picture")) && is_there(&bench.whole(7, b"other picture")));
    fs::write(bench.path("cam-8.bin"), "notes of the user's").unwrap();
    // A link as long as the blob, to the blob's bytes: it may be to a place that goes.
    fs::write(bench.path("7 bytes"), "picture").unwrap();
    std::os::unix::fs::symlink("7 bytes", bench.path("cam-9.bin")).unwrap();
    fs::create_dir(bench.path("cam-10.bin")).unwrap();
    bench.again();
    for id in 8..=10 {
        assert!(is_written(&bench.whole(id, b"picture")), "{id}");
    }
    assert_eq!(bench.read("cam-8.bin"), b"notes of the user's");
    for name in ["cam-8.2.bin", "cam-9.2.bin", "cam-10.2.bin"] {
        assert_eq!(bench.read(name), b"picture");
    }
}

#[test]
fn a_directory_has_one_run_at_a_time_and_what_a_killed_one_left_goes() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join(".headwater-blobs");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("12"), "of a killed run").unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    assert_eq!(names(&left), [""; 0]);
    let second = Folder::open(dir.path()).err().unwrap().to_string();
    assert!(second.contains("another"), "{second}");
    drop(folder);
    Folder::open(dir.path()).unwrap();
}

#[test]
fn a_list_writes_nothing() {
    let mut assembly = Assembly::new(None, BOUNDS);
    let mut take = |offset, bytes: &[u8]| assembly.take("cam", 7, &Chunk { offset, total: 8, bytes }).unwrap();
    assert_eq!(take(0, b"four"), []);
    assert!(matches!(take(4, b"more")[..], [Told { fate: Fate::Whole { kept: None }, .. }]));
    assert_eq!((take(0, b"four"), take(4, b"more")), (vec![], vec![]));
    take(0, b"four");
    assert_eq!(assembly.end().unwrap(), []);
}

#[test]
fn memory_does_not_grow_with_ids() {
    let mut bench = Bench::with(Bounds { open: 8, pieces: 8, whole: 8 });
    for id in 0..200 {
        assert!(is_written(&bench.whole(id, b"tiny")), "{id}");
    }
    assert_eq!(bench.names().len(), 200);
    assert_eq!(bench.assembly.sizes(), (0, 0, 8));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn parts_in_any_order_are_the_picture(
        picture in prop::collection::vec(any::<u8>(), 40..200),
        (step, seed) in (1usize..40, any::<u64>()),
    ) {
        let mut bench = Bench::with(Bounds { pieces: 1000, ..BOUNDS });
        let mut parts: Vec<_> = picture.chunks(step).enumerate().map(|(at, part)| ((at * step) as u64, part)).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut parts);
        let mut told = Vec::new();
        for (offset, part) in parts {
            prop_assert!(told.is_empty());
            told = bench.take(7, offset, picture.len() as u64, part);
        }
        let [Told { fate: Fate::Whole { kept: Some(Kept::Written(path)) }, .. }] = &told[..] else { panic!("{told:?}") };
        prop_assert_eq!(fs::read(path).unwrap(), picture);
        prop_assert_eq!(bench.gathered(), (0, 0));
    }
}
