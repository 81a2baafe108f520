//! `blochd fleet keygen`: a pair of keys, as `minisign -G` makes it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use blochd::fleet::Key;
use clap::Args;
use minisign::KeyPair;
use serde_json::json;

use super::sign::password;
use super::{Code, Failure, OrFail};

/// Make a pair of keys in minisign's form. Files that are there are left alone.
#[derive(Debug, Args)]
pub struct Keygen {
    /// Where the secret key goes. Keep it where no box of the fleet can reach it.
    #[arg(long)]
    key: PathBuf,
    /// Where the public key goes, which `fleet.keys` names on every box.
    #[arg(long)]
    public: PathBuf,
    /// A file whose first line protects the secret key [default: it is asked for].
    #[arg(long)]
    password_file: Option<PathBuf>,
    /// Leave the secret key without a password: for a signer that keeps it safe by other means.
    #[arg(long, conflicts_with = "password_file")]
    no_password: bool,
}

impl Keygen {
    pub fn run(self, as_json: bool) -> Result<(), Failure> {
        // Both are made before there is a key, so that none is lost.
        let mut secret = create(&self.key, 0o600)?;
        let mut public = create(&self.public, 0o644)?;
        let done = self.write(&mut secret, &mut public);
        match done {
            Ok(key) if as_json => println!("{:#}", json!({"id": key.id(), "public": key.text()})),
            Ok(key) => println!("key {}: {}", key.id(), key.text()),
            Err(failure) => {
                // Nothing of worth is in them.
                let _ = (std::fs::remove_file(&self.key), std::fs::remove_file(&self.public));
                return Err(failure);
            }
        }
        Ok(())
    }

    fn write(&self, secret: &mut File, public: &mut File) -> Result<Key, Failure> {
        let pair = if self.no_password {
            KeyPair::generate_unencrypted_keypair()
        } else {
            KeyPair::generate_encrypted_keypair(password(self.password_file.as_deref())?)
        };
        let pair = pair.context("cannot make keys").code(Code::Software)?;
        let key = Key::parse(&pair.pk.to_base64()).code(Code::Software)?;
        let id = key.id();
        let comment = format!("minisign secret key {id}");
        let boxed = pair.sk.to_box(Some(&comment)).code(Code::Software)?;
        let own = format!("untrusted comment: minisign public key {id}\n{}\n", key.text());
        secret.write_all(&boxed.to_bytes()).and_then(|()| secret.sync_all()).code(Code::Io)?;
        public.write_all(own.as_bytes()).and_then(|()| public.sync_all()).code(Code::Io)?;
        Ok(key)
    }
}

fn create(path: &Path, mode: u32) -> Result<File, Failure> {
    let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    made.map_err(|error| anyhow!("cannot make {}: {error}", path.display())).code(Code::Io)
}
