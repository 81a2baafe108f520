//! Whom a client of the fleet's servers trusts, and who it says that it is: read anew for each use, since
//! certificates are renewed on boxes that run for years. Nothing secret stands in an error or a log.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::config::SecretFile;
use crate::shell::secrets::{self, SecretError, certificates, read, resolve};

/// Why nobody can be trusted, or the box cannot say who it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    File(#[from] SecretError),
    #[error("this system trusts nobody; name a file of certificates ({0}.ca)")]
    NobodyTrusted(&'static str),
    #[error("{0}")]
    Certificates(String),
}

/// Files that say who vouches for a server, and who the box is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named<'a> {
    pub ca: Option<&'a Path>,
    pub certificate: Option<&'a SecretFile>,
    pub key: Option<&'a SecretFile>,
    /// The settings that name them, for errors: `fleet.mqtt`.
    pub settings: &'static str,
}

/// What such files say.
pub(super) struct Trust {
    pub roots: Vec<CertificateDer<'static>>,
    /// The box's own certificate, those who vouch for it, and the key in PEM.
    pub own: Option<(Vec<CertificateDer<'static>>, Vec<u8>)>,
}

/// The only provider of cryptography that is in the program.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

impl Trust {
    /// # Errors
    /// What is missing or wrong; what comes back makes a configuration that does.
    pub fn read(named: &Named) -> Result<Self, TrustError> {
        let roots = match named.ca {
            Some(path) => {
                let roots = certificates(path)?;
                let mut store = RootCertStore::empty();
                for one in &roots {
                    store.add(one.clone()).map_err(|error| wrong(path, &error))?;
                }
                roots
            }
            None => {
                let mut roots = rustls_native_certs::load_native_certs().certs;
                let mut store = RootCertStore::empty();
                roots.retain(|one| store.add(one.clone()).is_ok());
                if roots.is_empty() {
                    return Err(TrustError::NobodyTrusted(named.settings));
                }
                roots
            }
        };
        let own = match (named.certificate, named.key) {
            (Some(certificate), Some(key)) => {
                let (certificate, key) = (resolve(certificate)?, resolve(key)?);
                let own = (certificates(&certificate)?, read(&key)?);
                let trust = Self { roots: Vec::new(), own: Some(own) };
                // A key of another certificate is told here, with the file's name.
                trust.config().map_err(|error| match error {
                    TrustError::Certificates(why) => {
                        TrustError::Certificates(format!("{}: {why}", certificate.display()))
                    }
                    other => other,
                })?;
                trust.own
            }
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                let why = format!(
                    "{0}.client_certificate and {0}.client_key go together",
                    named.settings
                );
                return Err(TrustError::Certificates(why));
            }
        };
        Ok(Self { roots, own })
    }

    /// # Errors
    /// Where a certificate and its key do not go together.
    pub fn config(&self) -> Result<ClientConfig, TrustError> {
        let bad = |error: rustls::Error| TrustError::Certificates(error.to_string());
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.roots.iter().cloned());
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(bad)?
            .with_root_certificates(roots);
        let Some((chain, key)) = &self.own else { return Ok(builder.with_no_client_auth()) };
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            let why = "its key is no private key in PEM";
            TrustError::Certificates(why.to_owned())
        })?;
        builder.with_client_auth_cert(chain.clone(), key).map_err(bad)
    }
}

/// The first line of a file.
pub(super) fn first_line(file: &SecretFile) -> Result<Vec<u8>, TrustError> {
    Ok(secrets::first_line(&resolve(file)?)?)
}

fn wrong(path: &Path, error: &rustls::Error) -> TrustError {
    TrustError::Certificates(format!("{}: {error}", path.display()))
}

/// What rustls has against a server's certificate, among the causes of an error. It hides in errors of input
/// and output.
pub(super) fn distrust(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(cause @ rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return Some(cause.to_string());
        }
        let hidden = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match hidden {
            Some(hidden) => Some(hidden),
            None => error.source(),
        };
    }
    None
}
