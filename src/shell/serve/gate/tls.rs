//! What a port that speaks TLS shows and asks for.

use std::sync::Arc;

use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::{GateError, warn_of};
use crate::config::Config;
use crate::shell::secrets::{self, resolve};
use crate::shell::serve::listen::Speaks;

/// TLS for each of the things that a port may speak: a client that speaks something else learns so in the
/// handshake.
#[derive(Debug)]
pub(super) struct Tls {
    http1: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
    either: Arc<ServerConfig>,
}

impl Tls {
    /// Reads what the configuration names; `None` where it names no certificate.
    pub fn load(config: &Config) -> Result<Option<Self>, GateError> {
        let settings = &config.tls;
        let (Some(certificate), Some(key)) = (&settings.certificate, &settings.key) else {
            return Ok(None);
        };
        let (certificate, key) = (resolve(certificate)?, resolve(key)?);
        let chain = secrets::certificates(&certificate)?;
        let secret = secrets::private_key(&key)?;
        warn_of(&key);
        let provider = Arc::new(ring::default_provider());
        let wrong = |path: &std::path::Path, why: String| GateError::Certificate {
            path: path.display().to_string(),
            why,
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&certificate, error.to_string()))?;
        let builder = match &settings.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let path = resolve(file)?;
                let mut roots = RootCertStore::empty();
                for one in secrets::certificates(&path)? {
                    roots.add(one).map_err(|error| wrong(&path, error.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                // A token says who a client is as well as a certificate does.
                let verifier = match config.takes_tokens() {
                    true => verifier.allow_unauthenticated(),
                    false => verifier,
                };
                let verifier = verifier.build().map_err(|error| wrong(&path, error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let tls = builder
            .with_single_cert(chain, secret)
            .map_err(|error| wrong(&certificate, error.to_string()))?;
        let speaking = |protocols: &[&[u8]]| {
            let alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            let mut tls = tls.clone();
            tls.alpn_protocols = alpn_protocols;
            Arc::new(tls)
        };
        Ok(Some(Self {
            http1: speaking(&[b"http/1.1"]),
            http2: speaking(&[b"h2"]),
            either: speaking(&[b"h2", b"http/1.1"]),
        }))
    }

    pub fn speaking(&self, speaks: Speaks) -> Arc<ServerConfig> {
        Arc::clone(match speaks {
            Speaks::Http1 => &self.http1,
            Speaks::Http2 => &self.http2,
            Speaks::Either => &self.either,
        })
    }
}
