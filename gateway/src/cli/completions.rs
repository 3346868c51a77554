//! `headwater completions SHELL`: a script for the shell to load.

use super::Cli;
use super::output::Output;
use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

#[derive(Args)]
pub struct Completions {
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn run(self, out: &Output) -> Result<()> {
        // Not onto stdout: clap panics when its reader went away.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "headwater", &mut script);
        out.line(String::from_utf8(script)?.trim_end())
    }
}
