//! Every route of the API with the least role that it needs: the one place that says so.
//!
//! A handler gets here by its name alone. Its path, method and parameters come from its own description
//! (`#[utoipa::path(…)]`), so that there is no route without a role, none that the document lacks, and no query
//! parameter that the document does not name.

use super::openapi::{Described, Document};
use super::{Api, auth};
use crate::store::objects::TokenRole;
use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};
use http::Method;
use serde_json::Value;
use std::sync::Arc;
use utoipa::OpenApi;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Least {
    /// Without a token.
    Anyone,
    /// Whoever has a token.
    Read,
    /// Those that change what runs.
    Deploy,
    /// Those that govern an organization.
    Admin,
    /// Those that run the platform.
    Operator,
}

impl Least {
    pub(super) const fn role(self) -> Option<TokenRole> {
        match self {
            Self::Anyone => None,
            Self::Read => Some(TokenRole::Read),
            Self::Deploy => Some(TokenRole::Deploy),
            Self::Admin => Some(TokenRole::Admin),
            Self::Operator => Some(TokenRole::Operator),
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        self.role().map_or("anyone", TokenRole::as_str)
    }
}

macro_rules! table {
    ($($least:ident { $($module:ident :: $handler:ident),+ $(,)? })+) => {
        fn collect() -> Table {
            let mut table = Table::new();
            $($({
                #[derive(OpenApi)]
                #[openapi(paths(super::$module::$handler))]
                struct One;
                let name = concat!(stringify!($module), "_", stringify!($handler));
                table.add(name, Least::$least, One::openapi(), super::$module::$handler);
            })+)+
            table
        }
    };
}

table! {
    Anyone {
        openapi::show,
    }
    Read {
        orgs::whoami,
        apps::list, apps::show,
        deploys::show, deploys::events,
        status::app, status::ready,
        lists::services, lists::revisions, lists::instances,
        domains::list, domains::show, domains::routes,
        logs::read, top::read,
        purges::show,
        cache::stats, cache::explain,
    }
    Deploy {
        apps::deploy, apps::remove,
        bundles::offer, bundles::upload,
        releases::rollback, releases::scale,
        domains::put, domains::remove,
        purges::create,
    }
    Admin {
        api_tokens::list, api_tokens::create, api_tokens::remove,
        audit::list,
    }
    Operator {
        orgs::list, orgs::create, orgs::remove,
        nodes::list, nodes::remove, sites::list,
        drains::list, drains::node_on, drains::node_off, drains::region_on, drains::region_off,
        tokens::list, tokens::create, tokens::remove,
        status::ca, status::held, status::confirm_held,
    }
}

/// One operation.
#[derive(Debug)]
pub(super) struct Operation {
    /// Who may call it.
    pub(super) least: Least,
    /// Its method.
    pub(super) method: Method,
    /// Its path, with parameters in braces.
    pub(super) template: String,
    /// The query parameters that it knows.
    pub(super) query: Vec<String>,
}

struct Table {
    document: Document,
    routes: Vec<(Arc<Operation>, MethodRouter<Api>)>,
}

impl Table {
    fn new() -> Self {
        Self { document: Document::new(), routes: Vec::new() }
    }

    fn add<H, T>(&mut self, name: &str, least: Least, described: utoipa::openapi::OpenApi, handler: H)
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        let Described { method, path, query } = self.document.add(name, least, described);
        let filter = MethodFilter::try_from(method.clone()).expect("it is a method that routers know");
        self.routes.push((Arc::new(Operation { least, method, template: path, query }), on(filter, handler)));
    }
}

/// The routes, each behind its guard.
pub(super) fn router(api: &Api) -> Router<Api> {
    collect().routes.into_iter().fold(Router::new(), |router, (operation, handler)| {
        let path = operation.template.clone();
        let guard = from_fn_with_state((api.clone(), operation), auth::guard);
        router.route(&path, handler.route_layer(guard))
    })
}

/// The description of them all.
pub(super) fn document() -> Value {
    collect().document.into_json()
}

/// Every operation.
#[cfg(test)]
pub(super) fn operations() -> Vec<Arc<Operation>> {
    collect().routes.into_iter().map(|(operation, _)| operation).collect()
}
