//! Importances of channels that the caller brings, for instance from training, in place of a ranking of our
//! own; and the list of the groups that they can be given for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::coupling::{Coupling, Group};
use crate::onnx::Graph;
use crate::redundancy::selection::by_score;
use crate::surgery::merge::readings;

/// Importances by the name of a coupled group. A group that is not named stays whole.
pub type Importances = BTreeMap<String, Importance>;

/// What the caller thinks of the channels of one group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Importance {
    /// One number a channel: the lowest goes first.
    pub importance: Vec<f64>,
    /// For each channel the one that it is merged into when it goes: itself where it just goes, else one that
    /// goes later. Nothing where no channel is merged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub into: Vec<usize>,
}

/// Why importances cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ImportanceError {
    #[error(
        "there is no group {0:?} in this model that may be cut (--groups lists those that are)"
    )]
    NoGroup(String),
    #[error("{given} numbers are given in {what:?} of group {group:?}, which has {width} channels")]
    Length { group: String, what: &'static str, width: usize, given: usize },
    #[error("the importance of channel {channel} of group {group:?} is not a finite number")]
    NotFinite { group: String, channel: usize },
    #[error("channel {channel} of group {group:?} cannot be merged into {into}: it goes no later")]
    Into { group: String, channel: usize, into: usize },
}

/// Checks that all importances are of channels of this model.
///
/// # Errors
/// At the first group, by name, of which they are not.
pub fn check(importances: &Importances, coupling: &Coupling) -> Result<(), ImportanceError> {
    for (name, one) in importances {
        let group = coupling.groups.iter().find(|group| group.name == *name);
        let group = group.ok_or_else(|| ImportanceError::NoGroup(name.clone()))?;
        check_one(one, group)?;
    }
    Ok(())
}

fn check_one(one: &Importance, group: &Group) -> Result<(), ImportanceError> {
    let (name, width) = (|| group.name.clone(), group.width);
    let length = |what, given| ImportanceError::Length { group: name(), what, width, given };
    if one.importance.len() != width {
        return Err(length("importance", one.importance.len()));
    }
    if let Some(channel) = one.importance.iter().position(|value| !value.is_finite()) {
        return Err(ImportanceError::NotFinite { group: name(), channel });
    }
    if one.into.is_empty() {
        return Ok(());
    }
    if one.into.len() != width {
        return Err(length("into", one.into.len()));
    }
    let mut when = vec![0; width];
    by_score(&one.importance).into_iter().enumerate().for_each(|(step, c)| when[c] = step);
    for (channel, into) in one.into.iter().copied().enumerate() {
        let later = when.get(into).is_some_and(|step| *step > when[channel]);
        if into != channel && !later {
            return Err(ImportanceError::Into { group: name(), channel, into });
        }
    }
    Ok(())
}

/// A coupled group, and where its channels stand in the file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Offered {
    pub name: String,
    pub width: usize,
    /// Whether the group is a residual stream.
    pub stream: bool,
    /// Every axis of a constant that holds the channels.
    pub places: Vec<OfferedPlace>,
}

/// One axis of a constant that holds a group's channels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OfferedPlace {
    /// The initializer's name, or that of a Constant node's output.
    pub constant: String,
    pub axis: usize,
    /// Whether an operator sums over the channels there; else the constant makes them what they are.
    pub read: bool,
    /// For each channel its indices on the axis: one for an ordinary operator, several for an attention head.
    pub index: Vec<Vec<u32>>,
}

/// All groups that may be cut.
pub fn offered(graph: &Graph, coupling: &Coupling) -> Vec<Offered> {
    let one = |group: &Group| {
        let readings = readings(graph, group);
        let places = group.places.iter().filter(|place| place.constant);
        let places = places.map(|place| OfferedPlace {
            constant: place.value.clone(),
            axis: place.axis,
            read: readings.contains_key(&(place.value.clone(), place.axis)),
            index: place.index.clone(),
        });
        Offered {
            name: group.name.clone(),
            width: group.width,
            stream: group.stream,
            places: places.collect(),
        }
    };
    coupling.groups.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coupling::{GroupId, Neutral};

    fn coupling() -> Coupling {
        let group = Group {
            id: GroupId(0),
            name: "conv".to_owned(),
            width: 3,
            places: Vec::new(),
            producers: Vec::new(),
            consumers: Vec::new(),
            through: Vec::new(),
            stream: false,
            neutral: Neutral::Zero,
        };
        Coupling { groups: vec![group], frozen: Vec::new() }
    }

    fn told(name: &str, importance: &[f64], into: &[usize]) -> Result<(), ImportanceError> {
        let one = Importance { importance: importance.to_vec(), into: into.to_vec() };
        check(&[(name.to_owned(), one)].into(), &coupling())
    }

    #[test]
    fn importances_that_are_not_of_this_model_are_refused() {
        let numbers = [0.5, -2.0, 1e300];
        assert_eq!(told("conv", &numbers, &[]), Ok(()));
        assert_eq!(told("conv", &numbers, &[2, 0, 2]), Ok(()));
        let nobody = told("pool", &numbers, &[]).unwrap_err();
        assert_eq!(nobody, ImportanceError::NoGroup("pool".to_owned()));
        let group = || "conv".to_owned();
        for (given, what, importance, into) in
            [(2, "importance", &numbers[..2], &[][..]), (1, "into", &numbers, &[2])]
        {
            let found = told("conv", importance, into).unwrap_err();
            assert_eq!(found, ImportanceError::Length { group: group(), what, width: 3, given });
        }
        for odd in [f64::NAN, f64::INFINITY] {
            let found = told("conv", &[0.0, odd, 1.0], &[]).unwrap_err();
            assert_eq!(found, ImportanceError::NotFinite { group: group(), channel: 1 });
        }
        // Channel 1 goes first, then 0: what 0 is merged into must outlive it.
        for (into, channel) in [([1, 2, 2], 0), ([2, 3, 2], 1)] {
            let found = told("conv", &numbers, &into).unwrap_err();
            let into = into[channel];
            assert_eq!(found, ImportanceError::Into { group: group(), channel, into });
        }
    }
}
