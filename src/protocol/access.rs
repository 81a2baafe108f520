//! Which rights a call takes, and whether whoever makes it has them. Decides; `shell::serve` finds out who that
//! is.

use crate::config::{CertificateName, Scope, Scopes};

use super::grpc::frame::{HEALTH, INFERENCE};

/// What a call is for, as far as rights go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// How the server stands: for load balancers, which sign in nowhere.
    Health,
    /// What is known of models.
    Look,
    Infer,
    /// Shared memory, which is for inference.
    Memory,
    /// Loading and unloading.
    Command,
    /// The agent's status.
    Status,
    /// The metrics page.
    Page,
}

impl Call {
    /// By a request's path of REST, as the table of routes reads it: to the letter. What is no call that needs
    /// less or more counts as a look.
    pub fn rest(path: &str) -> Self {
        let parts: Vec<&str> = path.split('/').collect();
        let ["", parts @ ..] = parts.as_slice() else { return Self::Look };
        match parts {
            ["v2", "health", "live" | "ready"] => Self::Health,
            ["v2", "models", _, "infer"] | ["v2", "models", _, "versions", _, "infer"] => {
                Self::Infer
            }
            ["v2", "systemsharedmemory" | "cudasharedmemory", ..] => Self::Memory,
            ["v2", "repository", "models", _, "load" | "unload"] => Self::Command,
            ["v2", "blochd", "status"] => Self::Status,
            _ => Self::Look,
        }
    }

    /// By the path of a call of gRPC.
    pub fn grpc(path: &str) -> Self {
        if path.starts_with(HEALTH) {
            return Self::Health;
        }
        match path.strip_prefix(INFERENCE) {
            Some("ServerLive" | "ServerReady") => Self::Health,
            Some("ModelInfer" | "ModelStreamInfer") => Self::Infer,
            Some("RepositoryModelLoad" | "RepositoryModelUnload") => Self::Command,
            Some(name) if name.contains("SharedMemory") => Self::Memory,
            Some(_) | None => Self::Look,
        }
    }

    /// The right that it takes; `None`: it is for everybody.
    pub fn scope(self) -> Option<Scope> {
        match self {
            Self::Health => None,
            Self::Look | Self::Infer | Self::Memory => Some(Scope::Infer),
            Self::Command => Some(Scope::Admin),
            Self::Status | Self::Page => Some(Scope::Metrics),
        }
    }
}

/// Where a call comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A port of inference.
    Requests,
    Admin,
    Unix,
    Metrics,
}

impl Door {
    /// Its name for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Admin => "admin",
            Self::Unix => "unix",
            Self::Metrics => "metrics",
        }
    }
}

/// How a client says who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    None,
    /// Its headers say something, and no token.
    Unreadable,
    Hash(blake3::Hash),
}

/// What is known of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client<'a> {
    pub token: Token,
    /// The names in its certificate, where it has shown one that is vouched for.
    pub certificate: Option<&'a [CertificateName]>,
    /// Whether it is root or the agent's own user, by the kernel's word.
    pub owner: bool,
}

/// One who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub token: Option<blake3::Hash>,
    pub certificate: Option<CertificateName>,
    pub scopes: Scopes,
}

/// Who may come in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// `None`: nobody is asked.
    pub listed: Option<Vec<Listed>>,
    /// Whether models are loaded and unloaded wherever inference is served.
    pub commands_everywhere: bool,
}

/// Why a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// It takes this right, and the client does not say who it is.
    Unknown(Scope),
    /// The same, of a client whose token nobody has.
    WrongToken(Scope),
    /// It takes this right, and its certificate's names are not listed.
    NotListed(Scope),
    /// It takes this right, and the client has it not.
    Lacks(Scope),
    /// It is served at another door.
    Elsewhere(Call),
    /// Loading and unloading over the Unix socket is for its owner.
    NotOwner,
}

impl Denied {
    /// Its name for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown",
            Self::WrongToken(_) => "wrong_token",
            Self::NotListed(_) => "not_listed",
            Self::Lacks(_) => "lacks_right",
            Self::Elsewhere(_) => "elsewhere",
            Self::NotOwner => "not_owner",
        }
    }
}

impl Rules {
    /// Whether a client may have this call here.
    ///
    /// # Errors
    /// Why it may not. Who is not known is not told what is where.
    pub fn admit(&self, door: Door, call: Call, client: Client) -> Result<(), Denied> {
        let Some(scope) = call.scope() else { return Ok(()) };
        let has = match (&self.listed, door) {
            (None, _) | (_, Door::Unix) => true,
            (Some(listed), Door::Requests | Door::Admin | Door::Metrics) => {
                let scopes = rights(listed, client, scope)?;
                scopes.0.contains(&scope)
            }
        };
        match (door, call) {
            (Door::Requests, Call::Command) if !self.commands_everywhere => {
                return Err(Denied::Elsewhere(call));
            }
            (Door::Admin, Call::Infer | Call::Memory) => return Err(Denied::Elsewhere(call)),
            (Door::Unix, Call::Command) if !client.owner && !self.commands_everywhere => {
                return Err(Denied::NotOwner);
            }
            _ => {}
        }
        if has { Ok(()) } else { Err(Denied::Lacks(scope)) }
    }
}

/// All that a client may do: what everybody may whose token or certificate it has. A token that nobody has is
/// an error even beside a certificate.
fn rights(listed: &[Listed], client: Client, scope: Scope) -> Result<Scopes, Denied> {
    let mut scopes = Scopes::default();
    let (mut by_token, mut by_certificate) = (false, false);
    // All of them are looked at, each comparison takes the same time: how long it took says nothing of a token.
    for one in listed {
        let token = match (client.token, one.token) {
            (Token::Hash(shown), Some(known)) => shown == known,
            (Token::Hash(_) | Token::None | Token::Unreadable, _) => false,
        };
        let certificate = match (client.certificate, &one.certificate) {
            (Some(shown), Some(known)) => shown.contains(known),
            (Some(_) | None, _) => false,
        };
        if token || certificate {
            scopes.0.extend(&one.scopes.0);
        }
        by_token |= token;
        by_certificate |= certificate;
    }
    match client.token {
        Token::Hash(_) | Token::Unreadable if !by_token => Err(Denied::WrongToken(scope)),
        Token::None if !by_certificate && client.certificate.is_some() => {
            Err(Denied::NotListed(scope))
        }
        Token::None if !by_certificate => Err(Denied::Unknown(scope)),
        Token::Hash(_) | Token::Unreadable | Token::None => Ok(scopes),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(token: &str) -> blake3::Hash {
        blake3::hash(token.as_bytes())
    }

    fn scopes(all: &[Scope]) -> Scopes {
        Scopes(all.iter().copied().collect())
    }

    fn dns(name: &str) -> CertificateName {
        CertificateName::Dns(name.to_owned())
    }

    const NOBODY: Client = Client { token: Token::None, certificate: None, owner: false };

    fn with(token: &str) -> Client<'static> {
        Client { token: Token::Hash(hash(token)), ..NOBODY }
    }

    /// A camera by its token, operators by a certificate, a scraper by either.
    fn rules() -> Rules {
        let one = |token: Option<&str>, certificate: Option<&str>, all: &[Scope]| Listed {
            token: token.map(hash),
            certificate: certificate.map(dns),
            scopes: scopes(all),
        };
        let listed = vec![
            one(Some("camera"), None, &[Scope::Infer]),
            one(None, Some("ops"), &Scope::ALL),
            one(Some("scraper"), Some("scraper"), &[Scope::Metrics]),
        ];
        Rules { listed: Some(listed), commands_everywhere: false }
    }

    #[test]
    fn paths_are_told_apart_to_the_letter() {
        for (path, call) in [
            ("/v2/health/live", Call::Health),
            ("/v2/health/ready", Call::Health),
            ("/v2/health/live/", Call::Look),
            ("/v2/health", Call::Look),
            ("//v2/health/live", Call::Look),
            ("/v2", Call::Look),
            ("", Call::Look),
            ("/v2/models/m", Call::Look),
            ("/v2/models/m/ready", Call::Look),
            ("/v2/models/m/infer", Call::Infer),
            ("/v2/models/m/versions/1/infer", Call::Infer),
            ("/v2/repository/index", Call::Look),
            ("/v2/repository/models/m/load", Call::Command),
            ("/v2/repository/models/load/unload", Call::Command),
            ("/v2/blochd/status", Call::Status),
            ("/v2/systemsharedmemory/region/r/register", Call::Memory),
            ("/v2/cudasharedmemory/unregister", Call::Memory),
        ] {
            assert_eq!(Call::rest(path), call, "{path}");
        }
        for (name, call) in [
            ("ServerReady", Call::Health),
            ("ServerMetadata", Call::Look),
            ("ModelReady", Call::Look),
            ("ModelStreamInfer", Call::Infer),
            ("RepositoryIndex", Call::Look),
            ("RepositoryModelUnload", Call::Command),
            ("SystemSharedMemoryStatus", Call::Memory),
            ("Nothing", Call::Look),
        ] {
            assert_eq!(Call::grpc(&format!("{INFERENCE}{name}")), call, "{name}");
        }
        assert_eq!(Call::grpc("/grpc.health.v1.Health/Check"), Call::Health);
        assert_eq!(Call::grpc("/other.Service/RepositoryModelLoad"), Call::Look);
    }

    #[test]
    fn who_may_do_what_is_decided_by_token_certificate_and_door() {
        use Denied::{Elsewhere, Lacks, NotListed, Unknown, WrongToken};
        let (ops, others) = ([dns("a"), dns("ops")], [CertificateName::Common("ops".into())]);
        let shown = |names| Client { certificate: Some(names), ..NOBODY };
        let both = Client { certificate: Some(&ops), ..with("camera") };
        let wrong_beside = Client { certificate: Some(&ops), ..with("guess") };
        let unreadable = Client { token: Token::Unreadable, ..NOBODY };
        let rules = rules();
        for (door, call, client, expected) in [
            (Door::Requests, Call::Health, NOBODY, Ok(())),
            (Door::Requests, Call::Health, with("guess"), Ok(())),
            (Door::Requests, Call::Infer, NOBODY, Err(Unknown(Scope::Infer))),
            (Door::Requests, Call::Infer, with("camera"), Ok(())),
            (Door::Requests, Call::Infer, with("Camera"), Err(WrongToken(Scope::Infer))),
            (Door::Requests, Call::Infer, unreadable, Err(WrongToken(Scope::Infer))),
            (Door::Requests, Call::Infer, with("scraper"), Err(Lacks(Scope::Infer))),
            (Door::Requests, Call::Look, shown(&ops), Ok(())),
            // A common name is no name of a host.
            (Door::Requests, Call::Look, shown(&others), Err(NotListed(Scope::Infer))),
            (Door::Requests, Call::Look, shown(&[]), Err(NotListed(Scope::Infer))),
            (Door::Requests, Call::Status, both, Ok(())),
            (Door::Requests, Call::Infer, wrong_beside, Err(WrongToken(Scope::Infer))),
            // Who is not known does not hear where it is.
            (Door::Requests, Call::Command, NOBODY, Err(Unknown(Scope::Admin))),
            (Door::Requests, Call::Command, with("camera"), Err(Elsewhere(Call::Command))),
            (Door::Requests, Call::Command, shown(&ops), Err(Elsewhere(Call::Command))),
            (Door::Admin, Call::Command, shown(&ops), Ok(())),
            (Door::Admin, Call::Command, with("camera"), Err(Lacks(Scope::Admin))),
            (Door::Admin, Call::Infer, with("camera"), Err(Elsewhere(Call::Infer))),
            (Door::Admin, Call::Look, with("camera"), Ok(())),
            (Door::Metrics, Call::Page, with("scraper"), Ok(())),
            (Door::Metrics, Call::Page, with("camera"), Err(Lacks(Scope::Metrics))),
            (Door::Unix, Call::Status, NOBODY, Ok(())),
            (Door::Unix, Call::Infer, with("guess"), Ok(())),
            (Door::Unix, Call::Command, NOBODY, Err(Denied::NotOwner)),
            (Door::Unix, Call::Command, Client { owner: true, ..NOBODY }, Ok(())),
        ] {
            assert_eq!(rules.admit(door, call, client), expected, "{door:?} {call:?} {client:?}");
        }
        let everywhere = Rules { commands_everywhere: true, ..rules };
        let (camera, ops) = (with("camera"), shown(&ops));
        assert_eq!(everywhere.admit(Door::Requests, Call::Command, ops), Ok(()));
        let lacks = Err(Lacks(Scope::Admin));
        assert_eq!(everywhere.admit(Door::Requests, Call::Command, camera), lacks);
        assert_eq!(everywhere.admit(Door::Unix, Call::Command, NOBODY), Ok(()));
    }

    const CALLS: [Call; 7] = [
        Call::Health,
        Call::Look,
        Call::Infer,
        Call::Memory,
        Call::Command,
        Call::Status,
        Call::Page,
    ];
    const DOORS: [Door; 4] = [Door::Requests, Door::Admin, Door::Unix, Door::Metrics];

    proptest! {
        /// Whatever is listed: a call goes through a port that asks only for a client that has its right by a
        /// token or a name of its own, and more on the list never takes from anybody.
        #[test]
        fn nothing_but_a_listed_token_or_name_opens_a_door_that_asks(
            all in prop::collection::vec(
                (prop::option::of(0..4_usize), prop::option::of(0..4_usize),
                 prop::collection::vec(0..3_usize, 0..3)),
                0..6,
            ),
            token in prop::option::of(0..5_usize),
            names in prop::option::of(prop::collection::vec(0..5_usize, 0..3)),
            call in 0..CALLS.len(),
            door in 0..DOORS.len(),
        ) {
            let listed: Vec<Listed> = all.iter().map(|(token, name, own)| Listed {
                token: token.map(|n| hash(&n.to_string())),
                certificate: name.map(|n| dns(&n.to_string())),
                scopes: Scopes(own.iter().map(|n| Scope::ALL[*n]).collect()),
            }).collect();
            let names: Option<Vec<CertificateName>> =
                names.map(|names| names.iter().map(|n| dns(&n.to_string())).collect());
            let client = Client {
                token: token.map_or(Token::None, |n| Token::Hash(hash(&n.to_string()))),
                certificate: names.as_deref(),
                owner: false,
            };
            let (call, door) = (CALLS[call], DOORS[door]);
            let rules = Rules { listed: Some(listed.clone()), commands_everywhere: true };
            let admitted = rules.admit(door, call, client);
            let is = |one: &Listed| {
                let shows = client.token;
                let by_token = one.token.is_some_and(|known| shows == Token::Hash(known));
                let by_name = one.certificate.as_ref()
                    .is_some_and(|name| client.certificate.is_some_and(|all| all.contains(name)));
                by_token || by_name
            };
            if let (Ok(()), Some(scope), false) = (admitted, call.scope(), door == Door::Unix) {
                prop_assert!(listed.iter().any(|one| is(one) && one.scopes.0.contains(&scope)));
            }
            if admitted.is_ok() {
                let token = Some(hash("more"));
                let more = Listed { token, certificate: None, scopes: scopes(&[]) };
                let longer = listed.into_iter().chain([more]).collect();
                let rules = Rules { listed: Some(longer), commands_everywhere: true };
                prop_assert_eq!(rules.admit(door, call, client), Ok(()));
            }
        }
    }
}
