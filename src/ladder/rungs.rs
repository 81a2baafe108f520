//! Builds the rung that a ladder is asked for, or says why there is none and what can be reached instead.

use super::allocate::Choice;
use super::bench::{Built, Workbench};
use super::manifest::{Figures, NotBuilt};
use super::plan::plan;
use super::prices::Prices;
use super::search::{Search, find_plan, most, promised};
use super::task::{LadderError, Options, Step};
use crate::limits;

/// Builds the rung for `asked`, or says why not and what can be reached. `slower` is where the search for
/// the last rung that was built ended.
///
/// # Errors
/// Where the runtime fails on what was planned, or refuses it.
pub fn attempt(
    bench: &dyn Workbench,
    options: &Options,
    asked: f64,
    items: &[Vec<Choice>],
    slower: Option<&Step>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Result<(Built, Step), NotBuilt>, LadderError> {
    let floor = options.floor;
    let missed = |because: String, reachable| Ok(Err(NotBuilt { asked, because, reachable }));
    let affordable = options.work.map_or(usize::MAX, |work| (work / bench.work()) as usize);
    let mut search = Search::new(asked, items, slower, affordable.max(1));
    for removed in limits::REMOVED_PRICES {
        if search.is_over() {
            break;
        }
        search.price(bench, Prices::uniform(items.len(), removed), progress)?;
    }
    let Some(nearest) = search.nearest.clone() else {
        let because = "all cuts that are sound together do not save so much time".to_owned();
        return missed(because, fastest(bench, items)?);
    };
    let seed = options.seed ^ asked.to_bits();
    for trial in 0..options.trials as u64 {
        let Some(best) = search.best.as_ref().filter(|_| !search.is_over()) else { break };
        let prices = best.prices.near(seed ^ trial);
        search.price(bench, prices, progress)?;
    }
    let Some(chosen) = search.choose(bench, seed, progress)? else {
        let (nearest, ratio) = nearest;
        let because = if ratio > asked && plan(items, most(items)) == Some(nearest) {
            "all cuts that are sound together do not save so much time".to_owned()
        } else {
            format!("the nearest that the measured steps of this box allow is {ratio:.3}")
        };
        return missed(because, Some(ratio));
    };
    let chosen = promised(bench, asked, chosen, items, progress)?;
    let Figures { ratio, quality, .. } = *chosen.figures();
    let slower = slower.map_or(1.0, |step| step.ratio);
    // Comparisons that are false for NaN: such a variant is never taken.
    if quality >= floor && ratio < slower {
        let mut built = chosen.built;
        built.rung.nested = search.nests(&built.plan);
        let step = Step { plan: built.plan.clone(), needed: chosen.needed, ratio };
        return Ok(Ok((built, step)));
    }
    if quality >= floor {
        let because = format!(
            "repaired, it takes {ratio:.3} of dense's time, no less than what is there already"
        );
        return missed(because, None);
    }
    let because = format!("its quality would be {quality:.3}, below the floor of {floor}");
    missed(because, reachable(bench, floor, asked, items, slower)?)
}

/// The ratio of the plan that saves the most.
fn fastest(bench: &dyn Workbench, items: &[Vec<Choice>]) -> Result<Option<f64>, LadderError> {
    let Some(candidate) = plan(items, most(items)) else { return Ok(None) };
    Ok(Some(bench.ratio_of(&candidate)?))
}

/// The lowest ratio above `failed` whose quality is at the floor, by bisection.
fn reachable(
    bench: &dyn Workbench,
    floor: f64,
    failed: f64,
    items: &[Vec<Choice>],
    slower: f64,
) -> Result<Option<f64>, LadderError> {
    let mut low = failed;
    let mut high = slower;
    let mut reached = (slower < 1.0).then_some(slower);
    for _ in 0..limits::FLOOR_BISECTIONS {
        let middle = f64::midpoint(low, high);
        let Some(found) = find_plan(bench, middle, items, None)? else { break };
        let built = bench.build(middle, &found.plan, &mut |_, _| {})?;
        if built.rung.figures.quality >= floor {
            (high, reached) = (middle, Some(found.ratio));
        } else {
            low = middle;
        }
    }
    Ok(reached)
}
