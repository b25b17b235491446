//! The OpenAPI document: made from the types and the handlers, so that it cannot say something else.

use std::sync::Arc;

use axum::Router;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{App, blobs, execute, health, images, jobs, judge, live, sessions};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Faber",
        description = "Runs untrusted programs for other programs: every task in a fresh sandbox of its own.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "This server")),
    security(("api_key" = []), ()),
    modifiers(&ApiKey),
    tags(
        (name = "Health Check", description = "Whether the service runs"),
        (name = "Task Execution", description = "Running tasks"),
        (name = "Images", description = "What tasks can run in"),
        (name = "Jobs", description = "Tasks and judgements whose answers are fetched later"),
        (name = "Sessions", description = "Containers that stay, and what is run in them"),
        (name = "Blobs", description = "Bytes by their digest, for tasks to take and to leave"),
    )
)]
struct Base;

struct ApiKey;

impl Modify for ApiKey {
    fn modify(&self, document: &mut Document) {
        let mut http = Http::new(HttpAuthScheme::Bearer);
        http.description = Some("An API key. Not needed where the server is in open mode.".into());
        document.components.get_or_insert_default().add_security_scheme("api_key", SecurityScheme::Http(http));
    }
}

pub(super) fn execute_route() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(execute::execute))
        .routes(routes!(live::live))
        .routes(routes!(judge::judge))
        .routes(routes!(images::images))
        .routes(routes!(images::languages))
        .routes(routes!(jobs::submit, jobs::list))
        .routes(routes!(jobs::get, jobs::delete))
        .routes(routes!(sessions::create, sessions::list))
        .routes(routes!(sessions::get, sessions::delete))
        .routes(routes!(sessions::run))
        .routes(routes!(sessions::list_files))
        .routes(routes!(sessions::get_file, sessions::put_file, sessions::delete_file))
        .routes(routes!(sessions::snapshot))
        .routes(routes!(blobs::put))
        .routes(routes!(blobs::put_named, blobs::get, blobs::head, blobs::delete))
}

/// All routes, with the document that describes them.
pub(super) fn routes(execute: OpenApiRouter<Arc<App>>) -> (Router<Arc<App>>, Document) {
    let (router, mut document) =
        OpenApiRouter::with_openapi(Base::openapi()).routes(routes!(health::health)).merge(execute).split_for_parts();
    // What takes the rest of a path is a parameter like any other there.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    (router, document)
}

/// The document alone.
pub fn document() -> Document {
    routes(execute_route()).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn every_answer_has_a_body_with_an_example() {
        let document = serde_json::to_value(document()).unwrap();
        let statuses = |path: &str, method: &str| -> Vec<String> {
            let responses = document["paths"][path][method]["responses"].as_object().unwrap();
            for (status, response) in responses {
                let content = &response["content"]["application/json"];
                assert!(content["schema"].is_object(), "{status}");
                assert!(matches!(&**status, "200" | "202") || content["example"]["details"].is_string(), "{status}");
            }
            responses.keys().cloned().collect()
        };
        let execute = ["200", "400", "401", "403", "408", "413", "415", "429", "500", "503"];
        assert_eq!(statuses("/execute", "post"), execute);
        let jobs = ["202", "400", "401", "403", "408", "413", "415", "422", "429", "500", "503", "507"];
        assert_eq!(statuses("/jobs", "post"), jobs);
        assert_eq!(statuses("/images", "get"), ["200", "401", "403", "429", "500"]);
        assert_eq!(document["components"]["securitySchemes"]["api_key"]["scheme"], "bearer");
    }

    /// Or whoever makes a client of it has one name twice (OpenAPI 3.1, Operation Object).
    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let document = serde_json::to_value(document()).unwrap();
        let operations = document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap());
        let names: Vec<&str> = operations.filter_map(|(_, operation)| operation["operationId"].as_str()).collect();
        let different: std::collections::BTreeSet<&str> = names.iter().copied().collect();
        assert!(names.len() > 20 && names.len() == different.len(), "{names:?}");
    }

    #[test]
    fn the_examples_are_what_they_stand_for() {
        let document = serde_json::to_value(document()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let example = |name: &str| schemas[name]["example"].clone();
        serde_json::from_value::<execute::ExecuteRequest>(example("ExecuteRequest")).unwrap();
        serde_json::from_value::<execute::ExecuteResponse>(example("ExecuteResponse")).unwrap();
        serde_json::from_value::<crate::task::TaskRequest>(example("TaskRequest")).unwrap();
        let fields = |name: &str| schemas[name]["properties"].as_object().unwrap().clone();
        for (name, schema) in schemas {
            let has = |schema: &Value| {
                ["example", "$ref", "oneOf", "anyOf", "allOf"].iter().any(|key| schema.get(*key).is_some())
            };
            let whole = has(schema) || schema.get("enum").is_some();
            let complete = whole || fields(name).values().all(|field| has(field) || field["type"] == "boolean");
            assert!(complete, "{name} has no example");
        }
    }
}
