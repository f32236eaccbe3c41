//! A process that changes a bitmap is killed again and again, at whatever instruction it has come to.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use afterimage_storage::bitmap::open_bitmap;
use afterimage_storage::disk::RealDir;

const BLOCKS: u64 = 64 * 64 * 64 * 2 + 77;
const NAME: &str = "pgdata.bitmap";
const DIR_VARIABLE: &str = "AFTERIMAGE_TEST_KILL_DIR";
const KILLS: u64 = 40;

#[test]
fn no_dirty_block_is_out_of_sight_after_a_kill() {
    if let Some(dir) = std::env::var_os(DIR_VARIABLE) {
        change_forever(&RealDir::open(dir).unwrap());
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = RealDir::open(temp.path()).unwrap();
    drop(open_bitmap(&dir, NAME, BLOCKS, true).unwrap());
    for kill in 0..KILLS {
        let ready = temp.path().join("ready");
        let _ = std::fs::remove_file(&ready);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(DIR_VARIABLE, temp.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while !ready.exists() {
            assert!(started.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(kill * 237));
        child.kill().unwrap();
        child.wait().unwrap();
        // Through the summary as the kill left it, then from the blocks themselves.
        let by_summary = open_bitmap(&dir, NAME, BLOCKS, true).unwrap().bitmap.dirty_blocks();
        let by_blocks = open_bitmap(&dir, NAME, BLOCKS, false).unwrap().bitmap.dirty_blocks();
        assert_eq!(by_summary, by_blocks);
    }
}

fn change_forever(dir: &RealDir) -> ! {
    let mut bitmap = open_bitmap(dir, NAME, BLOCKS, true).unwrap().bitmap;
    std::fs::write(dir.path().join("ready"), b"").unwrap();
    let mut at = u64::from(std::process::id()).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    loop {
        at = at.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        let (first, count) = ((at >> 20) % BLOCKS, 1 + (at >> 50) % 200);
        // Mostly empty, so that summary bits come and go at every level.
        bitmap.set(first, count);
        bitmap.clear(first, count);
        bitmap.set(first / 4096 * 4096, 1);
        bitmap.clear(first / 2, BLOCKS / 2);
    }
}
