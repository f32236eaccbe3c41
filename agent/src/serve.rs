//! Serves the volumes of a group over NBD.

use std::sync::Arc;
use std::time::Duration;

use afterimage_contract::config;
use afterimage_events::{Event, event};
use afterimage_nbd::{BindError, Limits, Server, TcpEndpoint, UnixEndpoint};
use afterimage_protocol::VolumeIndex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::export::VolumeExport;
use crate::group::Group;

/// How long requests in flight may take when the agent stops; those that wait for a lost peer never end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a volume is served, and what went wrong with that.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exported {
    /// Socket paths and `host:port`.
    pub at: Vec<String>,
    pub error: Option<String>,
}

/// The NBD servers of a group.
pub(crate) struct Serving {
    stop: watch::Sender<bool>,
    servers: Vec<JoinHandle<()>>,
    exported: Vec<Exported>,
}

/// Serves every volume of `group` as configured, on the runtime `main`. A socket that cannot be had leaves the others
/// alone.
pub(crate) async fn serve(main: &Handle, group: &Arc<Group>, config: &config::Group) -> Serving {
    let mut serving = Serving { stop: watch::Sender::new(false), servers: Vec::new(), exported: Vec::new() };
    for (index, volume) in config.volumes.iter().enumerate() {
        let export = VolumeExport::new(group.clone(), VolumeIndex(index as u32));
        let limits = Limits { drain_timeout: DRAIN_TIMEOUT, ..Limits::default() };
        let server = Arc::new(Server::new(vec![Arc::new(export)], limits));
        let wanted = volume.export.clone();
        // A socket belongs to the runtime that it was opened in.
        let bound = main.spawn(async move { bind(&wanted) }).await;
        let (unix, tcp, error) = match bound {
            Ok(bound) => bound,
            Err(panic) => (None, None, Some(panic.to_string())),
        };
        let mut exported = Exported { at: Vec::new(), error };
        if let Some(unix) = unix {
            exported.at.push(unix.path().display().to_string());
            let server = server.clone();
            serving.servers.push(main.spawn(server.serve_unix_on(unix, serving.stop.subscribe())));
        }
        if let Some(tcp) = tcp {
            exported.at.extend(tcp.local_addr().map(|address| address.to_string()));
            serving.servers.push(main.spawn(server.serve_tcp_on(tcp, serving.stop.subscribe())));
        }
        if let Some(error) = &exported.error {
            event!(
                Event::NotExported,
                group = group.name,
                volume = volume.name,
                error,
                "the volume cannot be exported"
            );
        }
        if let Some(device) = &volume.export.attach {
            tracing::warn!(volume = volume.name, device = %device.display(), "attach is left to nbd-client");
        }
        serving.exported.push(exported);
    }
    let exports: Vec<_> = serving.exported.iter().flat_map(|exported| exported.at.iter().cloned()).collect();
    event!(Event::Serving, group = group.name, exports = exports.join(", "), "this host serves the volumes");
    serving
}

fn bind(wanted: &config::Export) -> (Option<UnixEndpoint>, Option<TcpEndpoint>, Option<String>) {
    let unix = wanted.nbd.as_ref().map(UnixEndpoint::bind);
    let tcp = wanted.tcp.map(|address| TcpEndpoint::bind(address, wanted.tcp_remote));
    let mut errors = Vec::new();
    let unix = taken(unix, &mut errors);
    let tcp = taken(tcp, &mut errors);
    (unix, tcp, (!errors.is_empty()).then(|| errors.join("; ")))
}

fn taken<T>(bound: Option<Result<T, BindError>>, errors: &mut Vec<String>) -> Option<T> {
    bound?.map_err(|error| errors.push(error.to_string())).ok()
}

impl Serving {
    /// Of each volume.
    pub fn exported(&self) -> Vec<Exported> {
        self.exported.clone()
    }

    /// Takes no more clients, and returns when those that are there have had the answers to what they asked.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for server in self.servers {
            // A panic of a server is the end of it too.
            let _ = server.await;
        }
    }
}
