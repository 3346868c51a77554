//! MB/s of parsing, cutting and writing a Matroska file, as a line of JSON: `throughput FILE.mkv [REPEATS] [CHUNK_BYTES]`.
//!
//! The best of the repeats counts: on a shared machine the others measure the neighbours.

use headwater_video::Fragment;
use headwater_video::fragment::{Fragmenter, Limits};
use headwater_video::matroska::{Event, Parser, write_fragment};
use std::error::Error;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("throughput FILE.mkv [REPEATS] [CHUNK_BYTES]")?;
    let repeats: usize = args.next().map_or(Ok(5), |count| count.parse())?;
    let chunk_bytes: usize = args.next().map_or(Ok(64 << 10), |count| count.parse())?;
    let input = std::fs::read(path)?;
    let (mut parse, mut cut, mut write) = (0f64, 0f64, 0f64);
    let (mut frames, mut fragments) = (0, 0);
    for _ in 0..repeats {
        let began = Instant::now();
        let events = parse_all(&input, chunk_bytes)?;
        parse = parse.max(rate(input.len(), began));
        let began = Instant::now();
        let whole = cut_all(events)?;
        cut = cut.max(rate(input.len(), began));
        let began = Instant::now();
        let written: usize = whole.iter().map(|fragment| write_fragment(fragment, 0).len()).sum();
        write = write.max(rate(written, began));
        (frames, fragments) = (whole.iter().map(|fragment| fragment.frames.len()).sum(), whole.len());
    }
    println!(
        "{{\"bytes\":{},\"frames\":{frames},\"fragments\":{fragments},\"parse_mb_s\":{parse:.0},\"cut_mb_s\":{cut:.0},\
         \"write_mb_s\":{write:.0},\"all_mb_s\":{:.0}}}",
        input.len(),
        1.0 / (1.0 / parse + 1.0 / cut + 1.0 / write)
    );
    Ok(())
}

fn rate(bytes: usize, began: Instant) -> f64 {
    bytes as f64 / 1e6 / began.elapsed().as_secs_f64().max(1e-9)
}

fn parse_all(input: &[u8], chunk_bytes: usize) -> Result<Vec<Event>, Box<dyn Error>> {
    let mut parser = Parser::new();
    let mut events = Vec::new();
    for chunk in input.chunks(chunk_bytes.max(1)) {
        parser.push(chunk, &mut events)?;
    }
    parser.finish(&mut events)?;
    Ok(events)
}

fn cut_all(events: Vec<Event>) -> Result<Vec<Fragment>, Box<dyn Error>> {
    let mut fragmenter = Fragmenter::new(Limits::default());
    let mut fragments = Vec::new();
    for event in events {
        fragments.extend(fragmenter.push(event)?);
    }
    fragments.extend(fragmenter.finish());
    Ok(fragments)
}
