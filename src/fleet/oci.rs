//! Registries of the OCI distribution specification: where a file of a known hash lies in one, and whom to ask
//! for a token.
//!
//! A bundle says a file's SHA-256, and a registry gives out blobs by theirs: no manifest is read. The tag or
//! the digest that a reference may end in is for people.

use std::fmt;
use std::str::FromStr;

use crate::config::web::authority;
use crate::limits;

use super::artifact::Sha256;

/// A repository of a registry: `oci://registry.example/models/ocr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    pub tls: bool,
    /// With its port where it has one.
    pub registry: String,
    pub name: String,
}

/// What is wrong with a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("a registry is a host, and a port where it is not the usual one")]
    Registry,
    #[error("there is no repository behind the registry, or not one that a registry can have")]
    Name,
    #[error("behind the repository stands :TAG or @sha256: and 64 hexadecimal digits")]
    Tag,
}

impl FromStr for Repository {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (tls, rest) = match text.strip_prefix("oci+http://") {
            Some(rest) => (false, rest),
            None => (true, text.strip_prefix("oci://").ok_or(ReferenceError::Registry)?),
        };
        if text.len() > limits::FLEET_URL_BYTES {
            return Err(ReferenceError::Name);
        }
        let (registry, rest) = rest.split_once('/').ok_or(ReferenceError::Name)?;
        authority(registry).ok_or(ReferenceError::Registry)?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        let is_sha256 = |digest: &str| {
            digest.strip_prefix("sha256:").is_some_and(|sum| sum.parse::<Sha256>().is_ok())
        };
        if !digest.is_none_or(is_sha256) || !tag.is_none_or(is_tag) {
            return Err(ReferenceError::Tag);
        }
        if !name.split('/').all(is_component) {
            return Err(ReferenceError::Name);
        }
        Ok(Self { tls, registry: registry.to_owned(), name: name.to_owned() })
    }
}

fn is_tag(tag: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (1..=128).contains(&tag.len()) && tag.bytes().all(plain) && !tag.starts_with(['.', '-'])
}

fn is_component(part: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let plain = |byte: u8| letter(byte) || b"-._".contains(&byte);
    let ends = |byte: Option<u8>| byte.is_some_and(letter);
    part.bytes().all(plain) && ends(part.bytes().next()) && ends(part.bytes().last())
}

impl Repository {
    /// Where the registry gives out a blob.
    pub fn blob(&self, sha256: Sha256) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}/v2/{}/blobs/sha256:{sha256}", self.registry, self.name)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "oci" } else { "oci+http" };
        write!(f, "{scheme}://{}/{}", self.registry, self.name)
    }
}

/// How a registry wants to be told who asks (RFC 9110, section 11.6.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// By a name and a password.
    Basic,
    /// By a token that is given out at `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The first challenge of a `WWW-Authenticate` field that can be met.
    pub fn parse(field: &str) -> Option<Self> {
        let mut left = field.trim();
        while !left.is_empty() && field.len() <= 4 * limits::FLEET_CHALLENGE_BYTES {
            let (scheme, rest) = left.split_once(' ').unwrap_or((left, ""));
            let (parameters, rest) = parameters(rest);
            let get = |name: &str| {
                let mut found = parameters.iter().filter(|(key, _)| key == name);
                found.next().map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("basic") {
                return Some(Self::Basic);
            }
            if let Some(realm) = get("realm").filter(|_| scheme.eq_ignore_ascii_case("bearer")) {
                return Some(Self::Bearer { realm, service: get("service"), scope: get("scope") });
            }
            left = rest.trim_start_matches([',', ' ']);
        }
        None
    }
}

/// The parameters at the beginning of a text, `name=value` or `name="value"` with commas between, and what
/// stands behind them: another challenge.
fn parameters(text: &str) -> (Vec<(String, String)>, &str) {
    let (mut found, mut left) = (Vec::new(), text.trim_start());
    while let Some((name, rest)) = left.split_once('=') {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let (name, rest) = (name.trim(), rest.trim_start());
        if name.is_empty() || !name.bytes().all(token) {
            break;
        }
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let Some(end) = end_of_quoted(quoted) else { break };
                (quoted[..end].replace('\\', ""), &quoted[end + 1..])
            }
            None => {
                let end = rest.find([',', ' ']).unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        found.push((name.to_ascii_lowercase(), value));
        let rest = rest.trim_start();
        let Some(next) = rest.strip_prefix(',') else { return (found, rest) };
        left = next.trim_start();
    }
    (found, left)
}

/// Where the quotation mark is that ends a text.
fn end_of_quoted(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// Where a token for a repository is asked for; `None` where a registry's words make no address.
pub fn token_address(
    challenge: (&str, Option<&str>, Option<&str>),
    repository: &Repository,
) -> Option<String> {
    let (realm, service, scope) = challenge;
    let pull = format!("repository:{}:pull", repository.name);
    let scope = scope.unwrap_or(&pull);
    let fits = |text: &str| text.len() <= limits::FLEET_CHALLENGE_BYTES;
    if ![realm, service.unwrap_or(""), scope].into_iter().all(fits) {
        return None;
    }
    let mut address = realm.to_owned();
    address.push(if realm.contains('?') { '&' } else { '?' });
    if let Some(service) = service {
        address.push_str(&format!("service={}&", encoded(service)));
    }
    address.push_str(&format!("scope={}", encoded(scope)));
    Some(address)
}

/// A value in a query.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte);
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match plain(byte) {
            true => encoded.push(char::from(byte)),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reference_is_a_registry_and_a_repository_with_or_without_a_tag() {
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for text in [
            "oci://registry.example:5000/models/ocr".to_owned(),
            "oci://registry.example:5000/models/ocr:3.1_a".to_owned(),
            format!("oci://registry.example:5000/models/ocr@sha256:{sum}"),
            format!("oci://registry.example:5000/models/ocr:3@sha256:{sum}"),
        ] {
            let read: Repository = text.parse().unwrap();
            assert_eq!(read.to_string(), "oci://registry.example:5000/models/ocr");
            let blob = read.blob(sum.parse().unwrap());
            let expected =
                format!("https://registry.example:5000/v2/models/ocr/blobs/sha256:{sum}");
            assert_eq!(blob, expected);
        }
        let plain: Repository = "oci+http://localhost:5000/m".parse().unwrap();
        assert!(plain.blob(sum.parse().unwrap()).starts_with("http://localhost:5000/v2/m/blobs/"));
        for (text, wrong) in [
            ("oci://registry.example", ReferenceError::Name),
            ("oci://registry.example/", ReferenceError::Name),
            ("oci://registry.example/../m", ReferenceError::Name),
            ("oci://registry.example/a//m", ReferenceError::Name),
            ("oci://registry.example/M", ReferenceError::Name),
            ("oci://registry.example/m?x", ReferenceError::Name),
            ("oci://registry.example/m:", ReferenceError::Tag),
            ("oci://registry.example/m@sha256:12", ReferenceError::Tag),
            ("oci://me:secret@registry.example/m", ReferenceError::Registry),
            ("oci:///m", ReferenceError::Registry),
        ] {
            assert_eq!(text.parse::<Repository>(), Err(wrong), "{text}");
        }
    }

    #[test]
    fn a_challenge_is_taken_apart_as_registries_write_them() {
        let of_docker = "Bearer realm=\"https://auth.docker.io/token\",\
                         service=\"registry.docker.io\",scope=\"repository:library/x:pull,push\"";
        let expected = Challenge::Bearer {
            realm: "https://auth.docker.io/token".to_owned(),
            service: Some("registry.docker.io".to_owned()),
            scope: Some("repository:library/x:pull,push".to_owned()),
        };
        assert_eq!(Challenge::parse(of_docker), Some(expected));
        let bare =
            Challenge::Bearer { realm: "https://a/t".to_owned(), service: None, scope: None };
        assert_eq!(Challenge::parse("bearer realm=https://a/t"), Some(bare.clone()));
        assert_eq!(Challenge::parse("Basic realm=\"Registry, of ours\""), Some(Challenge::Basic));
        let several =
            "Negotiate, Digest realm=\"x\", nonce=\"a\\\"b\", Bearer realm=\"https://a/t\"";
        assert_eq!(Challenge::parse(several), Some(bare));
        for none in ["", "Bearer", "Bearer service=\"x\"", "Digest realm=\"x\"", "Bearer realm=\""]
        {
            assert_eq!(Challenge::parse(none), None, "{none}");
        }
    }

    #[test]
    fn a_token_is_asked_for_at_an_address_with_nothing_added_to_it() {
        let repository: Repository = "oci://r.example/models/ocr".parse().unwrap();
        let asked = |realm, service, scope| token_address((realm, service, scope), &repository);
        assert_eq!(
            asked("https://a/t", Some("r&x=y z"), None).unwrap(),
            "https://a/t?service=r%26x%3Dy%20z&scope=repository:models/ocr:pull"
        );
        assert_eq!(asked("https://a/t?k=1", None, Some("s")).unwrap(), "https://a/t?k=1&scope=s");
        let long = "x".repeat(limits::FLEET_CHALLENGE_BYTES + 1);
        assert_eq!(asked("https://a/t", Some(&long), None), None);
    }

    proptest! {
        #[test]
        fn no_words_of_a_registry_break_it(text in "[ -~]{0,200}") {
            let _ = Challenge::parse(&text);
            let _ = format!("oci://r/{text}").parse::<Repository>();
        }

        #[test]
        fn no_signs_of_a_challenge_break_it(text in "(Bearer|realm|=|\"|,| |\\\\|é|x){0,40}") {
            let _ = Challenge::parse(&text);
        }
    }
}
