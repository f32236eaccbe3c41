//! Who used the processors: one process, the whole machine. Formats: proc_pid_stat(5), proc_stat(5).

use std::fs;

use anyhow::{Context, Result};
use rustix::process::Pid;

/// Seconds of processor time, user and system, of a process and the children it has waited for.
pub fn of_process(pid: Pid) -> Result<f64> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    process_ticks(&text).map(seconds).with_context(|| format!("{path} has no processor times"))
}

/// Seconds of processor time this process and its children have used.
pub fn of_self() -> Result<f64> {
    of_process(rustix::process::getpid())
}

/// Seconds of processor time used by everybody, on all processors, interrupts and stolen time included.
pub fn of_machine() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    machine_ticks(&text).map(seconds).context("/proc/stat has no processor times")
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn process_ticks(stat: &str) -> Option<u64> {
    // The second field is the name in parentheses, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11);
    let mut sum = 0;
    for _ in ["utime", "stime", "cutime", "cstime"] {
        sum += times.next()?.parse::<u64>().ok()?;
    }
    Some(sum)
}

fn machine_ticks(stat: &str) -> Option<u64> {
    let times = stat.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<u64> = times.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = times[..] else { return None };
    Some(user + nice + system + irq + softirq + steal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_a_process_are_found_behind_an_awkward_name() {
        let stat = "12 (a) b) (c) S 1 12 12 0 -1 4194560 10 0 0 0 100 20 3 4 20 0 1 0 5 6 7";
        assert_eq!(process_ticks(stat), Some(127));
        assert_eq!(process_ticks("12 (short) S 1"), None);
        assert_eq!(process_ticks(""), None);
    }

    #[test]
    fn idle_time_is_not_use() {
        let stat = "cpu  10 1 20 5000 300 2 3 4 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(machine_ticks(stat), Some(40));
        assert_eq!(machine_ticks("cpu0 1 2 3 4 5 6 7 8"), None);
    }

    #[test]
    fn the_real_files_are_read() {
        assert!(of_self().expect("own times") >= 0.0);
        assert!(of_machine().expect("machine times") > 0.0);
    }
}
