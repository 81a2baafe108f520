//! The agent: the composition root and one event loop. Everything slow (listing, loading, trials, builds)
//! runs elsewhere and comes back as an `Event`; the loop decides, publishes and tells.
//!
//! ```text
//! watch ─► Listed ─► arrivals ─► Settled ─► trial + load ─► Prepared ─► slot in service
//!                                                                │
//!                              builder child ◄── no ladder kept ─┤
//!                                   └─► Built ─► rungs ─► trial + load ─► Opened ─► standing by
//! tick ─► governor ─► Action ─► slot.publish ─► drain ─► loaded again, standing by
//! ```

mod building;
mod companions;
mod event;
mod lifecycle;
mod pace;
mod prepare;
mod reservoir;
mod retry;
mod samples;
mod served;
mod status;
mod swapping;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::event::Event;
use self::prepare::{Loader, chain};
use self::retry::Again;
use self::samples::Sampling;
use self::served::Served;
use crate::arrivals::{Arrival, Arrivals, VersionKey};
use crate::config::{Config, ModelConfig, Policy};
use crate::governor::{self, Verdict};
use crate::limits;
use crate::shell::children::{Memory, Wish};
use crate::shell::engine::{Runtime, RuntimeError, Search, init};
use crate::shell::metrics::Metrics;
use crate::shell::serve::{self, App};
use crate::shell::slot::{Command, CommandError, Commands, Entry, ModelState, Notice, Repository};
use crate::shell::store::{Store, StoreError};
use crate::shell::watch::{self, Listing};

/// Reads the configuration anew; an error leaves the one in force.
pub type Reread = Box<dyn Fn() -> Result<Config, String> + Send>;

/// What the agent starts with.
pub struct Setup {
    pub config: Config,
    /// The configuration's file, watched for changes; `None` where there is none.
    pub config_file: Option<PathBuf>,
    pub reread: Reread,
    /// Facts of the box for the status, taken anew each time.
    pub hardware: Box<dyn Fn() -> Value + Send>,
}

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot listen on {address} for {purpose}: {source}; is another server running there?")]
    Listen { address: SocketAddr, purpose: &'static str, source: std::io::Error },
    #[error("cannot make the model directory {}: {source}", path.display())]
    ModelDir { path: PathBuf, source: std::io::Error },
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

struct Agent {
    config: Config,
    reread: Reread,
    hardware: Box<dyn Fn() -> Value + Send>,
    loader: Loader,
    store: Store,
    arrivals: Arrivals,
    policies: BTreeMap<String, Policy>,
    served: BTreeMap<String, Served>,
    /// Versions that could not be served, for the status.
    refused: BTreeMap<VersionKey, String>,
    governor: governor::State,
    verdicts: BTreeMap<String, Verdict>,
    builds: VecDeque<VersionKey>,
    building: Option<VersionKey>,
    /// Pauses and ends the build that runs.
    build_wish: tokio::sync::watch::Sender<Wish>,
    /// Since when the build has stood still, or gone on after that; `None` where it was never paused.
    build_since: Option<Instant>,
    /// Samples of live requests of models whose policy allows that.
    sampling: BTreeMap<String, Sampling>,
    again: Again,
    /// Clients that wait for a model to be loaded.
    loads: BTreeMap<String, Vec<oneshot::Sender<Result<(), CommandError>>>>,
    /// Trials and loads run one at a time: they must not squeeze what is being served.
    loading: Arc<Semaphore>,
    events: mpsc::Sender<Event>,
    notices: mpsc::Sender<Notice>,
    repository: Arc<Repository>,
    metrics: Arc<Metrics>,
    status: Arc<ArcSwap<Value>>,
    look: Arc<Notify>,
    /// When the model directory is listed next because of file events; one listing at a time.
    look_at: Option<Instant>,
    listing: bool,
    /// Links that lead out of the model directory.
    outside: BTreeSet<String>,
    watcher: Option<notify::RecommendedWatcher>,
    started: Instant,
    last_tick: Instant,
    first_listing: bool,
    preparing: usize,
    config_file: Option<PathBuf>,
    config_revision: u64,
    config_error: Option<String>,
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Where it cannot start: no ONNX Runtime, no state directory, a port that is taken.
pub async fn run(setup: Setup) -> Result<(), AgentError> {
    let config = &setup.config;
    let search = Search::new(config.runtime_library.clone(), &config.state_dir);
    let runtime = init(&search)?;
    let store = Store::open(&config.state_dir)?;
    std::fs::create_dir_all(&config.model_dir)
        .map_err(|source| AgentError::ModelDir { path: config.model_dir.clone(), source })?;
    let http = listen(config.http_address, "requests").await?;
    let metrics_listener = listen(config.metrics_address, "metrics").await?;
    let (repository, commands) = Repository::new();
    let metrics = Arc::new(Metrics::new(Arc::clone(&repository)));
    let status = Arc::new(ArcSwap::from_pointee(Value::Null));
    let shown = Arc::clone(&status);
    let app = App::new(Arc::clone(&repository), Arc::new(move || Value::clone(&shown.load())));
    let stop = CancellationToken::new();
    let grace = Duration::from(config.drain_timeout);
    let server = tokio::spawn(serve::serve(http, Arc::new(app), stop.clone(), grace));
    let metrics_server =
        tokio::spawn(serve::serve_metrics(metrics_listener, Arc::clone(&metrics), stop.clone()));
    let (events, queue) = mpsc::channel(limits::AGENT_EVENTS);
    let (notices, noticed) = mpsc::channel(limits::AGENT_EVENTS);
    tracing::info!(
        http = %config.http_address, metrics = %config.metrics_address,
        models = %config.model_dir.display(), "blochd serves"
    );
    let ends = Ends { events, notices, repository, metrics, status };
    let agent = Agent::new(setup, runtime, store, ends);
    let agent = agent.turn(queue, noticed, commands).await?;
    tracing::info!("stopping: the requests in flight are answered first");
    systemd(&[sd_notify::NotifyState::Stopping]);
    agent.repository.set_ready(false);
    agent.build_wish.send_replace(Wish::End);
    // No further connection is taken; what is in flight is answered while the sessions still run.
    let stopping = Instant::now();
    stop.cancel();
    let (cut, _) = tokio::join!(server, metrics_server);
    if let Ok(cut @ 1..) = cut {
        tracing::warn!("{cut} connections were not done within {grace:?}");
    }
    agent.close(grace.saturating_sub(stopping.elapsed()).max(limits::TICK)).await;
    Ok(())
}

async fn listen(address: SocketAddr, purpose: &'static str) -> Result<TcpListener, AgentError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| AgentError::Listen { address, purpose, source })
}

/// What the agent tells others by.
struct Ends {
    events: mpsc::Sender<Event>,
    notices: mpsc::Sender<Notice>,
    repository: Arc<Repository>,
    metrics: Arc<Metrics>,
    status: Arc<ArcSwap<Value>>,
}

impl Agent {
    fn new(setup: Setup, runtime: Runtime, store: Store, ends: Ends) -> Self {
        let Setup { config, config_file, reread, hardware } = setup;
        let Ends { events, notices, repository, metrics, status } = ends;
        let now = Instant::now();
        let loader = Loader {
            library: runtime.library().path.clone(),
            runtime,
            threads: 1,
            instances: 1,
            trial_timeout: config.trial.timeout.into(),
            trial_memory: Memory::or_part(config.trial.memory, limits::TRIAL_MEMORY_PARTS),
            samples: None,
            quarantined: Arc::default(),
        };
        Self {
            arrivals: Arrivals::new(config.arrivals.settle.into()),
            config,
            reread,
            hardware,
            loader,
            store,
            policies: BTreeMap::new(),
            served: BTreeMap::new(),
            refused: BTreeMap::new(),
            governor: governor::State::default(),
            verdicts: BTreeMap::new(),
            builds: VecDeque::new(),
            building: None,
            build_wish: tokio::sync::watch::channel(Wish::Run).0,
            build_since: None,
            sampling: BTreeMap::new(),
            again: Again::default(),
            loads: BTreeMap::new(),
            loading: Arc::new(Semaphore::new(1)),
            events,
            notices,
            repository,
            metrics,
            status,
            look: Arc::new(Notify::new()),
            look_at: None,
            listing: false,
            outside: BTreeSet::new(),
            watcher: None,
            started: now,
            last_tick: now,
            first_listing: false,
            preparing: 0,
            config_file,
            config_revision: 1,
            config_error: None,
        }
    }

    /// The event loop.
    async fn turn(
        mut self,
        mut queue: mpsc::Receiver<Event>,
        mut noticed: mpsc::Receiver<Notice>,
        mut commands: Commands,
    ) -> Result<Self, AgentError> {
        let on = |kind| signal(kind).map_err(AgentError::Signals);
        let mut terminate = on(SignalKind::terminate())?;
        let mut interrupt = on(SignalKind::interrupt())?;
        let mut hang_up = on(SignalKind::hangup())?;
        // Ready in systemd's sense: it listens and turns. Whether models are served is for
        // `/v2/health/ready` to say; a slow trial must not make the start fail.
        systemd(&[sd_notify::NotifyState::Ready]);
        let changed = Arc::new(Notify::new());
        let _config_watcher = self.watch_config(&changed);
        let mut tick = tokio::time::interval(limits::TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rescan = tokio::time::interval(self.config.arrivals.rescan.into());
        let look = Arc::clone(&self.look);
        loop {
            tokio::select! {
                Some(event) = queue.recv() => self.event(event),
                Some(notice) = noticed.recv() => self.event(Event::Notice(notice)),
                Some(command) = commands.recv() => self.event(Event::Command(command)),
                _ = tick.tick() => {
                    self.tick();
                    self.keep_samples();
                }
                _ = rescan.tick() => self.look_after(Duration::ZERO),
                () = look.notified() => self.look_after(limits::LOOK_DELAY),
                () = due(self.look_at), if !self.listing => self.list(),
                () = changed.notified() => self.event(Event::Reload),
                _ = hang_up.recv() => self.event(Event::Reload),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        self.watcher = None;
        Ok(self)
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Listed(Listing { files, outside }) => {
                self.listing = false;
                for link in outside.difference(&self.outside) {
                    tracing::warn!("{link} leads out of the model directory and is passed over");
                }
                self.outside = outside;
                self.watch_models();
                let now = self.started.elapsed();
                for arrival in self.arrivals.observe(&files, now) {
                    self.arrival(arrival);
                }
                if let Some(next) = self.arrivals.next_look() {
                    self.look_after(next.saturating_sub(now).max(limits::LOOK_DELAY));
                }
                self.answer_unknown_loads();
                self.first_listing |= self.arrivals.next_look().is_none();
            }
            Event::NotListed(reason) => {
                self.listing = false;
                // A watch follows the directory, not its name: a new one of that name is another.
                self.watcher = None;
                tracing::warn!("cannot list {}: {reason}", self.config.model_dir.display());
            }
            Event::Prepared { key, path, external, outcome } => {
                self.depends(&key, &path, external);
                self.prepared(key, path, outcome);
            }
            Event::Opened { key, digest, variant, outcome } => {
                self.opened(&key, digest, &variant, outcome);
            }
            Event::Building { key, share, stage } => self.build_progress(&key, share, stage),
            Event::Built { key, id, outcome } => self.built(&key, id, outcome),
            Event::Sampled { model, outcome } => self.sampled(&model, outcome),
            Event::Drained { key, variant } => self.drained(&key, &variant),
            Event::Notice(notice) => self.notice(&notice),
            Event::Command(command) => self.command(command),
            Event::Reload => self.reload(),
        }
    }

    fn arrival(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Settled { key, file } => {
                let newest = self.served.get(&key.model).map(|served| served.key.version);
                if newest.is_some_and(|newest| newest > key.version) {
                    let (model, version) = (&key.model, key.version);
                    tracing::info!(model, %version, "older than the version in service");
                    return;
                }
                self.prepare(key, file);
            }
            Arrival::Removed { key } => self.removed(&key),
            Arrival::Misplaced { file, why } => tracing::warn!(file, "is not served: {why}"),
            Arrival::Companions { model } => self.companions(&model),
        }
    }

    /// Lists the model directory after a while, or earlier where that was wanted before: a copy
    /// raises thousands of events.
    fn look_after(&mut self, delay: Duration) {
        let at = Instant::now() + delay;
        self.look_at = Some(self.look_at.map_or(at, |planned| planned.min(at)));
    }

    /// Lists the model directory, off the loop.
    fn list(&mut self) {
        self.look_at = None;
        self.listing = true;
        let (events, dir) = (self.events.clone(), self.config.model_dir.clone());
        tokio::spawn(async move {
            let listed = tokio::task::spawn_blocking(move || watch::list(&dir)).await;
            let event = match listed {
                Ok(Ok(listing)) => Event::Listed(listing),
                Ok(Err(error)) => Event::NotListed(error.to_string()),
                Err(error) => Event::NotListed(error.to_string()),
            };
            // The loop has ended: nobody wants to know.
            let _ = events.send(event).await;
        });
    }

    /// Watches the model directory where that is not done yet. One that cannot be watched is still
    /// listed every so often.
    fn watch_models(&mut self) {
        if self.watcher.is_some() {
            return;
        }
        match watch::watch(&self.config.model_dir, Arc::clone(&self.look)) {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                // What came between the listing and the watch.
                self.look_after(limits::LOOK_DELAY);
            }
            Err(error) => {
                tracing::warn!("cannot watch {}: {error}", self.config.model_dir.display());
            }
        }
    }

    /// What a model is asked to be. A policy that does not fit the rest is told and left out.
    fn model_config(&self, model: &str) -> ModelConfig {
        let policy = self.policies.get(model);
        self.config.model(model, policy).unwrap_or_else(|errors| {
            tracing::error!(model, "its policy is left out: {errors}");
            self.config.model(model, None).unwrap_or_else(|_| self.config.defaults.clone())
        })
    }

    fn companions(&mut self, model: &str) {
        self.read_policy(model);
        self.reconfigure(model);
    }

    /// Brings a served model to its configuration as it is now.
    fn reconfigure(&mut self, model: &str) {
        let config = self.model_config(model);
        let calibration = self.calibration_of(model);
        let Some(served) = self.served.get_mut(model) else { return };
        if served.config == config && served.calibration == calibration {
            return;
        }
        let sessions = |config: &ModelConfig| {
            (config.instances, config.intra_op_threads, config.queue_length, config.request_timeout)
        };
        let ladder = served.config.ladder != config.ladder || served.calibration != calibration;
        if sessions(&served.config) == sessions(&config) && !ladder {
            served.config = config;
            tracing::info!(model, "its policy changed");
            self.sample_requests(model);
            self.open_missing(model);
        } else {
            // Sessions, queue and ladder are made anew, behind the version in service.
            tracing::info!(model, "its policy changed; it is loaded again");
            self.arrivals.forget(model);
            self.look.notify_one();
        }
    }

    fn watch_config(&self, changed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
        // The folder is watched: editors and fleets replace the file.
        let dir = self.config_file.as_deref()?.parent().filter(|dir| *dir != Path::new(""));
        watch::watch(dir.unwrap_or(Path::new(".")), Arc::clone(changed)).ok()
    }

    fn reload(&mut self) {
        match sd_notify::NotifyState::monotonic_usec_now() {
            Ok(now) => systemd(&[sd_notify::NotifyState::Reloading, now]),
            Err(_) => systemd(&[sd_notify::NotifyState::Reloading]),
        }
        self.read_configuration();
        systemd(&[sd_notify::NotifyState::Ready]);
    }

    fn read_configuration(&mut self) {
        let new = match (self.reread)() {
            Ok(new) => new,
            Err(errors) => {
                if self.config_error.as_ref() != Some(&errors) {
                    tracing::error!(
                        "the configuration is refused, the last good one holds: {errors}"
                    );
                }
                self.config_error = Some(errors);
                return;
            }
        };
        self.config_error = None;
        let diff = Config::diff(&self.config, &new);
        if diff.is_empty() {
            return;
        }
        for change in diff.restart() {
            tracing::warn!(setting = change.path, "its change takes effect at the next start");
        }
        self.config = self.config.keeping_what_needs_a_restart(&new);
        self.config_revision += 1;
        tracing::info!(revision = self.config_revision, "the configuration was read again");
        for model in self.served.keys().cloned().collect::<Vec<_>>() {
            if diff.touches(&model) {
                self.reconfigure(&model);
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Load { model, answer } => {
                // Whoever asks for it wants it tried again.
                let of_model = format!("{model} ");
                let held = self.store.quarantined().iter();
                let held: Vec<_> = held
                    .filter(|(_, why)| why.what.starts_with(&of_model))
                    .map(|(digest, _)| *digest)
                    .collect();
                for digest in held {
                    if let Err(error) = self.store.release(&digest) {
                        tracing::warn!("the quarantine is not changed: {error}");
                    }
                }
                self.refused.retain(|key, _| key.model != model);
                self.arrivals.forget(&model);
                self.loads.entry(model).or_default().push(answer);
                self.look_after(Duration::ZERO);
            }
            Command::Unload { model, answer } => {
                let outcome = match self.served.get(&model).map(|served| served.key.clone()) {
                    Some(key) => {
                        let reason = "unloaded on request".to_owned();
                        self.unload(&key, &reason);
                        // It is there still, and can be loaded again.
                        let entry = Entry::Unready { state: ModelState::Unavailable, reason };
                        self.repository.set(&key.model, key.version, entry);
                        self.tell_status(Instant::now());
                        Ok(())
                    }
                    None => Err(CommandError::UnknownModel { model }),
                };
                // The client may have gone.
                let _ = answer.send(outcome);
            }
        }
    }

    /// Models that were asked for and are not in the directory.
    fn answer_unknown_loads(&mut self) {
        let unknown: Vec<String> =
            self.loads.keys().filter(|model| !self.arrivals.knows(model)).cloned().collect();
        for model in unknown {
            for answer in self.loads.remove(&model).into_iter().flatten() {
                let _ = answer.send(Err(CommandError::UnknownModel { model: model.clone() }));
            }
        }
    }

    /// Closes all slots; answers what they have admitted, for at most `grace`.
    async fn close(mut self, grace: Duration) {
        let drains = self.repository.close_all();
        let all = async {
            for drain in drains {
                drain.done().await;
            }
        };
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::warn!("some requests were not answered within {grace:?}");
        }
        self.served.clear();
    }
}

/// Waits for a moment; for ever where there is none.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Tells systemd, where it listens.
fn systemd(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("cannot tell systemd: {}", chain(&error));
    }
}
