//! A disk that is taken away, fills up or fails under a real process at a chosen change of what lies on it: see
//! `tests/standin/disk.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::standins::Bench;

/// Set to anything, every point is tried and not a part of them.
const ALL: &str = "EVERY_POINT";

/// Points that are tried at once: those who are killed and started again mostly wait.
const AT_ONCE: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The process is killed before the call, or half-way through it.
    Kill,
    /// From this call on there is no room.
    Full,
    /// From this call on nothing can be changed.
    Broken,
}

/// The library that stands between.
pub struct Disk {
    bench: Bench,
}

/// One run on a disk.
pub struct Run<'a> {
    pub disk: &'a Disk,
    /// The directories that are on it.
    pub below: Vec<PathBuf>,
    /// Outside of them.
    pub log: PathBuf,
}

impl Disk {
    pub fn new() -> Self {
        Self { bench: Bench::with(&[("disk", "")]) }
    }
}

impl Run<'_> {
    /// Has a program run on the disk, which goes at the `at`-th call; never where that is 0.
    pub fn goes(&self, command: &mut Command, at: usize, how: How) {
        let below: Vec<_> = self.below.iter().map(|dir| dir.canonicalize().unwrap()).collect();
        let below: Vec<_> = below.iter().map(|dir| dir.to_str().unwrap()).collect();
        let how = match how {
            How::Kill => "kill",
            How::Full => "full",
            How::Broken => "broken",
        };
        command.env("LD_PRELOAD", self.disk.bench.library("disk"));
        command.env("DISK_BELOW", below.join(":")).env("DISK_AT", at.to_string());
        command.env("DISK_HOW", how).env("DISK_LOG", &self.log);
    }

    /// The calls up to the chosen one, and those that failed after it.
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Whether the chosen call has come.
    pub fn is_gone(&self, at: usize) -> bool {
        let number = |line: &String| line.split(' ').next()?.parse::<usize>().ok();
        self.calls().iter().filter_map(number).any(|number| number >= at)
    }
}

/// Whether a process ended by what the disk did to it.
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(9)
}

/// What a sweep has tried.
pub struct Swept {
    /// Points that were tried, and those of them that came before the process was done.
    pub tried: usize,
    pub reached: usize,
}

/// Tries the points from 1 to `count`: all of them where that is asked for, else every `every`-th. `one` says
/// whether the point was reached.
pub fn sweep(what: &str, count: usize, every: usize, one: impl Fn(usize) -> bool + Sync) -> Swept {
    let every = if std::env::var_os(ALL).is_some() { 1 } else { every };
    // Each k-th, and not always the same kind of call.
    let points: Vec<usize> =
        (1..=count).filter(|point| point % every == (count / 2) % every).collect();
    let (next, reached) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(&point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match catch_unwind(AssertUnwindSafe(|| one(point))) {
                        Ok(true) => drop(reached.fetch_add(1, Ordering::Relaxed)),
                        Ok(false) => {}
                        Err(_) => failed.lock().unwrap().push(point),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let swept = Swept { tried: points.len(), reached: reached.into_inner() };
    println!("{what}: {} of {count} points, {} reached", swept.tried, swept.reached);
    assert!(failed.is_empty(), "{what}: wrong after these of {count} points: {failed:?}");
    // How many calls a life has depends on what it measures; most of them come in every one.
    assert!(swept.reached * 2 > swept.tried, "{what}: points are reached");
    swept
}

/// All files and folders below some directories, hidden ones too, by their paths from `root` on.
pub fn listing(root: &Path, dirs: &[&str]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut open: Vec<PathBuf> = dirs.iter().map(|dir| root.join(dir)).collect();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            all.insert(path.strip_prefix(root).unwrap().display().to_string());
            if entry.file_type().unwrap().is_dir() {
                open.push(path);
            }
        }
    }
    all
}

pub fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
