//! The peer `qemu-storage-daemon`: plain, or with `blockdev-mirror` to a second one over NBD on loopback TCP, with or
//! without TLS.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    contender::{Bed, Drained, Running, ServerProcess},
    image,
    process::{Server, free_port},
    qmp::Qmp,
    tcp_count, tls,
    wait::{self, Interrupt},
};

/// Bytes the mirror may have under way: qemu's default, said aloud.
const MIRROR_BUFFER_BYTES: u64 = 16 << 20;
const FIRST_COPY_TIMEOUT: Duration = Duration::from_secs(300);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);
const JOB: &str = "mirror";
const EXPORT: &str = "vol";
const TLS: &str = "tls";

/// When a mirrored write completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyMode {
    /// Once the copy has it too.
    WriteBlocking,
    /// Once it is written here.
    Background,
}

/// What protects the bytes between the two daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Nothing.
    Plain,
    /// TLS, the server known by its certificate.
    Tls,
}

/// Serves the volume of `bed`, with no copy.
pub fn start_plain(bed: &Bed<'_>) -> Result<Qsd> {
    let (source, _) = start_source(bed, None)?;
    Ok(Qsd { source, uri: uri(bed) })
}

/// Serves the volume of `bed` and mirrors it. Returns when the first copy is complete.
pub fn start_mirror(bed: &Bed<'_>, mode: CopyMode, link: Link) -> Result<Mirror> {
    image::create_empty(&bed.copy(), bed.volume_bytes)?;
    let credentials = match link {
        Link::Plain => None,
        Link::Tls => Some(tls::create(bed.dir)?),
    };
    let (target, port) = start_target(bed, credentials.as_ref().map(|ends| ends.server.as_path()))?;
    let (source, mut qmp) = start_source(bed, credentials.as_ref().map(|ends| ends.client.as_path()))?;
    let mut node = json!({
        "driver": "nbd", "node-name": "target", "export": EXPORT,
        "server": { "type": "inet", "host": Ipv4Addr::LOCALHOST.to_string(), "port": port.to_string() },
    });
    if credentials.is_some() {
        node["tls-creds"] = json!(TLS);
        node["tls-hostname"] = json!(tls::HOST_NAME);
    }
    qmp.execute("blockdev-add", node)?;
    let copy_mode = match mode {
        CopyMode::WriteBlocking => "write-blocking",
        CopyMode::Background => "background",
    };
    qmp.execute(
        "blockdev-mirror",
        json!({
            "job-id": JOB, "device": "volume", "target": "target", "sync": "full", "copy-mode": copy_mode,
            "buf-size": MIRROR_BUFFER_BYTES,
        }),
    )?;
    wait::until("the first copy of the mirror", FIRST_COPY_TIMEOUT, bed.interrupt, || {
        Ok(Progress::query(&mut qmp)?.is_ready.then_some(()))
    })?;
    Ok(Mirror { source, target, port, qmp, uri: uri(bed) })
}

/// Serves the copy of `bed`, which has to be there, over TCP on the loopback. Also the URI to write to it.
pub fn start_copy_server(bed: &Bed<'_>) -> Result<(Server, String)> {
    let (server, port) = start_target(bed, None)?;
    Ok((server, format!("nbd://{}:{port}/{EXPORT}", Ipv4Addr::LOCALHOST)))
}

/// A running daemon without a copy.
pub struct Qsd {
    source: Server,
    uri: String,
}

impl Running for Qsd {
    fn uri(&self) -> String {
        self.uri.clone()
    }

    fn servers(&self) -> Vec<ServerProcess> {
        vec![ServerProcess::source("qsd", self.source.pid())]
    }

    fn drain(&mut self, _: &Interrupt) -> Result<Drained> {
        Ok(Drained::default())
    }

    fn stop(self: Box<Self>, _: &Interrupt) -> Result<()> {
        self.source.stop()
    }
}

/// Two running daemons, one mirroring to the other.
pub struct Mirror {
    source: Server,
    target: Server,
    port: u16,
    qmp: Qmp,
    uri: String,
}

impl Running for Mirror {
    fn uri(&self) -> String {
        self.uri.clone()
    }

    fn servers(&self) -> Vec<ServerProcess> {
        vec![
            ServerProcess::source("qsd", self.source.pid()),
            ServerProcess::target("qsd of the copy", self.target.pid()),
        ]
    }

    fn drain(&mut self, interrupt: &Interrupt) -> Result<Drained> {
        let start = Instant::now();
        let behind_bytes = Progress::query(&mut self.qmp)?.behind_bytes;
        wait::until("the mirror to catch up", DRAIN_TIMEOUT, interrupt, || {
            Ok((Progress::query(&mut self.qmp)?.behind_bytes == 0).then_some(()))
        })?;
        Ok(Drained::new(behind_bytes, start.elapsed()))
    }

    fn sent_bytes(&mut self, _: &Interrupt) -> Result<Option<u64>> {
        tcp_count::sent_to_port(self.port).map(Some)
    }

    fn stop(mut self: Box<Self>, interrupt: &Interrupt) -> Result<()> {
        // For a mirror that is ready, to cancel means to end with a complete copy and to stay on the source.
        self.qmp.execute("block-job-cancel", json!({ "device": JOB }))?;
        wait::until("the mirror to end", DRAIN_TIMEOUT, interrupt, || {
            let jobs = self.qmp.execute("query-block-jobs", json!({}))?;
            Ok(jobs.as_array().is_some_and(Vec::is_empty).then_some(()))
        })?;
        self.source.stop()?;
        self.target.stop()
    }
}

struct Progress {
    is_ready: bool,
    behind_bytes: u64,
}

impl Progress {
    fn query(qmp: &mut Qmp) -> Result<Self> {
        let jobs = qmp.execute("query-block-jobs", json!({}))?;
        let Some([job]) = jobs.as_array().map(Vec::as_slice) else {
            bail!("the mirror has ended by itself: {jobs}");
        };
        let number =
            |key| job.get(key).and_then(Value::as_u64).with_context(|| format!("a job without {key}"));
        let is_ready = job.get("ready").and_then(Value::as_bool).context("a job without ready")?;
        let behind_bytes = number("len")?.saturating_sub(number("offset")?);
        Ok(Self { is_ready, behind_bytes })
    }
}

fn start_source(bed: &Bed<'_>, credentials: Option<&Path>) -> Result<(Server, Qmp)> {
    let (socket, control) = (bed.dir.join("qsd.sock"), bed.dir.join("qmp.sock"));
    let mut command = daemon(&bed.volume());
    if let Some(dir) = credentials {
        command.arg("--object").arg(tls_object("client", dir));
    }
    command.arg("--nbd-server").arg(option("addr.type=unix,addr.path=", &socket));
    command.args(["--export", &export()]);
    command.arg("--chardev").arg(option("socket,id=qmp,server=on,wait=off,path=", &control));
    command.args(["--monitor", "chardev=qmp"]);
    let mut server = Server::spawn("qsd-source", command, bed.dir)?;
    server.wait_ready(bed.interrupt, || Ok(socket.exists() && control.exists()))?;
    let qmp = Qmp::connect(&control)?;
    Ok((server, qmp))
}

fn start_target(bed: &Bed<'_>, credentials: Option<&Path>) -> Result<(Server, u16)> {
    let port = free_port()?;
    let mut command = daemon(&bed.copy());
    let mut listen = format!("addr.type=inet,addr.host={},addr.port={port}", Ipv4Addr::LOCALHOST);
    if let Some(dir) = credentials {
        command.arg("--object").arg(tls_object("server", dir));
        listen += &format!(",tls-creds={TLS}");
    }
    command.args(["--nbd-server", &listen]);
    command.args(["--export", &export()]);
    let mut server = Server::spawn("qsd-target", command, bed.dir)?;
    server.wait_ready(bed.interrupt, || Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()))?;
    Ok((server, port))
}

fn daemon(file: &Path) -> Command {
    let mut command = Command::new("qemu-storage-daemon");
    command
        .arg("--blockdev")
        .arg(option("driver=file,node-name=file,cache.direct=on,aio=native,filename=", file));
    command.args(["--blockdev", "driver=raw,node-name=volume,file=file"]);
    command
}

fn tls_object(endpoint: &str, dir: &Path) -> OsString {
    option(&format!("tls-creds-x509,id={TLS},endpoint={endpoint},verify-peer={},dir=", verify(endpoint)), dir)
}

/// The client knows the server by its certificate; the server takes any client.
fn verify(endpoint: &str) -> &'static str {
    if endpoint == "client" { "yes" } else { "no" }
}

fn export() -> String {
    format!("type=nbd,id=export,node-name=volume,name={EXPORT},writable=on")
}

fn uri(bed: &Bed<'_>) -> String {
    format!("nbd+unix:///{EXPORT}?socket={}", bed.dir.join("qsd.sock").display())
}

fn option(before: &str, path: &Path) -> OsString {
    let mut option = OsString::from(before);
    option.push(path);
    option
}
