//! Where artifacts are fetched from beside the inbox: web servers, and registries of the OCI distribution
//! specification, which give out a file by its hash, and may want a token for that.
//!
//! A bundle names where artifacts are, and the box alone whom it shows its password: nobody but the servers
//! that its configuration names is told who asks, and those only over TLS.

use ureq::http::Response;
use ureq::{Agent, Body};

use crate::config::web::{authority, is_here};
use crate::config::{Depots, WebAddress};
use crate::fleet::Sha256;
use crate::fleet::apply::Failure;
use crate::fleet::oci::{Challenge, Repository, token_address};
use crate::limits;
use crate::shell::links::https::{Wanted, WebError, authorization, client, is_token};

/// The settings, for errors.
const SETTINGS: &str = "fleet.artifacts";

/// Asks servers for artifacts.
#[derive(Debug, Clone, Default)]
pub struct Depot {
    settings: Depots,
}

impl Depot {
    pub fn new(settings: Depots) -> Self {
        Self { settings }
    }

    /// The answer of a web server to a question for all of a file, or for what is behind its first bytes.
    ///
    /// # Errors
    /// Where there is none, and whether there may be one later.
    pub fn web(&self, address: &WebAddress, held: u64) -> Result<Response<Body>, Failure> {
        let client = self.client(address.text(), address.tls)?;
        let who = self.who(address.text())?;
        ask(&client, address.text(), held, who.as_deref())
    }

    /// The answer of a registry to a question for a blob.
    ///
    /// # Errors
    /// Where there is none, and whether there may be one later.
    pub fn blob(
        &self,
        repository: &Repository,
        sha256: Sha256,
        held: u64,
    ) -> Result<Response<Body>, Failure> {
        let url = repository.blob(sha256);
        let client = self.client(&url, repository.tls)?;
        // A token of the box's own is shown at once; a password only where it is asked for.
        let token = self.settings.sign_in.token_file.is_some();
        let who = if token { self.who(&url)? } else { None };
        let answer = ask(&client, &url, held, who.as_deref())?;
        if answer.status().as_u16() != 401 || token {
            return Ok(answer);
        }
        let fields = answer.headers().get_all("www-authenticate").iter();
        let mut challenges = fields.filter_map(|field| Challenge::parse(field.to_str().ok()?));
        let who = match challenges.next() {
            Some(Challenge::Basic) => self.who(&url)?,
            Some(Challenge::Bearer { realm, service, scope }) => {
                let words = (realm.as_str(), service.as_deref(), scope.as_deref());
                Some(self.token(words, repository)?)
            }
            None => None,
        };
        match who {
            Some(who) => ask(&client, &url, held, Some(&who)),
            None => Ok(answer),
        }
    }

    /// Has a token given out for a repository, to the box where its configuration names the server, else to
    /// anybody.
    fn token(
        &self,
        challenge: (&str, Option<&str>, Option<&str>),
        repository: &Repository,
    ) -> Result<String, Failure> {
        let registry = &repository.registry;
        let address = token_address(challenge, repository).and_then(|text| text.parse().ok());
        let address: WebAddress = address.ok_or_else(|| {
            Failure::ForGood(format!("{registry} names no address at which it gives out tokens"))
        })?;
        if repository.tls && !address.tls {
            let why = format!("{registry} wants its tokens asked for without TLS");
            return Err(Failure::ForGood(why));
        }
        let who = self.who(address.text())?;
        let client = self.client(address.text(), address.tls)?;
        let answer = ask(&client, address.text(), 0, who.as_deref())?;
        let status = answer.status().as_u16();
        if status != 200 {
            let why = format!("{} answers {status}", address.shown());
            return Err(if is_final(status) { Failure::ForGood(why) } else { Failure::Later(why) });
        }
        let mut body = answer.into_body();
        let body = body.with_config().limit(limits::FLEET_TOKEN_ANSWER_BYTES);
        let said: Token = body
            .read_json()
            .map_err(|_| Failure::Later(format!("{} answers with no token", address.shown())))?;
        let token = said.token.or(said.access_token).unwrap_or_default();
        if token.is_empty() || token.len() > limits::FLEET_TOKEN_BYTES || !is_token(&token) {
            return Err(Failure::ForGood(format!("{} gives out no token", address.shown())));
        }
        Ok(format!("Bearer {token}"))
    }

    fn client(&self, url: &str, tls: bool) -> Result<Agent, Failure> {
        let mut sign_in = self.settings.sign_in.clone();
        if !self.is_told(url) {
            // A server that asks for a certificate gets none, and says so.
            (sign_in.client_certificate, sign_in.client_key) = (None, None);
        }
        let wanted = Wanted { sign_in: &sign_in, settings: SETTINGS, tls, whole: None };
        // A file that is missing may come; so may a certificate that is renewed.
        client(&wanted).map_err(|error| Failure::Later(error.to_string()))
    }

    /// What is said of who asks at an address.
    fn who(&self, url: &str) -> Result<Option<String>, Failure> {
        if !self.is_told(url) {
            return Ok(None);
        }
        authorization(&self.settings.sign_in).map_err(|error| Failure::Later(error.to_string()))
    }

    /// Whether a server is one that is shown who asks, and nobody listens on the way.
    fn is_told(&self, url: &str) -> bool {
        let Some((scheme, rest)) = url.split_once("://") else { return false };
        let place = rest.split(['/', '?']).next().unwrap_or_default();
        let Some((host, port)) = authority(place) else { return false };
        let safe = scheme == "https" || is_here(&host);
        let usual = if scheme == "https" { 443 } else { 80 };
        let same = |named: &String| {
            authority(named).is_some_and(|(name, at)| {
                let same = name.eq_ignore_ascii_case(&host);
                same && at.unwrap_or(usual) == port.unwrap_or(usual)
            })
        };
        safe && self.settings.hosts.0.iter().any(same)
    }
}

/// What who gives out tokens answers: registries call it by either name.
#[derive(serde::Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

fn ask(client: &Agent, url: &str, held: u64, who: Option<&str>) -> Result<Response<Body>, Failure> {
    let mut request = client.get(url);
    if held > 0 {
        request = request.header("Range", format!("bytes={held}-"));
    }
    if let Some(who) = who {
        request = request.header("Authorization", who);
    }
    request.call().map_err(|error| {
        let error = WebError::of(&error, SETTINGS);
        let shown = url.split('?').next().unwrap_or_default();
        let why = format!("{shown}: {error}");
        match error {
            WebError::SentToPlain | WebError::SentOn => Failure::ForGood(why),
            WebError::Secret(_) | WebError::NotTrusted { .. } | WebError::Connection(_) => {
                Failure::Later(why)
            }
        }
    })
}

/// Whether a server that answers so will answer so again.
pub fn is_final(status: u16) -> bool {
    (400..500).contains(&status) && !matches!(status, 408 | 425 | 429)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Hosts;

    #[test]
    fn who_asks_is_shown_to_named_servers_with_tls_and_to_no_other() {
        let hosts = ["depot.example", "registry.example:5000", "localhost:5001", "plain.example"];
        let hosts = Hosts(hosts.map(str::to_owned).into());
        let depot = Depot::new(Depots { hosts, ..Depots::default() });
        for (url, told) in [
            ("https://depot.example/x", true),
            ("https://DEPOT.example:443/x?y", true),
            ("https://depot.example:8443/x", false),
            ("https://registry.example:5000/v2/", true),
            ("https://registry.example/v2/", false),
            ("https://depot.example.evil/x", false),
            ("https://evil/depot.example", false),
            ("http://depot.example/x", false),
            ("http://plain.example/x", false),
            ("http://localhost:5001/x", true),
            ("http://localhost:5002/x", false),
        ] {
            assert_eq!(depot.is_told(url), told, "{url}");
        }
        assert!(!Depot::default().is_told("https://depot.example/x"));
    }
}
