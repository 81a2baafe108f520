//! `blochd fleet show` and `node`: what a bundle says, unverified, and who this box is.

use std::path::PathBuf;

use blochd::fleet::{Artifact, Document, Envelope, Further, Refused, Selector, Source};
use blochd::shell::fleet::node;
use clap::Args;
use serde_json::{Value, json};

use super::super::configured;
use super::{Code, Failure, OrFail, code, read};

/// Show what a document or bundle says. Nothing is verified.
#[derive(Debug, Args)]
pub struct Show {
    /// The document, or a bundle.
    bundle: PathBuf,
}

/// Show by which name and labels bundles address this box.
#[derive(Debug, Args)]
pub struct ShowNode {
    /// The configuration. Without: `/etc/blochd/agent.yaml` where it is there, else the defaults.
    #[arg(long, env = "BLOCHD_CONFIG")]
    config: Option<PathBuf>,
}

impl Show {
    pub fn run(self, as_json: bool) -> Result<(), Failure> {
        let text = read(&self.bundle)?;
        let name = self.bundle.display().to_string();
        let (body, signatures) = match Envelope::open(text.as_bytes()) {
            Ok(Envelope { document, signatures }) => (document, signatures.len()),
            Err(Refused::Unsigned) => (text.as_str(), 0),
            Err(refused) => {
                return Err(refused).map_err(|refused| Failure {
                    code: code(&refused),
                    error: anyhow::anyhow!("{name}: {refused}"),
                });
            }
        };
        let parsed = Document::parse(&name, body).code(Code::Data)?;
        if as_json {
            let told = json!({"document": document(&parsed), "signatures": signatures});
            println!("{told:#}");
        } else {
            print!("{}", words(&parsed));
            println!("{signatures} signatures, not verified");
        }
        Ok(())
    }
}

impl ShowNode {
    pub fn run(self, as_json: bool) -> Result<(), Failure> {
        let file = configured::file(self.config);
        let loaded = configured::load_and_warn(file.as_deref(), &[]).map_err(configured::failed)?;
        let node = node(&loaded.config.fleet).code(Code::Config)?;
        if as_json {
            println!("{:#}", json!({"id": node.id, "labels": node.labels}));
        } else {
            println!("{}", node.id);
            node.labels.iter().for_each(|(name, value)| println!("{name}={value}"));
        }
        Ok(())
    }
}

/// The key under which a document says where a file is.
fn kind(from: &Source) -> &'static str {
    match from {
        Source::Web(_) | Source::Registry(_) => "url",
        Source::File(_) => "file",
    }
}

/// A document as JSON.
pub(super) fn document(of: &Document) -> Value {
    let models: Vec<Value> = of
        .models
        .iter()
        .map(|model| {
            let files: Vec<Value> = model
                .files
                .iter()
                .map(|file| {
                    json!({"name": file.name, kind(&file.from): file.from.to_string(),
                        "size": file.size, "sha256": file.sha256.to_string()})
                })
                .collect();
            json!({"name": model.name, "version": model.version,
                kind(&model.from): model.from.to_string(), "size": model.size,
                "sha256": model.sha256.to_string(), "signed": model.signature.is_some(),
                "files": files})
        })
        .collect();
    let Selector { nodes, labels, share } = &of.selector;
    let share = share
        .as_ref()
        .map(|share| json!({"percent": share.parts as f64 / 100.0, "salt": share.salt}));
    json!({
        "revision": of.revision, "expires": of.expires.to_string(),
        "for": {"nodes": nodes, "labels": labels, "share": share},
        "config": of.config.is_some(), "models": models, "keys": of.keys,
    })
}

/// A document for people.
pub(super) fn words(of: &Document) -> String {
    let Selector { nodes, labels, share } = &of.selector;
    let mut whom: Vec<String> = Vec::new();
    if !nodes.is_empty() {
        let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
        whom.push(format!("nodes {}", names.join(", ")));
    }
    for (label, values) in labels {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        whom.push(format!("{label} {}", values.join(" or ")));
    }
    if let Some(share) = share {
        whom.push(format!("{} % (salt {})", share.parts as f64 / 100.0, share.salt));
    }
    let whom = if whom.is_empty() { "all".to_owned() } else { whom.join("; ") };
    let mut text = format!("revision {}, until {}, for {whom}\n", of.revision, of.expires);
    if of.config.is_some() {
        text.push_str("a configuration\n");
    }
    for model in &of.models {
        let Artifact { name, version, size, from, .. } = model;
        text.push_str(&format!("{name} version {version}: {size} bytes from {from}\n"));
        for Further { name, size, from, .. } in &model.files {
            text.push_str(&format!("  with {name}: {size} bytes from {from}\n"));
        }
    }
    if let Some(keys) = &of.keys {
        let ids: Vec<String> = keys.keys().iter().map(|key| key.id()).collect();
        let line = format!("then signed by {} of {}\n", keys.threshold(), ids.join(", "));
        text.push_str(&line);
    }
    text
}
