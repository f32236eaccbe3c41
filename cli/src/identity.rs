//! `afterimage identity` and `afterimage pair`: this host's key, and how two hosts come to trust each other.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use afterimage_contract::config::Config;
use afterimage_transport::{Identity, Joiner, NodeName, OFFER_LIFETIME_SECS, PinStore, Token, create_offer};

use crate::args::PairArgs;
use crate::exit::CommandError;
use crate::owner::become_owner;
use crate::{host, text};

/// Prints this host's fingerprint and the peers it trusts. Makes the key if there is none yet.
pub fn identity(config: &Path) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    become_owner(&config.node.state_dir)?;
    let identity = own_identity(&config)?;
    let pins = PinStore::new(&config.node.state_dir).load().map_err(failed)?;
    let mut out = format!("{}  {}\n", config.node.name, identity.fingerprint());
    if pins.is_empty() {
        out.push_str("no peer is paired; run `afterimage pair --new` on one host and `afterimage pair TOKEN` on the other\n");
    }
    for pin in pins {
        out.push_str(&format!("{}  {}  (peer)\n", pin.name, pin.fingerprint));
    }
    text::emit(&out)
}

/// Makes a token, or uses one.
pub async fn pair(config: &Path, args: &PairArgs) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    become_owner(&config.node.state_dir)?;
    let identity = own_identity(&config)?;
    match &args.token {
        None => offer(&config, &identity),
        Some(token) => join(&config, &identity, token).await,
    }
}

fn offer(config: &Config, identity: &Identity) -> Result<(), CommandError> {
    let token = create_offer(&config.node.state_dir, identity, None, now_unix()).map_err(failed)?;
    let minutes = OFFER_LIFETIME_SECS / 60;
    eprintln!(
        "On {}, within {minutes} minutes, run `afterimage pair TOKEN` with this token, while the receiver runs here. It \
         works once; whoever has it can pair with this host, so pass it over a channel that you trust.\n",
        config.peer.name
    );
    text::emit(&format!("{token}\n"))
}

async fn join(config: &Config, identity: &Identity, token: &str) -> Result<(), CommandError> {
    let token: Token =
        token.parse().map_err(|e| CommandError::wrong_use(format!("the token cannot be used: {e}")))?;
    let node_name: NodeName = config.node.name.parse().map_err(failed)?;
    let joiner = Joiner {
        identity,
        state_dir: &config.node.state_dir,
        node_name: &node_name,
        listens_at: None,
        now_unix: now_unix(),
    };
    let address = config.peer.address.to_string();
    let paired = joiner.join(&token, Some(&address)).await.map_err(failed)?;
    for old in &paired.replaced {
        eprintln!("afterimage: the earlier key of {} was replaced: {}", old.name, old.fingerprint);
    }
    if paired.peer.name.as_str() != config.peer.name {
        eprintln!(
            "afterimage: the host at {address} is called {}, but [peer] name is {}; make both configurations agree",
            paired.peer.name, config.peer.name
        );
    }
    text::emit(&format!("paired with {}  {}\n", paired.peer.name, paired.peer.fingerprint))
}

fn own_identity(config: &Config) -> Result<Identity, CommandError> {
    let dir = &config.node.state_dir;
    make_private(dir).map_err(|e| CommandError::failed(format!("cannot make {}: {e}", dir.display())))?;
    Identity::load_or_create(dir).map_err(failed)
}

fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn failed(error: impl std::error::Error) -> CommandError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    CommandError::failed(text)
}

fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
