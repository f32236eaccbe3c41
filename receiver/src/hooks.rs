//! What the hooks are told around a promotion.

use std::sync::Arc;

use afterimage_contract::admin::{Activation, AdminError, Request, call};
use afterimage_contract::hooks::{Event, Facts, HookError};
use afterimage_contract::status::Role;
use afterimage_protocol::Generation;

use crate::group::Promoted;
use crate::node::Node;

/// Runs the hook before a promotion that would succeed; on an error it is not to be done.
pub async fn before_promotion(node: &Node, group: &str, would: &Promoted) -> Result<(), HookError> {
    let generation = would.position.generation;
    let facts = facts(group, Role::Standby, generation, would);
    node.hooks.run(Event::BeforePromotion, &facts).await
}

/// Has the hook after a promotion run beside everything else, once the agent has had the chance to serve the group.
pub fn after_promotion(node: &Arc<Node>, group: &str, generation: Generation, promoted: &Promoted) {
    if !node.hooks.are_configured() {
        return;
    }
    let mut facts = facts(group, Role::Primary, generation, promoted);
    let node = node.clone();
    tokio::spawn(async move {
        match activate(&node, &facts.group).await {
            Ok(activation) => facts.exports = activation.exports,
            Err(error) => {
                tracing::warn!(group = facts.group, %error, "the agent could not be asked to serve the group");
                facts.reason = Some(error.to_string());
            }
        }
        node.hooks.tell(Event::AfterPromotion, facts);
    });
}

/// Asking twice does no harm: the operator's command does so too.
async fn activate(node: &Node, group: &str) -> Result<Activation, AdminError> {
    let request = Request::Activate { group: group.to_owned() };
    call(node.config.agent_socket(), &request).await?.into_answer()
}

fn facts(group: &str, role: Role, generation: Generation, promoted: &Promoted) -> Facts {
    Facts {
        role: Some(role),
        generation: Some(generation.to_string()),
        sequence: Some(promoted.position.sequence.0),
        ..Facts::new(group)
    }
}
