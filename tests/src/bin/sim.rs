//! Runs simulated seeds until one breaks a guarantee, and prints the command that replays it.

use std::time::Instant;

use afterimage_protocol::rules::Rule;
use clap::{Parser, ValueEnum};
use tests::sim::cases::Case;
use tests::sim::world::{self, Settings, Theme};

/// Seeds of an ordinary hunt.
const SEEDS: u64 = 1000;
/// Seeds that must be clean with only the companion of a masked rule off.
const GIVEN_SEEDS: u64 = 200;
/// Characters of a violation that the table shows.
const DETAIL_CHARS: usize = 110;

/// Simulates the pair through faults, one seed after the other.
#[derive(Parser)]
struct Args {
    /// How many seeds to run; 1000, or what each rule is caught within.
    #[arg(long)]
    seeds: Option<u64>,
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
    /// Concentrate on one theme.
    #[arg(long)]
    theme: Option<Theme>,
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
    let settings = match &args.without {
        None => Settings { steps: args.steps, ..Settings::default() },
        Some(name) => {
            let rule = Rule::by_name(name).ok_or_else(|| anyhow::anyhow!("no rule is called {name}"))?;
            Case::of(rule).settings(args.steps)
        }
    };
    let settings = Settings { theme: args.theme.or(settings.theme), ..settings };
    if let Some(seed) = args.replay {
        let mut log = Vec::new();
        let result = world::run(seed, &settings, Some(&mut log));
        log.iter().for_each(|line| println!("{line}"));
        println!("seed {seed}: {result:?}");
        return result.map(|_| ()).map_err(|v| anyhow::anyhow!("{v}"));
    }
    let started = Instant::now();
    let mut bad = 0;
    let seeds = args.seeds.unwrap_or(SEEDS);
    for seed in args.from..args.from + seeds {
        let result = world::run(seed, &settings, None);
        if args.twice {
            let again = world::run(seed, &settings, None);
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
                "  replay: cargo run --profile sim -p tests --bin sim -- --steps {}{}{} --replay {seed}",
                args.steps,
                args.without.iter().map(|rule| format!(" --without {rule}")).collect::<String>(),
                args.theme
                    .iter()
                    .filter_map(|theme| theme.to_possible_value())
                    .map(|value| format!(" --theme {}", value.get_name()))
                    .collect::<String>(),
            );
            bad += 1;
            if !args.keep_going {
                break;
            }
        }
    }
    let elapsed = started.elapsed().as_secs_f64();
    println!("{seeds} seeds from {}, {bad} violations, {elapsed:.1} s", args.from);
    anyhow::ensure!(bad == 0, "{bad} violations");
    Ok(())
}

/// Switches one rule off after the other. Each has to be caught within its bound, or within `--seeds` if that is given.
fn table(args: &Args) -> anyhow::Result<()> {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = 0;
    println!("{:<21} {:>3} {:>9}  {:<31} violation", "rule", "no.", "seeds", "world");
    for (rule, number, name) in Rule::ALL {
        let case = Case::of(*rule);
        let bound = args.seeds.unwrap_or(case.seeds);
        let (seeds, what) = match case.hunt(args.steps, args.from, bound) {
            Some((n, violation)) => (n.to_string(), violation.to_string()),
            None => {
                missed += 1;
                ("none".to_owned(), "NOT CAUGHT".to_owned())
            }
        };
        let theme = case.theme.map_or("any".to_owned(), |theme| format!("{theme:?}"));
        let given = case.given.map_or(String::new(), |given| format!(" without {}", given.rule_name()));
        let what: String = what.chars().take(DETAIL_CHARS).collect();
        println!("{name:<21} {number:>3} {:>9}  {:<31} {what}", format!("{seeds}/{bound}"), theme + &given);
        if let Some(settings) = case.given_alone(args.steps) {
            let bad = (0..GIVEN_SEEDS).find_map(|n| world::run(args.from + n, &settings, None).err());
            anyhow::ensure!(
                bad.is_none(),
                "with {name} on: {}",
                bad.map_or(String::new(), |v| v.to_string())
            );
        }
    }
    anyhow::ensure!(missed == 0, "{missed} rules were not caught");
    Ok(())
}
