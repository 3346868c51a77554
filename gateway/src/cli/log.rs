//! `headwater log`
use super::output::Output;
use anyhow::Result;
use clap::Args;
#[derive(Args)]
pub struct LogCommand {}
impl LogCommand {
    pub fn run(self, _: &Output) -> Result<()> {
        Ok(())
    }
}
