//! What a ladder hands out, kept in memory.

use blochd::ladder::manifest::Rung;
use blochd::ladder::table::LatencyTable;
use blochd::ladder::task::{Event, Keeper, SoFar};
use blochd::onnx::Model;

/// Keeps the rungs' models and nothing else.
#[derive(Default)]
pub struct Models(pub Vec<Model>);

impl Keeper for Models {
    fn told(&mut self, _: &Event) {}

    fn rung(&mut self, _: &mut Rung, model: &Model) -> Result<(), String> {
        self.0.push(model.clone());
        Ok(())
    }

    fn so_far(&mut self, _: &SoFar) -> Result<(), String> {
        Ok(())
    }

    fn timed(&mut self, _: &LatencyTable, _: bool) {}
}
