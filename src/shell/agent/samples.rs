//! Samples of live requests, where the policy allows them: who draws them, when they are kept, and the
//! ladder that they are worth.

use std::sync::Arc;

use super::Agent;
use super::event::{Event, Sampled};
use super::reservoir::{Reservoir, inputs_of};
use super::served::{Build, Served};
use crate::ladder::manifest::CalibrationSource;
use crate::limits;
use crate::shell::store::Drawn;

/// Draws samples of one model's requests.
pub struct Sampling {
    reservoir: Arc<Reservoir>,
    /// They are being written.
    writing: bool,
}

impl Agent {
    /// Samples that are kept of a served model's requests and may be used: its policy allows it, nobody
    /// gave better ones, and they are of the same inputs.
    pub(super) fn live_samples(&self, served: &Served) -> Option<Drawn> {
        if !served.config.calibration.live || served.calibration.is_some() {
            return None;
        }
        let drawn = self.store.model(&served.key.model).reservoir?.drawn;
        (drawn.inputs == inputs_of(served.slot.signature())).then_some(drawn)
    }

    /// Begins or ends the sampling of a model, as its policy says.
    pub(super) fn sample_requests(&mut self, model: &str) {
        let Some(served) = self.served.get(model) else {
            self.sampling.remove(model);
            return;
        };
        let (config, slot) = (&served.config, &served.slot);
        let complete =
            self.live_samples(served).is_some_and(|drawn| drawn.seen >= limits::RESERVOIR_SEEN);
        let wanted = config.calibration.live
            && config.ladder.enabled
            && served.calibration.is_none()
            && !complete;
        if wanted {
            let signature = slot.signature();
            let kept = self.sampling.get(model).map(|sampling| Arc::clone(&sampling.reservoir));
            let kept = kept.filter(|reservoir| reservoir.inputs() == inputs_of(signature));
            let fresh =
                || Reservoir::new(signature, config.calibration.samples, config.ladder.seed);
            let Some(reservoir) = kept.or_else(|| fresh().map(Arc::new)) else {
                tracing::warn!(model, "its requests cannot be kept as samples: inputs are texts");
                return;
            };
            slot.set_sampler(Some(Arc::clone(&reservoir) as _));
            let drawn = self.sampling.get(model).map(|sampling| &sampling.reservoir);
            if drawn.is_none_or(|drawn| !Arc::ptr_eq(drawn, &reservoir)) {
                let sampling = Sampling { reservoir, writing: false };
                self.sampling.insert(model.to_owned(), sampling);
            }
            return;
        }
        slot.set_sampler(None);
        self.sampling.remove(model);
        // Who forbids them to be kept wants them gone.
        if !config.calibration.live {
            self.drop_samples(model);
        }
    }

    pub(super) fn drop_samples(&mut self, model: &str) {
        if let Err(error) = self.store.drop_reservoir(model) {
            tracing::error!(model, "samples of its requests are still there: {error}");
        }
    }

    /// Each turn: keeps what was drawn, once when there is enough for a ladder and once when it stands
    /// for a long time. Not while a build of the model reads what was kept before.
    pub(super) fn keep_samples(&mut self) {
        let due: Vec<String> = self
            .sampling
            .iter()
            .filter(|(model, sampling)| !sampling.writing && !self.is_building(model))
            .filter(|(model, sampling)| {
                let served = self.served.get(model.as_str());
                match served.map(|served| self.live_samples(served)) {
                    Some(None) => sampling.reservoir.is_enough(),
                    Some(Some(_)) => sampling.reservoir.is_complete(),
                    None => false,
                }
            })
            .map(|(model, _)| model.clone())
            .collect();
        for model in due {
            let Some(sampling) = self.sampling.get_mut(&model) else { continue };
            sampling.writing = true;
            let (events, reservoir) = (self.events.clone(), Arc::clone(&sampling.reservoir));
            tokio::spawn(async move {
                let taken = tokio::task::spawn_blocking(move || reservoir.take()).await;
                let outcome = taken.unwrap_or_else(|error| Err(error.to_string()));
                let _ = events.send(Event::Sampled { model, outcome }).await;
            });
        }
    }

    fn is_building(&self, model: &str) -> bool {
        self.building.as_ref().is_some_and(|(key, _)| key.model == model)
    }

    pub(super) fn sampled(&mut self, model: &str, outcome: Result<Sampled, String>) {
        let Some(sampling) = self.sampling.get_mut(model) else { return };
        sampling.writing = false;
        let inputs = sampling.reservoir.inputs();
        let Some(served) = self.served.get(model) else { return };
        // A build that began meanwhile, or another model: the next turn sees to it.
        if self.is_building(model) || inputs != inputs_of(served.slot.signature()) {
            return;
        }
        let first = self.live_samples(served).is_none();
        let kept = outcome.and_then(|Sampled { npz, drawn }| {
            let put = self.store.put_reservoir(model, &npz, drawn);
            put.map(|()| drawn).map_err(|error| error.to_string())
        });
        match kept {
            Ok(Drawn { samples, seen, .. }) => {
                tracing::info!(model, samples, of = seen, "samples of its requests are kept");
                self.sample_requests(model);
                if first {
                    self.ladder_from_samples(model);
                }
            }
            Err(error) => {
                // The samples stay in memory until the next start; a disk that is full stays so.
                tracing::error!(model, "samples of its requests are not kept: {error}");
                if let Some(served) = self.served.get(model) {
                    served.slot.set_sampler(None);
                }
                self.sampling.remove(model);
            }
        }
    }

    /// A ladder from made-up samples, or none, is replaced by one from real requests.
    fn ladder_from_samples(&mut self, model: &str) {
        let Some(served) = self.served.get_mut(model) else { return };
        let poor = match &served.build {
            Build::Done(manifest) => manifest.calibration.source == CalibrationSource::Synthetic,
            Build::Failed(_) => true,
            // What waits is built from what is there when its turn comes.
            Build::None(_) | Build::Queued | Build::Running { .. } => false,
        };
        if !poor {
            return;
        }
        tracing::info!(model, "its ladder is made anew from samples of its requests");
        if served.current == 0 && served.config.quality_floor > 0.0 {
            // They were never to be served.
            served.candidates.truncate(1);
        }
        let key = served.key.clone();
        self.want_ladder(&key);
    }
}
