//! The demo's two hosts: two state directories, two images and four processes on the loopback interface.

use std::fs::File;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use afterimage_contract::admin::{self, Request};
use afterimage_contract::config::Config;
use afterimage_contract::status::{GroupStatus, Status};
use afterimage_transport::{Identity, Joiner, NodeName, create_offer};
use anyhow::{Context, bail};

/// The demo's group and volume.
pub const GROUP: &str = "demo";
/// A daemon that is not ready after this long will not be.
const START_LIMIT: Duration = Duration::from_secs(15);

/// One host.
pub struct Host {
    /// Its name: alpha or beta.
    pub name: &'static str,
    /// Its configuration.
    pub config: Config,
    file: PathBuf,
    /// The image of its volume.
    pub image: PathBuf,
    /// Where its NBD export is, while it serves.
    pub socket: PathBuf,
    agent: Option<Daemon>,
    receiver: Option<Daemon>,
}

/// A child process that ends with the demo.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already; either way it has to be waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes both hosts under `dir`, with volumes that `make_image` fills.
pub fn make(dir: &Path) -> anyhow::Result<[Host; 2]> {
    let ports = [free_port()?, free_port()?];
    let host = |n: usize| -> anyhow::Result<Host> {
        let (name, peer) = [("alpha", "beta"), ("beta", "alpha")][n];
        let home = dir.join(name);
        std::fs::create_dir(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let (image, socket) = (home.join("volume.img"), home.join("volume.sock"));
        let text = format!(
            "[node]\nname = \"{name}\"\nlisten = \"127.0.0.1:{}\"\nstate_dir = \"{home}/state\"\n\n\
             [peer]\nname = \"{peer}\"\naddress = \"127.0.0.1:{}\"\n\n\
             [group.{GROUP}]\nmode = \"async\"\nprimary = \"alpha\"\nmax_rate = \"48MiB/s\"\n\
             journal = {{ max_size = \"512MiB\" }}\n\n\
             [[group.{GROUP}.volume]]\nname = \"volume\"\ndevice = \"{}\"\nexport = {{ nbd = \"{}\" }}\n",
            ports[n],
            ports[1 - n],
            image.display(),
            socket.display(),
            home = home.display(),
        );
        let file = home.join("afterimage.toml");
        std::fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
        let config = Config::parse(&text, &file.display().to_string()).context("the demo's configuration")?;
        Ok(Host { name, config, file, image, socket, agent: None, receiver: None })
    };
    Ok([host(0)?, host(1)?])
}

fn free_port() -> anyhow::Result<u16> {
    let socket = UdpSocket::bind("127.0.0.1:0").context("no UDP port on 127.0.0.1")?;
    Ok(socket.local_addr()?.port())
}

impl Host {
    /// Starts the receiver and waits for it.
    pub async fn start_receiver(&mut self) -> anyhow::Result<()> {
        self.receiver = Some(self.spawn("receiver")?);
        self.wait_for(self.config.receiver_socket(), "receiver").await
    }

    /// Starts the agent and waits for it.
    pub async fn start_agent(&mut self) -> anyhow::Result<()> {
        self.agent = Some(self.spawn("agent")?);
        self.wait_for(self.config.agent_socket(), "agent").await
    }

    /// Waits until the agent serves its group.
    pub async fn wait_group(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            match self.status().await {
                Ok(_) => return Ok(()),
                Err(error) if started.elapsed() > START_LIMIT => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Kills the agent and the receiver, as if the host were lost.
    pub fn lose(&mut self) {
        self.agent = None;
        self.receiver = None;
    }

    fn spawn(&self, daemon: &str) -> anyhow::Result<Daemon> {
        let log = self.file.with_file_name(format!("{daemon}.log"));
        let log = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let child = Command::new(program)
            .arg("--config")
            .arg(&self.file)
            .args(["daemon", daemon])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start the {daemon} of {}", self.name))?;
        Ok(Daemon(child))
    }

    async fn wait_for(&self, socket: PathBuf, daemon: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        while admin::call(&socket, &Request::Ping).await.is_err() {
            if started.elapsed() > START_LIMIT {
                let log = self.file.with_file_name(format!("{daemon}.log"));
                let text = std::fs::read_to_string(log).unwrap_or_default();
                bail!("the {daemon} of {} did not start:\n{text}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Asks the agent.
    pub async fn agent(&self, request: &Request) -> anyhow::Result<serde_json::Value> {
        let response = admin::call(self.config.agent_socket(), request).await?;
        Ok(response.into_answer()?)
    }

    /// Asks the receiver.
    pub async fn receiver(&self, request: &Request) -> anyhow::Result<serde_json::Value> {
        let response = admin::call(self.config.receiver_socket(), request).await?;
        Ok(response.into_answer()?)
    }

    /// The agent's view of the group.
    pub async fn status(&self) -> anyhow::Result<GroupStatus> {
        let status: Status = serde_json::from_value(self.agent(&Request::Status).await?)?;
        status.groups.into_iter().find(|g| g.name == GROUP).context("the agent does not know its group")
    }
}

/// Makes the hosts trust each other. Alpha's receiver must be running.
pub async fn pair(alpha: &Host, beta: &Host) -> anyhow::Result<()> {
    let identity = Identity::load_or_create(&alpha.config.node.state_dir)?;
    let token = create_offer(&alpha.config.node.state_dir, &identity, None, now_unix())?;
    let identity = Identity::load_or_create(&beta.config.node.state_dir)?;
    let node_name: NodeName = beta.name.parse()?;
    let joiner = Joiner {
        identity: &identity,
        state_dir: &beta.config.node.state_dir,
        node_name: &node_name,
        listens_at: None,
        now_unix: now_unix(),
    };
    joiner.join(&token, Some(&beta.config.peer.address.to_string())).await?;
    Ok(())
}

fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
