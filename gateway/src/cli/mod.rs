//! What a user types. One file a subcommand; this one holds the table of them, the flags they share, and the exit codes.
//!
//! Only `run` (and the children that `demo` and `bench` start) is a gateway. `stream`, `put`, `tail` and `blobs` are clients of a
//! running one, `blobs` of Kinesis too; `log` works on the directory of a stopped one.

mod bench;
mod blobs;
mod check;
mod child;
mod client;
mod completions;
mod demo;
mod kinesis;
mod log;
mod output;
mod passwd;
mod put;
mod run;
mod shards;
mod stream;
mod tail;
mod telemetry;
mod wire;

use crate::config::Mistakes;
use clap::{Args, Parser, Subcommand};
use output::Output;
use std::process::ExitCode;

/// The gateway where a stream starts: MQTT in, durable sharded streams on the box, Kinesis out.
#[derive(Parser)]
#[command(name = "headwater", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; stderr says why and what to do
  2  wrong usage, or a mistake in the configuration

Colours follow NO_COLOR and the terminal. Logs go to stderr; HEADWATER_LOG sets their level (info, debug, headwater::mqtt=debug).";

/// Flags of every subcommand.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Print results as JSON, one object a line.
    #[arg(long, global = true)]
    json: bool,
    /// How log lines look on stderr.
    #[arg(long, global = true, value_enum, default_value = "text", env = "HEADWATER_LOG_FORMAT")]
    log_format: output::LogFormat,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Run(run::Run),
    /// Watch the main job with nothing installed: a fleet publishes, the uplink fails and comes back, an audit closes.
    Demo(demo::Demo),
    /// Check a configuration file and say what to write instead.
    Check(check::Check),
    /// Create, list, describe and delete the streams of a running gateway.
    Stream(stream::StreamCommand),
    /// Put records into a stream: one from the argument, or one a line from stdin.
    Put(put::Put),
    /// Print the records of a stream as they come, or from a position on.
    Tail(tail::Tail),
    /// List the blobs of a stream, images and clips that devices sent in parts, or write them as files.
    Blobs(blobs::Blobs),
    /// Look at, verify and repair the data directory of a stopped gateway.
    Log(log::LogCommand),
    /// Set a user's password in a password file, or take the user out.
    Passwd(passwd::Passwd),
    /// Measure this machine: ingest, drain, recovery. One line of JSON a run.
    Bench(bench::Bench),
    /// Print a completion script for a shell.
    Completions(completions::Completions),
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// The whole program.
pub fn main() -> ExitCode {
    // Usage errors leave here, with exit code 2.
    let cli = Cli::parse();
    let out = Output::new(&cli.global);
    crate::log::hush_shielded_panics();
    out.start_logging(matches!(cli.command, Command::Run(_)));
    let done = match cli.command {
        Command::Run(run) => run.run(),
        Command::Demo(demo) => demo.run(&out),
        Command::Check(check) => check.run(&out),
        Command::Stream(stream) => stream.run(&out),
        Command::Put(put) => put.run(&out),
        Command::Tail(tail) => tail.run(&out),
        Command::Blobs(blobs) => blobs.run(&out),
        Command::Log(log) => log.run(&out),
        Command::Passwd(passwd) => passwd.run(&out),
        Command::Bench(bench) => bench.run(&out),
        Command::Completions(completions) => completions.run(&out),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = if error.is::<Mistakes>() || error.is::<Usage>() { USAGE } else { FAILED };
            out.error(&error);
            ExitCode::from(code)
        }
    }
}

/// Something in the arguments that clap could not see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

fn usage(says: impl Into<String>) -> anyhow::Error {
    Usage(says.into()).into()
}

#[cfg(test)]
mod tests;
