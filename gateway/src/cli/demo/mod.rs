//! `headwater demo`
use super::output::Output;
use anyhow::Result;
use clap::Args;
#[derive(Args)]
pub struct Demo {}
impl Demo {
    pub fn run(self, _: &Output) -> Result<()> {
        Ok(())
    }
}
