//! How a broker is connected to: TLS, certificates and passwords, read anew for each attempt, since
//! certificates are renewed on boxes that run for years. Nothing secret stands in an error or a log.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rumqttc::{ConnectReturnCode, ConnectionError, MqttOptions, SessionMode, StateError};
use rumqttc::{TlsConfiguration, Transport};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

use crate::config::{Mqtt, UserName};
use crate::limits;
use crate::shell::secrets::{self, SecretError, resolve};

/// Why there is no connection to a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("no broker is named (fleet.mqtt.url)")]
    NoBroker,
    #[error("{0} is not on this box: it is not spoken to without TLS (fleet.mqtt.plaintext)")]
    Plaintext(String),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{0}")]
    Certificates(String),
    #[error(
        "the broker's certificate is not trusted: {0}; fleet.mqtt.ca names those who vouch for it"
    )]
    NotTrusted(String),
    #[error("the broker does not take this user name and password, or certificate")]
    Password,
    #[error("the broker does not let this box in: {0}")]
    NotAdmitted(String),
    #[error("the broker does not allow {0}: its access list is to be looked at")]
    NotAllowed(String),
    #[error("no connection to the broker: {0}")]
    Connection(String),
    #[error("the broker did not answer in time")]
    Silent,
    #[error("stopped")]
    Stopped,
}

impl From<ConnectionError> for LinkError {
    fn from(error: ConnectionError) -> Self {
        match &error {
            ConnectionError::ConnectionRefused(code)
            | ConnectionError::MqttState(StateError::ConnFail { reason: code }) => match code {
                // The second is what Mosquitto says to a wrong password.
                ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                    Self::Password
                }
                other => Self::NotAdmitted(format!("{other:?}")),
            },
            ConnectionError::Timeout(_) => Self::Silent,
            other => {
                let distrust = causes(other).find_map(|cause| match cause {
                    rustls::Error::InvalidCertificate(_) => Some(cause.to_string()),
                    _ => None,
                });
                distrust.map_or_else(|| Self::Connection(error.to_string()), Self::NotTrusted)
            }
        }
    }
}

/// What rustls has to say among the causes of an error. It hides in errors of input and output.
fn causes(error: &ConnectionError) -> impl Iterator<Item = &rustls::Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        let hidden = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match hidden {
            Some(hidden) => Some(hidden),
            None => error.source(),
        };
        Some(error)
    })
    .filter_map(|error| error.downcast_ref::<rustls::Error>())
}

/// Options of a connection under the client's name `id`. Reads the files that the settings name.
///
/// # Errors
/// What is missing or wrong.
pub(super) fn options(settings: &Mqtt, id: &str) -> Result<MqttOptions, LinkError> {
    let url = settings.url.as_ref().ok_or(LinkError::NoBroker)?;
    if !url.tls && !url.is_here() && !settings.plaintext {
        return Err(LinkError::Plaintext(url.to_string()));
    }
    let mut options = MqttOptions::new(id, (url.host.clone(), url.port));
    if url.tls {
        let config = TlsConfiguration::Rustls(Arc::new(tls(settings)?));
        options.set_transport(Transport::Tls(config));
    }
    // What is wanted of a node is retained: a broker that kept a queue for each node that is away would keep
    // weeks of what is out of date.
    options.set_session_mode(SessionMode::Clean);
    options.set_keep_alive(u16::try_from(limits::LINK_KEEP_ALIVE.as_secs()).unwrap_or(u16::MAX));
    options.set_connect_timeout(limits::LINK_CONNECT);
    options.set_max_packet_size(u32::try_from(limits::LINK_MESSAGE_BYTES).ok());
    // The client keeps a place for each message that may be on its way: 16 MiB of them, unless it is told.
    options.set_outgoing_inflight_upper_limit(limits::LINK_REQUESTS as u16);
    let file = settings.password_file.as_ref().map(resolve).transpose()?;
    let password = file.as_deref().map(secrets::first_line).transpose()?;
    let name = settings.username.as_ref().map(|UserName(name)| name);
    // Each of these setters forgets what another one set.
    match (name, password) {
        (Some(name), Some(password)) => _ = options.set_credentials(name, password),
        (Some(name), None) => _ = options.set_username(name),
        (None, Some(password)) => _ = options.set_password(password),
        (None, None) => {}
    }
    Ok(options)
}

fn tls(settings: &Mqtt) -> Result<ClientConfig, LinkError> {
    let mut roots = RootCertStore::empty();
    match &settings.ca {
        Some(path) => {
            for one in secrets::certificates(path)? {
                roots.add(one).map_err(|error| wrong(path, &error))?;
            }
        }
        None => {
            let native = rustls_native_certs::load_native_certs().certs;
            let (taken, _) = roots.add_parsable_certificates(native);
            if taken == 0 {
                let why = "this system trusts nobody; name a file of certificates (fleet.mqtt.ca)";
                return Err(LinkError::Certificates(why.to_owned()));
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| LinkError::Certificates(error.to_string()))?
        .with_root_certificates(roots);
    match (&settings.client_certificate, &settings.client_key) {
        (Some(certificate), Some(key)) => {
            let (certificate, key) = (resolve(certificate)?, resolve(key)?);
            let chain = secrets::certificates(&certificate)?;
            let secret = secrets::private_key(&key)?;
            builder
                .with_client_auth_cert(chain, secret)
                .map_err(|error| wrong(&certificate, &error))
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(_), None) | (None, Some(_)) => {
            let why = "fleet.mqtt.client_certificate and fleet.mqtt.client_key go together";
            Err(LinkError::Certificates(why.to_owned()))
        }
    }
}

fn wrong(path: &Path, error: &rustls::Error) -> LinkError {
    LinkError::Certificates(format!("{}: {error}", path.display()))
}
