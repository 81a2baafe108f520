//! Layers that say nearly the same share a weight in a rung, and others do not.

#[path = "nets/counting.rs"]
mod counting;
#[path = "nets/models.rs"]
mod models;
#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use blochd::ladder::manifest::Rung;
use blochd::ladder::task::Options;
use blochd::onnx::{Graph, Model, operators};
use counting::{ladder, options};
use nets::{Chance, Image, Net, attr_int};

const WIDTH: usize = 32;

/// How the second layer relates to the first.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kin {
    /// The same up to a little noise.
    Near,
    /// The same in another unit, with a normalisation behind that can tell.
    Scaled,
    /// The same in another unit, and nothing behind that can tell.
    ScaledAlone,
    /// As near as a substitution is tried, and too far for the rung's quality.
    Loose,
    Other,
}

/// Two layers of one form whose outputs are returned, and a wide tail that can be cut.
fn twins(kin: Kin, conv: bool) -> Model {
    let mut net = Net::plain(31);
    let weights: Vec<f32> = (0..WIDTH * WIDTH).map(|_| net.chance.real() * 0.3).collect();
    let unit = if matches!(kin, Kin::Scaled | Kin::ScaledAlone) { 2.5 } else { 1.0 };
    let layer = |net: &mut Net, x: &str, second: bool| {
        let mut chance = Chance(if kin == Kin::Other && second { 77 } else { 1 });
        let mut own = weights.iter().map(|weight| match (second, kin) {
            (true, Kin::Other) => chance.real() * 0.3,
            (true, Kin::Loose) => weight + chance.real() * 0.06,
            (true, _) => weight * unit + chance.real() * 0.003,
            (false, _) => *weight,
        });
        let dims: &[usize] = if conv { &[WIDTH, WIDTH, 1, 1] } else { &[WIDTH, WIDTH] };
        let weight = net.reals(dims, |_| own.next().unwrap());
        let bias = net.reals(&[WIDTH], |chance| chance.real());
        if conv {
            return net.node("Conv", &[x, &weight, &bias], Vec::new());
        }
        let y = net.node("MatMul", &[x, &weight], Vec::new());
        net.node("Add", &[&y, &bias], Vec::new())
    };
    let (mut x, image) = if conv {
        let image = net.input(WIDTH, 4, 4);
        (image.name.clone(), Some(image))
    } else {
        (net.tokens(WIDTH, 5), None)
    };
    for second in [false, true] {
        let mut y = layer(&mut net, &x, second);
        if let Some(image) = image.as_ref().filter(|_| kin != Kin::ScaledAlone) {
            let made = net.batch_norm(&Image { name: y, ..image.clone() }, 0.4);
            y = made.name;
        }
        x = net.node("Tanh", &[&y], Vec::new());
        // Returned: its channels stay as many as they are.
        net.output(&x);
    }
    let last = if let Some(image) = &image {
        let x = Image { name: x, ..image.clone() };
        let y = net.conv(&x, 96, 1, 1, 1);
        let y = net.unary("Relu", &y);
        net.conv(&y, 8, 1, 1, 1).name
    } else {
        let y = net.linear(&x, WIDTH, 96);
        let y = net.node("Relu", &[&y], vec![]);
        net.linear(&y, 96, 8)
    };
    let end = net.node("Softmax", &[&last], vec![attr_int("axis", 1)]);
    net.output(&end);
    net.model()
}

fn rung(model: &Model, options: &Options) -> (Rung, Model) {
    let (found, models) = ladder(model, options);
    let [rung] = found.rungs.as_slice() else { panic!("{:?}", found.not_built) };
    (rung.clone(), models[0].clone())
}

/// The weights that the first two operators read.
fn read(model: &Model) -> [String; 2] {
    let linear = operators(&Graph::new(model));
    [linear[0].weight.clone(), linear[1].weight.clone()]
}

#[test]
fn nearly_equal_layers_share_a_weight_and_the_file_shrinks() {
    let asked = Options { floor: 0.9, low_rank: false, ..options(0.85) };
    for (kin, conv) in [(Kin::Near, false), (Kin::Near, true), (Kin::Scaled, true)] {
        let (other, without) = rung(&twins(Kin::Other, conv), &asked);
        let (found, model) = rung(&twins(kin, conv), &asked);
        let [told] = found.substituted.as_slice() else { panic!("{kin:?}, {conv}: {found:?}") };
        assert!(told.error < 0.01 && told.saves_bytes == (4 * WIDTH * WIDTH) as u64, "{told:?}");
        let [first, second] = read(&model);
        assert_eq!(first, second, "{kin:?}, {conv}");
        assert_eq!(found.digest, model.digest().unwrap());
        assert_eq!(found.figures.bytes, model.inline_size().unwrap());
        assert!(found.figures.quality >= 0.9, "{:?}", found.figures);
        // A network of the same form without the resemblance keeps both.
        assert_eq!(other.substituted, []);
        let [first, second] = read(&without);
        assert_ne!(first, second);
        let smaller = other.figures.bytes as i64 - found.figures.bytes as i64;
        assert!(smaller > 3 * (WIDTH * WIDTH) as i64, "{kin:?}, {conv}: {smaller}");
    }
}

#[test]
fn a_layer_in_another_unit_keeps_its_weight_where_nothing_behind_can_tell() {
    let asked = Options { floor: 0.5, low_rank: false, ..options(0.85) };
    let (found, model) = rung(&twins(Kin::ScaledAlone, true), &asked);
    assert_eq!(found.substituted, []);
    let [first, second] = read(&model);
    assert_ne!(first, second);
}

#[test]
fn a_layer_that_costs_the_rung_its_quality_keeps_its_weight() {
    let asked = Options { floor: 0.5, low_rank: false, ..options(0.85) };
    for conv in [false, true] {
        let (found, _) = rung(&twins(Kin::Loose, conv), &asked);
        assert_eq!(found.substituted, []);
    }
}
