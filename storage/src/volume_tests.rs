//! Volumes in image files; block devices are tested in tests/devices.rs.

use super::*;

fn image(len: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pgdata.img");
    fs::File::create(&path).unwrap().set_len(len).unwrap();
    (dir, path)
}

fn resize(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn an_image_is_read_written_and_recognized() {
    let (_dir, path) = image(1 << 20);
    let volume = Volume::open(&path, None).unwrap();
    assert_eq!(volume.size_bytes(), 1 << 20);
    assert_eq!(volume.identity().kind, VolumeKind::Image);
    let file = volume.file();
    file.write_at(b"hello", 4096).unwrap();
    file.sync().unwrap();
    let mut buf = [0; 5];
    file.read_at(&mut buf, 4096).unwrap();
    assert_eq!(&buf, b"hello");
    file.zero(4096, 4096, true).unwrap();
    file.read_at(&mut buf, 4096).unwrap();
    assert_eq!(buf, [0; 5]);
    let identity = volume.identity().to_string().parse().unwrap();
    drop((volume, file));
    let volume = Volume::open(&path, Some(&identity)).unwrap();
    assert_eq!(volume.grown_from(), None);
    assert_eq!(*volume.identity(), identity);
}

#[test]
fn a_second_opener_is_refused_while_the_bytes_are_in_use() {
    let (_dir, path) = image(1 << 20);
    let file = Volume::open(&path, None).unwrap().file();
    let error = Volume::open(&path, None).unwrap_err();
    assert!(matches!(error, VolumeError::InUse { .. }), "{error}");
    drop(file);
    Volume::open(&path, None).unwrap();
}

/// As the kernel has it while it writes.
fn kept_by_a_write(file: &dyn File) -> std::os::fd::OwnedFd {
    let direct = file.direct(std::ptr::without_provenance(4096), 0, 4096).expect("past the page cache");
    direct.try_clone_to_owned().unwrap()
}

#[test]
fn a_volume_stays_closed_while_writes_of_a_process_that_is_gone_are_under_way() {
    let (_dir, path) = image(1 << 20);
    for open in [Volume::open_direct, Volume::open_large_direct] {
        let mut volume = Volume::open(&path, None).unwrap();
        open(&mut volume);
        let kept = kept_by_a_write(&*volume.file());
        drop(volume);
        let error = Volume::open(&path, None).unwrap_err();
        assert!(matches!(error, VolumeError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("still under way"), "{error}");
        drop(kept);
        Volume::open(&path, None).unwrap();
    }
}

#[test]
fn another_file_behind_the_name_is_the_wrong_volume() {
    let (_dir, path) = image(1 << 20);
    let identity = Volume::open(&path, None).unwrap().identity().clone();
    let other = path.with_extension("copy");
    fs::copy(&path, &other).unwrap();
    fs::rename(&other, &path).unwrap();
    match Volume::open(&path, Some(&identity)).unwrap_err() {
        VolumeError::WrongVolume { expected, found, .. } => {
            assert_eq!(*expected, identity);
            assert_ne!(*found, identity);
        }
        other => panic!("{other}"),
    }
    // Accepted by not expecting anything.
    Volume::open(&path, None).unwrap();
}

#[test]
fn growing_is_told_from_shrinking() {
    let (_dir, path) = image(1 << 20);
    let identity = Volume::open(&path, None).unwrap().identity().clone();
    resize(&path, 2 << 20);
    let volume = Volume::open(&path, Some(&identity)).unwrap();
    assert_eq!((volume.size_bytes(), volume.grown_from()), (2 << 20, Some(1 << 20)));
    drop(volume);
    resize(&path, 1 << 19);
    let error = Volume::open(&path, Some(&identity)).unwrap_err();
    assert!(error.to_string().contains("1048576 bytes and has 524288"), "{error}");
}

#[test]
fn sizes_and_kinds_that_no_volume_has() {
    for len in [0, 511, 4097] {
        let (_dir, path) = image(len);
        assert!(matches!(Volume::open(&path, None), Err(VolumeError::Size { .. })));
    }
    let (_dir, path) = image(512 * 3);
    assert_eq!(Volume::open(&path, None).unwrap().size_bytes(), 1536);
    assert!(matches!(Volume::open("/dev/null", None), Err(VolumeError::Kind { .. })));
    assert!(matches!(Volume::open(path.parent().unwrap(), None), Err(VolumeError::Kind { .. })));
    assert!(matches!(Volume::open(path.with_extension("gone"), None), Err(VolumeError::Io { .. })));
}

#[test]
fn an_image_never_grows_by_a_write() {
    let (_dir, path) = image(8192);
    let file = Volume::open(&path, None).unwrap().file();
    for result in [
        file.write_at(&[1; 512], 8192),
        file.write_at(&[1; 512], 7936),
        file.write_at(&[1; 512], u64::MAX),
        file.write_vectored_at(&[&[1; 4096], &[1; 512]], 4096),
        file.zero(4096, 8192, true),
        file.zero(4096, u64::MAX, false),
        file.set_len(0),
        file.allocate(10_000),
    ] {
        assert!(result.is_err());
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 8192);
}
