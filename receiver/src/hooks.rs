//! What the hooks are told around a promotion and a switchover.

use std::path::PathBuf;
use std::sync::Arc;

use afterimage_contract::admin::{Activation, Request, call};
use afterimage_contract::hooks::{Event, Facts, HookError, Hooks};
use afterimage_contract::status::Role;
use afterimage_protocol::Generation;

use crate::group::{Promoted, Setup};
use crate::node::Node;

/// Runs the hook before a promotion that would succeed; on an error it is not to be done.
pub async fn before_promotion(node: &Node, group: &str, would: &Promoted) -> Result<(), HookError> {
    let generation = would.position.generation;
    let facts = facts(group, Role::Standby, generation, would);
    node.hooks.run(Event::BeforePromotion, &facts).await
}

/// Has the hook after a promotion run beside everything else, once the agent has had the chance to serve the group.
pub fn after_promotion(node: &Arc<Node>, group: &str, generation: Generation, promoted: &Promoted) {
    if node.hooks.are_configured() {
        let facts = facts(group, Role::Primary, generation, promoted);
        let (hooks, socket) = (node.hooks.clone(), node.config.agent_socket());
        tokio::spawn(serve_and_tell(Event::AfterPromotion, facts, hooks, socket));
    }
}

/// Has the agent of this host serve a group that was handed over to it, and then the hook run.
pub fn after_switchover(setup: &Setup, generation: Generation, promoted: &Promoted) {
    let facts = facts(&setup.group.name, Role::Primary, generation, promoted);
    let (hooks, socket) = (setup.hooks.clone(), setup.agent_socket.clone());
    setup.runtime.spawn(serve_and_tell(Event::AfterSwitchover, facts, hooks, socket));
}

/// The agent would find out by itself, a little later. Asking twice does no harm: the operator's command does so too.
async fn serve_and_tell(event: Event, mut facts: Facts, hooks: Hooks, agent: PathBuf) {
    let request = Request::Activate { group: facts.group.clone() };
    let answer = call(&agent, &request).await.and_then(|response| response.into_answer::<Activation>());
    match answer {
        Ok(activation) => {
            let Activation { serving, exports, .. } = activation;
            tracing::info!(group = facts.group, serving, exports = exports.join(", "), "the agent was told");
            facts.exports = exports;
        }
        Err(error) => {
            tracing::warn!(group = facts.group, %error, "the agent could not be asked to serve the group");
            facts.reason = Some(error.to_string());
        }
    }
    hooks.tell(event, facts);
}

fn facts(group: &str, role: Role, generation: Generation, promoted: &Promoted) -> Facts {
    Facts {
        role: Some(role),
        generation: Some(generation.to_string()),
        sequence: Some(promoted.position.sequence.0),
        ..Facts::new(group)
    }
}
