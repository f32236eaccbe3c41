//! The bodies of the fuzz targets: one for each decoder that sees bytes of a peer, a client, an operator or a disk.
//!
//! A target takes any bytes and says whether they were accepted. It fails by a panic: where the decoder panics, or where
//! what it accepted does not have the property that is checked here (what was decoded encodes to the same, what was
//! opened opens again with the same content).
//!
//! A checksum stops a fuzzer at the door. So targets with one run twice: on the bytes as they are, which decides
//! whether they were accepted, and with the checksums put right (`mend`).
//!
//! `tests/fuzz` runs them under libFuzzer; `tests/tests/corpus.rs` replays the committed corpora in an ordinary test.

mod disk;
mod host;
mod mend;
mod parts;
mod wire;

pub use parts::Parts;

/// Takes any bytes; says whether they were accepted. Panics where a defect was found.
pub type Target = fn(&[u8]) -> bool;

/// Every target, by the name of its corpus in `tests/fuzz/corpus`.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame", wire::frame),
    ("chunk", wire::chunk),
    ("source_message", wire::source_message),
    ("target_message", wire::target_message),
    ("nbd_handshake", wire::nbd_handshake),
    ("nbd_request", wire::nbd_request),
    ("group_state", disk::group_state),
    ("superblock", disk::superblock),
    ("hot_log", disk::hot_log),
    ("bitmap", disk::bitmap),
    ("journal", disk::journal),
    ("config", host::config),
    ("admin_request", host::admin_request),
    ("admin_response", host::admin_response),
    ("pairing_token", host::pairing_token),
    ("pins", host::pins),
    ("identity", host::identity),
];

/// Runs the target called `name`.
///
/// # Panics
/// When there is none of that name, and where a defect was found.
pub fn run(name: &str, bytes: &[u8]) -> bool {
    let (_, target) = TARGETS.iter().find(|(n, _)| *n == name).expect("a target of that name");
    target(bytes)
}
