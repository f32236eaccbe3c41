//! The keys of both hosts, the way to the peer, and what the daemons say of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use afterimage_contract::config::Config;
use afterimage_contract::status::{GroupStatus, Role};
use afterimage_transport::{
    CloseCode, ConnectError, Endpoint, EndpointOptions, Fingerprint, IDENTITY_FILE, Identity, Pins,
};

use super::Findings;
use crate::host;

/// Looks at keys, the way to the peer, and the groups' sessions.
pub(super) async fn check(config: &Config, findings: &mut Findings) {
    if let Some((identity, pins, key)) = keys(config, findings) {
        reach(config, &identity, &pins, key, findings).await;
    }
    // Without daemons there is nothing to ask.
    let Ok(status) = host::status(config).await else { return };
    for group in &status.groups {
        session(config, group, findings);
    }
}

/// The key of this host, and the peer's, if both are there.
fn keys(config: &Config, findings: &mut Findings) -> Option<(Identity, Arc<Pins>, Fingerprint)> {
    let (dir, peer) = (&config.node.state_dir, &config.peer.name);
    let unpaired = format!(
        "{peer} is not paired with this host; run `afterimage pair --new` on one of them and `afterimage pair TOKEN` on \
         the other"
    );
    // The check makes none.
    if !dir.join(IDENTITY_FILE).exists() {
        findings.warning("peer.name", format!("this host has no key yet, and {unpaired}"));
        return None;
    }
    let identity = Identity::load_or_create(dir)
        .map_err(|error| findings.error("node.state_dir", format!("the key of this host: {error}")))
        .ok()?;
    let pins = Pins::open(dir).and_then(|pins| pins.all().map(|all| (pins, all)));
    let (pins, all) =
        pins.map_err(|error| findings.error("node.state_dir", format!("the pinned keys: {error}"))).ok()?;
    let Some(pin) = all.iter().find(|pin| pin.name.as_str() == peer) else {
        let others: Vec<_> = all.iter().map(|pin| pin.name.as_str()).collect();
        if others.is_empty() {
            findings.warning("peer.name", unpaired);
        } else {
            let others = others.join(", ");
            findings.warning(
                "peer.name",
                format!("{unpaired}; paired is {others}, if that is the one that is meant"),
            );
        }
        return None;
    };
    let key = pin.fingerprint;
    Some((identity, Arc::new(pins), key))
}

/// Connects as the agent would, and ends that at once.
async fn reach(
    config: &Config,
    identity: &Identity,
    pins: &Arc<Pins>,
    key: Fingerprint,
    findings: &mut Findings,
) {
    let (name, port) = (config.peer.address.host(), config.peer.address.port());
    let addresses: Vec<SocketAddr> = match tokio::net::lookup_host((name, port)).await {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            let text =
                format!("cannot find the address of {name}: {error}; check the name, or use an address");
            findings.warning("peer.address", text);
            return;
        }
    };
    let options = EndpointOptions { max_connections: 0, ..EndpointOptions::default() };
    let bind = |ip: IpAddr| Endpoint::bind(SocketAddr::new(ip, 0), identity, pins.clone(), options.clone());
    let Ok(endpoint) = bind(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| bind(Ipv4Addr::UNSPECIFIED.into()))
    else {
        findings.warning("peer.address", "no UDP port can be opened to reach the peer from");
        return;
    };
    let mut last = None;
    for address in addresses {
        match endpoint.connect(address, key).await {
            Ok(connection) => {
                connection.close(CloseCode::DONE, "the configuration was checked");
                endpoint.wait_idle().await;
                return;
            }
            Err(error) => last = Some(error),
        }
    }
    let peer = &config.peer.name;
    match last {
        Some(error @ (ConnectError::WrongKey { .. } | ConnectError::Refused { .. })) => {
            findings.error("peer.address", error.to_string());
        }
        Some(error) => findings.warning(
            "peer.address",
            format!(
                "{error}; is afterimage-receiver running on {peer}, and is UDP port {port} open on the way?"
            ),
        ),
        None => findings.warning("peer.address", format!("{name} has no address; check the name")),
    }
}

/// Sizes, names and roles are compared by the daemons when a session begins: what they say of it.
fn session(config: &Config, group: &GroupStatus, findings: &mut Findings) {
    let key = format!("group.{}", group.name);
    if !config.groups.contains_key(&group.name) {
        return;
    }
    for (index, volume) in group.volumes.iter().enumerate() {
        if let Some(error) = &volume.error {
            findings.error(&format!("{key}.volume[{index}].device"), error.clone());
        }
    }
    if let Some(why) =
        group.peer.last_error.as_ref().filter(|_| !group.peer.connected && group.role == Role::Primary)
    {
        let text = format!(
            "there is no session with {}: {why}; see: afterimage status {}",
            group.peer.name, group.name
        );
        findings.warning(&key, text);
    }
}
