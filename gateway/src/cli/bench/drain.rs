//! stub
use crate::cli::output::Output;
use anyhow::Result;
use clap::Args;
#[derive(Args)]
pub struct Drain {}
impl Drain {
    pub fn run(self, _: &Output) -> Result<()> {
        Ok(())
    }
}
