//! One child: started in a process group of its own, bounded, read, paused, and gone in the end.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;

use crate::config::Provider;
use crate::limits;
use crate::shell::probe::HostProbe;
use crate::shell::systemd;
use crate::units::ByteSize;

/// How a child is scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// As this process: for trials, which measure.
    Normal,
    /// Only where nobody else wants the core, and with this niceness: for builds.
    Idle { nice: i32 },
}

/// How much memory of its own a child may take: heap, stacks and private mappings that it may write, whether
/// it has touched them or not (`RLIMIT_DATA`). What is only reserved, and files that are mapped, as model
/// files are, do not count: an address space may be far larger than that, and often is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// So many bytes.
    Bytes(u64),
    /// One of so many equal parts of what the box, or the slice that the agent runs in, has available at the
    /// moment when the child starts.
    Available { parts: u64 },
}

impl Memory {
    /// What a setting asks for: a size, or else a part of what is available.
    pub fn or_part(size: Option<ByteSize>, parts: u64) -> Self {
        size.map_or(Self::Available { parts }, |size| Self::Bytes(size.0))
    }

    /// The bound for a child that starts now, bytes; `None` where the box does not tell what it has.
    fn now(self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Available { parts } => {
                let host = HostProbe::new().host();
                let part = host.memory_available() / parts.max(1);
                // Of a box that has next to nothing left a child gets what it needs to say so.
                (host.memory.total > 0).then(|| part.max(limits::CHILD_MEMORY))
            }
        }
    }
}

/// What a child may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Wall time; while the child is paused it does not count.
    pub timeout: Duration,
    /// Time of all its threads on processors.
    pub processor: Duration,
    pub memory: Memory,
    pub priority: Priority,
    /// Where it works, and keeps what it needs for a while; where there is none, where this process does.
    pub folder: Option<PathBuf>,
    /// Variables that name the folders to which libraries of its provider's write: they name that folder.
    pub homes: &'static [&'static str],
}

/// The variables by which the toolkit of a provider is told where it may write: CANN keeps its log, compiled
/// operators and what its compiler works on there, or below the user's home.
pub fn homes(provider: &Provider) -> &'static [&'static str] {
    match provider {
        Provider::Cann(_) => &["ASCEND_WORK_PATH", "ASCEND_CACHE_PATH", "HOME"],
        Provider::Cpu | Provider::Plugin(_) => &[],
    }
}

/// The processor time of a child whose operators run on so many threads, all of them busy until its wall time
/// is over: what takes more has made threads of its own.
pub fn processor_time(timeout: Duration, threads: usize) -> Duration {
    let busy = threads.max(1).saturating_add(limits::CHILD_SPARE_THREADS);
    timeout.saturating_mul(u32::try_from(busy).unwrap_or(u32::MAX))
}

/// A folder in `folders` for one child alone, which goes with it. Without one a child has no place to write to,
/// which only models too large for memory need: a full disk keeps nothing else from being tried.
pub fn folder(folders: &Path) -> Option<TempDir> {
    let made = std::fs::create_dir_all(folders).and_then(|()| TempDir::new_in(folders));
    made.inspect_err(|error| tracing::warn!("a child works without a folder: {error}")).ok()
}

/// A path as a child's argument, which works elsewhere.
pub fn argument(path: &Path) -> String {
    let whole = std::path::absolute(path);
    whole.as_deref().unwrap_or(path).to_string_lossy().into_owned()
}

/// A provider as a child's argument: its library by a path that works elsewhere.
pub fn provider_argument(provider: &Provider) -> String {
    let mut provider = provider.clone();
    if let Provider::Plugin(plugin) = &mut provider {
        plugin.library = argument(&plugin.library).into();
    }
    provider.text()
}

/// What the child shall do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Run,
    /// Stopped (SIGSTOP) until it may run again.
    Pause,
    /// Killed.
    End,
}

/// Why a child did not do its work. It is gone in every case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChildError {
    #[error("cannot start {}: {reason}", program.display())]
    Start { program: PathBuf, reason: String },
    #[error("it hung: nothing came of it within {limit:?}{said}")]
    TimedOut { limit: Duration, said: String },
    #[error("it used up the {limit:?} of processor time that it may take{said}")]
    OutOfTime { limit: Duration, said: String },
    #[error("it crashed ({signal}){said}")]
    Crashed { signal: String, said: String },
    #[error(
        "it was ended by {signal}, which did not come from here; where a box runs out of memory, \
         its kernel does that{said}"
    )]
    Killed { signal: String, said: String },
    #[error("it ran out of the {limit} of memory that it may take{said}")]
    OutOfMemory { limit: ByteSize, said: String },
    #[error("it ran out of the {limit} of memory that the box had to spare for it{said}")]
    Short { limit: ByteSize, said: String },
    #[error("it failed with exit code {code}{said}")]
    Failed { code: i32, said: String },
    #[error("its output makes no sense: {problem}")]
    Output { problem: String },
    #[error("it was ended on request")]
    Ended,
}

/// Whom the failure of a child speaks against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// What it worked on: it will fail the next time, too.
    Work,
    /// The execution provider: another one may run it.
    Provider,
    /// Either: it took more than the box had at the moment, which may be much or little.
    Either,
    /// This program, its host or a shutdown.
    Circumstances,
}

impl ChildError {
    /// Whom this speaks against.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Start { .. } | Self::Ended => Blame::Circumstances,
            Self::Failed { code, .. } if *code == WORK_REFUSED => Blame::Work,
            Self::Failed { code, .. } if *code == PROVIDER_FAILED => Blame::Provider,
            Self::Failed { .. } => Blame::Circumstances,
            Self::Killed { .. } | Self::Short { .. } => Blame::Either,
            Self::TimedOut { .. }
            | Self::OutOfTime { .. }
            | Self::Crashed { .. }
            | Self::OutOfMemory { .. }
            | Self::Output { .. } => Blame::Work,
        }
    }
}

/// Exit code of a child that refuses what it was given (`EX_DATAERR`).
pub const WORK_REFUSED: i32 = 65;

/// Exit code of a child whose execution provider is not to be had, or fails at what the CPU does.
pub const PROVIDER_FAILED: i32 = 76;

/// Whether `said` is what Rust, C++ and ONNX Runtime say when an allocation fails.
pub fn is_out_of_memory(said: &str) -> bool {
    let words = ["memory allocation of", "bad_alloc", "bad allocation", "Failed to allocate"];
    words.iter().any(|word| said.contains(word))
}

/// The program that is running.
pub fn this_program() -> PathBuf {
    // Linux appends a remark to the name of a program that was replaced meanwhile; the old one
    // still runs by this link.
    std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

/// Runs `program` and hands every line of its standard output to `line`, which may refuse it.
///
/// To be called on a thread that lives as long as the child may: the kernel kills the child when the
/// thread that started it ends, so that none outlives the agent.
///
/// # Errors
/// Where the child cannot be started, fails, crashes, takes too much of anything, or writes what
/// `line` refuses.
pub async fn run(
    program: &Path,
    arguments: &[String],
    bounds: &Bounds,
    mut wish: watch::Receiver<Wish>,
    line: &mut (dyn FnMut(&str) -> Result<(), String> + Send),
) -> Result<(), ChildError> {
    let start = |reason: String| ChildError::Start { program: program.to_owned(), reason };
    let mut command = Command::new(program);
    command.args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    systemd::unmanaged(command.as_std_mut());
    if let Some(folder) = &bounds.folder {
        command.current_dir(folder).env("TMPDIR", folder);
        command.envs(bounds.homes.iter().map(|name| (name, folder)));
    }
    let memory = bounds.memory.now();
    bound(&mut command, memory, bounds);
    let mut child = command.spawn().map_err(|error| start(error.to_string()))?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(start("its output is not connected".to_owned()));
    };
    let group = Group::of(&child);
    let mut said = Tail::default();
    let ended = {
        let work = async {
            let said = async {
                said.collect(err).await;
                Ok(())
            };
            tokio::try_join!(lines(out, line), said)
                .map_err(|problem| ChildError::Output { problem })?;
            child.wait().await.map_err(|error| start(error.to_string()))
        };
        guide(work, bounds.timeout, &mut wish, &group).await
    };
    let status = match ended {
        Some(Ok(status)) => status,
        Some(Err(error)) => {
            end(&group, &mut child).await;
            return Err(error);
        }
        None => {
            end(&group, &mut child).await;
            return match *wish.borrow() {
                Wish::End => Err(ChildError::Ended),
                Wish::Run | Wish::Pause => {
                    Err(ChildError::TimedOut { limit: bounds.timeout, said: said.text() })
                }
            };
        }
    };
    outcome(status, bounds, memory, said.text())
}

/// Waits for `work`, pauses and resumes as wished; `None` where its time is over or its end wished.
async fn guide<T>(
    work: impl Future<Output = T>,
    limit: Duration,
    wish: &mut watch::Receiver<Wish>,
    group: &Group,
) -> Option<T> {
    let mut work = pin!(work);
    let mut left = limit;
    let mut paused = false;
    loop {
        let now = *wish.borrow_and_update();
        match now {
            Wish::End => return None,
            Wish::Pause if !paused => group.signal(Signal::SIGSTOP),
            Wish::Run if paused => group.signal(Signal::SIGCONT),
            Wish::Pause | Wish::Run => {}
        }
        paused = now == Wish::Pause;
        let begun = Instant::now();
        let over = async {
            if paused {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(left).await;
        };
        let changed = async {
            // Whoever could wish is gone: the last wish holds.
            if wish.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            done = &mut work => return Some(done),
            () = over => return None,
            () = changed => {}
        }
        if !paused {
            left = left.saturating_sub(begun.elapsed());
        }
    }
}

async fn end(group: &Group, child: &mut Child) {
    // The child was not waited for yet, so its number belongs to nobody else.
    group.signal(Signal::SIGKILL);
    if let Err(error) = child.wait().await {
        tracing::warn!("a child could not be waited for: {error}");
    }
}

/// The child and whatever it started.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    fn signal(&self, signal: Signal) {
        let Some(group) = self.0 else { return };
        if let Err(error) = killpg(group, signal)
            && error != nix::errno::Errno::ESRCH
        {
            tracing::warn!("{signal} does not reach a child: {error}");
        }
    }
}

/// Sets what the child inherits, between fork and exec. The number of its threads is not among it: the kernel
/// counts those of all that the same user runs, visible from here or not.
fn bound(command: &mut Command, memory: Option<u64>, bounds: &Bounds) {
    let parent = nix::unistd::getpid();
    let priority = bounds.priority;
    let seconds = bounds.processor.as_secs().max(1);
    let prepare = move || {
        // Only system calls: after a fork there is neither allocation nor lock.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if nix::unistd::getppid() != parent {
            return Err(nix::errno::Errno::ESRCH.into());
        }
        nix::sys::prctl::set_no_new_privs()?;
        if let Some(memory) = memory {
            lower(Resource::RLIMIT_DATA, memory, memory)?;
        }
        // A crash of a child is a reason in a report; gigabytes of core dump would fill the disk.
        lower(Resource::RLIMIT_CORE, 0, 0)?;
        lower(Resource::RLIMIT_CPU, seconds, seconds.saturating_add(limits::CHILD_LAST_SECS))?;
        lower(Resource::RLIMIT_NOFILE, limits::CHILD_FILES, limits::CHILD_FILES)?;
        lower(Resource::RLIMIT_FSIZE, limits::CHILD_FILE_BYTES, limits::CHILD_FILE_BYTES)?;
        first_to_go();
        if let Priority::Idle { nice } = priority {
            yield_to_others(nice);
        }
        Ok(())
    };
    // SAFETY: `prepare` runs in the forked child and makes system calls only.
    unsafe { command.pre_exec(prepare) };
}

/// Sets a bound and how far it could be raised again, neither above what it is.
fn lower(resource: Resource, soft: u64, hard: u64) -> nix::Result<()> {
    let (soft_now, hard_now) = getrlimit(resource)?;
    setrlimit(resource, soft.min(soft_now), hard.min(hard_now))
}

/// Where the box runs out of memory, a child goes before the agent does.
fn first_to_go() {
    // SAFETY: plain system calls on a static path and buffer; where the file cannot be opened
    // nothing happens.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY);
        if file >= 0 {
            libc::write(file, b"1000".as_ptr().cast(), 4);
            libc::close(file);
        }
    }
}

/// Gives the calling thread the core only where nobody else wants it.
pub fn yield_to_others(nice: i32) {
    let idle = libc::sched_param { sched_priority: 0 };
    // SAFETY: plain system calls on the calling thread with valid arguments; where they are refused, the
    // priority stays as it was. The niceness is absolute: the agent itself may run at a negative one.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, nice);
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &idle);
    }
}

/// Hands on the lines of `out` until its end.
async fn lines(
    out: ChildStdout,
    line: &mut (dyn FnMut(&str) -> Result<(), String> + Send),
) -> Result<(), String> {
    let mut out = BufReader::new(out);
    let mut buffer = Vec::new();
    for _ in 0..limits::CHILD_LINES {
        buffer.clear();
        let most = limits::CHILD_LINE_BYTES as u64 + 1;
        match (&mut out).take(most).read_until(b'\n', &mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(read) if read > limits::CHILD_LINE_BYTES => {
                return Err(format!("a line of more than {} bytes", limits::CHILD_LINE_BYTES));
            }
            Ok(_) => line(String::from_utf8_lossy(&buffer).trim_end())?,
            Err(error) => return Err(error.to_string()),
        }
    }
    Err(format!("more than {} lines", limits::CHILD_LINES))
}

/// The last words on standard error.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    async fn collect(&mut self, mut err: impl AsyncRead + Unpin) {
        let mut buffer = [0u8; 4096];
        while let Ok(count @ 1..) = err.read(&mut buffer).await {
            self.0.extend_from_slice(&buffer[..count]);
            let excess = self.0.len().saturating_sub(limits::CHILD_SAID_BYTES);
            self.0.drain(..excess);
        }
    }

    /// `: the words`, or nothing.
    fn text(&self) -> String {
        let words = String::from_utf8_lossy(&self.0);
        let words = words.trim().strip_prefix("blochd: ").unwrap_or(words.trim());
        if words.is_empty() { String::new() } else { format!(": {words}") }
    }
}

/// Signals that a process raises by what it does itself. Any other was sent by somebody else.
const CRASHES: [Signal; 7] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGABRT,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGTRAP,
    Signal::SIGSYS,
];

/// What came of a child that ended without our doing.
fn outcome(
    status: ExitStatus,
    bounds: &Bounds,
    limit: Option<u64>,
    said: String,
) -> Result<(), ChildError> {
    if status.success() {
        return Ok(());
    }
    if let Some(limit) = limit.map(ByteSize).filter(|_| is_out_of_memory(&said)) {
        return Err(match bounds.memory {
            Memory::Bytes(_) => ChildError::OutOfMemory { limit, said },
            Memory::Available { .. } => ChildError::Short { limit, said },
        });
    }
    match (status.code(), status.signal()) {
        (Some(code), _) => Err(ChildError::Failed { code, said }),
        (None, number) => {
            let number = number.unwrap_or_default();
            let known = Signal::try_from(number).ok();
            let signal = known
                .map_or_else(|| format!("signal {number}"), |signal| signal.as_str().to_owned());
            match known {
                Some(Signal::SIGXCPU) => {
                    Err(ChildError::OutOfTime { limit: bounds.processor, said })
                }
                Some(known) if CRASHES.contains(&known) => {
                    Err(ChildError::Crashed { signal, said })
                }
                Some(_) | None => Err(ChildError::Killed { signal, said }),
            }
        }
    }
}
