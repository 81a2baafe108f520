//! `blochd fleet`: bundles, as an operator makes and checks them.

mod keygen;
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
    Show(show::Show),
    Sign(sign::Sign),
    Verify(verify::Verify),
}

impl FleetCommand {
    pub fn run(self) -> Result<(), Failure> {
        match self.what {
            What::Keygen(keygen) => keygen.run(self.json),
            What::Node(node) => node.run(self.json),
            What::Show(show) => show.run(self.json),
            What::Sign(sign) => sign.run(self.json),
            What::Verify(verify) => verify.run(self.json),
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
        | Refused::Applied { .. }
        | Refused::GivenUp { .. }
        | Refused::NotForThisNode { .. }
        | Refused::NotChosen { .. }
        | Refused::Busy { .. } => Code::Unmet,
    }
}
