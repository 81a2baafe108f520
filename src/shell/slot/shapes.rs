//! A bound on the input shapes of a model that is compiled anew for each combination of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use crate::onnx::Tensor;

use super::error::Refusal;

type Key = BTreeMap<String, Vec<usize>>;

/// The combinations of input shapes that sessions are asked for: the first so many, and no others. What was
/// compiled is kept for as long as the session lives, and takes seconds to minutes to make.
#[derive(Debug)]
pub struct Shapes {
    /// What runs the model, for people.
    provider: String,
    most: usize,
    served: Mutex<BTreeSet<Key>>,
}

impl Shapes {
    /// At most `most` combinations, among them those of `all`, which the sessions have run.
    pub fn new(provider: String, most: usize, all: &[Vec<(String, Tensor)>]) -> Self {
        let served = all.iter().map(|inputs| key(inputs)).collect();
        Self { provider, most: most.max(1), served: Mutex::new(served) }
    }

    /// Lets a request in whose shapes are known, or may still become so.
    ///
    /// # Errors
    /// A refusal that names the shapes that are served.
    pub fn admit(&self, inputs: &[(String, Tensor)]) -> Result<(), Refusal> {
        let asked = key(inputs);
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served.contains(&asked) {
            return Ok(());
        }
        if served.len() < self.most {
            let (provider, shapes) = (&self.provider, text(&asked));
            tracing::info!(
                provider,
                "is asked for new input shapes, and may compile them: {shapes}"
            );
            served.insert(asked);
            return Ok(());
        }
        let all: Vec<String> = served.iter().map(text).collect();
        let (provider, served) = (self.provider.clone(), all.join(", "));
        Err(Refusal::Shape { provider, asked: text(&asked), served })
    }
}

fn key(inputs: &[(String, Tensor)]) -> Key {
    inputs.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect()
}

/// `{x: [1, 3], y: [2]}`.
fn text(key: &Key) -> String {
    let one = |(name, shape): (&String, &Vec<usize>)| format!("{name}: {shape:?}");
    format!("{{{}}}", key.iter().map(one).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_shapes_are_served_and_one_more_is_told_which_these_are() {
        let inputs = |rows: i64| {
            let tensor = Tensor::from_i64(&[1, rows as usize], &vec![0; rows as usize]);
            vec![("y".to_owned(), tensor.clone()), ("x".to_owned(), tensor)]
        };
        let shapes = Shapes::new("npu".to_owned(), 2, &[inputs(3)]);
        assert_eq!(shapes.admit(&inputs(4)), Ok(()));
        let refusal = shapes.admit(&inputs(5)).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "the inputs {x: [1, 5], y: [1, 5]} are of other shapes than npu serves this model in: \
             {x: [1, 3], y: [1, 3]}, {x: [1, 4], y: [1, 4]}"
        );
        // In whatever order a client names them.
        let mut turned = inputs(3);
        turned.reverse();
        assert_eq!((shapes.admit(&turned), shapes.admit(&inputs(4))), (Ok(()), Ok(())));
    }
}
