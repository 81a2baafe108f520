//! `blochd fleet`: bundles, as an operator makes, checks and sends them.

mod broker;
mod keygen;
mod nodes;
mod push;
mod show;
mod sign;
mod verify;

use std::path::Path;

use anyhow::Context;
use blochd::fleet::Refused;
use blochd::limits;
use blochd::shell::files;
use clap::{Args, Subcommand};

use super::{Code, Failure, OrFail};

/// Make, check and look at the bundles that a fleet sends to its boxes.
///
/// A bundle is one file: a YAML document and behind it signatures as minisign writes them. `cat` puts one
/// together, `sed '/^untrusted comment: /,$d'` takes the document out again, and stock minisign makes and
/// verifies the signatures as well.
#[derive(Debug, Args)]
pub struct FleetCommand {
    #[command(subcommand)]
    what: What,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    Keygen(keygen::Keygen),
    Node(show::ShowNode),
    Push(Box<push::Push>),
    Rollback(Box<push::Rollback>),
    Show(show::Show),
    Sign(sign::Sign),
    Status(Box<nodes::Status>),
    Verify(verify::Verify),
    Watch(Box<push::Watch>),
}

impl FleetCommand {
    pub fn run(self) -> Result<(), Failure> {
        match self.what {
            What::Keygen(keygen) => keygen.run(self.json),
            What::Node(node) => node.run(self.json),
            What::Show(show) => show.run(self.json),
            What::Push(push) => push.run(self.json),
            What::Rollback(rollback) => rollback.run(self.json),
            What::Sign(sign) => sign.run(self.json),
            What::Status(status) => status.run(self.json),
            What::Verify(verify) => verify.run(self.json),
            What::Watch(watch) => watch.run(self.json),
        }
    }
}

/// The text of a document or bundle.
fn read(path: &Path) -> Result<String, Failure> {
    let read = files::read_text(path, limits::FLEET_BUNDLE_BYTES);
    read.with_context(|| format!("cannot read {}", path.display())).code(Code::Io)
}

/// The exit code of a bundle that is refused: one that is not what it should be, or one that is and may not
/// come into force.
fn code(refused: &Refused) -> Code {
    match refused {
        Refused::TooLarge { .. } | Refused::Malformed { .. } | Refused::Document(_) => Code::Data,
        Refused::NoKeys => Code::Config,
        Refused::Unsigned
        | Refused::Signatures { .. }
        | Refused::NextKeys { .. }
        | Refused::Expired { .. }
        | Refused::Old { .. }
        | Refused::OtherContents { .. }
        | Refused::Superseded { .. }
        | Refused::Applied { .. }
        | Refused::GivenUp { .. }
        | Refused::NotForThisNode { .. }
        | Refused::NotChosen { .. }
        | Refused::Busy { .. } => Code::Unmet,
    }
}
