//! Which path shows what.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use afterimage_contract::admin::{Request, call_within};
use afterimage_contract::clock;
use afterimage_contract::config::{Config, Group};
use afterimage_contract::status::{DaemonReport, Status, merge};

use crate::health::{Question, ask};
use crate::scrape::{Numbers, Scrape};

/// How long the other daemon of the host may take to say what it knows.
const OTHER_TIMEOUT: Duration = Duration::from_secs(2);
const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const INDEX: &str = "Afterimage

/metrics          for Prometheus, of this daemon
/healthy          200 if every group does what it was configured to do, else 503
/primary          200 if this host serves the volumes of every group, else 503
/standby          200 if this host has a copy of every group that could be promoted, else 503

One group: /healthy/GROUP or /healthy?group=GROUP, and so on.

";

/// A daemon, as far as it is shown.
pub trait Daemon: Send + Sync + 'static {
    /// What it knows now, and what it counts of each group beside that. Must not wait for a disk or the network.
    fn look(&self) -> (Status, BTreeMap<String, Numbers>);

    /// The configuration that is in force now.
    fn config(&self) -> Arc<Config>;
}

/// What is shown of one daemon, and of the host that it is on.
pub struct Pages {
    daemon: Arc<dyn Daemon>,
    name: &'static str,
    node: String,
    /// Where the other daemon of the host takes requests.
    other: PathBuf,
    configured: Vec<String>,
}

/// What a request is answered with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub code: u16,
    pub content_type: &'static str,
    pub body: String,
}

impl Page {
    pub fn text(code: u16, body: impl Into<String>) -> Self {
        Self { code, content_type: TEXT, body: body.into() }
    }
}

impl Pages {
    /// Of the agent of a host.
    pub fn of_agent(config: &Config, daemon: Arc<dyn Daemon>) -> Self {
        Self::new(config, "agent", daemon, config.receiver_socket())
    }

    /// Of the receiver of a host.
    pub fn of_receiver(config: &Config, daemon: Arc<dyn Daemon>) -> Self {
        Self::new(config, "receiver", daemon, config.agent_socket())
    }

    fn new(config: &Config, name: &'static str, daemon: Arc<dyn Daemon>, other: PathBuf) -> Self {
        Self {
            daemon,
            name,
            node: config.node.name.clone(),
            other,
            configured: config.groups.keys().cloned().collect(),
        }
    }

    /// What `path` shows, with the part of the URL after `?`.
    pub(crate) async fn show(&self, path: &str, query: Option<&str>) -> Page {
        if path == "/" {
            return Page::text(200, format!("{INDEX}{}", self.summary().await));
        }
        if path == "/metrics" {
            return Page { code: 200, content_type: OPEN_METRICS, body: self.scrape().text() };
        }
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let question = match parts.next() {
            Some("healthy") => Question::Healthy,
            Some("primary") => Question::Primary,
            Some("standby") => Question::Standby,
            _ => return Page::text(404, "there is /metrics, /healthy, /primary and /standby\n"),
        };
        let wanted = |query: &str| -> Option<String> {
            let group = query.split('&').find_map(|pair| pair.strip_prefix("group="));
            group.map(str::to_owned)
        };
        let group = parts.next().map(str::to_owned).or_else(|| query.and_then(wanted));
        let status = self.host().await;
        match ask(&status, question, &self.configured, group.as_deref()) {
            Some(answer) => Page::text(if answer.yes { 200 } else { 503 }, answer.text),
            None => Page::text(404, "no such group is configured here\n"),
        }
    }

    fn scrape(&self) -> Scrape {
        let (status, numbers) = self.daemon.look();
        let config = self.daemon.config();
        let objectives = |group: &Group| (group.name.clone(), (group.objectives.rpo, group.objectives.rto));
        Scrape {
            daemon: self.name,
            status,
            numbers,
            objectives: config.groups.values().map(objectives).collect(),
            events: afterimage_events::counts(),
        }
    }

    async fn summary(&self) -> String {
        let status = self.host().await;
        let questions = [Question::Healthy, Question::Primary, Question::Standby];
        let answers = questions.map(|question| {
            let answer = ask(&status, question, &self.configured, None);
            answer.map_or_else(String::new, |answer| format!("{question:?}\n{}\n", answer.text))
        });
        answers.concat()
    }

    /// The status of the host: what this daemon knows, and the other one, which is asked.
    async fn host(&self) -> Status {
        let own = DaemonReport::Answered(self.daemon.look().0);
        let asked = call_within(&self.other, &Request::Status, OTHER_TIMEOUT).await;
        let other = match asked.and_then(|response| response.into_answer::<Status>()) {
            Ok(status) => DaemonReport::Answered(status),
            Err(error) => DaemonReport::Silent { text: error.to_string(), action: String::new() },
        };
        let (agent, receiver) = if self.name == "agent" { (own, other) } else { (other, own) };
        let configured: Vec<_> = self.configured.iter().map(String::as_str).collect();
        merge(&self.node, clock::now_us(), &configured, agent, receiver)
    }
}
