//! Web servers that a box asks: where bundles are polled for, where artifacts are, and how it signs in there.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::limits;
use crate::units::{Span, is_fleet_name};

use super::error::Wrong;
use super::mqtt::{SecretFile, UserName};
use super::values::{Absent, Show};

/// How the box asks a server for bundles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poll {
    /// `None`: it does not.
    pub url: Option<PollUrl>,
    /// From one question to the next.
    pub interval: Span,
    pub sign_in: SignIn,
    /// Whether a server elsewhere may be asked without TLS.
    pub plaintext: bool,
}

impl Default for Poll {
    fn default() -> Self {
        Self { url: None, interval: Span::secs(300), sign_in: SignIn::default(), plaintext: false }
    }
}

/// How the box fetches artifacts over HTTPS and from registries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Depots {
    /// The only ones that are shown who the box is.
    pub hosts: Hosts,
    pub sign_in: SignIn,
}

/// How the box knows a server, and the server the box.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SignIn {
    /// Certificates of those who may vouch for the server; `None`: those whom the system trusts.
    pub ca: Option<PathBuf>,
    /// The box's own certificate and its key.
    pub client_certificate: Option<SecretFile>,
    pub client_key: Option<SecretFile>,
    pub username: Option<UserName>,
    /// A file whose first line is the password.
    pub password_file: Option<SecretFile>,
    /// A file whose first line is a token, in place of a name and a password.
    pub token_file: Option<SecretFile>,
}

/// Names of servers, with their ports where an address has one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts(pub Vec<String>);

/// Address of something on a web server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebAddress {
    pub tls: bool,
    pub host: String,
    pub port: Option<u16>,
    text: String,
}

/// What is wrong with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WebAddressError {
    #[error("an address begins with https:// (or http:// without TLS)")]
    Scheme,
    #[error("credentials do not stand in an address")]
    Credentials,
    #[error("behind the scheme stands a host, and a port where it is not the usual one")]
    Host,
    #[error("an address is of letters, digits and what else URLs are made of")]
    Characters,
    #[error("in braces stands {{node}} or {{label:NAME}}, behind the host")]
    Braces,
}

/// A host, and a port if there is one; `None` where it is neither.
pub fn authority(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        // An address of version 6 has colons of its own.
        Some(v6) => match v6.split_once(']')? {
            (host, "") => (host, None),
            (host, port) => (host, Some(port.strip_prefix(':')?)),
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port != 0 => Some(port),
        Some(Ok(_) | Err(_)) => return None,
    };
    let v6 = text.starts_with('[');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let fits = match host.parse::<IpAddr>() {
        Ok(address) => address.is_ipv6() == v6,
        Err(_) => !v6 && (1..=253).contains(&host.len()) && host.bytes().all(plain),
    };
    fits.then(|| (host.to_owned(), port))
}

/// Whether a host is this box, by its name alone.
pub fn is_here(host: &str) -> bool {
    let address = host.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

impl WebAddress {
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is on this box, by its name alone.
    pub fn is_here(&self) -> bool {
        is_here(&self.host)
    }

    /// For logs: what stands behind a question mark may be a secret.
    pub fn shown(&self) -> &str {
        self.text.split('?').next().unwrap_or_default()
    }
}

impl FromStr for WebAddress {
    type Err = WebAddressError;

    fn from_str(text: &str) -> Result<Self, WebAddressError> {
        let (scheme, rest) = text.split_once("://").ok_or(WebAddressError::Scheme)?;
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(WebAddressError::Scheme),
        };
        let authority_of = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority_of.contains('@') {
            return Err(WebAddressError::Credentials);
        }
        let (host, port) = authority(authority_of).ok_or(WebAddressError::Host)?;
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte);
        if !text.bytes().all(plain) || text.len() > limits::FLEET_URL_BYTES {
            return Err(WebAddressError::Characters);
        }
        Ok(Self { tls, host, port, text: text.to_owned() })
    }
}

/// Address of a bundle, with places for who the box is: `https://depot.example/{node}.bundle`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollUrl {
    parts: Vec<Part>,
    /// With something in every place.
    pub example: WebAddress,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Node,
    Label(String),
}

/// Why an address cannot be put together for a box.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotFilled {
    #[error("this box has no label {0}")]
    NoLabel(String),
    #[error("{0:?} would lead to another folder")]
    Leads(String),
}

impl PollUrl {
    /// The address for this box. Names in a fleet are of characters that URLs take as they are.
    ///
    /// # Errors
    /// Where it lacks a label, or a name would be more than a name.
    pub fn fill(&self, node: &str, labels: &BTreeMap<String, String>) -> Result<String, NotFilled> {
        let mut text = String::new();
        for part in &self.parts {
            let name = match part {
                Part::Text(plain) => {
                    text.push_str(plain);
                    continue;
                }
                Part::Node => node,
                Part::Label(label) => {
                    labels.get(label).ok_or_else(|| NotFilled::NoLabel(label.clone()))?
                }
            };
            if !is_fleet_name(name) || name.bytes().all(|byte| byte == b'.') {
                return Err(NotFilled::Leads(name.to_owned()));
            }
            text.push_str(name);
        }
        Ok(text)
    }

    /// The labels that it needs.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Label(label) => Some(label.as_str()),
            Part::Text(_) | Part::Node => None,
        })
    }
}

impl FromStr for PollUrl {
    type Err = WebAddressError;

    fn from_str(text: &str) -> Result<Self, WebAddressError> {
        let (mut parts, mut example, mut left) = (Vec::new(), String::new(), text);
        while let Some((plain, rest)) = left.split_once('{') {
            let (name, rest) = rest.split_once('}').ok_or(WebAddressError::Braces)?;
            let part = match name.strip_prefix("label:") {
                Some(label) if is_fleet_name(label) => Part::Label(label.to_owned()),
                None if name == "node" => Part::Node,
                Some(_) | None => return Err(WebAddressError::Braces),
            };
            example.push_str(plain);
            // A host that depends on who the box is would be another host's business.
            let begun = example.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
            if !begun {
                return Err(WebAddressError::Braces);
            }
            example.push('x');
            parts.extend([Part::Text(plain.to_owned()), part]);
            left = rest;
        }
        example.push_str(left);
        parts.push(Part::Text(left.to_owned()));
        Ok(Self { parts, example: example.parse()? })
    }
}

impl fmt::Display for PollUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Node => f.write_str("{node}"),
            Part::Label(label) => write!(f, "{{label:{label}}}"),
        })
    }
}

impl Show for PollUrl {
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Absent for PollUrl {
    const WORD: &'static str = "none";
}

impl Show for Hosts {
    fn show(&self) -> String {
        self.0.join(", ")
    }
}

/// Where bundles are polled for, or `none`. An address with credentials in it is not repeated.
pub(super) fn poll_url(text: &str) -> Result<Option<PollUrl>, Wrong> {
    let text = text.trim();
    if text == PollUrl::WORD {
        return Ok(None);
    }
    let right = "write https://, a host and a path, and who signs in under username and \
                 password_file, or token_file";
    text.parse().map(Some).map_err(|error: WebAddressError| Wrong::new(error.to_string(), right))
}

/// Hosts with commas between, each with a port or without; nothing: none.
pub(super) fn hosts(text: &str) -> Result<Hosts, Wrong> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let hosts = items.map(|item| match authority(item) {
        Some(_) => Ok(item.to_owned()),
        None => {
            let right = "write a host's name, with a port where the address has one";
            Err(Wrong::new(format!("{item:?} is no host"), right))
        }
    });
    let hosts = hosts.collect::<Result<Vec<_>, Wrong>>()?;
    if hosts.len() > limits::FLEET_HOSTS {
        let what = format!("there are {} hosts", hosts.len());
        return Err(Wrong::new(what, format!("write at most {}", limits::FLEET_HOSTS)));
    }
    Ok(Hosts(hosts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_and_what_is_none_is_refused() {
        for (text, tls, host, port) in [
            ("https://depot.example/a/b?c=d", true, "depot.example", None),
            ("http://127.0.0.1:8080", false, "127.0.0.1", Some(8080)),
            ("https://[2001:db8::1]:8443/x", true, "2001:db8::1", Some(8443)),
        ] {
            let read = text.parse::<WebAddress>().unwrap();
            assert_eq!((read.tls, read.host.as_str(), read.port), (tls, host, port));
            assert_eq!(read.text(), text);
        }
        for (text, wrong) in [
            ("depot.example/x", WebAddressError::Scheme),
            ("ftp://depot.example/x", WebAddressError::Scheme),
            ("https://me:secret@depot.example/x", WebAddressError::Credentials),
            ("https:///x", WebAddressError::Host),
            ("https://depot.example:0/x", WebAddressError::Host),
            ("https://a b/x", WebAddressError::Host),
            ("https://depot.example/a b", WebAddressError::Characters),
            ("https://depot.example/\r\nx: y", WebAddressError::Characters),
            ("https://depot.example/{node}", WebAddressError::Characters),
        ] {
            assert_eq!(text.parse::<WebAddress>(), Err(wrong), "{text}");
        }
        let secret = "https://depot.example/x?sig=open-sesame".parse::<WebAddress>().unwrap();
        assert_eq!(secret.shown(), "https://depot.example/x");
    }

    #[test]
    fn an_address_has_places_for_who_the_box_is() {
        let labels = BTreeMap::from([("site".to_owned(), "berlin".to_owned())]);
        let text = "https://depot.example/{label:site}/{node}.bundle";
        let url: PollUrl = text.parse().unwrap();
        assert_eq!(url.to_string(), text);
        assert_eq!(url.labels().collect::<Vec<_>>(), ["site"]);
        let filled = url.fill("box-1", &labels).unwrap();
        assert_eq!(filled, "https://depot.example/berlin/box-1.bundle");
        let missing = url.fill("box-1", &BTreeMap::new());
        assert_eq!(missing, Err(NotFilled::NoLabel("site".to_owned())));
        for name in ["..", ".", "a/b", ""] {
            assert!(matches!(url.fill(name, &labels), Err(NotFilled::Leads(_))), "{name}");
        }
        for text in [
            "https://{node}.example/x",
            "https://depot.example:{node}/x",
            "https://depot.example/{nodes}",
            "https://depot.example/{label:}",
            "https://depot.example/{label:a/b}",
            "https://depot.example/{node",
        ] {
            assert_eq!(text.parse::<PollUrl>(), Err(WebAddressError::Braces), "{text}");
        }
    }

    #[test]
    fn hosts_are_names_with_ports_or_without() {
        assert_eq!(hosts("a.example, b:5000").unwrap().0, ["a.example", "b:5000"]);
        assert_eq!(hosts("").unwrap(), Hosts::default());
        for text in ["https://a", "a/b", "a:x", "me@a"] {
            assert!(hosts(text).is_err(), "{text}");
        }
    }
}
