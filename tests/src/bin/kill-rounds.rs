//! Runs rounds of `kill -9` under load against the product's programs, half of them with a synchronous group.

use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use tests::real::{Summary, kill_rounds};

/// Kills agent and receiver under load again and again, and checks what a promotion yields.
#[derive(Parser)]
struct Args {
    /// How many kills.
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Decides what is killed when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kills with one pair before its primary is lost for good and the standby promoted.
    #[arg(long, default_value_t = 10)]
    each: u32,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let started = Instant::now();
    let (mut left, mut seed) = (args.rounds, args.seed);
    let (mut promotions, mut failures) = (0, 0);
    let mut sums = [Summary::default(); 2];
    while left > 0 {
        let rounds = left.min(args.each.max(1));
        left -= rounds;
        let sync = promotions % 2 == 0;
        promotions += 1;
        let mode = if sync { "sync" } else { "async" };
        match kill_rounds(rounds, seed, sync).with_context(|| format!("seed {seed}, {mode}")) {
            Ok(summary) => {
                println!("seed {seed}, {mode}: {summary}");
                sums[usize::from(sync)].add(&summary);
            }
            Err(error) if args.keep_going => {
                println!("{error:#}");
                failures += 1;
            }
            Err(error) => return Err(error),
        }
        seed += 1;
    }
    for (mode, sum) in ["async", "sync"].iter().zip(&sums) {
        println!("all {mode}: {sum}");
    }
    let seconds = started.elapsed().as_secs();
    println!("{} rounds, {promotions} promotions, {failures} failures, {seconds} s", args.rounds);
    anyhow::ensure!(failures == 0, "{failures} of {promotions} runs failed");
    Ok(())
}
