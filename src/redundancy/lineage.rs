//! The spectra of a model's layers: kept from an earlier run, lent by an earlier version of the model where
//! the weights have changed too little to matter, or computed.

use std::collections::BTreeMap;

use super::analysis::{AnalyzeError, Options};
use crate::limits;
use crate::onnx::{Graph, Model, OnnxError};
use crate::spectra::{
    Drift, Layer, Precision, SpectraError, Spectrum, State, Store, layers, spectrum,
};

/// How small singular values are treated.
const PRECISION: Precision = Precision::Auto;

/// Where a spectrum comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Computed,
    /// It was found under its key.
    Kept,
    /// It is that of the same layer in an earlier version.
    Lent,
}

/// The spectrum of one layer, or why there is none.
pub(super) struct Known {
    pub spectrum: Result<Spectrum, String>,
    pub origin: Origin,
}

impl Known {
    fn drift(&self) -> Drift {
        self.spectrum.as_ref().map_or(Drift::default(), |spectrum| spectrum.drift)
    }
}

/// The spectra of all layers. What is new goes to `store` one by one, so that an interrupted run goes on where
/// it stopped.
///
/// A spectrum is lent only while the bound on how far the layer's state can have moved since it was computed
/// (summed up over all versions since) is at most [`limits::LENT_DRIFT`] and cannot carry an edge to a layer
/// of the same shape across the threshold.
pub(super) fn spectra(
    graph: &Graph,
    found: &[Layer],
    earlier: Option<&Model>,
    options: &Options,
    store: &mut dyn Store,
    progress: &mut dyn FnMut(usize, &str),
) -> Result<Vec<Known>, AnalyzeError> {
    let earlier = earlier.map(Earlier::of);
    let mut all = Vec::with_capacity(found.len());
    for (done, layer) in found.iter().enumerate() {
        progress(done, &layer.name);
        let key = layer.key(graph, options.augment, PRECISION)?;
        let kept = store.get(&key).map(|spectrum| (spectrum, Origin::Kept));
        let known = match kept {
            Some(kept) => Some(kept),
            None => match &earlier {
                Some(earlier) => earlier.lend(graph, layer, options, store)?,
                None => None,
            },
        };
        all.push(match known {
            Some((spectrum, origin)) => {
                if origin == Origin::Lent {
                    store.put(&key, &spectrum);
                }
                Known { spectrum: Ok(spectrum), origin }
            }
            None => compute(graph, layer, options, store)?,
        });
    }
    // A layer that is computed after all stands still from then on, so that this ends.
    while let Some(index) = unsure(found, &all, options.threshold) {
        progress(index, &found[index].name);
        all[index] = compute(graph, &found[index], options, store)?;
    }
    Ok(all)
}

fn compute(
    graph: &Graph,
    layer: &Layer,
    options: &Options,
    store: &mut dyn Store,
) -> Result<Known, AnalyzeError> {
    let matrix = layer.matrix(graph, options.augment).map_err(SpectraError::from);
    let spectrum = match matrix.and_then(|matrix| spectrum(&matrix, PRECISION)) {
        Ok(spectrum) => {
            store.put(&layer.key(graph, options.augment, PRECISION)?, &spectrum);
            Ok(spectrum)
        }
        Err(SpectraError::Weight(error)) => return Err(error.into()),
        Err(error) => Err(error.to_string()),
    };
    Ok(Known { spectrum, origin: Origin::Computed })
}

/// A layer whose state may have moved so far that one of its edges is on the other side of the threshold.
fn unsure(found: &[Layer], all: &[Known], threshold: f64) -> Option<usize> {
    let state = |known: &Known| known.spectrum.as_ref().ok().and_then(|s| State::of(&s.values));
    (0..all.len()).filter(|i| all[*i].drift().bound() > 0.0).find(|i| {
        let Some(shape) = found[*i].operator().map(super::pairs::shape) else { return false };
        let Some(own) = state(&all[*i]) else { return true };
        let alike = |j: &usize| found[*j].operator().map(super::pairs::shape) == Some(shape);
        (0..all.len()).filter(|j| j != i).filter(alike).any(|j| {
            let Some(other) = state(&all[j]) else { return false };
            let distance = own.fubini_study(&other);
            all[*i].drift().may_move_edge(all[j].drift(), distance, threshold)
        })
    })
}

/// An earlier version of the model.
struct Earlier<'m> {
    graph: Graph<'m>,
    layers: BTreeMap<String, Layer>,
}

impl<'m> Earlier<'m> {
    fn of(model: &'m Model) -> Self {
        let graph = Graph::new(model);
        let named = layers(&graph).0.into_iter().map(|layer| (layer.name.clone(), layer));
        Self { layers: named.collect(), graph }
    }

    /// The spectrum of the layer's forerunner with what the change adds to its drift. `None` where there is no
    /// such layer, its spectrum is not kept, or the change is too large.
    fn lend(
        &self,
        graph: &Graph,
        layer: &Layer,
        options: &Options,
        store: &mut dyn Store,
    ) -> Result<Option<(Spectrum, Origin)>, OnnxError> {
        let Some(before) = self.layers.get(&layer.name).filter(|before| before.op == layer.op)
        else {
            return Ok(None);
        };
        let Some(spectrum) = store.get(&before.key(&self.graph, options.augment, PRECISION)?)
        else {
            return Ok(None);
        };
        let old = before.matrix(&self.graph, options.augment)?;
        let Some(change) = layer.matrix(graph, options.augment)?.distance(&old) else {
            return Ok(None);
        };
        let drift = spectrum.drift.after(change, old.frobenius());
        let lent = (Spectrum { drift, ..spectrum }, Origin::Lent);
        Ok((drift.bound() <= limits::LENT_DRIFT).then_some(lent))
    }
}
