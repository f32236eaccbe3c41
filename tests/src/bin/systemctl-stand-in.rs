//! `systemctl` on the hosts of a walkthrough, which have no systemd: see `tests::real::walkthrough::units`.

use std::process::ExitCode;

use tests::real::walkthrough::units::systemctl;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match systemctl(&args) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("systemctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
