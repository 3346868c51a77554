//! stub
use crate::cli::output::Output;
use anyhow::Result;
use clap::Args;
#[derive(Args)]
pub struct Recover {}
impl Recover {
    pub fn run(self, _: &Output) -> Result<()> {
        Ok(())
    }
}
