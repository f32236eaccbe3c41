//! Many groups and volumes on one pair of hosts: each is served, replicated and brought home as if it were alone, and what a
//! group costs is bounded.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tests::real::{Pair, PairOptions, Process, Side, filler};

const LIMIT: Duration = Duration::from_secs(60);
/// When a daemon has come to rest after its work.
const REST: Duration = Duration::from_secs(15);
const GROUPS: u64 = 16;
const VOLUMES: u64 = 4;
const SIZE: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// Blocks that a round writes on each volume.
const WRITES: u64 = 24;
/// What a daemon may have for each group (docs/scale.md, with room for what comes and goes): its own threads, descriptors, memory.
const THREADS_A_GROUP: usize = 5;
const DESCRIPTORS_A_GROUP: usize = 32;
const RESIDENT_A_GROUP_KIB: usize = 3 << 10;
/// And beside that, in a build that is not optimized: threads for what may block come with the work and go some seconds after.
const THREADS: usize = 64;
const DESCRIPTORS: usize = 64;
const RESIDENT_KIB: usize = 64 << 10;

fn group(n: u64) -> String {
    format!("g{n}")
}

fn volume(group: u64, n: u64) -> String {
    format!("g{group}v{n}")
}

fn volumes() -> impl Iterator<Item = (u64, u64)> {
    (0..GROUPS).flat_map(|group| (0..VOLUMES).map(move |n| (group, n)))
}

/// Every second group is synchronous.
fn options() -> PairOptions {
    let one = |n: u64| {
        let options = PairOptions::new(&group(n)).journal_max_bytes(16 << 20);
        let options = if n.is_multiple_of(2) { options.sync() } else { options };
        (0..VOLUMES).fold(options, |options, v| options.volume(&volume(n, v), SIZE))
    };
    (1..GROUPS).fold(one(0), |options, n| options.and(one(n)))
}

/// Writes to all volumes at once, each through a client of its own that is connected all the time; flushed.
fn write_all(pair: &Pair, round: u64) -> Result<()> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..GROUPS)
            .map(|g| {
                scope.spawn(move || -> Result<()> {
                    let mut clients = Vec::new();
                    for n in 0..VOLUMES {
                        clients.push(pair.connect(Side::Alpha, &volume(g, n), LIMIT)?);
                    }
                    for write in 0..WRITES {
                        for (n, client) in clients.iter_mut().enumerate() {
                            let seed = (round * GROUPS + g) * VOLUMES + n as u64;
                            let block = (seed * 31 + write * 7) % (SIZE / BLOCK);
                            client.write(block * BLOCK, &filler(seed << 8 | write, BLOCK as usize))?;
                        }
                    }
                    for mut client in clients {
                        client.flush()?;
                        client.disconnect()?;
                    }
                    Ok(())
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
    })
    .with_context(|| format!("write round {round}\n{}", pair.logs()))
}

fn wait_all_caught_up(pair: &Pair) -> Result<()> {
    (0..GROUPS).try_for_each(|n| pair.wait_group_caught_up(&group(n), Side::Alpha, LIMIT).map(drop))
}

fn compare_all(pair: &Pair) -> Result<()> {
    volumes().try_for_each(|(g, n)| {
        let name = volume(g, n);
        let primary = pair.read_volume(Side::Alpha, &name)?;
        ensure!(primary.iter().any(|byte| *byte != 0), "{name} was written");
        pair.wait_base(Side::Beta, &name, &primary).with_context(|| format!("compare {name}"))
    })
}

/// What a process has.
#[derive(Debug)]
struct Costs {
    threads: usize,
    descriptors: usize,
    sockets: usize,
    resident_kib: usize,
}

fn costs(process: &Process) -> Result<Costs> {
    let at = |name: &str| format!("/proc/{}/{name}", process.pid());
    let status = fs::read_to_string(at("status")).context("read what a process has")?;
    let number = |key: &str| -> Result<usize> {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.with_context(|| format!("find {key} in the status of {}", process.name()))
    };
    let mut costs =
        Costs { threads: number("Threads")?, descriptors: 0, sockets: 0, resident_kib: number("VmRSS")? };
    for descriptor in fs::read_dir(at("fd")).context("list the descriptors of a process")? {
        costs.descriptors += 1;
        // It may be closed by now.
        let kind = fs::metadata(descriptor?.path()).map(|metadata| metadata.file_type());
        costs.sockets += usize::from(kind.is_ok_and(|kind| kind.is_socket()));
    }
    Ok(costs)
}

/// What the work before took of memory and threads goes back some seconds after it: it has that time.
fn ensure_bounded(process: Option<&Process>) -> Result<()> {
    let process = process.context("it runs")?;
    let began = Instant::now();
    loop {
        let bounded = ensure_bounded_now(process);
        if bounded.is_ok() || began.elapsed() > REST {
            return bounded;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn ensure_bounded_now(process: &Process) -> Result<()> {
    let costs = costs(process)?;
    println!("{}: {costs:?}", process.name());
    let groups = GROUPS as usize;
    ensure!(costs.threads <= THREADS + groups * THREADS_A_GROUP, "{}: {costs:?}", process.name());
    ensure!(costs.descriptors <= DESCRIPTORS + groups * DESCRIPTORS_A_GROUP, "{}: {costs:?}", process.name());
    let resident = RESIDENT_KIB + groups * RESIDENT_A_GROUP_KIB;
    ensure!(costs.resident_kib <= resident, "{}: {costs:?}", process.name());
    Ok(())
}

#[test]
fn many_groups_share_a_pair_of_hosts() -> Result<()> {
    let mut pair = Pair::start(options())?;
    write_all(&pair, 1)?;
    wait_all_caught_up(&pair)?;
    ensure_bounded(pair.host(Side::Alpha).agent.as_ref())?;
    ensure_bounded(pair.host(Side::Beta).receiver.as_ref())?;

    // The standby is lost and comes back; all groups catch up.
    pair.host_mut(Side::Beta).receiver.as_mut().context("beta's receiver runs")?.kill()?;
    write_all(&pair, 2)?;
    pair.start_receiver(Side::Beta)?;
    wait_all_caught_up(&pair)?;

    // The primary is lost with writes that the standby may lack.
    write_all(&pair, 3)?;
    pair.host_mut(Side::Alpha).agent.as_mut().context("alpha's agent runs")?.kill()?;
    pair.start_agent(Side::Alpha)?;
    wait_all_caught_up(&pair)?;
    compare_all(&pair)?;
    ensure_bounded(pair.host(Side::Alpha).agent.as_ref())?;
    ensure_bounded(pair.host(Side::Beta).receiver.as_ref())?;
    pair.check_disk()
}
