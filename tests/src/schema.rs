//! Checking values against the schemas that the sidecar publishes: the part of JSON Schema that
//! those use. A keyword that is not known here is an error, so nothing goes unchecked.

use serde_json::Value;

/// What speaks of a schema and does not restrict anything.
const REMARKS: [&str; 5] = ["description", "title", "format", "default", "$schema"];

/// Checks `value` against `schema`; references lead into `document`.
///
/// # Errors
/// Where it differs, and how.
pub fn check(document: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let schema = match schema {
        Value::Bool(true) => return Ok(()),
        Value::Object(schema) => schema,
        other => return Err(format!("{place}: no schema: {other}")),
    };
    for (keyword, rule) in schema {
        let wrong = |what: String| Err(format!("{place}: {what}: {value}"));
        match keyword.as_str() {
            remark if REMARKS.contains(&remark) => {}
            "$ref" => {
                let pointer =
                    rule.as_str().and_then(|reference| reference.strip_prefix('#')).unwrap_or_default();
                let target = document.pointer(pointer).ok_or(format!("{place}: {rule} leads nowhere"))?;
                check(document, target, value, place)?;
            }
            "type" => {
                let one = [rule.clone()];
                let kinds = rule.as_array().map_or(one.as_slice(), Vec::as_slice);
                if !kinds.iter().any(|kind| is_a(value, kind.as_str().unwrap_or_default())) {
                    return wrong(format!("is not {rule}"));
                }
            }
            "const" if rule != value => return wrong(format!("is not {rule}")),
            "enum" if !rule.as_array().is_some_and(|all| all.contains(value)) => {
                return wrong(format!("is none of {rule}"));
            }
            "const" | "enum" => {}
            "minimum" | "maximum" => {
                let (bound, number) = (rule.as_f64().unwrap_or(f64::NAN), value.as_f64());
                let within =
                    number.is_none_or(
                        |number| if keyword == "minimum" { number >= bound } else { number <= bound },
                    );
                if !within {
                    return wrong(format!("is beyond {rule}"));
                }
            }
            "required" => {
                for name in rule.as_array().into_iter().flatten().filter_map(Value::as_str) {
                    if value.is_object() && value.get(name).is_none() {
                        return wrong(format!("{name} is missing"));
                    }
                }
            }
            "properties" => {
                for (name, schema) in rule.as_object().into_iter().flatten() {
                    if let Some(value) = value.get(name) {
                        check(document, schema, value, &format!("{place}.{name}"))?;
                    }
                }
            }
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                for (name, value) in value.as_object().into_iter().flatten() {
                    if known.is_none_or(|known| !known.contains_key(name)) {
                        check(document, rule, value, &format!("{place}.{name}"))?;
                    }
                }
            }
            "items" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    check(document, rule, value, &format!("{place}[{index}]"))?;
                }
            }
            "allOf" => {
                for schema in rule.as_array().into_iter().flatten() {
                    check(document, schema, value, place)?;
                }
            }
            "oneOf" | "anyOf" => {
                let tried: Vec<Result<(), String>> = rule
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|schema| check(document, schema, value, place))
                    .collect();
                let fitting = tried.iter().filter(|fits| fits.is_ok()).count();
                if fitting == 0 || (keyword == "oneOf" && fitting > 1) {
                    let why: Vec<String> = tried.into_iter().filter_map(Result::err).collect();
                    return Err(format!("{place}: fits {fitting} of {keyword}: {}", why.join("; ")));
                }
            }
            other => return Err(format!("{place}: the keyword {other} is not known to this test")),
        }
    }
    Ok(())
}

fn is_a(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_does_not_fit_is_found() {
        let document = json!({ "a": { "type": "object", "required": ["n"], "properties": { "n": { "type": ["integer", "null"] } } } });
        let schema = json!({ "$ref": "#/a" });
        assert_eq!(check(&document, &schema, &json!({ "n": 1 }), "it"), Ok(()));
        for wrong in [json!({}), json!({ "n": "1" }), json!({ "n": 1.5 }), json!([])] {
            assert!(check(&document, &schema, &wrong, "it").is_err(), "{wrong}");
        }
        let either = json!({ "oneOf": [{ "const": 1 }, { "const": 2 }] });
        assert!(
            check(&document, &either, &json!(2), "it").is_ok()
                && check(&document, &either, &json!(3), "it").is_err()
        );
        assert!(check(&document, &json!({ "not": {} }), &json!(1), "it").is_err(), "an unknown keyword");
    }
}
