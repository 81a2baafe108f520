//! Values inside a network, computed piece by piece and kept within bounds.

#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use blochd::onnx::{Graph, Model};
use blochd::spectra::activations::{Activations, Batch};
use nets::{Chance, Net};
use proptest::prelude::*;
use subject::{Subject, engine};

const BATCHES: u64 = 7;

/// Convolutions that make values smaller and smaller, with a way around one of them.
fn pyramid() -> Model {
    let mut net = Net::plain(9);
    let x = net.input(3, 12, 12);
    let wide = net.conv(&x, 8, 3, 1, 1);
    let active = net.unary("Relu", &wide);
    let branch = net.conv(&active, 8, 3, 1, 1);
    let sum = net.binary("Add", &branch, &active.name);
    let half = net.conv(&sum, 6, 3, 2, 1);
    let small = net.conv(&half, 4, 3, 2, 1);
    net.output(&small.name);
    net.model()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_bound_keeps_the_first_batches_of_large_values_and_changes_no_number(
        bytes in 0usize..40_000, least in 1usize..4, order in any::<u64>(), forget in any::<bool>()
    ) {
        let model = pyramid();
        let batches: Vec<Batch> = (0..BATCHES)
            .map(|seed| Subject::new(pyramid(), &[], seed).inputs.into_iter().collect())
            .collect();
        let engine = engine();
        let graph = Graph::new(&model);
        let values: Vec<&str> =
            graph.nodes().iter().map(|node| node.output[0].as_str()).collect();
        let mut whole = Activations::new(&engine, &batches).bounded(usize::MAX, usize::MAX);
        whole.fetch(&model, &values).unwrap();
        let samples = batches[0].values().next().unwrap().shape[0];
        let mut bounded = Activations::new(&engine, &batches).bounded(least * samples, bytes);
        let mut chance = Chance(order);
        for (id, value) in values.iter().enumerate() {
            if chance.below(3) == 0 {
                continue;
            }
            if forget {
                bounded.forget_before(&model, id);
            }
            bounded.fetch(&model, &[value]).unwrap();
            let (found, all) = (bounded.get(value).unwrap(), whole.get(value).unwrap());
            prop_assert_eq!(all.len(), BATCHES as usize);
            let room = (bytes / all[0].data.len()).max(least).min(BATCHES as usize);
            prop_assert_eq!(found.len(), room, "{}", value);
            for (found, all) in found.iter().zip(all) {
                let (found, all) = (found.to_f32().unwrap(), all.to_f32().unwrap());
                prop_assert!(found.iter().zip(&all).all(|(a, b)| (a - b).abs() < 1e-4));
            }
        }
    }
}
