//! A real `blochd run` in a process of its own, with temporary directories, for tests that look at it
//! as its users do: files, signals, HTTP.

// Each test program uses its own part of it.
#![allow(dead_code)]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use blochd::shell::engine::{Search, library};
use blochd::shell::places;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing that is waited for takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(180);

/// A model of the test data.
pub fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(name)
}

/// ONNX Runtime as the program finds it.
pub fn onnx_runtime() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let search = Search::new(None, &places::state_dir());
        library::locate(&search).unwrap_or_else(|error| panic!("{error}")).path
    })
}

/// What a program said: its standard output and its standard error.
pub fn words(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The JSON that it printed, where it ended with this exit code.
pub fn parsed(output: &Output, code: i32) -> Value {
    let (out, err) = words(output);
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}\n{err}"))
}

/// Settings of whoever runs the tests would win over the test's own.
pub fn without_settings(command: &mut Command) {
    let settings = std::env::vars_os().map(|(name, _)| name);
    for name in settings.filter(|name| name.to_string_lossy().starts_with("BLOCHD_")) {
        command.env_remove(name);
    }
}

/// The directories of an agent; they outlive its processes.
pub struct Home {
    pub dir: TempDir,
    pub http: u16,
    pub grpc: u16,
    pub admin: u16,
    pub metrics: u16,
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("models")).unwrap();
        let [http, grpc, admin, metrics] = [(); 4].map(|()| free_port());
        let home = Self { dir, http, grpc, admin, metrics };
        home.configure("");
        home
    }

    pub fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The line of the configuration at which `more` begins, see [`Home::configure`].
    pub const MORE: usize = 8;

    /// Writes the configuration: what every test needs, and `more`.
    pub fn configure(&self, more: &str) {
        let text = format!(
            "model_dir: models\nstate_dir: state\nhttp_address: 127.0.0.1:{}\n\
             grpc_address: 127.0.0.1:{}\nadmin_address: 127.0.0.1:{}\n\
             metrics_address: 127.0.0.1:{}\n\
             arrivals: {{settle: 100ms, rescan: 1s}}\n{more}\n",
            self.http, self.grpc, self.admin, self.metrics
        );
        self.write_config(&text);
    }

    pub fn write_config(&self, text: &str) {
        let path = self.dir.path().join("agent.yaml");
        fs::write(path.with_extension("new"), text).unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
    }

    /// Drops a model file as a careful writer does: beside its place, then renamed.
    pub fn drop_model(&self, source: &Path, place: &str) {
        let to = self.models().join(place);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let beside = to.with_extension("part");
        fs::copy(source, &beside).unwrap();
        fs::rename(&beside, &to).unwrap();
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http)
    }

    pub fn start(&self) -> Agent<'_> {
        self.start_with(&[])
    }

    pub fn start_with(&self, environment: &[(&str, &str)]) -> Agent<'_> {
        self.start_on(onnx_runtime(), environment)
    }

    /// Starts it with ONNX Runtime at `library`.
    pub fn start_on(&self, library: &Path, environment: &[(&str, &str)]) -> Agent<'_> {
        let mut command = self.command(library);
        command.envs(environment.iter().copied());
        let mut agent = self.started(command.spawn().unwrap());
        agent.eventually("it answers", |agent| agent.get("/v2/health/live").is_some());
        agent
    }

    /// What starts it with ONNX Runtime at `library`.
    pub fn command(&self, library: &Path) -> Command {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        command
            .args(["run", "--config"])
            .arg(self.dir.path().join("agent.yaml"))
            .arg("--runtime-library")
            .arg(library)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap());
        without_settings(&mut command);
        command
    }

    /// An agent of this home that somebody else has started.
    pub fn started(&self, child: Child) -> Agent<'_> {
        Agent { child, home: self }
    }

    /// Starts it and waits until it is ready.
    pub fn start_ready(&self) -> Agent<'_> {
        let mut agent = self.start();
        agent.eventually("it is ready", |agent| agent.get("/v2/health/ready").is_some());
        agent
    }
}

/// A port that nobody else takes before the agent does: below those that the kernel hands out, another one for
/// every call, and each process begins elsewhere.
fn free_port() -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let call =
        || std::process::id().wrapping_mul(64).wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed));
    std::iter::repeat_with(|| 20_000 + (call() % 12_000) as u16).find(free).unwrap()
}

/// The processes that a process started and that are still there.
pub fn children_of(pid: Pid) -> Vec<i32> {
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
    }
    all
}

/// A running agent; killed when dropped.
pub struct Agent<'a> {
    child: Child,
    home: &'a Home,
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent<'_> {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// How it ended, where it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end\n{}", self.home.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until something holds; panics with the log where the agent ends or it never does.
    pub fn eventually(&mut self, what: &str, holds: impl FnMut(&Self) -> bool) {
        self.within(PATIENCE, what, holds);
    }

    /// The same for what waits for a ladder, which is built where nobody else wants the core.
    pub fn once_built(&mut self, what: &str, holds: impl FnMut(&Self) -> bool) {
        self.within(10 * PATIENCE, what, holds);
    }

    fn within(&mut self, patience: Duration, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            let log = || self.home.log();
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended ({status}) before: {what}\n{}", log());
            }
            assert!(begun.elapsed() < patience, "never: {what}\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The answer's JSON (null where it has none); `None` where it is no success.
    pub fn get(&self, path: &str) -> Option<Value> {
        let mut answer = client().get(self.home.url(path)).call().ok()?;
        answer.status().is_success().then_some(())?;
        Some(answer.body_mut().read_json().unwrap_or(Value::Null))
    }

    pub fn status(&self) -> Value {
        self.get("/v2/blochd/status").unwrap()
    }

    /// The status of one model; null where it is not served.
    pub fn model(&self, name: &str) -> Value {
        let status = self.status();
        let models = status["models"].as_array().cloned().unwrap_or_default();
        models.into_iter().find(|model| model["model"] == name).unwrap_or_default()
    }

    pub fn serves(&self, name: &str, version: u64) -> bool {
        self.model(name)["version"] == version
    }

    /// Why a version is not served.
    pub fn refused(&self, name: &str, version: u64) -> Option<String> {
        let status = self.status();
        let all = status["refused"].as_array()?;
        let found = all.iter().find(|one| one["model"] == name && one["version"] == version)?;
        found["reason"].as_str().map(str::to_owned)
    }

    pub fn infer(&self, name: &str) -> Result<Value, String> {
        infer(self.home.http, name, &self.input(name)?)
    }

    /// A request of zeros that fits the model's metadata.
    pub fn input(&self, name: &str) -> Result<Value, String> {
        let metadata = self.get(&format!("/v2/models/{name}")).ok_or("there is no metadata")?;
        let inputs = metadata["inputs"].as_array().ok_or("there are no inputs")?;
        let inputs = inputs.iter().map(|input| {
            let shape: Vec<u64> = input["shape"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|dim| dim.as_u64().unwrap_or(1))
                .collect();
            let data = vec![0.0; shape.iter().product::<u64>() as usize];
            json!({"name": input["name"], "datatype": input["datatype"], "shape": shape, "data": data})
        });
        Ok(json!({ "inputs": inputs.collect::<Vec<_>>() }))
    }

    /// A command to the repository, such as `load`, at the admin port: the answer's status code and body.
    pub fn command(&self, name: &str, command: &str) -> (u16, Value) {
        let path = format!("/v2/repository/models/{name}/{command}");
        let url = format!("http://127.0.0.1:{}{path}", self.home.admin);
        let mut answer = client().post(url).send_empty().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_json().unwrap_or(Value::Null))
    }
}

/// A client that takes every status code for an answer.
fn patient_client() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .build();
    ureq::Agent::new_with_config(config)
}

fn client() -> &'static ureq::Agent {
    static CLIENT: OnceLock<ureq::Agent> = OnceLock::new();
    CLIENT.get_or_init(patient_client)
}

/// One inference on a connection of its own.
pub fn infer(http: u16, name: &str, request: &Value) -> Result<Value, String> {
    infer_with(&patient_client(), http, name, request)
}

pub fn infer_with(
    client: &ureq::Agent,
    http: u16,
    name: &str,
    request: &Value,
) -> Result<Value, String> {
    let url = format!("http://127.0.0.1:{http}/v2/models/{name}/infer");
    let mut answer = client.post(url).send_json(request).map_err(|error| error.to_string())?;
    let code = answer.status();
    let body: Value = answer.body_mut().read_json().map_err(|error| format!("{code}: {error}"))?;
    if code.is_success() { Ok(body) } else { Err(format!("{code}: {body}")) }
}

/// Asks without a pause from a thread, until stopped.
pub struct Load {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<(usize, Vec<String>)>,
}

impl Load {
    pub fn start(http: u16, name: &str, request: Value) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stopped, name) = (std::sync::Arc::clone(&stop), name.to_owned());
        let thread = std::thread::spawn(move || {
            let client = patient_client();
            let (mut answered, mut failed) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                match infer_with(&client, http, &name, &request) {
                    Ok(_) => answered += 1,
                    Err(error) => failed.push(error),
                }
            }
            (answered, failed)
        });
        Self { stop, thread }
    }

    /// Requests answered, and the words of those that failed.
    pub fn finish(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
