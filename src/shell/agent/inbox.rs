//! The bundles in the agent's inbox: which of those that have come are offered to the machine.

use std::path::Path;
use std::time::Instant;

use super::Agent;
use crate::fleet::apply::{Event, Report};
use crate::fleet::pass::{Came, Pass, pass};
use crate::shell::fleet::inbox;

impl Agent {
    /// Offers what has come into the inbox and rests: of several bundles the newest, and the others where it
    /// has not overtaken them.
    pub(super) fn look_at_inbox(&mut self) {
        let Some(fleet) = &mut self.fleet else { return };
        let Some(dir) = fleet.inbox.clone().filter(|_| fleet.again.is_none()) else { return };
        let (mut paths, mut came) = (Vec::new(), Vec::new());
        for path in fleet.bundles.look(&dir, Instant::now()) {
            let name = path.display().to_string();
            match inbox::read(&path) {
                Ok(bytes) => {
                    paths.push(path);
                    came.push(Came { name, bytes: bytes.into() });
                }
                Err(error) => tracing::error!("cannot read {name}: {error}"),
            }
        }
        let context = fleet.context(self.started.elapsed());
        let record = fleet.record();
        let trusted = record.trusted(context.configured);
        let Pass { first, superseded, rest } =
            pass(&came, trusted, context.node, record.seen.as_ref(), context.now);
        let waits = first.is_some_and(|first| self.offer(&paths[first], &came[first]));
        for (index, why) in superseded {
            if waits {
                // Whether it is overtaken shows when the newest can be begun.
                self.wait_with(&paths[index]);
            } else {
                let name = came[index].name.clone();
                self.fleet_reports(Report::Refused { name, why });
            }
        }
        for index in rest {
            self.offer(&paths[index], &came[index]);
        }
    }

    /// Offers a bundle. Says whether it has to wait.
    fn offer(&mut self, path: &Path, came: &Came) -> bool {
        if let Some(fleet) = &mut self.fleet {
            fleet.busy = false;
        }
        let Came { name, bytes } = came.clone();
        self.happened(Event::Offered { name, bytes });
        let waits = self.fleet.as_ref().is_some_and(|fleet| fleet.busy || fleet.again.is_some());
        if waits {
            self.wait_with(path);
        }
        waits
    }

    fn wait_with(&mut self, path: &Path) {
        if let Some(fleet) = &mut self.fleet {
            fleet.waiting.insert(path.to_owned());
        }
    }
}
