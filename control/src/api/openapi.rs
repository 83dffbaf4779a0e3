//! The API's description of itself, made of the routes that there are: see [`super::routes`].

use super::Problem;
use super::routes::{self, Least};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Method, header};
use serde_json::{Value, json};
use std::sync::LazyLock;
use utoipa::OpenApi;

const PROBLEM_MEDIA: &str = "application/problem+json";
const PROBLEM_SCHEMA: &str = "#/components/schemas/Problem";
/// Names of the members of a path item that are operations.
const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

const ABOUT: &str = "The user plane of an Atoll platform.

Every call but this description needs a bearer token. A token acts for one organization; what belongs to another \
is not found. `x-atoll-role` is the least role that an operation needs: `read`, `deploy`, `admin`, `operator`; each \
may do what those before it may, and `operator` is for tokens of the organization `default` alone.

Errors are `application/problem+json` with a stable `code`. A query parameter that an operation does not list is \
refused (400). A change may carry an `Idempotency-Key`: the same request with it again, by the same token, gets the \
first answer for 24 hours. `X-Request-Id` is taken over or made, and given back.";

#[derive(OpenApi)]
#[openapi(
    info(title = "Atoll", version = "1"),
    components(schemas(
        Problem,
        crate::reconciler::verdict::Counts,
        crate::reconciler::progress::EdgeStatus
    ))
)]
struct Base;

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json",
    responses((status = 200, body = Object, content_type = "application/json")))]
pub(super) async fn show() -> Response {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| routes::document().to_string().into());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone()).into_response()
}

/// One operation, as its handler describes it.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) method: Method,
    pub(super) path: String,
    /// The query parameters that it has.
    pub(super) query: Vec<String>,
}

/// The description in the making.
#[derive(Debug)]
pub(super) struct Document(Value);

impl Document {
    pub(super) fn new() -> Self {
        let mut base = serde_json::to_value(Base::openapi()).expect("a description is JSON");
        base["info"]["description"] = ABOUT.into();
        base["components"]["securitySchemes"] = json!({ "token": { "type": "http", "scheme": "bearer" } });
        base["security"] = json!([{ "token": [] }]);
        Self(base)
    }

    pub(super) fn into_json(self) -> Value {
        self.0
    }

    /// Adds the one operation of `part`, under a name of its own, with what every operation can answer.
    pub(super) fn add(&mut self, name: &str, least: Least, part: utoipa::openapi::OpenApi) -> Described {
        let mut part = serde_json::to_value(part).expect("a description is JSON");
        let (path, mut item) = take_first(&mut part["paths"]).expect("a handler has one path");
        let method = METHODS.into_iter().find(|method| item[*method].is_object());
        let method = method.expect("a handler has one method, and it is a common one");
        let mut operation = item[method].take();
        operation["operationId"] = name.into();
        operation.as_object_mut().expect("it is an object").remove("tags");
        complete(&mut operation, least, method);
        let query = query_parameters(&operation);
        self.0["paths"][&path][method] = operation;
        if let Some(schemas) = part["components"]["schemas"].as_object() {
            for (name, schema) in schemas {
                let known = &mut self.0["components"]["schemas"][name];
                // Two types of one name would describe each other's members.
                assert!(known.is_null() || known == schema, "two schemas are called `{name}`: rename one");
                *known = schema.clone();
            }
        }
        let method = method.to_uppercase().parse().expect("it is one of the common methods");
        Described { method, path, query }
    }
}

fn take_first(object: &mut Value) -> Option<(String, Value)> {
    let object = object.as_object_mut()?;
    let key = object.keys().next()?.clone();
    let value = object.remove(&key)?;
    Some((key, value))
}

fn query_parameters(operation: &Value) -> Vec<String> {
    let all = operation["parameters"].as_array().into_iter().flatten();
    let of_query = all.filter(|parameter| parameter["in"] == "query");
    of_query.filter_map(|parameter| parameter["name"].as_str().map(str::to_owned)).collect()
}

/// What the operations have in common: whom they let in, and how they refuse.
fn complete(operation: &mut Value, least: Least, method: &str) {
    operation["x-atoll-role"] = least.as_str().into();
    if let Some(body) = operation["requestBody"].as_object_mut() {
        body.insert("required".to_owned(), true.into());
    }
    let has_body = operation["requestBody"].is_object();
    let mut refusals = vec![("400", "it cannot be read, or has a parameter that is not listed here")];
    match least.role() {
        None => operation["security"] = json!([]),
        Some(role) => {
            refusals.push(("401", "there is no valid token"));
            refusals.push(("408", "the body did not arrive in time"));
            // Every token may read.
            if role > crate::store::objects::TokenRole::Read {
                refusals.push(("403", "the token's role may not do this"));
            }
        }
    }
    if method != "get" {
        // Once, also where a handler describes it.
        if let Some(parameters) = operation["parameters"].as_array_mut() {
            parameters.retain(|parameter| parameter["name"] != "Idempotency-Key");
        }
        let key = json!({
            "name": "Idempotency-Key", "in": "header", "required": false,
            "description": "the same request with the same key gets the first answer again, for 24 hours",
            "schema": { "type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$" },
        });
        match operation["parameters"].as_array_mut() {
            Some(parameters) => parameters.push(key),
            None => operation["parameters"] = json!([key]),
        }
        refusals
            .push(("422", "it can be read and makes no sense, or the idempotency key was used for another"));
        refusals.push(("503", "the store takes no changes now"));
        refusals.push(("507", "the store's disk is full; nothing was changed"));
    }
    if has_body {
        refusals.push(("413", "the body is too large"));
    }
    let responses = operation["responses"].as_object_mut().expect("an operation has responses");
    responses.values_mut().for_each(as_problem);
    responses.values_mut().for_each(as_events);
    for (status, description) in refusals {
        responses.entry(status).or_insert_with(|| problem_response(description));
    }
}

fn problem_response(description: &str) -> Value {
    json!({ "description": description, "content": problem_content() })
}

fn problem_content() -> Value {
    json!({ PROBLEM_MEDIA: { "schema": { "$ref": PROBLEM_SCHEMA } } })
}

/// Problems have a media type of their own, which handlers need not repeat.
fn as_problem(response: &mut Value) {
    if response["content"]["application/json"]["schema"]["$ref"] == PROBLEM_SCHEMA {
        response["content"] = problem_content();
    }
}

/// A stream of events has no schema as a whole: that of their data stands beside it.
fn as_events(response: &mut Value) {
    if let Some(Value::Object(content)) = response.pointer_mut("/content/text~1event-stream")
        && let Some(schema) = content.insert("schema".to_owned(), json!({}))
    {
        content.insert("x-event-data".to_owned(), schema);
    }
}

/// The operations of a document: method and path.
#[cfg(test)]
pub(super) fn operations(document: &Value) -> Vec<(String, String)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    let of_path = |(path, item): (&String, &Value)| {
        let methods = METHODS.into_iter().filter(|method| item[*method].is_object());
        methods.map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
    };
    paths.flat_map(of_path).collect()
}
