//! The alerts of `docs/monitoring` are rules that Prometheus reads, and ring when they should.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::real::{find_program, run};

const LIMIT: Duration = Duration::from_secs(60);

fn promtool(args: &[&str]) -> Result<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring");
    let mut command = Command::new(find_program("promtool")?);
    run(command.args(args).current_dir(dir), LIMIT)?.success().context("promtool")
}

#[test]
fn alerts_are_rules() -> Result<()> {
    let printed = promtool(&["check", "rules", "afterimage.rules.yml"])?;
    ensure!(printed.contains("SUCCESS"), "{printed}");
    Ok(())
}

#[test]
fn alerts_ring_when_they_should_and_only_then() -> Result<()> {
    let printed = promtool(&["test", "rules", "afterimage.rules.test.yml"])?;
    ensure!(printed.contains("SUCCESS"), "{printed}");
    Ok(())
}

#[test]
fn every_alert_is_tested_and_explained() -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring");
    let read = |name: &str| std::fs::read_to_string(dir.join(name));
    let (rules, tested, page) =
        (read("afterimage.rules.yml")?, read("afterimage.rules.test.yml")?, read("README.md")?);
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let explained: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `Afterimage")?.split_once('`'))
        .map(|(name, _)| format!("Afterimage{name}"))
        .collect();
    assert_eq!(explained, alerts);
    for alert in alerts {
        let rings = tested
            .split("- eval_time:")
            .any(|case| case.contains(&format!("alertname: {alert}\n")) && case.contains("exp_labels"));
        ensure!(rings, "no test has {alert} ring");
    }
    Ok(())
}
