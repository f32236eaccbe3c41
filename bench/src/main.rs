//! `bench`: what replication costs, side by side with what else there is.
//!
//! `compare` runs the same client, the same files and the same cases against every contender, in turns and in several
//! rounds. `contender` starts and stops them (`nbdkit`, `qsd`, `bare`, `ours`) and says who is compared with whom, `measure` lets
//! them take turns, `compare` plans it all, `report` prints, draws and saves the outcome. What is measured another way: `bulk`,
//! `copying` (a first copy, and an old one made new), `wan`, `wire` (what is sent for each byte that a database, or a file
//! server, writes) and `scale`; `subject` names them all.

mod bare;
mod bulk;
mod case;
mod compare;
mod contender;
mod copying;
mod cpu;
mod fio;
mod image;
mod measure;
mod memory;
mod nbdkit;
mod ours;
mod process;
mod qmp;
mod qsd;
mod report;
mod scale;
mod stats;
mod subject;
mod tcp_count;
mod tls;
mod trials;
mod wait;
mod wan;
mod wire;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures Afterimage beside its peers.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs every contender through every case and prints medians and ratios.
    Compare(compare::Options),
    /// Measures the pair beside TCP over an emulated wide-area link.
    Wan(wan::Options),
    /// Counts the bytes that are sent for each byte written, with real file systems on the volume. Needs root.
    Wire(wire::Options),
    /// One end of the least that a server, or a pair, does: `compare` starts it.
    #[command(hide = true)]
    Bare(bare::Options),
    /// Measures what the size of a volume costs: a sparse one of 64 TiB.
    Scale(scale::Options),
}

fn main() -> Result<ExitCode> {
    match Options::parse().command {
        Command::Compare(options) => compare::run(&options),
        Command::Bare(options) => bare::run(&options),
        Command::Wan(options) => wan::run(&options),
        Command::Wire(options) => wire::run(&options),
        Command::Scale(options) => scale::run(&options),
    }
}
