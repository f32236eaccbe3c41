//! One attempt to reach the peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use afterimage_contract::config::Peer;
use afterimage_events::{Event, event};
use afterimage_transport::{
    ConnectError, Connection, Endpoint, EndpointOptions, Fingerprint, Identity, NodeName, Pins,
};
use anyhow::Context;

use super::{Link, session::End};
use crate::lanes::Lanes;

/// Reaches the peer of the configuration, for one group.
pub(crate) struct Dialer {
    lanes: Lanes,
    endpoint: Endpoint,
    pins: Arc<Pins>,
    peer: Peer,
    peer_name: NodeName,
}

impl Dialer {
    /// Opens a UDP port that nobody is told of, for the link on one of `lanes`.
    pub fn open(lanes: Lanes, identity: &Identity, pins: Arc<Pins>, peer: &Peer) -> anyhow::Result<Self> {
        let peer_name = peer.name.parse().with_context(|| format!("{:?} is not a node's name", peer.name))?;
        // Nobody connects to an agent.
        let options = EndpointOptions { max_connections: 0, ..EndpointOptions::default() };
        let on_lane = lanes.of_link().enter();
        let bind = |address: IpAddr| {
            Endpoint::bind(SocketAddr::new(address, 0), identity, pins.clone(), options.clone())
        };
        let endpoint = bind(Ipv6Addr::UNSPECIFIED.into())
            // A host may have no IPv6 at all.
            .or_else(|_| bind(Ipv4Addr::UNSPECIFIED.into()))
            .context("cannot open a UDP port to reach the peer from")?;
        drop(on_lane);
        Ok(Self { lanes, endpoint, pins, peer: peer.clone(), peer_name })
    }

    /// The threads of the group.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }
}

impl Link {
    /// Finds the peer, and connects to the first of its addresses that answers.
    pub(super) async fn dial(&self, dialer: &Dialer) -> Result<Connection, End> {
        let name = &dialer.peer.name;
        let key = match dialer.pins.by_name(&dialer.peer_name) {
            Ok(Some(pinned)) => pinned.fingerprint,
            Ok(None) => {
                let text = format!("{name} is not paired with this host: run `afterimage pair`");
                self.note(|state| {
                    state.unpaired = true;
                    state.fingerprint = None;
                });
                return Err(self.failed(End::Unpaired, text));
            }
            Err(error) => return Err(self.failed(End::Unpaired, chain(&error))),
        };
        self.note(|state| {
            state.unpaired = false;
            state.fingerprint = Some(key.to_string());
            state.address = Some(dialer.peer.address.to_string());
        });
        let (host, port) = (dialer.peer.address.host(), dialer.peer.address.port());
        let addresses = match tokio::net::lookup_host((host, port)).await {
            Ok(addresses) => addresses.collect::<Vec<_>>(),
            Err(error) => {
                return Err(self.failed(End::Lost, format!("cannot find the address of {host}: {error}")));
            }
        };
        let mut failure = self.no_address(host);
        for address in addresses {
            match connect(dialer, address, key).await {
                Ok(connection) => {
                    self.note(|state| state.address = Some(connection.remote_address().to_string()));
                    return Ok(connection);
                }
                Err(error) => {
                    let refused = matches!(
                        error,
                        ConnectError::WrongKey { .. }
                            | ConnectError::Refused { .. }
                            | ConnectError::NoCommonProtocol { .. }
                    );
                    self.note(|state| state.refused = refused);
                    failure = chain(&error);
                }
            }
        }
        Err(self.failed(End::Lost, failure))
    }

    fn no_address(&self, host: &str) -> String {
        format!("{host} has no address")
    }

    /// Notes why there is no session.
    pub(super) fn failed(&self, end: End, text: String) -> End {
        self.no_session(text);
        end
    }

    /// The same, for whoever has no attempt to end.
    pub fn no_session(&self, text: String) {
        let mut state = self.lock();
        if state.last_error.as_ref() != Some(&text) {
            let group = &self.group;
            match state.refused {
                true => {
                    event!(Event::PeerRefuses, group = group, reason = text, "the peer refuses a session")
                }
                false => event!(Event::LinkDown, group = group, reason = text, "no session with the peer"),
            }
        }
        state.last_error = Some(text);
        state.rtt_us = None;
    }
}

async fn connect(dialer: &Dialer, address: SocketAddr, key: Fingerprint) -> Result<Connection, ConnectError> {
    let connected = dialer.endpoint.connect(address, key).await;
    if let Err(ConnectError::NoAnswer { .. }) = &connected
        && let Err(error) = dialer.endpoint.change_port()
    {
        tracing::debug!(%error, "no other port can be had");
    }
    connected
}

/// An error and what caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
