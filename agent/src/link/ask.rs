//! The question of a fenced host: a promotion of its peer can be rolled back as long as nothing was written there, and the
//! peer is then the standby of this host's history as before.

use afterimage_protocol::message::{Open, Refusal, SourceMessage, TargetMessage, VolumeInfo, encode};
use afterimage_protocol::state::GroupState;
use afterimage_protocol::{Generation, SessionId};
use afterimage_transport::{CloseCode, Connection, write_message};

use super::Link;
use super::dial::Dialer;
use super::session::{ANSWER_TIMEOUT, Broken, CAP_BYTES, End, lost, next};
use crate::random;

impl Link {
    /// Asks the peer. If it is the standby of this host's history: the generations that it has rolled back.
    pub async fn ask_if_replaced(
        &self,
        dialer: &Dialer,
        group: &str,
        state: &GroupState,
    ) -> Option<Vec<Generation>> {
        let connection = self.dial(dialer).await.ok()?;
        let answer = ask(&connection, group, state).await;
        connection.close(CloseCode::DONE, "the question was answered");
        match answer {
            Ok(TargetMessage::RolledBack { generations }) => Some(generations),
            Ok(TargetMessage::Refused { code, text, standing }) => {
                self.note(|state| {
                    state.standing = standing.clone().or(state.standing.take());
                    state.split_brain = code == Refusal::SplitBrain;
                });
                self.failed(End::Refused(code, standing), text);
                None
            }
            Ok(_) => None,
            Err(Broken::Refused { text, .. } | Broken::Lost(text)) => {
                self.failed(End::Lost, text);
                None
            }
        }
    }
}

async fn ask(connection: &Connection, group: &str, state: &GroupState) -> Result<TargetMessage, Broken> {
    let volume = |v: &afterimage_protocol::state::VolumeState| VolumeInfo {
        name: v.name.clone(),
        size_bytes: v.size_bytes,
    };
    let open = Open {
        group: group.to_owned(),
        session: SessionId(random::nonzero().map_err(lost)?),
        known_session: state.session,
        standing: state.standing(state.reserved),
        incarnation: state.incarnation,
        durable_acks: false,
        pending: false,
        volumes: state.volumes.iter().map(volume).collect(),
    };
    let (mut control, mut answers) = connection.open_bi().await.map_err(lost)?;
    write_message(&mut control, &encode(&SourceMessage::Open(open)), CAP_BYTES).await.map_err(lost)?;
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, next(&mut answers)).await;
    answer.map_err(|_| Broken::Lost("the peer does not answer".to_owned()))?
}
