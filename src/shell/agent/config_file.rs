//! The configuration's files while the agent runs: when they are read again, and what is taken over of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Agent;
use crate::config::Config;
use crate::limits;
use crate::shell::files::{Fingerprint, fingerprint};
use crate::shell::systemd::tell;
use crate::shell::{config_parts, watch};

/// What tells one state of the files from another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Looks {
    /// `None` where it is not there.
    own: Option<Fingerprint>,
    /// The parts beside it, in the order in which they are read.
    parts: Vec<(PathBuf, Option<Fingerprint>)>,
}

impl Looks {
    /// Whether a file is not there or empty, as one is that is about to be written.
    fn has_gaps(&self) -> bool {
        let all = std::iter::once(&self.own).chain(self.parts.iter().map(|(_, looks)| looks));
        all.into_iter().any(|looks| looks.is_none_or(|looks| looks.size == 0))
    }
}

/// A file, and the parts beside it, that are read again once they have changed and rest: who writes one in its
/// place empties it first, and an empty configuration is a valid one.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    /// As it was when it was read last.
    read: Looks,
    /// As it is, where that is something else, and since when.
    changed: Option<(Looks, Instant)>,
}

/// What a look at the file comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// It is as it was read.
    Known,
    /// It has changed and may still be written: look again then.
    Again(Instant),
    /// It has changed and rests.
    Read,
}

impl ConfigFile {
    /// The file that is about to be read for the first time.
    pub fn new(path: PathBuf) -> Self {
        let read = looks(&path);
        Self { path, read, changed: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at it; after [`Look::Read`] it counts as read.
    fn look(&mut self, now: Instant) -> Look {
        self.see(looks(&self.path), now)
    }

    fn see(&mut self, looks: Looks, now: Instant) -> Look {
        if looks == self.read {
            self.changed = None;
            return Look::Known;
        }
        let since = match self.changed {
            Some((ref before, since)) if *before == looks => since,
            Some(_) | None => now,
        };
        let rest = if looks.has_gaps() { limits::CONFIG_REST_EMPTY } else { limits::CONFIG_REST };
        let rested = since + rest;
        if now < rested {
            self.changed = Some((looks, since));
            return Look::Again(rested);
        }
        self.read = looks;
        self.changed = None;
        Look::Read
    }
}

/// Parts that cannot be listed look like none; reading them says what is wrong.
fn looks(path: &Path) -> Looks {
    let parts = config_parts::list(path).unwrap_or_default();
    let parts = parts.into_iter().map(|part| (part.clone(), fingerprint(&part))).collect();
    Looks { own: fingerprint(path), parts }
}

impl Agent {
    /// Watches the file; where that fails it is still looked at every so often.
    pub(super) fn watch_config(&self, changed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
        let path = self.config_file.as_ref()?.path();
        let parts = config_parts::folder(path);
        let watcher = watch::watch_file(path, &parts, Arc::clone(changed));
        watcher.inspect_err(|e| tracing::warn!("cannot watch {}: {e}", path.display())).ok()
    }

    pub(super) fn look_at_config(&mut self) {
        self.config_look = None;
        match self.config_file.as_mut().map(|file| file.look(Instant::now())) {
            None | Some(Look::Known) => {}
            Some(Look::Again(at)) => self.config_look = Some(at),
            Some(Look::Read) => self.reload(),
        }
        self.look_at_gate();
    }

    pub(super) fn reload(&mut self) {
        match sd_notify::NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[sd_notify::NotifyState::Reloading, now]),
            Err(_) => tell(&[sd_notify::NotifyState::Reloading]),
        }
        self.read_configuration();
        self.reload_gate();
        tell(&[sd_notify::NotifyState::Ready]);
    }

    fn read_configuration(&mut self) {
        let new = match (self.reread)(None) {
            Ok(new) => new,
            Err(errors) => {
                if self.config_error.as_ref() != Some(&errors) {
                    tracing::error!(
                        "the configuration is refused, the last good one holds: {errors}"
                    );
                }
                self.config_error = Some(errors);
                return;
            }
        };
        self.config_error = None;
        let asked = Config::diff(&self.config, &new);
        let restart: Vec<_> = asked.restart().cloned().collect();
        let mut kept = self.config.keeping_what_needs_a_restart(&new);
        self.admitting.keep_closed(&self.config, &mut kept);
        let diff = Config::diff(&self.config, &kept);
        if diff.is_empty() && restart == self.config_restart {
            return;
        }
        for change in restart.iter().filter(|change| !self.config_restart.contains(change)) {
            tracing::warn!(setting = change.path, "its change takes effect at the next start");
        }
        self.config_restart = restart;
        let old = std::mem::replace(&mut self.config, kept);
        self.config_revision += 1;
        tracing::info!(revision = self.config_revision, "the configuration was read again");
        (self.log_level)(self.config.log_level);
        self.tell_openings(&old);
        self.arrivals.set_settle(self.config.arrivals.settle.into());
        self.follow_devices();
        // What was to settle later may have settled now.
        self.look_after(Duration::ZERO);
        for model in self.served.keys().cloned().collect::<Vec<_>>() {
            if diff.touches(&model) {
                self.reconfigure(&model);
            }
        }
        // What nothing was there to run before may be let run by something now.
        let waits = |model: &String| diff.touches(model) && !self.served.contains_key(model);
        let refused: BTreeSet<String> =
            self.refused.keys().map(|key| key.model.clone()).filter(waits).collect();
        refused.iter().for_each(|model| self.arrivals.forget(model));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(size: u64, modified_ns: i128) -> Looks {
        let own = Some(Fingerprint { size, modified_ns, inode: 1 });
        Looks { own, parts: Vec::new() }
    }

    const GONE: Looks = Looks { own: None, parts: Vec::new() };

    #[test]
    fn a_file_is_read_once_after_it_has_rested_and_an_empty_one_later() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let mut file = ConfigFile { path: PathBuf::new(), read: of(9, 0), changed: None };
        assert_eq!(file.see(of(9, 0), at(0)), Look::Known);
        // Emptied, then written in pieces.
        let again = |from: u64, rest: Duration| Look::Again(at(from) + rest);
        assert_eq!(file.see(of(0, 1), at(10)), again(10, limits::CONFIG_REST_EMPTY));
        assert_eq!(file.see(of(0, 1), at(250)), again(10, limits::CONFIG_REST_EMPTY));
        assert_eq!(file.see(of(4, 2), at(260)), again(260, limits::CONFIG_REST));
        assert_eq!(file.see(of(8, 3), at(400)), again(400, limits::CONFIG_REST));
        assert_eq!(file.see(of(8, 3), at(599)), again(400, limits::CONFIG_REST));
        assert_eq!(file.see(of(8, 3), at(600)), Look::Read);
        assert_eq!(file.see(of(8, 3), at(9000)), Look::Known);
        // One that is left empty is meant so; one that is gone is told as such.
        assert_eq!(file.see(of(0, 4), at(9000)), again(9000, limits::CONFIG_REST_EMPTY));
        assert_eq!(file.see(of(0, 4), at(9000) + limits::CONFIG_REST_EMPTY), Look::Read);
        assert_eq!(file.see(GONE, at(20_000)), again(20_000, limits::CONFIG_REST_EMPTY));
        assert_eq!(file.see(GONE, at(20_000) + limits::CONFIG_REST_EMPTY), Look::Read);
        // What changes back was never of interest.
        assert_eq!(file.see(of(5, 5), at(30_000)), again(30_000, limits::CONFIG_REST));
        assert_eq!(file.see(GONE, at(30_100)), Look::Known);
    }
}
