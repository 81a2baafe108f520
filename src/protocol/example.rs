//! Made-up requests: what a model is run on where nobody has given real inputs. Only its signature is known,
//! which leaves sizes open and says nothing of values, so they are as plain as can be, and there are
//! several: what one model refuses suits another. That none suits says nothing against a model.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Dim, Signature, TensorSpec};
use crate::limits;
use crate::onnx::{DType, Tensor, values};

/// Inputs of one request, by name, in the signature's order.
pub type Inputs = Vec<(String, Tensor)>;

/// Which made-up request: the same one of the same signature is the same, byte by byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Size of free axes that stand first in an input of several, or share the name of such a one: in
    /// most models the number of samples.
    pub first: usize,
    /// Size of the other free axes.
    pub free: usize,
    /// The value of every integer, and whether booleans are true. 1 is a size, a length and a flag; 0 alone
    /// is an index into a table of one row.
    pub integer: u8,
}

/// Why an example cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("inputs of {shapes} take more than the {limit} bytes that are made up")]
pub struct TooLarge {
    shapes: String,
    limit: u64,
}

impl TooLarge {
    pub(super) fn of(shapes: &[Vec<usize>]) -> Self {
        Self { shapes: format!("{shapes:?}"), limit: limits::EXAMPLE_BYTES }
    }
}

/// That no example suits a model, with what the plainest one met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("none of the made-up requests suits it; the first met: {0}")]
pub struct NoneSuits(pub String);

impl Example {
    /// The inputs of this request. `given` has sizes of free axes by name, or as `input[axis]` where
    /// they have none (see `onnx::free_axis`).
    ///
    /// # Errors
    /// Where they would take more than [`limits::EXAMPLE_BYTES`].
    pub fn inputs(
        &self,
        signature: &Signature,
        given: &BTreeMap<String, usize>,
    ) -> Result<Inputs, TooLarge> {
        let shapes = self.shapes(signature, given);
        let bytes = signature.inputs.iter().zip(&shapes).try_fold(0u64, |sum, (spec, shape)| {
            // A text without letters is its length.
            let width = spec.dtype.size().unwrap_or(4) as u64;
            let product = |bytes: u64, dim: &usize| bytes.checked_mul(u64::try_from(*dim).ok()?);
            sum.checked_add(shape.iter().try_fold(width, product)?)
        });
        if bytes.is_none_or(|bytes| bytes > limits::EXAMPLE_BYTES) {
            return Err(TooLarge::of(&shapes));
        }
        let tensor = |(spec, shape): (&TensorSpec, Vec<usize>)| {
            let data = self.elements(spec.dtype, shape.iter().product()).into();
            (spec.name.clone(), Tensor { dtype: spec.dtype, shape, data })
        };
        Ok(signature.inputs.iter().zip(shapes).map(tensor).collect())
    }

    fn shapes(&self, signature: &Signature, given: &BTreeMap<String, usize>) -> Vec<Vec<usize>> {
        let leading = leading(signature);
        signature.inputs.iter().map(|spec| self.shape(spec, given, &leading)).collect()
    }

    fn shape(
        &self,
        spec: &TensorSpec,
        given: &BTreeMap<String, usize>,
        leading: &BTreeSet<&str>,
    ) -> Vec<usize> {
        // Not even the number of axes is known: most such models take one.
        let Some(dims) = &spec.shape else { return vec![self.free] };
        let size = |(axis, dim): (usize, &Dim)| match dim {
            Dim::Fixed(size) => *size,
            Dim::Free(name) => {
                let first = leading.contains(name.as_str()) || (axis == 0 && dims.len() > 1);
                let assumed = if first { self.first } else { self.free };
                let asked = match name.as_str() {
                    "" => given.get(&format!("{}[{axis}]", spec.name)),
                    name => given.get(name),
                };
                asked.copied().unwrap_or(assumed)
            }
        };
        dims.iter().enumerate().map(size).collect()
    }

    fn elements(&self, dtype: DType, count: usize) -> Vec<u8> {
        // Spread evenly over 0 to 1, as the pixels of most images are.
        let spread = |at: usize| {
            let golden = (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
            golden as f32 / (1u64 << 24) as f32
        };
        match dtype {
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => {
                let spread: Vec<f32> = (0..count).map(spread).collect();
                values::float_bytes(dtype, &spread).unwrap_or_default()
            }
            DType::String => vec![0; count * 4],
            DType::U8 | DType::I8 | DType::Bool => vec![self.integer; count],
            DType::U16 | DType::I16 => u16::from(self.integer).to_le_bytes().repeat(count),
            DType::U32 | DType::I32 => u32::from(self.integer).to_le_bytes().repeat(count),
            DType::U64 | DType::I64 => u64::from(self.integer).to_le_bytes().repeat(count),
        }
    }
}

/// Names of free axes that stand first in an input of several axes.
fn leading(signature: &Signature) -> BTreeSet<&str> {
    let shapes = signature.inputs.iter().filter_map(|spec| spec.shape.as_deref());
    shapes
        .filter_map(|shape| match shape {
            [Dim::Free(name), _, ..] if !name.is_empty() => Some(name.as_str()),
            _ => None,
        })
        .collect()
}

/// Looks for an example that a model runs on: the plainest ones first, and of those that run the largest
/// that still runs quickly, since sizes near real ones make better measurements. `run` tells how long one
/// run took.
///
/// # Errors
/// Where none runs.
pub fn suitable<E: ToString>(
    signature: &Signature,
    given: &BTreeMap<String, usize>,
    run: &mut dyn FnMut(&Inputs) -> Result<Duration, E>,
) -> Result<(Example, Inputs), NoneSuits> {
    let mut met: Option<String> = None;
    let mut tried = BTreeSet::new();
    let integers = signature.inputs.iter().any(|spec| match spec.dtype {
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 | DType::String => false,
        DType::U8 | DType::I8 | DType::U16 | DType::I16 | DType::U32 | DType::I32 => true,
        DType::U64 | DType::I64 | DType::Bool => true,
    });
    for (lone, integer) in [(true, 1), (true, 0), (false, 1), (false, 0)] {
        let mut best = None;
        for free in limits::EXAMPLE_SIZES {
            let first = if lone { 1 } else { free };
            let example = Example { first, free, integer };
            // Where a model leaves nothing open, all of them are one.
            let same = (example.shapes(signature, given), integers.then_some(integer));
            if !tried.insert(same) {
                continue;
            }
            let ran = match example.inputs(signature, given) {
                Ok(inputs) => run(&inputs).map(|took| (took, inputs)).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match ran {
                Ok((took, inputs)) => {
                    best = Some((example, inputs));
                    if took > limits::EXAMPLE_QUICK {
                        break;
                    }
                }
                Err(error) => {
                    met.get_or_insert(error);
                }
            }
        }
        if let Some(best) = best {
            return Ok(best);
        }
    }
    Err(NoneSuits(met.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dtype: DType, dims: &[&str]) -> TensorSpec {
        let dim = |dim: &&str| match dim.parse() {
            Ok(size) => Dim::Fixed(size),
            Err(_) => Dim::Free(dim.trim_start_matches('?').to_owned()),
        };
        let shape = Some(dims.iter().map(dim).collect());
        TensorSpec { name: name.to_owned(), dtype, shape }
    }

    fn signature(inputs: Vec<TensorSpec>) -> Signature {
        Signature { inputs, outputs: Vec::new() }
    }

    fn shapes(inputs: &Inputs) -> Vec<Vec<usize>> {
        inputs.iter().map(|(_, tensor)| tensor.shape.clone()).collect()
    }

    const PLAIN: Example = Example { first: 1, free: 32, integer: 1 };

    #[test]
    fn every_input_is_as_its_signature_asks() {
        // A voice detector's: samples, a state with another first axis, a rate without any.
        let signature = signature(vec![
            spec("input", DType::F32, &["batch", "samples"]),
            spec("state", DType::F32, &["2", "batch", "64"]),
            spec("sr", DType::I64, &[]),
            spec("mask", DType::Bool, &["batch", "samples"]),
            spec("words", DType::String, &["?"]),
        ]);
        let inputs = PLAIN.inputs(&signature, &BTreeMap::new()).unwrap();
        assert_eq!(shapes(&inputs), [vec![1, 32], vec![2, 1, 64], vec![], vec![1, 32], vec![32]]);
        for (spec, (name, tensor)) in signature.inputs.iter().zip(&inputs) {
            assert_eq!((name, tensor.dtype), (&spec.name, spec.dtype));
            assert!(spec.admits(&tensor.shape));
            let width = tensor.dtype.size().unwrap_or(4);
            assert_eq!(tensor.data.len(), tensor.len() * width, "{name}");
        }
        assert_eq!(inputs[4].1.strings().unwrap(), vec![""; 32]);
        let given = BTreeMap::from([("samples".to_owned(), 7), ("words[0]".to_owned(), 3)]);
        let inputs = PLAIN.inputs(&signature, &given).unwrap();
        assert_eq!(shapes(&inputs), [vec![1, 7], vec![2, 1, 64], vec![], vec![1, 7], vec![3]]);
    }

    #[test]
    fn every_type_has_values_of_its_own_width() {
        use DType::*;
        for dtype in [F32, U8, I8, U16, I16, I32, I64, String, Bool, F16, F64, U32, U64, BF16] {
            let signature = signature(vec![spec("x", dtype, &["3"])]);
            for integer in [0, 1] {
                let example = Example { integer, ..PLAIN };
                let inputs = example.inputs(&signature, &BTreeMap::new()).unwrap();
                let tensor = &inputs[0].1;
                assert_eq!(tensor.data.len(), 3 * dtype.size().unwrap_or(4), "{dtype:?}");
                if let Some(values) = values::integers(dtype, &tensor.data) {
                    assert_eq!(values, [i64::from(integer); 3], "{dtype:?}");
                }
                if let Some(values) = tensor.to_f32() {
                    let distinct = values.windows(2).all(|pair| pair[0] != pair[1]);
                    assert!(distinct && values.iter().all(|v| (0.0..1.0).contains(v)), "{dtype:?}");
                }
            }
        }
    }

    #[test]
    fn absurd_sizes_are_refused_before_anything_is_allocated() {
        let huge = (1u64 << 62).to_string();
        let absurd: [&[&str]; 3] = [&["1", &huge], &[&huge, &huge, &huge], &["100000", "100000"]];
        for dims in absurd {
            let signature = signature(vec![spec("x", DType::F32, dims)]);
            PLAIN.inputs(&signature, &BTreeMap::new()).unwrap_err();
        }
        let many = signature(vec![spec("x", DType::F32, &["1", "60000000"]); 2]);
        PLAIN.inputs(&many, &BTreeMap::new()).unwrap_err();
    }

    /// What is found for a model that takes what `takes` says.
    fn found(
        inputs: Vec<TensorSpec>,
        takes: impl Fn(&Inputs) -> Result<Duration, &'static str>,
    ) -> (Result<Example, NoneSuits>, usize) {
        let mut runs = 0;
        let found = suitable(&signature(inputs), &BTreeMap::new(), &mut |inputs| {
            runs += 1;
            takes(inputs)
        });
        (found.map(|(example, _)| example), runs)
    }

    #[test]
    fn the_largest_that_runs_quickly_is_taken() {
        let image = || vec![spec("x", DType::F32, &["n", "3", "h", "w"])];
        let quick = Duration::ZERO;
        let (any, runs) = found(image(), |_| Ok(quick));
        assert_eq!((any.unwrap().free, runs), (320, 4));
        let slow = limits::EXAMPLE_QUICK * 2;
        let (plainest, runs) = found(image(), |_| Ok(slow));
        assert_eq!((plainest.unwrap().free, runs), (1, 1));
        // Two halvings of the size.
        let even = |inputs: &Inputs| match inputs[0].1.shape[2] % 4 {
            0 => Ok(quick),
            _ => Err("odd"),
        };
        assert_eq!(found(image(), even).0.unwrap().free, 320);
        // A table of 64 positions.
        let short = |inputs: &Inputs| match inputs[0].1.shape[1] {
            ..=64 => Ok(quick),
            _ => Err("out of range"),
        };
        let tokens = vec![spec("ids", DType::I32, &["n", "length"])];
        let example = found(tokens, short).0.unwrap();
        assert_eq!(example, Example { first: 1, free: 64, integer: 1 });
    }

    #[test]
    fn what_needs_another_first_axis_or_an_integer_of_zero_is_found() {
        let rows = |least: usize, integer: u8| {
            move |inputs: &Inputs| {
                let tensor = &inputs[0].1;
                let fits = tensor.shape[0] >= least && tensor.data[0] == integer;
                if fits { Ok(Duration::ZERO) } else { Err("no") }
            }
        };
        let frames = || vec![spec("frames", DType::I16, &["time", "80"])];
        assert_eq!(found(frames(), rows(1, 0)).0.unwrap().integer, 0);
        let example = found(frames(), rows(10, 1)).0.unwrap();
        assert_eq!(example, Example { first: 320, free: 320, integer: 1 });
    }

    #[test]
    fn nothing_is_tried_twice_and_the_plainest_reason_is_told() {
        let fixed = || vec![spec("x", DType::F32, &["1", "4"])];
        let (none, runs) = found(fixed(), |_| Err("it does not suit"));
        assert_eq!(runs, 1);
        assert!(none.unwrap_err().to_string().ends_with("it does not suit"));
        let (none, runs) = found(vec![spec("x", DType::I8, &["n"])], |inputs| {
            Err(if inputs[0].1.len() == 1 { "one" } else { "many" })
        });
        assert_eq!((none.unwrap_err().0.as_str(), runs), ("one", 8));
        let (one, runs) = found(Vec::new(), |_| Ok(Duration::ZERO));
        assert!(one.is_ok() && runs == 1, "a model without inputs");
    }
}
