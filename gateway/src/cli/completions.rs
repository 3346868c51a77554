//! `headwater completions SHELL`: a script for the shell to load.

use super::Cli;
use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

#[derive(Args)]
pub struct Completions {
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<()> {
        clap_complete::generate(self.shell, &mut Cli::command(), "headwater", &mut std::io::stdout());
        Ok(())
    }
}
