//! What children tell of how they are confined, for the log and the status.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use serde_json::{Value, json};

use crate::config::Sandbox;
use crate::shell::children::confine::Confined;

/// The last that was told. Clones share it.
#[derive(Clone, Default)]
pub struct Seen(Arc<ArcSwapOption<Confined>>);

impl Seen {
    /// A child told it. What changes, as a rule nothing after the first, is logged.
    pub fn told(&self, confined: Confined) {
        let known = self.0.load();
        if known.as_deref() == Some(&confined) {
            return;
        }
        if confined.missing.is_empty() {
            tracing::info!("children are confined: {confined}");
        } else {
            tracing::warn!("children are not confined as they could be: {confined}");
        }
        self.0.store(Some(Arc::new(confined)));
    }

    /// For the status; nothing is in force and nothing missing before the first child has started.
    pub fn status(&self, wanted: Sandbox) -> Value {
        let known = self.0.load();
        let known = known.as_deref().filter(|_| wanted != Sandbox::Off);
        json!({
            "wanted": wanted.to_string(),
            "in_force": known.and_then(Confined::in_force),
            "missing": known.map_or(&[][..], |known| &known.missing),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_what_the_last_child_told_and_nothing_where_none_is_wanted() {
        let seen = Seen::default();
        let nothing = json!({"wanted": "auto", "in_force": null, "missing": []});
        assert_eq!(seen.status(Sandbox::Auto), nothing);
        let missing = vec!["landlock: this kernel has none".to_owned()];
        seen.clone().told(Confined { landlock: None, seccomp: true, missing: missing.clone() });
        let partly = json!({"wanted": "auto", "in_force": "seccomp", "missing": missing});
        assert_eq!(seen.status(Sandbox::Auto), partly);
        seen.told(Confined { landlock: Some(7), seccomp: true, missing: Vec::new() });
        let all =
            json!({"wanted": "required", "in_force": "landlock ABI 7, seccomp", "missing": []});
        assert_eq!(seen.status(Sandbox::Required), all);
        assert_eq!(seen.status(Sandbox::Off)["in_force"], Value::Null);
    }
}
