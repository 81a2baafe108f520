//! `blochd fleet verify`: whether a box would take a bundle.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use blochd::config::{Flag, Loaded};
use blochd::fleet::{self, KeySet, Node, Refused, Timestamp, Verified};
use blochd::shell::fleet::keys;
use clap::Args;
use serde_json::{Value, json};

use super::super::configured;
use super::show::{document, words};
use super::{Code, Failure, OrFail, code, read};

/// Say whether a bundle holds: its signatures, what it says, whom it is for, and until when.
///
/// Exit code 1 where it is sound and would be refused all the same, 65 where it is no bundle, 78 where no key
/// is trusted. What a box has seen before it only knows itself.
#[derive(Debug, Args)]
pub struct Verify {
    bundle: PathBuf,
    /// A public key that is trusted. May be given several times [default: those of the configuration].
    #[arg(long = "key")]
    keys: Vec<PathBuf>,
    /// How many of the keys must have signed [default: as the configuration says].
    #[arg(long)]
    threshold: Option<usize>,
    /// Ask for the box of this name [default: for any].
    #[arg(long)]
    node: Option<String>,
    /// A label of that box, `name=value`. May be given several times.
    #[arg(long = "label", requires = "node")]
    labels: Vec<String>,
    /// Ask for this moment, such as 2026-12-31T00:00:00Z [default: now].
    #[arg(long)]
    at: Option<Timestamp>,
    /// The configuration. Without: `/etc/blochd/agent.yaml` where it is there, else the defaults.
    #[arg(long, env = "BLOCHD_CONFIG")]
    config: Option<PathBuf>,
}

impl Verify {
    pub fn run(self, as_json: bool) -> Result<(), Failure> {
        let text = read(&self.bundle)?;
        let trusted = self.trusted()?;
        let name = self.bundle.display().to_string();
        let at = match self.at {
            Some(at) => at,
            None => {
                Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()))
            }
        };
        let verified = fleet::verify(&name, text.as_bytes(), trusted.as_ref());
        let judged = match &verified {
            Ok(verified) => self.judge(verified, at)?,
            Err(refused) => Err(refused.clone()),
        };
        if as_json {
            println!("{:#}", told(verified.as_ref().ok(), &judged));
        } else if let (Ok(verified), Ok(())) = (&verified, &judged) {
            print!("{}", words(&verified.document));
            for (key, comment) in &verified.by.by {
                println!("signed by {key} ({comment})");
            }
        }
        judged.map_err(|refused| Failure {
            code: code(&refused),
            error: anyhow!("{name} is refused: {refused}"),
        })
    }

    /// Whom it is for and until when.
    fn judge(&self, verified: &Verified, at: Timestamp) -> Result<Result<(), Refused>, Failure> {
        let Some(id) = &self.node else {
            let expires = verified.document.expires;
            let expired = at >= expires;
            return Ok(if expired { Err(Refused::Expired { expires, now: at }) } else { Ok(()) });
        };
        let flags: Vec<Flag> = [
            configured::flag("--node", "fleet.node_id", Some(id)),
            configured::flag("--label", "fleet.labels", Some(&self.labels.join(", "))),
        ]
        .into_iter()
        .flatten()
        .collect();
        // Read as the settings are, with the same words where something is wrong.
        let loaded = configured::load(None, &flags).code(Code::Usage)?;
        let node = Node { id: id.clone(), labels: loaded.config.fleet.labels.0 };
        Ok(fleet::admit(verified, &node, None, at))
    }

    fn trusted(&self) -> Result<Option<KeySet>, Failure> {
        if self.keys.is_empty() {
            let file = configured::file(self.config.clone());
            let loaded =
                configured::load_and_warn(file.as_deref(), &[]).map_err(configured::failed)?;
            let Loaded { config, .. } = loaded;
            let mut fleet = config.fleet;
            fleet.threshold = self.threshold.unwrap_or(fleet.threshold);
            return keys::trusted(&fleet).code(Code::Config);
        }
        let read: Result<Vec<_>, _> = self.keys.iter().map(|path| keys::read(path)).collect();
        let set = KeySet::new(read.code(Code::Data)?, self.threshold.unwrap_or(1));
        set.map(Some).code(Code::Usage)
    }
}

fn told(verified: Option<&Verified>, judged: &Result<(), Refused>) -> Value {
    let mut told = match judged {
        Ok(()) => json!({ "holds": true }),
        Err(refused) => {
            json!({ "holds": false, "refused": refused.kind(), "reason": refused.to_string() })
        }
    };
    if let Some(verified) = verified {
        told["digest"] = json!(verified.digest);
        told["signed_by"] = json!(verified.by.by);
        told["document"] = document(&verified.document);
    }
    told
}
