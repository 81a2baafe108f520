//! Certificates for tests: an authority, and whom it vouches for.

// Each test program uses its own part of it.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// Who vouches for certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority of the tests");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub fn write(&self, path: &Path) {
        fs::write(path, &self.pem).unwrap();
    }

    /// Writes `<name>.pem` and `<name>.key` into `dir`: of a host on this machine, and of a client with that common
    /// name.
    pub fn certify(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        self.certify_as(dir, name, vec![SanType::DnsName("localhost".try_into().unwrap())])
    }

    /// The same with other alternative names.
    pub fn certify_as(&self, dir: &Path, name: &str, names: Vec<SanType>) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (pem, secret) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        // Each of them whole, as a careful writer does it.
        for (path, text) in [(&secret, key.serialize_pem()), (&pem, certificate.pem())] {
            fs::write(path.with_extension("new"), text).unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        }
        (pem, secret)
    }
}
