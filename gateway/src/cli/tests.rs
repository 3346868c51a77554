//! The command line as a whole.

use super::*;
use clap::CommandFactory;

#[test]
fn the_command_table_is_sound() {
    Cli::command().debug_assert();
}
