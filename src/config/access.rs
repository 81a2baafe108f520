//! Who may come in over the agent's ports, and as what: the certificate that it shows, and the list of those
//! who may do something.
//!
//! The rules, each of them for all ports: a port that other machines reach speaks TLS where a certificate is
//! named, and one on loopback never does. Where anybody is listed, every port asks who a client is, loopback's
//! too; the Unix socket is ruled by its file's mode. Without TLS and somebody to ask for, a port that other
//! machines reach is refused, unless the network is said to be trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use crate::limits;
use crate::units::is_fleet_name;

use super::checked::Config;
use super::error::{Origin, Problem, Wrong, did_you_mean};
use super::layers::Origins;
use super::mqtt::SecretFile;
use super::schema::{GRANT, Setting, lookup};
use super::values::{Absent, Show, address};

/// What ports that speak TLS are made of. All are files of PEM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// What the agent shows, with the certificates of those between it and who is trusted; `None`: no TLS.
    pub certificate: Option<SecretFile>,
    pub key: Option<SecretFile>,
    /// Those who vouch for clients; `None`: clients are asked for no certificate.
    pub client_ca: Option<SecretFile>,
}

/// Where models are loaded and unloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminDoor {
    /// At a port of its own.
    At(SocketAddr),
    /// At no port: over the Unix socket alone.
    Off,
    /// Wherever inference is served.
    Same,
}

impl AdminDoor {
    /// Its port, where it has one.
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::At(address) => Some(address),
            Self::Off | Self::Same => None,
        }
    }
}

/// A kind of things that a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Ask models, and for what is known of them.
    Infer,
    /// Load and unload them.
    Admin,
    /// Read the metrics page and the agent's status.
    Metrics,
}

impl Scope {
    pub const ALL: [Self; 3] = [Self::Infer, Self::Admin, Self::Metrics];

    pub fn word(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// All that somebody may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scopes(pub BTreeSet<Scope>);

/// A name in a client's certificate, by where it stands there: one kind is never taken for another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum CertificateName {
    /// `dns:`, of the subject's alternative names.
    Dns(String),
    /// `uri:`, of the same, such as SPIFFE's.
    Uri(String),
    /// `cn:`, the subject's common name.
    Common(String),
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Uri(name) => write!(f, "uri:{name}"),
            Self::Common(name) => write!(f, "cn:{name}"),
        }
    }
}

/// One who may come in: by a token, by a certificate, or by either.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// A file whose first line is the token.
    pub token_file: Option<SecretFile>,
    /// What the certificate is called that a client shows.
    pub certificate: Option<CertificateName>,
    pub scopes: Scopes,
}

impl Show for AdminDoor {
    fn show(&self) -> String {
        match self {
            Self::At(address) => address.show(),
            Self::Off => "none".to_owned(),
            Self::Same => "same".to_owned(),
        }
    }
}

impl Show for Scopes {
    fn show(&self) -> String {
        self.0.iter().map(Scope::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl Show for CertificateName {
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Absent for CertificateName {
    const WORD: &'static str = "none";
}

/// An address and a port, `none` or `same`.
pub(super) fn admin_address(text: &str) -> Result<AdminDoor, Wrong> {
    match text.trim() {
        "none" => Ok(AdminDoor::Off),
        "same" => Ok(AdminDoor::Same),
        text => address(text).map(AdminDoor::At).map_err(|wrong| {
            let right = format!("{}, none, or same for the ports of inference", wrong.right);
            Wrong::new(wrong.what, right)
        }),
    }
}

/// Scopes with commas between.
pub(super) fn scopes(text: &str) -> Result<Scopes, Wrong> {
    let mut scopes = BTreeSet::new();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let Some(scope) = Scope::ALL.into_iter().find(|scope| scope.word() == word) else {
            let hint = did_you_mean(word, Scope::ALL.iter().map(|scope| scope.word()));
            let right = format!("{hint} (infer, admin or metrics)");
            return Err(Wrong::new(format!("{word:?} is no scope"), right));
        };
        if !scopes.insert(scope) {
            return Err(Wrong::new(format!("{word} stands twice"), "remove one"));
        }
    }
    Ok(Scopes(scopes))
}

/// `dns:NAME`, `uri:NAME` or `cn:NAME`, or `none`.
pub(super) fn certificate_name(text: &str) -> Result<Option<CertificateName>, Wrong> {
    let text = text.trim();
    if text == CertificateName::WORD {
        return Ok(None);
    }
    let right = "write dns: or uri: and one of the certificate's alternative names, or cn: and its \
                 subject's common name";
    let wrong = || Wrong::new(format!("{text:?} names no certificate"), right);
    let (kind, name) = text.split_once(':').ok_or_else(wrong)?;
    let name = name.trim();
    let fits = (1..=limits::CERTIFICATE_NAME_BYTES).contains(&name.len());
    if !fits || name.chars().any(char::is_control) {
        return Err(wrong());
    }
    match kind {
        // Names of hosts are the same in capitals.
        "dns" => Ok(Some(CertificateName::Dns(name.to_ascii_lowercase()))),
        "uri" => Ok(Some(CertificateName::Uri(name.to_owned()))),
        "cn" => Ok(Some(CertificateName::Common(name.to_owned()))),
        _ => Err(wrong()),
    }
}

/// What a layer says of one who may come in; nothing but that there is one, where no setting is named.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Given {
    pub name: String,
    pub setting: Option<&'static Setting<Grant>>,
    pub text: String,
    pub origin: Origin,
}

impl Given {
    /// Takes it in, over what was said before; what nothing new is said of stays.
    pub fn merge(self, config: &mut Config, origins: &mut Origins) -> Result<(), Problem> {
        let Self { name, setting, text, origin } = self;
        let grant = config.access.entry(name.clone()).or_default();
        origins.entry(format!("access.{name}")).or_insert_with(|| origin.clone());
        if let Some(setting) = setting {
            (setting.set)(grant, &text).map_err(|wrong| wrong.at(&origin))?;
            origins.insert(format!("access.{name}.{}", setting.path), origin);
        }
        Ok(())
    }
}

/// Whether one who may come in can be called so.
pub(super) fn check_name(name: &str) -> Result<(), Wrong> {
    if is_fleet_name(name) {
        return Ok(());
    }
    let most = limits::FLEET_NAME_BYTES;
    let right = format!("write 1 to {most} letters, digits, dots, dashes and underscores");
    Err(Wrong::new(format!("{name:?} names nobody"), right))
}

/// Finds what a path from the environment or a flag means, without its `access.`: `NAME.scopes`.
pub(super) fn find(rest: &str, text: &str, origin: &Origin) -> Result<Given, Wrong> {
    let (name, setting) = rest.rsplit_once('.').ok_or_else(|| {
        Wrong::new("nothing of whom access names is named", "write access.NAME.scopes")
    })?;
    let setting = Some(lookup(GRANT, setting, text)?.0);
    check_name(name)?;
    Ok(Given { name: name.to_owned(), setting, text: text.to_owned(), origin: origin.clone() })
}

/// Every setting's path below `access.NAME.` and the text of its value. No secret is among them: tokens stand
/// in files.
pub fn grant_settings(grant: &Grant) -> impl Iterator<Item = (&'static str, String)> {
    GRANT.iter().map(|setting| (setting.path, (setting.get)(grant)))
}

/// To whom a port is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// Whether other machines reach it.
    pub elsewhere: bool,
    pub tls: bool,
    /// Whether only those come in who show a certificate, or are listed.
    pub asks: Asks,
}

/// What a port asks of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    Nothing,
    /// A certificate that somebody who is trusted vouches for.
    Certificate,
    /// To be one of those who are listed.
    Listed,
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from =
            if self.elsewhere { "whoever reaches this box" } else { "whoever is on this box" };
        let who = match self.asks {
            Asks::Nothing => "",
            Asks::Certificate => " and shows a certificate that tls.client_ca vouches for",
            Asks::Listed => " and is listed under access",
        };
        let how = if self.tls { "over TLS" } else { "without TLS" };
        write!(f, "{from}{who}, {how}")
    }
}

impl Config {
    /// Whether a client with a token may do without a certificate.
    pub fn takes_tokens(&self) -> bool {
        self.access.values().any(|grant| grant.token_file.is_some())
    }

    /// All ports, by their settings, where they have an address.
    pub fn ports(&self) -> BTreeMap<&'static str, SocketAddr> {
        let ports = [
            ("http_address", Some(self.http_address)),
            ("grpc_address", self.grpc_address),
            ("admin_address", self.admin_address.address()),
            ("metrics_address", Some(self.metrics_address)),
        ];
        ports.into_iter().filter_map(|(setting, address)| Some((setting, address?))).collect()
    }

    /// To whom a port at `address` is open.
    pub fn opening(&self, address: SocketAddr) -> Opening {
        let elsewhere = !address.ip().to_canonical().is_loopback();
        let tls = elsewhere && self.tls.certificate.is_some();
        let asks = if !self.access.is_empty() {
            Asks::Listed
        } else if tls && self.tls.client_ca.is_some() {
            Asks::Certificate
        } else {
            Asks::Nothing
        };
        Opening { elsewhere, tls, asks }
    }

    /// Why nobody may be let in at `address`, where nobody may.
    pub fn closed(&self, address: SocketAddr) -> Option<String> {
        let Opening { elsewhere, tls, asks } = self.opening(address);
        if !elsewhere || self.allow_plaintext || (tls && asks != Asks::Nothing) {
            return None;
        }
        let lacks = match (tls, asks) {
            (false, Asks::Nothing) => "without TLS, and asks nobody who they are",
            (false, Asks::Certificate | Asks::Listed) => {
                "without TLS, in which tokens are read by all"
            }
            (true, _) => "and asks nobody who they are",
        };
        Some(format!("{address} is reached from other machines, {lacks}"))
    }
}

/// The ways out of [`Config::closed`].
pub const WAYS_OUT: &str = "name a certificate under tls, and who may come in under access or by \
                            tls.client_ca; or listen on 127.0.0.1 or the Unix socket alone; or \
                            say by allow_plaintext: true that the network is trusted";

/// What does not fit together of who may come in.
pub(super) fn check(
    config: &Config,
    origins: &Origins,
    origin: &impl Fn([&str; 2]) -> Origin,
    problems: &mut Vec<Problem>,
) {
    let Tls { certificate, key, client_ca } = &config.tls;
    if certificate.is_some() != key.is_some() {
        problems.push(Problem {
            origin: origin(["tls.certificate", "tls.key"]),
            what: "a certificate and its key go together".to_owned(),
            right: "name both, or none".to_owned(),
        });
    }
    if client_ca.is_some() && certificate.is_none() {
        problems.push(Problem {
            origin: origin(["tls.client_ca", "tls.certificate"]),
            what: "clients show a certificate only over TLS, for which the agent needs its own"
                .to_owned(),
            right: "name tls.certificate and tls.key".to_owned(),
        });
    }
    for (name, grant) in &config.access {
        let mut wrong = |what: String, right: &str| {
            let path = format!("access.{name}");
            let origin = origins.get(&path).cloned().unwrap_or(Origin::Default);
            problems.push(Problem { origin, what, right: right.to_owned() });
        };
        if grant.token_file.is_none() && grant.certificate.is_none() {
            let right = "write token_file: and a file, or certificate: and a name in it";
            wrong(format!("nothing says how `{name}` is known"), right);
        }
        if grant.certificate.is_some() && client_ca.is_none() {
            let right = "name under tls.client_ca who vouches for clients' certificates";
            wrong(format!("nobody vouches for the certificate of `{name}`"), right);
        }
        if grant.scopes.0.is_empty() {
            let right = "write scopes: [infer], and admin and metrics as needed";
            wrong(format!("`{name}` may do nothing"), right);
        }
    }
    if let Some(name) = config.access.keys().nth(limits::ACCESS_ENTRIES) {
        problems.push(Problem {
            origin: origins.get(&format!("access.{name}")).cloned().unwrap_or(Origin::Default),
            what: format!("{} under access are too many", config.access.len()),
            right: format!("name at most {}", limits::ACCESS_ENTRIES),
        });
    }
    check_ports(config, origins, problems);
}

fn check_ports(config: &Config, origins: &Origins, problems: &mut Vec<Problem>) {
    let of = |setting: &str| origins.get(setting).cloned().unwrap_or(Origin::Default);
    let mut seen: BTreeMap<SocketAddr, &str> = BTreeMap::new();
    for (setting, address) in config.ports() {
        if let Some(why) = config.closed(address) {
            let (origin, right) = (of(setting), WAYS_OUT.to_owned());
            problems.push(Problem { origin, what: format!("{setting} {why}"), right });
        }
        let same = (address.port() != 0).then(|| seen.insert(address, setting)).flatten();
        if let Some(other) = same {
            let written = [of(setting), of(other)];
            let first = written.into_iter().find(|at| *at != Origin::Default);
            problems.push(Problem {
                origin: first.unwrap_or(Origin::Default),
                what: format!("{other} and {setting} are both {address}"),
                right: "give one of them another port".to_owned(),
            });
        }
    }
}

#[cfg(test)]
mod tests;
