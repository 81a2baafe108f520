//! The files beside a model's versions: `policy.yaml` and `calibration.npz`.

use std::path::PathBuf;

use super::Agent;
use crate::config::Policy;
use crate::limits;
use crate::shell::{files, watch};

/// Name of a model's samples.
pub(super) const CALIBRATION: &str = "calibration.npz";

impl Agent {
    /// A file beside a model's versions, if it is there: like all of the model directory, links are followed
    /// to what lies below it only.
    pub(super) fn companion(&self, model: &str, name: &str) -> Option<PathBuf> {
        let root = self.config.model_dir.canonicalize().ok()?;
        let path = watch::inside(&root, &root.join(model).join(name))?;
        path.is_file().then_some(path)
    }

    /// Reads the policy of a model anew.
    pub(super) fn read_policy(&mut self, model: &str) {
        let Some(path) = self.companion(model, "policy.yaml") else {
            self.policies.remove(model);
            return;
        };
        let text = match files::read_text(&path, limits::CONFIG_FILE_BYTES) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(model, "policy refused: {}: {error}", path.display());
                return;
            }
        };
        match Policy::parse(&path.display().to_string(), &text) {
            Ok(policy) => drop(self.policies.insert(model.to_owned(), policy)),
            // The last good one stays in force.
            Err(errors) => tracing::error!(model, "policy refused: {errors}"),
        }
    }
}
