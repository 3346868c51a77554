//! How the command line speaks: results on stdout as text or JSON, logs, errors and progress on stderr.

use super::Global;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

pub struct Output {
    pub json: bool,
    log_format: LogFormat,
}

impl Output {
    pub fn new(global: &Global) -> Self {
        Output { json: global.json, log_format: global.log_format }
    }

    /// Whether stdout is a person's terminal.
    pub fn is_live(&self) -> bool {
        !self.json && std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
    }

    pub fn colours(&self) -> bool {
        self.is_live() && !no_color()
    }

    /// Logs on stderr: from `info` for a gateway, from `warn` for everything else.
    pub fn start_logging(&self, gateway: bool) {
        // rumqttd tells of every connection of the live bus, which are all ours; reqsign of every place that has no
        // credentials, each time, which the sink says in a sentence.
        let fallback = if gateway { "info,rumqttd=warn,reqsign_core=error" } else { "warn" };
        let filter = std::env::var("HEADWATER_LOG").unwrap_or_else(|_| fallback.to_owned());
        let filter = log_filter(&filter).unwrap_or_else(|error| {
            eprintln!("HEADWATER_LOG={filter}: {error}; write a level such as info, or headwater::mqtt=debug");
            EnvFilter::new(fallback)
        });
        let colours = std::io::stderr().is_terminal() && !no_color();
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
        // A second start in one process (tests) keeps the first.
        let _ = match self.log_format {
            LogFormat::Text => logs.try_init(),
            LogFormat::Json => logs.json().try_init(),
        };
    }

    /// A result: JSON, or the text made for people.
    pub fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let line = if self.json { serde_json::to_string(value)? } else { text() };
        self.line(&line)
    }

    /// A line on stdout. A reader that went away (`| head`) ends the program quietly.
    pub fn line(&self, line: &str) -> anyhow::Result<()> {
        match writeln!(std::io::stdout().lock(), "{line}") {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            other => Ok(other?),
        }
    }

    pub fn error(&self, error: &anyhow::Error) {
        if self.json {
            let value = match error.downcast_ref::<crate::config::Mistakes>() {
                Some(mistakes) => serde_json::json!({"error": "configuration", "mistakes": mistakes.0}),
                None => serde_json::json!({"error": chain(error)}),
            };
            eprintln!("{value}");
        } else {
            eprintln!("headwater: {}", chain(error));
        }
    }

    /// A progress bar on stderr, invisible unless that is a terminal.
    pub fn progress(&self, total: u64, what: &'static str, unit: Unit) -> ProgressBar {
        let bar = match std::io::stderr().is_terminal() && !self.json {
            true => ProgressBar::new(total),
            false => ProgressBar::hidden(),
        };
        let template = match unit {
            Unit::Bytes => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            Unit::Count => "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}",
            Unit::Seconds => "{msg} {wide_bar} {pos}/{len} s",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.with_message(what)
    }

    /// The same for work that cannot say how far it is: the seconds so far.
    pub fn spinner(&self, what: &'static str) -> ProgressBar {
        let spinner = match std::io::stderr().is_terminal() && !self.json {
            true => ProgressBar::new_spinner(),
            false => ProgressBar::hidden(),
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            spinner.set_style(style);
        }
        spinner.enable_steady_tick(std::time::Duration::from_millis(100));
        spinner.with_message(what)
    }
}

/// The error and its causes in one line. Many errors tell their cause themselves; it is not told again.
fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line
}

#[derive(Clone, Copy)]
pub enum Unit {
    Bytes,
    Count,
    Seconds,
}

/// The filter of `HEADWATER_LOG`. A word that is no level is the name of a part, and all other parts are silent: a level
/// that was mistyped would hide every warning.
fn log_filter(text: &str) -> Result<EnvFilter, String> {
    let is_part = |word: &str| word.contains(['=', ':', '[']) || word.is_empty();
    let is_known = |word: &str| is_part(word) || word.parse::<LevelFilter>().is_ok();
    match text.split(',').map(str::trim).find(|word| !is_known(word)) {
        Some(word) => Err(format!("{word:?} is no level")),
        None => EnvFilter::try_new(text).map_err(|error| error.to_string()),
    }
}

/// <https://no-color.org>: set and not empty.
fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let taken = || std::io::Error::from(std::io::ErrorKind::AddrInUse);
        let error =
            anyhow::Error::new(taken()).context(format!("cannot listen: {}", taken())).context("say --mqtt-listen");
        assert_eq!(chain(&error), format!("say --mqtt-listen: cannot listen: {}", taken()));
    }

    #[test]
    fn a_level_that_was_mistyped_silences_nothing() {
        for good in ["info", "WARN", "headwater::mqtt=debug", "info,rumqttd=warn", "off", ""] {
            assert!(log_filter(good).is_ok(), "{good}");
        }
        for bad in ["warnn", "info,debugg", "headwater=loud", "verbose"] {
            assert!(log_filter(bad).is_err(), "{bad}");
        }
    }
}
