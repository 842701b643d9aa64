//! Which certificates are trusted, and which one is presented, where this process is the
//! TLS client: towards RabbitMQ and towards the server of a key set.
//!
//! Files are read with each call, so that renewed certificates need no restart.
//!
//! Imports nothing of this crate.

use std::path::{Path, PathBuf};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

/// What is wrong with a file. Names the file and never its content.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {0}: {1}")]
    Unreadable(PathBuf, pem::Error),
    #[error("{0} holds no certificate")]
    NoCertificate(PathBuf),
    #[error("{0} holds a certificate that is not valid: {1}")]
    Certificate(PathBuf, rustls::Error),
    #[error("the client certificate and its key do not fit: {0}")]
    ClientCertificate(rustls::Error),
}

/// A client's configuration that trusts the certificates in `ca_file`, or the public
/// authorities that are compiled in. `client` names the files of a certificate and its
/// key, which are presented to servers that ask for one.
pub fn client_config(
    ca_file: Option<&Path>,
    client: Option<(&Path, &Path)>,
) -> Result<ClientConfig, TlsError> {
    // An error means that the process has a provider already, which will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = ClientConfig::builder().with_root_certificates(roots(ca_file)?);
    let Some((certificate, key)) = client else {
        return Ok(builder.with_no_client_auth());
    };
    let unreadable = |error| TlsError::Unreadable(key.to_owned(), error);
    let private_key = PrivateKeyDer::from_pem_file(key).map_err(unreadable)?;
    builder
        .with_client_auth_cert(certificates(certificate)?, private_key)
        .map_err(TlsError::ClientCertificate)
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                let invalid = |error| TlsError::Certificate(path.to_owned(), error);
                roots.add(certificate).map_err(invalid)?;
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates =
        certificates.map_err(|error| TlsError::Unreadable(path.to_owned(), error))?;
    match certificates.is_empty() {
        true => Err(TlsError::NoCertificate(path.to_owned())),
        false => Ok(certificates),
    }
}
