//! The handshake at the target (rules 13, 19, 23).

use super::*;
use crate::lineage::{Lineage, Standing, refuse};
use crate::message::{Lost, MAX_RANGES, Open, Opened, Refusal};

#[derive(Debug)]
pub(super) enum Session {
    None,
    /// Begins when the state of this version is durable.
    Noting {
        id: SessionId,
        version: u64,
        durable_acks: bool,
        known: SessionId,
        previous: SessionId,
    },
    Active {
        id: SessionId,
        durable_acks: bool,
    },
}

impl Session {
    pub fn id(&self) -> Option<SessionId> {
        match self {
            Session::None => None,
            Session::Noting { id, .. } | Session::Active { id, .. } => Some(*id),
        }
    }

    pub fn active(&self) -> Option<SessionId> {
        match self {
            Session::Active { id, .. } => Some(*id),
            _ => None,
        }
    }

    pub fn wants_durable(&self) -> bool {
        matches!(self, Session::Active { durable_acks: true, .. })
    }
}

impl Target {
    /// A source asks for a session. Every older session ends before anything else happens. A refusal is returned; an
    /// acceptance is sent once it is noted durably.
    #[expect(clippy::result_large_err, reason = "once a handshake, and sent as it is")]
    pub fn open(&mut self, now: Time, open: Open) -> Result<(), TargetMessage> {
        self.now = self.now.max(now);
        if self.rules.on(Rule::SessionFence) {
            self.end_session("a newer session begins");
        } else {
            self.session = Session::None;
        }
        self.refuse(&open)?;
        if self.rules.on(Rule::LeaseOfSession) {
            self.pings.session_begins(self.state.generation() == open.standing.lineage.current());
        }
        let (known, previous) = (self.state.session, self.state.previous_session);
        self.state.lineage = open.standing.lineage;
        self.state.session = open.session;
        // A session that this host does not know of must not look known the next time, should this answer be lost.
        if open.known_session == known {
            self.state.previous_session = known;
        }
        self.take_sizes(open.volumes);
        let version = self.persist();
        self.session =
            Session::Noting { id: open.session, version, durable_acks: open.durable_acks, known, previous };
        self.pump(now);
        Ok(())
    }

    #[expect(clippy::result_large_err, reason = "once a handshake, and sent as it is")]
    fn refuse(&self, open: &Open) -> Result<(), TargetMessage> {
        let refused = |code, text: String| Err(TargetMessage::Refused { code, text, standing: None });
        // Which history is to be is not durable yet.
        if self.promoting.is_some() && self.failed.is_none() {
            return refused(Refusal::NotReady, format!("group {} is being promoted", self.config.group));
        }
        if self.state.role != Role::Standby {
            return match refuse(&self.config.group, &open.standing, &self.standing()) {
                Some(refusal) => Err(refusal),
                None => refused(Refusal::Role, format!("group {} is not a standby here", self.config.group)),
            };
        }
        if let Some(reason) = self.failed {
            return refused(
                Refusal::NotReady,
                format!("group {} cannot take data: {reason}", self.config.group),
            );
        }
        if self.cutting.is_some() {
            return refused(
                Refusal::NotReady,
                format!("group {} is making room in its journal", self.config.group),
            );
        }
        if let Some(text) = self.unfit(&open.volumes) {
            return refused(Refusal::Volumes, format!("group {}: {text}", self.config.group));
        }
        if let Some(refusal) = refuse(&self.config.group, &open.standing, &self.standing()) {
            return Err(refusal);
        }
        if open.standing.role != Role::Primary {
            // It does not stream: it asks whether it is still replaced.
            return Err(TargetMessage::RolledBack { generations: self.state.rolled_back.clone() });
        }
        if open.pending {
            return refused(
                Refusal::Pending,
                format!("group {}: the source's promotion can still be rolled back", self.config.group),
            );
        }
        if let Some(text) = self.lacks_room() {
            return refused(Refusal::NotReady, text);
        }
        Ok(())
    }

    /// Why the source's volumes cannot be replicated here, if so. A volume here may be larger than at the source: it has been
    /// made so before the source's grows. It may not be smaller; and what is offered here does not lose its end.
    fn unfit(&self, theirs: &[VolumeInfo]) -> Option<String> {
        let ours = &self.config.volumes;
        if ours.len() != theirs.len() || ours.iter().zip(theirs).any(|(a, b)| a.name != b.name) {
            let names = |volumes: &[VolumeInfo]| {
                volumes.iter().map(|v| v.name.as_str()).collect::<Vec<_>>().join(", ")
            };
            let (ours, theirs) = (names(ours), names(theirs));
            return Some(format!(
                "the volumes differ: {ours} here, {theirs} at the source; make both configurations equal"
            ));
        }
        let offers = self.points.newest().is_some();
        for ((ours, theirs), room) in ours.iter().zip(theirs).zip(&self.room_bytes) {
            let (name, size) = (&ours.name, theirs.size_bytes);
            if size > *room {
                return Some(format!(
                    "volume {name} has {room} bytes here and {size} at the source; make it at least that large here: the \
                     session begins by itself then"
                ));
            }
            if size < ours.size_bytes && offers {
                return Some(format!(
                    "volume {name} is replicated with {} bytes here and has {size} at the source, and a copy is not made \
                     smaller; if the source's state was restored from an old copy, set this host up again as its standby",
                    ours.size_bytes
                ));
            }
        }
        None
    }

    /// What the volumes have room for now, in bytes, in the order of their indices.
    pub fn measured(&mut self, room_bytes: Vec<u64>) {
        self.room_bytes = room_bytes;
    }

    /// Takes over the sizes of the source's volumes. They are durable with the note of the session, before anything that
    /// counts with them is taken.
    fn take_sizes(&mut self, volumes: Vec<VolumeInfo>) {
        for (stored, theirs) in self.state.volumes.iter_mut().zip(&volumes) {
            stored.size_bytes = theirs.size_bytes;
        }
        self.config.volumes = volumes;
    }

    /// The generations that led to the newest checkpoint; those last agreed on while there is none.
    pub(super) fn image_lineage(&self) -> Lineage {
        let newest = self.points.newest().map(|p| p.position.generation);
        newest.map_or_else(|| self.state.lineage.clone(), |generation| self.state.lineage.up_to(generation))
    }

    /// What the target says of its image.
    pub fn standing(&self) -> Standing {
        Standing { lineage: self.image_lineage(), ..self.state.standing(self.newest_sequence()) }
    }

    /// The connection of `session` is gone.
    pub fn disconnected(&mut self, now: Time, session: SessionId) {
        if self.session.id() == Some(session) {
            self.end_session("the connection is gone");
        }
        self.pump(now);
    }

    /// Tells the source the blocks of the bitmaps that were this host's as a primary.
    fn tell_bitmaps(&mut self) {
        if self.state.lost != LostBlocks::Bitmaps {
            return;
        }
        let lacks: Vec<_> = crate::bitmap::runs(&self.lost_bitmaps).collect();
        for blocks in lacks.chunks(MAX_RANGES) {
            self.send(TargetMessage::Lacks { blocks: blocks.to_vec() });
        }
    }

    pub(super) fn session_noted(&mut self, version: u64) {
        if !matches!(&self.session, Session::Noting { version: v, .. } if *v <= version) {
            return;
        }
        let Session::Noting { id, durable_acks, known, previous, .. } =
            std::mem::replace(&mut self.session, Session::None)
        else {
            return;
        };
        let opened = Opened {
            session: id,
            known_session: known,
            previous_session: previous,
            received: self.points.newest().map(|p| p.position),
            durable: self.points.durable_point().map(|p| p.position),
            mark: self.state.mark,
            epoch: self.epoch.as_ref().and_then(|e| e.for_resume()),
            lost: match &self.state.lost {
                LostBlocks::None => Lost::None,
                LostBlocks::Ranges(r) => Lost::Ranges(r.clone()),
                LostBlocks::All => Lost::All,
                LostBlocks::Bitmaps => Lost::Told,
            },
        };
        self.lost_handed_over = opened.lost != Lost::None;
        if self.lost_handed_over && !self.rules.on(Rule::TargetKeepsBits) {
            self.state.lost = LostBlocks::None;
            self.persist();
        }
        self.session = Session::Active { id, durable_acks };
        self.points.forget_told();
        if let Some(e) = &mut self.epoch {
            e.session_began();
        }
        self.tell_bitmaps();
        self.send(TargetMessage::Opened(opened));
    }
}
