//! The `afterimage` binary; see the library.

fn main() -> std::process::ExitCode {
    afterimage_cli::main()
}
