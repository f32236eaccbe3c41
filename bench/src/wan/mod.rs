//! The emulated wide-area link: how much of it the pair fills beside TCP, and what its delay costs a client.
//!
//! Everything runs between two network namespaces, over the line of `tests/wan`. `flow` measures what comes out at the far
//! end of a [`flow::Flow`]; `tcp`, `quic` and `pair` are the flows; `report` prints and saves.

mod flow;
mod pair;
mod quic;
mod tcp;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use afterimage_transport::Congestion;
use afterimage_wan::{Wan, WanConfig};
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::{
    case::Case,
    contender::Bed,
    cpu,
    ours::{self, Mode},
    trials::{Trial, Trials},
    wait::Interrupt,
};
use flow::{Flow, goodput_mbit};
pub use pair::create_noise;

/// Before a rate counts: the start is over, and windows and queues have found their size.
const WARM_UP: Duration = Duration::from_secs(2);
/// Room on a volume beyond what the line can carry while it is measured, in seconds of the line.
const SPARE_SECONDS: f64 = 3.0;
/// What a client writes to.
const CLIENT_VOLUME_BYTES: u64 = 256 << 20;

/// Of a run among others; what a client sees goes with the disk, and takes more rounds.
const SHORT_ROUNDS: u32 = 2;
const SHORT_CLIENT_ROUNDS: u32 = 5;
const SHORT_SECONDS: u32 = 3;

/// Contenders take turns within a round. Needs root, for network namespaces. The exit status is 1 if a copy differed.
#[derive(Args)]
pub struct Options {
    /// Only this line; may be given several times
    #[arg(long, value_name = "LINE")]
    only: Vec<Line>,
    /// Only these contenders
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// What the line's delay costs a client, instead of how much of the line is filled
    #[arg(long)]
    client: bool,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 6)]
    seconds: u32,
    /// Where the volumes are made, and removed again [default: the system's temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the results are saved [default: bench-results beside this program]
    #[arg(long)]
    save: Option<PathBuf>,
}

/// A line between two sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Line {
    /// 200 Mbit/s, 20 ms, no loss
    Clean200,
    /// 200 Mbit/s, 20 ms, 0.1 % loss
    Lossy200,
    /// 100 Mbit/s, 80 ms, 1 % loss
    Long100,
    /// 1 Gbit/s, 10 ms, no loss
    Fast1000,
}

impl Line {
    const ALL: [Line; 4] = [Line::Clean200, Line::Lossy200, Line::Long100, Line::Fast1000];

    /// Mbit/s, milliseconds there and back, percent lost each way.
    fn measures(self) -> (f64, u64, f64) {
        match self {
            Line::Clean200 => (200.0, 20, 0.0),
            Line::Lossy200 => (200.0, 20, 0.1),
            Line::Long100 => (100.0, 80, 1.0),
            Line::Fast1000 => (1000.0, 10, 0.0),
        }
    }

    fn title(self) -> String {
        let (rate, rtt, loss) = self.measures();
        format!("{rate} Mbit/s, {rtt} ms, {loss} % loss")
    }
}

/// What carries bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Contender {
    /// TCP, Linux' default
    TcpCubic,
    /// TCP with BBR
    TcpBbr,
    /// The bare transport
    Quic,
    /// The bare transport with QUIC's usual congestion control
    QuicCubic,
    /// The bare transport with quinn's BBR
    QuicBbr,
    /// The bare transport with RFC 9002's congestion control
    QuicReno,
    /// Both nodes, in their first sync
    Pair,
}

impl Contender {
    const ALL: [Contender; 7] = [
        Contender::TcpCubic,
        Contender::TcpBbr,
        Contender::QuicCubic,
        Contender::QuicReno,
        Contender::QuicBbr,
        Contender::Quic,
        Contender::Pair,
    ];
    /// Without what is only of interest to whoever works on the transport.
    const DEFAULT: [Contender; 4] =
        [Contender::TcpCubic, Contender::TcpBbr, Contender::Quic, Contender::Pair];

    fn name(self) -> &'static str {
        match self {
            Contender::TcpCubic => "tcp-cubic",
            Contender::TcpBbr => "tcp-bbr",
            Contender::Quic => "quic",
            Contender::QuicCubic => "quic-cubic",
            Contender::QuicBbr => "quic-bbr",
            Contender::QuicReno => "quic-reno",
            Contender::Pair => "pair",
        }
    }
}

/// What [`measure_shortly`] measures of the lines.
pub const TCP: [&str; 2] = ["tcp-cubic", "tcp-bbr"];
/// And of the product.
pub const PAIR: &str = "pair";

/// The lines: their cases in the outcome, and what they carry in Mbit/s, if nothing is lost on them.
pub fn cases() -> impl Iterator<Item = (String, Option<f64>)> {
    Line::ALL.into_iter().map(|line| {
        let (rate, _, loss) = line.measures();
        (line.title(), (loss == 0.0).then_some(rate))
    })
}

/// What a client sees of a delay in milliseconds, as cases in the outcome.
pub fn client_case(what: &str, rtt_ms: u64) -> String {
    format!("{what}, {rtt_ms} ms")
}

/// Of [`client_case`]: a byte there and back over TCP.
pub const ROUND_TRIP: &str = "a byte there and back over TCP";
/// Of [`client_case`]: the middle of the times that a write takes in sync mode.
pub const SYNC_WRITE: &str = "sync, 4 KiB random write, QD1, p50";

/// Of [`client_case`]: writes per second in async mode.
pub fn async_writes(case: Case) -> String {
    format!("async, {}", case.title())
}

/// All lines with TCP and the pair, and what a delay costs a client, with few and short runs.
pub fn measure_shortly(base: &Path, interrupt: &Interrupt) -> Result<Trials> {
    let options = |client| Options {
        only: Vec::new(),
        contenders: vec![Contender::TcpCubic, Contender::TcpBbr, Contender::Pair],
        client,
        rounds: if client { SHORT_CLIENT_ROUNDS } else { SHORT_ROUNDS },
        seconds: SHORT_SECONDS,
        dir: None,
        save: None,
    };
    let mut trials = Trials::new(SHORT_ROUNDS, SHORT_SECONDS)?;
    Bench { options: &options(false), interrupt, base: base.to_owned() }.lines(&mut trials)?;
    Bench { options: &options(true), interrupt, base: base.to_owned() }.clients(&mut trials)?;
    Ok(trials)
}

/// Measures, prints and saves.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(options.rounds > 0, "--rounds 0 measures nothing");
    ensure!(options.seconds > 0, "--seconds 0 measures nothing");
    let interrupt = Interrupt::install()?;
    let base = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let bench = Bench { options, interrupt: &interrupt, base };
    let mut report = Trials::new(options.rounds, options.seconds)?;
    if options.client {
        bench.clients(&mut report)?
    } else {
        bench.lines(&mut report)?
    }
    println!("{}", report.to_text());
    let save = options.save.clone().map_or_else(crate::compare::default_save_dir, Ok)?;
    report.save(&save, if options.client { "wan-client" } else { "wan" })?;
    println!("saved in {}", save.display());
    Ok(ExitCode::SUCCESS)
}

struct Bench<'a> {
    options: &'a Options,
    interrupt: &'a Interrupt,
    base: PathBuf,
}

impl Bench<'_> {
    fn time(&self) -> Duration {
        Duration::from_secs(self.options.seconds.into())
    }

    fn scratch(&self) -> Result<tempfile::TempDir> {
        // Short, because the path of a Unix socket has at most 107 bytes.
        let made = tempfile::Builder::new().prefix("wan-").tempdir_in(&self.base);
        made.with_context(|| format!("make a directory in {}", self.base.display()))
    }

    /// How much of each line is filled.
    fn lines(&self, report: &mut Trials) -> Result<()> {
        let is_wanted = |line: &Line| self.options.only.is_empty() || self.options.only.contains(line);
        let contenders: Vec<Contender> = match &self.options.contenders[..] {
            [] => Contender::DEFAULT.to_vec(),
            named => Contender::ALL.into_iter().filter(|contender| named.contains(contender)).collect(),
        };
        if contenders.contains(&Contender::Pair) {
            ours::build_if_missing()?;
        }
        for line in Line::ALL.into_iter().filter(is_wanted) {
            for round in 1..=self.options.rounds {
                for &contender in &contenders {
                    eprint!("{}, {} round {round}: ", line.title(), contender.name());
                    let run = self
                        .fill(line, contender, round)
                        .with_context(|| format!("{}, {}", line.title(), contender.name()))?;
                    eprintln!("{:.1} Mbit/s, {:.2} CPUs busy", run.value, run.busy_cpus);
                    report.add(run);
                }
            }
        }
        Ok(())
    }

    fn fill(&self, line: Line, contender: Contender, round: u32) -> Result<Trial> {
        let (rate_mbit, rtt_ms, loss_pct) = line.measures();
        let config = WanConfig {
            name_prefix: "bench".to_owned(),
            delay: Duration::from_millis(rtt_ms) / 2,
            loss_pct,
            rate_mbit,
            seed: round.into(),
        };
        let wan = Wan::up(config).context("make the line")?;
        let dir = self.scratch()?;
        let seconds = (WARM_UP + self.time()).as_secs_f64() + SPARE_SECONDS;
        let volume_mib = (rate_mbit * 1e6 / 8.0 * seconds) as u64 >> 20;
        let bed = Bed {
            dir: dir.path(),
            copies: dir.path(),
            volume_bytes: volume_mib << 20,
            settings: "",
            interrupt: self.interrupt,
        };
        let quic = |congestion| anyhow::Ok(Box::new(quic::Streams::start(&wan, congestion, dir.path())?));
        let flow: Box<dyn Flow> = match contender {
            Contender::TcpCubic => Box::new(tcp::Stream::start(&wan, "cubic")?),
            Contender::TcpBbr => Box::new(tcp::Stream::start(&wan, "bbr")?),
            Contender::Quic => quic(Congestion::default())?,
            Contender::QuicCubic => quic(Congestion::Cubic)?,
            Contender::QuicBbr => quic(Congestion::Bbr)?,
            Contender::QuicReno => quic(Congestion::NewReno)?,
            Contender::Pair => {
                pair::create_noise(&bed.volume(), bed.volume_bytes)?;
                let sync = pair::FirstSync::start(&wan, &bed)?;
                let (value, busy_cpus) = self.goodput(&sync)?;
                // One complete copy of each line shows that what was measured is one.
                if round == 1 {
                    sync.finish(&bed)?
                } else {
                    sync.abandon(self.interrupt)?
                }
                return Ok(Trial::new(line.title(), contender.name(), round, value, "Mbit/s", busy_cpus));
            }
        };
        let (value, busy_cpus) = self.goodput(&*flow)?;
        Ok(Trial::new(line.title(), contender.name(), round, value, "Mbit/s", busy_cpus))
    }

    fn goodput(&self, flow: &dyn Flow) -> Result<(f64, f64)> {
        let (machine, start) = (cpu::of_machine()?, Instant::now());
        let value = goodput_mbit(flow, WARM_UP, self.time(), self.interrupt)?;
        let busy = (cpu::of_machine()? - machine) / start.elapsed().as_secs_f64();
        Ok((value, busy))
    }

    /// What the delay of a line without limits costs a client.
    fn clients(&self, report: &mut Trials) -> Result<()> {
        ours::build_if_missing()?;
        for round in 1..=self.options.rounds {
            for rtt_ms in [20, 0] {
                let config = WanConfig::lossless("bench", Duration::from_millis(rtt_ms) / 2);
                let wan = Wan::up(config).context("make the line")?;
                let title = |what: &str| client_case(what, rtt_ms);
                let rtt = tcp::round_trip(&wan)?;
                let mut add = |what: &str, contender, value, unit| {
                    eprintln!("{} round {round}: {value:.1} {unit}", title(what));
                    report.add(Trial::new(title(what), contender, round, value, unit, 0.0));
                };
                add(ROUND_TRIP, "tcp", rtt.as_secs_f64() * 1e6, "µs");
                let sync = self.client(&wan, Mode::Sync, Case::Qd1, round)?;
                add(SYNC_WRITE, PAIR, sync.write_latency.p50_us, "µs");
                for case in [Case::Qd1, Case::Qd32] {
                    let outcome = self.client(&wan, Mode::Async, case, round)?;
                    add(&async_writes(case), PAIR, outcome.writes_per_second, "writes/s");
                }
            }
        }
        Ok(())
    }

    fn client(&self, wan: &Wan, mode: Mode, case: Case, round: u32) -> Result<crate::fio::Outcome> {
        let dir = self.scratch()?;
        let bed = Bed {
            dir: dir.path(),
            copies: dir.path(),
            volume_bytes: CLIENT_VOLUME_BYTES,
            settings: "",
            interrupt: self.interrupt,
        };
        pair::client(wan, &bed, mode, case, self.time(), round)
    }
}
