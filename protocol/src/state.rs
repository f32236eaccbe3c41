//! What a host knows of a group across restarts: the payload of the superblock.
//!
//! Owns the fields and their encoding (explicit, little-endian; docs/formats.md, "group state"). The slots, checksums
//! and fsyncs around it belong to storage; when a field may change belongs to the state machines.

use serde::{Deserialize, Serialize};

use crate::ids::*;
use crate::lineage::{Lineage, MAX_GENERATIONS, Relation, Standing, relate};

const VERSION: u32 = 3;
/// Without what a rollback needs.
const VERSION_2: u32 = 2;
/// Without a lineage but for the parent, and without what a reinstatement needs.
const VERSION_1: u32 = 1;
/// Most ranges of lost blocks that are kept one by one; beyond it all blocks count as lost. Keeps the state within a
/// superblock slot.
pub const MAX_LOST_RANGES: usize = 2000;
/// Rolled back generations that are remembered: an old primary that was down while more promotions were rolled back has to be
/// reinstated.
pub const MAX_ROLLED_BACK: usize = 8;
/// Longest stored identity of a volume, in bytes.
pub const MAX_IDENTITY_BYTES: usize = 256;

/// The role of a host for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Serves the volume and is the source.
    Primary,
    /// Keeps the copy and is the target.
    Standby,
    /// Was primary, and its peer was promoted meanwhile: serves nothing.
    Fenced,
}

/// Blocks that the copy here may lack and that the peer has to send again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LostBlocks {
    /// None.
    None,
    /// These.
    Ranges(Vec<BlockRange>),
    /// It cannot be told which, so all.
    All,
    /// Those of the bitmaps that were this host's as a primary: it is being reinstated.
    Bitmaps,
}

impl LostBlocks {
    /// Whether nothing is lost.
    pub fn is_none(&self) -> bool {
        matches!(self, LostBlocks::None)
    }

    /// Joins `ranges` to what is lost already; neighbours count once.
    pub fn add(&mut self, ranges: impl IntoIterator<Item = BlockRange>) {
        let mut all = match std::mem::replace(self, LostBlocks::All) {
            // The bitmaps are only read while they count as lost.
            LostBlocks::All | LostBlocks::Bitmaps => return,
            LostBlocks::None => Vec::new(),
            LostBlocks::Ranges(r) => r,
        };
        all.extend(ranges);
        all.sort_unstable_by_key(|r| (r.volume, r.first));
        all.dedup_by(|next, last| {
            let joins = next.volume == last.volume && next.first <= last.end();
            if joins {
                last.count = last.count.max(next.end() - last.first);
            }
            joins
        });
        *self = match all.len() {
            0 => LostBlocks::None,
            1..=MAX_LOST_RANGES => LostBlocks::Ranges(all),
            _ => LostBlocks::All,
        };
    }
}

/// The checkpoint that the base stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BasePoint {
    /// Base and journal up to `lsn` make this position. It is the oldest that may be offered.
    pub position: Position,
    /// Entries before this place may be in the base already, in part or whole.
    pub lsn: Lsn,
}

/// The durable state of one group on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// The role of this host.
    pub role: Role,
    /// The history that this host follows or makes, and those before it.
    pub lineage: Lineage,
    /// Fenced: the generation that replaced this host's, and where it left it.
    pub replaced_by: Option<(Generation, Sequence)>,
    /// Source: clients were answered for writes that no session has carried since the last one began.
    pub alone: bool,
    /// Source: the peer may have taken over at this sequence; nothing is admitted before it has said whether it did.
    pub handing_over: Option<Sequence>,
    /// Target: the base is this host's image as a primary, of which the journal knows nothing. Without a checkpoint it is
    /// kept until the first epoch has committed.
    pub keeps_image: bool,
    /// The boot in which the agent last ran: another one means that unsynced bytes may be gone.
    pub boot_id: [u8; 16],
    /// The generation whose source the bitmaps and the hot-extent log are of.
    pub bitmaps_of: Generation,
    /// Runs of the source so far.
    pub incarnation: Incarnation,
    /// No sequence above this one has been used.
    pub reserved: Sequence,
    /// The last session, and the one before it on this side's peer.
    pub session: SessionId,
    /// What the peer knew as its last session when `session` was agreed on.
    pub previous_session: SessionId,
    /// Source: the peer has every write up to here on stable storage.
    pub noted: Sequence,
    /// Source: the last progress mark of a first sync that bits were cleared for. Target: the last one given out.
    pub mark: u64,
    /// Source: the peer may have a checkpoint, and so may have been promoted: a first sync is over, or all but over.
    pub peer_has_checkpoint: bool,
    /// Source: every block counts as dirty and contents are compared rather than sent.
    pub compare_all: bool,
    /// Target: the checkpoint of the base; `None` before the first sync is over.
    pub base: Option<BasePoint>,
    /// Target: blocks to be handed to the source at the next handshake.
    pub lost: LostBlocks,
    /// Names and identities of the volumes, in the order of their indices.
    pub volumes: Vec<VolumeState>,
    /// Primary: its generation began with a promotion and is not real yet. No write was admitted in it, and no standby has
    /// followed it.
    pub pending: bool,
    /// The last generations that were rolled back here, the newest last; at most [`MAX_ROLLED_BACK`].
    pub rolled_back: Vec<Generation>,
    /// When this host last began to go its own way, by its own clock: went on alone, or was promoted. 0 if that is not
    /// known.
    pub parted: Time,
}

/// What is remembered of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeState {
    /// Its configured name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its identity as storage tells it; opaque here.
    pub identity: Vec<u8>,
}

/// Why stored bytes are not a group state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Cut short or too long.
    #[error("the group state has a wrong length")]
    Length,
    /// Made by another version.
    #[error("group state version {0} is not known; this program writes version {VERSION}")]
    Version(u32),
    /// A field has a value that it may not have.
    #[error("the group state's {0} is out of range")]
    Field(&'static str),
}

/// Why a host's own history cannot be the one that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotKeep {
    /// It was not replaced.
    #[error("this host was not replaced")]
    NotFenced,
    /// It was replaced, and clients were answered for nothing here that the peer never saw.
    #[error("this host was replaced by a promotion, and it is no split brain")]
    NoSplitBrain,
}

/// Why a promotion is not rolled back. Nothing has changed, unless the disk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotRollBack {
    /// This host is not the primary, or has been from the beginning.
    #[error("this host was not promoted")]
    NotPromoted,
    /// A write was admitted, or a standby has followed; or the roles were changed as planned.
    #[error(
        "its generation is real: clients have written in it, or a standby follows it, or it began with a switchover"
    )]
    Real,
    /// One is under way.
    #[error("a rollback is under way already")]
    UnderWay,
    /// The state cannot be written.
    #[error("the state of the group cannot be written")]
    Failed,
}

impl GroupState {
    /// A group that has never run here.
    pub fn new(role: Role, volumes: Vec<VolumeState>) -> Self {
        Self {
            role,
            lineage: Lineage::default(),
            replaced_by: None,
            alone: false,
            handing_over: None,
            keeps_image: false,
            boot_id: [0; 16],
            bitmaps_of: Generation::NONE,
            incarnation: Incarnation(0),
            reserved: Sequence(0),
            session: SessionId(0),
            previous_session: SessionId(0),
            noted: Sequence(0),
            mark: 0,
            peer_has_checkpoint: false,
            compare_all: false,
            base: None,
            lost: LostBlocks::None,
            volumes,
            pending: false,
            rolled_back: Vec::new(),
            parted: Time(0),
        }
    }

    /// What the host says of its image, whose last write is `sequence`.
    pub fn standing(&self, sequence: Sequence) -> Standing {
        Standing {
            role: self.role,
            lineage: self.lineage.clone(),
            sequence,
            alone: self.alone,
            parted: self.parted,
        }
    }

    /// The generation that this host follows or makes.
    pub fn generation(&self) -> Generation {
        self.lineage.current()
    }

    /// Where it left its parent; `None` for a first one.
    pub fn parent(&self) -> Option<Position> {
        self.lineage.parent()
    }

    /// The peer was promoted: `by` is its generation, and where that left this host's. If this host had handed over at
    /// that very place it is the standby from now on; else it is fenced, and an operator says what becomes of what only it
    /// has.
    pub fn replaced(&mut self, by: Option<(Generation, Sequence)>) {
        self.pending = false;
        let left_at = by.map(|(_, left_at)| left_at);
        let Some(at) = self.handing_over.take().filter(|at| left_at == Some(*at)) else {
            self.role = Role::Fenced;
            self.replaced_by = by;
            return;
        };
        let known = !self.compare_all;
        self.become_standby();
        if known {
            // Nothing was admitted since, all of it is on stable storage, and the peer had all of it too: what only one of them
            // has is in the peer's bitmaps.
            self.lost = LostBlocks::None;
            self.base = Some(BasePoint { position: Position::new(self.generation(), at), lsn: Lsn(0) });
        }
    }

    /// The generation is not rolled back any more: what this host had told as a target counts for nothing.
    pub fn make_real(&mut self) {
        self.pending = false;
        // Else a peer that comes home looks like one that was set back, and all is compared.
        self.mark = 0;
    }

    /// Whether the promotion of this host can be rolled back; the position that the image then stands for again.
    pub fn may_roll_back(&self) -> Result<Position, CannotRollBack> {
        let parent =
            self.parent().filter(|_| self.role == Role::Primary).ok_or(CannotRollBack::NotPromoted)?;
        let at_parent = self.base.is_some_and(|base| base.position == parent);
        if self.pending && at_parent { Ok(parent) } else { Err(CannotRollBack::Real) }
    }

    /// Takes the promotion of this host back: it is the standby of the history that it had left, with the image that it
    /// was promoted at. The peer may go on once this is durable.
    pub fn roll_back(&mut self) -> Result<Position, CannotRollBack> {
        let position = self.may_roll_back()?;
        let surplus = (self.rolled_back.len() + 1).saturating_sub(MAX_ROLLED_BACK);
        self.rolled_back.drain(..surplus);
        self.rolled_back.push(self.generation());
        self.lineage.unfork();
        self.role = Role::Standby;
        self.pending = false;
        // What was read of the bitmaps is gone with the generation that it was read for.
        if self.lost == LostBlocks::Bitmaps {
            self.lost = LostBlocks::All;
        }
        self.compare_all = false;
        Ok(position)
    }

    /// The peer is the standby of this host's history, and has rolled back these generations. If the one which had replaced
    /// this host's is among them, this host is the primary again. Whether it is.
    ///
    /// A peer that is the standby and does not know of that promotion has lost its state: it proves nothing.
    pub fn replacement_rolled_back(&mut self, rolled_back: &[Generation]) -> bool {
        let by = self.replaced_by.map(|(by, _)| by).filter(|by| *by != Generation::NONE);
        if self.role != Role::Fenced || !by.is_some_and(|by| rolled_back.contains(&by)) {
            return false;
        }
        self.role = Role::Primary;
        self.replaced_by = None;
        true
    }

    /// In a split brain the history of this host, which was replaced, is the one that stays: it is a primary again,
    /// with `generation` (random, new) behind all that it has. The peer, whose history left the same generation
    /// elsewhere, can neither stream to this host nor be streamed to until it has given way.
    ///
    /// The bitmaps stay what they are: they have what the peer lacks of this history, and the peer tells the rest.
    /// That the peer had a checkpoint stays too, so that nothing is served here before the peer has agreed.
    pub fn keep_own(&mut self, generation: Generation) -> Result<(), CannotKeep> {
        if self.role != Role::Fenced {
            return Err(CannotKeep::NotFenced);
        }
        if !self.alone {
            return Err(CannotKeep::NoSplitBrain);
        }
        if self.bitmaps_of == self.generation() {
            self.bitmaps_of = generation;
        }
        self.lineage.fork(generation, self.reserved);
        self.role = Role::Primary;
        self.pending = false;
        self.replaced_by = None;
        self.handing_over = None;
        self.noted = Sequence(0);
        self.mark = 0;
        Ok(())
    }

    /// Whether this host, a primary, can give way to its peer in a split brain: only where the peer was told to
    /// keep its own history, so that there is one to follow.
    pub fn may_give_way(&self, peer: &Standing) -> bool {
        let own = self.standing(self.reserved);
        let forked = matches!(relate(&own, peer), Relation::BothForked { .. });
        self.role == Role::Primary && peer.role == Role::Primary && forked
    }

    /// A primary, or one that was, becomes the standby: the blocks of its bitmaps, or all if those cannot be believed, come
    /// from the peer, and the image here stays until they have come.
    ///
    /// What this host had lost is not remembered beside them: by then it has to be in the bitmaps, or there is none any more.
    ///
    /// Where the peer's history left this one's before its newest generation began, that generation is given up
    /// with the image: the line ends in the generation that both have.
    pub fn become_standby(&mut self) {
        if let Some((_, left_at)) = self.replaced_by {
            // Sequences go up along a line, so the first that was left there or later is common to both.
            let common = self.lineage.past().iter().find(|(_, at)| *at >= left_at);
            if let Some((generation, _)) = common {
                self.lineage = self.lineage.up_to(*generation);
            }
        }
        self.role = Role::Standby;
        self.pending = false;
        self.lost = if self.compare_all { LostBlocks::All } else { LostBlocks::Bitmaps };
        self.keeps_image = true;
        self.base = None;
        self.mark = 0;
        self.noted = Sequence(0);
        self.peer_has_checkpoint = false;
        self.compare_all = false;
        self.alone = false;
        self.handing_over = None;
        self.replaced_by = None;
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Vec::with_capacity(256);
        put_u32(&mut w, VERSION);
        w.push(match self.role {
            Role::Primary => 1,
            Role::Standby => 2,
            Role::Fenced => 3,
        });
        put_u64(&mut w, self.generation().0);
        put_u32(&mut w, self.lineage.past().len() as u32);
        for (generation, left_at) in self.lineage.past() {
            put_u64(&mut w, generation.0);
            put_u64(&mut w, left_at.0);
        }
        w.push(self.replaced_by.is_some().into());
        let (generation, left_at) = self.replaced_by.unwrap_or_default();
        put_u64(&mut w, generation.0);
        put_u64(&mut w, left_at.0);
        w.push(self.alone.into());
        w.push(self.handing_over.is_some().into());
        put_u64(&mut w, self.handing_over.unwrap_or_default().0);
        w.push(self.keeps_image.into());
        put_u64(&mut w, self.bitmaps_of.0);
        w.extend_from_slice(&self.boot_id);
        put_u64(&mut w, self.incarnation.0);
        put_u64(&mut w, self.reserved.0);
        put_u64(&mut w, self.session.0);
        put_u64(&mut w, self.previous_session.0);
        put_u64(&mut w, self.noted.0);
        put_u64(&mut w, self.mark);
        w.push(self.peer_has_checkpoint.into());
        w.push(self.compare_all.into());
        w.push(self.base.is_some().into());
        let base = self.base.unwrap_or(BasePoint { position: Position::default(), lsn: Lsn(0) });
        put_u64(&mut w, base.position.generation.0);
        put_u64(&mut w, base.position.sequence.0);
        put_u64(&mut w, base.lsn.0);
        match &self.lost {
            LostBlocks::None => put_u32(&mut w, 0),
            LostBlocks::All => put_u32(&mut w, u32::MAX),
            LostBlocks::Bitmaps => put_u32(&mut w, u32::MAX - 1),
            LostBlocks::Ranges(ranges) => {
                put_u32(&mut w, ranges.len() as u32);
                for r in ranges {
                    put_u32(&mut w, r.volume.0);
                    put_u64(&mut w, r.first);
                    put_u64(&mut w, r.count);
                }
            }
        }
        put_u32(&mut w, self.volumes.len() as u32);
        for v in &self.volumes {
            put_u64(&mut w, v.size_bytes);
            put_bytes(&mut w, v.name.as_bytes());
            put_bytes(&mut w, &v.identity);
        }
        w.push(self.pending.into());
        put_u32(&mut w, self.rolled_back.len() as u32);
        for generation in &self.rolled_back {
            put_u64(&mut w, generation.0);
        }
        put_u64(&mut w, self.parted.0);
        w
    }

    /// Reads the stored form; every length is checked before it is used.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut r = Reader(bytes);
        let version = r.u32()?;
        if !(VERSION_1..=VERSION).contains(&version) {
            return Err(StateError::Version(version));
        }
        let role = match r.u8()? {
            1 => Role::Primary,
            2 => Role::Standby,
            3 => Role::Fenced,
            _ => return Err(StateError::Field("role")),
        };
        let generation = Generation(r.u64()?);
        let mut past = Vec::new();
        let mut replaced_by = None;
        let (mut alone, mut handing_over, mut keeps_image) = (false, None, false);
        let mut bitmaps_of = if role == Role::Standby { Generation::NONE } else { generation };
        if version == VERSION_1 {
            let has_parent = r.bool("parent")?;
            let parent = r.position()?;
            past.extend(has_parent.then_some((parent.generation, parent.sequence)));
        } else {
            let count = r.u32()? as usize;
            if count > MAX_GENERATIONS {
                return Err(StateError::Field("count of generations"));
            }
            for _ in 0..count {
                past.push((Generation(r.u64()?), Sequence(r.u64()?)));
            }
            let replaced = r.bool("replacement flag")?;
            let by = (Generation(r.u64()?), Sequence(r.u64()?));
            replaced_by = replaced.then_some(by);
            alone = r.bool("alone flag")?;
            let hands_over = r.bool("handover flag")?;
            let at = Sequence(r.u64()?);
            handing_over = hands_over.then_some(at);
            keeps_image = r.bool("kept image flag")?;
            bitmaps_of = Generation(r.u64()?);
        }
        let mut boot_id = [0; 16];
        boot_id.copy_from_slice(r.take(16)?);
        let incarnation = Incarnation(r.u64()?);
        let reserved = Sequence(r.u64()?);
        let session = SessionId(r.u64()?);
        let previous_session = SessionId(r.u64()?);
        let noted = Sequence(r.u64()?);
        let mark = r.u64()?;
        let peer_has_checkpoint = r.bool("peer checkpoint flag")?;
        let compare_all = r.bool("compare flag")?;
        let has_base = r.bool("base flag")?;
        let base = BasePoint { position: r.position()?, lsn: Lsn(r.u64()?) };
        let lost = match r.u32()? {
            0 => LostBlocks::None,
            u32::MAX => LostBlocks::All,
            n if n == u32::MAX - 1 && version != VERSION_1 => LostBlocks::Bitmaps,
            n if n as usize <= MAX_LOST_RANGES => {
                let mut ranges = Vec::with_capacity(n as usize);
                for _ in 0..n {
                    let volume = VolumeIndex(r.u32()?);
                    ranges.push(BlockRange { volume, first: r.u64()?, count: r.u64()? });
                }
                LostBlocks::Ranges(ranges)
            }
            _ => return Err(StateError::Field("count of lost ranges")),
        };
        let count = r.u32()? as usize;
        if count > MAX_VOLUMES {
            return Err(StateError::Field("count of volumes"));
        }
        let mut volumes = Vec::with_capacity(count);
        for _ in 0..count {
            let size_bytes = r.u64()?;
            let name =
                String::from_utf8(r.bytes()?.to_vec()).map_err(|_| StateError::Field("volume name"))?;
            volumes.push(VolumeState { name, size_bytes, identity: r.bytes()?.to_vec() });
        }
        let (mut pending, mut rolled_back, mut parted) = (false, Vec::new(), Time(0));
        if version > VERSION_2 {
            pending = r.bool("pending flag")?;
            let count = r.u32()? as usize;
            if count > MAX_ROLLED_BACK {
                return Err(StateError::Field("count of rolled back generations"));
            }
            for _ in 0..count {
                rolled_back.push(Generation(r.u64()?));
            }
            parted = Time(r.u64()?);
        }
        if !r.0.is_empty() {
            return Err(StateError::Length);
        }
        Ok(Self {
            role,
            lineage: Lineage::from_parts(past, generation),
            replaced_by,
            alone,
            handing_over,
            keeps_image,
            boot_id,
            bitmaps_of,
            incarnation,
            reserved,
            session,
            previous_session,
            noted,
            mark,
            peer_has_checkpoint,
            compare_all,
            base: has_base.then_some(base),
            lost,
            volumes,
            pending,
            rolled_back,
            parted,
        })
    }
}

fn put_u32(w: &mut Vec<u8>, v: u32) {
    w.extend_from_slice(&v.to_le_bytes());
}

fn put_u64(w: &mut Vec<u8>, v: u64) {
    w.extend_from_slice(&v.to_le_bytes());
}

fn put_bytes(w: &mut Vec<u8>, v: &[u8]) {
    let len = v.len().min(MAX_IDENTITY_BYTES);
    put_u32(w, len as u32);
    w.extend_from_slice(&v[..len]);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], StateError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(StateError::Length)?;
        self.0 = tail;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8, StateError> {
        Ok(self.take(1)?[0])
    }

    fn bool(&mut self, field: &'static str) -> Result<bool, StateError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StateError::Field(field)),
        }
    }

    fn u32(&mut self) -> Result<u32, StateError> {
        let mut b = [0; 4];
        b.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(b))
    }

    fn u64(&mut self) -> Result<u64, StateError> {
        let mut b = [0; 8];
        b.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(b))
    }

    fn position(&mut self) -> Result<Position, StateError> {
        Ok(Position { generation: Generation(self.u64()?), sequence: Sequence(self.u64()?) })
    }

    fn bytes(&mut self) -> Result<&'a [u8], StateError> {
        let n = self.u32()? as usize;
        if n > MAX_IDENTITY_BYTES {
            return Err(StateError::Field("length"));
        }
        self.take(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineage::{Verdict, decide};

    fn sample() -> GroupState {
        let volume = VolumeState { name: "pgdata".into(), size_bytes: 1 << 30, identity: vec![1, 2, 3] };
        let mut s = GroupState::new(Role::Standby, vec![volume]);
        s.lineage = Lineage::new(Generation(1));
        s.lineage.fork(Generation(3), Sequence(2));
        s.replaced_by = Some((Generation(8), Sequence(9)));
        s.rolled_back = vec![Generation(2), Generation(5)];
        s.pending = true;
        s.parted = Time(77);
        s.alone = true;
        s.base = Some(BasePoint { position: Position::new(Generation(3), Sequence(4)), lsn: Lsn(5) });
        s.lost.add([BlockRange { volume: VolumeIndex(0), first: 6, count: 7 }]);
        s
    }

    #[test]
    fn survives_the_disk() {
        assert_eq!(GroupState::decode(&sample().encode()).unwrap(), sample());
    }

    /// An old primary of generation 3 with writes up to 50, some of them alone, and its peer, promoted at 40.
    fn split_brain() -> (GroupState, GroupState) {
        let mut old = GroupState::new(Role::Primary, Vec::new());
        old.lineage = Lineage::new(Generation(3));
        old.bitmaps_of = Generation(3);
        old.reserved = Sequence(50);
        old.peer_has_checkpoint = true;
        let mut promoted = old.clone();
        promoted.lineage.fork(Generation(9), Sequence(40));
        promoted.bitmaps_of = Generation(9);
        promoted.reserved = Sequence(60);
        promoted.peer_has_checkpoint = false;
        old.alone = true;
        old.replaced(Some(promoted.lineage.replaces(&old.lineage)));
        assert_eq!((old.role, old.replaced_by), (Role::Fenced, Some((Generation(9), Sequence(40)))));
        (old, promoted)
    }

    fn standing(state: &GroupState, sequence: u64) -> Standing {
        state.standing(Sequence(sequence))
    }

    #[test]
    fn a_split_brain_ends_with_the_old_primary_when_its_peer_gives_way() {
        let (mut old, mut promoted) = split_brain();
        // There would be nobody to follow.
        assert!(!promoted.may_give_way(&standing(&old, 50)));
        old.keep_own(Generation(5)).unwrap();
        assert_eq!(old.role, Role::Primary);
        assert_eq!(old.parent(), Some(Position::new(Generation(3), Sequence(50))));
        assert_eq!((old.bitmaps_of, old.replaced_by), (Generation(5), None));
        assert!(old.peer_has_checkpoint && old.alone, "the peer is asked before anything is served");
        // Neither takes from the other.
        assert_eq!(decide(&standing(&old, 51), &standing(&promoted, 60)), Verdict::SplitBrain);
        assert_eq!(decide(&standing(&promoted, 60), &standing(&old, 51)), Verdict::SplitBrain);
        let copy = Standing { role: Role::Standby, ..standing(&promoted, 60) };
        assert_eq!(decide(&standing(&old, 51), &copy), Verdict::ReinstateTarget);

        assert!(promoted.may_give_way(&standing(&old, 51)));
        promoted.replaced(Some(old.lineage.replaces(&promoted.lineage)));
        assert_eq!(
            (promoted.role, promoted.replaced_by),
            (Role::Fenced, Some((Generation(5), Sequence(40))))
        );
        // What is saved is of its own history, and the bitmaps are.
        assert_eq!((promoted.generation(), promoted.bitmaps_of), (Generation(9), Generation(9)));
        assert_eq!(decide(&standing(&old, 51), &standing(&promoted, 60)), Verdict::SplitBrain);
        promoted.become_standby();
        assert_eq!(promoted.lost, LostBlocks::Bitmaps);
        assert_eq!(promoted.lineage, Lineage::new(Generation(3)));
        assert_eq!(decide(&standing(&old, 51), &standing(&promoted, 0)), Verdict::Stream);
    }

    #[test]
    fn a_handover_under_way_is_no_reason_to_follow_without_saving() {
        let (mut old, mut promoted) = split_brain();
        old.keep_own(Generation(5)).unwrap();
        promoted.handing_over = Some(Sequence(60));
        promoted.replaced(Some(old.lineage.replaces(&promoted.lineage)));
        assert_eq!((promoted.role, promoted.handing_over), (Role::Fenced, None));
    }

    #[test]
    fn a_split_brain_ends_with_the_promoted_host_as_before() {
        let (mut old, promoted) = split_brain();
        old.become_standby();
        assert_eq!(old.lineage, Lineage::new(Generation(3)));
        assert_eq!(decide(&standing(&promoted, 60), &standing(&old, 0)), Verdict::Stream);
    }

    #[test]
    fn only_a_fenced_host_in_a_split_brain_keeps_its_own() {
        let (fenced, promoted) = split_brain();
        for role in [Role::Primary, Role::Standby] {
            let mut state = GroupState { role, ..fenced.clone() };
            assert_eq!(state.keep_own(Generation(5)), Err(CannotKeep::NotFenced));
            assert_eq!(state, GroupState { role, ..fenced.clone() });
        }
        let mut state = GroupState { alone: false, ..fenced.clone() };
        assert_eq!(state.keep_own(Generation(5)), Err(CannotKeep::NoSplitBrain));
        // A standby or a fenced host has nothing to stop serving; nor does one give way to what it does not know.
        let mut kept = fenced.clone();
        kept.keep_own(Generation(5)).unwrap();
        for role in [Role::Standby, Role::Fenced] {
            assert!(!GroupState { role, ..promoted.clone() }.may_give_way(&standing(&kept, 51)));
        }
        let stranger = Standing { lineage: Lineage::new(Generation(77)), ..standing(&kept, 51) };
        assert!(!promoted.may_give_way(&stranger));
    }

    #[test]
    fn bitmaps_of_another_time_stay_out_of_a_kept_history() {
        let (mut old, _) = split_brain();
        old.bitmaps_of = Generation(1);
        old.keep_own(Generation(5)).unwrap();
        assert_eq!(old.bitmaps_of, Generation(1));
    }

    /// An old primary of generation 3 that was replaced at 40 by a promotion after which nothing was written.
    fn pending() -> (GroupState, GroupState) {
        let (mut old, mut promoted) = split_brain();
        old.alone = false;
        promoted.pending = true;
        promoted.base = Some(BasePoint { position: Position::new(Generation(3), Sequence(40)), lsn: Lsn(7) });
        (old, promoted)
    }

    #[test]
    fn after_a_rollback_both_are_what_they_were() {
        let (mut old, mut promoted) = pending();
        assert_eq!(decide(&standing(&old, 50), &standing(&promoted, 60)), Verdict::SourceReplaced);
        assert_eq!(promoted.roll_back(), Ok(Position::new(Generation(3), Sequence(40))));
        assert_eq!((promoted.role, promoted.pending), (Role::Standby, false));
        assert!(old.replacement_rolled_back(&promoted.rolled_back));
        assert_eq!((old.role, old.replaced_by), (Role::Primary, None));
        assert_eq!(decide(&standing(&old, 50), &standing(&promoted, 40)), Verdict::Stream);
        assert_eq!(promoted.roll_back(), Err(CannotRollBack::NotPromoted));
    }

    #[test]
    fn what_is_real_is_not_rolled_back() {
        let (_, mut promoted) = pending();
        promoted.pending = false;
        assert_eq!(promoted.roll_back(), Err(CannotRollBack::Real));
        let mut first = GroupState::new(Role::Primary, Vec::new());
        first.lineage = Lineage::new(Generation(3));
        assert_eq!(first.roll_back(), Err(CannotRollBack::NotPromoted));
        // Bitmaps that were to be read are gone.
        let (_, mut promoted) = pending();
        promoted.lost = LostBlocks::Bitmaps;
        promoted.roll_back().unwrap();
        assert_eq!(promoted.lost, LostBlocks::All);
    }

    #[test]
    fn a_fence_is_lifted_only_by_the_rollback_of_what_replaced_this_host() {
        let (old, mut promoted) = pending();
        for others in [vec![], vec![Generation(8)], vec![Generation::NONE]] {
            let mut fenced = old.clone();
            assert!(!fenced.replacement_rolled_back(&others));
            assert_eq!(fenced, old);
        }
        let mut unknown = GroupState { replaced_by: None, ..old.clone() };
        assert!(!unknown.replacement_rolled_back(&[Generation::NONE]));
        // It was down while more promotions were rolled back; not too many of them.
        promoted.roll_back().unwrap();
        for n in 1..=MAX_ROLLED_BACK as u64 {
            assert!(old.clone().replacement_rolled_back(&promoted.rolled_back), "{n}");
            promoted.role = Role::Primary;
            promoted.pending = true;
            promoted.lineage.fork(Generation(100 + n), Sequence(40));
            promoted.roll_back().unwrap();
        }
        assert!(!old.clone().replacement_rolled_back(&promoted.rolled_back));
        assert_eq!(GroupState::decode(&promoted.encode()).unwrap(), promoted);
    }

    #[test]
    fn no_cut_or_flip_panics() {
        let good = sample().encode();
        for n in 0..good.len() {
            assert!(GroupState::decode(&good[..n]).is_err());
            let mut bad = good.clone();
            bad[n] ^= 0xff;
            let _ = GroupState::decode(&bad);
        }
    }

    #[test]
    fn neighbours_are_one_lost_range() {
        let block = |first| BlockRange { volume: VolumeIndex(0), first, count: 1 };
        let mut lost = LostBlocks::None;
        // Out of order, and each of them twice.
        (0..2 * MAX_LOST_RANGES as u64).rev().for_each(|first| lost.add([block(first), block(first)]));
        lost.add([BlockRange { volume: VolumeIndex(1), first: 4000, count: 2 }]);
        let all = BlockRange { count: 2 * MAX_LOST_RANGES as u64, ..block(0) };
        let other = BlockRange { volume: VolumeIndex(1), first: 4000, count: 2 };
        assert_eq!(lost, LostBlocks::Ranges(vec![all, other]));
    }

    #[test]
    fn too_many_lost_ranges_are_all_blocks() {
        let mut lost = LostBlocks::None;
        lost.add((0..MAX_LOST_RANGES as u64 + 1).map(|i| BlockRange {
            volume: VolumeIndex(0),
            first: i * 2,
            count: 1,
        }));
        assert_eq!(lost, LostBlocks::All);
    }
}
