//! How commands ask an agent: where it is, who vouches for it, and who asks. The one place where such a client
//! is made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use blochd::config::{Config, SecretFile};
use blochd::shell::secrets::{self, resolve};
use clap::Args;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use ureq::http::{HeaderValue, Uri};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use super::configured;

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the agent is and how it is asked.
#[derive(Debug, Args)]
pub struct Asking {
    /// Where the agent serves [default: the configured `http_address`, or `admin_address` where that port alone
    /// is asked without TLS].
    #[arg(long, env = "BLOCHD_URL")]
    url: Option<String>,
    /// The configuration. Without: `/etc/blochd/agent.yaml` where it is there, else the defaults.
    #[arg(long, env = "BLOCHD_CONFIG")]
    config: Option<PathBuf>,
    /// Certificates (PEM) of those who may vouch for the agent [default: those whom the system trusts].
    #[arg(long, env = "BLOCHD_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A file whose first line is the token by which the agent knows you.
    #[arg(long, env = "BLOCHD_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The certificate (PEM) by which the agent knows you.
    #[arg(long, env = "BLOCHD_CLIENT_CERTIFICATE", value_name = "FILE", requires = "client_key")]
    client_certificate: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "BLOCHD_CLIENT_KEY", value_name = "FILE", requires = "client_certificate")]
    client_key: Option<PathBuf>,
    /// Send the token to another machine without TLS, too: the network is trusted.
    #[arg(long)]
    plaintext: bool,
}

/// A client of one agent.
pub struct Client {
    agent: ureq::Agent,
    /// `http://…` or `https://…`, without a slash at the end.
    pub url: String,
    authorization: Option<HeaderValue>,
}

impl Asking {
    /// A client as the flags, the environment and the configuration say.
    ///
    /// # Errors
    /// Where a file cannot be read, or the token would go over the network for all to read.
    pub fn client(&self) -> anyhow::Result<Client> {
        let url = self.url();
        let authorization = self.token_file.as_deref().map(authorization).transpose()?;
        let sealed = url.starts_with("https://");
        if authorization.is_some() && !sealed && !self.plaintext && !is_here(&url) {
            bail!("the token is not sent to {url} without TLS: write https://, or --plaintext");
        }
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).max_redirects(0);
        let config = match sealed {
            true => config.tls_config(self.tls()?).build(),
            false => config.build(),
        };
        Ok(Client { agent: ureq::Agent::new_with_config(config), url, authorization })
    }

    /// Where the agent is asked. A configuration that cannot be read is told and passed over: the agent may
    /// well run by the last good one, and its status says what is wrong.
    fn url(&self) -> String {
        if let Some(url) = &self.url {
            return url.trim_end_matches('/').to_owned();
        }
        let file = configured::file(self.config.clone());
        let read = configured::load_and_warn(file.as_deref(), &[]).or_else(|error| {
            eprintln!("blochd: {error:#}");
            configured::load_and_warn(None, &[])
        });
        match read {
            Ok(loaded) => url_of(&loaded.config),
            Err(error) => {
                eprintln!("blochd: {error:#}");
                url_of(&Config::default())
            }
        }
    }

    fn tls(&self) -> anyhow::Result<TlsConfig> {
        let trusted = match &self.ca {
            Some(path) => secrets::certificates(path)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        let (taken, _) = roots.add_parsable_certificates(trusted.iter().cloned());
        if taken == 0 {
            bail!("nobody is trusted to vouch for the agent: name a file of certificates by --ca");
        }
        let own = match (&self.client_certificate, &self.client_key) {
            (Some(certificate), Some(file)) => {
                let (chain, key) =
                    (secrets::certificates(certificate)?, secrets::private_key(file)?);
                // ureq takes for granted that they belong together.
                ClientConfig::builder_with_provider(Arc::clone(&provider))
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(roots)
                    .with_client_auth_cert(chain.clone(), key)
                    .with_context(|| format!("{} cannot be used", certificate.display()))?;
                let chain: Vec<_> = chain.iter().map(owned).collect();
                let key = PrivateKey::from_pem(&secrets::read(file)?)?;
                Some(ClientCert::new_with_certs(&chain, key))
            }
            (Some(_), None) | (None, Some(_)) | (None, None) => None,
        };
        let roots: Vec<_> = trusted.iter().map(owned).collect();
        Ok(TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&roots))
            .client_cert(own)
            .unversioned_rustls_crypto_provider(provider)
            .build())
    }
}

impl Client {
    /// The answer to a question at `path`.
    ///
    /// # Errors
    /// Where none comes, or one that says no.
    pub fn get(&self, path: &str) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let request = self.agent.get(format!("{}{path}", self.url));
        match &self.authorization {
            Some(value) => request.header("authorization", value).call(),
            None => request.call(),
        }
    }
}

fn authorization(file: &Path) -> anyhow::Result<HeaderValue> {
    let line = secrets::first_line(&resolve(&SecretFile(file.to_owned()))?)?;
    let whole = [b"Bearer ", &line[..]].concat();
    let value = HeaderValue::from_bytes(&whole).ok().filter(|_| !line.is_empty());
    let mut value = value.ok_or_else(|| anyhow!("{} holds no token", file.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn owned(certificate: &CertificateDer<'_>) -> Certificate<'static> {
    Certificate::from_der(certificate).to_owned()
}

/// Whether a URL leads to this box, by its host alone.
fn is_here(url: &str) -> bool {
    let Ok(url) = url.parse::<Uri>() else { return false };
    let host = url.host().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Where a client on this box asks an agent of this configuration: at the port that needs no certificate, of
/// two that tell the same.
fn url_of(config: &Config) -> String {
    let ports = [Some(config.http_address), config.admin_address.address()];
    let plain = ports.into_iter().flatten().find(|address| !config.opening(*address).tls);
    match plain {
        Some(address) => format!("http://{}", reachable(address)),
        None => format!("https://{}", reachable(config.http_address)),
    }
}

/// Where a client on this box finds a server that listens on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_every_interface_is_asked_on_loopback() {
        let asked = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(asked("0.0.0.0:8000"), "127.0.0.1:8000");
        assert_eq!(asked("[::]:9"), "[::1]:9");
        assert_eq!(asked("192.168.1.7:80"), "192.168.1.7:80");
    }

    #[test]
    fn the_port_that_speaks_no_tls_is_asked_where_there_is_one() {
        let mut config = Config::default();
        assert_eq!(url_of(&config), "http://127.0.0.1:8000");
        config.http_address = "0.0.0.0:8000".parse().unwrap();
        assert_eq!(url_of(&config), "http://127.0.0.1:8000");
        config.tls.certificate = Some(SecretFile("/c".into()));
        assert_eq!(url_of(&config), "http://127.0.0.1:8003");
        config.admin_address = blochd::config::AdminDoor::Off;
        assert_eq!(url_of(&config), "https://127.0.0.1:8000");
    }

    #[test]
    fn only_what_is_surely_here_gets_a_token_without_tls() {
        for url in ["http://127.0.0.1:8000", "http://localhost", "http://[::1]:9/x", "http://[::1]"]
        {
            assert!(is_here(url), "{url}");
        }
        for url in [
            "http://10.0.0.1:8000",
            "http://localhost.example",
            "http://127.0.0.1.example",
            "http://example/127.0.0.1",
            "http://user@example",
            "http://",
        ] {
            assert!(!is_here(url), "{url}");
        }
    }
}
