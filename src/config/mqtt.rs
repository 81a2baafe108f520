//! Where the fleet's broker is, and how the box signs in there.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::web::{authority, is_here};

/// How the box speaks to its fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mqtt {
    /// `None`: it does not.
    pub url: Option<BrokerUrl>,
    /// Name of the fleet: a level of all its topics.
    pub fleet: FleetName,
    /// Certificates of those who may vouch for the broker; `None`: those whom the system trusts.
    pub ca: Option<PathBuf>,
    /// The box's own certificate and its key.
    pub client_certificate: Option<SecretFile>,
    pub client_key: Option<SecretFile>,
    pub username: Option<UserName>,
    /// A file whose first line is the password.
    pub password_file: Option<SecretFile>,
    /// Whether a broker elsewhere may be spoken to without TLS.
    pub plaintext: bool,
}

/// A file that is not for everybody: a path, or `credential:NAME` for one of those that systemd gives a
/// service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile(pub PathBuf);

impl SecretFile {
    /// What stands before the name of a credential.
    pub const CREDENTIAL: &'static str = "credential:";
}

/// Whom a box signs in as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserName(pub String);

/// Name of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetName(pub String);

impl Default for FleetName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

/// Address of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    pub tls: bool,
    pub host: String,
    pub port: u16,
}

impl BrokerUrl {
    /// Whether it is on this box, by its name alone.
    pub fn is_here(&self) -> bool {
        is_here(&self.host)
    }
}

/// What is wrong with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokerUrlError {
    #[error("a broker's address begins with mqtts:// (or mqtt:// without TLS)")]
    Scheme,
    #[error("credentials do not stand in a broker's address")]
    Credentials,
    #[error("a broker's address is a host, and a port where it is not 8883 (1883 without TLS)")]
    Host,
}

impl FromStr for BrokerUrl {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<Self, BrokerUrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(BrokerUrlError::Scheme)?;
        let tls = match scheme {
            "mqtts" => true,
            "mqtt" => false,
            _ => return Err(BrokerUrlError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return Err(BrokerUrlError::Credentials);
        }
        let usual = if tls { 8883 } else { 1883 };
        let (host, port) = authority(rest).ok_or(BrokerUrlError::Host)?;
        Ok(Self { tls, host, port: port.unwrap_or(usual) })
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_their_usual_ports() {
        for (text, read) in [
            ("mqtts://broker.plant.example", "mqtts://broker.plant.example:8883"),
            ("mqtts://broker:8884/", "mqtts://broker:8884"),
            ("mqtt://localhost", "mqtt://localhost:1883"),
            ("mqtt://127.0.0.1:11883", "mqtt://127.0.0.1:11883"),
            ("mqtts://[2001:db8::1]", "mqtts://[2001:db8::1]:8883"),
            ("mqtts://[::1]:9", "mqtts://[::1]:9"),
        ] {
            assert_eq!(text.parse::<BrokerUrl>().unwrap().to_string(), read, "{text}");
        }
        for (text, wrong) in [
            ("broker:8883", BrokerUrlError::Scheme),
            ("https://broker", BrokerUrlError::Scheme),
            ("mqtts://me:secret@broker", BrokerUrlError::Credentials),
            ("mqtts://", BrokerUrlError::Host),
            ("mqtts://:8883", BrokerUrlError::Host),
            ("mqtts://broker:0", BrokerUrlError::Host),
            ("mqtts://broker:65536", BrokerUrlError::Host),
            ("mqtts://broker/topic", BrokerUrlError::Host),
            ("mqtts://2001:db8::1", BrokerUrlError::Host),
            ("mqtts://[broker]", BrokerUrlError::Host),
            ("mqtts://[::1", BrokerUrlError::Host),
            ("mqtts://[::1]9", BrokerUrlError::Host),
        ] {
            assert_eq!(text.parse::<BrokerUrl>(), Err(wrong), "{text}");
        }
    }

    #[test]
    fn only_what_is_surely_here_is_here() {
        for (text, here) in [
            ("mqtt://localhost", true),
            ("mqtt://127.1.2.3", true),
            ("mqtt://[::1]", true),
            ("mqtt://localhost.example", false),
            ("mqtt://127.0.0.1.example", false),
            ("mqtt://10.0.0.1", false),
        ] {
            assert_eq!(text.parse::<BrokerUrl>().unwrap().is_here(), here, "{text}");
        }
    }
}
