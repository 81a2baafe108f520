//! Several requests as one run: which fit together, their inputs one below the other, and the outputs apart
//! again. Rows are what stands along the first axis.

use std::sync::Arc;

use crate::onnx::{DType, ExecError, Tensor};
use crate::schedule::Batching;
use crate::units::Digest;

use super::job::Request;
use super::shapes::Shapes;
use super::variant::{Ender, Runner};

/// A session that runs several requests as one; see [`check_rows`](super::check_rows) for whether it may.
pub struct Batched {
    pub session: Box<dyn Runner>,
    pub batching: Batching,
}

impl Runner for Batched {
    fn run(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
    ) -> Result<Vec<Tensor>, ExecError> {
        self.session.run(inputs, wanted)
    }

    fn batching(&self) -> Batching {
        self.batching
    }

    fn cpu(&self) -> Option<usize> {
        self.session.cpu()
    }

    fn ender(&mut self) -> Option<Ender> {
        self.session.ender()
    }

    fn is_lost(&self) -> bool {
        self.session.is_lost()
    }

    fn shapes(&self) -> Option<Arc<Shapes>> {
        self.session.shapes()
    }
}

/// Rows of a request, and what it may run together with: requests for the same outputs whose inputs have the
/// same names, types and shapes but for the first axis. No kind where its inputs have not all the same number
/// of rows, or it has as many as may run together already.
pub(super) fn kind(request: &Request, batching: Batching) -> (usize, Option<Digest>) {
    if batching.rows <= 1 {
        return (1, None);
    }
    let mut rows = request.inputs.iter().map(|(_, tensor)| tensor.shape.first().copied());
    let Some(Some(first)) = rows.next() else { return (1, None) };
    if first == 0 || rows.any(|rows| rows != Some(first)) {
        return (1, None);
    }
    let texts = request.inputs.iter().any(|(_, tensor)| tensor.dtype == DType::String);
    let fits = first < batching.rows && !texts;
    (first, fits.then(|| digest(request)))
}

fn digest(request: &Request) -> Digest {
    let mut inputs: Vec<_> = request.inputs.iter().collect();
    inputs.sort_by_key(|(name, _)| name);
    let mut bytes = Vec::new();
    // Lengths before what has none of its own, so that no two kinds read alike.
    let number = |bytes: &mut Vec<u8>, number: usize| {
        bytes.extend_from_slice(&(number as u64).to_le_bytes());
    };
    let text = |bytes: &mut Vec<u8>, text: &str| {
        number(bytes, text.len());
        bytes.extend_from_slice(text.as_bytes());
    };
    number(&mut bytes, inputs.len());
    for (name, tensor) in inputs {
        text(&mut bytes, name);
        number(&mut bytes, tensor.dtype as usize);
        number(&mut bytes, tensor.shape.len());
        tensor.shape.iter().skip(1).for_each(|size| number(&mut bytes, *size));
    }
    request.wanted.iter().for_each(|name| text(&mut bytes, name));
    Digest::of(&bytes)
}

/// The inputs of requests of one kind, one below the other. `None` where they do not fit together after all.
pub(super) fn gather(requests: &[&Request]) -> Option<Vec<(String, Tensor)>> {
    let first = requests.first()?;
    let gathered = first.inputs.iter().map(|(name, like)| {
        let of_request = |request: &&Request| {
            let (_, tensor) = request.inputs.iter().find(|(other, _)| other == name)?;
            let fits =
                tensor.dtype == like.dtype && tensor.shape.get(1..)? == like.shape.get(1..)?;
            fits.then(|| tensor.clone())
        };
        let tensors = requests.iter().map(of_request).collect::<Option<Vec<Tensor>>>()?;
        let mut shape = like.shape.clone();
        *shape.first_mut()? = tensors.iter().map(|tensor| tensor.shape[0]).sum();
        let mut data = Vec::with_capacity(tensors.iter().map(|tensor| tensor.data.len()).sum());
        tensors.iter().for_each(|tensor| data.extend_from_slice(&tensor.data));
        Some((name.clone(), Tensor { dtype: like.dtype, shape, data: data.into() }))
    });
    gathered.collect()
}

/// The outputs of each request, given its rows; they lie in the memory of the whole.
///
/// # Errors
/// Where an output has not as many rows as went in.
pub(super) fn scatter(outputs: &[Tensor], rows: &[usize]) -> Result<Vec<Vec<Tensor>>, String> {
    let all: usize = rows.iter().sum();
    let mut apart = vec![Vec::with_capacity(outputs.len()); rows.len()];
    for output in outputs {
        let (Some(found), Some(_)) = (output.shape.first(), output.dtype.size()) else {
            return Err("an output has no rows".to_owned());
        };
        if *found != all {
            return Err(format!("an output has {found} rows where {all} went in"));
        }
        let row = output.data.len() / all.max(1);
        let mut begin = 0;
        for (own, rows) in apart.iter_mut().zip(rows) {
            let end = begin + row * rows;
            let mut shape = output.shape.clone();
            shape[0] = *rows;
            own.push(Tensor { dtype: output.dtype, shape, data: output.data.slice(begin..end) });
            begin = end;
        }
    }
    Ok(apart)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn request(inputs: Vec<(&str, Tensor)>, wanted: &[&str]) -> Request {
        Request {
            inputs: inputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect(),
            wanted: wanted.iter().map(|name| (*name).to_owned()).collect(),
            arrived: Instant::now(),
            decode: Duration::ZERO,
            timeout: None,
            priority: 0,
        }
    }

    fn zeros(shape: &[usize]) -> Tensor {
        Tensor::from_f32(shape, &vec![0.0; shape.iter().product()])
    }

    #[test]
    fn requests_of_one_kind_differ_in_their_rows_and_values_only() {
        let batching = Batching { rows: 4, delay: Duration::ZERO };
        let of = |inputs, wanted: &[&str]| kind(&request(inputs, wanted), batching);
        let (rows, one) = of(vec![("a", zeros(&[1, 3])), ("b", zeros(&[1]))], &["y"]);
        assert!(rows == 1 && one.is_some());
        let (rows, swapped) = of(vec![("b", zeros(&[2])), ("a", zeros(&[2, 3]))], &["y"]);
        assert_eq!((rows, swapped), (2, one), "the order of inputs does not matter");
        for (inputs, wanted) in [
            (vec![("a", zeros(&[1, 4])), ("b", zeros(&[1]))], ["y"]),
            (vec![("a", zeros(&[1, 3])), ("c", zeros(&[1]))], ["y"]),
            (vec![("a", zeros(&[1, 3])), ("b", zeros(&[1]))], ["z"]),
            (vec![("a", zeros(&[1, 3])), ("b", Tensor::from_i64(&[1], &[0]))], ["y"]),
        ] {
            let (_, other) = of(inputs, &wanted);
            assert!(other.is_some() && other != one);
        }
        assert_eq!(of(vec![("a", zeros(&[4, 3]))], &["y"]), (4, None), "as many as may be");
        assert_eq!(of(vec![("a", zeros(&[9, 3]))], &["y"]), (9, None));
        assert_eq!(of(vec![("a", zeros(&[1, 3])), ("b", zeros(&[2]))], &["y"]), (1, None));
        assert_eq!(of(vec![("a", zeros(&[]))], &["y"]), (1, None));
        assert_eq!(of(vec![("a", zeros(&[0, 3]))], &["y"]), (1, None));
        assert_eq!(of(vec![("a", Tensor::from_strings(&[1], &["t"]))], &["y"]), (1, None));
        let off = request(vec![("a", zeros(&[3, 3]))], &["y"]);
        assert_eq!(kind(&off, Batching::OFF), (1, None));
    }

    #[test]
    fn outputs_with_other_rows_than_went_in_are_refused() {
        assert!(
            scatter(&[zeros(&[3, 2])], &[1, 1]).unwrap_err().contains("3 rows where 2 went in")
        );
        scatter(&[zeros(&[])], &[1, 1]).unwrap_err();
        scatter(&[Tensor::from_strings(&[2], &["a", "b"])], &[1, 1]).unwrap_err();
    }

    proptest! {
        #[test]
        fn what_was_put_together_comes_apart_again(
            rows in prop::collection::vec(1usize..4, 1..6), width in 0usize..4,
        ) {
            let mut next = 0.0;
            let mut tensor = |shape: &[usize]| {
                let values = (0..shape.iter().product()).map(|_| { next += 1.0; next });
                Tensor::from_f32(shape, &values.collect::<Vec<f32>>())
            };
            let requests: Vec<Request> = rows
                .iter()
                .map(|n| request(vec![("a", tensor(&[*n, width])), ("b", tensor(&[*n]))], &["y"]))
                .collect();
            let gathered = gather(&requests.iter().collect::<Vec<_>>()).unwrap();
            prop_assert_eq!(&gathered[1].1.shape, &[rows.iter().sum::<usize>()]);
            let outputs: Vec<Tensor> = gathered.into_iter().map(|(_, tensor)| tensor).collect();
            let apart = scatter(&outputs, &rows).unwrap();
            for (request, outputs) in requests.iter().zip(apart) {
                let inputs = request.inputs.iter().map(|(_, tensor)| tensor.clone());
                prop_assert_eq!(outputs, inputs.collect::<Vec<_>>());
            }
        }
    }
}
