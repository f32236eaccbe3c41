//! The peer `nbdkit file`: an NBD server and nothing else.

use std::process::Command;

use anyhow::Result;

use crate::{
    contender::{Bed, Drained, Running, ServerProcess},
    process::Server,
    wait::Interrupt,
};

/// Serves the volume of `bed`.
pub fn start(bed: &Bed<'_>) -> Result<Nbdkit> {
    let socket = bed.dir.join("nbdkit.sock");
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(&socket).arg("file").arg(bed.volume());
    let mut server = Server::spawn("nbdkit", command, bed.dir)?;
    server.wait_ready(bed.interrupt, || Ok(socket.exists()))?;
    Ok(Nbdkit { server, uri: format!("nbd+unix:///?socket={}", socket.display()) })
}

/// A running `nbdkit file`.
pub struct Nbdkit {
    server: Server,
    uri: String,
}

impl Running for Nbdkit {
    fn uri(&self) -> String {
        self.uri.clone()
    }

    fn servers(&self) -> Vec<ServerProcess> {
        vec![ServerProcess::source("nbdkit", self.server.pid())]
    }

    fn drain(&mut self, _: &Interrupt) -> Result<Drained> {
        Ok(Drained::default())
    }

    fn stop(self: Box<Self>, _: &Interrupt) -> Result<()> {
        self.server.stop()
    }
}
