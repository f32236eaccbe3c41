//! What makes a volume the same one tomorrow: names of devices and paths of files are handed out anew, these are not.
//!
//! Owns reading them from sysfs and comparing them. Where an identity is stored, and who may accept another one, is
//! the caller's business.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::time::UNIX_EPOCH;

/// Whether a volume is an image file or a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// A regular file.
    Image,
    /// A block device.
    Device,
}

/// Where a stable id comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdSource {
    /// The device mapper's uuid (LVM, crypt, multipath).
    DmUuid,
    /// The uuid of a software RAID array.
    MdUuid,
    /// The world-wide id of a disk; for a partition with its number.
    Wwid,
    /// The serial number of a disk; for a partition with its number.
    Serial,
    /// The uuid in the partition table.
    PartitionUuid,
    /// The file behind a loop device; for a partition with its number.
    LoopFile,
    /// The device mapper's name, of a device that was made without a uuid.
    DmName,
    /// The kernel's name of a device that has none of the above. It says little after a restart of the host.
    KernelName,
    /// Inode number and birth time of a file.
    Inode,
}

/// The id of a volume that stays with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StableId {
    /// Where it comes from.
    pub source: IdSource,
    /// What it says; one line.
    pub value: String,
}

/// What a volume was when it was last opened. Its text form, from `to_string`, is made to be stored and parsed again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeIdentity {
    /// Image or device.
    pub kind: VolumeKind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Which one.
    pub id: StableId,
}

/// How a volume compares with what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Same,
    /// The same volume, larger than before.
    Grown,
    /// Another one; what differs.
    Different(String),
}

/// All stable ids of a device, the most telling first; at least one. `sysfs` is the device's directory there.
pub(crate) fn device_ids(sysfs: &Path) -> Vec<StableId> {
    let partition = read(sysfs, "partition");
    // A partition has its own uuid; the rest belongs to the disk, one directory up.
    let disk = if partition.is_some() { sysfs.parent().unwrap_or(sysfs) } else { sysfs };
    let of_disk = |source, files: &[&str]| {
        let value = files.iter().find_map(|file| read(disk, file))?;
        let value = match &partition {
            Some(number) => format!("{value} partition {number}"),
            None => value,
        };
        Some(StableId { source, value })
    };
    let partition_uuid = || {
        let uevent = fs::read_to_string(sysfs.join("uevent")).ok()?;
        let value = uevent.lines().find_map(|line| line.strip_prefix("PARTUUID="))?;
        Some(StableId { source: IdSource::PartitionUuid, value: one_line(value)? })
    };
    let name = sysfs.file_name().unwrap_or_default().to_string_lossy();
    [
        of_disk(IdSource::DmUuid, &["dm/uuid"]),
        of_disk(IdSource::MdUuid, &["md/uuid"]),
        of_disk(IdSource::Wwid, &["wwid", "device/wwid"]),
        of_disk(IdSource::Serial, &["serial", "device/cid"]),
        partition_uuid(),
        of_disk(IdSource::LoopFile, &["loop/backing_file"]),
        of_disk(IdSource::DmName, &["dm/name"]),
        Some(StableId { source: IdSource::KernelName, value: name.into_owned() }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The id of an image file. Not the file system's id: where that changes at all it changes with the number of the
/// device, at any restart of the host, and inode and birth time (in nanoseconds) tell files apart without it.
pub(crate) fn image_id(metadata: &fs::Metadata) -> StableId {
    use std::os::unix::fs::MetadataExt;
    let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let value = match born {
        Some(born) => format!("{} born {}.{:09}", metadata.ino(), born.as_secs(), born.subsec_nanos()),
        None => metadata.ino().to_string(),
    };
    StableId { source: IdSource::Inode, value }
}

impl VolumeIdentity {
    /// Compares with a volume that is of `kind`, `size_bytes` long, and has `ids`. The ids are compared by the source
    /// that was stored: a newer kernel may know a better one of the same device.
    pub(crate) fn compare(&self, kind: VolumeKind, size_bytes: u64, ids: &[StableId]) -> Comparison {
        let different = |what: String| Comparison::Different(what);
        if kind != self.kind {
            return different(format!("it was {} and is {}", self.kind, kind));
        }
        match ids.iter().find(|id| id.source == self.id.source) {
            None => return different(format!("it had a {} and has none now", self.id.source)),
            Some(id) if id.value != self.id.value => {
                return different(format!("its {} was {:?} and is {:?}", id.source, self.id.value, id.value));
            }
            Some(_) => {}
        }
        match size_bytes {
            size if size < self.size_bytes => {
                different(format!("it had {} bytes and has {size}", self.size_bytes))
            }
            size if size > self.size_bytes => Comparison::Grown,
            _ => Comparison::Same,
        }
    }
}

const KINDS: [(VolumeKind, &str); 2] = [(VolumeKind::Image, "image"), (VolumeKind::Device, "device")];
const SOURCES: [(IdSource, &str); 9] = [
    (IdSource::DmUuid, "dm-uuid"),
    (IdSource::MdUuid, "md-uuid"),
    (IdSource::Wwid, "wwid"),
    (IdSource::Serial, "serial"),
    (IdSource::PartitionUuid, "partition-uuid"),
    (IdSource::LoopFile, "loop-file"),
    (IdSource::DmName, "dm-name"),
    (IdSource::KernelName, "kernel-name"),
    (IdSource::Inode, "inode"),
];

fn name_of<T: PartialEq>(names: &[(T, &'static str)], of: &T) -> &'static str {
    names.iter().find(|(item, _)| item == of).map_or("unknown", |(_, name)| name)
}

impl fmt::Display for VolumeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&KINDS, self))
    }
}

impl fmt::Display for IdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&SOURCES, self))
    }
}

impl fmt::Display for VolumeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.kind, self.size_bytes, self.id.source, self.id.value)
    }
}

/// A text that is no volume identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a volume identity")]
pub struct ParseIdentityError(String);

impl FromStr for VolumeIdentity {
    type Err = ParseIdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.splitn(4, ' ');
            let (kind, size_bytes, source) = (parts.next()?, parts.next()?, parts.next()?);
            Some(Self {
                kind: KINDS.iter().find(|(_, name)| *name == kind)?.0,
                size_bytes: size_bytes.parse().ok()?,
                id: StableId {
                    source: SOURCES.iter().find(|(_, name)| *name == source)?.0,
                    value: parts.next().filter(|value| !value.is_empty())?.to_owned(),
                },
            })
        };
        parse().ok_or_else(|| ParseIdentityError(text.to_owned()))
    }
}

fn read(dir: &Path, file: &str) -> Option<String> {
    one_line(&fs::read_to_string(dir.join(file)).ok()?)
}

/// The text without what surrounds it; `None` when nothing is left.
fn one_line(text: &str) -> Option<String> {
    let text = text.trim_matches(|c: char| c.is_whitespace() || c.is_control());
    (!text.is_empty()).then(|| text.replace(char::is_control, "?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn first(files: &[(&str, &str)], device: &str) -> (IdSource, String) {
        let dir = sysfs(files);
        fs::create_dir_all(dir.path().join(device)).unwrap();
        let id = device_ids(&dir.path().join(device)).remove(0);
        (id.source, id.value)
    }

    #[test]
    fn the_most_telling_id_comes_first() {
        let lvm = [("dm-3/dm/uuid", "LVM-abc\n"), ("dm-3/dm/name", "vg0-pgdata\n")];
        assert_eq!(first(&lvm, "dm-3"), (IdSource::DmUuid, "LVM-abc".into()));
        let bare = [("dm-3/dm/uuid", "\n"), ("dm-3/dm/name", "scratch\n")];
        assert_eq!(first(&bare, "dm-3"), (IdSource::DmName, "scratch".into()));
        let nvme = [("nvme0n1/wwid", "eui.0025\n"), ("nvme0n1/serial", "S1\n")];
        assert_eq!(first(&nvme, "nvme0n1"), (IdSource::Wwid, "eui.0025".into()));
        let scsi = [("sda/device/wwid", "t10.ATA   disk   \0")];
        assert_eq!(first(&scsi, "sda"), (IdSource::Wwid, "t10.ATA   disk".into()));
        assert_eq!(first(&[("vda/serial", "v-1")], "vda"), (IdSource::Serial, "v-1".into()));
        assert_eq!(first(&[("md0/md/uuid", "u\n")], "md0"), (IdSource::MdUuid, "u".into()));
        assert_eq!(
            first(&[("loop1/loop/backing_file", "/a b\n")], "loop1"),
            (IdSource::LoopFile, "/a b".into())
        );
        assert_eq!(first(&[], "vdb"), (IdSource::KernelName, "vdb".into()));
    }

    #[test]
    fn a_partition_goes_by_its_disk_and_number_then_by_its_uuid() {
        let disk = [("sda/device/wwid", "naa.1\n"), ("sda/sda2/partition", "2\n")];
        assert_eq!(first(&disk, "sda/sda2"), (IdSource::Wwid, "naa.1 partition 2".into()));
        let bare = [("vda/vda2/partition", "2\n"), ("vda/vda2/uevent", "MAJOR=8\nPARTUUID=1234-02\n")];
        assert_eq!(first(&bare, "vda/vda2"), (IdSource::PartitionUuid, "1234-02".into()));
    }

    fn identity(size_bytes: u64, source: IdSource, value: &str) -> VolumeIdentity {
        VolumeIdentity {
            kind: VolumeKind::Device,
            size_bytes,
            id: StableId { source, value: value.to_owned() },
        }
    }

    #[test]
    fn text_form_and_back() {
        for identity in [
            identity(1 << 40, IdSource::LoopFile, "/srv/my images/a.img (deleted)"),
            identity(512, IdSource::DmUuid, "LVM-x"),
        ] {
            assert_eq!(identity.to_string().parse(), Ok(identity));
        }
        for text in ["", "device", "device 5 wwid", "device 5 wwid ", "disk 5 wwid x", "device -1 wwid x"] {
            assert!(text.parse::<VolumeIdentity>().is_err(), "{text}");
        }
        assert!(SOURCES.iter().all(|(source, name)| source.to_string() == *name));
    }

    #[test]
    fn comparison_goes_by_the_stored_source() {
        let known = identity(1000, IdSource::Serial, "s");
        let ids = [
            StableId { source: IdSource::Wwid, value: "new".into() },
            StableId { source: IdSource::Serial, value: "s".into() },
        ];
        assert_eq!(known.compare(VolumeKind::Device, 1000, &ids), Comparison::Same);
        assert_eq!(known.compare(VolumeKind::Device, 2000, &ids), Comparison::Grown);
        for (kind, size, ids) in [
            (VolumeKind::Image, 1000, &ids[..]),
            (VolumeKind::Device, 999, &ids[..]),
            (VolumeKind::Device, 1000, &ids[..1]),
            (VolumeKind::Device, 1000, &[StableId { source: IdSource::Serial, value: "t".into() }]),
        ] {
            assert!(matches!(known.compare(kind, size, ids), Comparison::Different(_)));
        }
    }
}
