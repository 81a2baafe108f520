//! Who is let in at a real agent, and as what: TLS, certificates and tokens, by clients that others have written
//! (Python's own TLS and HTTP, tritonclient).

mod authority;
mod calling;
mod python;
mod running;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use authority::Authority;
use blochd::protocol::grpc::Message;
use blochd::protocol::grpc::proto::grpc::health::v1 as health;
use blochd::protocol::grpc::proto::inference as proto;
use calling::{Caller, framed};
use nix::sys::signal::Signal;
use rcgen::SanType;
use running::{Home, model};
use serde_json::{Value, json};

const CAMERA: &str = "a-secret-that-only-the-camera-has";
const SCRAPER: &str = "a-secret-that-only-the-scraper-has";

const LISTED: &str = "access:\n  camera: {token_file: camera, scopes: [infer]}\n  \
                      scraper: {token_file: scraper, scopes: [metrics]}\n";

/// An agent's home with certificates and tokens beside its configuration.
struct Place {
    home: Home,
    authority: Authority,
}

impl Place {
    fn new() -> Self {
        let home = Home::new();
        home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
        let (dir, authority) = (home.dir.path(), Authority::new());
        authority.write(&dir.join("ca.pem"));
        fs::write(dir.join("camera"), format!("{CAMERA}\n")).unwrap();
        fs::write(dir.join("scraper"), format!("{SCRAPER}\n")).unwrap();
        for (name, mode) in [("camera", 0o644), ("scraper", 0o640)] {
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let place = Self { home, authority };
        place.certify_agent("agent");
        place
    }

    /// A certificate of this machine, by its name and its address.
    fn certify_agent(&self, name: &str) {
        let localhost = SanType::DnsName("localhost".try_into().unwrap());
        let names = vec![localhost, SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
        self.authority.certify_as(self.home.dir.path(), name, names);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.dir.path().join(name)
    }

    /// All ports at `ip`, and `more` lines.
    fn configure(&self, ip: &str, more: &str) {
        let Home { http, grpc, admin, metrics, .. } = &self.home;
        self.home.write_config(&format!(
            "model_dir: models\nstate_dir: state\nhttp_address: {ip}:{http}\n\
             grpc_address: {ip}:{grpc}\nadmin_address: {ip}:{admin}\n\
             metrics_address: {ip}:{metrics}\n\
             arrivals: {{settle: 100ms, rescan: 1s}}\ndefaults: {{ladder: {{enabled: false}}}}\n\
             {more}\n"
        ));
    }

    fn start(&self) -> running::Agent<'_> {
        // It is not asked: nobody but the test knows how.
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        running::without_settings(&mut command);
        command.args(["run", "--config"]).arg(self.path("agent.yaml"));
        command.arg("--runtime-library").arg(running::onnx_runtime());
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(log);
        self.home.started(command.spawn().unwrap())
    }

    /// `blochd` with these arguments: exit code, standard output and error.
    fn blochd(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        running::without_settings(&mut command);
        command.current_dir(self.home.dir.path()).args(arguments);
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        let (out, err) = running::words(&output);
        (output.status.code(), out, err)
    }
}

/// A request by Python's own client.
struct Ask<'a> {
    place: &'a Place,
    url: String,
    more: Vec<String>,
}

impl Place {
    fn ask(&self, scheme: &str, port: u16, path: &str) -> Ask<'_> {
        let more = vec!["--ca".to_owned(), self.path("ca.pem").display().to_string()];
        Ask { place: self, url: format!("{scheme}://127.0.0.1:{port}{path}"), more }
    }

    fn https(&self, port: u16, path: &str) -> Ask<'_> {
        self.ask("https", port, path)
    }
}

impl Ask<'_> {
    fn with(mut self, name: &str, value: &str) -> Self {
        self.more.extend([format!("--{name}"), value.to_owned()]);
        self
    }

    fn token(self, token: &str) -> Self {
        self.with("token", token)
    }

    fn post(self) -> Self {
        self.with("method", "POST")
    }

    /// Shows the certificate of that name.
    fn shows(self, name: &str) -> Self {
        let file = |end: &str| self.place.path(&format!("{name}.{end}")).display().to_string();
        let (certificate, key) = (file("pem"), file("key"));
        self.with("certificate", &certificate).with("key", &key)
    }

    fn answer(self) -> Value {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/access_calls.py");
        let mut command = Command::new("python3");
        let words = python::run(command.arg(script).arg(&self.url).args(&self.more));
        serde_json::from_str(&words).unwrap()
    }

    /// The status, and the body.
    fn says(self) -> (u64, String) {
        let url = self.url.clone();
        let answer = self.answer();
        let status = answer["status"].as_u64().unwrap_or_else(|| panic!("{url}: {answer}"));
        (status, answer["body"].as_str().unwrap().to_owned())
    }

    fn status(self) -> u64 {
        self.says().0
    }

    /// Why there is no answer at all.
    fn error(self) -> String {
        let answer = self.answer();
        answer["error"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }
}

const TLS: &str = "tls: {certificate: agent.pem, key: agent.key, client_ca: ca.pem}\n";

const LIVE: &str = "/v2/health/live";
const READY: &str = "/v2/health/ready";
const MODEL: &str = "/v2/models/mlp";
const STATUS: &str = "/v2/blochd/status";
const LOAD: &str = "/v2/repository/models/mlp/load";

#[test]
fn ports_that_other_machines_reach_speak_tls_and_ask_who_a_client_is() {
    let place = Place::new();
    let Home { http, grpc, admin, metrics, .. } = place.home;
    let dir = place.home.dir.path();
    let dns = |name: &str| vec![SanType::DnsName(name.try_into().unwrap())];
    place.authority.certify_as(dir, "ops", dns("ops.plant.example"));
    place.authority.certify_as(dir, "ops.plant.example", dns("other.example"));
    Authority::new().certify_as(dir, "stranger", dns("ops.plant.example"));
    let ops = "  ops: {certificate: 'dns:ops.plant.example', scopes: [infer, admin, metrics]}\n";
    place.configure("0.0.0.0", &format!("{TLS}{LISTED}{ops}"));
    let mut agent = place.start();
    agent.eventually("it is ready", |_| place.https(http, READY).answer()["status"] == 200);

    // No other language, and no stranger's word.
    for port in [http, admin, metrics] {
        place.ask("http", port, LIVE).error();
    }
    Authority::new().write(&place.path("other.pem"));
    let other = place.path("other.pem").display().to_string();
    let distrust = place.https(http, LIVE).with("ca", &other).error();
    assert!(distrust.contains("certificate verify failed"), "{distrust}");
    place.https(http, LIVE).shows("stranger").error();

    // Health is for everybody; all else takes somebody with the right.
    assert_eq!(place.https(http, LIVE).status(), 200);
    let unknown = place.https(http, MODEL).answer();
    assert_eq!((&unknown["status"], &unknown["peer"]), (&json!(401), &json!("agent")));
    assert_eq!(unknown["headers"]["www-authenticate"], "Bearer realm=\"blochd\"");
    assert!(unknown["body"].as_str().unwrap().contains("the right `infer`"), "{unknown}");
    let wrong = place.https(http, MODEL).token("a-secret-that-nobody-has").says();
    assert!(wrong.0 == 401 && wrong.1.contains("nobody has the token"), "{wrong:?}");
    assert_eq!(place.https(http, MODEL).token(CAMERA).status(), 200);
    assert_eq!(place.https(http, MODEL).shows("ops").status(), 200);
    // Its common name is another one's alternative name.
    let (code, words) = place.https(http, MODEL).shows("ops.plant.example").says();
    assert!(code == 403 && words.contains("no name in your certificate"), "{code} {words}");
    assert_eq!(place.https(http, MODEL).shows("ops.plant.example").token(CAMERA).status(), 200);
    for path in [STATUS, "/metrics"] {
        let port = if path == STATUS { http } else { metrics };
        assert_eq!(place.https(port, path).status(), 401, "{path}");
        let (code, words) = place.https(port, path).token(CAMERA).says();
        assert!(code == 403 && words.contains("the right `metrics`"), "{code} {words}");
        assert_eq!(place.https(port, path).token(SCRAPER).status(), 200, "{path}");
    }

    // Models are loaded and unloaded at the admin port, by those who may.
    assert_eq!(place.https(http, LOAD).post().status(), 401);
    for known in [place.https(http, LOAD).token(CAMERA), place.https(http, LOAD).shows("ops")] {
        let (code, words) = known.post().says();
        assert_eq!(code, 403, "{words}");
        assert!(words.contains(&format!("at 0.0.0.0:{admin} (admin_address)")), "{words}");
    }
    assert_eq!(place.https(admin, LOAD).post().status(), 401);
    let (code, words) = place.https(admin, LOAD).post().token(CAMERA).says();
    assert!(code == 403 && words.contains("the right `admin`"), "{code} {words}");
    assert_eq!(place.https(admin, LOAD).post().shows("ops").status(), 200);
    assert_eq!(place.https(admin, STATUS).shows("ops").status(), 200);

    // The same over gRPC, by Triton's client.
    let calls = |port: u16, more: &[&str]| -> Value {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/access_grpc_calls.py");
        let mut command = python::python();
        command.current_dir(dir).arg(script).arg(format!("localhost:{port}")).arg("mlp");
        let words = python::run(command.args(["--ca", "ca.pem"]).args(more));
        serde_json::from_str(&words).unwrap()
    };
    let begins = |told: &Value, expected: [(&str, &str); 4]| {
        for (call, code) in expected {
            assert!(told[call].as_str().unwrap().starts_with(code), "{call}: {told}");
        }
    };
    const UNKNOWN: &str = "StatusCode.UNAUTHENTICATED: this takes the right";
    const DENIED: &str = "StatusCode.PERMISSION_DENIED";
    let nobody = [("live", "OK"), ("metadata", UNKNOWN), ("index", UNKNOWN), ("load", UNKNOWN)];
    begins(&calls(grpc, &[]), nobody);
    begins(&calls(grpc, &["--token", "a-secret-that-nobody-has"]), nobody);
    let camera = [("live", "OK"), ("metadata", "OK"), ("index", "OK"), ("load", DENIED)];
    begins(&calls(grpc, &["--token", CAMERA]), camera);
    begins(&calls(admin, &["--token", CAMERA]), camera);
    let ops = ["--certificate", "ops.pem", "--key", "ops.key"];
    begins(&calls(grpc, &ops), camera);
    begins(&calls(admin, &ops), ["live", "metadata", "index", "load"].map(|call| (call, "OK")));

    let counted = [
        ("requests", "unknown"),
        ("requests", "wrong_token"),
        ("requests", "not_listed"),
        ("requests", "elsewhere"),
        ("admin", "lacks_right"),
        ("metrics", "no_tls"),
    ];
    let line = |(door, why): (&str, &str)| {
        format!("blochd_refused_calls_total{{door=\"{door}\",why=\"{why}\"}} ")
    };
    agent.eventually("all that were refused are counted", |_| {
        let (_, page) = place.https(metrics, "/metrics").token(SCRAPER).says();
        counted.into_iter().all(|one| page.contains(&line(one)))
    });
    nothing_secret_is_told(&place);
}

/// Tokens stand in no log, no status and no configuration that is shown; who may come in does.
fn nothing_secret_is_told(place: &Place) {
    let (_, status) = place.https(place.home.http, STATUS).token(SCRAPER).says();
    let told: Value = serde_json::from_str(&status).unwrap();
    let access = &told["access"];
    assert_eq!(access["listed"]["camera"]["scopes"], json!(["infer"]));
    assert_eq!(access["listed"]["ops"]["certificate"], "dns:ops.plant.example");
    assert_eq!((&access["ports"]["http"]["tls"], &access["errors"]), (&json!(true), &json!([])));
    let open = access["ports"]["grpc"]["open_to"].as_str().unwrap();
    assert_eq!(open, "whoever reaches this box and is listed under access, over TLS");
    let (code, shown, _) =
        place.blochd(&["config", "show", "--effective", "--config", "agent.yaml"]);
    assert_eq!(code, Some(0));
    assert!(shown.contains("access.camera.scopes: infer"), "{shown}");
    let (code, checked, _) = place.blochd(&["config", "check", "--config", "agent.yaml"]);
    assert_eq!(code, Some(0), "{checked}");
    assert!(checked.contains("is listed under access, over TLS."), "{checked}");
    let log = place.home.log();
    assert!(log.contains("http is open to whoever reaches this box"), "{log}");
    assert!(log.contains("camera: every user of this box may read or write it"), "{log}");
    assert!(!log.contains("scraper: every user"), "{log}");
    for text in [&status, &shown, &checked, &log] {
        for secret in [CAMERA, SCRAPER, "a-secret-that-nobody-has", "PRIVATE KEY"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    for file in ["agent.key", "camera"] {
        let text = fs::read_to_string(place.path(file)).unwrap();
        assert!(!status.contains(text.trim()) && !log.contains(text.trim()), "{file}");
    }
}

#[test]
fn a_client_that_says_nothing_holds_nobody_up() {
    let place = Place::new();
    let http = place.home.http;
    place.configure("0.0.0.0", &format!("{TLS}{LISTED}"));
    let mut agent = place.start();
    agent.eventually("it answers", |_| place.https(http, LIVE).answer()["status"] == 200);
    let mut silent: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(("127.0.0.1", http)).unwrap()).collect();
    for (number, stream) in silent.iter_mut().enumerate() {
        // Some begin to speak: a record of a handshake that never comes.
        if number % 2 == 0 {
            stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00]).unwrap();
        }
    }
    assert_eq!(place.https(http, MODEL).token(CAMERA).status(), 200);
    // And each of them is sent away in the end.
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let ended = stream.read(&mut [0; 64]);
        assert!(matches!(ended, Ok(0)) || ended.is_err_and(|e| !is_timeout(&e)));
    }
    assert_eq!(place.https(http, MODEL).token(CAMERA).status(), 200);
    // One that is in the midst of a handshake does not hold up the end either.
    let _silent = TcpStream::connect(("127.0.0.1", http)).unwrap();
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success(), "{}", place.home.log());
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

#[test]
fn certificates_and_tokens_are_exchanged_while_the_agent_runs() {
    let place = Place::new();
    let http = place.home.http;
    let dir = place.home.dir.path();
    place.configure("0.0.0.0", &format!("{TLS}{LISTED}"));
    let mut agent = place.start();
    let shown = || place.https(http, LIVE).answer()["peer"].clone();
    agent.eventually("it shows its certificate", |_| shown() == "agent");
    let exchange = |name: &str, ends: &[&str]| {
        for &end in ends {
            let (from, to) = (place.path(&format!("{name}.{end}")), place.path("agent"));
            fs::rename(from, to.with_extension(end)).unwrap();
        }
    };
    place.certify_agent("renewed");
    exchange("renewed", &["key", "pem"]);
    agent.eventually("it shows the new one", |_| shown() == "renewed");

    // One that is of no use leaves the last one, and is told: a key of another certificate, and no certificate.
    let errors = || {
        let (_, status) = place.https(http, STATUS).token(SCRAPER).says();
        let status: Value = serde_json::from_str(&status).unwrap();
        status["access"]["errors"].as_array().unwrap().clone()
    };
    place.certify_agent("halved");
    exchange("halved", &["pem"]);
    let told = |words: &str| errors().iter().any(|error| error.to_string().contains(words));
    agent.eventually("it is told", |_| told("agent.pem cannot be used"));
    assert_eq!(shown(), "renewed");
    exchange("halved", &["key"]);
    agent.eventually("it shows that one", |_| shown() == "halved");
    fs::write(place.path("agent.pem"), "no certificate\n").unwrap();
    agent.eventually("it is told", |_| told("agent.pem holds no certificate in PEM"));
    assert_eq!(shown(), "halved");
    assert!(place.home.log().contains("agent.pem holds no certificate in PEM"));
    // On SIGHUP as well.
    place.certify_agent("mended");
    exchange("mended", &["key", "pem"]);
    agent.signal(Signal::SIGHUP);
    agent.eventually("it shows the mended one", |_| shown() == "mended");
    agent.eventually("nothing is wrong", |_| errors().is_empty());

    // A token that is exchanged, and one that is taken away.
    let status = |token: &str| place.https(http, MODEL).token(token).status();
    let renewed = "another-secret-of-the-same-camera";
    assert_eq!((status(CAMERA), status(renewed)), (200, 401));
    fs::write(place.path("camera"), renewed).unwrap();
    agent.eventually("the new one is taken", |_| status(renewed) == 200);
    assert_eq!(status(CAMERA), 401);
    fs::remove_file(place.path("camera")).unwrap();
    agent.eventually("it is taken away", |_| status(renewed) == 401);
    agent.eventually("that is told", |_| told("cannot read"));

    // Whoever is taken off the list is out at once.
    place.configure(
        "0.0.0.0",
        &format!("{TLS}access: {{ops: {{certificate: 'cn:ops', scopes: [metrics]}}}}\n"),
    );
    // A certificate is asked for by now, where nobody has a token.
    agent.eventually("nobody comes in without one", |_| {
        place.https(http, LIVE).answer()["error"].is_string()
    });
    place.authority.certify(dir, "ops");
    assert_eq!(place.https(http, STATUS).shows("ops").status(), 200);
    assert!(!place.home.log().contains(renewed));
}

#[test]
fn a_configuration_that_would_open_a_port_to_everybody_waits_for_the_next_start() {
    let place = Place::new();
    let http = place.home.http;
    place.configure("0.0.0.0", &format!("{TLS}{LISTED}"));
    let mut agent = place.start();
    agent.eventually("it answers", |_| place.https(http, LIVE).answer()["status"] == 200);
    // Refused as a whole: nothing moves the ports.
    place.configure("0.0.0.0", TLS.replace(", client_ca: ca.pem", "").as_str());
    let log = |words: &str| place.home.log().contains(words);
    agent.eventually("it is refused", |_| log("reached from other machines, and asks nobody"));
    assert_eq!(place.https(http, MODEL).status(), 401);
    // Certificates in place of tokens, by a file that is not there: nobody is let in by neither.
    place.configure("0.0.0.0", &TLS.replace("client_ca: ca.pem", "client_ca: nowhere.pem"));
    agent.eventually("it is told", |_| log("nowhere.pem"));
    assert_eq!(place.https(http, MODEL).status(), 401);
    assert_eq!(place.https(http, MODEL).token(CAMERA).status(), 200);
    // The ports move at the next start; until then they ask as before.
    place.configure("127.0.0.1", "");
    agent.eventually("it is told", |_| {
        log("allow_plaintext stay as they were until the next start")
    });
    agent.eventually("it is told twice", |_| log("its change takes effect at the next start"));
    assert_eq!(place.https(http, MODEL).status(), 401);
    assert_eq!(place.https(http, MODEL).token(CAMERA).status(), 200);
    drop(agent);
    let mut agent = place.start();
    agent.eventually("it is ready", |_| place.ask("http", http, READY).answer()["status"] == 200);
    assert_eq!(place.ask("http", http, MODEL).status(), 200);
}

#[test]
fn a_port_that_is_open_to_everybody_is_refused_or_said_to_be_meant() {
    let place = Place::new();
    let http = place.home.http;
    let run = ["run", "--config", "agent.yaml"];
    let check = ["config", "check", "--config", "agent.yaml"];
    for (more, why) in [
        ("", "without TLS, and asks nobody who they are"),
        (LISTED, "without TLS, in which tokens are read by all"),
        (
            "tls: {certificate: agent.pem, key: agent.key}\n",
            "machines, and asks nobody who they are",
        ),
    ] {
        place.configure("0.0.0.0", more);
        for command in [run.to_vec(), check.to_vec()] {
            let (code, _, words) = place.blochd(&command);
            assert_eq!(code, Some(78), "{words}");
            assert!(words.contains(why) && words.contains("http_address"), "{words}");
            for way in ["under tls", "Unix socket", "allow_plaintext: true"] {
                assert!(words.contains(way), "{way}: {words}");
            }
        }
    }
    // What the files hold is wrong: the agent has no last good one at its start.
    place.configure("127.0.0.1", LISTED);
    fs::write(place.path("camera"), "short\n").unwrap();
    let runtime = running::onnx_runtime().display().to_string();
    let (code, _, words) = place.blochd(&[&run[..], &["--runtime-library", &runtime]].concat());
    assert_eq!(code, Some(78), "{words}");
    assert!(words.contains("a token is one line of 16") && !words.contains("short"), "{words}");

    let (code, _, words) = place.blochd(&check);
    assert_eq!(code, Some(0), "others may not read what the service does");
    assert!(words.contains("a token is one line of 16") && !words.contains("short"), "{words}");

    place.configure("0.0.0.0", "allow_plaintext: true\n");
    let (code, said, _) = place.blochd(&check);
    assert_eq!(code, Some(0));
    let line =
        format!("http_address 0.0.0.0:{http} is open to whoever reaches this box, without TLS.");
    assert!(said.contains(&line), "{said}");
    let mut agent = place.start();
    agent.eventually("it answers", |_| place.ask("http", http, MODEL).answer()["status"] == 200);
    let log = place.home.log();
    assert!(log.contains("since allow_plaintext says so"), "{log}");
}

#[test]
fn a_certificate_that_is_vouched_for_is_enough_where_nobody_is_listed() {
    let place = Place::new();
    let Home { http, admin, .. } = place.home;
    let dir = place.home.dir.path();
    place.authority.certify(dir, "anybody");
    Authority::new().certify(dir, "stranger");
    place.configure("0.0.0.0", TLS);
    let mut agent = place.start();
    let ready = || place.https(http, READY).shows("anybody").answer();
    agent.eventually("it is ready", |_| ready()["status"] == 200);
    for path in [LIVE, MODEL] {
        place.https(http, path).error();
        place.https(http, path).shows("stranger").error();
        assert_eq!(place.https(http, path).shows("anybody").status(), 200, "{path}");
    }
    assert_eq!(place.https(http, LOAD).post().shows("anybody").status(), 403);
    assert_eq!(place.https(admin, LOAD).post().shows("anybody").status(), 200);

    // `blochd status` reaches it, by the files that say who asks.
    let url = format!("https://localhost:{http}");
    let status = ["status", "--json", "--url", &url, "--ca", "ca.pem"];
    let shows = ["--client-certificate", "anybody.pem", "--client-key", "anybody.key"];
    let (code, out, err) = place.blochd(&[&status[..], &shows].concat());
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("\"open_to\""), "{out}");
    let (code, _, err) = place.blochd(&status);
    assert_eq!(code, Some(69), "{err}");
    let mixed = ["--client-certificate", "anybody.pem", "--client-key", "stranger.key"];
    let (code, _, err) = place.blochd(&[&status[..], &mixed].concat());
    assert!(code == Some(64) && err.contains("anybody.pem cannot be used"), "{err}");
}

#[test]
fn on_loopback_those_who_are_listed_come_in_and_the_unix_socket_is_ruled_by_its_file() {
    let place = Place::new();
    let Home { http, grpc, admin, .. } = place.home;
    place.configure("127.0.0.1", &format!("{LISTED}unix_socket: b.sock\n"));
    let mut agent = place.start();
    agent.eventually("it is ready", |_| place.ask("http", http, READY).answer()["status"] == 200);
    assert_eq!(place.ask("http", http, MODEL).status(), 401);
    assert_eq!(place.ask("http", http, MODEL).token(CAMERA).status(), 200);

    // `blochd status` with a token, without one, with a wrong one; and none goes over a network in the clear.
    let status = ["status", "--config", "agent.yaml"];
    let token = |file| [&status[..], &["--token-file", file]].concat();
    let (code, out, err) = place.blochd(&token("scraper"));
    assert!(code == Some(0) && out.contains("mlp"), "{out}{err}");
    let (code, _, err) = place.blochd(&status);
    assert!(code == Some(69) && err.contains("does not know you"), "{err}");
    let (code, _, err) = place.blochd(&token("camera"));
    assert!(code == Some(69) && err.contains("the right `metrics`"), "{err}");
    let (code, _, err) =
        place.blochd(&[&token("scraper")[..], &["--url", "http://192.0.2.1"]].concat());
    assert!(code == Some(64) && err.contains("without TLS"), "{err}");
    assert!(!err.contains(SCRAPER), "{err}");

    // Health of the server is for everybody, that of a model is not.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let caller = Caller::tcp(([127, 0, 0, 1], grpc).into()).await;
        let check = |service: &str| {
            let service = service.to_owned();
            framed(&health::HealthCheckRequest { service }.encode_to_vec())
        };
        let bearer = format!("Bearer {CAMERA}");
        let signed = [("authorization", bearer.as_str())];
        const CHECK: &str = "/grpc.health.v1.Health/Check";
        assert_eq!(caller.path(CHECK, &[], check("")).await.code, 0);
        assert_eq!(caller.path(CHECK, &[], check("mlp")).await.code, 16);
        assert_eq!(caller.path(CHECK, &[], check("nowhere")).await.code, 16);
        assert_eq!(caller.path(CHECK, &signed, check("mlp")).await.code, 0);
        assert_eq!(caller.path(CHECK, &signed, check("nowhere")).await.code, 5);
        assert_eq!(caller.path(calling::WATCH, &[], check("mlp")).await.code, 16);
        assert_eq!(caller.bytes("ServerReady", &[], framed(&[])).await.code, 0);
        let asked = proto::ModelMetadataRequest { name: "mlp".into(), ..Default::default() };
        let asked = framed(&asked.encode_to_vec());
        assert_eq!(caller.bytes("ModelMetadata", &[], asked.clone()).await.code, 16);
        assert_eq!(caller.bytes("ModelMetadata", &signed, asked).await.code, 0);
        assert_eq!(caller.bytes("ModelStreamInfer", &[], framed(&[])).await.code, 16);
    });

    // Whoever may open the socket infers and looks; its owner loads and unloads.
    let socket = place.path("b.sock");
    let over = |path: &str| place.ask("http", 1, path).with("unix", socket.to_str().unwrap());
    assert_eq!(over(MODEL).status(), 200);
    assert_eq!(over(STATUS).status(), 200);
    assert_eq!(over(LOAD).post().status(), 200);
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root may ask as another user");
        return;
    }
    open_to_all(place.home.dir.path(), &socket);
    let other = |path: &str| over(path).with("user", "65534");
    assert_eq!(other(MODEL).status(), 200);
    let (code, words) = other(LOAD).post().says();
    assert_eq!(code, 403, "{words}");
    assert!(words.contains("only root and the agent's own user"), "{words}");
    assert!(words.contains(&format!("at 127.0.0.1:{admin} (admin_address)")), "{words}");
}

/// Lets other users of this machine find the socket and open it, as a group's members do.
fn open_to_all(dir: &Path, socket: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
}

#[test]
fn as_triton_has_it_models_are_loaded_where_they_are_asked() {
    let place = Place::new();
    let Home { http, admin, .. } = place.home;
    place.configure("127.0.0.1", "");
    let text = fs::read_to_string(place.path("agent.yaml")).unwrap();
    let own = format!("admin_address: 127.0.0.1:{admin}");
    let mut agent = place.start();
    agent.eventually("it is ready", |_| place.ask("http", http, READY).answer()["status"] == 200);
    assert_eq!(place.ask("http", http, LOAD).post().status(), 403);
    assert_eq!(place.ask("http", admin, LOAD).post().status(), 200);
    drop(agent);
    for (written, code) in [("admin_address: same", 200), ("admin_address: none", 403)] {
        place.home.write_config(&text.replace(&own, written));
        let mut agent = place.start();
        let ready = || place.ask("http", http, READY).answer();
        agent.eventually("it is ready", |_| ready()["status"] == 200);
        let (answer, words) = place.ask("http", http, LOAD).post().says();
        assert_eq!(answer, code, "{written}: {words}");
        assert_eq!(words.contains("over the Unix socket alone"), code == 403, "{words}");
        assert!(TcpStream::connect(("127.0.0.1", admin)).is_err(), "{written}");
    }
}
