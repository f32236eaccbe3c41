//! What a host knows of a group across restarts: the payload of the superblock.
//!
//! Owns the fields and their encoding (explicit, little-endian; docs/formats.md, "group state"). The slots, checksums
//! and fsyncs around it belong to storage; when a field may change belongs to the state machines.

use serde::{Deserialize, Serialize};

use crate::ids::*;
use crate::lineage::{Lineage, MAX_GENERATIONS};

const VERSION: u32 = 2;
/// Without a lineage but for the parent, and without what a reinstatement needs.
const VERSION_1: u32 = 1;
/// Most ranges of lost blocks that are kept one by one; beyond it all blocks count as lost. Keeps the state within a
/// superblock slot.
pub const MAX_LOST_RANGES: usize = 2000;
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

    /// Joins `ranges` to what is lost already.
    pub fn add(&mut self, ranges: impl IntoIterator<Item = BlockRange>) {
        let mut all = match std::mem::replace(self, LostBlocks::All) {
            // The bitmaps are only read while they count as lost.
            LostBlocks::All | LostBlocks::Bitmaps => return,
            LostBlocks::None => Vec::new(),
            LostBlocks::Ranges(r) => r,
        };
        all.extend(ranges);
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
    /// Source: the peer has had a checkpoint once, so a first sync is over.
    pub peer_has_checkpoint: bool,
    /// Source: every block counts as dirty and contents are compared rather than sent.
    pub compare_all: bool,
    /// Target: the checkpoint of the base; `None` before the first sync is over.
    pub base: Option<BasePoint>,
    /// Target: blocks to be handed to the source at the next handshake.
    pub lost: LostBlocks,
    /// Names and identities of the volumes, in the order of their indices.
    pub volumes: Vec<VolumeState>,
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
        let left_at = by.map(|(_, left_at)| left_at);
        let Some(at) = self.handing_over.take().filter(|at| left_at == Some(*at)) else {
            self.role = Role::Fenced;
            self.replaced_by = by;
            return;
        };
        let known = !self.compare_all;
        self.become_standby();
        if known {
            // Nothing was admitted since, and all of it is on stable storage.
            self.base = Some(BasePoint { position: Position::new(self.generation(), at), lsn: Lsn(0) });
        }
    }

    /// A primary, or one that was, becomes the standby: the blocks of its bitmaps, or all if those cannot be believed, come
    /// from the peer, and the image here stays until they have come.
    pub fn become_standby(&mut self) {
        self.role = Role::Standby;
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
        w
    }

    /// Reads the stored form; every length is checked before it is used.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut r = Reader(bytes);
        let version = r.u32()?;
        if version != VERSION && version != VERSION_1 {
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

    fn sample() -> GroupState {
        let volume = VolumeState { name: "pgdata".into(), size_bytes: 1 << 30, identity: vec![1, 2, 3] };
        let mut s = GroupState::new(Role::Standby, vec![volume]);
        s.lineage = Lineage::new(Generation(1));
        s.lineage.fork(Generation(3), Sequence(2));
        s.replaced_by = Some((Generation(8), Sequence(9)));
        s.alone = true;
        s.base = Some(BasePoint { position: Position::new(Generation(3), Sequence(4)), lsn: Lsn(5) });
        s.lost.add([BlockRange { volume: VolumeIndex(0), first: 6, count: 7 }]);
        s
    }

    #[test]
    fn survives_the_disk() {
        assert_eq!(GroupState::decode(&sample().encode()).unwrap(), sample());
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
