//! The description of the API, made from the types that are sent.

use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Value, json};

use crate::report::Event;
use crate::sidecar::documents::{
    GateDocument, Health, Problem, RunAccepted, RunDocument, ServiceDocument, ServiceList,
};

/// OpenAPI 3.1.
pub(super) fn document() -> Value {
    let in_components = |settings: &mut SchemaSettings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    };
    let settings = SchemaSettings::draft2020_12().with(in_components).for_serialize();
    let mut schemas = settings.into_generator();
    let event = reference::<Event<'static>>(&mut schemas);
    let name = parameter("name", "path", "A service's name.");
    let timeout = parameter("timeout", "query", "Give up after this long, such as 500ms, 3s or 2m.");
    let services = reference::<ServiceList>(&mut schemas);
    let service = reference::<ServiceDocument>(&mut schemas);
    let accepted = reference::<RunAccepted>(&mut schemas);
    let run = reference::<RunDocument>(&mut schemas);
    let gate = reference::<GateDocument>(&mut schemas);
    let health = reference::<Health>(&mut schemas);
    let problem = reference::<Problem>(&mut schemas);
    let answers = |code: &str, what: &str, schema: &Value| {
        json!({
            code: { "description": what, "content": { "application/json": { "schema": schema } } },
            "default": { "description": "Anything else.", "content": { "application/json": { "schema": problem } } },
        })
    };
    let operation = |summary: &str, parameters: Value, responses: Value| json!({ "summary": summary, "parameters": parameters, "responses": responses });
    let text = |kinds: Value| json!({ "200": { "description": "It goes on until the client leaves.", "content": kinds } });
    let paths = json!({
        "/v1/services": { "get": operation("All services, in short.", json!([]), answers("200", "The services.", &services)) },
        "/v1/services/{name}": {
            "get": operation(
                "A service, looked at now.",
                json!([name, parameter("after", "query", "A look that began before this reading of CLOCK_MONOTONIC, in nanoseconds, will not do.")]),
                answers("200", "The service.", &service),
            ),
        },
        "/v1/services/{name}/restart": {
            "post": operation(
                "Restart a service, or join the restart that is under way; 409 when the service's configuration has changed since that began, or while its port is being freed, for it or for another service on the same address and port.",
                json!([name]),
                answers("202", "The run.", &accepted),
            ),
        },
        "/v1/services/{name}/free": {
            "post": operation(
                "End the stale holders of a service's endpoints and start nothing, or join the run that does so already; 409 for a service that is a systemd unit, while it is restarted, and while another service on the same address and port is restarted or freed.",
                json!([name]),
                answers("202", "The run.", &accepted),
            ),
        },
        "/v1/runs/{id}": {
            "get": operation(
                "A run and its events so far.",
                json!([
                    parameter("id", "path", "A run's id."),
                    parameter("wait", "query", "Answer only when it is finished, or after this long."),
                ]),
                answers("200", "The run.", &run),
            ),
        },
        "/v1/events": {
            "get": operation(
                "What happens, as it happens. A header Last-Event-ID resumes.",
                json!([parameter("service", "query", "Only about this service.")]),
                text(json!({
                    "text/event-stream": { "schema": { "type": "string" } },
                    "application/x-ndjson": { "schema": event },
                })),
            ),
        },
        "/v1/gate/{name}": {
            "get": operation("Wait until a service's endpoints are bindable.", json!([name, timeout]), answers("200", "It is open.", &gate)),
        },
        "/metrics": {
            "get": operation("Counters.", json!([]), json!({
                "200": { "description": "OpenMetrics.", "content": { "application/openmetrics-text": { "schema": { "type": "string" } } } },
            })),
        },
        "/healthz": { "get": operation("Whether the sidecar works.", json!([]), answers("200", "It does.", &health)) },
        "/openapi.json": { "get": operation("This.", json!([]), json!({ "200": { "description": "This." } })) },
    });
    json!({
        "openapi": "3.1.0",
        "info": { "title": "portguard", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": { "schemas": schemas.take_definitions(true) },
    })
}

fn reference<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    schemas.subschema_for::<T>().to_value()
}

fn parameter(name: &str, place: &str, what: &str) -> Value {
    json!({
        "name": name,
        "in": place,
        "required": place == "path",
        "description": what,
        "schema": { "type": "string" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(references.len() > 7);
        for reference in references {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }

    fn collect(value: &Value, references: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    match value.as_str() {
                        Some(reference) if key == "$ref" => references.push(reference.to_owned()),
                        _ => collect(value, references),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, references)),
            _ => {}
        }
    }
}
