//! Whom the uplink trusts, and how it shows who it is: rustls with ring, the system's certificates or a file of its own.

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which certificates are trusted, and the client's own, if any.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// PEM file of certificate authorities; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Certificate chain and key, PEM, for mutual TLS.
    pub client: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{path}: {why}")]
    File { path: PathBuf, why: String },
    #[error("no trusted certificates on this system; install ca-certificates or name a file with `ca`")]
    NoRoots,
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

impl Trust {
    pub fn config(&self) -> Result<Arc<ClientConfig>, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?);
        let config = match &self.client {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(certificates(chain)?, private_key(key)?)?,
        };
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, TrustError> {
        let mut roots = RootCertStore::empty();
        let certificates = match &self.ca {
            Some(path) => certificates(path)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        // A single certificate that rustls does not understand must not take the others away.
        roots.add_parsable_certificates(certificates);
        if roots.is_empty() { Err(TrustError::NoRoots) } else { Ok(roots) }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let file = |why: String| TrustError::File { path: path.to_owned(), why };
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates = read.map_err(|error| file(error.to_string()))?;
    if certificates.is_empty() { Err(file("it holds no PEM certificate".into())) } else { Ok(certificates) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TrustError> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| TrustError::File { path: path.to_owned(), why: error.to_string() })
}
