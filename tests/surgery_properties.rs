//! What coupling promises and surgery does, held against ONNX Runtime: on random networks, on the
//! committed models, and on models that nobody made for us (directories in `BLOCHD_EXTRA_MODELS`).
//!
//! The measure of a cut: a model without some channels computes what the dense one computes once nobody
//! hears them. That holds for any legal cut, whatever the activations; a wrong index map breaks it.

#[path = "nets/fused.rs"]
mod fused;
#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/old.rs"]
mod old;
#[path = "nets/pointwise.rs"]
mod pointwise;
#[path = "nets/steps.rs"]
mod steps;
#[path = "nets/subject.rs"]
mod subject;
#[path = "nets/transformer.rs"]
mod transformer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use blochd::coupling::{
    Epsilon, Group, GroupId, Neutral, Norm, blocks, couple, norms, operators_with_rules,
};
use blochd::onnx::{Graph, Model, Patch, Use, operators};
use blochd::shell::models;
use blochd::surgery::merge::{Merge, merge};
use blochd::surgery::{Cut, CutError, apply, gone};
use faer::Mat;
use nets::{Chance, Image, Net, attr_int};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use subject::{Subject, check_cut, difference, listing};

fn random_net(kinds: &[usize], seed: u64, quiet: bool) -> Model {
    let mut net = Net::new(seed);
    net.quiet = quiet;
    let x = net.input(3, 8, 8);
    let first = net.conv(&x, 8, 3, 1, 1);
    let mut image = net.activation(&first);
    for kind in kinds {
        image = steps::step(&mut net, &image, *kind);
    }
    let out = steps::head(&mut net, &image);
    net.output(&out);
    net.model()
}

/// The model in which channel `gone` of a group is merged into channel `twin`.
fn merged(subject: &Subject, group: &Group, gone: usize, twin: usize) -> Model {
    let kept: Vec<usize> = (0..group.width).filter(|channel| *channel != gone).collect();
    let is_own =
        |row: usize, channel: usize| kept[row] == channel || (kept[row] == twin && channel == gone);
    let shares = |twins: f64| {
        Mat::from_fn(kept.len(), group.width, |row, channel| match is_own(row, channel) {
            true if kept[row] == twin => twins,
            own => f64::from(u8::from(own)),
        })
    };
    let read = group.consumers.iter().map(|consumer| (consumer.node, shares(1.0))).collect();
    let one = Merge { kept: kept.clone(), written: Some(shares(0.5)), read };
    merge(&subject.model, &subject.coupling, &[(group.id, one)].into()).unwrap()
}

/// A network of operator set 9.
fn old_net(kinds: &[usize], seed: u64) -> Model {
    let mut net = Net::old(seed);
    let x = net.input(3, 8, 8);
    let mut image = net.conv(&x, 8, 3, 1, 1);
    for kind in kinds {
        image = old::step(&mut net, &image, *kind);
    }
    let pooled = net.node("GlobalAveragePool", &[&image.name], Vec::new());
    let flat = net.node("Flatten", &[&pooled], Vec::new());
    let out = net.gemm(&flat, image.c, 5);
    net.output(&out);
    net.model()
}

fn cases(count: u32) -> ProptestConfig {
    let failure_persistence =
        Some(Box::new(FileFailurePersistence::WithSource("regressions")) as _);
    ProptestConfig {
        cases: count,
        max_shrink_iters: 200,
        failure_persistence,
        ..Default::default()
    }
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..steps::KINDS, 1..6)
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_cut_model_computes_what_dense_computes_when_nobody_hears_the_channels(
        kinds in pieces(),
        seed in any::<u64>(),
    ) {
        let subject = Subject::new(random_net(&kinds, seed, false), &[], seed);
        let cut = subject.cut(&mut Chance(seed ^ 1));
        check_cut(&subject, &cut, 2e-4);
    }

    #[test]
    fn the_same_holds_for_the_forms_of_old_operator_sets(
        kinds in prop::collection::vec(0..old::KINDS, 1..5),
        seed in any::<u64>(),
    ) {
        let subject = Subject::new(old_net(&kinds, seed), &[], seed);
        check_cut(&subject, &subject.cut(&mut Chance(seed ^ 1)), 2e-4);
    }

    #[test]
    fn removing_channels_that_are_zero_changes_no_output(
        kinds in pieces(),
        seed in any::<u64>(),
    ) {
        // No biases and activations with f(0) = 0: a channel without weights is silent up to its readers. (A
        // normalisation that takes the mean off makes something of it: tests/coupling_norms.rs.)
        let mut subject = Subject::new(random_net(&kinds, seed, true), &[], seed);
        let mut cut = subject.cut(&mut Chance(seed ^ 2));
        cut.removed.retain(|id, _| subject.coupling.groups[id.0].neutral == Neutral::Zero);
        subject.model = subject.emptied(&cut);
        let error = difference(&subject.run(&subject.apply(&cut)), &subject.run(&subject.model));
        prop_assert!(error < 2e-4, "{error}\n{cut:?}\n{}", listing(&subject.model));
    }

    #[test]
    fn of_two_equal_channels_one_can_go_once_its_readers_hear_the_other_instead(
        kinds in pieces(),
        seed in any::<u64>(),
    ) {
        let mut subject = Subject::new(random_net(&kinds, seed, false), &[], seed);
        let mut chance = Chance(seed ^ 4);
        // A normalisation counts a channel that says the same as another one for itself.
        let free = |group: &&Group| subject.norms_of(group).is_empty();
        let wide: Vec<_> = subject.coupling.groups.iter().filter(free).collect();
        if wide.is_empty() {
            return Ok(());
        }
        let group = wide[chance.below(wide.len())].clone();
        let gone = chance.below(group.width);
        let twin = (gone + 1 + chance.below(group.width - 1)) % group.width;
        subject.model = subject.with_twins(&group, twin, gone);
        // Where channels are blocks and a part of them is shifted against the rest, their indices do not
        // answer to each other in order.
        if subject.shifts(&group) && !subject.are_twins(&group, twin, gone) {
            return Ok(());
        }
        let cut = Cut { removed: [(group.id, [gone].into())].into() };
        let folded = subject.folded(&group, gone, twin);
        let merged = merged(&subject, &group, gone, twin);
        for one in [folded, merged] {
            let cut_model = apply(&one, &subject.coupling, &subject.shapes, &cut).unwrap();
            let error = difference(&subject.run(&cut_model), &subject.run(&subject.model));
            prop_assert!(error < 2e-4, "{error} {gone} {twin} {group:?}\n{}", listing(&subject.model));
        }
    }

    #[test]
    fn a_removed_block_computes_what_its_empty_branch_computes(
        kinds in prop::collection::vec(prop::sample::select(vec![0, 1, 1, 2, 26, 26, 23, 24, 5, 8]), 2..6),
        seed in any::<u64>(),
    ) {
        let mut subject = Subject::new(random_net(&kinds, seed, true), &[], seed);
        let graph = Graph::new(&subject.model);
        let found = blocks(&graph, &subject.coupling, &subject.shapes);
        let Some(block) = found.first() else { return Ok(()) };
        let sum = graph.node(block.add).output[0].clone();
        let replace = BTreeMap::from([(sum, block.shortcut.clone())]);
        let bypassed = Patch { replace, ..Patch::default() }.apply(&subject.model).unwrap();
        for id in &block.groups {
            let places = &subject.coupling.groups[id.0].places;
            let left = Graph::new(&bypassed);
            let dead = |value: &str| left.producer(value).is_none() && left.weight(value).is_none();
            prop_assert!(places.iter().all(|place| dead(&place.value)), "{id:?} outlives its block");
        }
        subject.model = subject.without_rows(&[block.last]);
        let error = difference(&subject.run(&bypassed), &subject.run(&subject.model));
        prop_assert!(error < 1e-5, "{error}\n{block:?}\n{}", listing(&subject.model));
    }

    #[test]
    fn an_empty_cut_changes_no_byte_and_a_second_decoding_no_bit_of_any_output(
        kinds in pieces(),
        seed in any::<u64>(),
    ) {
        let subject = Subject::new(random_net(&kinds, seed, false), &[], seed);
        let bytes = subject.model.encode_inline().unwrap();
        prop_assert_eq!(&subject.apply(&Cut::default()).encode_inline().unwrap(), &bytes);
        let again = Model::decode(bytes.into()).unwrap();
        prop_assert_eq!(subject.run(&again), subject.run(&subject.model));
    }

    #[test]
    fn what_is_not_cut_stays_the_same_bytes(kinds in pieces(), seed in any::<u64>()) {
        let subject = Subject::new(random_net(&kinds, seed, false), &[], seed);
        let cut = subject.cut(&mut Chance(seed ^ 3));
        let model = subject.apply(&cut);
        let (before, after) = (Graph::new(&subject.model), Graph::new(&model));
        let removed = gone(&subject.coupling, &cut).unwrap();
        let told = |norm: &Norm| removed.keys().any(|(value, _)| *value == norm.output);
        let epsilons: Vec<&str> = (norms(&before).iter().filter(|norm| told(norm)))
            .filter_map(|norm| match norm.epsilon {
                Epsilon::Constant(node, input) => before.input(node, input),
                Epsilon::None | Epsilon::Attribute(_) => None,
            })
            .collect();
        for (name, _) in before.weights().filter(|(name, _)| !epsilons.contains(name)) {
            let Some(new) = after.weight_bytes(name).unwrap() else { continue };
            let old = before.weight_bytes(name).unwrap().unwrap();
            if before.weight_dims(name) == after.weight_dims(name) && before.floats(name).is_some() {
                prop_assert_eq!(old.as_ptr(), new.as_ptr(), "{} was copied", name);
            }
        }
    }

    #[test]
    fn no_damaged_model_brings_coupling_or_surgery_down(
        kinds in pieces(),
        seed in any::<u64>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..=255), 1..6),
    ) {
        let subject = Subject::new(random_net(&kinds, seed, false), &[], seed);
        let mut bytes = subject.model.encode_inline().unwrap();
        for (at, mask) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
        }
        // The shapes and cuts of the sound model, and its coupling: nothing has to fit.
        if let Ok(model) = Model::decode(bytes.into()) {
            let graph = Graph::new(&model);
            let coupling = couple(&graph, &subject.shapes);
            let _ = blocks(&graph, &coupling, &subject.shapes);
            let cut = subject.cut(&mut Chance(seed));
            let _ = apply(&model, &coupling, &subject.shapes, &cut);
            let _ = apply(&model, &subject.coupling, &subject.shapes, &cut);
        }
    }
}

fn fixture(name: &str) -> Subject {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/fixtures").join(name);
    Subject::new(models::load(&path).unwrap(), &[("2", 28), ("3", 28)], 7)
}

#[test]
fn every_piece_of_the_generator_has_channels_that_can_go() {
    for kind in 0..steps::KINDS {
        let cut = (0..12).any(|seed| {
            let subject = Subject::new(random_net(&[kind], seed, false), &[], seed);
            !subject.cut(&mut Chance(seed)).removed.is_empty()
        });
        assert!(cut, "networks with piece {kind} are never cut: the properties say nothing of it");
    }
}

/// Operators that only stand in the way of channels, whatever surrounds them; where they are cut they are no more.
const HOLDING: [&str; 5] = ["Constant", "Shape", "If", "Loop", "Scan"];

#[test]
fn every_operator_with_a_rule_is_generated_and_lets_channels_through_somewhere() {
    let (mut made, mut passed) = (BTreeSet::new(), BTreeSet::new());
    let mut look = |model: Model, seed: u64| {
        let ops = |model: &Model| {
            let graph = Graph::new(model);
            (0..graph.nodes().len()).map(|node| graph.op(node)).collect::<BTreeSet<_>>()
        };
        if ops(&model).iter().all(|op| passed.contains(op)) {
            return;
        }
        made.extend(ops(&model));
        let subject = Subject::new(model, &[], seed);
        let graph = Graph::new(&subject.model);
        for place in subject.coupling.groups.iter().flat_map(|group| &group.places) {
            passed.extend(graph.producer(&place.value).map(|node| graph.op(node)));
            let readers = graph.uses(&place.value).iter().filter_map(|used| match used {
                Use::Input { node, .. } => Some(graph.op(*node)),
                Use::Captured { .. } | Use::Output => None,
            });
            passed.extend(readers);
        }
    };
    // In the youngest operator set, where all of them are.
    let young = |piece: &dyn Fn(&mut Net, &Image) -> Image, seed: u64| {
        let mut net = Net::plain(seed);
        net.opset = 24;
        let x = net.input(3, 8, 8);
        let first = net.conv(&x, 8, 3, 1, 1);
        let image = piece(&mut net, &first);
        let out = steps::head(&mut net, &image);
        net.output(&out);
        net.model()
    };
    for kind in 0..pointwise::KINDS {
        look(young(&|net, x| pointwise::around(net, x, kind), kind as u64), 1);
    }
    for seed in 0..40 {
        look(young(&fused::piece, seed), seed);
        look(young(&pointwise::control_flow, seed), seed);
    }
    for seed in 0..24 {
        (0..steps::KINDS).for_each(|kind| look(random_net(&[kind], seed, false), seed));
        (0..old::KINDS).for_each(|kind| look(old_net(&[kind], seed), seed));
    }
    let known: BTreeSet<String> = operators_with_rules().map(str::to_owned).collect();
    // What no kernel of the CPU runs is tried in tests/coupling_fused.rs.
    let without_kernel = ["com.microsoft.BiasAdd".to_owned()];
    let missing: Vec<&String> =
        known.iter().filter(|op| !made.contains(*op) && !without_kernel.contains(op)).collect();
    assert!(missing.is_empty(), "never generated: {missing:?}");
    let held: Vec<&String> = (known.iter())
        .filter(|op| !passed.contains(*op) && !without_kernel.contains(op))
        .filter(|op| !HOLDING.contains(&op.as_str()))
        .collect();
    assert!(held.is_empty(), "no channel ever passes: {held:?}");
}

#[test]
fn the_comparison_notices_when_other_channels_go_than_were_silenced() {
    for name in ["residual.onnx", "concat_dense.onnx", "channel_shuffle.onnx", "grouped_conv.onnx"]
    {
        let subject = fixture(name);
        for group in &subject.coupling.groups {
            let cut = |channel| Cut { removed: [(group.id, [channel].into())].into() };
            let (run, silent) = (subject.apply(&cut(0)), subject.silenced(&cut(1)));
            let error = difference(&subject.run(&run), &subject.run(&silent));
            assert!(error > 2e-3, "{name}, {}: {error}", group.name);
        }
    }
}

fn extra_models() -> Vec<PathBuf> {
    let Some(dirs) = std::env::var_os("BLOCHD_EXTRA_MODELS") else {
        println!("BLOCHD_EXTRA_MODELS is not set: only the committed models are tried");
        return Vec::new();
    };
    let files = std::env::split_paths(&dirs).flat_map(|dir| std::fs::read_dir(dir).unwrap());
    files.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn cuts_of_real_models_compute_what_they_should() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models");
    let committed = [root.clone(), root.join("fixtures")];
    let committed = committed.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap());
    let mut files: Vec<PathBuf> = committed.map(|entry| entry.unwrap().path()).collect();
    files.extend(extra_models());
    files.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    files.sort();
    for path in files.iter().filter(|path| !path.ends_with("custom_op.onnx")) {
        let sizes = [("0", 1), ("2", 64), ("3", 128)];
        let small = [("0", 2), ("2", 28), ("3", 28)];
        let model = models::load(path).unwrap();
        let committed = path.starts_with(&root);
        let subject = Subject::new(model, if committed { &small } else { &sizes }, 7);
        let coupling = &subject.coupling;
        let channels: usize = coupling.groups.iter().map(|group| group.width).sum();
        println!("{}: {} groups, {channels} channels", path.display(), coupling.groups.len());
        let mut frozen: BTreeMap<String, usize> = BTreeMap::new();
        for kept in &coupling.frozen {
            *frozen.entry(kept.because.to_string()).or_default() += kept.width;
        }
        frozen.iter().for_each(|(because, width)| println!("    {width} frozen: {because}"));
        for seed in 0..3 {
            let cut = subject.cut(&mut Chance(seed));
            // Half precision and hundreds of layers round differently once sums are shorter.
            let tolerance =
                if committed && !path.ends_with("f16_throughout.onnx") { 1e-4 } else { 5e-3 };
            println!("    difference {}", check_cut(&subject, &cut, tolerance));
        }
    }
}

#[test]
fn a_dense_concatenation_gives_each_part_a_group_of_its_own() {
    let subject = fixture("concat_dense.onnx");
    let widths: Vec<usize> = subject.coupling.groups.iter().map(|group| group.width).collect();
    assert_eq!(widths, [16, 12, 12, 12, 32]);
}

#[test]
fn a_padded_shortcut_splits_the_stream_into_carried_and_new_channels() {
    let subject = fixture("option_a.onnx");
    let stem = subject.group_of("stem").unwrap();
    assert!(stem.stream && stem.width == 16);
    // The wide stream's carried channels are those of the stem; the padded ones come from conv2 alone.
    let wide: Vec<usize> = (subject.coupling.groups.iter())
        .filter(|group| {
            let graph = Graph::new(&subject.model);
            group.producers.iter().any(|p| graph.label(p.node) == "wider.conv2")
        })
        .map(|group| group.width)
        .collect();
    assert_eq!(wide, [16, 16]);
}

#[test]
fn a_channel_shuffle_moves_channels_in_pairs() {
    let subject = fixture("channel_shuffle.onnx");
    assert!(subject.coupling.groups.len() >= 3, "{:?}", subject.coupling.frozen);
}

#[test]
fn attention_heads_go_whole_through_query_key_value_and_output() {
    let subject = Subject::new(random_net(&[17], 3, false), &[], 3);
    let heads = subject.coupling.groups.iter().find(|group| group.producers.len() == 3);
    let heads = heads.unwrap_or_else(|| panic!("{:#?}", subject.coupling));
    assert_eq!(heads.width, 2);
    assert!(heads.producers.iter().all(|p| p.outputs.iter().all(|of| of.len() == 3)));
}

#[test]
fn the_class_token_and_the_positions_of_a_vision_transformer_go_with_its_stream() {
    for seed in 0..6 {
        let mut net = Net::new(seed);
        let x = net.input(3, 8, 8);
        let (stream, patches) = fused::class_and_patches(&mut net, &x);
        let first = net.ints(&[0]);
        let token = net.node("Gather", &[&stream, &first], vec![attr_int("axis", 1)]);
        let flat = net.node("Flatten", &[&token], Vec::new());
        let out = net.gemm(&flat, patches.c, 5);
        net.output(&out);
        let subject = Subject::new(net.model(), &[], seed);
        let wide = subject.coupling.groups.iter().find(|group| group.width == patches.c);
        let group = wide.unwrap_or_else(|| panic!("{:?}", subject.coupling.frozen));
        let graph = Graph::new(&subject.model);
        let rows = patches.h * patches.w;
        for dims in [[1, 1, patches.c], [1, rows + 1, patches.c]] {
            let held = |value: &str| graph.weight_dims(value).is_some_and(|found| found == dims);
            let goes = group.places.iter().any(|place| place.axis == 2 && held(&place.value));
            assert!(goes, "{dims:?} does not go along: {:?}", group.places);
        }
        let ops = |node: usize| graph.op(node);
        assert!(group.producers.iter().any(|producer| ops(producer.node) == "Conv"));
        assert!(group.consumers.iter().any(|consumer| ops(consumer.node) == "Gemm"));
        for kept in 3..patches.c {
            let removed = (kept..patches.c).collect();
            check_cut(&subject, &Cut { removed: [(group.id, removed)].into() }, 2e-4);
        }
    }
}

#[test]
fn refuses_a_cut_that_does_not_fit() {
    let subject = fixture("residual.onnx");
    let refused = |removed: (GroupId, Vec<usize>)| {
        let cut = Cut { removed: [(removed.0, removed.1.into_iter().collect())].into() };
        apply(&subject.model, &subject.coupling, &subject.shapes, &cut).unwrap_err()
    };
    let group = &subject.coupling.groups[0];
    assert!(matches!(refused((GroupId(99), vec![0])), CutError::NoGroup(99)));
    assert!(matches!(refused((group.id, vec![99])), CutError::NoChannel { channel: 99, .. }));
    assert!(matches!(refused((group.id, (0..group.width).collect())), CutError::Emptied(_)));
    // The coupling of another model.
    let other = fixture("vgg_chain.onnx");
    let cut = other.cut(&mut Chance(1));
    let error = apply(&subject.model, &other.coupling, &subject.shapes, &cut).unwrap_err();
    assert!(matches!(error, CutError::Mismatch(_)), "{error}");
}

#[test]
fn a_block_is_not_offered_where_its_sum_is_returned() {
    for returned in [false, true] {
        let mut net = Net::new(11);
        let x = net.input(3, 8, 8);
        let first = net.conv(&x, 8, 3, 1, 1);
        let inner = net.conv(&first, 8, 3, 1, 1);
        let sum = net.binary("Add", &inner, &first.name);
        let out = steps::head(&mut net, &sum);
        net.output(&out);
        if returned {
            net.output(&sum.name);
        }
        let subject = Subject::new(net.model(), &[], 1);
        let found = blocks(&Graph::new(&subject.model), &subject.coupling, &subject.shapes);
        assert_eq!(found.is_empty(), returned);
        assert_eq!(operators(&Graph::new(&subject.model)).len(), 3);
    }
}
