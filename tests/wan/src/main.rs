//! `wan`: a long, slow, lossy line between two network namespaces, held up until it is told to end.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::mpsc::{self, Sender, SyncSender},
    thread,
    time::Duration,
};

use afterimage_wan::{Command, Counters, Wan, WanConfig};
use anyhow::{Context, Result, bail};
use clap::Parser;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// No command is longer than this.
const MAX_LINE_BYTES: u64 = 256;

/// Joins two new network namespaces, NAME-a (10.231.0.1) and NAME-b (10.231.0.2), by an emulated wide-area
/// link. Ends on SIGINT, SIGTERM or `quit`, prints its counters and removes the namespaces.
///
/// Commands, one a line, on standard input or the control socket: `delay 20ms`, `loss 0.1`, `rate 100`, each
/// with `ab` or `ba` for one way only; `cut both|ab|ba`; `heal`; `counters`; `quit`.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// The namespaces are NAME-a and NAME-b.
    #[arg(long, default_value = "wan")]
    name: String,
    /// One-way delay; a round trip takes twice as long.
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = humantime::parse_duration)]
    delay: Duration,
    /// Packets lost each way, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    loss: f64,
    /// Mbit/s each way; 0 for no limit.
    #[arg(long, value_name = "MBIT", default_value_t = 0.0)]
    rate: f64,
    /// Decides which packets are lost.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Take commands on this Unix socket too.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

enum Event {
    Line(String, SyncSender<String>),
    Signal,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let (events, inbox) = mpsc::channel();
    // Before anything exists that a signal would leave behind.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("install signal handlers")?;
    let on_signal = events.clone();
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = on_signal.send(Event::Signal);
        }
    });

    let wan = Wan::up(WanConfig {
        name_prefix: options.name,
        delay: options.delay,
        loss_pct: options.loss,
        rate_mbit: options.rate,
        seed: options.seed,
    })?;
    let _socket = options.control.as_deref().map(|path| serve_socket(path, events.clone())).transpose()?;
    thread::spawn(move || serve_lines(io::stdin(), io::stdout(), &events));
    println!("up {} {} {} {}", wan.ns_a(), wan.address_a(), wan.ns_b(), wan.address_b());

    while let Ok(Event::Line(line, answer)) = inbox.recv() {
        if line.trim() == "quit" {
            let _ = answer.send("ok".to_owned());
            break;
        }
        // Whoever asked may have gone; the command counts all the same.
        let _ = answer.send(obey(&wan, &line).unwrap_or_else(|error| format!("error: {error}")));
    }
    eprintln!("{}", describe_counters(&wan)?);
    Ok(())
}

fn obey(wan: &Wan, line: &str) -> Result<String> {
    let command: Command = line.parse()?;
    wan.apply(command)?;
    match command {
        Command::Counters => describe_counters(wan),
        _ => Ok("ok".to_owned()),
    }
}

fn describe_counters(wan: &Wan) -> Result<String> {
    let (ab, ba) = wan.counters()?;
    Ok(format!("{}\n{}", describe("ab", ab), describe("ba", ba)))
}

fn describe(way: &str, counters: Counters) -> String {
    let Counters { offered, delivered, delivered_bytes, lost, overflowed, cut } = counters;
    format!(
        "{way} offered={offered} delivered={delivered} delivered_bytes={delivered_bytes} lost={lost} \
         overflowed={overflowed} cut={cut}"
    )
}

/// Removes the file when dropped.
struct ControlSocket(PathBuf);

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn serve_socket(path: &Path, events: Sender<Event>) -> Result<ControlSocket> {
    if UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        fs::remove_file(path).with_context(|| format!("remove the stale socket {}", path.display()))?;
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("listen on the control socket {}", path.display()))?;
    let socket = ControlSocket(path.to_owned());
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let events = events.clone();
            thread::spawn(move || match stream.try_clone() {
                Ok(output) => serve_lines(stream, output, &events),
                Err(error) => eprintln!("wan: cannot answer on the control socket: {error}"),
            });
        }
    });
    Ok(socket)
}

fn serve_lines(input: impl Read, mut output: impl Write, events: &Sender<Event>) {
    let mut input = BufReader::new(input);
    loop {
        let outcome = read_command(&mut input).and_then(|line| {
            let Some(line) = line else { return Ok(false) };
            let (answer, answered) = mpsc::sync_channel(1);
            events.send(Event::Line(line, answer)).context("the link is gone")?;
            writeln!(output, "{}", answered.recv().context("the link is gone")?).context("answer")?;
            Ok(true)
        });
        match outcome {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                let _ = writeln!(output, "error: {error}");
                return;
            }
        }
    }
}

/// The next line that is not empty; none at the end of the input.
fn read_command(input: &mut impl BufRead) -> Result<Option<String>> {
    loop {
        let mut line = String::new();
        let read = input.take(MAX_LINE_BYTES).read_line(&mut line).context("read a command")?;
        if read == 0 {
            return Ok(None);
        }
        if read as u64 == MAX_LINE_BYTES && !line.ends_with('\n') {
            bail!("a command has at most {MAX_LINE_BYTES} bytes");
        }
        if !line.trim().is_empty() {
            return Ok(Some(line));
        }
    }
}
