//! JSON Schemas of the agent's file and of a model's policy, for editors: names, forms and defaults from the
//! table of settings, descriptions from the comments of `configs/agent.yaml`. What a value may be exactly is
//! said by `blochd config check`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::checked::{Config, ModelConfig};
use super::providers::Plugin;
use super::schema::{AGENT, MODEL, PLUGIN, Setting, Shape};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The commented file that says what each setting means.
const DOCUMENTED: &str = include_str!("../../configs/agent.yaml");

/// The schema of the agent's file and of the parts beside it.
pub fn agent() -> Value {
    let words = descriptions(DOCUMENTED);
    let mut schema = object(&words, "", AGENT, &Config::default());
    let model = object(&words, "defaults.", MODEL, &ModelConfig::default());
    let reference = json!({ "$ref": "#/$defs/model" });
    let described = |name: &str, mut schema: Value| {
        schema["description"] = json!(words.get(name).cloned().unwrap_or_default());
        schema
    };
    schema["properties"]["defaults"] = described("defaults", reference.clone());
    let models = json!({ "type": ["object", "null"], "additionalProperties": reference });
    schema["properties"]["models"] = described("models", models);
    let plugin = json!({ "$ref": "#/$defs/plugin" });
    let plugins = json!({ "type": ["object", "null"], "additionalProperties": plugin });
    schema["properties"]["plugins"] = described("plugins", plugins);
    schema["$schema"] = json!(DIALECT);
    schema["title"] = json!("blochd: the agent's configuration");
    schema["$defs"] = json!({ "model": model, "plugin": plugin_object() });
    schema
}

/// What the documented file says of plugins stands in one comment: here the parts of it.
const PLUGIN_WORDS: &[(&str, &str)] = &[
    ("library", "The vendor's library. A relative path starts from this file's folder."),
    ("sha256", "What `sha256sum` says of the library: another file is not loaded."),
    ("provider", "Name of the provider that is wanted of those in the library; auto: its first."),
    ("device", "Which of its devices, from 0 in the library's own order."),
];

/// The schema of one plugin. What it must have may stand in another part of the configuration.
fn plugin_object() -> Value {
    let words = PLUGIN_WORDS.iter().map(|(key, words)| ((*key).to_owned(), (*words).to_owned()));
    let mut schema = object(&words.collect(), "", PLUGIN, &Plugin::default());
    for required in ["library", "sha256"] {
        if let Some(own) = schema["properties"][required].as_object_mut() {
            own.remove("default");
        }
    }
    schema["properties"]["options"] = json!({
        "description": "The provider's own options.",
        "type": ["object", "null"],
        "additionalProperties": { "type": ["string", "number", "boolean"] },
    });
    schema
}

/// The schema of a model's `policy.yaml`.
pub fn policy() -> Value {
    let words = descriptions(DOCUMENTED);
    let mut schema = object(&words, "defaults.", MODEL, &ModelConfig::default());
    schema["$schema"] = json!(DIALECT);
    schema["title"] = json!("blochd: what holds for one model");
    schema
}

/// An object of the settings of a table; those with dots in their names lie in objects of their own.
fn object<T>(
    words: &BTreeMap<String, String>,
    above: &str,
    table: &[Setting<T>],
    defaults: &T,
) -> Value {
    let mut root = Value::Object(Map::new());
    for setting in table {
        let (mut place, mut path) = (&mut root, above.to_owned());
        let mut parts = setting.path.split('.').peekable();
        while let Some(part) = parts.next() {
            path.push_str(part);
            let described = words.get(&path).cloned().unwrap_or_default();
            let own = match parts.peek() {
                Some(_) => json!({ "description": described }),
                None => value(setting, &described, &(setting.get)(defaults)),
            };
            closed(place);
            let properties = &mut place["properties"];
            if properties[part].is_null() {
                properties[part] = own;
            }
            place = &mut properties[part];
            path.push('.');
        }
    }
    root
}

/// Makes a schema that of a map with no other keys than those that are listed.
fn closed(schema: &mut Value) {
    if schema["properties"].is_null() {
        // A level with nothing below it is an empty map.
        schema["type"] = json!(["object", "null"]);
        schema["additionalProperties"] = json!(false);
        schema["properties"] = json!({});
    }
}

fn value<T>(setting: &Setting<T>, described: &str, default: &str) -> Value {
    let mut schema = match setting.shape {
        Shape::Path => json!({ "type": "string" }),
        Shape::Scalar if matches!(default, "true" | "false") => json!({ "type": "boolean" }),
        Shape::Scalar if default.parse::<i64>().is_ok() => json!({ "type": ["integer", "number"] }),
        Shape::Scalar if default.parse::<f64>().is_ok() => json!({ "type": "number" }),
        // `auto` or a number, a time or a size.
        Shape::Scalar => json!({ "type": ["string", "number"] }),
        Shape::Flag => json!({ "type": ["boolean", "string"] }),
        Shape::List => json!({ "type": "array", "items": { "type": "number" } }),
        Shape::Names => json!({ "type": ["array", "string"], "items": { "type": "string" } }),
        Shape::Paths => json!({ "type": "array", "items": { "type": "string" } }),
        Shape::Map => {
            json!({ "type": "object", "additionalProperties": { "type": ["string", "number"] } })
        }
        Shape::Pair => json!({ "oneOf": [
            { "type": "string" },
            {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "additionalProperties": { "type": "string" },
            },
        ] }),
    };
    schema["description"] = json!(described);
    schema["default"] = match (setting.shape, serde_json::from_str::<Value>(default)) {
        (Shape::Scalar, Ok(plain @ (Value::Bool(_) | Value::Number(_)))) => plain,
        (Shape::List, _) => {
            serde_json::from_str(&format!("[{default}]")).unwrap_or_else(|_| json!(default))
        }
        (Shape::Paths | Shape::Names, _) if default.is_empty() => json!([]),
        (Shape::Map, _) if default.is_empty() => json!({}),
        _ => json!(default),
    };
    schema
}

/// The comment above each key, by the key's full path, in one line.
fn descriptions(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut above: Vec<(usize, &str)> = Vec::new();
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(words) = line.strip_prefix('#') {
            comment.push(words.trim());
            continue;
        }
        if let Some((key, _)) = line.split_once(':') {
            above.retain(|(outer, _)| *outer < indent);
            above.push((indent, key));
            let path: Vec<&str> = above.iter().map(|(_, key)| *key).collect();
            found.insert(path.join("."), comment.join(" "));
        }
        comment.clear();
    }
    found
}
