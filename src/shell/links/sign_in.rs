//! How a broker is connected to: TLS, certificates and passwords, read anew for each attempt.

use std::sync::Arc;

use rumqttc::{ConnectReturnCode, ConnectionError, MqttOptions, SessionMode, StateError};
use rumqttc::{TlsConfiguration, Transport};
use rustls::ClientConfig;

use super::trust::{Named, Trust, TrustError, distrust, first_line};
use crate::config::{Mqtt, UserName};
use crate::limits;

/// Why there is no connection to a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("no broker is named (fleet.mqtt.url)")]
    NoBroker,
    #[error("{0} is not on this box: it is not spoken to without TLS (fleet.mqtt.plaintext)")]
    Plaintext(String),
    #[error(transparent)]
    Secret(#[from] TrustError),
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
            other => distrust(other)
                .map_or_else(|| Self::Connection(error.to_string()), Self::NotTrusted),
        }
    }
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
    let password = settings.password_file.as_ref().map(first_line).transpose()?;
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
    let named = Named {
        ca: settings.ca.as_deref(),
        certificate: settings.client_certificate.as_ref(),
        key: settings.client_key.as_ref(),
        settings: "fleet.mqtt",
    };
    Ok(Trust::read(&named)?.config()?)
}
