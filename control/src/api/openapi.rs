//! The API's description of itself.

use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};

#[derive(OpenApi)]
#[openapi(
    info(title = "Atoll", description = "The user plane of an Atoll platform", version = "1"),
    paths(
        super::apps::list,
        super::apps::show,
        super::apps::deploy,
        super::apps::remove,
        super::deploys::show,
        super::deploys::events,
        super::status::app,
        super::lists::services,
        super::lists::revisions,
        super::lists::instances,
        super::logs::read,
        super::lists::domains,
        super::nodes::list,
        super::nodes::remove,
        super::tokens::list,
        super::tokens::create,
        super::tokens::remove,
        super::status::ca,
        super::status::ready,
        super::status::held,
        super::status::confirm_held,
    ),
    components(schemas(crate::reconciler::verdict::Counts, crate::reconciler::progress::EdgeStatus))
)]
struct Document;

/// The OpenAPI document.
pub(super) fn document() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_with(Default::default).add_security_scheme("token", bearer);
    document.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    document
}
