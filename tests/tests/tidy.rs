//! The rules of the tree that a machine can hold: who may import whom, what is pure, how a file opens and how long it is.
//!
//! ARCHITECTURE.md and CONTRIBUTING.md say why. A rule here only ever gets stricter: the lists of exceptions may shrink, not grow.

use headwater_tests::tools::root;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files over the limit, with their reason. Take lines away; do not add any without one.
const LONG: [(&str, &str); 0] = [];
const LINES_MAX: usize = 600;

/// Parts of the gateway, and what each may name under `crate::`. `delivery` may use `uplink::sink`.
const BASE: [&str; 6] = ["record", "clock", "metrics", "units", "problem", "backoff"];
/// Protocols that more than one part speaks: over the base, knowing no log.
const SHARED: [&str; 2] = ["http", "wire"];
const PARTS: [&str; 7] = ["mqtt", "media", "uplink", "delivery", "analytics", "api", "console"];

/// Files that say they are pure; there were so many when this was written, and none may fall silent.
const PURE_MIN: usize = 48;

struct Source {
    /// From the repository's root, with `/`.
    path: String,
    text: String,
}

/// Everything git would commit: tracked files, and new ones that are not ignored.
fn committed() -> Vec<String> {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = git.output().expect("git lists the files");
    assert!(listed.status.success(), "the tidy rules need a git checkout");
    let names = String::from_utf8(listed.stdout).expect("file names are UTF-8");
    let there = |name: &&str| !name.is_empty() && root().join(name).is_file();
    names.split('\0').filter(there).map(str::to_owned).collect()
}

fn rust_files() -> Vec<Source> {
    let rust = committed().into_iter().filter(|path| path.ends_with(".rs"));
    rust.map(|path| Source { text: std::fs::read_to_string(root().join(&path)).unwrap_or_default(), path }).collect()
}

/// The text in front of `#[cfg(test)] mod`, without comments: what is compiled into the product.
fn product(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let bare = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    code.lines().map(bare).collect::<Vec<_>>().join("\n")
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_tests.rs") || path.contains("/tests/") || path.starts_with("tests/")
}

fn none(found: Vec<String>, rule: &str) {
    assert!(found.is_empty(), "{rule}\n  {}", found.join("\n  "));
}

/// `mqtt` for `gateway/src/mqtt/session.rs` and `gateway/src/mqtt.rs`.
fn part_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("gateway/src/")?;
    Some(rest.split('/').next()?.trim_end_matches(".rs"))
}

/// Names that follow `crate::` in code, those of `crate::{a, b}` included.
fn imports(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            None => drop(names.insert(word(rest))),
            Some(group) => {
                let mut depth = 0;
                for piece in top_level(group, &mut depth) {
                    names.insert(word(piece.trim()));
                }
            }
        }
    }
    names
}

/// Pieces of `a, b::{c, d}, e}...` up to the closing brace.
fn top_level<'a>(group: &'a str, depth: &mut i32) -> Vec<&'a str> {
    let (mut pieces, mut start) = (Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => *depth += 1,
            '}' if *depth == 0 => {
                pieces.push(&group[start..at]);
                return pieces;
            }
            '}' => *depth -= 1,
            ',' if *depth == 0 => {
                pieces.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces
}

fn may_import(part: &str, name: &str) -> bool {
    let base = BASE.contains(&name);
    let shared = SHARED.contains(&name);
    match part {
        "record" | "units" | "problem" | "backoff" => base && name != "metrics" && name != "clock",
        "clock" | "metrics" => base,
        "log" => base || name == "log",
        part if SHARED.contains(&part) => base || name == part,
        "delivery" => base || shared || matches!(name, "log" | "delivery" | "uplink"),
        part if PARTS.contains(&part) => base || shared || name == "log" || name == part,
        "config" => name != "cli" && name != "daemon",
        "daemon" => name != "cli",
        _ => true,
    }
}

#[test]
fn imports_go_one_way() {
    let mut wrong = Vec::new();
    for Source { path, text } in rust_files().iter().filter(|file| !is_test_file(&file.path)) {
        let Some(part) = part_of(path) else { continue };
        for name in imports(&product(text)) {
            // Only modules count; a macro at the crate's root is not a part.
            if !may_import(part, &name) && name != part && is_module(&name) {
                wrong.push(format!("{path} imports crate::{name}"));
            }
        }
    }
    none(wrong, "base <- http, wire, log <- mqtt, api, uplink, console (never each other) <- daemon <- cli, main:");
}

fn is_module(name: &str) -> bool {
    let source = root().join("gateway/src");
    source.join(name).is_dir() || source.join(format!("{name}.rs")).is_file()
}

#[test]
fn redb_is_named_in_the_log_alone() {
    let outside = |file: &&Source| file.path.starts_with("gateway/") && part_of(&file.path) != Some("log");
    let names_it = |file: &&Source| product(&file.text).contains("redb::");
    let wrong = rust_files().iter().filter(outside).filter(names_it).map(|file| file.path.clone()).collect();
    none(wrong, "redb only in gateway/src/log/:");
}

#[test]
fn pure_files_have_no_async_no_tokio_no_clock_no_io() {
    const BANNED: [&str; 9] = [
        "async fn",
        ".await",
        "tokio::",
        "std::fs",
        "std::net",
        "std::io",
        "Instant::now",
        "SystemTime",
        "std::thread",
    ];
    let (mut wrong, mut pure) = (Vec::new(), 0);
    for Source { path, text } in rust_files() {
        if !says_pure(&text) || is_test_file(&path) {
            continue;
        }
        pure += 1;
        // Naming the error of others is not I/O, nor is a trait that bytes in memory have too.
        let harmless = ["std::io::Result", "std::io::Error", "std::io::Read", "std::io::Write"];
        let code = harmless.into_iter().fold(product(&text), |code, word| code.replace(word, ""));
        wrong.extend(BANNED.iter().filter(|word| code.contains(**word)).map(|word| format!("{path} names {word}")));
    }
    none(wrong, "files marked pure take time and bytes as arguments:");
    assert!(pure >= PURE_MIN, "only {pure} files say that they are pure: is the rule blind?");
}

/// The words in front of a file's first item.
fn header(text: &str) -> String {
    let lines = text.lines().take_while(|line| line.starts_with("//!"));
    lines.map(|line| line.trim_start_matches("//!").trim()).collect::<Vec<_>>().join(" ")
}

/// A header says so of its own file with "Pure." (or "Pure: why"), "(pure)" or "pure state machine"; "Pure parts:" and "Pure but
/// for" are something else.
fn says_pure(text: &str) -> bool {
    let header = header(text);
    let says = |word: &str| header.contains(word);
    ["Pure.", "Pure:", "Pure;", "Pure,", "(pure)", "pure state machine"].into_iter().any(says)
}

#[test]
fn parts_that_a_module_calls_pure_say_so_themselves() {
    let (mut wrong, mut named) = (Vec::new(), 0);
    for Source { path, text } in rust_files() {
        let header = header(&text);
        let Some((_, parts)) = header.split_once("Pure parts:") else { continue };
        let parts = parts.split('.').next().unwrap_or_default();
        for name in parts.split('`').skip(1).step_by(2) {
            named += 1;
            let part = root().join(&path).with_file_name(format!("{name}.rs"));
            if !std::fs::read_to_string(&part).is_ok_and(|text| says_pure(&text)) {
                wrong.push(format!("{path} names {name}"));
            }
        }
    }
    none(wrong, "what a module calls pure is a file whose own header says so, and which is checked for it:");
    assert!(named > 10, "only {named} parts are named");
}

#[test]
fn a_header_speaks_for_its_own_file() {
    assert!(
        says_pure("//! A thing. Pure.\n") && says_pure("//! A thing\n//! that waits. Pure: time is an argument.\n")
    );
    assert!(
        says_pure("//! A thing (pure).\n") && !says_pure("//! Pure parts: `a`.\n") && !says_pure("//! A.\n// Pure.\n")
    );
}

#[test]
fn every_file_opens_by_saying_what_it_is() {
    let silent = |file: &&Source| !file.text.starts_with("//! ");
    let wrong = rust_files().iter().filter(silent).map(|file| file.path.clone()).collect();
    none(wrong, "a file opens with `//!`: what it is, what it is not, where it stands on the way:");
}

#[test]
fn files_stay_within_600_lines() {
    let mut wrong = Vec::new();
    for Source { path, text } in rust_files() {
        let lines = text.lines().count();
        let excused = LONG.iter().any(|(long, _)| *long == path);
        if lines > LINES_MAX && !excused {
            wrong.push(format!("{path} has {lines} lines"));
        }
        if lines <= LINES_MAX && excused {
            wrong.push(format!("{path} has {lines} lines and needs no exception any more"));
        }
    }
    none(wrong, "a file over 600 lines is two matters; split it:");
}

#[test]
fn a_rename_is_followed_by_a_sync_of_its_directory() {
    let renames = ["fs::rename(", "renameat", ".rename_to("];
    let syncs = ["sync_dir", "sync_directory", "sync_all"];
    // Behind each rename, in the next few lines.
    let is_synced = |behind: &str| behind.lines().take(8).any(|line| syncs.iter().any(|sync| line.contains(sync)));
    let product_of = |file: &&Source| file.path.starts_with("gateway/") && !is_test_file(&file.path);
    let wrong = |file: &&Source| {
        let code = product(&file.text);
        !renames.iter().all(|rename| code.split(rename).skip(1).all(is_synced))
    };
    let wrong = rust_files().iter().filter(product_of).filter(wrong).map(|file| file.path.clone()).collect();
    none(wrong, "a rename is durable only after a sync of its directory:");
}

#[test]
fn nothing_committed_names_the_machine_it_was_written_on() {
    // Put together here, so that this file does not name them itself.
    let paths =
        [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["/tm", "p/wt/"], ["/opt/wh", "eels"]].map(|two| two.concat());
    let hosts = ["files.pythonhosted", "registry.npmjs", "static.crates", "index.crates", "deb.debian"];
    let hosts = hosts.map(|host| format!("{host}."));
    let mut wrong = Vec::new();
    for path in committed() {
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        let lock = Path::new(&path).file_name().is_some_and(|name| name == "Cargo.lock");
        for word in paths.iter().chain(&hosts) {
            // A path only where it begins one: `deploy/work/` is ours.
            let begins = |at: usize| at == 0 || text[..at].ends_with([' ', '"', '\'', '=', '`', '(', '\n', ':']);
            let named = text.match_indices(word.as_str()).any(|(at, _)| !word.starts_with('/') || begins(at));
            if named && !lock && path != "tests/tests/tidy.rs" {
                wrong.push(format!("{path} names {word}"));
            }
        }
    }
    none(wrong, "committed files name no path or host of one machine:");
}

/// The first string literal behind each `call`, white space aside.
fn literals_behind<'a>(code: &'a str, call: &'a str) -> impl Iterator<Item = &'a str> {
    code.split(call).skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
}

#[test]
fn every_reason_an_operator_may_see_stands_in_the_table_of_reasons() {
    let table = std::fs::read_to_string(root().join("docs/mqtt.md")).unwrap();
    let calls = ["reject_as(", "silent(", "reject(\"mqtt\",", "reason: "];
    let (mut missing, mut seen) = (Vec::new(), 0);
    for file in
        rust_files().iter().filter(|file| file.path.starts_with("gateway/src/mqtt/") && !is_test_file(&file.path))
    {
        let code = product(&file.text);
        for reason in calls.iter().flat_map(|call| literals_behind(&code, call)) {
            seen += 1;
            if !table.contains(&format!("`{reason}`")) {
                missing.push(format!("{}: {reason}", file.path));
            }
        }
    }
    assert!(seen >= 15, "{seen} reasons are found in the code");
    none(missing, "a reason that is counted is explained in docs/mqtt.md");
}

#[test]
fn rules_read_imports_as_the_compiler_does() {
    let code = "use crate::log::{Log, mqtt};\nuse crate::{record, units::{Span, ByteSize}, api};\ncrate::clock::now();";
    let names: Vec<_> = imports(code).into_iter().collect();
    assert_eq!(names, ["api", "clock", "log", "record", "units"]);
    assert!(may_import("mqtt", "log") && !may_import("mqtt", "api") && !may_import("log", "mqtt"));
}

/// The scripts people start must be executable after a clone.
#[test]
fn scripts_are_executable() {
    use std::os::unix::fs::PermissionsExt;
    let starts_with_hashbang = |path: &PathBuf| std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"#!"));
    let mut wrong = Vec::new();
    for path in committed() {
        let full = root().join(&path);
        let mode = full.metadata().map_or(0, |about| about.permissions().mode());
        if starts_with_hashbang(&full) && !path.ends_with(".rs") && mode & 0o100 == 0 {
            wrong.push(path);
        }
    }
    none(wrong, "a script with #! needs its executable bit:");
}
