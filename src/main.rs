//! Command line in, hand over; nothing else.

fn main() -> std::process::ExitCode {
    faber::cli::main()
}
