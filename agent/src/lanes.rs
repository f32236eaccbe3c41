//! The threads that a group's clients and its link live on.

use std::io;

use afterimage_contract::config::Mode;
use afterimage_transport::Lane;
use tokio::runtime::Handle;

/// The threads of a group.
pub(crate) struct Lanes {
    clients: Lane,
    /// Of the link, where nobody waits for the peer.
    link: Option<Lane>,
}

impl Lanes {
    /// Starts what the group of this name needs.
    ///
    /// # Errors
    /// If the system gives no more threads or file descriptors.
    pub fn start(group: &str, mode: Mode) -> io::Result<Self> {
        let clients = Lane::start(format!("lane-{group}"))?;
        let apart = mode == Mode::Async;
        let link = apart.then(|| Lane::start(format!("link-{group}"))).transpose()?;
        Ok(Self { clients, link })
    }

    /// Each of them, by whom it is for.
    pub fn threads(&self) -> impl Iterator<Item = (&'static str, &Handle)> {
        let link = self.link.iter().map(|lane| ("the link", lane.runtime()));
        [("clients", self.clients.runtime())].into_iter().chain(link)
    }

    /// Where clients are served.
    pub fn of_clients(&self) -> &Handle {
        self.clients.runtime()
    }

    /// Where the link is driven. In sync mode each write waits for an answer from the peer, which so comes to its client
    /// without being handed from thread to thread; in async mode clients do not wait while records are sent.
    pub fn of_link(&self) -> &Handle {
        self.link.as_ref().unwrap_or(&self.clients).runtime()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn thread_of(runtime: &Handle) -> String {
        runtime.spawn(async { std::thread::current().name().unwrap().to_owned() }).await.unwrap()
    }

    #[tokio::test]
    async fn the_link_is_where_clients_are_only_if_they_wait_for_it() {
        for (mode, link) in [(Mode::Sync, "lane-mail"), (Mode::Async, "link-mail")] {
            let lanes = Lanes::start("mail", mode).unwrap();
            assert_eq!(thread_of(lanes.of_clients()).await, "lane-mail");
            assert_eq!(thread_of(lanes.of_link()).await, link);
            let mut watched = Vec::new();
            for (_, runtime) in lanes.threads() {
                watched.push(thread_of(runtime).await);
            }
            assert!(watched.iter().any(|thread| thread == link), "{watched:?}");
        }
    }
}
