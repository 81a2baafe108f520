//! Atoms and their union. Every index of every tracked axis is an atom; rules join atoms that must be
//! removed together and freeze those that must stay.

use std::collections::BTreeMap;

use super::types::Reason;
use crate::limits;
use crate::onnx::{Graph, Shapes};

/// An axis of two or more indices: its atoms are `first .. first + length`. An axis of unknown (or
/// excessive) length has no atoms: its `length` is 0, and what is joined with it freezes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub first: u32,
    pub length: usize,
}

/// The axes of all values and constants, and the classes of their atoms.
pub(super) struct Atoms {
    /// For each value its axes; `None` where the length is one.
    axes: BTreeMap<String, Vec<Option<Axis>>>,
    parent: Vec<u32>,
    frozen: BTreeMap<u32, Reason>,
    /// For each atom the last turn in which a rule spoke of it.
    spoken: Vec<u32>,
    turn: u32,
    /// Axes that must lose as many indices as each other, whichever cut is made.
    equal: Vec<(Option<Axis>, Option<Axis>, Reason)>,
}

impl Atoms {
    /// Atoms for every value whose shape is known and every constant.
    pub fn new(graph: &Graph, shapes: &Shapes) -> Self {
        let mut atoms = Self {
            axes: BTreeMap::new(),
            parent: Vec::new(),
            frozen: BTreeMap::new(),
            spoken: Vec::new(),
            turn: 0,
            equal: Vec::new(),
        };
        for (name, value) in shapes {
            atoms.add(name, &value.shape);
        }
        for (name, _) in graph.weights() {
            if let Some(dims) = graph.weight_dims(name) {
                atoms.add(name, &dims.into_iter().map(Some).collect::<Vec<_>>());
            }
        }
        atoms
    }

    fn add(&mut self, name: &str, shape: &[Option<usize>]) {
        let axes = shape
            .iter()
            .map(|length| {
                let unknown = Some(Axis { first: 0, length: 0 });
                let length = match length {
                    Some(1) => return None,
                    Some(length) if (2..=limits::CHANNELS).contains(length) => *length,
                    Some(_) | None => return unknown,
                };
                let first = self.parent.len();
                let end = first + length;
                if end > limits::ATOMS {
                    return unknown;
                }
                self.parent.extend(first as u32..end as u32);
                self.spoken.resize(end, 0);
                Some(Axis { first: first as u32, length })
            })
            .collect();
        self.axes.insert(name.to_owned(), axes);
    }

    /// The axes of a value; `None` where its shape is unknown.
    pub fn axes(&self, value: &str) -> Option<&[Option<Axis>]> {
        self.axes.get(value).map(Vec::as_slice)
    }

    /// Rank of a value.
    pub fn rank(&self, value: &str) -> Option<usize> {
        self.axes(value).map(<[_]>::len)
    }

    /// One tracked axis.
    pub fn axis(&self, value: &str, axis: usize) -> Option<Axis> {
        self.axes(value)?.get(axis).copied().flatten()
    }

    /// All tracked axes, by value and number.
    pub fn all(&self) -> impl Iterator<Item = (&str, usize, Axis)> {
        self.axes.iter().flat_map(|(name, axes)| {
            let tracked = axes.iter().enumerate();
            tracked.filter_map(move |(number, axis)| {
                let axis = (*axis)?;
                (axis.length > 0).then_some((name.as_str(), number, axis))
            })
        })
    }

    /// The class of an atom.
    pub fn root(&mut self, atom: u32) -> u32 {
        let mut root = atom;
        while self.parent[root as usize] != root {
            root = self.parent[root as usize];
        }
        let mut at = atom;
        while self.parent[at as usize] != root {
            at = std::mem::replace(&mut self.parent[at as usize], root);
        }
        root
    }

    /// Begins the turn of one node: its rule has to speak of every atom of its values.
    pub fn begin(&mut self) {
        self.turn += 1;
    }

    /// Ends the turn: what the rule joined with nothing, freed not and froze not, is frozen. A rule can
    /// forget an axis; that costs width, never correctness.
    pub fn close<'v>(&mut self, values: impl Iterator<Item = &'v str>, reason: &Reason) {
        for value in values {
            let axes = self.axes.get(value).cloned().unwrap_or_default();
            for axis in axes.into_iter().flatten() {
                for atom in axis.first..axis.first + axis.length as u32 {
                    if self.spoken[atom as usize] != self.turn {
                        let root = self.root(atom);
                        self.frozen.entry(root).or_insert_with(|| reason.clone());
                    }
                }
            }
        }
    }

    /// States that this node lets `count` indices from `start` come and go as they please.
    pub fn free(&mut self, axis: Axis, start: usize, count: usize) {
        let end = (start + count).min(axis.length);
        let atoms = axis.first as usize + start.min(end)..axis.first as usize + end;
        self.spoken[atoms].fill(self.turn);
    }

    /// States that the length of one axis is read from the other.
    pub fn same_length(&mut self, a: Option<Axis>, b: Option<Axis>, otherwise: &Reason) {
        self.equal.push((a, b, otherwise.clone()));
    }

    /// Once all is joined: axes that must be of the same length hold the same classes equally often, or
    /// stay as they are.
    pub fn settle_lengths(&mut self) {
        for (a, b, reason) in std::mem::take(&mut self.equal) {
            let mut classes = |axis: Option<Axis>| -> Option<Vec<u32>> {
                let axis = axis?;
                let atoms = axis.first..axis.first + axis.length as u32;
                let mut roots: Vec<u32> = atoms.map(|atom| self.root(atom)).collect();
                roots.sort_unstable();
                Some(roots)
            };
            if classes(a) != classes(b) {
                a.into_iter().chain(b).for_each(|axis| self.freeze(axis, &reason));
            }
        }
    }

    /// Whether every atom of the axis is frozen by now.
    pub fn is_frozen(&mut self, axis: Axis) -> bool {
        (axis.first..axis.first + axis.length as u32).all(|atom| {
            let root = self.root(atom);
            self.frozen.contains_key(&root)
        })
    }

    /// Puts two atoms into one class. What froze either freezes both.
    pub fn union(&mut self, a: u32, b: u32) {
        self.spoken[a as usize] = self.turn;
        self.spoken[b as usize] = self.turn;
        let (a, b) = (self.root(a), self.root(b));
        if a == b {
            return;
        }
        let (keep, drop) = (a.min(b), a.max(b));
        self.parent[drop as usize] = keep;
        if let Some(reason) = self.frozen.remove(&drop) {
            self.frozen.entry(keep).or_insert(reason);
        }
    }

    /// Joins two axes index by index. Axes of different lengths cannot mean the same channels: both are
    /// frozen. An untracked axis joins nothing.
    pub fn join(&mut self, a: Option<Axis>, b: Option<Axis>, otherwise: &Reason) {
        match (a, b) {
            (Some(a), Some(b)) if a.length == b.length => {
                (0..a.length as u32).for_each(|i| self.union(a.first + i, b.first + i));
            }
            (Some(a), Some(b)) => {
                self.freeze(a, otherwise);
                self.freeze(b, otherwise);
            }
            (Some(_), None) | (None, Some(_) | None) => {}
        }
    }

    /// Freezes all atoms of an axis.
    pub fn freeze(&mut self, axis: Axis, reason: &Reason) {
        for atom in axis.first..axis.first + axis.length as u32 {
            self.spoken[atom as usize] = self.turn;
            let root = self.root(atom);
            self.frozen.entry(root).or_insert_with(|| reason.clone());
        }
    }

    /// Freezes all axes of a value.
    pub fn freeze_value(&mut self, value: &str, reason: &Reason) {
        let axes = self.axes.get(value).cloned().unwrap_or_default();
        axes.into_iter().flatten().for_each(|axis| self.freeze(axis, reason));
    }

    /// Why a class is frozen, by its root.
    pub fn frozen(&self, root: u32) -> Option<&Reason> {
        self.frozen.get(&root)
    }
}
