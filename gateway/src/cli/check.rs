//! `headwater check FILE`: every mistake of a configuration, with its place. Exit code 2 if there is one.

use super::output::Output;
use crate::config::Config;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Check {
    /// The configuration to check.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Check {
    pub fn run(self, out: &Output) -> Result<()> {
        let config = Config::load(Some(&self.file), &[])?;
        let value = serde_json::json!({
            "ok": true, "file": self.file, "streams": config.streams.len(), "routes": config.routes.len(),
            "sinks": config.sinks.len(),
        });
        out.result(&value, || {
            let Config { streams, routes, sinks, .. } = &config;
            format!(
                "{}: good: {} streams, {} routes, {} sinks configured",
                self.file.display(),
                streams.len(),
                routes.len(),
                sinks.len()
            )
        })
    }
}
