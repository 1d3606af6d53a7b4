//! As much of JSON Schema as the service's OpenAPI document uses: enough to say whether an answer is
//! what the document promises. A key the document does not name is an error as well.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Checks `value` against `schema`, whose references point into `document`.
pub(crate) fn check(document: &Value, schema: &Value, value: &Value) -> Result<()> {
    at(document, schema, value, "$")
}

fn at(document: &Value, schema: &Value, value: &Value, place: &str) -> Result<()> {
    let schema = resolve(document, schema)?;
    if let Some(choices) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
        let outcomes: Vec<String> = choices
            .iter()
            .filter_map(|choice| at(document, choice, value, place).err())
            .map(|error| format!("{error:#}"))
            .collect();
        ensure!(
            outcomes.len() < choices.len(),
            "{place} fits no choice: {outcomes:?}"
        );
        return Ok(());
    }
    if let Some(allowed) = schema["enum"].as_array() {
        ensure!(
            allowed.contains(value),
            "{place} is {value}, not one of {allowed:?}"
        );
    }
    check_type(schema, value, place)?;
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (index, value) in values.iter().enumerate() {
            at(document, items, value, &format!("{place}[{index}]"))?;
        }
    }
    let Some(object) = value.as_object() else {
        return Ok(());
    };
    let mut known = BTreeSet::new();
    let open = properties(document, schema, value, place, &mut known)?;
    for key in object.keys() {
        ensure!(
            open || known.contains(key),
            "{place}.{key} is not documented"
        );
    }
    Ok(())
}

/// Checks the properties an object schema names, itself or by `allOf`; whether others may be there.
fn properties(
    document: &Value,
    schema: &Value,
    value: &Value,
    place: &str,
    known: &mut BTreeSet<String>,
) -> Result<bool> {
    let schema = resolve(document, schema)?;
    let mut open = match schema.get("additionalProperties") {
        Some(Value::Bool(open)) => *open,
        Some(_) => true,
        // A free-form object names nothing.
        None => schema.get("properties").is_none() && schema.get("allOf").is_none(),
    };
    for part in schema["allOf"].as_array().into_iter().flatten() {
        let part = resolve(document, part)?;
        // A part that only allows more does not make the whole free-form.
        open |= properties(document, part, value, place, known)?;
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().context("a required name")?;
        ensure!(value.get(name).is_some(), "{place}.{name} is missing");
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        known.insert(name.clone());
        if let Some(value) = value.get(name) {
            at(document, schema, value, &format!("{place}.{name}"))?;
        }
    }
    Ok(open)
}

fn check_type(schema: &Value, value: &Value, place: &str) -> Result<()> {
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let fits = types.iter().any(|name| match *name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    });
    ensure!(fits, "{place} is {value}, not of type {types:?}");
    Ok(())
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> Result<&'a Value> {
    let Some(reference) = schema["$ref"].as_str() else {
        return Ok(schema);
    };
    let pointer = reference.strip_prefix('#').context("a local reference")?;
    match document.pointer(pointer) {
        Some(schema) => resolve(document, schema),
        None => bail!("{reference} is not in the document"),
    }
}
