//! What a node says that it is, and how it is sent: whole, or as what changed since (a JSON merge patch, RFC
//! 7396).
//!
//! A document holds no null, so that what left it can be told from what never was in it. A whole report is
//! retained by the broker and tells newcomers all that decides anything; between two of them, changes of
//! measured figures alone are sent to those who listen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::limits;

/// The state of a node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reported {
    pub node: String,
    pub labels: BTreeMap<String, String>,
    /// Version of the agent.
    pub agent: String,
    /// When the agent was started, seconds since 1970 by the node's clock: its uptime, without a new report a
    /// second.
    pub started: u64,
    /// The bundle that is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied: Option<Applied>,
    /// The bundle that was refused last, if none was applied since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedBundle>,
    /// The bundle that is on its way into force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub underway: Option<Underway>,
    /// What became of bundles, the newest last: what happened while nobody listened is told too.
    pub history: Vec<Outcome>,
    pub models: BTreeMap<String, Model>,
    /// Models that a report has no place for.
    #[serde(skip_serializing_if = "is_zero")]
    pub models_left_out: u64,
    pub hardware: Hardware,
    pub health: Health,
    /// Bundles that came, and that were refused, since the agent was started.
    pub received: u64,
    pub refusals: u64,
}

/// A bundle that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Applied {
    pub revision: u64,
    pub digest: String,
}

/// A bundle that is not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusedBundle {
    /// Absent where nobody who is trusted signed it: what it says is not believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Digest of its bytes, by which whoever sent it knows it again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    pub why: String,
}

/// A bundle on its way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Underway {
    pub revision: u64,
    pub stage: String,
}

/// What became of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    pub outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A model in service.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Model {
    pub version: u64,
    /// Name of the variant in service: dense, or a rung of its ladder.
    pub variant: String,
    /// Its latency ratio to dense.
    pub ratio: f64,
    /// Its agreement with dense, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<f64>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_ms: Option<f64>,
    pub figures: Figures,
}

/// What is measured of a model, and changes all the time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// Seconds in which the budget was looked after, and in which it was met, since the agent was started.
    /// Their quotient is the share.
    pub watched_s: u64,
    pub met_s: u64,
}

/// What the node is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hardware {
    pub cpu: String,
    pub cores: u64,
    pub memory_bytes: u64,
    pub accelerators: Vec<String>,
}

/// How it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    pub ready: bool,
    pub problems: Vec<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One message of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Which run of the agent it comes from: reports of another begin anew.
    pub epoch: u64,
    /// Counts from 1 in an epoch.
    pub seq: u64,
    #[serde(flatten)]
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// The state, whole.
    Full(Value),
    /// What changed since the report before.
    Delta(Value),
}

impl Reported {
    /// Within the bounds of a report: reasons cut, the newest of the history, and as many models as fit.
    pub fn bounded(mut self) -> Self {
        if let Some(refused) = &mut self.refused {
            cut(&mut refused.why);
        }
        let surplus = self.history.len().saturating_sub(limits::LINK_HISTORY);
        self.history.drain(..surplus);
        self.history.iter_mut().filter_map(|one| one.why.as_mut()).for_each(cut);
        for named in [&mut self.health.problems, &mut self.hardware.accelerators] {
            named.truncate(limits::LINK_NAMED);
            named.iter_mut().for_each(cut);
        }
        let room = limits::LINK_REPORT_BURST - 2 * limits::LINK_OVERHEAD_BYTES;
        while self.size() > room && self.models.pop_last().is_some() {
            self.models_left_out += 1;
        }
        self
    }

    fn size(&self) -> usize {
        self.document().to_string().len()
    }

    /// As a document without nulls.
    pub(super) fn document(&self) -> Value {
        // Plain structures of text and numbers can always be written.
        serde_json::to_value(self).map(without_nulls).unwrap_or_default()
    }
}

fn cut(text: &mut String) {
    if text.len() > limits::LINK_WHY_BYTES {
        let end = (0..=limits::LINK_WHY_BYTES).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
}

/// Numbers that JSON has no word for become nulls, which a merge patch would take for absence.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(all) => Value::Array(all.into_iter().map(without_nulls).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

/// The document without what is measured: what is left decides something.
pub(super) fn standing(document: &Value) -> Value {
    let mut document = document.clone();
    if let Some(Value::Object(models)) = document.get_mut("models") {
        for model in models.values_mut().filter_map(Value::as_object_mut) {
            model.remove("figures");
        }
    }
    document
}

/// The merge patch that makes `new` of `old`; both without nulls.
pub fn difference(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return new.clone() };
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    let mut patch: Map<String, Value> = gone.map(|key| (key.clone(), Value::Null)).collect();
    for (key, value) in new {
        match old.get(key) {
            Some(before) if before == value => {}
            Some(before) => drop(patch.insert(key.clone(), difference(before, value))),
            None => drop(patch.insert(key.clone(), value.clone())),
        }
    }
    Value::Object(patch)
}

/// Applies a merge patch. `depth` bounds how far foreign patches are followed.
pub fn merge(old: &mut Value, patch: &Value, depth: usize) {
    let (Value::Object(changes), Some(depth)) = (patch, depth.checked_sub(1)) else {
        *old = patch.clone();
        return;
    };
    if !old.is_object() {
        *old = Value::Object(Map::new());
    }
    let Value::Object(old) = old else { return };
    for (key, change) in changes {
        if change.is_null() {
            old.remove(key);
        } else {
            merge(old.entry(key.clone()).or_insert(Value::Null), change, depth);
        }
    }
}

/// Deepest that a patch is followed: a report has four levels.
const DEPTH: usize = 8;

/// Who follows a node's reports.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Receiver {
    last: Option<(u64, u64)>,
    document: Option<Value>,
    /// A report is missing: what is known is of before.
    pub behind: bool,
}

impl Receiver {
    /// Takes a report; `false` where it says nothing that can be used.
    pub fn take(&mut self, report: &Report) -> bool {
        let (epoch, seq) = (report.epoch, report.seq);
        match &report.body {
            Body::Full(document) if document.is_object() => {
                // A retained one may come again after what followed it.
                if self.last.is_some_and(|(last, number)| last == epoch && number > seq) {
                    return false;
                }
                self.document = Some(document.clone());
                self.behind = false;
            }
            Body::Delta(patch) if self.last == seq.checked_sub(1).map(|before| (epoch, before)) => {
                let Some(document) = &mut self.document else { return false };
                merge(document, patch, DEPTH);
            }
            Body::Full(_) => return false,
            Body::Delta(_) => {
                self.behind = self.last.is_none_or(|(last, number)| last != epoch || number < seq);
                return false;
            }
        }
        self.last = Some((epoch, seq));
        true
    }

    #[cfg(test)]
    pub(super) fn document(&self) -> Option<&Value> {
        self.document.as_ref()
    }

    /// What is known of the node.
    pub fn state(&self) -> Option<Reported> {
        serde_json::from_value(self.document.clone()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn documents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0u64..4).prop_map(Value::from),
            "[ab]{0,2}".prop_map(Value::from),
            proptest::collection::vec(0u64..3, 0..3).prop_map(Value::from),
        ];
        let any = leaf.prop_recursive(3, 24, 4, |inner| {
            proptest::collection::btree_map("[abc]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        });
        proptest::collection::btree_map("[abc]", any, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn a_difference_makes_the_new_of_the_old(old in documents(), new in documents()) {
            let mut made = old.clone();
            merge(&mut made, &difference(&old, &new), DEPTH);
            prop_assert_eq!(made, new);
        }

        #[test]
        fn foreign_patches_are_followed_no_deeper_than_a_report(depth in 0usize..40) {
            let patch = (0..depth).fold(json!(1), |inner, _| json!({"a": inner}));
            let mut made = json!({});
            merge(&mut made, &patch, DEPTH);
            let report = Report { epoch: 1, seq: 1, body: Body::Full(made) };
            // Whatever it is: it is no node's state, or one that says nothing.
            let mut receiver = Receiver::default();
            receiver.take(&report);
            prop_assert!(receiver.state().is_none_or(|state| state == Reported::default()));
        }
    }

    #[test]
    fn what_is_unknown_is_left_out_and_no_null_is_written() {
        let mut reported = Reported { node: "a".to_owned(), ..Reported::default() };
        reported.models.insert("m".to_owned(), Model { ratio: f64::NAN, ..Model::default() });
        let document = reported.document();
        assert!(!document.to_string().contains("null"), "{document}");
        let back: Reported = serde_json::from_value(document).unwrap();
        assert_eq!(back.models["m"].ratio, 0.0);
    }

    #[test]
    fn a_report_is_bounded_whatever_a_node_has_to_say() {
        let mut reported = Reported::default();
        let long = "ü".repeat(9000);
        reported.refused =
            Some(RefusedBundle { revision: Some(1), bundle: None, why: long.clone() });
        reported.health.problems = vec![long.clone(); 100];
        for n in 0..1000 {
            reported.models.insert(format!("model-{n:04}"), Model::default());
            let one =
                Outcome { revision: Some(n), outcome: "refused".into(), why: Some(long.clone()) };
            reported.history.push(one);
        }
        let bounded = reported.bounded();
        let size = bounded.document().to_string().len();
        assert!(size + limits::LINK_OVERHEAD_BYTES <= limits::LINK_REPORT_BURST, "{size}");
        assert_eq!(bounded.history.last().unwrap().revision, Some(999));
        assert_eq!(bounded.history.len(), limits::LINK_HISTORY);
        assert_eq!(bounded.models.len() as u64 + bounded.models_left_out, 1000);
        assert!(!bounded.models.is_empty());
    }

    #[test]
    fn a_change_is_only_taken_after_what_it_changes() {
        let report = |epoch, seq, body| Report { epoch, seq, body };
        let mut receiver = Receiver::default();
        assert!(!receiver.take(&report(7, 2, Body::Delta(json!({"received": 2})))));
        assert!(receiver.behind && receiver.state().is_none());
        assert!(receiver.take(&report(7, 3, Body::Full(json!({"node": "a", "received": 3})))));
        assert!(!receiver.behind);
        assert!(receiver.take(&report(7, 4, Body::Delta(json!({"received": 4})))));
        // A retained one that comes again is older.
        assert!(!receiver.take(&report(7, 3, Body::Full(json!({"node": "a", "received": 3})))));
        assert!(!receiver.take(&report(7, 4, Body::Delta(json!({"received": 9})))));
        assert!(!receiver.behind);
        assert_eq!(receiver.state().unwrap().received, 4);
        // One is lost.
        assert!(!receiver.take(&report(7, 6, Body::Delta(json!({"received": 6})))));
        assert!(receiver.behind && receiver.state().unwrap().received == 4);
        // Another run of the agent counts anew.
        assert!(receiver.take(&report(8, 1, Body::Full(json!({"node": "a"})))));
        assert_eq!(receiver.state().unwrap().received, 0);
        assert!(!receiver.take(&report(8, 2, Body::Full(json!("no document")))));
    }

    #[test]
    fn a_message_is_json_that_others_can_read() {
        let report = Report { epoch: 1, seq: 2, body: Body::Delta(json!({"received": 3})) };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(text, r#"{"epoch":1,"seq":2,"delta":{"received":3}}"#);
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
