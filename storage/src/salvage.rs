//! What a host had that the other one lacks, saved before a reinstatement overwrites it (docs/formats.md, "Salvage").
//!
//! A file of sealed copies: a head that says what this is, pieces of volumes, and an end that says how many they are.
//! It gets its name once all of it is on stable storage.

use std::io;
use std::sync::Arc;

use afterimage_protocol::*;

use crate::group::VolumeFile;
use crate::io::{Dir, File, Open};
use crate::sealed::{self, Found, HEADER_BYTES, Kind};

/// Bytes of one piece at most.
const PIECE_BYTES: u64 = MAX_PAYLOAD_BYTES;
const PIECE_HEAD_BYTES: usize = 20;
const MAX_NAME_BYTES: usize = 255;
const KIND: Kind = Kind { magic: *b"AISV", version: 1, max_payload: PIECE_BYTES as usize + PIECE_HEAD_BYTES };
/// What the name of a salvage file ends in.
pub const SUFFIX: &str = ".salvage";
/// What follows on that until all of the file is on stable storage.
pub const UNFINISHED_SUFFIX: &str = ".unfinished";

/// What a salvage file is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// When it was made.
    pub time: Time,
    /// The history that the data is of.
    pub generation: Generation,
    /// The generation that took its place.
    pub replaced_by: Generation,
    /// Where that one left it: the data was written after this sequence, or may have been.
    pub left_at: Sequence,
    /// Names and sizes of the volumes, in the order of their indices.
    pub volumes: Vec<(String, u64)>,
}

/// Bytes of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where they were.
    pub range: ByteRange,
    /// What they were; `None` for zeroes.
    pub data: Option<Vec<u8>>,
}

/// Why a salvage file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// The disk said no.
    #[error("cannot {action} the salvage file {name:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        name: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A volume cannot be read.
    #[error("cannot read {length} bytes at {offset} of volume {volume} to save them", volume = range.volume, offset = range.offset, length = range.length)]
    Volume {
        /// Where.
        range: ByteRange,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what a salvage file holds.
    #[error("the salvage file {name:?} is damaged or cut short after {pieces} pieces")]
    Damaged {
        /// The file.
        name: String,
        /// Pieces that were whole.
        pieces: u64,
    },
    /// Written by a version that this program does not know.
    #[error("the salvage file {name:?} has version {found}; this program knows version {known}", known = KIND.version)]
    Version {
        /// The file.
        name: String,
        /// Its version.
        found: u32,
    },
}

/// What was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The file's name in its directory; `None` when there was nothing to save.
    pub name: Option<String>,
    /// Count of pieces.
    pub pieces: u64,
    /// Bytes of the volumes that they cover.
    pub bytes: u64,
}

/// The salvage files in `dir`, the oldest first.
pub fn list(dir: &dyn Dir) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = dir.list()?.into_iter().filter(|n| n.ends_with(SUFFIX)).collect();
    names.sort();
    Ok(names)
}

/// Saves what `volumes` hold in `blocks` to a new file in `dir`. All of it and its name are on stable storage on return;
/// without blocks no file is made.
pub fn save(
    dir: &dyn Dir,
    head: &Head,
    volumes: &[VolumeFile],
    blocks: impl Iterator<Item = BlockRange>,
) -> Result<Saved, SalvageError> {
    let name = format!("{:016x}-{}{SUFFIX}", head.time.0, head.generation);
    let unfinished = format!("{name}{UNFINISHED_SUFFIX}");
    let io = |action| {
        let name = name.clone();
        move |source| SalvageError::Io { action, name, source }
    };
    let mut saved = Saved::default();
    let mut file: Option<(Arc<dyn File>, u64)> = None;
    for range in blocks {
        let size = head.volumes.get(range.volume.0 as usize).map_or(0, |(_, size)| *size);
        let bytes = range.bytes(size);
        let Some(volume) = volumes.get(range.volume.0 as usize) else { continue };
        if file.is_none() {
            if dir.exists(&unfinished).map_err(io("look for"))? {
                dir.remove(&unfinished).map_err(io("replace"))?;
            }
            let new = dir.open(&unfinished, Open::New).map_err(io("make"))?;
            let sealed = KIND.seal(0, &head.encode());
            new.write_at(&sealed, 0).map_err(io("write"))?;
            file = Some((new, sealed.len() as u64));
        }
        let Some((file, at)) = &mut file else { continue };
        let mut offset = bytes.offset;
        while offset < bytes.end() {
            let length = PIECE_BYTES.min(bytes.end() - offset);
            let range = ByteRange::new(bytes.volume, offset, length);
            let mut data = vec![0; length as usize];
            volume.read_at(&mut data, offset).map_err(|source| SalvageError::Volume { range, source })?;
            let data = data.iter().any(|b| *b != 0).then_some(data);
            saved.pieces += 1;
            saved.bytes += length;
            let sealed = KIND.seal(saved.pieces, &Piece { range, data }.encode());
            file.write_at(&sealed, *at).map_err(io("write"))?;
            *at += sealed.len() as u64;
            offset += length;
        }
    }
    if let Some((file, at)) = file {
        file.write_at(&KIND.seal(u64::MAX, &saved.pieces.to_le_bytes()), at).map_err(io("write"))?;
        file.sync().map_err(io("sync"))?;
        dir.rename(&unfinished, &name).and_then(|()| dir.sync()).map_err(io("name"))?;
        saved.name = Some(name);
    }
    Ok(saved)
}

/// An open salvage file: its head, then its pieces in order.
pub struct Salvage {
    /// What it is about.
    pub head: Head,
    name: String,
    file: Arc<dyn File>,
    at: u64,
    pieces: u64,
    over: bool,
}

impl Salvage {
    /// Opens the file `name` in `dir`.
    pub fn open(dir: &dyn Dir, name: &str) -> Result<Self, SalvageError> {
        let opened = dir.open(name, Open::Existing);
        let file =
            opened.map_err(|source| SalvageError::Io { action: "open", name: name.to_owned(), source })?;
        Self::read_from(file, name)
    }

    /// Reads an open file; `name` is for messages.
    pub fn read_from(file: Arc<dyn File>, name: &str) -> Result<Self, SalvageError> {
        let damaged = || SalvageError::Damaged { name: name.to_owned(), pieces: 0 };
        let payload = match sealed::read(&KIND, &*file, 0) {
            Found::Valid { number: 0, payload } => payload,
            Found::Version(found) => return Err(SalvageError::Version { name: name.to_owned(), found }),
            _ => return Err(damaged()),
        };
        let head = Head::decode(&payload).ok_or_else(damaged)?;
        let at = (HEADER_BYTES + payload.len()) as u64;
        Ok(Self { head, name: name.to_owned(), file, at, pieces: 0, over: false })
    }

    /// Pieces that were read so far, and were whole.
    pub fn pieces(&self) -> u64 {
        self.pieces
    }

    fn read(&mut self) -> Result<Option<Piece>, SalvageError> {
        let damaged = || SalvageError::Damaged { name: self.name.clone(), pieces: self.pieces };
        let Found::Valid { number, payload } = sealed::read(&KIND, &*self.file, self.at) else {
            return Err(damaged());
        };
        self.at += (HEADER_BYTES + payload.len()) as u64;
        if number == u64::MAX {
            return if payload == self.pieces.to_le_bytes() { Ok(None) } else { Err(damaged()) };
        }
        let piece =
            Piece::decode(&payload).filter(|piece| number == self.pieces + 1 && self.head.holds(piece.range));
        let piece = piece.ok_or_else(damaged)?;
        self.pieces += 1;
        Ok(Some(piece))
    }
}

impl Iterator for Salvage {
    type Item = Result<Piece, SalvageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let piece = self.read().transpose();
        self.over = !matches!(piece, Some(Ok(_)));
        piece
    }
}

impl Head {
    /// Whether a range is one of its volumes'.
    fn holds(&self, range: ByteRange) -> bool {
        let size = self.volumes.get(range.volume.0 as usize).map(|(_, size)| *size);
        range.length > 0 && size.is_some_and(|size| range.end() <= size)
    }

    fn encode(&self) -> Vec<u8> {
        let numbers = [self.time.0, self.generation.0, self.replaced_by.0, self.left_at.0];
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        for (name, size) in &self.volumes {
            let name = &name.as_bytes()[..name.len().min(MAX_NAME_BYTES)];
            bytes.push(name.len() as u8);
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(&size.to_le_bytes());
        }
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut number = || take_u64(&mut bytes);
        let (time, generation) = (Time(number()?), Generation(number()?));
        let (replaced_by, left_at) = (Generation(number()?), Sequence(number()?));
        let mut volumes = Vec::new();
        while let Some((length, rest)) = bytes.split_first() {
            let (name, rest) = rest.split_at_checked(usize::from(*length))?;
            bytes = rest;
            volumes.push((String::from_utf8(name.to_vec()).ok()?, take_u64(&mut bytes)?));
        }
        Some(Self { time, generation, replaced_by, left_at, volumes })
    }
}

impl Piece {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.range.volume.0.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.range.offset.to_le_bytes());
        bytes.extend_from_slice(&self.range.length.to_le_bytes());
        bytes.extend_from_slice(self.data.as_deref().unwrap_or_default());
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let (volume, rest) = bytes.split_first_chunk::<4>()?;
        bytes = rest;
        let (offset, length) = (take_u64(&mut bytes)?, take_u64(&mut bytes)?);
        offset.checked_add(length)?;
        let range = ByteRange::new(VolumeIndex(u32::from_le_bytes(*volume)), offset, length);
        let whole = bytes.is_empty() || bytes.len() as u64 == length;
        whole.then(|| Self { range, data: (!bytes.is_empty()).then(|| bytes.to_vec()) })
    }
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_first_chunk::<8>()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDir;

    fn head() -> Head {
        Head {
            time: Time(5),
            generation: Generation(6),
            replaced_by: Generation(7),
            left_at: Sequence(8),
            volumes: vec![("a".into(), 3 << 20), ("b".into(), 4608)],
        }
    }

    /// Two volumes of a few blocks, the second with a short last one.
    fn volumes(dir: &RealDir) -> Vec<VolumeFile> {
        let make = |name: &str, size: u64| {
            let file = dir.open(name, Open::New).unwrap();
            file.set_len(size).unwrap();
            file
        };
        let volumes = vec![make("a", 3 << 20), make("b", 4608)];
        volumes[0].write_at(&[1; 4096], 4096).unwrap();
        volumes[0].write_at(&[2; 1 << 20], 2 << 20).unwrap();
        volumes[1].write_at(&[3; 512], 4096).unwrap();
        volumes
    }

    fn blocks(volume: u32, first: u64, count: u64) -> BlockRange {
        BlockRange { volume: VolumeIndex(volume), first, count }
    }

    fn saved(dir: &RealDir) -> Saved {
        let ranges = [blocks(0, 0, 1), blocks(0, 1, 1), blocks(0, 400, 368), blocks(1, 1, 1)];
        save(dir, &head(), &volumes(dir), ranges.into_iter()).unwrap()
    }

    #[test]
    fn what_was_saved_comes_back() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RealDir::open(temp.path()).unwrap();
        let saved = saved(&dir);
        assert_eq!((saved.pieces, saved.bytes), (5, (2 + 368) * 4096 + 512));
        let name = saved.name.unwrap();
        assert_eq!(list(&dir).unwrap(), std::slice::from_ref(&name));
        let salvage = Salvage::open(&dir, &name).unwrap();
        assert_eq!(salvage.head, head());
        let volumes = ["a", "b"].map(|name| dir.open(name, Open::Existing).unwrap());
        let mut bytes = 0;
        for piece in salvage {
            let piece = piece.unwrap();
            let mut there = vec![0; piece.range.length as usize];
            volumes[piece.range.volume.0 as usize].read_at(&mut there, piece.range.offset).unwrap();
            assert_eq!(piece.data.unwrap_or_else(|| vec![0; there.len()]), there);
            bytes += piece.range.length;
        }
        assert_eq!(bytes, saved.bytes);
    }

    #[test]
    fn nothing_to_save_makes_no_file() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RealDir::open(temp.path()).unwrap();
        let volumes = volumes(&dir);
        assert_eq!(save(&dir, &head(), &volumes, std::iter::empty()).unwrap(), Saved::default());
        assert!(list(&dir).unwrap().is_empty());
    }

    #[test]
    fn a_piece_outside_of_its_volume_is_damage() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RealDir::open(temp.path()).unwrap();
        for (volume, offset, length) in [(1, 4608, 1), (1, 0, 4609), (2, 0, 1), (0, 0, 0), (0, u64::MAX, 1)] {
            let range = ByteRange::new(VolumeIndex(volume), offset, length);
            let mut bytes = KIND.seal(0, &head().encode());
            bytes.extend(KIND.seal(1, &Piece { range, data: None }.encode()));
            std::fs::write(temp.path().join("made.salvage"), bytes).unwrap();
            let mut salvage = Salvage::open(&dir, "made.salvage").unwrap();
            assert!(
                matches!(salvage.next(), Some(Err(SalvageError::Damaged { pieces: 0, .. }))),
                "{range:?}"
            );
            assert!(salvage.next().is_none());
        }
    }

    #[test]
    fn a_cut_or_changed_file_says_so() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RealDir::open(temp.path()).unwrap();
        let name = saved(&dir).name.unwrap();
        let path = temp.path().join(&name);
        let whole = std::fs::read(&path).unwrap();
        let fails = || match Salvage::open(&dir, &name) {
            Ok(mut salvage) => salvage.any(|piece| piece.is_err()),
            Err(_) => true,
        };
        assert!(!fails());
        for cut in [0, 10, 60, 5000, whole.len() - 1, whole.len() - 41] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(fails(), "cut at {cut}");
        }
        for flip in (0..whole.len()).step_by(997) {
            let mut bad = whole.clone();
            bad[flip] ^= 4;
            std::fs::write(&path, bad).unwrap();
            assert!(fails(), "flipped at {flip}");
        }
    }
}
