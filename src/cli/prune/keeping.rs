//! What a build keeps in its folder and in the state directory while it runs, so that it can go on there.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use blochd::ladder::manifest::{MANIFEST_FILE, Rung};
use blochd::ladder::table::LatencyTable;
use blochd::ladder::task::{Event, Keeper, SoFar};
use blochd::limits;
use blochd::onnx::Model;
use blochd::shell::unfinished::{self, Unfinished};
use blochd::shell::{files, models};

use super::shown::Shown;

/// Keeps rungs, progress and latencies, and shows what happens.
pub struct Keeping {
    pub shown: Shown,
    /// Folder of the ladder.
    out: PathBuf,
    /// What is finished there; its conditions and samples hold for all of the build.
    unfinished: Unfinished,
    /// Where the latency table lies.
    table: PathBuf,
    /// When the table was last written.
    written: Option<Instant>,
    told_why_not: bool,
}

impl Keeping {
    pub fn new(shown: Shown, out: &Path, unfinished: Unfinished, table: PathBuf) -> Self {
        let out = out.to_owned();
        Self { shown, out, unfinished, table, written: None, told_why_not: false }
    }

    /// A table of another format is as good as none.
    pub fn table(&self) -> LatencyTable {
        let text = std::fs::read_to_string(&self.table).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Writes the table. It only saves time: a state directory that cannot be written is no failure.
    fn write_table(&mut self, table: &LatencyTable) {
        self.written = Some(Instant::now());
        let written = write_table(&self.table, table);
        if let Err(error) = written
            && !std::mem::replace(&mut self.told_why_not, true)
        {
            tracing::warn!("latencies are not kept for the next time: {error:#}");
        }
    }

    /// The ladder is finished: writes its manifest, which takes the place of the record of what is unfinished.
    ///
    /// # Errors
    /// Where the manifest cannot be written.
    pub fn finish(&self, manifest: &str) -> std::io::Result<()> {
        files::replace(&self.out.join(MANIFEST_FILE), &[manifest.to_owned().into()])?;
        unfinished::remove(&self.out)
    }

    fn save(&mut self, rung: &mut Rung, model: &Model) -> anyhow::Result<()> {
        // A manifest of an earlier ladder would speak of files that are about to be others.
        let former = self.out.join(MANIFEST_FILE);
        match std::fs::remove_file(&former) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| former.display().to_string());
            }
            _ => {}
        }
        rung.file = format!("{}.onnx", rung.name);
        models::save(model, &self.out.join(&rung.file))?;
        self.unfinished.files.extend(unfinished::hashes(&self.out, &rung.file)?);
        Ok(())
    }
}

impl Keeper for Keeping {
    fn told(&mut self, event: &Event) {
        self.shown.event(event);
    }

    fn rung(&mut self, rung: &mut Rung, model: &Model) -> Result<(), String> {
        self.save(rung, model).map_err(|error| format!("{error:#}"))
    }

    fn so_far(&mut self, so_far: &SoFar) -> Result<(), String> {
        self.unfinished.so_far = so_far.clone();
        let written = unfinished::write(&self.out, &self.unfinished);
        written.map_err(|error| format!("{}: {error}", self.out.display()))
    }

    fn timed(&mut self, table: &LatencyTable, all: bool) {
        let is_due = |written: Instant| written.elapsed() >= limits::LATENCY_UNSAVED;
        if all || self.written.is_none_or(is_due) {
            self.write_table(table);
        }
    }
}

fn write_table(path: &Path, table: &LatencyTable) -> anyhow::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    files::replace(path, &[serde_json::to_vec(table)?.into()])?;
    Ok(())
}
