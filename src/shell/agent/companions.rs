//! The files beside a model's versions: `policy.yaml` and `calibration.npz`, which may lie with a version, too.

use std::path::PathBuf;

use super::Agent;
use crate::config::Policy;
use crate::limits;
use crate::shell::cpus::{self, NotUsable};
use crate::shell::{files, watch};
use crate::units::Version;

/// Name of a model's samples.
const CALIBRATION: &str = "calibration.npz";

impl Agent {
    /// A file beside a model's versions, if it is there: like all of the model directory, links are followed
    /// to what lies below it only.
    pub(super) fn companion(&self, model: &str, name: &str) -> Option<PathBuf> {
        let root = self.config.model_dir.canonicalize().ok()?;
        let path = watch::inside(&root, &root.join(model).join(name))?;
        path.is_file().then_some(path)
    }

    /// Samples of a model's inputs: those that came with the version in service, or those of the model.
    pub(super) fn given_samples(&self, model: &str) -> Option<PathBuf> {
        let version = self.served.get(model).map(|served| served.key.version);
        self.samples_with(model, version)
    }

    /// The same for a version that is not served yet.
    pub(super) fn samples_with(&self, model: &str, version: Option<Version>) -> Option<PathBuf> {
        let with =
            version.and_then(|version| self.companion(model, &format!("{version}/{CALIBRATION}")));
        with.or_else(|| self.companion(model, CALIBRATION))
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
            Ok(policy) => match self.check_cpus(model, &policy) {
                Ok(()) => drop(self.policies.insert(model.to_owned(), policy)),
                Err(error) => {
                    tracing::error!(model, "policy refused: {}: {error}", path.display());
                }
            },
            // The last good one stays in force.
            Err(errors) => tracing::error!(model, "policy refused: {errors}"),
        }
    }

    /// Whether a policy names only CPUs that this box has for the agent.
    fn check_cpus(&self, model: &str, policy: &Policy) -> Result<(), NotUsable> {
        match (self.config.model(model, Some(policy)), cpus::usable()) {
            (Ok(config), Ok(usable)) => cpus::check_model(&config, &usable, "cpus"),
            // What is wrong with the rest, and a box that does not tell, is for others to say.
            (Err(_), _) | (_, Err(_)) => Ok(()),
        }
    }
}
