//! How clients reach the volumes.

use std::net::SocketAddr;
use std::path::Path;

use afterimage_contract::config::Volume;

use super::Subject;
use super::names::Names;
use super::page::{Page, tick, word_path};

/// Lines for each volume on this host.
pub(super) fn clients(page: &mut Page, subject: &Subject, names: &Names) {
    page.section(&format!("How clients attach on {}", names.node));
    page.text(&format!(
        "Volumes are served where the group's primary is, and nowhere else. These lines hold on {} while it is the \
         primary; those of {} are in its own runbook. One client at a time may mount a file system.",
        names.node, subject.config.peer.name
    ));
    for volume in &subject.group.volumes {
        let mut lines = Vec::new();
        if let Some(socket) = &volume.export.nbd {
            lines.extend(over_socket(volume, socket));
        }
        if let Some(address) = volume.export.tcp {
            lines.extend(over_tcp(volume, address));
        }
        page.text(&format!("{}:", tick(&volume.name)));
        if lines.is_empty() {
            page.text("It has no NBD export in the configuration, so nothing can use it.");
        } else {
            page.code(&lines);
        }
    }
}

fn over_socket(volume: &Volume, socket: &Path) -> Vec<String> {
    let uri = format!("nbd+unix:///{}?socket={}", volume.name, escaped(&socket.display().to_string()));
    let kernel = format!("nbd-client -unix {} {} -N {}", word_path(socket), device(volume), volume.name);
    with_uri(volume, &uri, kernel)
}

fn over_tcp(volume: &Volume, address: SocketAddr) -> Vec<String> {
    let uri = format!("nbd://{address}/{}", volume.name);
    let (ip, port) = (address.ip(), address.port());
    with_uri(volume, &uri, format!("nbd-client {ip} {port} {} -N {}", device(volume), volume.name))
}

fn with_uri(volume: &Volume, uri: &str, kernel: String) -> Vec<String> {
    // A URI holds characters that a shell takes for its own.
    vec![
        "# libnbd: whether it is served, and how large it is".to_owned(),
        format!("nbdinfo '{uri}'"),
        "# the kernel's client, and its end".to_owned(),
        kernel,
        format!("nbd-client -d {}", device(volume)),
        "# QEMU".to_owned(),
        format!("qemu-img info '{uri}'"),
        format!("qemu-system-x86_64 -drive 'file={uri},format=raw,if=virtio'"),
    ]
}

fn device(volume: &Volume) -> String {
    volume.export.attach.as_deref().map_or_else(|| "/dev/nbdN".to_owned(), word_path)
}

/// What may stand in a URI (RFC 3986, section 2.3, and the slash).
fn escaped(path: &str) -> String {
    let byte = |b: u8| {
        if b.is_ascii_alphanumeric() || b"-._~/".contains(&b) {
            char::from(b).to_string()
        } else {
            format!("%{b:02X}")
        }
    };
    path.bytes().map(byte).collect()
}
