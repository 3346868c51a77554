//! `headwater log`: look at, verify and repair the data directory of a stopped gateway.

use super::output::{Output, Unit};
use crate::log::tool::{self, Report, StreamReport};
use crate::units::ByteSize;
use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct LogCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Show streams, shards, segments and gaps, and what a start would do. Changes nothing.
    Inspect(Directory),
    /// Read every block, check every checksum, account for every missing number. Changes nothing; exit code 1 if
    /// something is damaged.
    Verify(Directory),
    /// Save what is whole of every damaged segment, enter what is lost into the gap ledger, and say what was done.
    Repair(Directory),
}

#[derive(Args)]
struct Directory {
    /// The data directory; no gateway may be running on it.
    #[arg(value_name = "DIR", env = "HEADWATER_DATA")]
    dir: PathBuf,
}

impl LogCommand {
    pub fn run(self, out: &Output) -> Result<()> {
        match self.what {
            What::Inspect(Directory { dir }) => {
                there(&dir)?;
                // A ring of journal is replayed, which on a card takes seconds.
                let spinner = out.spinner("reading the journal and the segments' heads");
                let report = tool::inspect(&dir);
                spinner.finish_and_clear();
                let report = report?;
                let nothing = "nothing seems to be damaged; `headwater log verify` reads the blocks too";
                out.result(&report, || text(&report, nothing))
            }
            What::Verify(Directory { dir }) => {
                let report = with_progress(&dir, out, "verifying", tool::verify)?;
                out.result(&report, || text(&report, "nothing is damaged"))?;
                let found = report.problems.len();
                ensure!(found == 0, "{found} problems; `headwater log repair {}` saves what is whole", dir.display());
                Ok(())
            }
            What::Repair(Directory { dir }) => {
                let report = with_progress(&dir, out, "repairing", tool::repair)?;
                out.result(&report, || text(&report, "nothing is damaged"))
            }
        }
    }
}

type Work = fn(&Path, tool::Progress<'_>) -> Result<Report, crate::log::OpenError>;

fn with_progress(dir: &Path, out: &Output, what: &'static str, work: Work) -> Result<Report> {
    there(dir)?;
    let spinner = out.spinner("reading the journal");
    let bar = out.progress(0, what, Unit::Bytes);
    let report = work(dir, &mut |done, total| {
        spinner.finish_and_clear();
        bar.set_length(total);
        bar.set_position(done);
    });
    spinner.finish_and_clear();
    bar.finish_and_clear();
    Ok(report?)
}

/// A directory without a log would be opened as a new one, and found whole.
fn there(dir: &Path) -> Result<()> {
    std::fs::read_dir(dir).map_err(|error| anyhow::anyhow!("{}: {error}", dir.display()))?;
    ensure!(
        ["journal", "segments", "state.redb"].iter().any(|name| dir.join(name).exists()),
        "{}: no gateway has kept anything here; name the data directory of a gateway",
        dir.display()
    );
    Ok(())
}

/// The report for people. `nothing` is said where there is nothing to say.
fn text(report: &Report, nothing: &str) -> String {
    let mut lines = vec![
        format!("gateway {}, incarnation {}, {}", report.gateway, report.incarnation, size(report.bytes)),
        String::new(),
    ];
    for stream in &report.streams {
        lines.extend(stream_text(stream));
    }
    let mut list = |title: &str, sentences: &[String]| {
        if !sentences.is_empty() {
            lines.push(format!("{title}:"));
            lines.extend(sentences.iter().map(|sentence| format!("  {sentence}")));
        }
    };
    // What a start says it did was done for a repair, and over an overlay for the others.
    let told = &report.recovery.told;
    let others: Vec<String> = report.problems.iter().filter(|problem| !told.contains(problem)).cloned().collect();
    if report.actions.is_empty() {
        list("the next start would do this, and say", told);
    }
    list("problems", &others);
    list("done", &report.actions);
    if report.problems.is_empty() && report.actions.is_empty() {
        lines.push(nothing.to_owned());
    }
    lines.join("\n")
}

fn stream_text(stream: &StreamReport) -> Vec<String> {
    let StreamReport { name, bytes, records, shards, segments, gaps, .. } = stream;
    let mut lines = vec![format!("stream {name}: {records} records, {}, {} segments", size(*bytes), segments.len())];
    for shard in shards {
        lines.push(match shard.newest < shard.oldest {
            true => format!("  {}  empty", shard.shard),
            false => format!("  {}  {} to {}", shard.shard, shard.oldest, shard.newest),
        });
    }
    for segment in segments {
        let blocks = match (segment.blocks, segment.damaged_blocks) {
            (0, 0) => String::new(),
            (blocks, 0) => format!(", {blocks} blocks good"),
            (blocks, damaged) => format!(", {damaged} of {blocks} blocks DAMAGED"),
        };
        lines.push(format!("  {}  {}{blocks}", segment.file, size(segment.bytes)));
    }
    for gap in gaps {
        let what = if gap.reason == "unused" { "numbers" } else { "records" };
        lines.push(format!("  gap {} {} to {}: {} {what} {}", gap.shard, gap.from, gap.to, gap.count, gap.reason));
    }
    lines.push(String::new());
    lines
}

/// Rounded to what a person reads.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => ByteSize(bytes / 1024 * 1024).to_string(),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}
