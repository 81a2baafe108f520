//! What is served by which name: read without a lock by every request, written by the agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};

use crate::limits::REPOSITORY_COMMANDS;
use crate::units::Version;

use super::live::{Drain, Slot};

/// What stands behind one version of a model.
#[derive(Clone)]
pub enum Entry {
    /// Served.
    Ready(Arc<Slot>),
    /// Not served, and why.
    Unready {
        state: ModelState,
        /// For people: what happened and what to do.
        reason: String,
    },
}

/// States of the model repository extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelState {
    Ready,
    Loading,
    Unloading,
    Unavailable,
}

impl ModelState {
    /// The protocol's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::Loading => "LOADING",
            Self::Unloading => "UNLOADING",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

/// One line of the repository's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    pub model: String,
    pub version: Version,
    pub state: ModelState,
    /// Empty for a ready version.
    pub reason: String,
}

/// Why no slot serves a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// No such model.
    #[error("Request for unknown model: '{model}' is not found")]
    UnknownModel { model: String },
    /// The model has no such version.
    #[error("Request for unknown model: '{model}' version {version} is not found")]
    UnknownVersion { model: String, version: Version },
    /// It exists, and is not ready.
    #[error("model '{model}' version {version} is not ready: {reason}")]
    Unready { model: String, version: Version, reason: String },
}

/// What a client asks of the agent.
#[derive(Debug)]
pub enum Command {
    /// Load or reload a model from its directory.
    Load { model: String, answer: oneshot::Sender<Result<(), CommandError>> },
    /// Stop serving all versions of a model until it is loaded again.
    Unload { model: String, answer: oneshot::Sender<Result<(), CommandError>> },
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The model directory has no such model.
    #[error("failed to poll from model repository: there is no model '{model}'")]
    UnknownModel { model: String },
    /// It was tried and failed; the version in service, if there was one, still is.
    #[error("{0}")]
    Failed(String),
    /// The policy forbids it.
    #[error("{0}")]
    Forbidden(String),
    /// The agent is too busy, or stops.
    #[error("the agent does not take commands now: {0}")]
    Busy(String),
}

/// The agent's end of the commands.
pub type Commands = mpsc::Receiver<Command>;

type Versions = BTreeMap<Version, Entry>;

/// All served models.
pub struct Repository {
    models: ArcSwap<BTreeMap<String, Arc<Versions>>>,
    commands: mpsc::Sender<Command>,
    ready: AtomicBool,
    /// Whether it was ever ready, or ends.
    begun: AtomicBool,
    changes: watch::Sender<()>,
}

impl Repository {
    /// An empty repository that is not ready yet, and the receiving end of its clients' commands.
    pub fn new() -> (Arc<Self>, Commands) {
        let (commands, receiver) = mpsc::channel(REPOSITORY_COMMANDS);
        let models = ArcSwap::default();
        let (ready, begun) = (AtomicBool::new(false), AtomicBool::new(false));
        let changes = watch::channel(()).0;
        (Arc::new(Self { models, commands, ready, begun, changes }), receiver)
    }

    /// Sets what stands behind one version; gives back what stood there.
    pub fn set(&self, model: &str, version: Version, entry: Entry) -> Option<Entry> {
        let mut before = None;
        self.change(model, |versions| before = versions.insert(version, entry.clone()));
        before
    }

    /// Forgets one version; gives back what stood there. The caller closes its slot.
    pub fn remove(&self, model: &str, version: Version) -> Option<Entry> {
        let mut before = None;
        self.change(model, |versions| before = versions.remove(&version));
        before
    }

    /// A model without a version left is forgotten.
    fn change(&self, model: &str, mut edit: impl FnMut(&mut Versions)) {
        self.models.rcu(|models| {
            let mut models = BTreeMap::clone(models);
            let mut versions = models.get(model).map_or_else(Versions::new, |old| (**old).clone());
            edit(&mut versions);
            if versions.is_empty() {
                models.remove(model);
            } else {
                models.insert(model.to_owned(), Arc::new(versions));
            }
            models
        });
        self.changes.send_replace(());
    }

    /// The slot that answers for `model`: the given version, or else the highest ready one.
    ///
    /// # Errors
    /// Where there is none.
    pub fn find(&self, model: &str, version: Option<Version>) -> Result<Arc<Slot>, NotServed> {
        let models = self.models.load();
        let unknown = || NotServed::UnknownModel { model: model.to_owned() };
        let versions = models.get(model).ok_or_else(unknown)?;
        let ready = |entry: &Entry| match entry {
            Entry::Ready(slot) => Some(Arc::clone(slot)),
            Entry::Unready { .. } => None,
        };
        let (version, entry) = match version {
            Some(version) => {
                let unknown = || NotServed::UnknownVersion { model: model.to_owned(), version };
                (version, versions.get(&version).ok_or_else(unknown)?)
            }
            None => {
                if let Some(slot) = versions.values().rev().find_map(ready) {
                    return Ok(slot);
                }
                let (version, entry) = versions.last_key_value().ok_or_else(unknown)?;
                (*version, entry)
            }
        };
        match entry {
            Entry::Ready(slot) => Ok(Arc::clone(slot)),
            Entry::Unready { reason, .. } => {
                let (model, reason) = (model.to_owned(), reason.clone());
                Err(NotServed::Unready { model, version, reason })
            }
        }
    }

    /// As [`Repository::find`], but at the start, before it is said for the first time whether the agent is
    /// ready, a model that is not served yet is waited for until `until`.
    ///
    /// # Errors
    /// Where there is none by then.
    pub async fn find_at_start(
        &self,
        model: &str,
        version: Option<Version>,
        until: Instant,
    ) -> Result<Arc<Slot>, NotServed> {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            // Looked at first: what comes into service comes before the agent is ready.
            let begun = self.begun.load(Ordering::Acquire);
            let found = self.find(model, version);
            if found.is_ok() || begun {
                return found;
            }
            // The sender lives as long as this does.
            match tokio::time::timeout_at(until.into(), changes.changed()).await {
                Ok(_) => {}
                Err(_) => return found,
            }
        }
    }

    /// The versions of a model that are served, ascending.
    pub fn ready_versions(&self, model: &str) -> Vec<Version> {
        let models = self.models.load();
        let Some(versions) = models.get(model) else { return Vec::new() };
        let is_ready = |entry: &Entry| matches!(entry, Entry::Ready(_));
        versions.iter().filter(|(_, entry)| is_ready(entry)).map(|(version, _)| *version).collect()
    }

    /// Every version of every model, in order.
    pub fn index(&self) -> Vec<IndexEntry> {
        let models = self.models.load();
        let line = |model: &str, version: Version, entry: &Entry| {
            let (state, reason) = match entry {
                Entry::Ready(_) => (ModelState::Ready, String::new()),
                Entry::Unready { state, reason } => (*state, reason.clone()),
            };
            IndexEntry { model: model.to_owned(), version, state, reason }
        };
        models
            .iter()
            .flat_map(|(model, versions)| versions.iter().map(move |(v, e)| line(model, *v, e)))
            .collect()
    }

    /// Every slot in service, by model and version.
    pub fn slots(&self) -> Vec<Arc<Slot>> {
        let models = self.models.load();
        let slot = |entry: &Entry| match entry {
            Entry::Ready(slot) => Some(Arc::clone(slot)),
            Entry::Unready { .. } => None,
        };
        models.values().flat_map(|versions| versions.values().filter_map(slot)).collect()
    }

    /// Whether the agent is ready for requests: a latch that the agent sets once its first scan is
    /// served, and clears when it stops.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// See [`Repository::is_ready`].
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
        self.begun.store(true, Ordering::Release);
        self.changes.send_replace(());
    }

    /// Tells when something has changed of what is served, or of whether the agent is ready.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Asks the agent to load a model and waits for its word.
    ///
    /// # Errors
    /// What the agent says, or that it cannot be asked.
    pub async fn load(&self, model: &str) -> Result<(), CommandError> {
        let model = model.to_owned();
        self.command(|answer| Command::Load { model, answer }).await
    }

    /// Asks the agent to unload a model and waits for its word.
    ///
    /// # Errors
    /// What the agent says, or that it cannot be asked.
    pub async fn unload(&self, model: &str) -> Result<(), CommandError> {
        let model = model.to_owned();
        self.command(|answer| Command::Unload { model, answer }).await
    }

    async fn command(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), CommandError>>) -> Command,
    ) -> Result<(), CommandError> {
        let (answer, answered) = oneshot::channel();
        let busy = |error: mpsc::error::TrySendError<Command>| match error {
            mpsc::error::TrySendError::Full(_) => {
                CommandError::Busy(format!("{REPOSITORY_COMMANDS} commands wait already"))
            }
            mpsc::error::TrySendError::Closed(_) => CommandError::Busy("it stops".to_owned()),
        };
        self.commands.try_send(command(answer)).map_err(busy)?;
        answered.await.unwrap_or_else(|_| Err(CommandError::Busy("it stops".to_owned())))
    }

    /// Closes every slot: nothing more is admitted, everything admitted is answered. The handles
    /// tell when each is free.
    pub fn close_all(&self) -> Vec<Drain> {
        self.set_ready(false);
        self.slots().iter().map(|slot| slot.close()).collect()
    }
}
