//! What TLS is made of: certificates, a key and lists of revoked certificates, read from their files and checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use secrecy::{ExposeSecret, SecretString};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use super::config::{ClientCertificates, Config};

/// The settings of `[tls]`, or the files that they name, can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that can't be read.
    #[error("tls.{setting}: cannot read {}: {error}", path.display())]
    Unreadable {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file that holds nothing of what it should.
    #[error("tls.{setting}: {} holds no usable PEM: {error}", path.display())]
    Pem {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// A file whose PEM is fine, and what is in it is not.
    #[error("tls.{setting}: {} can't be used: {why}", path.display())]
    Content {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The private key.
    #[error("tls.key holds no usable PEM key: {0}")]
    Key(pem::Error),
    /// Key and certificate don't belong together.
    #[error("tls.certificate_file and tls.key don't fit together: {0}")]
    Pair(rustls::Error),
    /// The system has no randomness to give.
    #[error("session tickets can't be sealed: {0}")]
    Tickets(rustls::Error),
}

/// What was made of the files.
pub struct Material {
    /// How handshakes are made.
    pub server: Arc<ServerConfig>,
    /// What judges the certificates of clients, where they are asked for one.
    pub verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// When the gateway's certificate expires.
    pub not_after: ASN1Time,
    /// When the first of the lists of revoked certificates is out of date.
    pub next_update: Option<ASN1Time>,
}

impl Material {
    /// Reads all files anew; nothing where there is no TLS.
    pub fn read(config: &Config) -> Result<Option<Material>, TlsError> {
        let Some(path) = &config.certificate_file else { return Ok(None) };
        let source = Source { setting: "certificate_file", path };
        let chain: Vec<CertificateDer<'static>> = source.items()?;
        let not_after = source.parsed::<X509Certificate>(&chain[0])?.validity().not_after;
        let lists: Vec<CertificateRevocationListDer<'static>>;
        let mut next_update = None;
        match &config.crl_file {
            None => lists = Vec::new(),
            Some(path) => {
                let source = Source { setting: "crl_file", path };
                lists = source.items()?;
                for list in &lists {
                    let update = source.parsed::<CertificateRevocationList>(list)?.next_update();
                    next_update = [next_update, update].into_iter().flatten().min();
                }
            }
        }
        let verifier = verifier(config, lists)?;
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider can do TLS 1.2 and 1.3");
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_single_cert(chain, key(config)?).map_err(TlsError::Pair)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Nothing is kept of a session that may be resumed: its client keeps it.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        if verifier.is_none() {
            server.ticketer = Ticketer::new().map_err(TlsError::Tickets)?;
        } else {
            // Nobody looks at the certificate of a session that is resumed: it may have expired or been revoked since.
            server.send_tls13_tickets = 0;
        }
        Ok(Some(Material { server: Arc::new(server), verifier, not_after, next_update }))
    }
}

/// What judges the certificates of clients, where they are asked for one.
fn verifier(
    config: &Config,
    lists: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let may_be_absent = match config.client_certificates {
        ClientCertificates::None => return Ok(None),
        ClientCertificates::Optional => true,
        ClientCertificates::Required => false,
    };
    let path = config.client_ca_file.as_deref().expect("checked with the settings");
    let source = Source { setting: "client_ca_file", path };
    let mut roots = RootCertStore::empty();
    for certificate in source.items::<CertificateDer<'static>>()? {
        roots.add(certificate).map_err(|error| source.cannot_be_used(&error))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
        .with_crls(lists)
        .enforce_revocation_expiration();
    let builder = if may_be_absent { builder.allow_unauthenticated() } else { builder };
    builder.build().map(Some).map_err(|error| match (&error, &config.crl_file) {
        (VerifierBuilderError::InvalidCrl(_), Some(path)) => {
            Source { setting: "crl_file", path }.cannot_be_used(&error)
        }
        (_, _) => source.cannot_be_used(&error),
    })
}

/// The key, from its file as that is now, or else from the setting.
fn key(config: &Config) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = match &config.key_file {
        Some(path) => {
            let source = Source { setting: "key_file", path };
            Some(SecretString::from(std::fs::read_to_string(path).map_err(|error| source.unreadable(error))?))
        }
        None => config.key.clone(),
    };
    let text = text.expect("checked with the settings");
    PrivateKeyDer::from_pem_slice(text.expose_secret().as_bytes()).map_err(TlsError::Key)
}

/// A file, and the setting that names it.
struct Source<'a> {
    setting: &'static str,
    path: &'a Path,
}

impl Source<'_> {
    /// All items of this kind in the file; there is one at least.
    fn items<T: PemObject>(&self) -> Result<Vec<T>, TlsError> {
        let text = std::fs::read(self.path).map_err(|error| self.unreadable(error))?;
        let items: Result<Vec<T>, _> = T::pem_slice_iter(&text).collect();
        let items = items.and_then(|items| if items.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(items) });
        items.map_err(|error| TlsError::Pem { setting: self.setting, path: self.path.to_owned(), error })
    }

    fn parsed<'a, T: FromDer<'a, x509_parser::error::X509Error>>(&self, der: &'a [u8]) -> Result<T, TlsError> {
        T::from_der(der).map(|(_, parsed)| parsed).map_err(|error| self.cannot_be_used(&error))
    }

    fn unreadable(&self, error: std::io::Error) -> TlsError {
        TlsError::Unreadable { setting: self.setting, path: self.path.to_owned(), error }
    }

    fn cannot_be_used(&self, error: &dyn std::fmt::Display) -> TlsError {
        TlsError::Content { setting: self.setting, path: self.path.to_owned(), why: error.to_string() }
    }
}
