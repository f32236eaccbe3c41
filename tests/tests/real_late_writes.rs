//! Writes that the kernel still does for a process that was killed, on a disk that stands still meanwhile: nothing is served before they
//! are over, since they would replace what is written after them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::real::nbd::Client;
use tests::real::{Attached, Pair, PairOptions, Process, Side, find_program};

const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const SIZE: u64 = 16 << 20;
const OFFSET: u64 = 1 << 20;
/// Long enough to be given to the kernel, whose answer nobody waits for.
const BYTES: usize = 256 << 10;

/// A disk that can stand still: what is asked of it waits until it goes on.
struct Disk {
    image: PathBuf,
    control: UnixStream,
    attached: Attached,
    _server: Process,
}

impl Disk {
    fn new(dir: &Path) -> Result<Self> {
        fs::create_dir(dir)?;
        let (image, socket, control) = (dir.join("image"), dir.join("socket"), dir.join("control"));
        fs::File::create(&image)?.set_len(SIZE)?;
        let mut nbdkit = Command::new(find_program("nbdkit")?);
        nbdkit.args(["--foreground", "--exit-with-parent", "--filter=pause", "--unix"]).arg(&socket);
        nbdkit.arg("file").arg(&image).arg(format!("pause-control={}", control.display()));
        let mut server = Process::spawn(&mut nbdkit, &dir.join("nbdkit.log"))?;
        let began = Instant::now();
        while !(socket.exists() && control.exists()) {
            server.ensure_running()?;
            ensure!(began.elapsed() < LIMIT, "nbdkit does not listen: {}", server.log_tail());
            sleep(POLL);
        }
        let attached = Attached::attach(&socket, "", dir)?;
        Ok(Self { image, control: UnixStream::connect(control)?, attached, _server: server })
    }

    /// Has it stand still (`p`) or go on (`r`).
    fn tell(&mut self, command: u8) -> Result<()> {
        self.control.write_all(&[command])?;
        let mut answer = [0];
        self.control.read_exact(&mut answer)?;
        ensure!(answer == [command.to_ascii_uppercase()], "nbdkit answers {answer:?}");
        Ok(())
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

impl Drop for Disk {
    fn drop(&mut self) {
        // What stands still cannot be taken apart.
        let _ = self.tell(b'r');
    }
}

#[test]
fn an_agent_waits_for_the_writes_of_the_one_that_was_killed() -> Result<()> {
    let mut pair = Pair::prepare(PairOptions::default().volume("disk", SIZE))?;
    let alpha = pair.host(Side::Alpha);
    let mut disk = Disk::new(&alpha.dir.join("disk"))?;
    let image = alpha.volume("disk").display().to_string();
    alpha.reconfigure(&image, disk.attached.device()?)?;
    pair.join()?;
    pair.start_receiver(Side::Beta)?;
    pair.start_agent(Side::Alpha)?;
    // With all of it dirty the agent would have to sync the disk before it serves, and wait for that.
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    client.write(OFFSET, &[1; BYTES])?;
    client.flush()?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    ensure!(disk.holds(1)?);

    disk.tell(b'p')?;
    client.send_write(OFFSET, &[2; BYTES], false)?;
    let began = Instant::now();
    while disk.writes_under_way()? == 0 {
        ensure!(began.elapsed() < LIMIT, "nothing was written\n{}", pair.logs());
        sleep(POLL);
    }
    pair.host_mut(Side::Alpha).kill()?;
    ensure!(disk.writes_under_way()? > 0, "the write has ended with its process");
    pair.start_agent(Side::Alpha)?;
    let waits = |status: &serde_json::Value| status.to_string().contains("still under way");
    pair.wait_for(Side::Alpha, LIMIT, waits)?;
    ensure!(disk.holds(1)? && disk.writes_under_way()? > 0);
    let export = pair.host(Side::Alpha).export("disk");
    ensure!(Client::connect_unix(&export, "disk").is_err(), "it serves a disk that is written by another");

    disk.tell(b'r')?;
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
