//! The packages for the boxes: what `cross/package` makes of a binary, and what becomes of it when it is
//! installed, upgraded and removed. Nothing is compiled here; the binary is the one that the other tests run.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_blochd");
const SMALL: &str = "/bin/sh";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Standard output of what must succeed.
fn said(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether Debian's tools are there. CI has them, and must not pass without.
fn has_dpkg() -> bool {
    let there = Command::new("dpkg-deb").arg("--version").output().is_ok();
    assert!(there || std::env::var_os("CI").is_none(), "install dpkg: the packages are not tested");
    if !there {
        eprintln!("skipped: dpkg-deb is not installed");
    }
    there
}

struct Packages {
    dir: TempDir,
}

impl Packages {
    fn of(binary: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Whatever the caller's mask is, the packages' modes are theirs.
        let mut masked = Command::new("sh");
        masked.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(root().join("cross/package"));
        masked.args([std::env::consts::ARCH, "--unchecked", "--binary"]).arg(binary);
        masked.arg("--out").arg(dir.path()).env("PACKAGE_LEVEL", "1");
        said(&mut masked);
        Self { dir }
    }

    fn file(&self, ending: &str) -> PathBuf {
        let entries = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut found = entries.filter(|path| path.to_string_lossy().ends_with(ending));
        found.next().unwrap_or_else(|| panic!("no {ending} was made"))
    }

    fn deb(&self) -> PathBuf {
        self.file(".deb")
    }

    fn archive(&self) -> PathBuf {
        self.file(".tar.gz")
    }

    /// The archive, unpacked.
    fn unpacked(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar");
        said(
            tar.arg("-xzf")
                .arg(self.archive())
                .arg("-C")
                .arg(dir.path())
                .arg("--strip-components=1"),
        );
        dir
    }
}

/// Packages of a small program in the place of ours: what becomes of the files does not depend on it.
fn packages() -> Option<Packages> {
    has_dpkg().then(|| Packages::of(Path::new(SMALL)))
}

/// Lines of `tar -tv` and `dpkg-deb -c`: mode, owner, path without what all of them are below.
fn listed(text: &str, below: &str) -> BTreeSet<(String, String, String)> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let mode = words.next()?.to_owned();
        let owner = words.next()?.to_owned();
        let path = words.nth(3)?.strip_prefix(below)?.trim_start_matches('/').to_owned();
        (!path.is_empty()).then_some((mode, owner, path))
    };
    text.lines().filter_map(entry).collect()
}

/// Every file that both packages hold.
fn expected() -> BTreeSet<String> {
    let mut all: BTreeSet<String> = [
        "usr/bin/blochd",
        "usr/lib/systemd/system/blochd.service",
        "usr/lib/systemd/system/blochd.socket",
        "usr/lib/sysusers.d/blochd.conf",
        "usr/lib/tmpfiles.d/blochd.conf",
        "etc/blochd/agent.yaml",
        "usr/share/blochd/agent.schema.json",
        "usr/share/blochd/policy.schema.json",
        "usr/share/blochd/examples/ascend.yaml",
        "usr/share/blochd/examples/cambricon.yaml",
        "usr/share/blochd/examples/cpu-camera.yaml",
        "usr/share/blochd/examples/cpu-shared.yaml",
        "usr/share/blochd/examples/hour.csv",
        "usr/share/blochd/examples/kunlunxin.yaml",
        "usr/share/blochd/systemd/ascend.conf",
        "usr/share/blochd/systemd/cambricon.conf",
        "usr/share/blochd/systemd/kunlunxin.conf",
        "usr/share/doc/blochd/README.md",
        "usr/share/doc/blochd/THIRD-PARTY-LICENCES",
        "usr/share/doc/blochd/copyright",
    ]
    .map(str::to_owned)
    .into();
    for (folder, place) in [("docs", "doc/blochd/docs"), ("configs/broker", "blochd/broker")] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            all.insert(format!("usr/share/{place}/{name}"));
        }
    }
    all
}

fn check_listing(entries: &BTreeSet<(String, String, String)>, further: &[&str]) {
    let mut wanted = expected();
    wanted.extend(further.iter().map(|&path| path.to_owned()));
    let files: BTreeSet<String> = entries
        .iter()
        .filter(|(_, _, path)| !path.ends_with('/'))
        .map(|(_, _, path)| path.clone())
        .collect();
    assert_eq!(files, wanted);
    for (mode, owner, path) in entries {
        let right = match path.as_str() {
            "usr/bin/blochd" | "install" => "-rwxr-xr-x",
            path if path.ends_with('/') => "drwxr-xr-x",
            _ => "-rw-r--r--",
        };
        assert_eq!(mode, right, "{path}");
        assert!(["root/root", "0/0"].contains(&owner.as_str()), "{path} belongs to {owner}");
    }
}

#[test]
fn both_packages_hold_the_same_files_of_root_and_nothing_else() {
    let Some(made) = packages() else { return };
    let deb = said(Command::new("dpkg-deb").arg("-c").arg(made.deb()));
    check_listing(&listed(&deb, "."), &["usr/share/doc/blochd/changelog.Debian.gz"]);
    let archive = made.archive();
    let name = archive.file_name().unwrap().to_str().unwrap().strip_suffix(".tar.gz").unwrap();
    let tar = said(Command::new("tar").arg("-tvzf").arg(&archive));
    check_listing(&listed(&tar, name), &["install", "LICENSE"]);
    // In the order of their names, so that the bytes do not depend on a file system.
    let names: Vec<&str> = tar.lines().filter_map(|line| line.split_whitespace().nth(5)).collect();
    assert!(
        names.is_sorted_by_key(|name| name.trim_end_matches('/').split('/').collect::<Vec<_>>()),
        "{names:?}"
    );
}

#[test]
fn the_debian_package_says_what_it_needs_and_keeps_a_changed_configuration() {
    let Some(made) = packages() else { return };
    let field = |name: &str| said(Command::new("dpkg-deb").arg("-f").arg(made.deb()).arg(name));
    assert_eq!(field("Package").trim(), "blochd");
    assert_eq!(field("Version").trim(), format!("{}-1", env!("CARGO_PKG_VERSION")));
    let architectures = [("x86_64", "amd64"), ("aarch64", "arm64")];
    let architecture =
        architectures.iter().find(|(rust, _)| *rust == std::env::consts::ARCH).unwrap().1;
    assert_eq!(field("Architecture").trim(), architecture);
    assert_eq!(field("Depends").trim(), "libc6 (>= 2.28)");
    let control = tempfile::tempdir().unwrap();
    said(Command::new("dpkg-deb").arg("-e").arg(made.deb()).arg(control.path()));
    let read = |name: &str| fs::read_to_string(control.path().join(name)).unwrap();
    assert_eq!(read("conffiles"), "/etc/blochd/agent.yaml\n");
    assert!(
        !read("control").contains('@') || read("control").matches('@').count() == 1,
        "{}",
        read("control")
    );
    for script in ["postinst", "prerm", "postrm"] {
        let mode = fs::metadata(control.path().join(script)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{script}");
        said(Command::new("sh").arg("-n").arg(control.path().join(script)));
    }
    let tree = tempfile::tempdir().unwrap();
    said(Command::new("dpkg-deb").arg("-x").arg(made.deb()).arg(tree.path()));
    let sums = control.path().join("md5sums");
    said(
        Command::new("md5sum")
            .args(["--check", "--quiet", "--strict"])
            .arg(&sums)
            .current_dir(tree.path()),
    );
    // Everything but the configuration is in the sums.
    assert_eq!(read("md5sums").lines().count(), expected().len());
}

#[test]
fn the_program_runs_from_the_package_and_takes_the_configuration_that_comes_with_it() {
    if !has_dpkg() {
        return;
    }
    // Without its symbols, which would be most of it.
    let dir = tempfile::tempdir().unwrap();
    let stripped = dir.path().join("blochd");
    said(Command::new("strip").arg("-o").arg(&stripped).arg(BINARY));
    let tree = Packages::of(&stripped).unpacked();
    let program = tree.path().join("usr/bin/blochd");
    let version = said(Command::new(&program).arg("--version"));
    assert_eq!(version.trim(), format!("blochd {}", env!("CARGO_PKG_VERSION")));
    let configuration = tree.path().join("etc/blochd/agent.yaml");
    said(Command::new(&program).args(["config", "check", "--config"]).arg(&configuration));
    let text = fs::read_to_string(&configuration).unwrap();
    let schema = text.lines().next().unwrap().split("$schema=").nth(1).unwrap();
    assert!(tree.path().join(schema.trim_start_matches('/')).is_file(), "{schema}");
    let licences =
        fs::read_to_string(tree.path().join("usr/share/doc/blochd/THIRD-PARTY-LICENCES")).unwrap();
    for linked in ["\ntokio ", "\nfaer ", "\nort "] {
        assert!(licences.contains(linked), "{linked}");
    }
    // What builds and tests alone is not in the program.
    for other in ["\nprotox ", "\nproptest ", "\ncriterion "] {
        assert!(!licences.contains(other), "{other}");
    }
}

#[test]
fn each_example_is_a_configuration_that_the_agent_takes() {
    let mut found = 0;
    for entry in fs::read_dir(root().join("configs/examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let mut check = Command::new(BINARY);
            let settings = std::env::vars_os().map(|(name, _)| name);
            for name in settings.filter(|name| name.to_string_lossy().starts_with("BLOCHD_")) {
                check.env_remove(name);
            }
            said(check.args(["config", "check", "--config"]).arg(&path));
            found += 1;
        }
    }
    assert_eq!(found, 5);
}

#[test]
fn equal_sources_and_an_equal_binary_give_equal_bytes() {
    if !has_dpkg() {
        return;
    }
    let made = [Packages::of(Path::new(SMALL)), Packages::of(Path::new(SMALL))];
    for ending in [".deb", ".tar.gz"] {
        let [one, other] = made.each_ref().map(|packages| fs::read(packages.file(ending)).unwrap());
        assert!(one == other, "{ending}");
    }
}

/// dpkg on a system of its own below `dir`, whose scripts act there alone.
fn dpkg(dir: &Path) -> Command {
    let mut command = Command::new("unshare");
    if nix::unistd::geteuid().is_root() {
        command = Command::new("env");
    } else {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg("dpkg").arg(format!("--root={}", dir.display()));
    // The C library is the machine's own.
    command.args(["--force-script-chrootless", "--force-depends", "--log=/dev/null"]);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

#[test]
fn what_is_removed_and_purged_leaves_the_models() {
    let Some(made) = packages() else { return };
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir_all(at("var/lib/dpkg/info")).unwrap();
    fs::create_dir_all(at("var/lib/dpkg/updates")).unwrap();
    fs::write(at("var/lib/dpkg/status"), "").unwrap();
    let told = said(dpkg(dir.path()).arg("--install").arg(made.deb()));
    assert!(told.contains("blochd is not started yet"), "{told}");
    assert!(
        at("usr/bin/blochd").is_file() && at("usr/lib/systemd/system/blochd.service").is_file()
    );
    assert!(!at("etc/systemd/system").exists(), "nothing is enabled");

    // What the agent makes, and what an operator did.
    let state = at("var/lib/blochd");
    for folder in ["models/digits/1", "ladders/digits", "runtime/onnxruntime-1.32.0"] {
        fs::create_dir_all(state.join(folder)).unwrap();
        fs::write(state.join(folder).join("file"), "").unwrap();
    }
    fs::write(at("etc/blochd/agent.yaml"), "log_level: debug\n").unwrap();

    // Once more, as an upgrade does: the operator's configuration stays.
    let told = said(dpkg(dir.path()).arg("--force-confold").arg("--install").arg(made.deb()));
    assert!(!told.contains("not started yet"), "{told}");
    assert_eq!(fs::read_to_string(at("etc/blochd/agent.yaml")).unwrap(), "log_level: debug\n");

    said(dpkg(dir.path()).args(["--remove", "blochd"]));
    assert!(!at("usr/bin/blochd").exists());
    assert!(at("etc/blochd/agent.yaml").is_file());
    assert!(state.join("ladders").is_dir());

    said(dpkg(dir.path()).args(["--purge", "blochd"]));
    assert!(!at("etc/blochd").exists());
    assert!(!state.join("ladders").exists() && !state.join("runtime").exists());
    assert!(state.join("models/digits/1/file").is_file());
}

#[test]
fn the_archive_installs_itself_over_an_older_one_and_leaves_the_configuration() {
    let Some(made) = packages() else { return };
    let tree = made.unpacked();
    let system = tempfile::tempdir().unwrap();
    let at = |path: &str| system.path().join(path);
    let install = || {
        let mut command = Command::new(tree.path().join("install"));
        command.arg("--root").arg(system.path());
        command
    };
    said(&mut install());
    for path in expected() {
        assert!(at(&path).is_file(), "{path}");
    }
    fs::write(at("etc/blochd/agent.yaml"), "log_level: debug\n").unwrap();
    fs::write(at("usr/share/blochd/examples/gone.yaml"), "").unwrap();
    said(&mut install());
    assert_eq!(fs::read_to_string(at("etc/blochd/agent.yaml")).unwrap(), "log_level: debug\n");
    assert!(at("etc/blochd/agent.yaml.new").is_file());
    assert!(!at("usr/share/blochd/examples/gone.yaml").exists());
    said(install().arg("--remove"));
    assert!(!at("usr/bin/blochd").exists() && !at("usr/share/blochd").exists());
    assert!(at("etc/blochd/agent.yaml").is_file());
    assert!(!run(install().arg("--unknown")).status.success());
}

/// A program of a few lines of C with what the compiler is told.
fn compiled(dir: &Path, further: &[&str]) -> PathBuf {
    let source = dir.join("program.c");
    fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let program = dir.join("program");
    said(Command::new("cc").arg("-o").arg(&program).arg(&source).args(further));
    program
}

#[test]
fn the_gate_lets_through_what_an_old_box_can_start_and_nothing_else() {
    let gate = |binary: &Path, floor: &str| {
        let output = run(Command::new(root().join("cross/check-glibc")).arg(binary).arg(floor));
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(words) }
    };
    let dir = tempfile::tempdir().unwrap();
    let program = compiled(dir.path(), &[]);
    assert_eq!(gate(&program, "9.0"), Ok(()));
    let late = gate(&program, "2.1").unwrap_err();
    assert!(late.contains("promised is 2.1"), "{late}");
    let program = compiled(dir.path(), &["-Wl,-rpath,/home/somebody"]);
    let path = gate(&program, "9.0").unwrap_err();
    assert!(path.contains("path for libraries"), "{path}");
    // The build of this machine links GCC's library, which is not glibc's.
    let native = gate(Path::new(BINARY), "9.0").unwrap_err();
    assert!(native.contains("libgcc_s"), "{native}");
    let none = gate(&dir.path().join("program.c"), "9.0").unwrap_err();
    assert!(none.contains("no ELF file"), "{none}");
}
