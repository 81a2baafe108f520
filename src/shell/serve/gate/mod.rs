//! The gate: what ports show, whom they ask for, and who may have which call. `protocol::access` decides; here
//! are the files that it decides by, which are read again while the agent runs.

mod names;
mod tls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;

use crate::config::{AdminDoor, CertificateName, Config, Scopes, SecretFile};
use crate::limits::{TOKEN_BYTES, TOKEN_LEAST_BYTES};
use crate::protocol::access::{Call, Client, Denied, Door, Listed, Rules, Token};
use crate::shell::files::{Fingerprint, fingerprint};
use crate::shell::metrics::Refused;
use crate::shell::secrets::{self, SecretError, resolve};

use super::listen::Speaks;
use super::reply::Failed;
use tls::Tls;

/// What a file is worth that says who may come in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{path} cannot be used: {why}")]
    Certificate { path: String, why: String },
    #[error(
        "{path}: a token is one line of {TOKEN_LEAST_BYTES} to {TOKEN_BYTES} letters, digits and \
         signs without blanks; `openssl rand -base64 24` makes one"
    )]
    Token { path: String },
    #[error("`{0}` and `{1}` have the same token")]
    SameToken(String, String),
}

/// What the kernel calls every user that a user namespace has no number for.
const OVERFLOW_USER: u32 = 65_534;

/// What clients of ports and of the Unix socket are let in by.
#[derive(Debug)]
pub struct Gate {
    state: ArcSwap<State>,
    /// Where models are loaded and unloaded, for those who ask elsewhere.
    admin: String,
    /// Whom the agent runs as.
    user: u32,
    refused: Mutex<Refused>,
}

/// What the files held when they were read last.
#[derive(Debug, Default)]
struct State {
    tls: Option<Arc<Tls>>,
    /// Whether there shall be TLS, be there a certificate of use or not.
    wants_tls: bool,
    rules: Rules,
    looks: Looks,
}

/// What a port that other machines reach speaks.
#[derive(Debug)]
pub(super) enum Speech {
    Plain,
    Tls(Arc<ServerConfig>),
    /// Nothing: it shall speak TLS, and there never was a certificate that it could.
    None,
}

/// How files looked before they were read.
pub type Looks = BTreeMap<PathBuf, Option<Fingerprint>>;

impl Gate {
    /// Reads all that the configuration names.
    ///
    /// # Errors
    /// What is wrong with any of it.
    pub fn open(config: &Config) -> Result<Self, GateError> {
        let looks = looks(config);
        let tls = Tls::load(config)?.map(Arc::new);
        let (listed, wrong) = listed(config);
        if let Some(first) = wrong.into_iter().next() {
            return Err(first);
        }
        let admin = match config.admin_address {
            AdminDoor::At(address) => format!("at {address} (admin_address), not here"),
            AdminDoor::Off => "over the Unix socket alone (admin_address: none)".to_owned(),
            AdminDoor::Same => "here".to_owned(),
        };
        let (wants_tls, rules) = (tls.is_some(), rules(config, listed));
        let state = State { tls, wants_tls, rules, looks };
        let user = nix::unistd::geteuid().as_raw();
        Ok(Self { state: ArcSwap::from_pointee(state), admin, user, refused: Mutex::default() })
    }

    /// Reads it anew. A certificate, or those who vouch for clients, that cannot be used leave the last ones,
    /// and nobody who was asked for comes in unasked; a token that cannot be read lets nobody in, since it may
    /// have been taken away.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn reload(&self, config: &Config) -> Result<(), Vec<GateError>> {
        let looks = looks(config);
        let (listed, mut wrong) = listed(config);
        let (wants_tls, mut rules) = (config.tls.certificate.is_some(), rules(config, listed));
        let tls = match Tls::load(config) {
            Ok(tls) => tls.map(Arc::new),
            Err(error) => {
                wrong.push(error);
                let last = self.state.load();
                // Certificates were to be enough, and are not asked for yet.
                if rules.listed.is_none() {
                    rules.listed.clone_from(&last.rules.listed);
                }
                last.tls.clone()
            }
        };
        self.state.store(Arc::new(State { tls, wants_tls, rules, looks }));
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// Everything that is wrong with files that can be found: credentials are there for the service alone.
    pub fn check(config: &Config) -> Vec<GateError> {
        let (_, mut wrong) = listed(config);
        wrong.extend(Tls::load(config).err());
        let elsewhere = |path: &str| path.starts_with(SecretFile::CREDENTIAL);
        wrong.retain(|error| match error {
            GateError::Secret(SecretError::File { path, .. }) => !elsewhere(path),
            GateError::Secret(SecretError::Pem { .. })
            | GateError::Certificate { .. }
            | GateError::Token { .. }
            | GateError::SameToken(..) => true,
        });
        wrong
    }

    /// How the files look, where that is not as when they were read.
    pub fn news(&self, config: &Config) -> Option<Looks> {
        let now = looks(config);
        (self.state.load().looks != now).then_some(now)
    }

    /// What a port that other machines reach speaks.
    pub(super) fn speech(&self, speaks: Speaks) -> Speech {
        let state = self.state.load();
        match &state.tls {
            Some(tls) => Speech::Tls(tls.speaking(speaks)),
            None if state.wants_tls => Speech::None,
            None => Speech::Plain,
        }
    }

    /// Whether a client may have this call.
    ///
    /// # Errors
    /// The answer that it gets instead.
    pub(super) fn admit(
        &self,
        (door, call): (Door, Call),
        peer: &Peer,
        headers: &HeaderMap,
    ) -> Result<(), Failed> {
        let state = self.state.load();
        let client = Client {
            // What nobody asks for is not looked at.
            token: if state.rules.listed.is_some() { token(headers) } else { Token::None },
            certificate: peer.certificate.as_deref(),
            owner: peer.user.is_some_and(|user| self.is_owner(user)),
        };
        state.rules.admit(door, call, client).map_err(|denied| {
            tracing::debug!(?door, ?call, ?denied, "a call is refused");
            self.count(door, denied.word());
            self.refusal(denied)
        })
    }

    /// Whether a user of this box is root, or the agent's own.
    fn is_owner(&self, user: u32) -> bool {
        user == 0 || (user == self.user && user != OVERFLOW_USER)
    }

    /// Counts one that was not let in.
    pub(super) fn count(&self, door: Door, why: &'static str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry((door.word(), why)).or_default() += 1;
    }

    /// All that were not let in.
    pub fn refused(&self) -> Refused {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refusal(&self, denied: Denied) -> Failed {
        let needs = |scope| format!("this takes the right `{scope}`");
        match denied {
            Denied::Unknown(scope) => Failed::unauthenticated(format!(
                "{}: say who you are, by `authorization: Bearer TOKEN` or a certificate",
                needs(scope)
            )),
            Denied::WrongToken(scope) => Failed::unauthenticated(format!(
                "{}, and nobody has the token that the authorization header shows",
                needs(scope)
            )),
            Denied::NotListed(scope) => Failed::forbidden(format!(
                "{}, and no name in your certificate is listed under `access`",
                needs(scope)
            )),
            Denied::Lacks(scope) => {
                Failed::forbidden(format!("{}, which `access` does not give you", needs(scope)))
            }
            Denied::Elsewhere(Call::Command) => {
                Failed::forbidden(format!("models are loaded and unloaded {}", self.admin))
            }
            Denied::Elsewhere(_) => Failed::forbidden(
                "models are asked at http_address, grpc_address or the Unix socket, not at the \
                 admin port",
            ),
            Denied::NotOwner => Failed::forbidden(format!(
                "over the Unix socket only root and the agent's own user load and unload models; \
                 for others that is done {}",
                self.admin
            )),
        }
    }
}

impl Default for Gate {
    /// One that asks nobody, as on a box where nothing is configured.
    fn default() -> Self {
        let admin = "at the admin port".to_owned();
        let user = nix::unistd::geteuid().as_raw();
        Self { state: ArcSwap::default(), admin, user, refused: Mutex::default() }
    }
}

/// The other end of a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer {
    /// Whether it is on this box.
    pub local: bool,
    /// Its user, by the kernel's word.
    pub user: Option<u32>,
    /// The names in its certificate, where it has shown one.
    pub certificate: Option<Arc<[CertificateName]>>,
}

impl Peer {
    /// With the certificate that it has shown in TLS's handshake, if any.
    pub fn showing(mut self, chain: Option<&[CertificateDer<'_>]>) -> Self {
        self.certificate = chain.and_then(<[_]>::first).map(|own| names::of(own).into());
        self
    }
}

/// The token in a call's headers.
fn token(headers: &HeaderMap) -> Token {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = all.next() else { return Token::None };
    let parts = value.as_bytes().split_first_chunk::<7>();
    let shown = parts.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    match (shown, all.next()) {
        (Some((_, token)), None) => Token::Hash(blake3::hash(token.trim_ascii())),
        // Two of them, or another scheme.
        (Some(_) | None, _) => Token::Unreadable,
    }
}

fn rules(config: &Config, listed: Vec<Listed>) -> Rules {
    Rules {
        listed: (!config.access.is_empty()).then_some(listed),
        commands_everywhere: config.admin_address == AdminDoor::Same,
    }
}

/// Who may come in, and whose token cannot be read: they come in by their certificate, if at all.
fn listed(config: &Config) -> (Vec<Listed>, Vec<GateError>) {
    let mut all: Vec<Listed> = Vec::new();
    let mut wrong = Vec::new();
    let mut known: BTreeMap<[u8; 32], &String> = BTreeMap::new();
    for (name, grant) in &config.access {
        let read = grant.token_file.as_ref().map(token_of).transpose();
        let read = read.and_then(|token| {
            // Both would have the rights of both.
            let other = token.and_then(|token| known.insert(*token.as_bytes(), name));
            let same = other.map(|other| GateError::SameToken(other.clone(), name.clone()));
            same.map_or(Ok(token), Err)
        });
        let token = read.unwrap_or_else(|error| {
            wrong.push(error);
            None
        });
        let (certificate, scopes) = (grant.certificate.clone(), Scopes::clone(&grant.scopes));
        all.push(Listed { token, certificate, scopes });
    }
    (all, wrong)
}

/// Tells of a secret that is none on this box.
fn warn_of(path: &Path) {
    if secrets::is_open(path) {
        tracing::warn!("{}: every user of this box may read or write it", path.display());
    }
}

fn token_of(file: &SecretFile) -> Result<blake3::Hash, GateError> {
    let path = resolve(file)?;
    warn_of(&path);
    let line = secrets::first_line(&path)?;
    let fits = (TOKEN_LEAST_BYTES..=TOKEN_BYTES).contains(&line.len());
    if !fits || !line.iter().all(u8::is_ascii_graphic) {
        return Err(GateError::Token { path: path.display().to_string() });
    }
    Ok(blake3::hash(&line))
}

/// How every file that is named looks. What systemd does not give is read, and told, as such.
fn looks(config: &Config) -> Looks {
    let tls = [&config.tls.certificate, &config.tls.key, &config.tls.client_ca];
    let tokens = config.access.values().map(|grant| &grant.token_file);
    let files = tls.into_iter().chain(tokens).flatten();
    let paths = files.filter_map(|file| resolve(file).ok());
    paths.map(|path| (path.clone(), fingerprint(&path))).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_token_is_read_from_one_header_of_the_right_scheme() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            token(&headers)
        };
        let secret = Token::Hash(blake3::hash(b"abc"));
        assert_eq!(of(&[]), Token::None);
        for good in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(of(&[good]), secret, "{good}");
        }
        for bad in ["Basic abc", "abc", "Bearerabc", ""] {
            assert_eq!(of(&[bad]), Token::Unreadable, "{bad}");
        }
        assert_eq!(of(&["Bearer abc", "Bearer abc"]), Token::Unreadable);
        assert_ne!(of(&["Bearer ABC"]), secret);
    }

    #[test]
    fn what_shall_be_tls_is_never_spoken_without_and_who_was_asked_is_asked_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| SecretFile(folder.path().join(name));
        std::fs::write(folder.path().join("t"), "the-token-of-a-client").unwrap();
        let grant = crate::config::Grant {
            token_file: Some(path("t")),
            certificate: None,
            scopes: Scopes([crate::config::Scope::Infer].into()),
        };
        let plain = Config::default();
        let mut listed = Config::default();
        listed.access.insert("a".to_owned(), grant);
        let mut broken = Config::default();
        broken.tls.certificate = Some(path("nowhere.pem"));
        broken.tls.key = Some(path("nowhere.key"));
        broken.tls.client_ca = Some(path("nowhere.pem"));
        let asks = |gate: &Gate| {
            let nobody = (Peer::default(), HeaderMap::new());
            gate.admit((Door::Requests, Call::Infer), &nobody.0, &nobody.1).is_err()
        };
        let gate = Gate::open(&plain).unwrap();
        assert!(matches!(gate.speech(Speaks::Http1), Speech::Plain) && !asks(&gate));
        assert_eq!(gate.reload(&broken).unwrap_err().len(), 1);
        assert!(matches!(gate.speech(Speaks::Http1), Speech::None), "it was to be sealed");
        gate.reload(&plain).unwrap();
        assert!(matches!(gate.speech(Speaks::Http1), Speech::Plain));
        let gate = Gate::open(&listed).unwrap();
        assert!(asks(&gate));
        assert!(gate.reload(&broken).is_err());
        assert!(asks(&gate), "certificates were to be asked for instead, and are not");
        gate.reload(&plain).unwrap();
        assert!(!asks(&gate));
    }

    #[test]
    fn a_token_that_goes_bad_lets_nobody_in_and_the_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            SecretFile(folder.path().join(name))
        };
        let grant = |file| crate::config::Grant {
            token_file: Some(file),
            certificate: None,
            scopes: Scopes([crate::config::Scope::Infer].into()),
        };
        let mut config = Config::default();
        for name in ["a", "b"] {
            let file = write(name, &format!("the-token-of-client-{name}\r\nnot this\n"));
            config.access.insert(name.to_owned(), grant(file));
        }
        let gate = Gate::open(&config).unwrap();
        let may = |token: &str| {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
            headers.insert(AUTHORIZATION, value);
            gate.admit((Door::Requests, Call::Infer), &Peer::default(), &headers).is_ok()
        };
        let (a, b) = ("the-token-of-client-a", "the-token-of-client-b");
        assert!(may(a) && may(b) && !may("not this") && gate.news(&config).is_none());
        for (bad, why) in [("short", "a token is one line"), ("with blanks in its midst", "line")] {
            write("b", bad);
            assert!(gate.news(&config).is_some(), "{bad}");
            let wrong = gate.reload(&config).unwrap_err();
            let words = wrong[0].to_string();
            assert!(words.contains(why) && !words.contains(bad), "{words}");
            assert!(may(a) && !may(b) && !may(bad), "{bad}");
        }
        write("b", a);
        let wrong = gate.reload(&config).unwrap_err();
        assert_eq!(wrong, [GateError::SameToken("a".to_owned(), "b".to_owned())]);
        std::fs::remove_file(folder.path().join("b")).unwrap();
        assert!(gate.reload(&config).unwrap_err()[0].to_string().contains("cannot read"));
        write("b", "another-token-of-client-b");
        gate.reload(&config).unwrap();
        assert!(may(a) && !may(b) && may("another-token-of-client-b"));
        config.access.insert("c".to_owned(), grant(write("c", "")));
        // Nobody but the service finds a credential.
        let credential = SecretFile("credential:elsewhere".into());
        config.access.insert("d".to_owned(), grant(credential));
        let wrong = Gate::check(&config);
        assert!(matches!(wrong.as_slice(), [GateError::Token { .. }]), "{wrong:?}");
        assert!(Gate::open(&config).is_err(), "at the start there is no last good one");
    }
}
