//! Ladders by importances that the caller brings: which channels go, into which ones they are merged, and what
//! a ridge regression makes up for.

#[path = "nets/counting.rs"]
mod counting;
#[path = "nets/models.rs"]
mod models;
#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use std::collections::BTreeMap;

use blochd::coupling::Group;
use blochd::ladder::importance::{Importance, Importances, offered};
use blochd::ladder::manifest::Rung;
use blochd::ladder::task::{Ladder, Options};
use blochd::onnx::{Graph, Model};
use blochd::redundancy::selection::Method;
use blochd::surgery::repair::Mode;
use counting::{ladder, options};
use nets::{Chance, Net};
use subject::Subject;

const WIDTH: usize = 16;
const HIDDEN: usize = 64;

/// Two hidden layers of which the second half of the channels are copies of the first half, where `twins` says
/// so; the copies are read by weights of their own.
fn net(twins: bool) -> Model {
    let mut net = Net::plain(7);
    let mut x = net.tokens(WIDTH, 5);
    for (from, to) in [(WIDTH, HIDDEN), (HIDDEN, HIDDEN)] {
        let half = |channel: usize| if twins { channel % (to / 2) } else { channel };
        let mut chance = Chance(from as u64);
        let drawn: Vec<f32> = (0..from * to).map(|_| chance.real() * 0.3).collect();
        let mut at = (0..from * to).map(|place| drawn[place / to * to + half(place % to)]);
        let weight = net.reals(&[from, to], |_| at.next().unwrap());
        let mut at = (0..to).map(|channel| drawn[half(channel)]);
        let bias = net.reals(&[to], |_| at.next().unwrap());
        let y = net.node("MatMul", &[&x, &weight], Vec::new());
        let y = net.node("Add", &[&y, &bias], Vec::new());
        x = net.node("Relu", &[&y], Vec::new());
    }
    let y = net.product(&x, HIDDEN, 8);
    net.output(&y);
    net.model()
}

fn asked(ratio: f64, importances: Importances) -> Options {
    let method = Method::Scores;
    Options { method, importances, low_rank: false, floor: 0.0, ..options(ratio) }
}

fn only(ladder: &Ladder) -> &Rung {
    let [rung] = ladder.rungs.as_slice() else { panic!("{:?}", ladder.not_built) };
    rung
}

fn groups(model: &Model) -> Vec<Group> {
    Subject::new(model.clone(), &[("free0", 2)], 5).coupling.groups
}

#[test]
fn the_least_important_channels_go_and_groups_without_importances_stay_whole() {
    let model = net(false);
    let [first, second] = &groups(&model)[..] else { panic!() };
    // No order that any rule of our own would find.
    let importance: Vec<f64> = (0..HIDDEN).map(|c| ((c * 37) % HIDDEN) as f64 - 20.0).collect();
    let given = Importance { importance: importance.clone(), into: Vec::new() };
    let (ladder, _) = ladder(&model, &asked(0.75, [(second.name.clone(), given)].into()));
    let [cut] = only(&ladder).cuts.as_slice() else { panic!("{:?}", only(&ladder).cuts) };
    assert_eq!(cut.group, second.name);
    let mut gone: Vec<f64> = cut.removed.iter().map(|one| importance[one.channel]).collect();
    gone.sort_by(f64::total_cmp);
    let lowest: Vec<f64> = (0..gone.len()).map(|step| step as f64 - 20.0).collect();
    assert!(!gone.is_empty());
    assert_eq!(gone, lowest);
    let left = ladder.declined.iter().find(|one| one.what == first.name).unwrap();
    assert_eq!(left.because, "no importances are given for it");
}

#[test]
fn what_a_removed_channel_said_is_heard_from_the_one_that_it_is_merged_into_or_by_ridge() {
    let model = net(true);
    let half = HIDDEN / 2;
    // The copies go first, in order.
    let importance: Vec<f64> = (0..HIDDEN).map(|c| ((c + half) % HIDDEN) as f64).collect();
    let explained = |merged: bool, repair| {
        let into = if merged { (0..HIDDEN).map(|c| c % half).collect() } else { Vec::new() };
        let one = Importance { importance: importance.clone(), into };
        let all = groups(&model).into_iter().map(|group| (group.name, one.clone())).collect();
        let (ladder, _) = ladder(&model, &Options { repair, ..asked(0.6, all) });
        let rung = only(&ladder);
        let gone = rung.cuts.iter().flat_map(|cut| &cut.removed);
        assert!(gone.clone().count() > half / 2 && gone.into_iter().all(|one| one.channel >= half));
        rung.figures.explained
    };
    assert!(explained(false, Mode::None) < 0.9);
    assert!(explained(true, Mode::None) > 0.999_999);
    // The ridge that it takes to be solvable leaves a little.
    assert!(explained(false, Mode::Ridge) > 0.999);
    assert!(explained(true, Mode::Ridge) > 0.999);
}

#[test]
fn what_importances_can_be_given_for_is_listed_with_its_places() {
    let model = net(false);
    let subject = Subject::new(model.clone(), &[("free0", 2)], 5);
    let listed = offered(&Graph::new(&model), &subject.coupling);
    assert_eq!(listed.len(), 2);
    for (one, group) in listed.iter().zip(&subject.coupling.groups) {
        assert_eq!((&one.name, one.width, one.stream), (&group.name, HIDDEN, false));
        let mut places: BTreeMap<bool, Vec<usize>> = BTreeMap::new();
        for place in &one.places {
            assert_eq!(place.index, (0..HIDDEN as u32).map(|c| vec![c]).collect::<Vec<_>>());
            places.entry(place.read).or_default().push(place.axis);
        }
        places.values_mut().for_each(|axes| axes.sort_unstable());
        // The weight and the bias that write it; the weight that reads it.
        assert_eq!(places, [(false, vec![0, 1]), (true, vec![0])].into());
    }
}
