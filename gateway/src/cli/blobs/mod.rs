//! `headwater blobs`: the images and clips of a stream, which devices sent in parts, put together again.
//!
//! Way of a part: `shards` reads records -> an aggregate is taken apart -> an envelope that is a chunk -> `assembly`, which knows
//! what is there (`pieces`) and what a blob costs -> `folder`, which names it (`name`). Pure parts: `name`, `pieces`.

mod assembly;
mod folder;
mod name;
mod pieces;

use super::client::{Client, Target, block_on, until_interrupted};
use super::kinesis::Kinesis;
use super::output::Output;
use super::shards::Shards;
use super::tail::{printable, start_of};
use super::usage;
use crate::config::DEFAULT_STREAM;
use crate::uplink::aws::AwsConfig;
use crate::uplink::kpl;
use anyhow::Result;
use assembly::{Assembly, Bounds, Fate, Told, Why};
use clap::Args;
use folder::{Folder, Kept};
use headwater_wire::{Envelope, Kind};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Args)]
pub struct Blobs {
    #[command(flatten)]
    target: Target,
    /// Stream to read.
    #[arg(default_value = DEFAULT_STREAM)]
    stream: String,
    /// Read the stream in Kinesis instead of a gateway's: region, credentials and endpoint are found as AWS tools find them
    /// (AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL).
    #[arg(long)]
    aws: bool,
    /// Directory to write whole blobs to, as DEVICE-BLOB.jpg and so on; without it they are listed. What an earlier run wrote
    /// stays as it is.
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only the blobs of this device: its client id, which is the partition key.
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// Where to start: oldest, latest, or a Unix time in seconds as @1767225600.
    #[arg(long, default_value = "oldest")]
    from: String,
    /// Wait for more at the end of the stream.
    #[arg(long)]
    follow: bool,
}

/// What was read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    records: u64,
    /// Records that are parts of blobs.
    parts: u64,
    whole: u64,
    written: u64,
    incomplete: u64,
}

impl Blobs {
    pub fn run(self, out: &Output) -> Result<()> {
        let wrong = || usage(format!("--from {}: write oldest, latest or @TIME", self.from));
        let start = start_of(&self.from)?.ok_or_else(wrong)?;
        block_on(until_interrupted(async {
            let client = match self.aws {
                true => Client::Kinesis(Box::new(Kinesis::find(&AwsConfig::default()).await)),
                false => Client::new(&self.target),
            };
            let spinner = out.spinner("reading");
            let tell = |told: &Told| spinner.suspend(|| out.result(&as_json(told), || as_text(told)));
            let progress = |counts: &Counts, behind_ms: u64| {
                let Counts { records, whole, .. } = counts;
                spinner.set_message(format!("{records} records, {whole} blobs, {} s behind", behind_ms / 1000));
            };
            let counts = self.gather(&client, &start, Bounds::default(), tell, progress).await?;
            spinner.finish_and_clear();
            out.result(&self.summary(&counts), || summary_text(&counts))
        }))
    }

    /// Reads the stream and tells of each blob that is whole, and of each that is given up.
    async fn gather(
        &self,
        client: &Client,
        start: &Value,
        bounds: Bounds,
        mut tell: impl FnMut(&Told) -> Result<()>,
        progress: impl Fn(&Counts, u64),
    ) -> Result<Counts> {
        // Before a directory is made for a stream that is not there.
        let mut shards = Shards::open(client, &self.stream, start, self.follow).await?;
        let folder = self.out.as_deref().map(Folder::open).transpose()?;
        let mut assembly = Assembly::new(folder, bounds);
        let mut counts = Counts::default();
        while let Some(page) = shards.next(client).await? {
            for record in &page.records {
                counts.records += 1;
                self.take(&mut assembly, &mut counts, &record.key, &record.data, &mut tell)?;
            }
            progress(&counts, page.behind_ms);
        }
        for told in assembly.end()? {
            counts.note(&told);
            tell(&told)?;
        }
        Ok(counts)
    }

    /// Takes a record as it is stored: what is no part of a blob is passed over.
    fn take(
        &self,
        assembly: &mut Assembly,
        counts: &mut Counts,
        key: &str,
        data: &[u8],
        tell: &mut impl FnMut(&Told) -> Result<()>,
    ) -> Result<()> {
        let parts = kpl::split(data).into_iter().flatten().chain(std::iter::once((key, data)));
        for (device, data) in parts.filter(|(device, _)| self.device.as_ref().is_none_or(|wanted| wanted == device)) {
            if data.first() != Some(&(Kind::Chunk as u8)) {
                continue;
            }
            let Ok(envelope) = Envelope::read(data) else { continue };
            let Ok(chunk) = envelope.chunk() else { continue };
            counts.parts += 1;
            for told in assembly.take(device, envelope.epoch, &chunk)? {
                counts.note(&told);
                tell(&told)?;
            }
        }
        Ok(())
    }

    fn summary(&self, counts: &Counts) -> Value {
        let Counts { records, parts, whole, written, incomplete } = counts;
        json!({"stream": self.stream, "whole": whole, "written": written, "incomplete": incomplete, "records": records,
            "parts": parts})
    }
}

impl Counts {
    fn note(&mut self, told: &Told) {
        match &told.fate {
            Fate::Whole { kept } => {
                self.whole += 1;
                self.written += u64::from(matches!(kept, Some(Kept::Written(_))));
            }
            Fate::Incomplete { .. } => self.incomplete += 1,
        }
    }
}

fn summary_text(counts: &Counts) -> String {
    let Counts { records, parts, whole, written, incomplete } = counts;
    format!("{whole} whole, {written} written, {incomplete} incomplete; {parts} parts in {records} records")
}

fn as_json(told: &Told) -> Value {
    let (blob, parts) = (&told.blob, &told.parts);
    let mut value = json!({"device": blob.device, "blob": blob.id, "bytes": blob.bytes, "parts": parts.taken,
        "again": parts.again, "replaced": parts.replaced});
    match &told.fate {
        Fate::Whole { kept } => {
            value["whole"] = true.into();
            if let Some(Kept::Written(path) | Kept::There(path)) = kept {
                value["file"] = path.display().to_string().into();
                value["written"] = matches!(kept, Some(Kept::Written(_))).into();
            }
        }
        Fate::Incomplete { have, missing, why } => {
            value["whole"] = false.into();
            value["have"] = (*have).into();
            value["missing"] = missing.iter().map(|(from, until)| json!([from, until])).collect();
            value["why"] = why.text().into();
        }
    }
    value
}

fn as_text(told: &Told) -> String {
    let (blob, parts) = (&told.blob, &told.parts);
    let mut text = format!("{} {} {} bytes", printable(&blob.device), blob.id, blob.bytes);
    match &told.fate {
        Fate::Whole { kept: None } => {}
        Fate::Whole { kept: Some(Kept::Written(path)) } => text += &format!(" {}", path.display()),
        Fate::Whole { kept: Some(Kept::There(path)) } => text += &format!(" {}, which was there", path.display()),
        Fate::Whole { kept: Some(Kept::Nowhere) } => text += " not written: too many files have its name",
        Fate::Incomplete { have, missing, why } => {
            let ranges: Vec<_> = missing.iter().map(|(from, until)| format!("{from}..{until}")).collect();
            text += &format!(" incomplete ({}): {have} are there, missing {}", why.text(), ranges.join(" "));
        }
    }
    if parts.replaced > 0 {
        text += &format!("; {} parts replaced others", parts.replaced);
    }
    text
}

impl Why {
    fn text(self) -> &'static str {
        match self {
            Why::End => "the stream has no more of it",
            Why::TooManyBlobs => "too many are begun at once",
            Why::TooManyPieces => "in too many pieces",
        }
    }
}

#[cfg(test)]
mod assembly_tests;
#[cfg(test)]
mod tests;
