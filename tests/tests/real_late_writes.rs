//! Writes that the kernel still does for a process that was killed, on a disk that is slow: nothing is served before they are over, since
//! they would replace what is written after them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::real::{Attached, Pair, PairOptions, Process, Side, find_program};

const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const SIZE: u64 = 16 << 20;
const OFFSET: u64 = 1 << 20;
/// Long enough to be given to the kernel, whose answer nobody waits for.
const BYTES: usize = 256 << 10;

/// How long a write takes, and nothing else: many times what it takes to kill an agent and to start one.
const WRITE_SECONDS: u64 = 5;

/// A disk whose writes take [`WRITE_SECONDS`].
struct Disk {
    image: PathBuf,
    attached: Attached,
    _server: Process,
}

impl Disk {
    fn new(dir: &Path) -> Result<Self> {
        fs::create_dir(dir)?;
        let (image, socket) = (dir.join("image"), dir.join("socket"));
        fs::File::create(&image)?.set_len(SIZE)?;
        let mut nbdkit = Command::new(find_program("nbdkit")?);
        nbdkit.args(["--foreground", "--exit-with-parent", "--filter=delay", "--unix"]).arg(&socket);
        nbdkit.arg("file").arg(&image).arg(format!("wdelay={WRITE_SECONDS}"));
        let mut server = Process::spawn(&mut nbdkit, &dir.join("nbdkit.log"))?;
        let began = Instant::now();
        while !socket.exists() {
            server.ensure_running()?;
            ensure!(began.elapsed() < LIMIT, "nbdkit does not listen: {}", server.log_tail());
            sleep(POLL);
        }
        let attached = Attached::attach(&socket, "", dir)?;
        Ok(Self { image, attached, _server: server })
    }

    /// Writes that the kernel has given to it and that have not ended.
    fn writes_under_way(&self) -> Result<u32> {
        let name = Path::new(self.attached.device()?).file_name().context("a name")?.to_owned();
        let inflight = fs::read_to_string(Path::new("/sys/block").join(name).join("inflight"))?;
        inflight.split_whitespace().nth(1).context("two numbers")?.parse().context("a number")
    }

    fn holds(&self, fill: u8) -> Result<bool> {
        let image = fs::read(&self.image)?;
        Ok(image[OFFSET as usize..][..BYTES].iter().all(|byte| *byte == fill))
    }
}

#[test]
fn an_agent_waits_for_the_writes_of_the_one_that_was_killed() -> Result<()> {
    let mut pair = Pair::prepare(PairOptions::default().volume("disk", SIZE))?;
    let alpha = pair.host(Side::Alpha);
    let disk = Disk::new(&alpha.dir.join("disk"))?;
    let image = alpha.volume("disk").display().to_string();
    alpha.reconfigure(&image, disk.attached.device()?)?;
    pair.join()?;
    pair.start_receiver(Side::Beta)?;
    pair.start_agent(Side::Alpha)?;
    // With all of it dirty the agent would sync the disk before it serves.
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    client.write(OFFSET, &[1; BYTES])?;
    client.flush()?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    ensure!(disk.holds(1)?);

    client.send_write(OFFSET, &[2; BYTES], false)?;
    let began = Instant::now();
    while disk.writes_under_way()? == 0 {
        ensure!(began.elapsed() < LIMIT, "nothing was written\n{}", pair.logs());
        sleep(POLL);
    }
    pair.host_mut(Side::Alpha).kill()?;
    ensure!(disk.writes_under_way()? > 0, "the write has ended with its process");
    pair.start_agent(Side::Alpha)?;
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    ensure!(disk.holds(2)?, "it serves before the write is over");
    client.write(OFFSET, &[3; BYTES])?;
    client.flush()?;
    ensure!(disk.holds(3)?);
    ensure!(client.read(OFFSET, BYTES as u32)? == vec![3; BYTES]);
    pair.host_mut(Side::Alpha).kill()?;
    pair.host_mut(Side::Beta).kill()?;
    pair.check_disk()
}
