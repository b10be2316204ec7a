//! JSON Schema as far as docs/schemas uses it. A keyword that is not known here is a mistake, so that nothing there
//! goes unchecked; and so is a key of an object that no schema describes, which JSON Schema itself would let pass.

use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Keys that say of which kind an object is.
const KINDS: [&str; 5] = ["type", "is", "result", "would", "command"];

/// The files of docs/schemas.
pub struct Schemas(BTreeMap<String, Value>);

impl Schemas {
    pub fn load() -> Schemas {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schemas");
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(&folder).expect("docs/schemas").flatten() {
            let name = entry.file_name().into_string().expect("plain names");
            if name.ends_with(".schema.json") {
                let text = fs::read_to_string(entry.path()).expect("a schema");
                all.insert(name.clone(), serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}")));
            }
        }
        Schemas(all)
    }

    /// Names of the commands that have one.
    pub fn commands(&self) -> Vec<&str> {
        self.0.keys().filter_map(|name| name.strip_suffix(".schema.json")).filter(|name| *name != "common").collect()
    }

    /// `command type` of every line that is described.
    pub fn kinds(&self) -> std::collections::BTreeSet<String> {
        let mut kinds = std::collections::BTreeSet::new();
        for command in self.commands() {
            let file = format!("{command}.schema.json");
            for schema in self.0[&file]["oneOf"].as_array().expect("alternatives") {
                let (_, schema) = schema["$ref"].as_str().map_or(Ok((file.clone(), schema)), |to| self.find(&file, to)).expect("a schema");
                kinds.insert(format!("{command} {}", schema["properties"]["type"]["const"].as_str().expect("a type")));
            }
        }
        kinds
    }

    /// What is wrong with a line of a command, if anything.
    pub fn check(&self, command: &str, line: &Value) -> Result<(), String> {
        let file = format!("{command}.schema.json");
        let schema = self.0.get(&file).ok_or_else(|| format!("docs/schemas/{file} is missing"))?;
        self.value(&file, schema, line).map_err(|what| format!("{command}: {what}\nin {line}"))
    }

    fn value(&self, file: &str, schema: &Value, value: &Value) -> Result<(), String> {
        let schema = schema.as_object().ok_or("a schema is an object")?;
        let known = |key: &str| !["$schema", "title", "description", "$defs"].contains(&key);
        for (keyword, wanted) in schema.iter().filter(|(key, _)| known(key)) {
            match keyword.as_str() {
                "$ref" => {
                    let (file, schema) = self.find(file, wanted.as_str().ok_or("$ref is a text")?)?;
                    self.value(&file, schema, value)?;
                }
                "oneOf" => self.one_of(file, wanted.as_array().ok_or("oneOf is a list")?, value)?,
                "type" => check_type(wanted, value)?,
                "const" if wanted == value => {}
                "const" => return Err(format!("{value} is not {wanted}")),
                "enum" if wanted.as_array().is_some_and(|all| all.contains(value)) => {}
                "enum" => return Err(format!("{value} is none of {wanted}")),
                "minimum" if value.is_null() || value.as_f64() >= wanted.as_f64() => {}
                "maximum" if value.as_f64() <= wanted.as_f64() => {}
                "minimum" | "maximum" => return Err(format!("{value} is beyond the {keyword} {wanted}")),
                "format" => check_format(wanted, value)?,
                "required" => {
                    let missing = wanted
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str)
                        .find(|key| value.is_object() && value.get(key).is_none());
                    missing.map_or(Ok(()), |key| Err(format!("{key} is missing")))?;
                }
                "items" => {
                    value.as_array().into_iter().flatten().try_for_each(|item| self.value(file, wanted, item))?;
                }
                "properties" | "additionalProperties" => self.object(file, schema, value)?,
                other => return Err(format!("tests/rig/schema.rs does not know the keyword {other}")),
            }
        }
        Ok(())
    }

    fn object(&self, file: &str, schema: &Map<String, Value>, value: &Value) -> Result<(), String> {
        // What tells alternatives apart goes first: it makes the better story.
        let mut keys: Vec<(&String, &Value)> = value.as_object().into_iter().flatten().collect();
        keys.sort_by_key(|(key, _)| KINDS.iter().position(|kind| kind == key).unwrap_or(KINDS.len()));
        for (key, value) in keys {
            let of_key = schema.get("properties").and_then(|all| all.get(key)).or_else(|| schema.get("additionalProperties"));
            let of_key = of_key.ok_or_else(|| format!("the key {key} is not described"))?;
            self.value(file, of_key, value).map_err(|what| format!("{key}: {what}"))?;
        }
        Ok(())
    }

    /// Exactly one fits. Where none does, the story is that of the alternative that came furthest.
    fn one_of(&self, file: &str, all: &[Value], value: &Value) -> Result<(), String> {
        let results: Vec<Result<(), String>> = all.iter().map(|schema| self.value(file, schema, value)).collect();
        match results.iter().filter(|result| result.is_ok()).count() {
            1 => Ok(()),
            0 => {
                let of_kind = |what: &&String| !KINDS.iter().any(|kind| what.starts_with(&format!("{kind}: ")));
                let told: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
                Err(told.iter().copied().find(of_kind).or(told.last().copied()).cloned().unwrap_or_default())
            }
            number => Err(format!("{number} alternatives fit")),
        }
    }

    fn find(&self, file: &str, reference: &str) -> Result<(String, &Value), String> {
        let (other, pointer) = reference.split_once('#').ok_or_else(|| format!("{reference} has no #"))?;
        let file = if other.is_empty() { file } else { other };
        let found = self.0.get(file).and_then(|schema| schema.pointer(pointer));
        found.map(|schema| (file.to_owned(), schema)).ok_or_else(|| format!("{reference} leads nowhere"))
    }
}

fn check_type(wanted: &Value, value: &Value) -> Result<(), String> {
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    let fits = match wanted {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
        _ => false,
    };
    fits.then_some(()).ok_or_else(|| format!("{value} is not of the type {wanted}"))
}

fn check_format(wanted: &Value, value: &Value) -> Result<(), String> {
    let Some(text) = value.as_str() else { return Ok(()) };
    let fits = match wanted.as_str() {
        Some("date-time") => text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok(),
        Some("uuid") => text.parse::<uuid::Uuid>().is_ok(),
        other => return Err(format!("tests/rig/schema.rs does not know the format {other:?}")),
    };
    fits.then_some(()).ok_or_else(|| format!("{value} is not of the format {wanted}"))
}
