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

mod admitting;
mod building;
mod choosing;
mod companions;
mod compiling;
mod config_file;
mod confined;
mod convict;
mod delivering;
mod devices;
mod doors;
mod event;
mod fleet;
mod inbox;
mod leaving;
mod lifecycle;
mod linked;
mod loads;
mod memory;
mod pace;
mod polled;
mod prepare;
mod providers;
mod recording;
mod reservoir;
mod retry;
mod samples;
mod served;
mod shadowing;
mod status;
mod swapping;
mod underway;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use sd_notify::NotifyState;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use self::admitting::Admitting;
use self::choosing::Trying;
pub use self::config_file::ConfigFile;
use self::confined::Seen;
use self::devices::Devices;
use self::doors::Doors;
use self::event::Event;
use self::fleet::Fleet;
use self::linked::Linked;
use self::loads::Loads;
use self::polled::Polled;
use self::prepare::Loader;
use self::providers::Left;
use self::recording::Recording;
use self::retry::Again;
use self::samples::Sampling;
use self::served::Served;
use self::shadowing::Shadowing;
use self::underway::Underway;
use crate::arrivals::{Arrival, Arrivals, VersionKey};
use crate::config::{
    Change, Config, LogLevel, ModelConfig, Policy, Provider, ServedShapes, WAYS_OUT,
};
use crate::governor::{self, Verdict};
use crate::hardware::Vendor;
use crate::limits;
use crate::schedule::Batching;
use crate::shell::children::{Memory, Wish};
use crate::shell::engine::{Found, OfferedDevice, Pool, RuntimeError};
use crate::shell::metrics::Metrics;
use crate::shell::serve::{self, App, Gate, GateError};
use crate::shell::shadow::Shadow;
use crate::shell::slot::{
    self, Command, Commands, IndexEntry, ModelState, Notice, Patience, Repository,
};
use crate::shell::spans::Tracer;
use crate::shell::store::{KeptBundle, LadderId, Store, StoreError};
use crate::shell::systemd::{self, EVENT_LOOP, Endpoint, Life, Pulse, Taken, Watchdog, tell};
use crate::shell::watch::{self, Listing};

/// Reads the configuration anew, with this bundle's part or with that of the one in force; an error leaves what
/// holds.
pub type Reread = Box<dyn Fn(Option<&KeptBundle>) -> Result<Config, String> + Send>;

/// What the agent starts with.
pub struct Setup {
    pub config: Config,
    /// The configuration's file, watched for changes; `None` where there is none.
    pub config_file: Option<ConfigFile>,
    pub reread: Reread,
    /// Changes how much is logged from now on.
    pub log_level: Box<dyn Fn(LogLevel) + Send>,
    /// Facts of the box for the status, taken anew each time.
    pub hardware: Box<dyn Fn() -> Value + Send>,
    /// Sockets that the service manager handed over.
    pub handed: Taken,
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
    #[error("cannot listen at the Unix socket {}: {source}", path.display())]
    Socket { path: PathBuf, source: std::io::Error },
    #[error("cannot make the model directory {}: {source}", path.display())]
    ModelDir { path: PathBuf, source: std::io::Error },
    #[error("the service manager's socket cannot be used for {endpoint}: {source}")]
    Handed { endpoint: Endpoint, source: std::io::Error },
    #[error("the socket unit has {endpoint} where it may not be: {why}; {WAYS_OUT}")]
    Exposed { endpoint: Endpoint, why: String },
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error("cannot start the watchdog's thread: {0}")]
    Watchdog(std::io::Error),
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    #[error("cannot start a thread for spans: {0}")]
    Spans(std::io::Error),
    #[error(
        "{0} sessions hang in runs on accelerators that do not return: only a new start frees \
         what they hold"
    )]
    SessionsHang(usize),
}

struct Agent {
    config: Config,
    reread: Reread,
    log_level: Box<dyn Fn(LogLevel) + Send>,
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
    building: Option<(VersionKey, LadderId)>,
    /// Pauses and ends the build that runs.
    build_wish: tokio::sync::watch::Sender<Wish>,
    /// Since when the build has stood still, or gone on after that; `None` where it was never paused.
    build_since: Option<Instant>,
    /// Samples of live requests of models whose policy allows that.
    sampling: BTreeMap<String, Sampling>,
    /// Comparisons of rungs with dense, of models whose policy wants that.
    shadows: BTreeMap<String, Shadowing>,
    /// Whether all budgets are kept with room to spare, for those who compare.
    calm: Arc<AtomicBool>,
    /// What failed through no fault of its own, or perhaps through none.
    again: Again,
    /// Versions that are being loaded, and clients that wait for that.
    loads: Loads,
    /// Trials and loads run one at a time: they must not squeeze what is being served.
    loading: Arc<Semaphore>,
    events: mpsc::Sender<Event>,
    notices: mpsc::Sender<Notice>,
    repository: Arc<Repository>,
    metrics: Arc<Metrics>,
    status: Arc<ArcSwap<Value>>,
    /// Who sends spans of swaps and builds.
    tracer: Option<Arc<Tracer>>,
    look: Arc<Notify>,
    /// When the model directory is listed next because of file events; one listing at a time.
    look_at: Option<Instant>,
    listing: bool,
    /// Links that lead out of the model directory.
    outside: BTreeSet<String>,
    watcher: Option<notify::RecommendedWatcher>,
    started: Instant,
    last_tick: Instant,
    underway: Underway,
    config_file: Option<ConfigFile>,
    /// When its file is looked at next because it may still be written.
    config_look: Option<Instant>,
    config_revision: u64,
    config_error: Option<String>,
    /// Who lets clients in, and where.
    admitting: Admitting,
    /// Changes that were told to wait for the next start.
    config_restart: Vec<Change>,
    recording: Recording,
    devices: Devices,
    /// The accelerators that could be worked with at the last look.
    usable: BTreeSet<(Vendor, Option<u32>)>,
    /// Providers whose sessions of a model failed in service, by model and label.
    left: BTreeMap<(String, String), Left>,
    /// The devices of plugins that run, or ran, models, as these tell of them.
    offered: BTreeMap<Provider, OfferedDevice>,
    /// Who shows that they are alive, this loop and its listing among them.
    life: Life,
    pulse: Pulse,
    lister: Pulse,
    /// What it is in its fleet; `None` where it belongs to none.
    fleet: Option<Fleet>,
    /// The link to its fleet's broker, where it has one.
    linked: Option<Linked>,
    /// The server that it asks for bundles, where there is one.
    polled: Option<Polled>,
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Where it cannot start: no ONNX Runtime, no state directory, a port that is taken.
pub async fn run(mut setup: Setup) -> Result<(), AgentError> {
    let handed = std::mem::take(&mut setup.handed);
    let config = &setup.config;
    let runtime = providers::runtime(config)?;
    let store = Store::open(&config.state_dir)?;
    std::fs::create_dir_all(&config.model_dir)
        .map_err(|source| AgentError::ModelDir { path: config.model_dir.clone(), source })?;
    let gate = Arc::new(Gate::open(config)?);
    let Doors { doors, metrics: door, ports, handed } = doors::open(config, handed).await?;
    let life = Life::default();
    let (repository, commands) = Repository::new();
    let tracer = tracer(config)?;
    let metrics = Metrics::new(Arc::clone(&repository)).traced(tracer.clone());
    let metrics = Arc::new(metrics);
    let status = Arc::new(ArcSwap::from_pointee(Value::Null));
    let shown = Arc::clone(&status);
    let app = App::new(Arc::clone(&repository), Arc::new(move || Value::clone(&shown.load())))
        .sharing_memory(config.shared_memory)
        .traced(tracer.clone())
        .guarded(Arc::clone(&gate))
        .watched(life.clone())
        // Nobody finds the port closed while the agent is restarted, and nobody shall find its models missing.
        .waiting_for_start(handed.then(|| Instant::now() + limits::START_WAIT));
    let stop = CancellationToken::new();
    let (grace, granted) = tokio::sync::watch::channel(Duration::from(config.drain_timeout));
    let server = tokio::spawn(serve::serve(doors, Arc::new(app), stop.clone(), granted));
    let counters = (Arc::clone(&metrics), Arc::clone(&gate));
    let (stopped, alive) = (stop.clone(), life.clone());
    let metrics_server =
        tokio::spawn(async move { serve::serve_metrics(door, counters, stopped, &alive).await });
    let (events, queue) = mpsc::channel(limits::AGENT_EVENTS);
    let (notices, noticed) = mpsc::channel(limits::AGENT_EVENTS);
    tracing::info!(
        http = %config.http_address, metrics = %config.metrics_address,
        models = %config.model_dir.display(), "blochd serves"
    );
    let (sender, admitting) = (tracer.clone(), Admitting::new(gate, ports));
    let ends =
        Ends { events, notices, repository, metrics, status, tracer: sender, life, admitting };
    let agent = Agent::new(setup, runtime, store, ends);
    let mut agent = agent.turn(queue, noticed, commands).await?;
    let hang = slot::abandoned();
    tracing::info!("stopping: the requests in flight are answered first");
    tell(&[NotifyState::Stopping]);
    agent.repository.set_ready(false);
    agent.build_wish.send_replace(Wish::End);
    // Whoever waits for a model would be waited for.
    agent.loads.end();
    // As the configuration says by now.
    let patience = Duration::from(agent.config.drain_timeout);
    grace.send_replace(patience);
    // No further connection is taken; what is in flight is answered while the sessions still run.
    let stopping = Instant::now();
    stop.cancel();
    let (cut, _) = tokio::join!(server, metrics_server);
    if let Ok(cut @ 1..) = cut {
        tracing::warn!("{cut} connections were not done within {patience:?}");
    }
    if let Some(linked) = agent.linked.take() {
        linked.close().await;
    }
    agent.close(patience.saturating_sub(stopping.elapsed()).max(limits::TICK)).await;
    if let Some(tracer) = tracer {
        // One that panicked has nothing to send.
        let _ = tokio::task::spawn_blocking(move || tracer.flush(limits::SPANS_FLUSH)).await;
    }
    if hang >= limits::ABANDONED_SESSIONS { Err(AgentError::SessionsHang(hang)) } else { Ok(()) }
}

/// What loads variants, before it is said for which model.
fn loader(config: &Config, runtime: Found, store: &Store) -> Loader {
    Loader {
        library: runtime.library().path.clone(),
        runtime,
        pool: Arc::new(Pool::in_folder(store.children_dir())),
        model: String::new(),
        expects_lending: false,
        threads: 1,
        instances: 1,
        cpus: Vec::new(),
        batching: Batching::OFF,
        shapes: ServedShapes::default(),
        patience: Patience::default(),
        trial_timeout: config.trial.timeout.into(),
        trial_memory: Memory::or_part(config.trial.memory, limits::TRIAL_MEMORY_PARTS),
        sandbox: config.sandbox,
        folders: store.children_dir(),
        state_dir: store.root().to_owned(),
        confined: Seen::default(),
        samples: None,
        quarantined: Arc::default(),
        provider: Provider::Cpu,
        choosing: Arc::default(),
        trying: Trying::default(),
    }
}

/// Who sends spans, where that is wanted.
fn tracer(config: &Config) -> Result<Option<Arc<Tracer>>, AgentError> {
    let Some(collector) = &config.otlp_endpoint else { return Ok(None) };
    let tracer = Tracer::start(collector, config.otlp_share).map_err(AgentError::Spans)?;
    tracing::info!(collector = collector.url(), "spans are sent");
    Ok(Some(Arc::new(tracer)))
}

/// What the agent tells others by.
struct Ends {
    events: mpsc::Sender<Event>,
    notices: mpsc::Sender<Notice>,
    repository: Arc<Repository>,
    metrics: Arc<Metrics>,
    status: Arc<ArcSwap<Value>>,
    tracer: Option<Arc<Tracer>>,
    life: Life,
    admitting: Admitting,
}

impl Agent {
    fn new(setup: Setup, runtime: Found, store: Store, ends: Ends) -> Self {
        let Setup { config, config_file, reread, log_level, hardware, handed: _ } = setup;
        let Ends { events, notices, repository, metrics, status, tracer, life, admitting } = ends;
        let now = Instant::now();
        let loader = loader(&config, runtime, &store);
        Self {
            arrivals: Arrivals::new(config.arrivals.settle.into()),
            config,
            reread,
            log_level,
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
            shadows: BTreeMap::new(),
            calm: Arc::default(),
            again: Again::default(),
            loads: Loads::default(),
            loading: Arc::new(Semaphore::new(1)),
            events,
            notices,
            repository,
            metrics,
            status,
            tracer,
            look: Arc::new(Notify::new()),
            look_at: None,
            listing: false,
            outside: BTreeSet::new(),
            watcher: None,
            started: now,
            last_tick: now,
            underway: Underway::default(),
            config_file,
            config_look: None,
            config_revision: 1,
            config_error: None,
            config_restart: Vec::new(),
            admitting,
            recording: Recording::new(now),
            devices: Devices::default(),
            usable: BTreeSet::new(),
            left: BTreeMap::new(),
            offered: BTreeMap::new(),
            pulse: life.actor(EVENT_LOOP, limits::EVENT_LOOP_SILENCE),
            lister: life.actor("the listing of the model directory", limits::LISTING_SILENCE),
            life,
            fleet: None,
            linked: None,
            polled: None,
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
        tell(&[NotifyState::Ready]);
        self.pulse.beat();
        let _watchdog = self.watchdog()?;
        self.follow_devices();
        self.link_fleet();
        self.poll_fleet();
        let changed = Arc::new(Notify::new());
        let _config_watcher = self.watch_config(&changed);
        let came = Arc::new(Notify::new());
        self.join_fleet(&came);
        self.tick();
        let mut rescan = tokio::time::interval(self.config.arrivals.rescan.into());
        let look = Arc::clone(&self.look);
        loop {
            let every = Duration::from(self.config.arrivals.rescan);
            if rescan.period() != every {
                rescan = tokio::time::interval(every);
            }
            tokio::select! {
                Some(event) = queue.recv() => self.event(event),
                Some(notice) = noticed.recv() => self.event(Event::Notice(notice)),
                Some(command) = commands.recv() => self.event(Event::Command(command)),
                () = due(Some(self.next_tick())) => {
                    self.tick();
                    self.keep_samples();
                }
                _ = rescan.tick() => {
                    self.look_after(Duration::ZERO);
                    self.look_at_config();
                    self.look_at_inbox();
                }
                () = came.notified() => self.look_at_inbox(),
                () = look.notified() => self.look_after(limits::LOOK_DELAY),
                () = due(self.look_at), if !self.listing => self.list(),
                () = changed.notified() => self.look_at_config(),
                () = due(self.config_look) => self.look_at_config(),
                _ = hang_up.recv() => self.event(Event::Reload),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
            self.pulse.beat();
            if slot::abandoned() >= limits::ABANDONED_SESSIONS {
                tracing::error!("too many sessions hang on accelerators: a new start is needed");
                break;
            }
        }
        self.pulse.rest();
        self.watcher = None;
        Ok(self)
    }

    /// Feeds the service manager's watchdog, where there is one, and tells who hangs in any case.
    fn watchdog(&self) -> Result<Watchdog, AgentError> {
        let given = sd_notify::watchdog_enabled();
        let fed = given.is_some();
        let told = move |states: &[NotifyState]| {
            if fed || !matches!(states, [NotifyState::Watchdog]) {
                tell(states);
            }
        };
        let life = self.life.clone();
        Watchdog::start(life, systemd::interval(given), told).map_err(AgentError::Watchdog)
    }

    /// When the next turn is due. With nothing to serve, load or build, only the status waits for it.
    fn next_tick(&self) -> Instant {
        let is_loading = |entry: &IndexEntry| entry.state == ModelState::Loading;
        let idle = self.served.is_empty()
            && self.building.is_none()
            && self.repository.is_ready()
            && !self.repository.index().iter().any(is_loading);
        self.last_tick + if idle { limits::IDLE_TICK } else { limits::TICK }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Listed(Listing { files, outside }) => {
                self.listing = false;
                self.lister.rest();
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
                self.underway.listed(self.arrivals.versions());
            }
            Event::NotListed(reason) => {
                self.listing = false;
                self.lister.rest();
                // A watch follows the directory, not its name: a new one of that name is another.
                self.watcher = None;
                tracing::warn!("cannot list {}: {reason}", self.config.model_dir.display());
            }
            Event::Prepared { key, load, path, external, outcome, tried } => {
                if self.underway.ends(&key, load) {
                    self.depends(&key, &path, external);
                    self.prepared(key, path, outcome, &tried);
                } else {
                    let (model, version) = (&key.model, key.version);
                    tracing::info!(model, %version, "what was loaded is wanted no longer");
                }
            }
            Event::LadderFound { key, id, found } => self.ladder_found(&key, id, found),
            Event::Moved { key, outcome, tried } => self.moved(&key, outcome, &tried),
            Event::Opened { key, digest, variant, provider, outcome } => {
                self.opened(&key, digest, &variant, &provider, outcome);
            }
            Event::Building { key, share, stage } => self.build_progress(&key, share, stage),
            Event::Built { key, id, outcome } => self.built(&key, id, outcome),
            Event::Sampled { model, outcome } => self.sampled(&model, outcome),
            Event::Drained { key, variant } => self.drained(&key, &variant),
            Event::Shadowed { key, outcome } => self.shadowed(&key, outcome),
            Event::Notice(notice) => self.notice(&notice),
            Event::Command(command) => self.command(command),
            Event::Vendor { vendor, task, event } => self.vendor(vendor, task, event),
            Event::Fleet { job, outcome } => self.fleet_done(job, outcome),
            Event::Reload => self.reload(),
        }
    }

    fn arrival(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Settled { key, file } => {
                if self.stays(&key.model).is_some_and(|newest| newest > key.version) {
                    let (model, version) = (&key.model, key.version);
                    tracing::info!(model, %version, "older than the version in service");
                    self.underway.settled(&key);
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
        self.lister.beat();
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
        // What its policy did not fit before may be served by now.
        let is_refused = self.refused.keys().any(|key| key.model == model);
        if is_refused && !self.served.contains_key(model) {
            self.arrivals.forget(model);
            self.look.notify_one();
        }
    }

    /// Brings a served model to its configuration as it is now.
    fn reconfigure(&mut self, model: &str) {
        let config = self.model_config(model);
        let version = self.served.get(model).map(|served| served.key.version);
        let calibration = self.calibration_of(model, version);
        let wanted = self.served.get(model).map(|served| self.ladder_id(served));
        let asked = self.asked_providers(&config);
        let Some(served) = self.served.get_mut(model) else { return };
        let providers = served.asked != asked;
        if served.config == config && served.calibration == calibration && !providers {
            // What did not fit the model was taken back.
            let key = served.key.clone();
            self.refused.remove(&key);
            return;
        }
        let sessions = |config: &ModelConfig| {
            let queue = (config.queue_length, config.request_timeout);
            let batching = (config.max_batch, config.max_queue_delay, config.shapes.clone());
            let threads = (config.instances, config.intra_op_threads, config.cpus.clone());
            (threads, queue, batching)
        };
        let ladder = served.config.ladder != config.ladder || served.calibration != calibration;
        if sessions(&served.config) == sessions(&config) && !ladder && !providers {
            served.config = config;
            tracing::info!(model, "its policy changed");
            self.sample_requests(model);
            let served = self.served.get(model);
            let key =
                served.map(|served| (served.key.clone(), Some(self.ladder_id(served)) == wanted));
            match key {
                // Another floor or other samples make another ladder; the one that is there serves on.
                Some((key, false)) => self.want_ladder(&key),
                Some((_, true)) | None => self.open_missing(model),
            }
        } else {
            // Sessions, queue and ladder are made anew, behind the version in service.
            tracing::info!(model, "its policy changed; it is loaded again");
            self.arrivals.forget(model);
            self.look.notify_one();
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
                self.forgive_providers(&model);
                self.refused.retain(|key, _| key.model != model);
                self.arrivals.forget(&model);
                self.loads.ask(model, answer);
                self.look_after(Duration::ZERO);
            }
            Command::Unload { model, answer } => {
                let outcome = self.unload_on_request(&model);
                self.tell_status(Instant::now());
                // The client may have gone.
                let _ = answer.send(outcome);
            }
        }
    }

    /// Closes all slots; answers what they have admitted, for at most `grace`.
    async fn close(mut self, grace: Duration) {
        let drains = self.repository.close_all();
        let shadows = self.end_shadows();
        let all = async {
            // The runtime must not be torn down under a run.
            let _ = tokio::task::spawn_blocking(move || shadows.into_iter().for_each(Shadow::end))
                .await;
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
