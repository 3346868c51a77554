//! The binary `headwater`: arguments to `cli`.

fn main() -> std::process::ExitCode {
    headwater::cli::main()
}
