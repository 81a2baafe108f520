//! Bare ONNX Runtime, as a program uses it that needs no server.

use std::borrow::Cow;
use std::path::Path;

use ort::environment::Environment;
use ort::session::Session;
use ort::session::SessionInputValue;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{TensorRef, ValueType};
use rand::{Rng, SeedableRng};

use crate::Error;

/// Loads the library; one a process.
pub fn load(library: &Path) -> Result<Environment, Error> {
    Ok(ort::init_from(library)?.with_name("bare").with_telemetry(false).build()?)
}

/// A session on one thread, and an input for it: the same for every model of one shape.
pub struct Bare {
    session: Session,
    pub name: String,
    pub output: String,
    pub shape: Vec<i64>,
    pub input: Vec<f32>,
}

impl Bare {
    pub fn open(environment: &Environment, model: &Path) -> Result<Self, Error> {
        let session = || -> ort::Result<Session> {
            SessionBuilder::new(environment)?
                .with_optimization_level(GraphOptimizationLevel::All)?
                .with_intra_threads(1)?
                .with_inter_threads(1)?
                .commit_from_file(model)
        };
        let session = session()?;
        let [input] = session.inputs() else { return Err("the model has not one input".into()) };
        let [output] = session.outputs() else { return Err("the model has not one output".into()) };
        let ValueType::Tensor { shape, .. } = input.dtype() else {
            return Err("its input is no tensor".into());
        };
        // A free axis: one row.
        let shape: Vec<i64> = shape.iter().map(|size| (*size).max(1)).collect();
        let count: i64 = shape.iter().product();
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let unit = |bits: u32| (bits >> 8) as f32 / (1 << 24) as f32;
        let input_values = (0..count).map(|_| unit(random.next_u32())).collect();
        let (name, output) = (input.name().to_owned(), output.name().to_owned());
        Ok(Self { session, name, output, shape, input: input_values })
    }

    /// Runs it once; the bytes of its output.
    pub fn call(&mut self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.run(|output| bytes.extend(output.iter().flat_map(|value| value.to_le_bytes())))?;
        Ok(bytes)
    }

    /// Runs it once and lends its output.
    pub fn run(&mut self, see: impl FnOnce(&[f32])) -> Result<(), Error> {
        let view = TensorRef::from_array_view((self.shape.clone(), &self.input[..]))?;
        let value: SessionInputValue<'_> = view.into();
        let outputs = self.session.run(vec![(Cow::Borrowed(self.name.as_str()), value)])?;
        let (_, output) = outputs[0].try_extract_tensor::<f32>()?;
        see(output);
        Ok(())
    }

    pub fn input_bytes(&self) -> Vec<u8> {
        self.input.iter().flat_map(|value| value.to_le_bytes()).collect()
    }
}
