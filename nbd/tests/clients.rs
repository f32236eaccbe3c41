//! Real clients against a real socket: what others wrote decides whether the protocol was understood.

mod support;

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{Arc, atomic::Ordering},
};

use afterimage_nbd::{ExportInfo, Limits, Server, TcpEndpoint};
use support::*;

/// Runs a program to its end and gives its output; fails if it is missing or fails.
fn run(program: &str, package: &str, args: &[&str]) -> String {
    let output = match Command::new(program).args(args).output() {
        Ok(output) => output,
        Err(error) => panic!("cannot run {program} ({error}): install {package}"),
    };
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{program} {args:?} failed: {text}");
    text
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 4096 * 7 + at) as u8).collect()
}

fn write_file(directory: &Path, bytes: &[u8]) -> String {
    let path = directory.join("data");
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    let fixture = Fixture::with(vec![info("first"), info("second")], Limits::default());
    let text = run("nbdinfo", "libnbd-bin", &["--list", &fixture.uri()]);
    assert!(text.contains("export=\"first\"") && text.contains("export=\"second\""), "{text}");
    let text = run("nbdinfo", "libnbd-bin", &[&fixture.uri()]);
    for line in [
        "using structured packets",
        "base:allocation",
        "afterimage:dirty",
        "can_cache: true",
        "can_df: true",
        "can_fast_zero: true",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "is_read_only: false",
        "block_size_minimum: 1\n",
        "block_size_preferred: 4096\n",
        "block_size_maximum: 33554432\n",
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
}

#[test]
fn nbdinfo_reads_both_maps() {
    let fixture = Fixture::new();
    run(
        "qemu-io",
        "qemu-utils",
        &["-f", "raw", "-c", "write -P 1 64k 8k", "-c", "write -z 1M 4k", &fixture.uri()],
    );
    let map = |argument: &str| -> Vec<Vec<String>> {
        let text = run("nbdinfo", "libnbd-bin", &[argument, &fixture.uri()]);
        text.lines().map(|line| line.split_whitespace().take(3).map(str::to_owned).collect()).collect()
    };
    assert_eq!(map("--map"), [["0", "65536", "3"], ["65536", "8192", "0"], ["73728", "8314880", "3"]]);
    let dirty = [
        ["0", "65536", "0"],
        ["65536", "8192", "1"],
        ["73728", "974848", "0"],
        ["1048576", "4096", "1"],
        ["1052672", "7335936", "0"],
    ];
    assert_eq!(map("--map=afterimage:dirty"), dirty);
}

#[test]
fn qemu_io_uses_every_command() {
    let fixture = Fixture::new();
    let commands = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 4k 4k",
        "write -P 0x33 1000 77",
        "write -z 64k 64k",
        "write -z -u 128k 64k",
        "discard 256k 64k",
        "aio_write -P 0x44 2M 1M",
        "aio_write -P 0x55 3M 1M",
        "aio_flush",
        "flush",
        "read -P 0x22 4k 4k",
        "read -P 0x33 1000 77",
        "read -P 0 64k 128k",
        "read -P 0 256k 64k",
        "read -P 0x44 2M 1M",
        "read -P 0x55 3M 1M",
        "map",
    ];
    let mut args = vec!["-f", "raw"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let uri = fixture.uri();
    args.push(&uri);
    let text = run("qemu-io", "qemu-utils", &args);
    assert!(!text.contains("failed"), "{text}");
    assert!(fixture.export.flushes.load(Ordering::SeqCst) > 0);
    assert!(fixture.export.fuas.load(Ordering::SeqCst) > 0);
}

#[test]
fn qemu_img_keeps_to_a_minimum_block_of_512() {
    let exports = vec![ExportInfo { min_block: 512, max_block: 1 << 20, ..info("disk") }];
    let fixture = Fixture::with(exports, Limits::default());
    let data = pattern(SIZE as usize);
    let file = write_file(fixture.directory.path(), &data);
    let uri = fixture.uri();
    run(
        "qemu-img",
        "qemu-utils",
        &["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "16", &file, &uri],
    );
    assert!(fixture.export.contents() == data);
    run("qemu-img", "qemu-utils", &["compare", "-f", "raw", "-F", "raw", &file, &uri]);
    let text = run(
        "qemu-io",
        "qemu-utils",
        &["-f", "raw", "-c", "write -P 9 100 77", "-c", "read -P 9 100 77", &uri],
    );
    assert!(!text.contains("failed"), "{text}");
}

#[test]
fn nbdcopy_there_and_back_over_tcp_with_many_connections() {
    let fixture = Fixture::new();
    let export = Arc::new(Memory::new(info("tcp")));
    let server = Arc::new(Server::new(vec![Arc::clone(&export)], Limits::default()));
    let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let endpoint = {
        let _context = fixture.runtime.enter();
        TcpEndpoint::bind(loopback, false).unwrap()
    };
    let uri = format!("nbd://{}/tcp", endpoint.local_addr().unwrap());
    fixture.runtime.spawn(server.serve_tcp_on(endpoint, fixture.stop.subscribe()));
    let mut data = pattern(SIZE as usize);
    data[1 << 20..3 << 20].fill(0);
    let file = write_file(fixture.directory.path(), &data);
    run("nbdcopy", "libnbd-bin", &["--connections=4", "--requests=64", "--flush", &file, &uri]);
    assert!(export.contents() == data);
    let back = fixture.directory.path().join("back");
    run("nbdcopy", "libnbd-bin", &["--connections=4", &uri, back.to_str().unwrap()]);
    assert!(std::fs::read(back).unwrap() == data);
}

#[test]
fn libnbd_drives_asynchronous_requests_and_contexts() {
    let fixture = Fixture::new();
    let script = r#"
import errno, sys
try:
    import nbd
except ImportError:
    sys.exit("the module nbd is missing: install python3-libnbd")
h = nbd.NBD()
h.set_request_block_size(True)
h.add_meta_context("base:allocation")
h.add_meta_context("afterimage:dirty")
h.connect_uri(sys.argv[1])
assert h.can_meta_context("afterimage:dirty") and h.can_multi_conn() and h.can_fast_zero()
size = h.get_size()
done = 0
def finish(error):
    global done
    assert error.value == 0, error.value
    done += 1
    return 1
for i in range(1500):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i % 251]) * 4096), i * 4096, completion=finish)
while done < 1500:
    h.poll(-1)
for i in range(0, 1500, 7):
    chunks = []
    take = lambda data, offset, status, error: chunks.append((bytes(data), offset))
    h.pread_structured(4096, i * 4096, take, nbd.CMD_FLAG_DF)
    assert chunks == [(bytes([i % 251]) * 4096, i * 4096)]
seen = {}
def extents(context, offset, entries, error):
    seen[context] = entries
h.block_status(size, 0, extents)
assert seen["afterimage:dirty"] == [1500 * 4096, 1, size - 1500 * 4096, 0], seen
h.zero(8192, 0, nbd.CMD_FLAG_FUA)
h.zero(8192, 0, nbd.CMD_FLAG_FAST_ZERO)
h.cache(65536, 0)
h.trim(4096, 4096, nbd.CMD_FLAG_FUA)
h.flush()
def refused(code, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == code, error
        return
    raise AssertionError("was not refused")
h.set_strict_mode(0)
refused(errno.EOPNOTSUPP, lambda: h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE))
refused(errno.EINVAL, lambda: h.pread(512, size))
refused(errno.ENOSPC, lambda: h.pwrite(bytearray(512), size))
refused(errno.ENOSPC, lambda: h.trim(512, size))
refused(errno.EINVAL, lambda: h.flush(0x8000))
assert h.pread(10, size - 10) == bytes(10)
h.shutdown()
"#;
    run("/usr/bin/python3", "python3 and python3-libnbd", &["-c", script, &fixture.uri()]);
    assert_eq!(fixture.export.caches.load(Ordering::SeqCst), 1);
    assert_eq!(fixture.export.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn fio_verifies_what_it_wrote_at_depth_32() {
    let fixture = Fixture::new();
    let uri = format!("--uri={}", fixture.uri());
    let args = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bssplit=512/20:4k/60:64k/15:128k/5",
        "--iodepth=32",
        "--size=8m",
        "--fsync=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--randseed=7",
    ];
    // fio keeps its verification state in the working directory.
    let mut fio = Command::new("fio");
    let output = fio.args(args).current_dir(fixture.directory.path()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run fio ({error}): install fio"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fixture.export.flushes.load(Ordering::SeqCst) > 0);
}
