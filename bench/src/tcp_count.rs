//! What went over a TCP connection of this host, as its kernel counts it: `ss` of iproute2 asks for TCP_INFO.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Bytes sent so far by the ends of connections that were opened to `port`, without headers and what was sent again.
pub fn sent_to_port(port: u16) -> Result<u64> {
    let output = Command::new("ss")
        .args(["--tcp", "--info", "--numeric", "--no-header", "--oneline"])
        .args(["state", "established", &format!("dport = :{port}")])
        .output()
        .context("start ss of iproute2, which counts bytes on TCP connections")?;
    ensure!(output.status.success(), "ss failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!text.trim().is_empty(), "no TCP connection to port {port} was found");
    Ok(text.lines().map(sent_bytes).sum())
}

/// A connection that has sent nothing yet has no such field.
fn sent_bytes(line: &str) -> u64 {
    let value =
        |key| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
    let again = value("bytes_retrans:").unwrap_or_default();
    value("bytes_sent:").unwrap_or_default() - again
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_read_and_what_was_sent_again_is_not() {
        let line = "0 0 127.0.0.1:5000 127.0.0.1:6000 cubic wscale:7,7 bytes_sent:900 bytes_retrans:100 bytes_acked:801";
        assert_eq!(sent_bytes(line), 800);
        assert_eq!(sent_bytes("0 0 127.0.0.1:5000 127.0.0.1:6000 cubic"), 0);
    }
}
