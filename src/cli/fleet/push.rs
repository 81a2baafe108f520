//! `blochd fleet push`, `watch` and `rollback`: a bundle goes to those it is for, and its way is followed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use blochd::fleet::roll_call::{Followed, Progress, RollCall, Standing};
use blochd::fleet::topics::{Target, Topics};
use blochd::fleet::{Document, Envelope, Node, Timestamp};
use blochd::shell::files;
use blochd::shell::links::operator::Operator;
use blochd::units::{Digest, Span};
use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::broker::{Connection, block_on, roll_call, unreached};
use super::sign::Sign;
use super::{Code, Failure, OrFail, code, read};

/// How often the progress is looked at anew.
const LOOK: Duration = Duration::from_millis(200);

/// How long what the broker retains is listened to before a verdict.
const HEARING: Duration = Duration::from_secs(15);

/// Publish a bundle for one node, a group or all.
///
/// The broker retains it: a node that is away finds it when it comes back, after weeks too. What the bundle
/// itself says of whom it is for holds as well. Nothing is retained that no node would read: the bundle is
/// checked first. With --wait its way is followed as by `blochd fleet watch`.
#[derive(Debug, Args)]
pub struct Push {
    bundle: PathBuf,
    /// node:ID, group:LABEL=VALUE or all.
    #[arg(long)]
    to: Target,
    /// Follow it for so long at most.
    #[arg(long, value_name = "TIME")]
    wait: Option<Span>,
    #[command(flatten)]
    connection: Connection,
}

/// Follow a bundle to the nodes that it is for.
///
/// Exit code 0 once every node that can be reached has it in force, 1 where a node refuses it, none is known
/// that it is for, or the time is over.
#[derive(Debug, Args)]
pub struct Watch {
    bundle: PathBuf,
    /// node:ID, group:LABEL=VALUE or all.
    #[arg(long, default_value = "all")]
    to: Target,
    /// Wait for so long at most.
    #[arg(long, value_name = "TIME", default_value = "30min")]
    wait: Span,
    #[command(flatten)]
    connection: Connection,
}

/// Publish what an earlier bundle says as a new revision.
///
/// Revisions only go up: a node takes no bundle that is older than one it has seen, whoever sends it, so that
/// nobody brings back a configuration with a known hole by replaying it. Going back is therefore a change like
/// others: the earlier document gets a new revision (one above all that nodes report, without --revision) and a
/// new time of expiry, is signed anew, and pushed. Where more than one signature is needed, --out alone writes
/// it for the others to sign.
#[derive(Debug, Args)]
pub struct Rollback {
    /// The bundle to go back to.
    earlier: PathBuf,
    /// node:ID, group:LABEL=VALUE or all.
    #[arg(long)]
    to: Target,
    /// The new revision [default: one above the highest that is reported].
    #[arg(long)]
    revision: Option<u64>,
    /// When the new bundle expires [default: as the earlier one].
    #[arg(long)]
    expires: Option<Timestamp>,
    /// A secret key that signs it. May be given several times. Without: nothing is published.
    #[arg(long = "key")]
    keys: Vec<PathBuf>,
    /// A file whose first line opens the keys.
    #[arg(long)]
    password_file: Option<PathBuf>,
    /// Where the new bundle goes, or the document where no key is given.
    #[arg(long, short)]
    out: PathBuf,
    /// Follow it for so long at most.
    #[arg(long, value_name = "TIME")]
    wait: Option<Span>,
    #[command(flatten)]
    connection: Connection,
}

impl Push {
    pub fn run(self, as_json: bool) -> Result<(), Failure> {
        let (bytes, document) = bundle(&self.bundle)?;
        let digest = Digest::of(&bytes).to_string();
        let topics = self.connection.topics()?;
        block_on(async {
            let operator = self.connection.connect().await?;
            push(&operator, &topics, &self.to, bytes).await?;
            if !as_json {
                println!("revision {} is published for {}", document.revision, self.to);
            }
            let Some(wait) = self.wait else {
                operator.close().await;
                if as_json {
                    println!(
                        "{:#}",
                        json!({"revision": document.revision, "to": self.to.to_string()})
                    );
                }
                return Ok(());
            };
            let follow = Follow::new(&topics, &self.to, &document, digest);
            follow.until(operator, wait.into(), as_json).await
        })
    }
}

impl Watch {
    pub fn run(self, as_json: bool) -> Result<(), Failure> {
        let (bytes, document) = bundle(&self.bundle)?;
        let digest = Digest::of(&bytes).to_string();
        let topics = self.connection.topics()?;
        block_on(async {
            let operator = self.connection.connect().await?;
            let follow = Follow::new(&topics, &self.to, &document, digest);
            follow.until(operator, self.wait.into(), as_json).await
        })
    }
}

impl Rollback {
    pub fn run(self, as_json: bool) -> Result<(), Failure> {
        let text = read(&self.earlier)?;
        let name = self.earlier.display().to_string();
        let envelope = Envelope::open(text.as_bytes());
        let envelope = envelope.map_err(|refused| Failure {
            code: code(&refused),
            error: anyhow!("{name}: {refused}"),
        })?;
        let revision = match self.revision {
            Some(revision) => revision,
            None => self.next_revision()?,
        };
        let anew = reissued(envelope.document, revision, self.expires);
        let document = Document::parse(&name, &anew).code(Code::Data)?;
        if document.revision != revision {
            return Err(anyhow!("{name} has no line `revision: …` of its own")).code(Code::Data);
        }
        let written = files::replace(&self.out, &[Bytes::from(anew)]);
        let out = self.out.display();
        written.with_context(|| format!("cannot write {out}")).code(Code::Io)?;
        if self.keys.is_empty() {
            println!("{out}: revision {revision}, to be signed (blochd fleet sign) and pushed");
            return Ok(());
        }
        Sign::again(&self.out, self.keys, self.password_file).run(as_json)?;
        let push =
            Push { bundle: self.out, to: self.to, wait: self.wait, connection: self.connection };
        push.run(as_json)
    }

    /// One above all that nodes report.
    fn next_revision(&self) -> Result<u64, Failure> {
        let topics = self.connection.topics()?;
        let roll = block_on(async {
            let mut operator = self.connection.connect().await?;
            let roll = roll_call(&mut operator, &topics, HEARING).await?;
            operator.close().await;
            Ok(roll)
        })?;
        let states = roll.nodes().values().filter_map(|node| node.state.as_ref());
        let told = states.flat_map(|state| {
            let applied = state.applied.iter().map(|one| one.revision);
            let underway = state.underway.iter().map(|one| one.revision);
            let refused = state.refused.iter().filter_map(|one| one.revision);
            applied.chain(underway).chain(refused)
        });
        let highest = told.max().and_then(|highest| highest.checked_add(1));
        highest
            .ok_or_else(|| anyhow!("no node reports a revision: give --revision"))
            .code(Code::Usage)
    }
}

/// The document with another revision and time of expiry. Both stand on lines of their own at the left.
fn reissued(document: &str, revision: u64, expires: Option<Timestamp>) -> String {
    let mut text = String::new();
    for line in document.split_inclusive('\n') {
        let end = if line.ends_with('\n') { "\n" } else { "" };
        match expires {
            _ if line.starts_with("revision:") => {
                text.push_str(&format!("revision: {revision}{end}"));
            }
            Some(expires) if line.starts_with("expires:") => {
                text.push_str(&format!("expires: {expires}{end}"));
            }
            Some(_) | None => text.push_str(line),
        }
    }
    text
}

/// A bundle that a node could read. Whether it would take it is for the node to say.
fn bundle(path: &Path) -> Result<(Bytes, Document), Failure> {
    let text = read(path)?;
    let name = path.display().to_string();
    let envelope = Envelope::open(text.as_bytes());
    let envelope = envelope
        .map_err(|refused| Failure { code: code(&refused), error: anyhow!("{name}: {refused}") })?;
    let document = Document::parse(&name, envelope.document).code(Code::Data)?;
    Ok((Bytes::from(text.into_bytes()), document))
}

async fn push(
    operator: &Operator,
    topics: &Topics,
    to: &Target,
    bytes: Bytes,
) -> Result<(), Failure> {
    let published = operator.publish(&topics.desired(to), bytes).await;
    published.map_err(|error| unreached(&error))
}

/// A bundle on its way.
struct Follow<'a> {
    topics: &'a Topics,
    to: &'a Target,
    document: &'a Document,
    bundle: Followed,
}

impl<'a> Follow<'a> {
    fn new(topics: &'a Topics, to: &'a Target, document: &'a Document, digest: String) -> Self {
        let bundle = Followed { revision: document.revision, digest };
        Self { topics, to, document, bundle }
    }

    async fn until(
        &self,
        mut operator: Operator,
        wait: Duration,
        as_json: bool,
    ) -> Result<(), Failure> {
        let end = Instant::now() + wait;
        let mut roll = roll_call(&mut operator, self.topics, wait.min(HEARING)).await?;
        let bar = if as_json { ProgressBar::hidden() } else { bar() };
        let mut progress = self.progress(&roll);
        loop {
            bar.set_length(progress.all() as u64);
            bar.set_position((progress.applied + progress.refused) as u64);
            bar.set_message(words(progress));
            let settled = progress.is_settled() && progress.all() > 0;
            if settled || Instant::now() >= end {
                break;
            }
            // What comes within a moment is looked at together.
            let look = tokio::time::sleep(LOOK);
            tokio::pin!(look);
            loop {
                tokio::select! {
                    () = &mut look => break,
                    message = operator.next() => {
                        let message = message.map_err(|error| unreached(&error))?;
                        roll.hear(&message.topic, &message.payload);
                    }
                }
            }
            progress = self.progress(&roll);
        }
        bar.finish_and_clear();
        operator.close().await;
        self.conclude(&roll, progress, as_json)
    }

    fn progress(&self, roll: &RollCall) -> Progress {
        roll.progress(&self.bundle, |id, labels| self.is_for(id, labels))
    }

    /// Whether a node hears of the bundle and is meant by it.
    fn is_for(&self, id: &str, labels: &BTreeMap<String, String>) -> bool {
        let node = Node { id: id.to_owned(), labels: labels.clone() };
        self.to.reaches(id, labels) && self.document.selector.select(&node).is_ok()
    }

    fn conclude(&self, roll: &RollCall, progress: Progress, as_json: bool) -> Result<(), Failure> {
        let revision = self.document.revision;
        let refused = roll.nodes().iter().filter_map(|(id, node)| {
            let labels = node.state.as_ref().map(|state| &state.labels)?;
            match roll.standing(id, &self.bundle) {
                Standing::Refused(why) if self.is_for(id, labels) => Some((id, why)),
                Standing::Refused(_)
                | Standing::Applied
                | Standing::Underway(_)
                | Standing::Pending => None,
            }
        });
        let refused: Vec<_> = refused.collect();
        if as_json {
            println!("{:#}", told(revision, progress, &refused));
        } else {
            for (id, why) in &refused {
                let line = why.chars().map(|one| if one.is_control() { ' ' } else { one });
                println!("{id} refused it: {}", line.collect::<String>());
            }
            println!("revision {revision}: {}", words(progress));
        }
        if progress.is_converged() {
            return Ok(());
        }
        let why = match progress {
            progress if progress.all() == 0 => "no node is known that it is for",
            progress if progress.refused > 0 => "it was refused",
            progress if progress.is_settled() => "no node that it is for can be reached",
            _ => "the time is over, and nodes have not said that it is in force",
        };
        Err(anyhow!("revision {revision}: {why}")).code(Code::Unmet)
    }
}

fn told(revision: u64, progress: Progress, refused: &[(&String, String)]) -> Value {
    let Progress { applied, refused: count, underway, pending, offline } = progress;
    let why = refused.iter().map(|(id, why)| json!({"node": id, "why": why}));
    json!({"revision": revision, "applied": applied, "refused": count, "underway": underway,
        "pending": pending, "offline": offline, "converged": progress.is_converged(),
        "refusals": why.collect::<Vec<_>>()})
}

fn words(progress: Progress) -> String {
    let Progress { applied, refused, underway, pending, offline } = progress;
    format!(
        "{applied} applied, {refused} refused, {underway} underway, {pending} pending, {offline} \
         offline"
    )
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_document_is_issued_anew_and_keeps_all_else() {
        let earlier = "revision: 3\nexpires: 2026-01-01T00:00:00Z\nconfig:\n  revision: no\n";
        assert_eq!(
            reissued(earlier, 9, None),
            "revision: 9\nexpires: 2026-01-01T00:00:00Z\nconfig:\n  revision: no\n"
        );
        let expires = "2027-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(
            reissued(earlier, 9, Some(expires)),
            "revision: 9\nexpires: 2027-01-01T00:00:00Z\nconfig:\n  revision: no\n"
        );
    }
}
