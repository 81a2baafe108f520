//! A process of its own is confined and tries what code that has taken a child over would try. The same
//! attempts without confinement show that it is this that denies them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::kill;
use nix::unistd::{getpid, getppid};
use serde::{Deserialize, Serialize};

use super::*;

/// Tells [`inmate`] where to try what.
const ROLE: &str = "BLOCHD_TEST_INMATE";

#[derive(Serialize, Deserialize)]
struct Role {
    /// None of this is its business.
    outside: PathBuf,
    /// Here it may read, and here write.
    read: PathBuf,
    write: PathBuf,
    port: u16,
    /// Where a daemon listens that has no file.
    name: String,
    kind: Kind,
}

/// How it is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Free,
    Child,
    /// By system calls alone, as where a vendor's programs are at work.
    Vendor,
    /// As what reads a library that tells of devices.
    Telemetry,
}

#[derive(Debug, Serialize, Deserialize)]
struct Report {
    confined: Option<Confined>,
    /// What was denied, by attempt: the error's number; none where it went well.
    tried: BTreeMap<String, Option<i32>>,
}

/// The result of a system call as an error of Rust's.
fn check(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The way into another process, tried on this one: that much any process may.
fn look_into_memory() -> io::Result<()> {
    let (from, mut to) = ([7u8], [0u8]);
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: 1 };
    // SAFETY: one byte is copied from one array of this function to the other.
    let copied = unsafe {
        libc::process_vm_readv(std::process::id().cast_signed(), &local, 1, &remote, 1, 0)
    };
    check(copied as i64)
}

/// What a child has no business with.
fn forbidden(role: &Role) -> Vec<(&'static str, io::Result<()>)> {
    let at = |name: &str| role.outside.join(name);
    let parent = getppid();
    let rename = || fs::rename(role.write.join("own"), at("moved"));
    let raise = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        Ok(setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?)
    };
    let environment = format!("/proc/{parent}/environ");
    let nameless = || {
        let address = SocketAddr::from_abstract_name(&role.name)?;
        UnixStream::connect_addr(&address).map(drop)
    };
    vec![
        ("read", File::open(at("secret")).map(drop)),
        ("list", fs::read_dir(&role.outside).map(drop)),
        ("write", fs::write(at("new"), "x")),
        ("overwrite", File::options().write(true).open(at("secret")).map(drop)),
        ("remove", fs::remove_file(at("victim"))),
        ("make a folder", fs::create_dir(at("folder"))),
        ("write where it reads", fs::write(role.read.join("new"), "x")),
        ("link in", fs::hard_link(at("secret"), role.write.join("link"))),
        ("move out", rename()),
        ("connect", TcpStream::connect(("127.0.0.1", role.port)).map(drop)),
        ("listen", TcpListener::bind("127.0.0.1:0").map(drop)),
        ("UDP", UdpSocket::bind("127.0.0.1:0").map(drop)),
        ("speak with a daemon", UnixStream::connect(at("socket")).map(drop)),
        ("speak with a daemon that has no file", nameless()),
        ("local datagrams", UnixDatagram::unbound().map(drop)),
        ("start a program", Command::new("/bin/true").status().map(drop)),
        ("signal its parent", kill(parent, None).map_err(io::Error::from)),
        ("its parent's secrets", fs::read(environment).map(drop)),
        ("bounds", raise()),
        // SAFETY: plain system calls with constant arguments, on this process, here and below.
        ("outlive its parent", check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) }.into())),
        ("namespaces", check(unsafe { libc::unshare(libc::CLONE_FS) }.into())),
        ("a group of its own", check(unsafe { libc::syscall(libc::SYS_setpgid, 0, 0) })),
        ("look into memory", look_into_memory()),
    ]
}

/// What a child needs.
fn needed(role: &Role) -> Vec<(&'static str, io::Result<()>)> {
    let own = role.write.join("own");
    let replace = || {
        fs::create_dir(role.write.join("dir"))?;
        fs::write(role.write.join("dir/part"), "x")?;
        fs::rename(role.write.join("dir/part"), role.write.join("dir/whole"))?;
        fs::remove_dir_all(role.write.join("dir"))
    };
    let thread = || {
        let thread = std::thread::Builder::new().spawn(|| ())?;
        thread.join().map_err(|_| io::Error::other("it panicked"))
    };
    let bounds = || getrlimit(Resource::RLIMIT_DATA).map(drop).map_err(io::Error::from);
    vec![
        ("read the model", fs::read(role.read.join("model")).map(drop)),
        ("list its folder", fs::read_dir(&role.read).map(drop)),
        ("write", fs::write(&own, "x")),
        ("write over", fs::write(&own, "y")),
        ("replace", replace()),
        ("libraries", fs::read_dir("/usr/lib").map(drop)),
        ("facts of itself", fs::read("/proc/self/status").map(drop)),
        ("facts of the box", fs::read("/proc/cpuinfo").map(drop)),
        ("devices of the box", fs::read_dir("/sys/class").map(drop)),
        ("chance", File::open("/dev/urandom").map(drop)),
        ("nothing", fs::write("/dev/null", "x")),
        ("a thread", thread()),
        ("bounds", bounds()),
        ("a signal to itself", kill(getpid(), None).map_err(io::Error::from)),
    ]
}

/// Runs in a process that [`report`] starts, and does nothing anywhere else.
#[test]
fn inmate() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let role: Role = serde_json::from_str(&role).unwrap();
    let confined = match role.kind {
        Kind::Free => None,
        Kind::Child => Some(begin(&Needs {
            read: vec![role.read.clone()],
            write: vec![role.write.clone()],
            ..Needs::default()
        })),
        Kind::Telemetry => Some(begin(&Needs::telemetry(Some(&role.read.join("model"))))),
        Kind::Vendor => {
            let seccomp = calls::restrict(calls::Work::Programs);
            let missing = seccomp.clone().err().into_iter().collect();
            Some(Confined { landlock: None, seccomp: seccomp.is_ok(), missing })
        }
    };
    let all = needed(&role).into_iter().map(|(name, result)| (format!("needed: {name}"), result));
    let mut tried: BTreeMap<String, io::Result<()>> = all.collect();
    tried.extend(forbidden(&role).into_iter().map(|(name, result)| (name.to_owned(), result)));
    if role.kind != Kind::Free {
        // SAFETY: system calls that end in an error, whatever they are given.
        let ring = check(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) });
        tried.insert("rings".to_owned(), ring);
        // There is no such process: who may trace is told so.
        // SAFETY: as above.
        let trace = check(unsafe { libc::ptrace(libc::PTRACE_PEEKDATA, i32::MAX, 0, 0) });
        tried.insert("trace".to_owned(), trace);
        #[cfg(target_arch = "x86_64")]
        tried.insert(
            "other numbers".to_owned(),
            // SAFETY: as above.
            check(unsafe { libc::syscall(0x4000_0000 | libc::SYS_getpid) }),
        );
    }
    let code = |error: io::Error| error.raw_os_error().unwrap_or(-1);
    let tried = tried.into_iter().map(|(name, result)| (name, result.err().map(code)));
    let report = Report { confined, tried: tried.collect() };
    println!("\n{ROLE}{}", serde_json::to_string(&report).unwrap());
}

fn report(kind: Kind) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Only this process has such a name.
    let name = format!("blochd-test-{}-{}", std::process::id(), dir.path().display());
    let (outside, read, write) = (place("outside"), place("read"), place("write"));
    let role = Role { outside, read, write, port, name, kind };
    let address = SocketAddr::from_abstract_name(&role.name).unwrap();
    let _nameless = UnixListener::bind_addr(&address).unwrap();
    for name in ["secret", "victim"] {
        fs::write(role.outside.join(name), "x").unwrap();
    }
    fs::write(role.read.join("model"), "x").unwrap();
    let _daemon = UnixListener::bind(role.outside.join("socket")).unwrap();
    let name = concat!(module_path!(), "::inmate");
    let name = name.split_once("::").unwrap().1;
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ROLE, serde_json::to_string(&role).unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().find_map(|line| line.strip_prefix(ROLE));
    let line = line.unwrap_or_else(|| panic!("{output:?}"));
    if kind == Kind::Child {
        assert!(role.outside.join("victim").exists());
        assert_eq!(fs::read_to_string(role.outside.join("secret")).unwrap(), "x");
    }
    serde_json::from_str(line).unwrap()
}

#[test]
fn who_is_confined_can_do_what_a_child_needs_and_nothing_else() {
    let free = report(Kind::Free);
    // Any box allows that; of the rest, some run tests in containers that deny it anyhow.
    for name in
        ["read", "write", "remove", "link in", "connect", "UDP", "start a program", "bounds"]
    {
        assert_eq!(free.tried[name], None, "{name} must be possible, to be denied");
    }
    let mut confined = report(Kind::Child);
    let how = confined.confined.take().unwrap();
    if !how.is_enough() {
        eprintln!("skipped: this kernel cannot confine anybody: {how}");
        return;
    }
    assert_eq!(how.missing, Vec::<String>::new());
    for (name, denied) in &confined.tried {
        let needed = name.starts_with("needed: ");
        assert_eq!(denied.is_none(), needed, "{name}: {denied:?}");
        let by_us = [libc::EPERM, libc::EACCES, libc::EXDEV, libc::ENOSYS];
        assert!(denied.is_none_or(|errno| by_us.contains(&errno)), "{name}: {denied:?}");
    }
    assert_eq!(confined.tried["rings"], Some(libc::ENOSYS));
    assert_eq!(confined.tried["trace"], Some(libc::EPERM));
}

#[test]
fn a_vendors_programs_may_be_started_and_spoken_with_and_reach_no_network() {
    let vendor = report(Kind::Vendor);
    if let Some(why) = vendor.confined.as_ref().and_then(|how| how.missing.first()) {
        eprintln!("skipped: system calls cannot be bound here: {why}");
        return;
    }
    for name in [
        "start a program",
        "speak with a daemon",
        "local datagrams",
        "a group of its own",
        "needed: a thread",
    ] {
        assert_eq!(vendor.tried[name], None, "{name}");
    }
    for name in ["connect", "listen", "UDP", "bounds", "outlive its parent", "trace"] {
        assert_eq!(vendor.tried[name], Some(libc::EPERM), "{name}");
    }
}

#[test]
fn what_reads_a_vendors_library_speaks_with_its_daemons_and_reaches_no_files_and_no_network() {
    let report = report(Kind::Telemetry);
    let how = report.confined.unwrap();
    if !how.is_enough() {
        eprintln!("skipped: this kernel cannot confine anybody: {how}");
        return;
    }
    for name in [
        "needed: read the model",
        "needed: list its folder",
        "needed: libraries",
        "needed: facts of itself",
        "needed: devices of the box",
        "needed: a thread",
        "start a program",
        "speak with a daemon",
        "speak with a daemon that has no file",
        "local datagrams",
    ] {
        assert_eq!(report.tried[name], None, "{name}");
    }
    for name in [
        "needed: write",
        "read",
        "list",
        "write",
        "overwrite",
        "remove",
        "write where it reads",
        "move out",
        "connect",
        "listen",
        "UDP",
        "its parent's secrets",
        "outlive its parent",
        "look into memory",
        "rings",
        "trace",
    ] {
        assert!(report.tried[name].is_some(), "{name}");
    }
}

#[test]
fn a_node_that_is_made_anew_is_another_one() {
    let dev = tempfile::tempdir().unwrap();
    let node = dev.path().join("davinci0");
    fs::write(&node, "").unwrap();
    let numbers = || super::files::numbers(super::files::accelerators(dev.path()));
    let before = numbers();
    assert_eq!((before.len(), numbers()), (1, before.clone()));
    // Both are there for a moment, so that the number of the first is not given away again.
    fs::write(dev.path().join("new"), "").unwrap();
    fs::rename(dev.path().join("new"), &node).unwrap();
    assert_ne!(numbers(), before);
    fs::remove_file(&node).unwrap();
    assert!(numbers().is_empty());
}

#[test]
fn what_is_in_force_is_told_in_words() {
    let told = |landlock, seccomp, missing: &[&str]| Confined {
        landlock,
        seccomp,
        missing: missing.iter().map(|text| (*text).to_owned()).collect(),
    };
    let all = told(Some(7), true, &[]);
    assert_eq!(all.to_string(), "landlock ABI 7, seccomp");
    assert!(all.is_enough());
    let old = told(None, true, &["landlock: this kernel has none"]);
    assert_eq!(old.to_string(), "seccomp (without landlock: this kernel has none)");
    let nothing = told(None, false, &["landlock: a", "seccomp: b"]);
    let words = "nothing is in force (without landlock: a; without seccomp: b)";
    assert_eq!(nothing.to_string(), words);
    // Files elsewhere could be cut short; anything could be asked of the kernel.
    for weak in [told(Some(2), true, &[]), told(Some(7), false, &["seccomp: b"]), old, nothing] {
        assert!(!weak.is_enough(), "{weak}");
    }
}

#[test]
fn accelerators_are_known_by_the_names_of_their_nodes() {
    let dev = tempfile::tempdir().unwrap();
    let names = ["cambricon_dev0", "davinci0", "davinci_manager", "devmm_svm", "hisi_hdc", "xpu0"];
    for name in names.iter().chain(&["null", "sda", "xvda"]) {
        fs::write(dev.path().join(name), "").unwrap();
    }
    let found = super::files::accelerators(dev.path());
    assert_eq!(found, names.map(|name| dev.path().join(name)));
    assert!(super::files::accelerators(Path::new("/no/such")).is_empty());
}

#[test]
fn nodes_of_a_soc_count_beside_an_ascend_alone() {
    let dev = tempfile::tempdir().unwrap();
    for name in ["svm0", "sys", "ts_aisle", "sys1", "null"] {
        fs::write(dev.path().join(name), "").unwrap();
    }
    assert!(super::files::accelerators(dev.path()).is_empty());
    fs::write(dev.path().join("davinci_manager"), "").unwrap();
    let found = super::files::accelerators(dev.path());
    let names = ["davinci_manager", "svm0", "sys", "ts_aisle"];
    assert_eq!(found, names.map(|name| dev.path().join(name)));
}

#[test]
fn a_model_needs_its_folder_and_a_library_what_lies_beside_it_wherever_it_is_named() {
    let needs = |path: &str| Needs::model(Path::new(path)).read;
    assert_eq!(needs("/m/a/1/model.onnx"), ["/m/a/1", "/m/a/1/model.onnx"].map(PathBuf::from));
    assert_eq!(needs("model.onnx")[0], Path::new("."));
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    fs::create_dir(root.join("lib")).unwrap();
    fs::write(root.join("lib/real.so"), "").unwrap();
    std::os::unix::fs::symlink("lib/real.so", root.join("link.so")).unwrap();
    for named in ["lib/real.so", "link.so", "lib"] {
        let mut search = Search::new(None, &root.join("state"));
        for place in 0..2 {
            let path = Some(root.join(named));
            (search.config, search.environment) =
                if place == 0 { (path, None) } else { (None, path) };
            let mut needs = Needs::default();
            needs.runtime(&search);
            assert_eq!(needs.read, ["lib", "state/runtime"].map(|it| root.join(it)), "{named}");
        }
    }
}
