//! PostgreSQL on ext4 on a replicated volume: what its clients were told was committed is there on the other host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::real::{Attached, Pair, PairOptions, Process, Side, find_program, run};

const LIMIT: Duration = Duration::from_secs(120);
const SIZE: u64 = 256 << 20;
const CLIENTS: usize = 4;
/// Transactions that are committed before each change of roles.
const TRANSACTIONS: usize = 300;
/// The user that the server runs as: it refuses to run as root.
const USER: &str = "postgres";

/// Where Debian has the server's programs; the newest version.
fn programs() -> Result<PathBuf> {
    let top = Path::new("/usr/lib/postgresql");
    let mut versions: Vec<PathBuf> = fs::read_dir(top)
        .with_context(|| format!("list {}: install the Debian package postgresql", top.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().context("there is no initdb: install the Debian package postgresql")
}

/// A database on a mounted volume.
struct Database {
    attached: Attached,
    data: PathBuf,
    /// For sockets and logs, on no replicated volume.
    dir: PathBuf,
    running: bool,
}

impl Database {
    /// Makes the file system of `side`'s export the server's, or mounts the one that is there.
    fn open(pair: &Pair, side: Side, make: bool, name: &str) -> Result<Self> {
        pair.connect(side, "disk", LIMIT)?.disconnect()?;
        let host = pair.host(side);
        let top = host.dir.join(name);
        fs::create_dir_all(&top)?;
        // The server's user has to get to what is below.
        let mut above = top.as_path();
        while above != Path::new("/tmp") {
            fs::set_permissions(above, fs::Permissions::from_mode(0o755))?;
            above = above.parent().context("the test's directory is in /tmp")?;
        }
        let mut attached = Attached::attach(&host.export("disk"), "disk", &top)?;
        if make {
            attached.make_ext4()?;
        }
        let mounted = attached.mount()?;
        let data = mounted.join("data");
        let dir = top.join("run");
        fs::create_dir_all(&dir)?;
        if make {
            fs::create_dir(&data)?;
        }
        for path in [&data, &dir] {
            run(Command::new(find_program("chown")?).args(["-R", USER]).arg(path), LIMIT)?.success()?;
        }
        let mut database = Self { attached, data, dir, running: false };
        if make {
            let data = database.data.display().to_string();
            database.server("initdb", &["-D", &data, "-A", "trust", "--no-locale"])?;
            let data = database.data.join("postgresql.conf");
            let settings =
                "\nlisten_addresses = ''\nshared_buffers = 16MB\nmax_wal_size = 64MB\nmin_wal_size = 32MB\n";
            let config = fs::read_to_string(&data)?;
            fs::write(&data, config + settings)?;
        }
        database.start()?;
        Ok(database)
    }

    /// Runs one of the server's programs as its user.
    fn server(&self, program: &str, args: &[&str]) -> Result<String> {
        run(&mut self.command(program, args)?, LIMIT)?.success()
    }

    fn command(&self, program: &str, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(find_program("runuser")?);
        command.args(["-u", USER, "--"]).arg(programs()?.join(program)).args(args).current_dir(&self.dir);
        Ok(command)
    }

    fn start(&mut self) -> Result<()> {
        let (data, dir) = (self.data.display().to_string(), self.dir.display().to_string());
        // A server that was killed leaves its number behind.
        let _ = fs::remove_file(self.data.join("postmaster.pid"));
        let log = format!("{dir}/server.log");
        self.running = true;
        let options = format!("-k {dir}");
        self.server("pg_ctl", &["-D", &data, "-l", &log, "-o", &options, "-w", "-t", "90", "start"])
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())
            .map(drop)
    }

    fn query(&self, sql: &str) -> Result<u64> {
        let dir = self.dir.display().to_string();
        let printed = self.server("psql", &["-h", &dir, "-d", "postgres", "-At", "-c", sql])?;
        printed.trim().parse().with_context(|| format!("{sql}: {printed}"))
    }

    /// Clients that go on until the server is gone.
    fn clients(&self) -> Result<Process> {
        let (dir, clients) = (self.dir.display().to_string(), CLIENTS.to_string());
        let log = format!("{dir}/transactions");
        let args = [
            "-h",
            &dir,
            "-c",
            &clients,
            "-j",
            "2",
            "-n",
            "-T",
            "600",
            "-l",
            "--log-prefix",
            &log,
            "postgres",
        ];
        Process::spawn(&mut self.command("pgbench", &args)?, &self.dir.join("pgbench.log"))
    }

    /// Transactions whose commit the clients were told of: a line each in their logs.
    fn told(&self) -> Result<usize> {
        let mut lines = 0;
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("transactions")) {
                lines += fs::read_to_string(&path)?.lines().count();
            }
        }
        Ok(lines)
    }

    /// Stops the server, whatever its disk is like.
    fn stop(&mut self, how: &str) {
        if std::mem::take(&mut self.running) {
            let data = self.data.display().to_string();
            let _ = self.server("pg_ctl", &["-D", &data, "-m", how, "-w", "-t", "20", "stop"]);
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.stop("immediate");
    }
}

/// Waits until the server has committed so much more.
fn wait_for_load(database: &Database, committed: u64) -> Result<()> {
    let began = Instant::now();
    loop {
        let now = database.query("select count(*) from pgbench_history")?;
        if now >= committed + TRANSACTIONS as u64 {
            return Ok(());
        }
        if began.elapsed() > LIMIT {
            bail!("{now} transactions are committed after {LIMIT:?}");
        }
        sleep(Duration::from_millis(50));
    }
}

/// The clients' last transactions; their logs are whole once they have ended.
fn end_of(mut clients: Process, database: &mut Database) -> Result<usize> {
    // What has no disk any more does not end by itself at once.
    database.stop("immediate");
    clients.wait(LIMIT).context("the clients end with their server")?;
    database.told()
}

/// That every transaction that clients were told of is there, and no more besides than were under way.
fn check(database: &Database, before: u64, told: usize) -> Result<u64> {
    let found = database.query("select count(*) from pgbench_history")?;
    let told = before + told as u64;
    println!("{told} transactions were committed for the clients, {found} are found");
    ensure!(found >= told, "{told} transactions were committed for the clients, {found} are found");
    ensure!(found <= told + CLIENTS as u64, "{told} were committed for the clients, {found} are found");
    let sums =
        "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
         and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)";
    ensure!(database.query(&format!("select ({sums})::int"))? == 1, "the sums differ");
    Ok(found)
}

#[test]
fn what_was_committed_survives_a_switchover_and_the_loss_of_the_primary() -> Result<()> {
    let options = PairOptions::default().sync().volume("disk", SIZE).journal_max_bytes(1 << 30);
    let mut pair = Pair::start(options)?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    let mut alpha = Database::open(&pair, Side::Alpha, true, "first")?;
    let dir = alpha.dir.display().to_string();
    alpha.server("pgbench", &["-h", &dir, "-i", "-s", "1", "-q", "postgres"])?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;

    let clients = alpha.clients()?;
    wait_for_load(&alpha, 0)?;
    pair.command(Side::Alpha, &["switchover", "orders"])?.success()?;
    let told = end_of(clients, &mut alpha)?;
    drop(alpha);
    let mut beta = Database::open(&pair, Side::Beta, false, "second")?;
    let committed = check(&beta, 0, told)?;

    pair.wait_protection(Side::Beta, "in_sync", LIMIT)?;
    let clients = beta.clients()?;
    wait_for_load(&beta, committed)?;
    pair.host_mut(Side::Beta).kill()?;
    let told = end_of(clients, &mut beta)?;
    drop(beta);
    pair.promote(Side::Alpha)?;
    let mut alpha = Database::open(&pair, Side::Alpha, false, "third")?;
    check(&alpha, committed, told)?;
    alpha.stop("fast");
    alpha.attached.unmount()?;
    alpha.attached.check_ext4()?;
    drop(alpha);
    pair.check_disk()
}
