//! What people see, and the same as JSON.

use http::HeaderMap;
use serde_json::{Value, json};

/// What the platform said of this instance.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) app: String,
    pub(crate) service: String,
    pub(crate) region: String,
    pub(crate) site: String,
    pub(crate) instance: String,
    pub(crate) revision: String,
}

impl Place {
    /// Reads the environment.
    pub(crate) fn from_environment() -> Self {
        let read = |name: &str| std::env::var(name).unwrap_or_else(|_| "-".to_owned());
        Self {
            app: read("ATOLL_APP"),
            service: read("ATOLL_SERVICE"),
            region: read("ATOLL_REGION"),
            site: read("ATOLL_SITE"),
            instance: read("ATOLL_INSTANCE"),
            revision: read("ATOLL_REVISION"),
        }
    }

    fn rows(&self) -> [(&'static str, &str); 6] {
        [
            ("region", &self.region),
            ("site", &self.site),
            ("instance", &self.instance),
            ("revision", &self.revision),
            ("service", &self.service),
            ("app", &self.app),
        ]
    }

    /// Place and request as JSON.
    pub(crate) fn json(&self, method: &str, target: &str, headers: &HeaderMap) -> Value {
        let mut value: Value =
            self.rows().into_iter().map(|(name, text)| (name.to_owned(), Value::from(text))).collect();
        value["pid"] = std::process::id().into();
        value["request"] = json!({ "method": method, "target": target, "headers": headers_json(headers) });
        value
    }

    /// The same as a page.
    pub(crate) fn html(&self, headers: &HeaderMap, api: Option<Result<Value, String>>) -> String {
        let region = escape(&self.region);
        let facts: String = self.rows().iter().map(|(name, text)| row(name, text)).collect();
        let shown: String = sorted(headers).iter().map(|(name, text)| row(name, text)).collect();
        let products = api.map_or_else(String::new, products);
        format!(
            "<!doctype html><html lang=en><head><meta charset=utf-8>\
             <meta name=viewport content=\"width=device-width,initial-scale=1\">\
             <title>Shop in {region}</title><style>{STYLE}</style></head><body><main>\
             <p class=kicker>The Atoll shop, served from</p><h1>{region}</h1>\
             {products}<section><h2>This instance</h2><table>{facts}</table></section>\
             <section><h2>The request it got</h2><table>{shown}</table></section>\
             <p class=foot>Also: <a href=/json>/json</a> <a href=/headers>/headers</a> <a href=/products>/products</a> <a href=/healthz>/healthz</a></p>\
             </main></body></html>\n"
        )
    }
}

/// What the api said, or why it did not.
fn products(said: Result<Value, String>) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows: String = match &said {
        Ok(said) => {
            let from = format!("{}, instance {}", text(&said["region"]), text(&said["instance"]));
            let price = |product: &Value| {
                let cents = product["price_cents"].as_u64().unwrap_or(0);
                format!("{}.{:02} €", cents / 100, cents % 100)
            };
            let products = said["products"].as_array().into_iter().flatten();
            let products = products.map(|product| row(&text(&product["name"]), &price(product)));
            products.chain([row("answered by", &from)]).collect()
        }
        Err(why) => row("no products", why),
    };
    format!("<section><h2>From the api</h2><table>{rows}</table></section>")
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#12343b;--soft:#5b7a80;--sand:#fbf6ec;--card:#fff;--sea:#0b8a8f;--line:#e6ddcb}\
@media(prefers-color-scheme:dark){:root{--ink:#e9f3f2;--soft:#93b0b3;--sand:#0d1f24;--card:#142b31;--sea:#4fd1c5;--line:#24424a}}\
*{box-sizing:border-box}body{margin:0;background:var(--sand);color:var(--ink);font:16px/1.5 system-ui,sans-serif}\
main{max-width:44rem;margin:0 auto;padding:3rem 1.25rem}\
.kicker{margin:0;color:var(--soft)}h1{margin:0 0 1.5rem;font-size:4.5rem;line-height:1.1;letter-spacing:-.03em;color:var(--sea)}\
section{background:var(--card);border:1px solid var(--line);border-radius:.75rem;padding:1rem 1.25rem;margin:0 0 1.25rem}\
h2{margin:0 0 .5rem;font-size:1rem;color:var(--soft);font-weight:600}\
table{width:100%;border-collapse:collapse}th,td{text-align:left;vertical-align:top;padding:.3rem 0;border-top:1px solid var(--line)}\
tr:first-child>*{border-top:0}th{width:11rem;padding-right:1rem;font-weight:500;color:var(--soft)}\
td{font-family:ui-monospace,monospace;font-size:.875rem;overflow-wrap:anywhere}\
.foot{color:var(--soft)}a{color:var(--sea);margin-right:.5rem}";

fn row(name: &str, text: &str) -> String {
    format!("<tr><th scope=row>{}</th><td>{}</td></tr>", escape(name), escape(text))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn sorted(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut list: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    list.sort();
    list
}

/// Every header; a name that came more than once has its values joined.
pub(crate) fn headers_json(headers: &HeaderMap) -> Value {
    let mut all = serde_json::Map::new();
    for (name, text) in sorted(headers) {
        match all.get_mut(&name) {
            Some(Value::String(before)) => {
                before.push_str(", ");
                before.push_str(&text);
            }
            _ => {
                all.insert(name, text.into());
            }
        }
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_the_request_is_markup() {
        let mut headers = HeaderMap::new();
        headers.insert("x-evil", "<script>\"&".parse().unwrap());
        let html = Place::from_environment().html(&headers, None);
        assert!(html.contains("&lt;script&gt;&quot;&amp;") && !html.contains("<script>"));
        let html = Place::from_environment().html(&headers, Some(Err("<script>".to_owned())));
        assert!(html.contains("no products") && !html.contains("<script>"));
    }

    #[test]
    fn the_products_are_shown_with_who_named_them() {
        let said = json!({ "region": "was", "instance": "i-7",
            "products": [{ "name": "Reef mug", "price_cents": 1450 }] });
        let html = Place::from_environment().html(&HeaderMap::new(), Some(Ok(said)));
        assert!(html.contains("Reef mug") && html.contains("14.50 €") && html.contains("was, instance i-7"));
    }

    #[test]
    fn repeated_headers_are_joined() {
        let mut headers = HeaderMap::new();
        headers.append("x-a", "1".parse().unwrap());
        headers.append("x-a", "2".parse().unwrap());
        assert_eq!(headers_json(&headers), json!({ "x-a": "1, 2" }));
    }
}
