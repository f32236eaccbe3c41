//! The little of QMP that is needed to drive `qemu-storage-daemon`: commands one at a time, events skipped.
//! Protocol: QEMU Machine Protocol Specification, docs/interop/qmp-spec.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A command that takes longer than this hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A session past the handshake.
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and negotiates.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        Self::negotiate(stream)
    }

    fn negotiate(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).context("set a timeout")?;
        let mut session = Self { stream: BufReader::new(stream) };
        let greeting = session.receive()?;
        if greeting.get("QMP").is_none() {
            bail!("this is not a QMP server: {greeting}");
        }
        session.execute("qmp_capabilities", json!({}))?;
        Ok(session)
    }

    /// Runs a command and returns what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}").with_context(|| format!("send {command}"))?;
        loop {
            let mut message = self.receive().with_context(|| format!("wait for the answer to {command}"))?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                let text = error.get("desc").and_then(Value::as_str).unwrap_or("no description");
                bail!("{command} failed: {text}");
            }
        }
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("read from the QMP server")? == 0 {
            bail!("the QMP server closed the connection");
        }
        serde_json::from_str(&line).context("understand the QMP server")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n{\"return\": {}}\n";

    fn session(answers: &str) -> Result<(Qmp, UnixStream)> {
        let (client, mut server) = UnixStream::pair().expect("socket pair");
        server.write_all(GREETING.as_bytes()).expect("greet");
        server.write_all(answers.as_bytes()).expect("answer");
        Ok((Qmp::negotiate(client)?, server))
    }

    #[test]
    fn events_before_the_answer_are_skipped() {
        let answers = "{\"event\": \"JOB_STATUS_CHANGE\"}\n{\"return\": [1]}\n";
        let (mut qmp, _server) = session(answers).expect("handshake");
        assert_eq!(qmp.execute("query-block-jobs", json!({})).expect("answer"), json!([1]));
    }

    #[test]
    fn an_error_carries_its_description() {
        let (mut qmp, _server) =
            session("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such node\"}}\n")
                .expect("handshake");
        let error = qmp.execute("blockdev-mirror", json!({})).expect_err("an error");
        assert_eq!(error.to_string(), "blockdev-mirror failed: no such node");
    }

    #[test]
    fn a_closed_connection_is_an_error() {
        let (mut qmp, server) = session("").expect("handshake");
        drop(server);
        assert!(qmp.execute("query-block-jobs", json!({})).is_err());
    }
}
