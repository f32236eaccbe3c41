//! Runs simulated seeds until one breaks a guarantee, and prints the command that replays it.

use std::time::Instant;

use afterimage_protocol::rules::{Rule, Rules};
use clap::Parser;
use tests::sim::world::{self, Given};

/// Seeds that must be clean with only the companion of a masked rule off.
const GIVEN_SEEDS: u64 = 300;

/// Simulates the pair through faults, one seed after the other.
#[derive(Parser)]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Random steps of each run, before it has to come to rest.
    #[arg(long, default_value_t = 1500)]
    steps: u64,
    /// Replay one seed and print what happens.
    #[arg(long)]
    replay: Option<u64>,
    /// Switch one rule off, to see it caught; "all" does so with one after the other and prints a table.
    #[arg(long)]
    without: Option<String>,
    /// Run every seed twice and compare the traces.
    #[arg(long)]
    twice: bool,
    /// Go on after a violation.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.without.as_deref() == Some("all") {
        return table(&args);
    }
    let rules = match &args.without {
        None => Rules::default(),
        Some(name) => {
            Rules::without(Rule::by_name(name).ok_or_else(|| anyhow::anyhow!("no rule is called {name}"))?)
        }
    };
    if let Some(seed) = args.replay {
        let mut log = Vec::new();
        let result = world::run(seed, args.steps, rules, Some(&mut log));
        log.iter().for_each(|line| println!("{line}"));
        println!("seed {seed}: {result:?}");
        return result.map(|_| ()).map_err(|v| anyhow::anyhow!("{v}"));
    }
    let started = Instant::now();
    let mut bad = 0;
    for seed in args.from..args.from + args.seeds {
        let result = world::run(seed, args.steps, rules, None);
        if args.twice {
            let again = world::run(seed, args.steps, rules, None);
            let same = match (&result, &again) {
                (Ok(a), Ok(b)) => a == b,
                (Err(a), Err(b)) => a.detail == b.detail,
                _ => false,
            };
            anyhow::ensure!(same, "seed {seed}: two runs differ");
        }
        if let Err(violation) = result {
            println!("seed {seed}: {violation}");
            println!(
                "  replay: cargo run --release -p tests --bin sim -- --steps {} --replay {seed}",
                args.steps
            );
            bad += 1;
            if !args.keep_going {
                break;
            }
        }
    }
    let elapsed = started.elapsed().as_secs_f64();
    println!("{} seeds from {}, {bad} violations, {elapsed:.1} s", args.seeds, args.from);
    anyhow::ensure!(bad == 0, "{bad} violations");
    Ok(())
}

fn table(args: &Args) -> anyhow::Result<()> {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = 0;
    println!("{:<24} {:>4}  {:>8}  {:<10}  violation", "rule", "no.", "seeds", "given");
    for given in [Given::StalePeer, Given::StalePeerSessions] {
        let bad = (0..GIVEN_SEEDS).find_map(|n| {
            world::run_given(args.from + n, args.steps, Rules::default(), Some(given), None).err()
        });
        anyhow::ensure!(
            bad.is_none(),
            "without {:?} alone: {}",
            given.rule(),
            bad.map_or(String::new(), |v| v.to_string())
        );
    }
    for (rule, number, name) in Rule::ALL {
        let given = Given::masks(*rule);
        let without = given.map_or("", |_| "stale-peer");
        let caught = (0..args.seeds).find_map(|n| {
            let result = world::run_given(args.from + n, args.steps, Rules::without(*rule), given, None);
            result.err().map(|v| (n + 1, v))
        });
        match caught {
            Some((n, v)) => println!("{name:<24} {number:>4}  {n:>8}  {without:<10}  {v}"),
            None => {
                missed += 1;
                println!(
                    "{name:<24} {number:>4}  {:>8}  {without:<10}  not caught",
                    format!(">{}", args.seeds)
                );
            }
        }
    }
    anyhow::ensure!(missed == 0, "{missed} rules were not caught");
    Ok(())
}
