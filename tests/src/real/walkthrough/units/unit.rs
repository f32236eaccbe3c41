//! A unit file with its drop-ins.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const UNIT_DIRS: [&str; 2] = ["/etc/systemd/system", "/usr/lib/systemd/system"];

/// A service.
#[derive(Debug)]
pub struct Unit {
    /// Its name, with `.service`.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Section, key and value of each assignment, in order.
    assignments: Vec<(String, String, String)>,
}

impl Unit {
    /// Reads the unit that is installed under a name, with or without `.service`.
    pub fn read(name: &str) -> Result<Self> {
        let name = if name.contains('.') { name.to_owned() } else { format!("{name}.service") };
        ensure!(
            name.ends_with(".service") && !name.contains(['/', '@']),
            "the stand-in does not know units such as {name}"
        );
        let path = UNIT_DIRS.iter().map(|dir| Path::new(dir).join(&name)).find(|path| path.exists());
        let path = path.with_context(|| format!("Unit {name} not found."))?;
        let mut unit = Self { name, path: path.clone(), assignments: Vec::new() };
        unit.take(&fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?)?;
        for dir in UNIT_DIRS.iter().rev() {
            let dir = Path::new(dir).join(format!("{}.d", unit.name));
            let mut files: Vec<PathBuf> =
                fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
            files.sort();
            for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "conf")) {
                unit.take(&fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?)?;
            }
        }
        Ok(unit)
    }

    fn take(&mut self, text: &str) -> Result<()> {
        let mut section = String::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                name.clone_into(&mut section);
                continue;
            }
            let (key, value) =
                line.split_once('=').with_context(|| format!("{}: {line:?} assigns nothing", self.name))?;
            // Not needed so far, and not to be misread.
            let readable = section != "Service" || !value.contains(['%', '"', '\'', '\\']);
            ensure!(readable, "{}: the stand-in cannot read {line:?}", self.name);
            self.assignments.push((section.clone(), key.to_owned(), value.to_owned()));
        }
        Ok(())
    }

    /// The value that was assigned last.
    pub fn last(&self, section: &str, key: &str) -> Option<&str> {
        self.values(section, key).last().copied().filter(|value| !value.is_empty())
    }

    /// The words of all that was assigned; an empty assignment takes away those before it.
    pub fn words(&self, key: &str) -> Vec<&str> {
        let values = self.values("Service", key);
        let from = values.iter().rposition(|value| value.is_empty()).map_or(0, |last| last + 1);
        values[from..].iter().flat_map(|value| value.split_whitespace()).collect()
    }

    /// What `[Service]` says of a key.
    pub fn service(&self, key: &str) -> Option<&str> {
        self.last("Service", key)
    }

    /// Whether `[Service]` says yes to a key.
    pub fn says_yes(&self, key: &str) -> bool {
        self.service(key) == Some("yes")
    }

    /// A time that is given in seconds.
    pub fn seconds(&self, key: &str) -> Result<Duration> {
        let value = self.service(key).unwrap_or("90");
        match value.parse() {
            Ok(seconds) => Ok(Duration::from_secs(seconds)),
            Err(_) => bail!("{}: the stand-in cannot read {key}={value}", self.name),
        }
    }

    fn values(&self, section: &str, key: &str) -> Vec<&str> {
        let matching = self.assignments.iter().filter(|(s, k, _)| s == section && k == key);
        matching.map(|(_, _, value)| value.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(text: &str) -> Result<Unit> {
        let mut unit = Unit { name: "a.service".into(), path: PathBuf::new(), assignments: Vec::new() };
        unit.take(text).map(|()| unit)
    }

    #[test]
    fn assignments_are_read_as_systemd_does() {
        let unit = unit(
            "[Unit]\n# User=none\nUser=other\n[Service]\nUser=one\nUser=two\nUMask=\nTimeoutStopSec=60\nProtectHome=yes\n\
             ReadWritePaths=/a /b\nReadWritePaths=\nReadWritePaths=/c\nReadWritePaths=/d\n",
        )
        .unwrap();
        assert_eq!(unit.service("User"), Some("two"));
        assert_eq!(unit.service("UMask"), None);
        assert_eq!(unit.words("ReadWritePaths"), ["/c", "/d"]);
        assert!(unit.says_yes("ProtectHome") && !unit.says_yes("PrivateTmp"));
        assert_eq!(unit.seconds("TimeoutStopSec").unwrap().as_secs(), 60);
        assert_eq!(unit.seconds("TimeoutStartSec").unwrap().as_secs(), 90);
    }

    #[test]
    fn what_it_cannot_read_is_refused() {
        for text in
            ["[Service]\nUser\n", "[Service]\nExecStart=/bin/x %i\n", "[Service]\nExecStart=/bin/x \"a b\"\n"]
        {
            unit(text).unwrap_err();
        }
        assert!(unit("[Service]\nTimeoutStopSec=5min\n").unwrap().seconds("TimeoutStopSec").is_err());
        assert!(
            Unit::read("no-such-unit")
                .unwrap_err()
                .to_string()
                .contains("Unit no-such-unit.service not found.")
        );
        Unit::read("a.timer").unwrap_err();
    }
}
