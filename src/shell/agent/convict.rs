//! What becomes of a variant that does not keep its promise.

use super::Agent;
use super::memory;
use super::served::Standby;
use crate::governor::Conviction;

impl Agent {
    /// Withdraws the variant and remembers it as one that is not to be served.
    pub(super) fn convict(&mut self, conviction: &Conviction) {
        let Conviction { model, variant, shown, expected } = conviction;
        let Some(served) = self.served.get_mut(model) else { return };
        let Some(candidate) = served.candidates.get_mut(*variant) else { return };
        // Dense is what the operator gave, and what serves is not withdrawn under its clients.
        if *variant == 0 || matches!(candidate.standby, Standby::InService) {
            return;
        }
        let reason = format!(
            "it missed its promise: its fastest run took {shown:.2} times as long as promised, \
             where the box explains {expected:.2}"
        );
        let (name, digest) = (candidate.info.name.clone(), candidate.info.digest);
        let before = std::mem::replace(&mut candidate.standby, Standby::Withdrawn(reason.clone()));
        if let Standby::Loaded(sessions) = before {
            memory::free(sessions);
        }
        tracing::error!(model, variant = name, reason, "withdrawn: {reason}");
        self.put_into_quarantine(digest, format!("{model} {name}"), reason);
    }
}
