//! `blochd status --watch` on a real terminal: what it draws, and that it leaves it as it was.

mod running;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);

/// An agent that knows one model.
fn agent() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for answered in 0u64.. {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let _ = stream.read(&mut [0; 4096]);
            let status = json!({
                "blochd": "0.1.0", "ready": true, "uptime_s": 5,
                "models": [{
                    "model": "digits", "version": 1, "variant": "dense", "met": true,
                    "budget": {"percentile": "p99", "limit_ms": 40.0},
                    "observed": {"at_budget_ms": 10.0}, "answered": answered, "queued": 0,
                }],
            });
            let body = status.to_string();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
            let _ = write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
    url
}

struct Watch {
    child: Child,
    terminal: File,
    slave: OwnedFd,
    drawn: Arc<Mutex<Vec<u8>>>,
}

impl Watch {
    fn start(url: &str) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        running::without_settings(&mut command);
        command.args(["status", "--watch", "--interval", "100ms", "--url", url]);
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let terminal = File::from(master);
        let drawn = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (terminal.try_clone().unwrap(), Arc::clone(&drawn));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                to.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { child, terminal, slave, drawn }
    }

    fn drawn(&self) -> String {
        String::from_utf8_lossy(&self.drawn.lock().unwrap()).into_owned()
    }

    fn eventually(&self, what: &str) {
        let begun = Instant::now();
        while !self.drawn().contains(what) {
            assert!(begun.elapsed() < PATIENCE, "never {what:?}: {:?}", self.drawn());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn flags(&self) -> LocalFlags {
        tcgetattr(self.slave.as_fd()).unwrap().local_flags
    }
}

/// How it is left, and what does that.
type Way = (&'static str, fn(&mut Watch));

#[test]
fn it_draws_in_place_and_leaves_the_terminal_as_it_was_however_it_is_left() {
    let url = agent();
    let ways: [Way; 3] = [
        ("q", |watch| watch.terminal.write_all(b"q").unwrap()),
        ("Ctrl-C", |watch| watch.terminal.write_all(&[3]).unwrap()),
        ("SIGTERM", |watch| {
            kill(Pid::from_raw(watch.child.id() as i32), Signal::SIGTERM).unwrap();
        }),
    ];
    for (way, leave) in ways {
        let mut watch = Watch::start(&url);
        let usual = LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG;
        watch.eventually("in budget");
        watch.eventually("p99 10.0 ms of 40.0 ms");
        // Some frames later there is a rate, drawn over the line that had none.
        watch.eventually("/s  queue 0");
        assert!(!watch.flags().intersects(usual), "keys come one at a time");
        assert_eq!(watch.drawn().matches("\x1b[2J").count(), 1, "it is cleared once");
        leave(&mut watch);
        let status = watch.child.wait().unwrap();
        assert!(status.success(), "{way}: {status}");
        watch.eventually("\x1b[?7h\x1b[?25h\x1b[?1049l");
        assert!(watch.flags().contains(usual), "{way}");
    }
}

#[test]
fn without_a_terminal_it_writes_lines_for_programs_or_says_how() {
    let url = agent();
    let status = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        running::without_settings(&mut command);
        command.args(["status", "--watch", "--interval", "100ms", "--url", &url]).args(more);
        command
    };
    let refused = status(&[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--json"), "{refused:?}");
    let mut child = status(&["--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap());
    let lines = std::io::BufRead::lines(lines).take(3);
    let answered = lines.map(|line| {
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        line["models"][0]["answered"].as_u64().unwrap()
    });
    let answered: Vec<u64> = answered.collect();
    assert!(answered.windows(2).all(|pair| pair[0] < pair[1]), "{answered:?}");
    child.kill().unwrap();
    child.wait().unwrap();
}
