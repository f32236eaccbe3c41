//! How much memory a process has had. Format: proc_pid_status(5).

use std::fs;

use anyhow::{Context, Result};
use rustix::process::Pid;

/// The most that a process has had resident since it began, in bytes.
pub fn peak_of_process(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    field_kib(&text, "VmHWM").map(|kib| kib << 10).with_context(|| format!("{path} has no VmHWM"))
}

/// A number of the status file: KiB, or whatever the field counts.
pub fn field_kib(status: &str, key: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let status = "Name:\tx\nVmHWMx:\t1 kB\nVmHWM:\t  2048 kB\nThreads:\t3\n";
        assert_eq!(field_kib(status, "VmHWM"), Some(2048));
        assert_eq!(field_kib(status, "Threads"), Some(3));
        assert_eq!(field_kib(status, "VmRSS"), None);
    }

    #[test]
    fn this_process_has_some() {
        assert!(peak_of_process(rustix::process::getpid()).expect("own status") > 0);
    }
}
