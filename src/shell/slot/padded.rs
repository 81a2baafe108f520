//! Batches where only a few sizes are compiled: requests that run as one are filled up with rows to the next
//! size that is, and what comes of those is thrown away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::onnx::{ExecError, Tensor};
use crate::protocol::Inputs;
use crate::schedule::Batching;

use super::shapes::Shapes;
use super::variant::{Ender, Runner};

/// The numbers of rows that are served in whatever sizes the other axes have, of requests in all shapes that
/// are; none where inputs have not all the same number.
pub fn row_sizes(all: &[Inputs]) -> BTreeSet<usize> {
    let mut by_others: BTreeMap<Vec<(&str, &[usize])>, BTreeSet<usize>> = BTreeMap::new();
    for inputs in all {
        let lent: Vec<(&str, &Tensor)> =
            inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let Some(rows) = rows_of(&lent) else { return BTreeSet::new() };
        let others = lent.iter().map(|(name, tensor)| (*name, &tensor.shape[1..]));
        by_others.entry(others.collect()).or_default().insert(rows);
    }
    let mut sizes = by_others.into_values();
    let Some(first) = sizes.next() else { return BTreeSet::new() };
    sizes.fold(first, |all, own| all.intersection(&own).copied().collect())
}

/// The rows of inputs that all have the same number, at least one.
fn rows_of(inputs: &[(&str, &Tensor)]) -> Option<usize> {
    let mut rows = inputs.iter().map(|(_, tensor)| tensor.shape.first().copied());
    let first = rows.next()??;
    (first > 0 && rows.all(|rows| rows == Some(first))).then_some(first)
}

/// A session that is given sizes out of a list alone, as far as these go.
pub struct Padded {
    pub session: Box<dyn Runner>,
    pub sizes: BTreeSet<usize>,
}

impl Runner for Padded {
    fn run(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
    ) -> Result<Vec<Tensor>, ExecError> {
        let next = rows_of(inputs).and_then(|rows| Some((rows, *self.sizes.range(rows..).next()?)));
        let Some((rows, size)) = next.filter(|(rows, size)| size > rows) else {
            return self.session.run(inputs, wanted);
        };
        let failed = |reason: String| ExecError { doing: "filling a batch".to_owned(), reason };
        let filled: Option<Vec<Tensor>> =
            inputs.iter().map(|(_, tensor)| filled(tensor, rows, size)).collect();
        let filled = filled.ok_or_else(|| failed("an input has no rows".to_owned()))?;
        let lent: Vec<(&str, &Tensor)> =
            inputs.iter().zip(&filled).map(|((name, _), tensor)| (*name, tensor)).collect();
        let outputs = self.session.run(&lent, wanted)?;
        let outputs = outputs.into_iter().map(|output| {
            let found = output.shape.clone();
            cut(output, rows, size)
                .ok_or_else(|| failed(format!("an output {found:?} has not the {size} rows")))
        });
        outputs.collect()
    }

    fn batching(&self) -> Batching {
        self.session.batching()
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

/// A tensor with its last row again and again: it is a row that the model takes.
fn filled(tensor: &Tensor, rows: usize, size: usize) -> Option<Tensor> {
    tensor.dtype.size()?;
    let row = tensor.data.len() / rows;
    let mut data = Vec::with_capacity(row * size);
    data.extend_from_slice(&tensor.data);
    for _ in rows..size {
        data.extend_from_slice(&tensor.data[row * (rows - 1)..row * rows]);
    }
    let mut shape = tensor.shape.clone();
    *shape.first_mut()? = size;
    Some(Tensor { dtype: tensor.dtype, shape, data: data.into() })
}

/// The first rows of an output of `size` rows; they lie in its memory.
fn cut(output: Tensor, rows: usize, size: usize) -> Option<Tensor> {
    output.dtype.size()?;
    if output.shape.first() != Some(&size) {
        return None;
    }
    let end = output.data.len() / size * rows;
    let mut shape = output.shape;
    shape[0] = rows;
    Some(Tensor { dtype: output.dtype, shape, data: output.data.slice(..end) })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn request(shapes: &[&[usize]]) -> Inputs {
        let zeros = |shape: &[usize]| Tensor::from_f32(shape, &vec![0.0; shape.iter().product()]);
        shapes.iter().enumerate().map(|(at, shape)| (format!("x{at}"), zeros(shape))).collect()
    }

    #[test]
    fn sizes_are_those_that_are_served_with_all_others() {
        let of = |all: &[&[&[usize]]]| -> Vec<usize> {
            let all: Vec<Inputs> = all.iter().map(|shapes| request(shapes)).collect();
            row_sizes(&all).into_iter().collect()
        };
        assert_eq!(of(&[&[&[1, 3]], &[&[4, 3]], &[&[1, 3]]]), [1, 4]);
        assert_eq!(of(&[&[&[1, 3]], &[&[4, 3]], &[&[1, 5]], &[&[2, 5]]]), [1]);
        assert_eq!(of(&[&[&[1, 3]], &[&[4, 5]]]), [0; 0]);
        assert_eq!(of(&[&[&[2, 3], &[2]], &[&[1, 3], &[1]]]), [1, 2]);
        assert_eq!(of(&[&[&[2, 3], &[1]]]), [0; 0], "they have not the same rows");
        assert_eq!(of(&[&[&[]]]), [0; 0]);
        assert_eq!(of(&[]), [0; 0]);
    }

    #[test]
    fn a_batch_is_filled_with_its_last_row_and_gives_its_own_rows_alone() {
        let seen: Arc<Mutex<Vec<Vec<f32>>>> = Arc::default();
        let told = Arc::clone(&seen);
        let session = move |inputs: &[(&str, &Tensor)], _: &[&str]| {
            let values = inputs[0].1.to_f32().unwrap();
            told.lock().unwrap().push(values.clone());
            let doubled: Vec<f32> = values.iter().map(|value| 2.0 * value).collect();
            Ok(vec![Tensor::from_f32(&inputs[0].1.shape, &doubled)])
        };
        let mut padded = Padded { session: Box::new(session), sizes: [1, 4].into() };
        let mut ask = |values: &[f32]| {
            let tensor = Tensor::from_f32(&[values.len() / 2, 2], values);
            let answer = padded.run(&[("x", &tensor)], &["y"]).unwrap().remove(0);
            assert_eq!(answer.shape, tensor.shape);
            answer.to_f32().unwrap()
        };
        assert_eq!(ask(&[1.0, 2.0]), [2.0, 4.0]);
        assert_eq!(ask(&[1.0, 2.0, 3.0, 4.0]), [2.0, 4.0, 6.0, 8.0]);
        // Larger than any size: the session has the word.
        assert_eq!(ask(&[0.5; 10]), [1.0; 10]);
        let expected: [&[f32]; 3] =
            [&[1.0, 2.0], &[1.0, 2.0, 3.0, 4.0, 3.0, 4.0, 3.0, 4.0], &[0.5; 10]];
        assert_eq!(*seen.lock().unwrap(), expected);
    }

    #[test]
    fn outputs_without_those_rows_are_no_answers() {
        let session = |_: &[(&str, &Tensor)], _: &[&str]| Ok(vec![Tensor::from_f32(&[1], &[0.0])]);
        let mut padded = Padded { session: Box::new(session), sizes: [4].into() };
        let tensor = Tensor::from_f32(&[2, 1], &[0.0, 1.0]);
        let words = padded.run(&[("x", &tensor)], &["y"]).unwrap_err().to_string();
        assert!(words.contains("has not the 4 rows"), "{words}");
    }
}
