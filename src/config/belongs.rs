//! What does not fit together of how a box belongs to its fleet.

use super::checked::{Config, Fleet, Inbox};
use super::error::{Origin, Problem};
use super::web::SignIn;

/// Where the problems go, and where settings come from.
struct Found<'a, O> {
    origin: &'a O,
    problems: &'a mut Vec<Problem>,
}

impl<O: Fn([&str; 2]) -> Origin> Found<'_, O> {
    fn tell(&mut self, settings: [&str; 2], what: impl Into<String>, right: impl Into<String>) {
        let origin = (self.origin)(settings);
        self.problems.push(Problem { origin, what: what.into(), right: right.into() });
    }
}

pub(super) fn check(
    fleet: &Fleet,
    config: &Config,
    origin: &impl Fn([&str; 2]) -> Origin,
    problems: &mut Vec<Problem>,
) {
    let mut found = Found { origin, problems };
    let keys = fleet.keys.0.len();
    if keys > 0 && fleet.threshold > keys {
        found.tell(
            ["fleet.threshold", "fleet.keys"],
            format!("{} signatures are needed and {keys} keys are named", fleet.threshold),
            format!("write a threshold of at most {keys}, or name more keys"),
        );
    }
    broker(fleet, &mut found);
    poll(fleet, &mut found);
    artifacts(fleet, &mut found);
    let Some(Inbox(inbox)) = &fleet.inbox else { return };
    if keys == 0 {
        found.tell(["fleet.inbox", "fleet.keys"], unsigned("an inbox"), NAME_KEYS);
    }
    if inbox.starts_with(&config.model_dir) || *inbox == config.state_dir {
        found.tell(
            ["fleet.inbox", "model_dir"],
            format!("the inbox {} is a place of the agent's own", inbox.display()),
            "give bundles a directory of their own",
        );
    }
}

const NAME_KEYS: &str = "name the public keys of those who sign under fleet.keys";
const NAME_INBOX: &str = "name a directory under fleet.inbox";

fn unsigned(what: &str) -> String {
    format!("{what} without keys: every bundle would be refused")
}

/// How the box signs in at its fleet's broker.
fn broker<O: Fn([&str; 2]) -> Origin>(fleet: &Fleet, found: &mut Found<O>) {
    let mqtt = &fleet.mqtt;
    let Some(url) = &mqtt.url else { return };
    if fleet.keys.0.is_empty() {
        found.tell(["fleet.mqtt.url", "fleet.keys"], unsigned("a broker"), NAME_KEYS);
    }
    if fleet.inbox.is_none() {
        let what = "a broker without an inbox: what comes by it is put there";
        found.tell(["fleet.mqtt.url", "fleet.inbox"], what, NAME_INBOX);
    }
    if !url.tls && !url.is_here() && !mqtt.plaintext {
        found.tell(
            ["fleet.mqtt.url", "fleet.mqtt.plaintext"],
            format!("{url} is not on this box, and is spoken to without TLS"),
            "write mqtts://, or plaintext: true where the network is trusted",
        );
    }
    if mqtt.client_certificate.is_some() != mqtt.client_key.is_some() {
        let settings = ["fleet.mqtt.client_certificate", "fleet.mqtt.client_key"];
        found.tell(settings, "a certificate and its key go together", "name both, or none");
    }
}

/// How it asks a server for bundles.
fn poll<O: Fn([&str; 2]) -> Origin>(fleet: &Fleet, found: &mut Found<O>) {
    let poll = &fleet.poll;
    let names = [
        ["fleet.poll.client_certificate", "fleet.poll.client_key"],
        ["fleet.poll.username", "fleet.poll.password_file"],
    ];
    sign_in(&poll.sign_in, names, found);
    let Some(url) = &poll.url else { return };
    if fleet.keys.0.is_empty() {
        found.tell(["fleet.poll.url", "fleet.keys"], unsigned("a server"), NAME_KEYS);
    }
    if fleet.inbox.is_none() {
        let what = "a server without an inbox: what comes from it is put there";
        found.tell(["fleet.poll.url", "fleet.inbox"], what, NAME_INBOX);
    }
    if !url.example.tls && !url.example.is_here() && !poll.plaintext {
        found.tell(
            ["fleet.poll.url", "fleet.poll.plaintext"],
            format!("{} is not on this box, and is asked without TLS", url.example.host),
            "write https://, or plaintext: true where the network is trusted",
        );
    }
    for label in url.labels().filter(|label| !fleet.labels.0.contains_key(*label)) {
        let what = format!("the address has a place for the label {label}, which this box lacks");
        found.tell(["fleet.poll.url", "fleet.labels"], what, "name it under fleet.labels");
    }
}

/// How it fetches artifacts.
fn artifacts<O: Fn([&str; 2]) -> Origin>(fleet: &Fleet, found: &mut Found<O>) {
    let artifacts = &fleet.artifacts;
    let names = [
        ["fleet.artifacts.client_certificate", "fleet.artifacts.client_key"],
        ["fleet.artifacts.username", "fleet.artifacts.password_file"],
    ];
    sign_in(&artifacts.sign_in, names, found);
    let SignIn { client_certificate, username, token_file, .. } = &artifacts.sign_in;
    let signs_in = client_certificate.is_some() || username.is_some() || token_file.is_some();
    if signs_in && artifacts.hosts.0.is_empty() {
        // A bundle names where artifacts are: a password goes to whom the box names.
        let settings = ["fleet.artifacts.username", "fleet.artifacts.token_file"];
        let right = "name the servers that may be shown it under fleet.artifacts.hosts";
        found.tell(settings, "a certificate, password or token that is for no server", right);
    }
}

/// `names`: of a certificate and its key, of a user and the password.
fn sign_in<O: Fn([&str; 2]) -> Origin>(
    sign_in: &SignIn,
    names: [[&str; 2]; 2],
    found: &mut Found<O>,
) {
    let [certificate, password] = names;
    if sign_in.client_certificate.is_some() != sign_in.client_key.is_some() {
        found.tell(certificate, "a certificate and its key go together", "name both, or none");
    }
    if sign_in.username.is_some() != sign_in.password_file.is_some() {
        found.tell(password, "a user's name and the password go together", "name both, or none");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::layers::{Layers, Text};
    use super::super::{SecretFile, UserName};
    use super::*;
    use crate::units::Span;

    fn load(fleet: &str) -> Result<Fleet, String> {
        let text = format!("fleet: {{keys: [a], inbox: /in, {fleet}}}");
        let files = &[Text { file: "/etc/blochd/agent.yaml", text: &text }];
        let environment = &BTreeMap::new();
        let base = Config::default();
        let layers = Layers { base, files, fleet: None, environment, flags: &[] };
        layers.load().map(|loaded| loaded.config.fleet).map_err(|errors| errors.to_string())
    }

    #[test]
    fn how_a_box_asks_for_bundles_is_read_and_must_fit_together() {
        let fleet = load(
            "labels: {site: berlin}, poll: {url: 'https://depot/{label:site}/{node}', interval: \
             5m, ca: ca.pem, username: box-1, password_file: 'credential:depot'}",
        );
        let poll = fleet.unwrap().poll;
        assert_eq!(poll.url.unwrap().to_string(), "https://depot/{label:site}/{node}");
        assert_eq!(poll.interval, Span::secs(300));
        assert_eq!(poll.sign_in.ca, Some("/etc/blochd/ca.pem".into()));
        assert_eq!(poll.sign_in.username, Some(UserName("box-1".into())));
        assert_eq!(poll.sign_in.password_file, Some(SecretFile("credential:depot".into())));
        for fits in ["url: 'http://localhost/x'", "url: 'http://depot/x', plaintext: true"] {
            assert!(load(&format!("poll: {{{fits}}}")).is_ok(), "{fits}");
        }
        for (poll, what) in [
            ("url: 'http://depot/x'", "without TLS"),
            ("url: 'ftp://depot/x'", "begins with https://"),
            ("url: 'https://depot/{label:site}'", "the label site"),
            ("url: 'https://depot/{who}'", "in braces"),
            ("url: 'https://depot/x', client_key: k", "go together"),
            ("url: 'https://depot/x', username: me", "go together"),
            ("interval: 100ms", "out of range"),
        ] {
            let said = load(&format!("poll: {{{poll}}}")).unwrap_err();
            assert!(said.contains(what) && said.lines().count() == 1, "{said}");
        }
        // A password that stands in an address is not repeated.
        let said = load("poll: {url: 'https://me:letmein@depot/x'}").unwrap_err();
        assert!(said.contains("credentials") && !said.contains("letmein"), "{said}");
    }

    #[test]
    fn who_the_box_is_is_shown_to_named_servers_alone() {
        let both = "artifacts: {hosts: [depot, 'registry:5000'], token_file: t}";
        assert_eq!(load(both).unwrap().artifacts.hosts.0, ["depot", "registry:5000"]);
        for (artifacts, what) in [
            ("token_file: t", "for no server"),
            ("username: me, password_file: p", "for no server"),
            ("client_certificate: c, client_key: k", "for no server"),
            ("hosts: [depot], username: me", "go together"),
            ("hosts: ['https://depot']", "is no host"),
        ] {
            let said = load(&format!("artifacts: {{{artifacts}}}")).unwrap_err();
            assert!(said.contains(what), "{said}");
        }
    }
}
