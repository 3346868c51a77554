//! The command line as a whole.

use super::*;
use clap::CommandFactory;
use std::fmt::Write as _;
use std::path::Path;

#[test]
fn the_command_table_is_sound() {
    Cli::command().debug_assert();
}

/// The help of a command and of all below it.
fn help(into: &mut String, command: &mut clap::Command, path: &str) {
    let text = command.clone().bin_name(path).render_long_help().to_string();
    let text: Vec<&str> = text.lines().map(str::trim_end).collect();
    let _ = write!(into, "\n## `{path}`\n\n```text\n{}\n```\n", text.join("\n").trim_end());
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names.iter().filter(|name| *name != "help") {
        if let Some(sub) = command.find_subcommand_mut(name) {
            help(into, sub, &format!("{path} {name}"));
        }
    }
}

#[test]
fn the_docs_are_what_the_help_says() {
    let mut text = "# The command line\n\nGenerated from the program's own help; a test compares.\n".to_owned();
    help(&mut text, &mut Cli::command(), "headwater");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    if std::env::var_os("HEADWATER_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(there, text, "run this test with HEADWATER_BLESS=1 to write docs/cli.md anew");
}

#[test]
fn exit_code_two_is_for_usage_and_configuration_alone() {
    assert!(usage("x").is::<Usage>());
    let mistakes = crate::config::Config::parse("h.toml", "x = 1", &[]).unwrap_err();
    assert!(anyhow::Error::from(mistakes).is::<Mistakes>());
}
