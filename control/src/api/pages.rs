//! Lists in pages, so that no answer grows with the platform: `?limit=&after=`, and a field `Link` that names the
//! next page (RFC 8288) as long as there is one.

use super::Problem;
use crate::apps::Caller;
use crate::store::{Page, Store, Stored};
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde::{Deserialize, Serialize};

/// Items of a page where nothing else is asked for, and at most.
const LIMIT: usize = 1_000;

/// Which part of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Part {
    /// Only of this app.
    pub(super) app: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

impl Part {
    fn limit(&self) -> Result<usize, Problem> {
        match self.limit.unwrap_or(LIMIT) {
            limit @ 1..=LIMIT => Ok(limit),
            _ => Err(Problem::invalid("limit", format!("a page has between 1 and {LIMIT} items"))),
        }
    }

    /// Where the caller's objects begin.
    fn prefix(&self, caller: &Caller) -> String {
        match &self.app {
            Some(app) => format!("{}/{app}/", caller.org),
            None => format!("{}/", caller.org),
        }
    }

    /// The tail of the key that the page comes after.
    pub(super) fn after(&self, caller: &Caller) -> Option<String> {
        self.after.as_ref().map(|after| format!("{}/{after}", caller.org))
    }

    /// The caller's objects of a kind.
    pub(super) fn of<T: Stored>(&self, store: &Store, caller: &Caller) -> Result<Page<T>, Problem> {
        Ok(store.page(&self.prefix(caller), self.after(caller).as_deref(), self.limit()?))
    }

    /// The part of a list that was found by something else than its key, in the order of keys.
    pub(super) fn of_found<T: Stored>(&self, found: Vec<T>, caller: &Caller) -> Result<Page<T>, Problem> {
        let tail = |item: &T| item.key()[T::KIND.len() + 1..].to_owned();
        let after = self.after(caller);
        let mut items: Vec<T> =
            found.into_iter().filter(|item| after.as_ref().is_none_or(|after| tail(item) > *after)).collect();
        let more = items.len() > self.limit()?;
        items.truncate(self.limit()?);
        let next = items.last().map(tail).filter(|_| more);
        Ok(Page { items, next })
    }

    /// The answer: the items as a list, and where the next ones are.
    pub(super) fn answer<T: Stored, V: Serialize>(
        &self,
        path: &str,
        caller: &Caller,
        page: Page<T>,
        view: impl FnMut(T) -> V,
    ) -> Response {
        let Page { items, next } = page;
        let mut response = Json(items.into_iter().map(view).collect::<Vec<V>>()).into_response();
        // Keys need no escapes in a query; an app that does has no objects, and so no next page.
        let after = next.as_deref().and_then(|next| next.strip_prefix(&format!("{}/", caller.org)));
        if let Some(after) = after {
            let app = self.app.iter().map(|app| format!("&app={app}")).collect::<String>();
            let limit = self.limit.iter().map(|limit| format!("&limit={limit}")).collect::<String>();
            let link = format!("<{path}?after={after}{limit}{app}>; rel=\"next\"");
            if let Ok(link) = HeaderValue::from_str(&link) {
                response.headers_mut().insert(header::LINK, link);
            }
        }
        response
    }
}
