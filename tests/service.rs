//! The agent under a service manager: a small one of the test, which speaks sd_notify's protocol over a real
//! socket, keeps what it is given to keep, and hands sockets over as systemd does.

mod running;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use running::{Agent, Home, Load, model};
use tempfile::TempDir;

/// Nothing that is waited for takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the manager was told and given.
#[derive(Default)]
struct Told {
    lines: Vec<String>,
    /// By name, as FDSTORE=1 and FDSTOREREMOVE=1 say.
    kept: BTreeMap<String, OwnedFd>,
}

/// A service manager.
struct Manager {
    path: PathBuf,
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (told, stop) = (Arc::<Mutex<Told>>::default(), Arc::<AtomicBool>::default());
        let (telling, stopped) = (Arc::clone(&told), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some((words, sockets)) = receive(&socket) {
                    take_in(&mut telling.lock().unwrap(), &words, sockets);
                }
            }
        });
        Self { path, told, stop, thread: Some(thread), _dir: dir }
    }

    /// How often a line was told.
    fn count(&self, line: &str) -> usize {
        self.told.lock().unwrap().lines.iter().filter(|told| *told == line).count()
    }

    fn last(&self, start: &str) -> Option<String> {
        let told = self.told.lock().unwrap();
        told.lines.iter().rev().find(|line| line.starts_with(start)).cloned()
    }

    fn kept(&self) -> Vec<String> {
        self.told.lock().unwrap().kept.keys().cloned().collect()
    }

    /// Starts an agent that is handed all that is kept, and `more` before that.
    fn start<'a>(
        &self,
        home: &'a Home,
        more: &[(&str, BorrowedFd)],
        environment: &[(&str, &str)],
    ) -> Agent<'a> {
        let told = self.told.lock().unwrap();
        let kept = told.kept.iter().map(|(name, socket)| (name.as_str(), socket.as_fd()));
        let all: Vec<_> = more.iter().copied().chain(kept).collect();
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        let log = fs::File::options().create(true).append(true).open(home.dir.path().join("log"));
        // The process has its number only once it is there.
        let mut command = Command::new("sh");
        command.args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"]);
        command.arg(env!("CARGO_BIN_EXE_blochd")).args(["run", "--config"]);
        command.arg(home.dir.path().join("agent.yaml"));
        command.arg("--runtime-library").arg(running::onnx_runtime());
        running::without_settings(&mut command);
        command.env("NOTIFY_SOCKET", &self.path).envs(environment.iter().copied());
        command.env("LISTEN_FDS", all.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.unwrap());
        hand_over(&mut command, all.iter().map(|(_, socket)| socket.as_raw_fd()).collect());
        let child = command.spawn().unwrap();
        drop(told);
        home.started(child)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn receive(socket: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let mut buffer = [0; 8192];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut sockets = Vec::new();
    let length = {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message =
            recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).ok()?;
        for part in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(descriptors) = part {
                // SAFETY: the kernel has just made them for this process, and each is taken once.
                let own = |fd: RawFd| unsafe { OwnedFd::from_raw_fd(fd) };
                sockets.extend(descriptors.into_iter().map(own));
            }
        }
        message.bytes
    };
    Some((String::from_utf8(buffer[..length].to_vec()).unwrap(), sockets))
}

fn take_in(told: &mut Told, words: &str, sockets: Vec<OwnedFd>) {
    let lines: Vec<&str> = words.lines().collect();
    let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME="));
    if lines.contains(&"FDSTORE=1") {
        assert_eq!(sockets.len(), 1, "{words}");
        told.kept.extend(name.map(str::to_owned).into_iter().zip(sockets));
    } else {
        assert!(sockets.is_empty(), "{words}");
    }
    if lines.contains(&"FDSTOREREMOVE=1") {
        told.kept.remove(name.unwrap());
    }
    told.lines.extend(lines.into_iter().map(str::to_owned));
}

/// Has `command` find these descriptors as 3, 4 and so on.
fn hand_over(command: &mut Command, sockets: Vec<RawFd>) {
    let place = move || {
        // Out of the way of one another first.
        let mut aside = [0; 16];
        for (aside, socket) in aside.iter_mut().zip(&sockets) {
            // SAFETY: a system call on numbers.
            *aside = unsafe { libc::fcntl(*socket, libc::F_DUPFD_CLOEXEC, 100) };
            if *aside < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for (target, aside) in (3..).zip(&aside[..sockets.len()]) {
            // SAFETY: as above. What may have had that number is the parent's pipe for errors.
            if unsafe { libc::dup2(*aside, target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: only system calls are made between fork and exec, and nothing is allocated.
    unsafe { command.pre_exec(place) };
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn end(mut agent: Agent) {
    agent.signal(Signal::SIGTERM);
    let status = agent.wait();
    assert!(status.success(), "{status}");
}

/// Whether a server at this socket says that it lives.
fn is_live(path: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(path) else { return false };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = "GET /v2/health/live HTTP/1.1\r\nhost: box\r\nconnection: close\r\n\r\n";
    let mut answer = String::new();
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

fn home_with(more: &str) -> Home {
    let home = Home::new();
    home.configure(&format!("{more}\ndefaults: {{ladder: {{enabled: false}}}}"));
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    home
}

/// The numbers of all that a process has open and would hand to a program that it executes.
fn inherited(pid: Pid) -> Vec<u32> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("0");
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        if flags & libc::O_CLOEXEC == 0 {
            numbers.push(entry.file_name().to_string_lossy().parse().unwrap());
        }
    }
    // What whoever runs the tests left open is none of the agent's.
    let is_ours = |number: &u32| {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/fd/{number}")).ok();
        *number > 2 && of(&pid.to_string()) != of("self")
    };
    numbers.retain(is_ours);
    numbers
}

#[test]
fn sockets_of_socket_units_serve_and_what_does_not_fit_is_told_and_closed() {
    let manager = Manager::new();
    let home = home_with("unix_socket: b.sock");
    let path = home.dir.path().join("b.sock");
    let listen = |port: u16| TcpListener::bind(("127.0.0.1", port)).unwrap();
    let (http, grpc, unknown) = (listen(home.http), listen(0), listen(0));
    let unix = UnixListener::bind(&path).unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let connection = TcpStream::connect(unknown.local_addr().unwrap()).unwrap();
    let [grpc_at, unknown_at] = [&grpc, &unknown].map(|socket| socket.local_addr().unwrap());
    let handed = [
        ("blochd.socket", http.as_fd()),
        ("grpc", grpc.as_fd()),
        ("unix", unix.as_fd()),
        ("blochd.socket", unknown.as_fd()),
        ("udp", datagrams.as_fd()),
        ("metrics", connection.as_fd()),
    ];
    let mut agent = manager.start(&home, &handed, &[]);
    drop((http, grpc, unix, unknown));
    agent.eventually("it is ready", |agent| agent.get("/v2/health/ready").is_some());
    assert!(agent.infer("mlp").is_ok());
    assert!(TcpStream::connect(grpc_at).is_ok(), "gRPC is where the unit says");
    assert!(TcpStream::connect(("127.0.0.1", home.grpc)).is_err(), "and nowhere else");
    assert!(TcpStream::connect(("127.0.0.1", home.metrics)).is_ok(), "that one was bound");
    assert!(is_live(&path));
    drop(connection);
    assert!(TcpStream::connect(unknown_at).is_err(), "it was closed");
    let log = home.log();
    for words in [
        format!(
            "grpc is served at {grpc_at}, as the socket unit says, and not at 127.0.0.1:{}",
            home.grpc
        ),
        "as grpc_address says: make one say what the other does".to_owned(),
        "no setting names this address".to_owned(),
        "it is a datagram socket".to_owned(),
        "it does not listen".to_owned(),
    ] {
        assert!(log.contains(&words), "{words}\n{log}");
    }
    // Socket units have theirs themselves; what the agent has made is given to the manager.
    assert_eq!(manager.kept(), ["stored-admin", "stored-metrics"]);
    assert_eq!(inherited(agent.pid()), [0_u32; 0], "children get none of it");
    end(agent);
    assert!(path.exists(), "a socket unit's socket is the manager's");
}

#[test]
fn a_socket_unit_opens_no_port_to_everybody_that_the_configuration_keeps_closed() {
    let manager = Manager::new();
    let everywhere = || TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let (http, home) = (everywhere(), home_with(""));
    let mut agent = manager.start(&home, &[("http", http.as_fd())], &[]);
    assert_eq!(agent.wait().code(), Some(78), "{}", home.log());
    let at = http.local_addr().unwrap();
    let words = format!("the socket unit has http where it may not be: {at} is reached");
    assert!(home.log().contains(&words), "{}", home.log());
    let (http, home) = (everywhere(), home_with("allow_plaintext: true"));
    let at = http.local_addr().unwrap();
    let _agent = manager.start(&home, &[("http", http.as_fd())], &[]);
    eventually("it is told", || home.log().contains("since allow_plaintext says so"));
    let url = format!("http://127.0.0.1:{}/v2/health/live", at.port());
    assert!(ureq::get(url).call().is_ok());
}

/// Clients that connect anew for every request, without a pause.
struct Clients {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<(Vec<String>, Duration)>>,
}

impl Clients {
    fn start(count: usize, http: u16, request: &serde_json::Value) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let client = || {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            let request = request.clone();
            move || {
                let (mut failed, mut longest) = (Vec::new(), Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    match running::infer(http, "mlp", &request) {
                        Ok(_) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failed.push(error),
                    }
                    longest = longest.max(begun.elapsed());
                }
                (failed, longest)
            }
        };
        let threads = (0..count).map(|_| thread::spawn(client())).collect();
        Self { stop, answered, threads }
    }

    /// Waits until so many more were answered.
    fn answered(&self, more: usize) {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        eventually("clients are answered", || self.answered.load(Ordering::Relaxed) >= goal);
    }

    /// Requests answered, the words of those that failed, and the longest wait.
    fn finish(self) -> (usize, Vec<String>, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut failed, mut longest) = (Vec::new(), Duration::ZERO);
        for thread in self.threads {
            let (words, wait) = thread.join().unwrap();
            failed.extend(words);
            longest = longest.max(wait);
        }
        (self.answered.load(Ordering::Relaxed), failed, longest)
    }
}

#[test]
fn a_restart_under_load_refuses_nobody() {
    let restarts = std::env::var("RESTARTS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let manager = Manager::new();
    let home = home_with("unix_socket: b.sock");
    let path = home.dir.path().join("b.sock");
    let mut agent = manager.start(&home, &[], &[]);
    agent.eventually("it is ready", |agent| agent.get("/v2/health/ready").is_some());
    let kept = ["stored-admin", "stored-grpc", "stored-http", "stored-metrics", "stored-unix"];
    assert_eq!(manager.kept(), kept);
    let file = fs::metadata(&path).unwrap().ino();
    let request = agent.input("mlp").unwrap();
    let clients = Clients::start(4, home.http, &request);
    // These keep their connections, which the agent's end closes between two requests: they connect again, and
    // may lose a request that meets the end of its connection halfway.
    let keeping = Load::start(home.http, "mlp", request);
    for turn in 0..restarts {
        clients.answered(20);
        end(agent);
        // Nobody serves now, and both come through.
        let port = TcpStream::connect(("127.0.0.1", home.http));
        assert!(port.is_ok() && UnixStream::connect(&path).is_ok(), "restart {turn}");
        agent = manager.start(&home, &[], &[]);
        eventually("it says that it is ready", || manager.count("READY=1") == turn + 2);
    }
    clients.answered(20);
    let (answered, failed, longest) = clients.finish();
    let (kept, lost) = keeping.finish();
    eprintln!(
        "{restarts} restarts: {answered} requests answered, each on a connection of its own, {} failed, \
         longest wait {longest:?}; on connections that are kept {kept} answered, {} lost {lost:?}",
        failed.len(),
        lost.len()
    );
    assert!(failed.is_empty(), "{failed:?}\n{}", home.log());
    assert!(is_live(&path) && fs::metadata(&path).unwrap().ino() == file, "the same socket");
    assert_eq!(manager.kept().len(), 5);

    // Another address: the old socket is given up, and the new one kept.
    let old = home.http;
    let text = fs::read_to_string(home.dir.path().join("agent.yaml")).unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    home.write_config(&text.replace(&format!("127.0.0.1:{old}"), &free.to_string()));
    end(agent);
    let agent = manager.start(&home, &[], &[]);
    eventually("it says that it is ready", || manager.count("READY=1") == restarts + 2);
    assert!(TcpStream::connect(free).is_ok());
    assert!(TcpStream::connect(("127.0.0.1", old)).is_err(), "nobody has it any more");
    assert_eq!(manager.kept().len(), 5);
    assert!(home.log().contains("http_address says otherwise by now"), "{}", home.log());
    end(agent);
}

/// The state of a process, `T` for stopped.
fn state(pid: Pid) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().chars().take(1).collect()
}

/// A thread that stands still, as one does that hangs, until this is dropped.
struct Hung(Pid);

impl Hung {
    /// `None` where no process may do that to another.
    fn new(thread: Pid) -> Option<Self> {
        match ptrace::seize(thread, ptrace::Options::empty()) {
            // One of those that come and go.
            Err(Errno::ESRCH) => return None,
            Err(Errno::EPERM | Errno::ENOSYS) => {
                eprintln!("skipped: no process may stop a thread of another here");
                return None;
            }
            seized => seized.unwrap(),
        }
        let stands = ptrace::interrupt(thread)
            .and_then(|()| waitpid(thread, Some(WaitPidFlag::__WALL)))
            .is_ok_and(|status| status.pid().is_some());
        stands.then_some(Self(thread))
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}

fn threads_named(pid: Pid, start: &str) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let named = |path: &Path| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with(start))
    };
    let found = tasks.filter(|task| named(&task.path()));
    found.map(|task| Pid::from_raw(task.file_name().to_string_lossy().parse().unwrap())).collect()
}

#[test]
fn the_watchdog_is_fed_while_every_actor_lives_and_who_hangs_is_named() {
    const FED: &str = "WATCHDOG=1";
    let manager = Manager::new();
    let home = home_with("");
    let mut agent = manager.start(&home, &[], &[("WATCHDOG_USEC", "1500000")]);
    agent.eventually("it is ready", |agent| agent.get("/v2/health/ready").is_some());
    let fed_again = |what: &str| {
        let fed = manager.count(FED);
        eventually(what, || manager.count(FED) > fed + 2);
    };
    fed_again("it is fed");

    // All of it stands still.
    agent.signal(Signal::SIGSTOP);
    eventually("it is stopped", || state(agent.pid()) == "T");
    thread::sleep(Duration::from_millis(200));
    let fed = manager.count(FED);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(manager.count(FED), fed);
    agent.signal(Signal::SIGCONT);
    fed_again("it is fed when it goes on");

    // The event loop hangs, which is the first thread; all others go on.
    let Some(hung) = Hung::new(agent.pid()) else { return };
    let named = || manager.last("STATUS=").unwrap_or_default();
    eventually("it is named", || named().contains("the event loop shows no life for"));
    assert!(!named().contains("listener"), "{}", named());
    assert!(agent.get("/v2/health/live").is_some());
    let fed = manager.count(FED);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(manager.count(FED), fed);
    assert!(home.log().contains("the event loop shows no life"), "{}", home.log());
    drop(hung);
    fed_again("it is fed when the event loop goes on");
    eventually("the status says what is served", || named() == "STATUS=mlp 1: dense");

    // Nobody takes connections any more.
    let threads = threads_named(agent.pid(), "tokio-rt");
    let hung: Vec<Hung> = threads.into_iter().filter_map(Hung::new).collect();
    eventually("it is named", || named().contains("the HTTP listener shows no life for"));
    assert!(named().contains("the gRPC listener"), "{}", named());
    let fed = manager.count(FED);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(manager.count(FED), fed);
    drop(hung);
    fed_again("it is fed when they go on");
    end(agent);
}
