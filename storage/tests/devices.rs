//! Volumes on block devices: loop devices, so these tests have to run as root.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use afterimage_storage::io::File;
use afterimage_storage::volume::{IdSource, Volume, VolumeError, VolumeKind};

const SIZE_BYTES: u64 = 16 << 20;

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {} (these tests need root and loop devices)",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

struct LoopDevice {
    temp: tempfile::TempDir,
    path: String,
}

impl LoopDevice {
    /// A device filled with 0xAA.
    fn new(sector_bytes: u32) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let image = temp.path().join("image");
        std::fs::write(&image, vec![0xAA; SIZE_BYTES as usize]).unwrap();
        let sector = format!("--sector-size={sector_bytes}");
        let path = run("losetup", &["--find", "--show", &sector, image.to_str().unwrap()]);
        Self { temp, path }
    }

    fn image(&self) -> PathBuf {
        self.temp.path().join("image")
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.path]).status();
        assert!(detached.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// The device holds 0xAA but for `ranges`, which hold their value.
fn assert_bytes(file: &dyn File, ranges: &[(Range<u64>, u8)]) {
    let mut expected = vec![0xAA; SIZE_BYTES as usize];
    for (range, value) in ranges {
        expected[range.start as usize..range.end as usize].fill(*value);
    }
    let mut bytes = vec![0; SIZE_BYTES as usize];
    file.read_at(&mut bytes, 0).unwrap();
    if bytes != expected {
        panic!("wrong at {:?}, with {ranges:?}", bytes.iter().zip(&expected).position(|(a, b)| a != b));
    }
}

#[test]
fn a_device_has_its_real_size_and_is_recognized() {
    let device = LoopDevice::new(512);
    let volume = Volume::open(&device.path, None).unwrap();
    assert_eq!(volume.size_bytes(), SIZE_BYTES);
    let identity = volume.identity().clone();
    assert_eq!((identity.kind, identity.id.source), (VolumeKind::Device, IdSource::LoopFile));
    assert_eq!(Path::new(&identity.id.value), device.image().canonicalize().unwrap());
    let file = volume.file();
    file.write_vectored_at(&[&[1; 512], &[2; 512]], 512).unwrap();
    file.sync().unwrap();
    assert_bytes(&*file, &[(512..1024, 1), (1024..1536, 2)]);
    assert_eq!(file.next_data(4096).unwrap(), Some((4096, SIZE_BYTES)), "a device cannot tell");
    assert_eq!(file.next_data(SIZE_BYTES).unwrap(), None);
    assert!(file.write_at(&[0; 512], SIZE_BYTES).is_err());
    assert!(file.allocate(SIZE_BYTES).is_ok() && file.allocate(SIZE_BYTES + 1).is_err());
    drop((volume, file));
    Volume::open(&device.path, Some(&identity)).unwrap();
    let other = LoopDevice::new(512);
    let error = Volume::open(&other.path, Some(&identity)).unwrap_err();
    assert!(matches!(error, VolumeError::WrongVolume { .. }), "{error}");
}

#[test]
fn zeroes_on_a_device_are_zeroes_whatever_their_alignment() {
    for sector_bytes in [512, 4096] {
        let device = LoopDevice::new(sector_bytes);
        let sector = u64::from(sector_bytes);
        let file = Volume::open(&device.path, None).unwrap().file();
        for punch in [false, true] {
            for (offset, len) in [(sector, sector), (sector, 3 << 20), (8 << 20, 4 << 20), (0, SIZE_BYTES)] {
                file.write_at(&vec![0xAA; SIZE_BYTES as usize], 0).unwrap();
                file.zero(offset, len, punch).unwrap();
                // Seen at once, also where the page cache held something else.
                assert_bytes(&*file, &[(offset..offset + len, 0)]);
                file.sync().unwrap();
            }
        }
        assert!(file.zero(SIZE_BYTES - sector, 2 * sector, true).is_err());
    }
}

#[test]
fn punching_gives_the_space_of_a_device_back() {
    use std::os::unix::fs::MetadataExt;
    let device = LoopDevice::new(512);
    let file = Volume::open(&device.path, None).unwrap().file();
    let space = || std::fs::metadata(device.image()).unwrap().blocks() * 512;
    file.zero(0, SIZE_BYTES / 2, false).unwrap();
    file.sync().unwrap();
    assert!(space() >= SIZE_BYTES);
    file.zero(0, SIZE_BYTES / 2, true).unwrap();
    file.sync().unwrap();
    assert!(space() <= SIZE_BYTES / 2 + (1 << 20), "{}", space());
}

#[test]
fn a_mounted_device_is_refused_by_the_place_of_its_mount() {
    let device = LoopDevice::new(512);
    let place = tempfile::tempdir().unwrap();
    run("mkfs.ext4", &["-q", "-F", &device.path]);
    run("mount", &[&device.path, place.path().to_str().unwrap()]);
    let error = Volume::open(&device.path, None);
    run("umount", &[place.path().to_str().unwrap()]);
    let error = error.unwrap_err();
    assert!(matches!(error, VolumeError::InUse { .. }));
    assert!(error.to_string().contains(place.path().to_str().unwrap()), "{error}");
    Volume::open(&device.path, None).unwrap();
}

#[test]
fn a_device_that_is_open_cannot_be_opened_again_or_mounted() {
    let device = LoopDevice::new(512);
    run("mkfs.ext4", &["-q", "-F", &device.path]);
    let _volume = Volume::open(&device.path, None).unwrap();
    let error = Volume::open(&device.path, None).unwrap_err();
    assert!(matches!(error, VolumeError::InUse { .. }), "{error}");
    let place = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").arg(&device.path).arg(place.path()).output().unwrap();
    assert!(!mounted.status.success());
}

#[test]
fn an_image_behind_a_loop_device_is_refused() {
    let device = LoopDevice::new(512);
    let error = Volume::open(device.image(), None).unwrap_err();
    assert!(error.to_string().contains(&device.path), "{error}");
}

#[test]
fn a_device_that_grew_is_reported_as_grown() {
    let device = LoopDevice::new(512);
    let identity = Volume::open(&device.path, None).unwrap().identity().clone();
    std::fs::OpenOptions::new().write(true).open(device.image()).unwrap().set_len(2 * SIZE_BYTES).unwrap();
    run("losetup", &["--set-capacity", &device.path]);
    let volume = Volume::open(&device.path, Some(&identity)).unwrap();
    assert_eq!((volume.size_bytes(), volume.grown_from()), (2 * SIZE_BYTES, Some(SIZE_BYTES)));
}
