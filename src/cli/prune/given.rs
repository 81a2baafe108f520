//! Importances that the user brings, and the list of the groups that they are given for.

use std::path::Path;

use anyhow::{Context, anyhow};
use blochd::coupling::couple;
use blochd::ladder::calibration::{Samples, free_sizes};
use blochd::ladder::importance::{self, Importances};
use blochd::ladder::opened;
use blochd::limits;
use blochd::onnx::{Engine, Graph, Model};
use blochd::shell::files;

use super::{Code, Failure, MethodArg, OrFail, Prune};

impl Prune {
    /// The importances of `--scores`; none without it.
    pub(super) fn importances(&self) -> Result<Importances, Failure> {
        let Some(path) = &self.scores else { return Ok(Importances::new()) };
        if !matches!(self.method, MethodArg::Scores) {
            let problem = anyhow!("--scores is read with --method scores only");
            return Err(Failure { code: Code::Config, error: problem });
        }
        let name = || path.display().to_string();
        let text = files::read_text(path, limits::IMPORTANCE_BYTES).with_context(name);
        serde_json::from_str(&text.code(Code::Io)?).with_context(name).code(Code::Data)
    }
}

/// Writes the groups of a model that may be cut.
///
/// # Errors
/// Where the runtime does not tell the model's shapes, or the file cannot be written.
pub fn write_groups(
    file: &Path,
    engine: &dyn Engine,
    model: &Model,
    samples: &Samples,
) -> Result<(), Failure> {
    let opened = opened(engine, model, &samples.first).code(Code::Data)?;
    let model = opened.as_ref().unwrap_or(model);
    let sizes = free_sizes(model, &samples.first);
    let shapes = engine.shapes(model, &sizes).code(Code::Data)?;
    let graph = Graph::new(model);
    let groups = importance::offered(&graph, &couple(&graph, &shapes));
    let text = serde_json::to_string(&groups).code(Code::Software)?;
    if file == Path::new("-") {
        println!("{text}");
        return Ok(());
    }
    let written = files::replace(file, &[text.into()]);
    written.with_context(|| file.display().to_string()).code(Code::Io)
}
