//! Every bound of the program, each with its reason. Nothing that comes from outside (a length, a
//! count, a depth) is trusted beyond the number that stands here. One section a room.

mod fleet;
mod links;
mod science;
mod serving;

pub use fleet::*;
pub use links::*;
pub use science::*;
pub use serving::*;

// ---- config ----

/// Largest configuration file: a thousand models with every setting written out fit.
pub const CONFIG_FILE_BYTES: usize = 1 << 20;

/// Most files that a configuration is put together from, beside the agent's own.
pub const CONFIG_PARTS: usize = 256;

/// Most values in a configuration, with aliases unfolded.
pub const CONFIG_NODES: usize = 100_000;

/// Deepest nesting: the settings need four levels.
pub const CONFIG_DEPTH: usize = 16;

/// Most parser events that aliases may unfold to (a "billion laughs" file asks for billions).
pub const CONFIG_ALIAS_EVENTS: usize = 100_000;

/// Problems of a configuration that are shown; the rest is counted.
pub const CONFIG_PROBLEMS: usize = 50;

/// Longest path of a Unix socket: the kernel takes 107 bytes, and a name beside it is needed for a moment.
pub const SOCKET_PATH_BYTES: usize = 100;

/// Most sessions of one model: more than the cores of an edge box, and each costs memory.
pub const INSTANCES: usize = 64;

/// Most threads inside one operator.
pub const INTRA_OP_THREADS: usize = 256;

/// Longest queue of a model that may be asked for: each waiting request holds its body in memory.
pub const LONGEST_QUEUE: usize = 65_536;

/// Latency ratios to dense that a rung may be asked for lie above this: below it the calls of the operators
/// alone take longer, on every network that was measured.
pub const LEAST_RATIO: f64 = 0.05;

/// Most rungs of a ladder: each takes minutes to make and has to be told apart by measurement.
pub const LADDER_RATIOS: usize = 16;

/// Most plugins: each is a vendor's library in the process, and a box has one or two vendors' accelerators.
pub const PLUGINS: usize = 8;

/// Longest name of a plugin: it stands in metrics and in tables.
pub const PLUGIN_NAME_BYTES: usize = 64;

/// Longest name of an execution provider's option, and longest value. Paths are the longest of them.
pub const OPTION_NAME_BYTES: usize = 128;
pub const OPTION_BYTES: usize = 4096;

/// Longest name of a type of operators.
pub const OPERATOR_TYPE_BYTES: usize = 128;

/// Highest number of an accelerator plus one: the largest boxes have 16.
pub const DEVICE_NUMBERS: usize = 256;

/// Longest name of an axis, and largest size that one may be given: exporters make names of what they compute
/// them by; ten minutes of audio are 9.6 million samples.
pub const AXIS_NAME_BYTES: usize = 256;
pub const AXIS_SIZE: usize = 1 << 24;

// ---- shell: slot ----

/// Failures in a row by which sessions on a device count as lost, where nothing is known that they run on.
pub const DEVICE_FAULTS: u32 = 3;

/// How long a run on a device is waited for at least, and how many times as long as runs are expected to take:
/// a card that is sick does not return, one that throttles takes a few times as long.
pub const RUN_HANGS: std::time::Duration = std::time::Duration::from_secs(10);
pub const RUN_HANGS_TIMES: u32 = 10;

/// How long such a run may take to end once it is asked to: the runtime looks between operators.
pub const RUN_ENDS: std::time::Duration = std::time::Duration::from_secs(1);

/// Sessions that may hang at one time. Each holds a thread, and the model's memory on both sides, which only
/// the end of the process frees: with more the agent ends, and is started anew.
pub const ABANDONED_SESSIONS: usize = 8;

/// Combinations of input shapes that a model is served in where each is compiled on its own: that takes 5 to
/// 100 seconds on an Ascend, in the request that brings it, and is kept as long as the session.
pub const SERVED_SHAPES: usize = 8;

// ---- hardware, shell: probe ----

/// Highest processor number plus one: Linux is built for at most 8,192.
pub const CPU_NUMBERS: usize = 8192;

/// Most bytes read of one file that the kernel shows; `/proc/cpuinfo` has 1.5 KiB a processor.
pub const KERNEL_FILE_BYTES: u64 = 4 << 20;

/// Most temperature sensors looked at.
pub const THERMAL_ZONES: usize = 64;

/// Most trip points of a sensor: the kernel's old bound was 12.
pub const TRIP_POINTS: usize = 16;

/// Most nested control groups looked at: systemd and a container runtime make about eight.
pub const CGROUP_DEPTH: usize = 32;

/// Most bytes of a file that says one thing of a PCI device.
pub const SYSFS_VALUE_BYTES: u64 = 256;

/// Bytes of the place for a vendor's answer: structures grow with the library, and the largest that any header
/// has today takes 34 KiB.
pub const VENDOR_ANSWER_BYTES: usize = 64 << 10;

/// Longest text of a vendor's library: names and versions have some tens of characters.
pub const VENDOR_TEXT_BYTES: usize = 256;

/// Most cards that a vendor's library may list, and devices in one card. Servers with 16 cards of two exist; an
/// edge box has one or two.
pub const VENDOR_CARDS: usize = 64;
pub const VENDOR_DEVICES_IN_CARD: usize = 8;

/// Seconds for which the box's speed is measured, all operators together.
pub const ROOFLINE_SECONDS: f64 = 2.0;

/// Bytes that are copied to measure memory, and how often: more than caches hold, and twice of it fits the
/// smallest boxes.
pub const ROOFLINE_COPY_BYTES: usize = 64 << 20;
pub const ROOFLINE_COPIES: usize = 10;

/// Largest file of such measurements that is read: one of each engine takes 2 KiB.
pub const ROOFLINE_FILE_BYTES: usize = 1 << 20;

/// Sweeps after which names, addresses and versions are asked again: some minutes, within which nobody
/// exchanges a driver unnoticed.
pub const IDENTITY_SWEEPS: u32 = 60;

// ---- arrivals ----

/// Longest name of a model: fits a file name with a suffix and a metric's label.
pub const MODEL_NAME_BYTES: usize = 128;

// ---- shell: children ----

/// Longest line that is taken from a child's standard output.
pub const CHILD_LINE_BYTES: usize = 1 << 20;

/// Last words of a child on standard error that are kept for the reason.
pub const CHILD_SAID_BYTES: usize = 4096;

/// Most lines that are taken from a child: a build of an hour tells some ten thousand steps.
pub const CHILD_LINES: usize = 1_000_000;

/// Least memory that a child may take where its share of what the box has available is less: its own code
/// and that of ONNX Runtime start in 100 MiB.
pub const CHILD_MEMORY: u64 = 256 << 20;

/// Files that a child may hold open: a model's own are closed once they are mapped, libraries and pipes are
/// some tens.
pub const CHILD_FILES: u64 = 1024;

/// Largest file that a child may write: all weights of the largest model.
pub const CHILD_FILE_BYTES: u64 = EXTERNAL_DATA_BYTES;

/// Threads of a child, beyond those that its operators are given, that may be busy all the time.
pub const CHILD_SPARE_THREADS: usize = 1;

/// Memory that a child which reads a vendor's library may take of its own: such libraries map their logs and
/// queues, and runtimes that open a device more than drivers do.
pub const TELEMETRY_MEMORY: u64 = 1 << 30;

/// Processor time of such a child: thirty times what its sweeps should take.
pub const TELEMETRY_PROCESSOR: std::time::Duration = std::time::Duration::from_secs(120);

/// Sweeps after which such a child ends and the next begins: what a library leaks goes with it. An hour at the
/// usual interval.
pub const TELEMETRY_SWEEPS: u32 = 720;

/// How long such a child may live whatever the interval. Silence ends it long before.
pub const TELEMETRY_LONGEST: std::time::Duration = std::time::Duration::from_secs(30 * 86_400);

/// Waits before a library that failed or hung is read again: the first, doubled each time, and the longest.
pub const TELEMETRY_FIRST: std::time::Duration = std::time::Duration::from_secs(1);
pub const TELEMETRY_AGAIN_LONGEST: std::time::Duration = std::time::Duration::from_secs(300);

/// How often it is looked whether accelerators have come, where there were none: a card is plugged in, or its
/// driver loaded late.
pub const ACCELERATORS_LOOK: std::time::Duration = std::time::Duration::from_secs(60);

/// How long a command that ends waits for such a child beyond what a library may take: starting it, and ending
/// it where a driver does not let it go.
pub const TELEMETRY_END: std::time::Duration = std::time::Duration::from_secs(5);

/// Seconds of processor time that a child has left to end by itself once what it may take is used up.
pub const CHILD_LAST_SECS: u64 = 5;

/// Landlock's interface from which on it counts as confinement where that is insisted on: the first that keeps
/// files elsewhere from being cut short.
pub const LANDLOCK_ENOUGH: u32 = 3;

/// Parts of the memory that is available of which a build may take one: serving goes on beside it.
pub const BUILD_MEMORY_PARTS: u64 = 2;

/// The same for a trial: what a model needs beyond that it could not have in service either.
pub const TRIAL_MEMORY_PARTS: u64 = 1;

/// How often work may end for want of memory that the box did not have at the moment, or by a signal from
/// elsewhere, before it is held to be the cause itself: with the waits between, more than a minute.
pub const DOUBTFUL_TRIES: u32 = 5;

/// Waits before a load is tried again that failed through no fault of the file: the first, doubled each
/// time, and the longest.
pub const RELOAD_FIRST: std::time::Duration = std::time::Duration::from_secs(5);
pub const RELOAD_LONGEST: std::time::Duration = std::time::Duration::from_secs(600);

/// The same for a build, which takes a core for minutes.
pub const REBUILD_FIRST: std::time::Duration = std::time::Duration::from_secs(10);
pub const REBUILD_LONGEST: std::time::Duration = std::time::Duration::from_secs(3600);

// ---- shell: store ----

/// Quarantined variants that are remembered: a box sees a few in its life.
pub const QUARANTINE_ENTRIES: usize = 1024;

/// Damaged files and folders that are kept for a person to look at.
pub const DAMAGED_KEPT: usize = 16;

/// Ladders that are kept on disk; those in use always are. Each is about as large as three dense models.
pub const LADDERS_KEPT: usize = 32;

/// Bytes of compiled graphs that are kept of variants which serve no longer; an Ascend's are about as large as
/// their models. Those of variants that serve always are.
pub const COMPILED_BYTES: u64 = 2 << 30;

/// Failures of models on execution providers that are remembered, and for how long: the next day there may be
/// another driver, and the versions of all of them are not known.
pub const PROVIDER_FAILURES: usize = 256;
pub const PROVIDER_FORGIVEN: std::time::Duration = std::time::Duration::from_secs(86_400);

// ---- shell: watch, agent ----

/// Waits before a model that does not run on the provider that is wanted first is tried there again: each trial
/// takes a core, and a device that came back is told by its library.
pub const PROVIDER_AGAIN_FIRST: std::time::Duration = std::time::Duration::from_secs(60);
pub const PROVIDER_AGAIN_LONGEST: std::time::Duration = std::time::Duration::from_secs(3600);

/// Wait before another provider is looked for where a model's sessions are lost and none was found: its
/// requests wait meanwhile.
pub const PROVIDER_LOST_AGAIN: std::time::Duration = std::time::Duration::from_secs(2);

/// Most files of a model directory that are looked at.
pub const REPOSITORY_FILES: usize = 100_000;

/// Levels of folders below the model directory: model, version, and two for external data.
pub const REPOSITORY_DEPTH: usize = 4;

/// The agent's turn: governor and status. Four a second meet a budget again well within a second
/// of two requests that broke it.
pub const TICK: std::time::Duration = std::time::Duration::from_millis(250);

/// The same while there is nothing to serve, load or build: what is left to tell is the status.
pub const IDLE_TICK: std::time::Duration = std::time::Duration::from_secs(2);

/// How long the configuration's file must have rested before it is read again: programs that write a file in
/// its place do so within milliseconds of emptying it.
pub const CONFIG_REST: std::time::Duration = std::time::Duration::from_millis(200);

/// The same for a file that is empty or gone: nearly always that is a moment on the way to another one, and
/// read too early it would drop every budget.
pub const CONFIG_REST_EMPTY: std::time::Duration = std::time::Duration::from_secs(2);

/// How long after the first file event the directory is listed: a copy raises many events.
pub const LOOK_DELAY: std::time::Duration = std::time::Duration::from_millis(50);

/// Most sockets that the service manager may hand over: one an endpoint, what was kept for it, and some that a
/// socket unit has too many.
pub const HANDED_SOCKETS: usize = 32;

/// How long the event loop may show no life. It turns at least every [`IDLE_TICK`]; what it waits for are small
/// writes, which a worn-out flash card may hold up for many seconds.
pub const EVENT_LOOP_SILENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// How often a listener shows that it still takes connections, and how long it may not.
pub const LISTENER_PULSE: std::time::Duration = std::time::Duration::from_secs(5);
pub const LISTENER_SILENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// How long one listing of the model directory may take: it may lie on a network's disk that comes back. A
/// thread that hangs in the kernel for longer is only got rid of with its process.
pub const LISTING_SILENCE: std::time::Duration = std::time::Duration::from_secs(600);

/// How long one run of a session may take: the longest that are known, of speech and of large images on one
/// slow core, take a minute. A session that hangs is only got rid of with its process.
pub const RUN_SILENCE: std::time::Duration = std::time::Duration::from_secs(600);

/// How often the watchdog is fed at least, and at most.
pub const WATCHDOG_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);
pub const WATCHDOG_LEAST: std::time::Duration = std::time::Duration::from_millis(10);

/// Stack of the watchdog's thread: it formats some lines.
pub const WATCHDOG_STACK_BYTES: usize = 256 << 10;

/// How long requests that came while the agent was restarted wait for their model. Trials of some models in a
/// row take that long; nobody waits longer for an answer.
pub const START_WAIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Events that may wait for the agent. Each stands for work that it started itself.
pub const AGENT_EVENTS: usize = 256;

/// Share of a budget from which on a build makes place for serving.
pub const NEAR_BUDGET: f64 = 0.8;

/// Share of a budget below which a build that stood still goes on: so far below the other that the
/// build's own share of the box does not send it back at once.
pub const FAR_FROM_BUDGET: f64 = 0.6;

/// A build is paused no longer than this at a stretch, and then runs for at least the second time: on a
/// box that is always near its budgets it is the ladder that helps.
pub const BUILD_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);
pub const BUILD_RUN: std::time::Duration = std::time::Duration::from_secs(15);

/// Bytes of live requests that are kept of one model, in memory and on disk: 53 colour images of 224
/// pixels a side, or 512 of 73. Eight images are enough for a refit that beats every other repair.
pub const RESERVOIR_BYTES: usize = 32 << 20;

/// Samples of live requests from which on a ladder is worth building: as many as the figures in the
/// documentation were measured with.
pub const RESERVOIR_ENOUGH: usize = 128;

/// Samples out of which the kept ones are drawn before that ends: half an hour of 30 requests a second,
/// several days of one every few seconds.
pub const RESERVOIR_SEEN: u64 = 65_536;

/// Wait before a rung that failed in service may stand by again.
pub const FAULT_WAIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Failures in service, each on another probation, that convict a rung for good. One may be the doing of the
/// request: whoever sends it must not be able to take rungs away from everybody else.
pub const FAULTS_TO_CONVICT: u32 = 3;

/// How long the agent waits at its start for files that are still being written before it counts as ready.
pub const READY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Bytes of a file of a recorded trace, from which on another one is begun, and how many are kept: 64 MiB,
/// three days of one model that is asked without a pause.
pub const TRACE_FILE_BYTES: u64 = 8 << 20;
pub const TRACE_FILES: usize = 8;

/// Lines of a trace, all models of one moment in each, that may wait for the disk: half a minute.
pub const TRACE_WAITING: usize = 128;

/// Runs of a variant in its trial.
pub const TRIAL_RUNS: usize = 20;

/// Memory that must stay available on the box when a variant is loaded beside the one in service.
pub const MEMORY_RESERVE: u64 = 256 << 20;

/// Memory of a further session whose weights are lent: 11 MB were measured for a sentence encoder of 90 MB;
/// the rest is for the activations of larger inputs.
pub const SESSION_BYTES: u64 = 32 << 20;

/// Lines of the process's own map of memory that are read: some thousand mappings of 24 lines.
pub const SMAPS_LINES: usize = 100_000;

/// Most processes and threads that write the same file at once: a box builds one ladder at a time, and an
/// operator at the command line another.
pub const WRITERS_BESIDE: u32 = 64;

/// Bytes that must stay free on the disk of the state directory when weights are put there: what is
/// acknowledged to clients and operators has to find room.
pub const DISK_RESERVE: u64 = 256 << 20;

/// Largest request and answer together, bytes of their tensors, that is run on dense as well; one may wait and
/// one run for each model.
pub const SHADOW_REQUEST_BYTES: usize = 8 << 20;

/// Share of a budget up to which there is time for comparisons. A rung that fits its budget with the usual
/// margin of 1.1 takes 0.91 of it.
pub const SHADOW_SLACK: f64 = 0.95;

/// How long dense stays loaded for comparisons after the last rung has left service: a model at the edge of its
/// budget goes to and fro within this time.
pub const SHADOW_KEEP: std::time::Duration = std::time::Duration::from_secs(60);

/// Wait before dense is loaded for comparisons again where there was no room for it, or somebody needed the
/// room.
pub const SHADOW_RETRY: std::time::Duration = std::time::Duration::from_secs(60);

// ---- shell: supply ----

/// Largest library that is taken out of a wheel; providers for accelerators reach some hundred MB.
pub const LIBRARY_BYTES: u64 = 1 << 30;

/// Most libraries and notices that are taken out of a wheel; the build for CANN has five, one with several
/// providers a few more.
pub const RUNTIME_FILES: usize = 16;

/// Most characters that are kept of what CANN's provider logs of an error: it writes 1,024 at most.
pub const CANN_WORDS: usize = 1024;

/// How long a command that only looks waits for a provider's library to be loaded in a child, in wall and in
/// processor time: a vendor's runtime opens its device then, and compiles nothing.
pub const PROVIDER_LOAD: std::time::Duration = std::time::Duration::from_secs(30);
