//! What the repair behind a cut promises, held against ONNX Runtime.

#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use std::collections::BTreeMap;

use blochd::coupling::{blocks, couple};
use blochd::ladder::plan::{Known, Plan};
use blochd::ladder::quality::{agreement, outputs};
use blochd::onnx::{Graph, Model, Tensor};
use blochd::spectra::activations::Batch;
use blochd::surgery::Gone;
use blochd::surgery::repair::{Mode, Repair};
use nets::{Chance, Net};
use subject::{Subject, engine};

/// stem → block with a linear branch → Relu → convolution.
fn linear_block(seed: u64) -> Model {
    let mut net = Net::plain(seed);
    let x = net.input(3, 10, 10);
    let stem = net.conv(&x, 8, 3, 1, 1);
    let branch = net.conv(&stem, 8, 1, 1, 1);
    let sum = net.binary("Add", &branch, &stem.name);
    let active = net.unary("Relu", &sum);
    let out = net.conv(&active, 4, 3, 1, 1);
    net.output(&out.name);
    net.model()
}

fn samples(model: &Model, count: usize) -> Vec<Batch> {
    let mut chance = Chance(9);
    let name = model.graph().input[0].name.clone().unwrap();
    let values: Vec<f32> = (0..count * 300).map(|_| chance.real()).collect();
    vec![Batch::from([(name, Tensor::from_f32(&[count, 3, 10, 10], &values))])]
}

/// A block whose branch is linear is no loss: what stands before it can say the sum itself. What stands
/// behind it could not make up for that, for a Relu lies between.
#[test]
fn what_stands_before_a_removed_block_takes_over_its_branch() {
    let model = linear_block(5);
    let subject = Subject::new(model.clone(), &[], 5);
    let graph = Graph::new(&model);
    let coupling = couple(&graph, &subject.shapes);
    let found = blocks(&graph, &coupling, &subject.shapes);
    assert_eq!(found.len(), 1);
    let known = Known {
        graph: &graph,
        shapes: &subject.shapes,
        coupling: &coupling,
        blocks: &found,
        scored: BTreeMap::new(),
    };
    let plan = Plan { bypass: [0].into(), ..Plan::default() };
    let cut = known.carry_out(&plan).unwrap();
    let batches = samples(&model, 60);
    let stands_for = known.stands_for(&plan);
    let stem = graph.node(graph.producer(&found[0].shortcut).unwrap());
    assert_eq!(stands_for.keys().collect::<Vec<_>>(), [&stem.output[0]]);
    let engine = engine();
    let explained = |stands_for: &BTreeMap<String, String>| {
        let repair = Repair {
            engine: &engine,
            dense: &model,
            gone: &Gone::new(),
            stands_for,
            batches: &batches,
            mode: Mode::Refit,
            seed: 1,
        };
        let (repaired, _) = repair.run(cut.clone(), &mut |_, _| {}).unwrap();
        let wanted = outputs(&engine, &model, &batches).unwrap();
        agreement(&wanted, &outputs(&engine, &repaired, &batches).unwrap(), |_| true).explained
    };
    let (with, without) = (explained(&stands_for), explained(&BTreeMap::new()));
    assert!(with > 0.999, "{with}");
    assert!(without < 0.99, "the network gives nothing to repair: {without}");
}
