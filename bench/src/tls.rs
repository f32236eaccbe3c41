//! Certificates for a mirror over NBD with TLS, in the shape that qemu's `tls-creds-x509` wants: one directory for each end.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

/// What the server is called, in its certificate and by the client.
pub const HOST_NAME: &str = "localhost";

/// The directories of the two ends.
pub struct Credentials {
    /// With the key and the certificate of the server.
    pub server: PathBuf,
    /// With the certificate of who signed that.
    pub client: PathBuf,
}

/// Makes keys and certificates in `dir`.
pub fn create(dir: &Path) -> Result<Credentials> {
    let authority_key = KeyPair::generate().context("make a key")?;
    let mut params = CertificateParams::new(Vec::new()).context("describe an authority")?;
    params.distinguished_name.push(DnType::CommonName, "bench");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&authority_key).context("sign an authority")?;

    let server_key = KeyPair::generate().context("make a key")?;
    let mut params = CertificateParams::new(vec![HOST_NAME.to_owned()]).context("describe a server")?;
    params.distinguished_name.push(DnType::CommonName, HOST_NAME);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    let server = params.signed_by(&server_key, &authority, &authority_key).context("sign a server")?;

    let credentials = Credentials { server: dir.join("tls-server"), client: dir.join("tls-client") };
    let write = |directory: &Path, name: &str, text: String| {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    for directory in [&credentials.server, &credentials.client] {
        write(directory, "ca-cert.pem", authority.pem())?;
    }
    write(&credentials.server, "server-cert.pem", server.pem())?;
    write(&credentials.server, "server-key.pem", server_key.serialize_pem())?;
    Ok(credentials)
}
