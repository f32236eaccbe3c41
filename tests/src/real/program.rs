//! Where programs are: those of Debian, and the product's own.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Names a directory with the product's programs, instead of that of the running test.
pub const BIN_DIR_VARIABLE: &str = "AFTERIMAGE_BIN_DIR";

/// Programs that tests use, and the Debian package of each.
const PACKAGES: &[(&str, &str)] = &[
    ("blkdiscard", "util-linux"),
    ("cargo", "cargo"),
    ("chown", "coreutils"),
    ("debugfs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("fio", "fio"),
    ("fsfreeze", "util-linux"),
    ("fstrim", "util-linux"),
    ("fusermount3", "fuse3"),
    ("install", "coreutils"),
    ("ip", "iproute2"),
    ("losetup", "mount"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mount", "mount"),
    ("nbd-client", "nbd-client"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdfuse", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdkit", "nbdkit"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("ocf-tester", "resource-agents"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("qemu-storage-daemon", "qemu-system-common"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("runuser", "util-linux"),
    ("script", "bsdutils"),
    ("setpriv", "util-linux"),
    ("sqlite3", "sqlite3"),
    ("stty", "coreutils"),
    ("systemd-analyze", "systemd"),
    ("systemd-sysusers", "systemd"),
    ("systemd-tmpfiles", "systemd"),
    ("tc", "iproute2"),
    ("umount", "mount"),
    ("unshare", "util-linux"),
    ("xfs_repair", "xfsprogs"),
    ("xmllint", "libxml2-utils"),
];

/// The full path of an installed program; the error says which Debian package has it.
pub fn find_program(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // An ordinary user's PATH lacks the last two, which have half of what tests need.
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| runs(file));
    let Some(found) = found else {
        match PACKAGES.iter().find(|(program, _)| *program == name) {
            Some((_, package)) => bail!("{name} is not installed; install the Debian package {package}"),
            None => {
                bail!("{name} is not installed; find its Debian package with: apt-file search bin/{name}")
            }
        }
    };
    Ok(found)
}

/// The full path of one of the product's programs: in `AFTERIMAGE_BIN_DIR` if that is set, else in the target
/// directory that the running test was built in.
pub fn product_program(name: &str) -> Result<PathBuf> {
    let dir = match env::var_os(BIN_DIR_VARIABLE) {
        Some(dir) => PathBuf::from(dir),
        None => built_beside(&env::current_exe()?),
    };
    let file = dir.join(name);
    if !runs(&file) {
        bail!("{} does not exist; build it with: cargo build --workspace --bins", file.display());
    }
    Ok(file)
}

/// The directory that Cargo puts programs in, from that of a test.
fn built_beside(test: &Path) -> PathBuf {
    let dir = test.parent().unwrap_or(Path::new("."));
    let nested = dir.file_name().is_some_and(|name| name == "deps" || name == "examples");
    let dir = if nested { dir.parent().unwrap_or(dir) } else { dir };
    dir.to_owned()
}

fn runs(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_or_its_package_is_named() {
        assert!(find_program("sh").unwrap().is_absolute());
        let error = find_program("no-such-program").unwrap_err().to_string();
        assert!(error.contains("apt-file search bin/no-such-program"), "{error}");
        for (program, package) in PACKAGES {
            if let Err(error) = find_program(program) {
                let expected = format!("{program} is not installed; install the Debian package {package}");
                assert_eq!(error.to_string(), expected);
            }
        }
    }

    #[test]
    fn programs_are_beside_the_directory_of_the_tests() {
        assert_eq!(built_beside(Path::new("/t/debug/deps/x-1")), Path::new("/t/debug"));
        assert_eq!(built_beside(Path::new("/t/debug/x")), Path::new("/t/debug"));
    }
}
