//! How web servers are asked: TLS, certificates, passwords and tokens; never from https to http, and nobody but
//! the server that was meant is shown who the box is.

use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};

use super::trust::{Named, Trust, TrustError, distrust, first_line, provider};
use crate::config::{SignIn, UserName};
use crate::limits;
use crate::shell::secrets::SecretError;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebError {
    #[error(transparent)]
    Secret(#[from] TrustError),
    #[error(
        "the server's certificate is not trusted: {why}; {settings}.ca names who vouches for it"
    )]
    NotTrusted { why: String, settings: &'static str },
    #[error("it sends on to an address without TLS, which is not followed")]
    SentToPlain,
    #[error("it sends on and on")]
    SentOn,
    #[error("no connection to it: {0}")]
    Connection(String),
}

impl WebError {
    /// Of an error of the client, which was made from these settings.
    pub fn of(error: &ureq::Error, settings: &'static str) -> Self {
        let why = match error {
            ureq::Error::RequireHttpsOnly(_) => return Self::SentToPlain,
            ureq::Error::TooManyRedirects => return Self::SentOn,
            ureq::Error::Rustls(error) => distrust(error),
            ureq::Error::Io(error) => distrust(error),
            _ => None,
        };
        why.map_or_else(
            || Self::Connection(error.to_string()),
            |why| Self::NotTrusted { why, settings },
        )
    }
}

/// How a client is made.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub sign_in: &'a SignIn,
    /// The settings that say so, for errors: `fleet.poll`.
    pub settings: &'static str,
    /// Whether what is asked has TLS: nothing without it is then asked on the way.
    pub tls: bool,
    /// How long a whole question may take; `None`: as long as something comes.
    pub whole: Option<Duration>,
}

/// A client that takes every status for an answer. Reads the files that the settings name.
///
/// # Errors
/// Where a file that is needed is missing or wrong.
pub fn client(wanted: &Wanted) -> Result<ureq::Agent, TrustError> {
    let SignIn { ca, client_certificate, client_key, .. } = wanted.sign_in;
    let named = Named {
        ca: ca.as_deref(),
        certificate: client_certificate.as_ref(),
        key: client_key.as_ref(),
        settings: wanted.settings,
    };
    let trust = match Trust::read(&named) {
        Ok(trust) => trust,
        // Where a server without TLS sends on to one with it, that one is trusted by nobody.
        Err(_) if !wanted.tls => Trust { roots: Vec::new(), own: None },
        Err(error) => return Err(error),
    };
    let config = ureq::Agent::config_builder()
        .https_only(wanted.tls)
        .user_agent(concat!("blochd/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .max_redirects(limits::FLEET_REDIRECTS)
        .redirect_auth_headers(RedirectAuthHeaders::Never)
        .timeout_connect(Some(limits::FLEET_SILENCE))
        .timeout_recv_response(Some(limits::FLEET_SILENCE))
        // A slow server may take its time, a silent one may not.
        .timeout_per_read(Some(limits::FLEET_SILENCE))
        .timeout_global(wanted.whole)
        .tls_config(tls(&trust)?)
        .build();
    Ok(ureq::Agent::new_with_config(config))
}

/// The client has roots of nobody's unless it is given some.
fn tls(trust: &Trust) -> Result<TlsConfig, TrustError> {
    let owned = |der: &[u8]| Certificate::from_der(der).to_owned();
    let roots: Vec<_> = trust.roots.iter().map(|one| owned(one)).collect();
    let own = match &trust.own {
        None => None,
        Some((chain, key)) => {
            let chain: Vec<_> = chain.iter().map(|one| owned(one)).collect();
            let key = PrivateKey::from_pem(key)
                .map_err(|error| TrustError::Certificates(error.to_string()))?;
            Some(ClientCert::new_with_certs(&chain, key))
        }
    };
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(provider())
        .root_certs(RootCerts::new_with_certs(&roots))
        .client_cert(own)
        .build())
}

/// What a request says of who asks; `None`: nothing.
///
/// # Errors
/// Where a file is missing or holds nothing that can be sent.
pub fn authorization(sign_in: &SignIn) -> Result<Option<String>, TrustError> {
    if let Some(file) = &sign_in.token_file {
        let token = first_line(file)?;
        let fits = token.len() <= limits::FLEET_TOKEN_BYTES && !token.is_empty();
        return match String::from_utf8(token) {
            Ok(token) if fits && is_token(&token) => Ok(Some(format!("Bearer {token}"))),
            Ok(_) | Err(_) => {
                let path = file.0.display().to_string();
                Err(SecretError::Pem { path, what: "token" }.into())
            }
        };
    }
    let (Some(UserName(name)), Some(file)) = (&sign_in.username, &sign_in.password_file) else {
        return Ok(None);
    };
    let mut both = format!("{name}:").into_bytes();
    both.extend(first_line(file)?);
    Ok(Some(format!("Basic {}", base64(&both))))
}

/// Whether a text can stand behind `Bearer`.
pub fn is_token(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for digit in 0..4 {
            let place = (bits >> (18 - 6 * digit)) & 63;
            // A byte makes two digits, two make three.
            let shown = if digit <= chunk.len() { DIGITS[place as usize] } else { b'=' };
            text.push(char::from(shown));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::SecretFile;

    #[test]
    fn base64_is_that_of_the_specification() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("Aladdin:open sesame", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }

    #[test]
    fn a_token_comes_before_a_password_and_both_from_a_files_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).unwrap();
            Some(SecretFile(dir.path().join(name)))
        };
        let mut sign_in = SignIn::default();
        assert_eq!(authorization(&sign_in), Ok(None));
        sign_in.username = Some(UserName("Aladdin".to_owned()));
        sign_in.password_file = file("password", "open sesame\r\nmore\n");
        let basic = Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".to_owned());
        assert_eq!(authorization(&sign_in), Ok(basic));
        sign_in.token_file = file("token", "abc.def\n");
        assert_eq!(authorization(&sign_in), Ok(Some("Bearer abc.def".to_owned())));
        for wrong in ["", "two words", "new\rline"] {
            sign_in.token_file = file("token", wrong);
            let said = authorization(&sign_in).unwrap_err().to_string();
            assert!(said.ends_with("holds no token"), "{said}");
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_told_and_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        fs::write(path("cert"), made.cert.pem()).unwrap();
        fs::write(path("key"), other.serialize_pem()).unwrap();
        let mut sign_in = SignIn {
            ca: Some(path("cert")),
            client_certificate: Some(SecretFile(path("cert"))),
            client_key: Some(SecretFile(path("key"))),
            ..SignIn::default()
        };
        let made_of = |sign_in: &SignIn| {
            let wanted = Wanted { sign_in, settings: "fleet.poll", tls: true, whole: None };
            client(&wanted).map(drop).map_err(|error| error.to_string())
        };
        let said = made_of(&sign_in).unwrap_err();
        assert!(said.starts_with(&path("cert").display().to_string()), "{said}");
        fs::write(path("key"), "no key").unwrap();
        assert!(made_of(&sign_in).unwrap_err().contains("no private key"));
        fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
        assert_eq!(made_of(&sign_in), Ok(()));
        sign_in.client_key = None;
        assert!(made_of(&sign_in).unwrap_err().contains("go together"));
        sign_in.client_certificate = None;
        sign_in.ca = Some(path("key"));
        assert!(made_of(&sign_in).unwrap_err().contains("no certificate"));
    }
}
