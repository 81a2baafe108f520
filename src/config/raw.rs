//! YAML → a tree in which every key and value knows its line and column.
//!
//! A tree rather than derived structs with `deny_unknown_fields`: serde stops at the first unknown
//! key or wrong type, and a box that cannot be reached deserves the whole list in one answer.
//! Repeated keys are passed through to be reported with both places.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_yaml::{Location, Spanned};

use crate::limits::{CONFIG_ALIAS_EVENTS, CONFIG_DEPTH, CONFIG_FILE_BYTES, CONFIG_NODES};
use crate::units::ByteSize;

/// A place in the text; both count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    pub line: u64,
    pub column: u64,
}

impl From<Location> for At {
    fn from(location: Location) -> Self {
        Self { line: location.line().max(1), column: location.column().max(1) }
    }
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub at: At,
    pub value: Value,
}

/// A YAML value. Scalars are kept as text: the setting says how it is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub at: At,
    pub text: String,
}

/// Why a text is not one YAML document within bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{}: {what}", at.line, at.column)]
pub struct NotYaml {
    pub at: At,
    pub what: String,
}

/// Reads one YAML document.
///
/// # Errors
/// Where the text is too large, is not YAML, or unfolds (by aliases) beyond the bounds in `limits`.
pub fn parse(text: &str) -> Result<Node, NotYaml> {
    if text.len() > CONFIG_FILE_BYTES {
        let (size, most) = (ByteSize(text.len() as u64), ByteSize(CONFIG_FILE_BYTES as u64));
        let at = At { line: 1, column: 1 };
        return Err(NotYaml { at, what: format!("the file has {size}, more than {most}") });
    }
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: CONFIG_DEPTH,
            max_nodes: CONFIG_NODES,
            max_events: 4 * CONFIG_NODES,
            max_documents: 1,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: CONFIG_ALIAS_EVENTS,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_yaml::from_str_with_options::<Spanned<Value>>(text, options).map(Node::from).map_err(
        |error| {
            let at = error.location().map_or(At { line: 1, column: 1 }, At::from);
            let what = error.without_snippet().to_string();
            NotYaml { at, what: what.lines().next().unwrap_or_default().to_owned() }
        },
    )
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { at: spanned.defined.into(), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Value>>()? {
            list.push(item.into());
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            let key = Key { at: key.defined.into(), text: key.value };
            map.push((key, entries.next_value::<Spanned<Value>>()?.into()));
        }
        Ok(Value::Map(map))
    }
}
