//! Models that share a box slow each other down. A model that breaks its budget and has no faster variant left
//! above its floor is relieved by one of lower priority: that one goes down a rung, or to its last one where
//! the budget is broken by far, though it holds its own. It stays there until the other is well within its
//! budget, and goes back one rung at a time.

use std::time::Duration;

use super::policy::busy;
use super::types::{Action, Because, ModelView, State};

/// Whether `model` still has to stay down for the sake of another one.
pub(super) fn is_needed(state: &State, models: &[&ModelView], model: &ModelView) -> bool {
    let relieved = state.models.get(&model.name).and_then(|memory| memory.relieves.as_ref());
    let Some(relieved) = relieved else { return false };
    let other = models.iter().find(|other| other.name == *relieved);
    let Some(other) = other.filter(|other| other.priority > model.priority) else { return false };
    state.models.get(relieved).is_some_and(|memory| !memory.is_well_within(other))
}

/// Moves a model down for the sake of the one of highest priority that needs it. `models` stand in the order of
/// their priority, the highest first.
pub(super) fn relieve(state: &mut State, models: &[&ModelView], now: Duration) -> Option<Action> {
    let needs = |model: &&&ModelView| {
        state.models.get(&model.name).is_some_and(|memory| memory.needs_relief(model, now))
    };
    let needy = *models.iter().find(needs)?;
    let far = state.models.get(&needy.name).is_some_and(|memory| memory.is_far_above(needy));
    // The least important first; among equals the one that takes the most off the box.
    let mut chosen: Option<(&ModelView, usize, f64)> = None;
    for model in models.iter().rev().filter(|model| model.priority < needy.priority) {
        if chosen.is_some_and(|(best, ..)| best.priority < model.priority) {
            break;
        }
        let memory = state.models.get(&model.name)?;
        let Some(to) = memory.lower(model, far, now) else { continue };
        let share = |index: usize| busy(model, index).unwrap_or_default();
        let saves = share(model.current) - share(to);
        if chosen.is_none_or(|(.., most)| saves > most) {
            chosen = Some((model, to, saves));
        }
    }
    let (model, to, _) = chosen?;
    let because = Because::Relief;
    let memory = state.models.get_mut(&model.name)?;
    memory.switched(model, to, because, now);
    memory.relieves = Some(needy.name.clone());
    state.models.get_mut(&needy.name)?.relieved = Some(now);
    Some(Action { model: model.name.clone(), to, because })
}
