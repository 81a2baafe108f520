//! A real Mosquitto with TLS, passwords or certificates and an access list, for tests of the link to it.

// Each test program uses its own part of it.
#![allow(dead_code)]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use blochd::config::{FleetName, Mqtt, SecretFile, UserName};
use tempfile::TempDir;

#[path = "../authority/mod.rs"]
mod authority;

pub use authority::Authority;

/// Nothing that is waited for takes longer, unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const FLEET: &str = "plant";
pub const OPERATOR: &str = "operator";

/// How clients say who they are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SignIn {
    Passwords,
    Certificates,
}

/// The example that is given to operators: a node reads what is wanted of it and writes what it is.
const ACCESS: &str = include_str!("../../configs/broker/mosquitto.acl");

/// A broker that runs while this lives.
pub struct Broker {
    pub dir: TempDir,
    pub port: u16,
    pub authority: Authority,
    sign_in: SignIn,
    process: Option<Child>,
}

impl Broker {
    pub fn start(sign_in: SignIn, users: &[&str]) -> Self {
        let mut broker = Self::prepare(sign_in, users);
        broker.up();
        broker
    }

    /// All that it needs, but it does not run yet.
    pub fn prepare(sign_in: SignIn, users: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        authority.write(&dir.path().join("ca.pem"));
        authority.certify(dir.path(), "broker");
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let broker = Self { dir, port, authority, sign_in, process: None };
        let at = |name: &str| broker.path(name).display().to_string();
        let who = match sign_in {
            SignIn::Passwords => format!("password_file {}\n", at("passwords")),
            SignIn::Certificates => {
                "require_certificate true\nuse_identity_as_username true\n".to_owned()
            }
        };
        let text = format!(
            "user root\nlistener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\n\
             allow_anonymous false\nacl_file {}\n{who}persistence true\n\
             persistence_location {}/\n\
             max_queued_messages 100000\nsys_interval 1\n",
            at("ca.pem"),
            at("broker.pem"),
            at("broker.key"),
            at("access"),
            broker.dir.path().display(),
        );
        fs::write(broker.path("mosquitto.conf"), text).unwrap();
        fs::write(broker.path("access"), ACCESS).unwrap();
        broker.admit(users);
        broker
    }

    /// Passwords or certificates for these, and for an operator.
    fn admit(&self, users: &[&str]) {
        let users = users.iter().copied().chain([OPERATOR]);
        match self.sign_in {
            SignIn::Certificates => users.for_each(|user| {
                self.authority.certify(self.dir.path(), user);
            }),
            SignIn::Passwords => {
                let mut all = String::new();
                for user in users {
                    all.push_str(&format!("{user}:{}\n", secret(user)));
                    fs::write(self.path(&format!("{user}.password")), secret(user) + "\n").unwrap();
                }
                fs::write(self.path("passwords"), all).unwrap();
                let hashed = Command::new("mosquitto_passwd")
                    .arg("-U")
                    .arg(self.path("passwords"))
                    .status()
                    .unwrap_or_else(|error| panic!("mosquitto_passwd: {error}; {INSTALL}"));
                assert!(hashed.success());
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn up(&mut self) {
        let log = fs::File::create(self.path("log")).unwrap();
        let program = ["/usr/sbin/mosquitto", "mosquitto"];
        let program = program.iter().find(|one| Path::new(one).exists()).unwrap_or(&program[1]);
        let child = Command::new(program)
            .arg("-c")
            .arg(self.path("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("mosquitto: {error}; {INSTALL}"));
        self.process = Some(child);
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "mosquitto does not listen:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a power cut would, once what it retains is on disk.
    pub fn down(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Ends it as its service manager does: what it retains is kept.
    pub fn stop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        if let Some(mut process) = self.process.take() {
            kill(nix::unistd::Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
            process.wait().unwrap();
        }
    }

    pub fn id(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// How `user` connects.
    pub fn settings(&self, user: &str) -> Mqtt {
        let url = format!("mqtts://localhost:{}", self.port).parse().unwrap();
        let mut settings = Mqtt {
            url: Some(url),
            fleet: FleetName(FLEET.to_owned()),
            ca: Some(self.path("ca.pem")),
            ..Mqtt::default()
        };
        match self.sign_in {
            SignIn::Passwords => {
                settings.username = Some(UserName(user.to_owned()));
                settings.password_file = Some(SecretFile(self.path(&format!("{user}.password"))));
            }
            SignIn::Certificates => {
                settings.client_certificate = Some(SecretFile(self.path(&format!("{user}.pem"))));
                settings.client_key = Some(SecretFile(self.path(&format!("{user}.key"))));
            }
        }
        settings
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.down();
    }
}

pub fn secret(user: &str) -> String {
    format!("open-sesame-{user}")
}

const INSTALL: &str = "these tests need Mosquitto: apt-get install mosquitto";
