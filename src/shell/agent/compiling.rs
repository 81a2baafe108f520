//! What providers compile of variants: the shapes that are compiled before one serves, the sessions that run
//! them, and where what was compiled is kept for the next time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::event::{Fate, Lending, Unfit};
use super::prepare::{Loader, Sessions};
use crate::config::{Provider, Sizes, shape_text};
use crate::hardware::label;
use crate::limits;
use crate::protocol::{Inputs, Signature, sized};
use crate::schedule::Batching;
use crate::shell::children::trial::{RanOn, TrialReport};
use crate::shell::engine::{cann, compiled};
use crate::shell::slot::{
    Batched, OnDevice, Padded, Runner, Shapes, check_so_many_rows, row_sizes,
};
use crate::units::Digest;

impl Loader {
    /// Sizes of free axes that requests may not choose: compilers make more of them. The CPU takes any.
    pub(super) fn fixed(&self) -> Sizes {
        match self.provider {
            Provider::Cpu => Sizes::new(),
            Provider::Cann(_) | Provider::Plugin(_) => self.shapes.common(),
        }
    }

    /// Where the provider may keep what it compiles of a variant: for that one alone, whatever its name is.
    pub fn cache(&self, digest: Digest) -> Option<PathBuf> {
        let compiler = match self.provider {
            Provider::Cpu => return None,
            // Of the provider's own version alone the runtime tells.
            Provider::Cann(_) => cann::installed(),
            Provider::Plugin(_) => String::new(),
        };
        // Of other sizes that are fixed another graph is compiled.
        let fixed = self.fixed();
        let sizes =
            if fixed.is_empty() { String::new() } else { format!(" {}", shape_text(&fixed)) };
        let identity = format!("{}{compiler}{sizes}", self.identity());
        Some(compiled::folder(&self.state_dir, &identity, digest))
    }

    /// A request of every shape that will be served: what the trial ran on, and the shapes that are named. None
    /// where it ran on nothing.
    pub(super) fn all_shapes(
        &self,
        inputs: Option<Inputs>,
        signature: &Signature,
    ) -> Result<Vec<Inputs>, String> {
        let Some(first) = inputs else { return Ok(Vec::new()) };
        let further = self.shapes.0.iter().map(|sizes| sized(&first, signature, sizes));
        let further = further.collect::<Result<Vec<Inputs>, _>>().map_err(|e| e.to_string())?;
        Ok(std::iter::once(first).chain(further).collect())
    }

    /// Sessions that tell when their device is lost.
    pub(super) fn on_device(&self, sessions: Sessions, all: &[Inputs]) -> Sessions {
        let provider = label(&self.provider);
        // Where shapes are named, no others are compiled under the eyes of a client.
        let most = match (self.shapes.0.len(), all.is_empty()) {
            (0, _) => limits::SERVED_SHAPES,
            (named, true) => named,
            (_, false) => 0,
        };
        let shapes = Arc::new(Shapes::new(provider, most, all));
        let sound = all.first().cloned().map(Arc::new);
        let on_device = |session| {
            let (sound, shapes) = (sound.clone(), Arc::clone(&shapes));
            Box::new(OnDevice::new(session, sound, shapes, self.patience)) as Box<dyn Runner>
        };
        sessions.into_iter().map(on_device).collect()
    }

    /// Such sessions as they were, or such as may run several requests as one, where that is asked for and
    /// found to change no answer: in the numbers of rows that are compiled, and no others.
    pub(super) fn padded(
        &self,
        path: &Path,
        sessions: Sessions,
        signature: &Signature,
        all: &[Inputs],
    ) -> Sessions {
        let (path, provider) = (path.display(), label(&self.provider));
        if self.batching.rows <= 1 {
            return sessions;
        }
        let sizes = if self.shapes.0.is_empty() { BTreeSet::new() } else { row_sizes(all) };
        let rows = sizes.last().copied().unwrap_or_default().min(self.batching.rows);
        if rows <= 1 {
            tracing::info!(
                provider,
                "{path}: its requests are not run in batches there: no shape of several rows is \
                 named for it"
            );
            return sessions;
        }
        let padded = |session| Padded { session, sizes: sizes.clone() };
        let mut sessions: Vec<Padded> = sessions.into_iter().map(padded).collect();
        let Some(first) = sessions.first_mut() else { return Vec::new() };
        let checked = check_so_many_rows(first, signature, all.first(), rows);
        let batching = match checked {
            Ok(()) => Batching { rows, ..self.batching },
            Err(why) => {
                tracing::warn!(provider, "{path}: its requests are not run in batches: {why}");
                Batching::OFF
            }
        };
        let batched = |session| Batched { session: Box::new(session), batching };
        let boxed = |session| Box::new(batched(session)) as Box<dyn Runner>;
        sessions.into_iter().map(boxed).collect()
    }

    /// A trial on what CANN compiled before; where it fails, another one without that: a new driver may not
    /// take it, and whoever was ended while it was written has left half of it.
    pub(super) async fn trial_on_kept(
        &self,
        cache: &Path,
        path: &Path,
        digest: Digest,
    ) -> Result<TrialReport, Unfit> {
        let unfit = match self.trial(path, digest).await {
            Ok(report) => return Ok(report),
            Err(unfit) => unfit,
        };
        let aside = match cann::Aside::put(cache) {
            Ok(aside) => aside,
            Err(error) => {
                tracing::warn!("{} stays: {error}", cache.display());
                return Err(unfit);
            }
        };
        let path_shown = path.display();
        tracing::warn!(
            "{path_shown} is compiled anew: what was kept of it failed: {}",
            unfit.reason
        );
        let again = self.trial(path, digest).await;
        if let Err(error) = aside.end(again.is_ok()) {
            tracing::warn!("{} is not in order: {error}", cache.display());
        }
        again
    }

    /// Loads a variant that has passed its trial, on what CANN compiled of it there, where it was CANN.
    pub(super) fn sessions(
        &self,
        path: &Path,
        digest: Digest,
        ran_on: Option<RanOn>,
        lending: Lending,
    ) -> Result<(Sessions, Signature, Lending), Unfit> {
        let is_cann = matches!(self.provider, Provider::Cann(_));
        let Some(cache) = self.cache(digest).filter(|_| is_cann) else {
            return self.loaded(path, digest, ran_on, lending);
        };
        let shown = match cann::Shown::new(&cache, Path::new(".")) {
            Ok(shown) => shown,
            Err(error) => {
                tracing::warn!("{} is compiled once more: {error}", path.display());
                return self.loaded(path, digest, ran_on, lending);
            }
        };
        match self.loaded(path, digest, ran_on, lending.clone()) {
            Err(unfit) if unfit.fate == Fate::Later && !shown.is_empty() => {
                drop(shown);
                tracing::warn!("{} is compiled anew: {}", path.display(), unfit.reason);
                let forgotten = cann::Aside::put(&cache).and_then(|aside| aside.end(true));
                if let Err(error) = forgotten {
                    tracing::warn!("{} is not in order: {error}", cache.display());
                }
                self.loaded(path, digest, ran_on, lending)
            }
            loaded => loaded,
        }
    }
}
