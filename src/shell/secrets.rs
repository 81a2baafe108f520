//! Files that are not for everybody: certificates, keys, passwords and tokens, at a path or as a credential
//! that systemd gives the service. Nothing of what they hold stands in an error.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::SecretFile;
use crate::limits;
use crate::shell::files;

/// Why a file is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read {path}: {why}")]
    File { path: String, why: String },
    #[error("{path} holds no {what}")]
    Pem { path: String, what: &'static str },
}

/// Where a file lies. A credential lies in a folder that systemd names.
///
/// # Errors
/// Where systemd gave no credentials.
pub fn resolve(file: &SecretFile) -> Result<PathBuf, SecretError> {
    let SecretFile(path) = file;
    let credential = path.to_str().and_then(|text| text.strip_prefix(SecretFile::CREDENTIAL));
    let Some(name) = credential else { return Ok(path.clone()) };
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| SecretError::File {
        path: path.display().to_string(),
        why: "systemd gave this service no credentials (LoadCredential=)".to_owned(),
    })?;
    Ok(Path::new(&folder).join(name))
}

/// Whether every user of the box may read or write a file.
pub fn is_open(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|facts| facts.mode() & 0o006 != 0)
}

/// All certificates of a file, at least one.
///
/// # Errors
/// Where it cannot be read or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SecretError> {
    let bytes = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) | Err(_) => Err(pem(path, "certificate in PEM")),
    }
}

/// The first private key of a file.
///
/// # Errors
/// Where it cannot be read or holds none.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, SecretError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_| pem(path, "private key in PEM"))
}

/// The first line of a file: a password, or a token.
///
/// # Errors
/// Where it cannot be read.
pub fn first_line(path: &Path) -> Result<Vec<u8>, SecretError> {
    let bytes = read(path)?;
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    Ok(line.strip_suffix(b"\r").unwrap_or(line).to_vec())
}

/// A file, whole.
///
/// # Errors
/// Where it cannot be read, or is larger than any such file.
pub fn read(path: &Path) -> Result<Vec<u8>, SecretError> {
    files::read(path, limits::SECRET_BYTES).map_err(|error| SecretError::File {
        path: path.display().to_string(),
        why: error.to_string(),
    })
}

fn pem(path: &Path, what: &'static str) -> SecretError {
    SecretError::Pem { path: path.display().to_string(), what }
}
