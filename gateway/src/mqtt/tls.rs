//! TLS 1.2 and 1.3 by rustls: the listener's configuration, and the identity a verified client certificate carries.

use super::config::TlsConfig;
use crate::problem::Problem;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{0} is not set; a TLS listener needs a certificate and its key, each in a PEM file")]
    Missing(&'static str),
    #[error("{path}: {source}")]
    Pem { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("{0}: holds no certificate")]
    Empty(PathBuf),
    #[error("{path}: {says}")]
    Unusable { path: PathBuf, says: String },
}

/// What a start would stumble over, each at its key.
pub fn check(config: &TlsConfig) -> Vec<Problem> {
    let missing = [("cert", &config.cert), ("key", &config.key)].into_iter().filter(|(_, file)| file.is_none());
    let missing: Vec<_> = missing.map(|(key, _)| TlsError::Missing(key)).collect();
    let errors = if missing.is_empty() { server_config(config).err().into_iter().collect() } else { missing };
    let problem = |error: TlsError| Problem::new(format!("mqtt.tls.{}", error.key(config)), error.to_string());
    errors.into_iter().map(problem).collect()
}

impl TlsError {
    /// The key whose file it is about.
    fn key(&self, config: &TlsConfig) -> &'static str {
        let path = match self {
            TlsError::Missing(key) => return key,
            TlsError::Pem { path, .. } | TlsError::Empty(path) | TlsError::Unusable { path, .. } => path,
        };
        let files = [("cert", &config.cert), ("key", &config.key), ("client_ca", &config.client_ca)];
        files.into_iter().find(|(_, file)| file.as_ref() == Some(path)).map_or("listen", |(key, _)| key)
    }
}

/// The server side of a TLS listener.
pub fn server_config(config: &TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let cert = config.cert.as_deref().ok_or(TlsError::Missing("cert"))?;
    let key = config.key.as_deref().ok_or(TlsError::Missing("key"))?;
    let chain = certificates(cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Pem { path: key.to_owned(), source })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|says| unusable(cert, says))?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(path)? {
                roots.add(root).map_err(|says| unusable(path, says))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|says| unusable(path, says))?)
        }
    };
    let config = builder.with_single_cert(chain, private).map_err(|says| unusable(cert, says))?;
    Ok(Arc::new(config))
}

fn unusable(path: &Path, says: impl ToString) -> TlsError {
    TlsError::Unusable { path: path.to_owned(), says: says.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { path: path.to_owned(), source };
    let found: Vec<_> = CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if found.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(found) }
}

/// The subject's common name: the only one, and not empty. The chain has been verified by the handshake already.
pub fn identity(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    (names.next().is_none() && !name.is_empty() && !name.contains('\0')).then(|| name.to_owned())
}
