//! `blochd fleet sign`: a document becomes a bundle, or a bundle gets a further signature.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use blochd::fleet::keys::base64;
use blochd::fleet::{Document, Envelope, Key, KeySet, Refused};
use blochd::limits;
use blochd::shell::files;
use bytes::Bytes;
use clap::Args;
use minisign::{PublicKey, SecretKey, SecretKeyBox};
use serde_json::json;

use super::{Code, Failure, OrFail, code, read};

/// A secret key in minisign's form: marks, salt, bounds, name and key, and behind these a checksum.
const SECRET_KEY_BYTES: usize = 126;
const CHECKSUM_BYTES: usize = 32;

/// Sign a document, or a bundle that others have signed already.
///
/// The document is checked first: one that no box would take is not signed. Exit code 65 where it is wrong or a
/// key is none, 74 where a file cannot be read or written.
#[derive(Debug, Args)]
pub struct Sign {
    /// The document, or a bundle.
    document: PathBuf,
    /// The secret key, as minisign keeps it. May be given several times.
    #[arg(long = "key", required = true)]
    keys: Vec<PathBuf>,
    /// A file whose first line opens the keys [default: it is asked for, where a key needs it].
    #[arg(long)]
    password_file: Option<PathBuf>,
    /// Words that are signed too and shown to whoever verifies [default: the document's revision].
    #[arg(long)]
    comment: Option<String>,
    /// Where the bundle goes [default: the document's name with `.bundle`; a bundle itself].
    #[arg(long, short)]
    out: Option<PathBuf>,
}

impl Sign {
    /// Signs a document in its place.
    pub fn again(document: &Path, keys: Vec<PathBuf>, password_file: Option<PathBuf>) -> Self {
        let (document, out) = (document.to_owned(), Some(document.to_owned()));
        Self { document, keys, password_file, comment: None, out }
    }

    pub fn run(self, as_json: bool) -> Result<(), Failure> {
        let text = read(&self.document)?;
        let name = self.document.display().to_string();
        let (document, old) = match Envelope::open(text.as_bytes()) {
            Ok(Envelope { document, signatures }) => (document, signatures),
            Err(Refused::Unsigned) => (text.as_str(), Vec::new()),
            Err(refused) => return Err(failure(&name, &refused)),
        };
        let parsed = Document::parse(&name, document).code(Code::Data)?;
        let comment = self.comment.clone().unwrap_or(format!("revision:{}", parsed.revision));
        if comment.chars().any(char::is_control) {
            return Err(anyhow!("--comment: write one line")).code(Code::Usage);
        }
        let mut signatures: Vec<String> = old.iter().map(|one| (*one).to_owned()).collect();
        let mut by = Vec::new();
        for path in &self.keys {
            let secret = secret(path, self.password_file.as_deref())?;
            let (key, signature) = signature(&secret, document, &comment)?;
            if by.contains(&key.id()) || signed(&key, document, &signatures)? {
                return Err(anyhow!("key {} has signed it already", key.id())).code(Code::Usage);
            }
            by.push(key.id());
            signatures.push(signature);
            if !signed(&key, document, &signatures)? {
                let what = format!("{} is damaged: what it signs does not verify", path.display());
                return Err(anyhow!(what)).code(Code::Data);
            }
        }
        let all: Vec<&str> = signatures.iter().map(String::as_str).collect();
        let bundle = Envelope::seal(document, &all).map_err(|refused| failure(&name, &refused))?;
        let out = self.out.unwrap_or_else(|| match old.is_empty() {
            true => self.document.with_extension("bundle"),
            false => self.document.clone(),
        });
        let written = files::replace(&out, &[Bytes::from(bundle)]);
        written.with_context(|| format!("cannot write {}", out.display())).code(Code::Io)?;
        if as_json {
            let told = json!({"bundle": out, "revision": parsed.revision, "signed_by": by,
                "signatures": signatures.len()});
            println!("{told:#}");
        } else {
            let (revision, count) = (parsed.revision, signatures.len());
            println!(
                "{}: revision {revision}, {count} signatures, now by {}",
                out.display(),
                by.join(", ")
            );
        }
        Ok(())
    }
}

fn failure(name: &str, refused: &Refused) -> Failure {
    Failure { code: code(refused), error: anyhow!("{name}: {refused}") }
}

/// A signature over the document's hash, and the key that it verifies by.
fn signature(secret: &SecretKey, document: &str, comment: &str) -> Result<(Key, String), Failure> {
    let public = PublicKey::from_secret_key(secret).code(Code::Data)?;
    let key = Key::parse(&public.to_base64()).code(Code::Data)?;
    let words = format!("signature from minisign secret key {}", key.id());
    let made = minisign::sign(None, secret, document.as_bytes(), Some(comment), Some(&words));
    Ok((key, made.context("cannot sign").code(Code::Software)?.into_string()))
}

/// Whether one of the signatures is the key's own and holds.
fn signed(key: &Key, document: &str, signatures: &[String]) -> Result<bool, Failure> {
    let alone = KeySet::new(vec![key.clone()], 1).code(Code::Software)?;
    let all: Vec<&str> = signatures.iter().map(String::as_str).collect();
    Ok(!alone.tally(document.as_bytes(), &all).by.is_empty())
}

/// Reads a secret key; one with a password is opened by it.
fn secret(path: &Path, password_file: Option<&Path>) -> Result<SecretKey, Failure> {
    let read = files::read_text(path, limits::FLEET_KEY_BYTES);
    let text =
        read.with_context(|| format!("cannot read the key {}", path.display())).code(Code::Io)?;
    let boxed = || {
        let boxed = SecretKeyBox::from_string(&text);
        boxed.with_context(|| format!("{} is no secret key", path.display())).code(Code::Data)
    };
    if let Ok(open) = boxed()?.into_unencrypted_secret_key() {
        return Ok(open);
    }
    if let Some(open) = without_checksum(&text) {
        return Ok(open);
    }
    let opened = boxed()?.into_secret_key(password(password_file)?);
    opened.with_context(|| format!("cannot open the key {}", path.display())).code(Code::Data)
}

/// A key without a password as minisign 0.11 writes it: without the checksum by which a wrong password is told,
/// too. What is signed with a damaged one does not verify.
fn without_checksum(text: &str) -> Option<SecretKey> {
    let bytes = base64(text.lines().nth(1)?)?;
    let (checked, checksum) = bytes.split_at_checked(SECRET_KEY_BYTES)?;
    let open = checked.get(2..4) == Some(&[0, 0]);
    let none = checksum.len() == CHECKSUM_BYTES && checksum.iter().all(|byte| *byte == 0);
    (open && none).then(|| SecretKey::from_bytes(&bytes).ok())?
}

/// The first line of the file of a password; without a file it is asked for.
pub(super) fn password(file: Option<&Path>) -> Result<Option<String>, Failure> {
    let Some(file) = file else { return Ok(None) };
    let read = files::read_text(file, limits::FLEET_KEY_BYTES);
    let text = read.with_context(|| format!("cannot read {}", file.display())).code(Code::Io)?;
    Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
}
