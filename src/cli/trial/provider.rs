//! A trial on another execution provider than the CPU's. What fails there may be the provider's fault or the
//! model's own: the CPU, which runs it first, tells them apart, and its answers are what the provider's are
//! held against. Every shape that will be served is run once, since providers compile each on its first run.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use blochd::config::shape_text;
use blochd::hardware::{Placement, placement};
use blochd::limits;
use blochd::onnx::{Model, Session, Tensor};
use blochd::protocol::{Inputs, Signature, sized};
use blochd::shell::children::trial::{Compiled, RanOn};
use blochd::shell::engine::{EngineOptions, LiveSession, OfferedDevice, OrtEngine, PluginError};
use blochd::units::Percentile;
use tempfile::TempDir;

use super::{Run, Trial, Tried, finite, lent};
use crate::cli::{Code, Failure, OrFail};

/// What is found of a provider beside the times of its runs.
#[derive(Default)]
pub struct Found {
    /// Time of the first run of every shape.
    pub compiled: Vec<Compiled>,
    /// Largest distance of its answers from the CPU's, as a share of those.
    pub differs: Option<f64>,
    pub placement: Option<Placement>,
    pub device: Option<OfferedDevice>,
    /// Shapes that the CPU does not run it in either, with the reasons.
    pub unsuited: Vec<String>,
}

/// What the CPU makes of the model.
struct Reference {
    run: Option<Run>,
    why: Option<String>,
    answers: Vec<Tensor>,
    /// Inputs of the further shapes that are to be served.
    shapes: Vec<Inputs>,
    /// Those in which it does not run, with the reasons.
    unsuited: Vec<String>,
}

impl Trial {
    /// Loads and runs the model on the provider, held against the CPU.
    pub(super) fn on_provider(&self, engine: &OrtEngine, model: &Model) -> Result<Tried, Failure> {
        engine.check().with_context(|| self.on.provider.to_string()).code(Code::Provider)?;
        let reference = match self.reference(engine, model) {
            Ok(reference) => Ok(reference),
            // There are models that are made for a provider: then it has the last word.
            Err(Refused::ToLoad(failure)) => Err(failure),
            Err(Refused::ToRun(failure)) => return Err(failure),
        };
        let folder = self.folder();
        let options = EngineOptions {
            profile: folder.as_ref().map(|folder| folder.path().join("profile")),
            ..engine.options().clone()
        };
        let engine = OrtEngine::new(engine.runtime(), options);
        let started = Instant::now();
        let opened = engine.open_live(model);
        let load_ms = started.elapsed().as_secs_f64() * 1e3;
        let (mut session, reference) = match (opened, reference) {
            (Ok(session), reference) => (session, reference),
            (Err(error), Ok(_)) => return Err(self.fails("loading it", error)),
            (Err(_), Err(failure)) => return Err(failure),
        };
        let mut found = Found { device: self.device(&engine), ..Found::default() };
        let (run, why) = match reference {
            Ok(reference) => {
                self.first_runs(&mut session, &reference, &mut found)?;
                found.unsuited = reference.unsuited;
                (reference.run, reference.why)
            }
            Err(failure) => {
                let started = Instant::now();
                let (run, why) = self.warm(&mut session).map_err(|_| failure)?;
                let first = run.iter().map(|run| compiled(&run.inputs, started.elapsed()));
                found.compiled.extend(first);
                if let Some(run) = &run {
                    let mut ran = |inputs: &_, took| found.compiled.push(compiled(inputs, took));
                    found.unsuited = self.further(&mut session, run, &mut ran).1;
                }
                (run, why)
            }
        };
        found.placement = session.placement().ok();
        if let Some(run) = &run {
            self.profile(&mut session, run, &mut found)?;
        }
        Ok(Tried { session, load_ms, run, why, found: Some(found) })
    }

    /// Where the profile is written. Without a place for it, shares of time are not known.
    fn folder(&self) -> Option<TempDir> {
        match self.sandbox.scratch() {
            Some(scratch) => TempDir::new_in(scratch).ok(),
            None => TempDir::new().ok(),
        }
    }

    fn device(&self, engine: &OrtEngine) -> Option<OfferedDevice> {
        let library = engine.library().ok().flatten()?;
        let blochd::config::Provider::Plugin(plugin) = &self.on.provider else { return None };
        let device: Result<_, PluginError> = library.device(plugin);
        device.ok().cloned()
    }

    /// The provider fails at what the CPU does.
    fn fails(&self, doing: &str, error: impl std::fmt::Display) -> Failure {
        let (model, provider) = (self.name(), &self.on.provider);
        let error = anyhow!(
            "{model}: validation failed on the execution provider {provider}, {doing}: {error}; \
             the CPU runs the model"
        );
        Failure { code: Code::Provider, error }
    }

    /// Runs the model on the CPU.
    fn reference(&self, engine: &OrtEngine, model: &Model) -> Result<Reference, Refused> {
        let options = EngineOptions {
            intra_op_threads: engine.options().intra_op_threads,
            sizes: engine.options().sizes.clone(),
            ..EngineOptions::default()
        };
        let cpu = OrtEngine::new(engine.runtime(), options);
        let opened = cpu.open_live(model).with_context(|| self.name()).code(Code::Data);
        let mut session = opened.map_err(Refused::ToLoad)?;
        let (run, why) = self.warm(&mut session).map_err(Refused::ToRun)?;
        let mut answers = Vec::new();
        let (mut shapes, mut unsuited) = (Vec::new(), Vec::new());
        if let Some(run) = &run {
            let ran = session.run(&lent(&run.inputs), &[]);
            let ran = ran.with_context(|| self.name()).code(Code::Data);
            answers = ran.map_err(Refused::ToRun)?;
            (shapes, unsuited) = self.further(&mut session, run, &mut |_, _| ());
        }
        Ok(Reference { run, why, answers, shapes, unsuited })
    }

    /// Runs the further shapes that are to be served, and tells of each: those in which the model runs, and the
    /// others with the reasons.
    fn further(
        &self,
        session: &mut LiveSession,
        run: &Run,
        ran: &mut dyn FnMut(&Inputs, Duration),
    ) -> (Vec<Inputs>, Vec<String>) {
        let signature = Signature::from(&*session);
        let (mut shapes, mut unsuited) = (Vec::<Inputs>::new(), Vec::new());
        for sizes in self.served.iter().take(limits::COMPILED_SHAPES) {
            let sizes: BTreeMap<String, usize> = sizes.0.iter().cloned().collect();
            let mut one = || -> Result<(), String> {
                let inputs = sized(&run.inputs, &signature, &sizes).map_err(|e| e.to_string())?;
                let known = |known: &Inputs| same_shapes(&inputs, known);
                if known(&run.inputs) || shapes.iter().any(known) {
                    return Ok(());
                }
                let started = Instant::now();
                session.run(&lent(&inputs), &[]).map_err(|error| error.to_string())?;
                ran(&inputs, started.elapsed());
                shapes.push(inputs);
                Ok(())
            };
            if let Err(error) = one() {
                unsuited.push(format!("{}: {error}", shape_text(&sizes)));
            }
        }
        (shapes, unsuited)
    }

    /// Runs every shape once, which compiles it, and times all but the first, which the whole trial is about.
    fn first_runs(
        &self,
        session: &mut LiveSession,
        reference: &Reference,
        found: &mut Found,
    ) -> Result<(), Failure> {
        let Some(run) = &reference.run else { return Ok(()) };
        for inputs in std::iter::once(&run.inputs).chain(&reference.shapes) {
            let started = Instant::now();
            let answers = session.run(&lent(inputs), &[]);
            let took = started.elapsed();
            let mut first = compiled(inputs, took);
            let doing = format!("running {} for the first time", first.inputs);
            let answers = answers.map_err(|error| self.fails(&doing, error))?;
            if found.compiled.is_empty() {
                if run.on == RanOn::Samples {
                    let finite = finite(&Signature::from(&*session), &answers);
                    finite.map_err(|error| self.fails(&doing, error))?;
                }
                let differs = difference(&reference.answers, &answers);
                found.differs = differs.map_err(|error| self.fails(&doing, error))?;
            } else {
                let times = session.time(&lent(inputs), limits::SHAPE_RUNS);
                let mut times = times.map_err(|error| self.fails(&doing, error))?;
                times.sort_unstable();
                first.p50_us = Percentile::P50.of(&times).map(|t| t.as_secs_f64() * 1e6);
            }
            found.compiled.push(first);
        }
        Ok(())
    }

    /// Adds the shares of time. Only a profile that was written and can be read tells them.
    fn profile(
        &self,
        session: &mut LiveSession,
        run: &Run,
        found: &mut Found,
    ) -> Result<(), Failure> {
        for _ in 0..limits::PROFILED_RUNS {
            let ran = session.run(&lent(&run.inputs), &[]);
            ran.map_err(|error| self.fails("running it once more", error))?;
        }
        let Ok(path) = session.end_profiling() else { return Ok(()) };
        let mut profile = Vec::new();
        let read = fs::File::open(&path)
            .and_then(|file| file.take(limits::PROFILE_BYTES).read_to_end(&mut profile));
        let times = read.map_err(|e| e.to_string()).and_then(|_| placement::times(&profile));
        match (times, &mut found.placement) {
            (Ok(times), Some(placement)) => placement.timed(&times),
            (Ok(times), none @ None) => none.insert(Placement::default()).timed(&times),
            (Err(error), _) => tracing::warn!("where operators run is not timed: {error}"),
        }
        Ok(())
    }
}

/// Why there is nothing to hold a provider against.
enum Refused {
    ToLoad(Failure),
    ToRun(Failure),
}

fn same_shapes(one: &Inputs, other: &Inputs) -> bool {
    let shapes = |inputs: &Inputs| -> Vec<Vec<usize>> {
        inputs.iter().map(|(_, tensor)| tensor.shape.clone()).collect()
    };
    shapes(one) == shapes(other)
}

fn compiled(inputs: &Inputs, took: Duration) -> Compiled {
    let shape = |(name, tensor): &(String, Tensor)| {
        let dims: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        format!("{name}[{}]", dims.join(","))
    };
    let inputs: Vec<String> = inputs.iter().map(shape).collect();
    Compiled { inputs: inputs.join(" "), us: took.as_secs_f64() * 1e6, p50_us: None }
}

/// Largest distance of `found` from `expected` of all outputs of floating-point numbers, as a share of
/// `expected`'s own length; `None` where there are none.
fn difference(expected: &[Tensor], found: &[Tensor]) -> Result<Option<f64>, String> {
    if expected.len() != found.len() {
        return Err(format!("it gives {} outputs, the CPU {}", found.len(), expected.len()));
    }
    let mut most = None;
    for (at, (expected, found)) in expected.iter().zip(found).enumerate() {
        if (&expected.shape, expected.dtype) != (&found.shape, found.dtype) {
            let is = |t: &Tensor| format!("{:?} {:?}", t.dtype, t.shape);
            return Err(format!("output {at} is {}, the CPU's {}", is(found), is(expected)));
        }
        let (Some(expected), Some(found)) = (expected.to_f32(), found.to_f32()) else { continue };
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        if !finite(&expected) {
            continue;
        }
        if !finite(&found) {
            return Err(format!("output {at} is not finite, the CPU's is"));
        }
        let square = |value: f32| f64::from(value) * f64::from(value);
        let apart: f64 = expected.iter().zip(&found).map(|(a, b)| square(a - b)).sum();
        let length: f64 = expected.iter().map(|value| square(*value)).sum();
        let share = if apart > 0.0 { (apart / length.max(f64::MIN_POSITIVE)).sqrt() } else { 0.0 };
        most = Some(share.max(most.unwrap_or_default()));
    }
    match most {
        Some(share) if share > limits::PROVIDER_DIFFERENCE => Err(format!(
            "its answers have nothing to do with the CPU's: they are {share:.1} times as far from \
             them as zeros are"
        )),
        most => Ok(most),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_near_or_apart_by_their_own_length_and_never_less_than_finite() {
        let of = |values: &[f32]| vec![Tensor::from_f32(&[values.len()], values)];
        let near = difference(&of(&[3.0, 4.0]), &of(&[3.0, 4.05])).unwrap().unwrap();
        assert!((near - 0.01).abs() < 1e-6, "{near}");
        assert_eq!(difference(&of(&[0.0]), &of(&[0.0])), Ok(Some(0.0)));
        assert_eq!(difference(&of(&[f32::NAN]), &of(&[1.0])), Ok(None), "the model's own");
        let labels = vec![Tensor::from_i64(&[1], &[3])];
        assert_eq!(difference(&labels, &labels), Ok(None));
        for found in [of(&[f32::NAN, 1.0]), of(&[-3.0, -4.0]), of(&[3.0]), labels, vec![]] {
            assert!(difference(&of(&[3.0, 4.0]), &found).is_err(), "{found:?}");
        }
    }
}
