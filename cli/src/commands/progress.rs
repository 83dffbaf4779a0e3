//! What a deploy does, a line for each region when something changed there.

use crate::out;
use serde_json::Value;
use std::collections::BTreeMap;

/// What was said so far.
#[derive(Debug)]
pub struct Progress {
    app: String,
    said: BTreeMap<String, String>,
}

impl Progress {
    /// Nothing yet.
    pub fn new(app: &str) -> Self {
        Self { app: app.to_owned(), said: BTreeMap::new() }
    }

    /// Says on stderr what is new.
    pub fn show(&mut self, deploy: &Value) {
        for line in self.news(deploy) {
            out::note(&out::harmless(&line));
        }
    }

    /// The lines that differ from what was said before.
    fn news(&mut self, deploy: &Value) -> Vec<String> {
        let delete = deploy["delete"].as_bool().unwrap_or(false);
        let mut lines = Vec::new();
        for (region, services) in deploy["regions"].as_object().into_iter().flatten() {
            let text = region_text(services, delete);
            if self.said.get(region) != Some(&text) {
                lines.push(format!("{}  {region}  {text}", self.app));
                self.said.insert(region.clone(), text);
            }
        }
        if deploy["state"] == "serving" {
            let edges = deploy["edges"].as_object();
            let serves = |edge: &&Value| edge["serves"].as_bool().unwrap_or(false);
            let (all, ready) =
                edges.map_or((0, 0), |edges| (edges.len(), edges.values().filter(serves).count()));
            let text = format!("edges that serve it: {ready}/{all}");
            if all > 0 && self.said.get("") != Some(&text) {
                lines.push(format!("{}  {text}", self.app));
                self.said.insert(String::new(), text);
            }
        }
        lines
    }
}

/// The step that a region is at, and how far.
fn region_text(services: &Value, delete: bool) -> String {
    let sum = |key: &str| -> u64 {
        services.as_object().into_iter().flatten().filter_map(|(_, counts)| counts[key].as_u64()).sum()
    };
    let (wanted, placed, healthy, old) = (sum("wanted"), sum("placed"), sum("healthy"), sum("old"));
    let step = if delete || (wanted == 0 && old > 0) {
        return if old > 0 { format!("stopping, {old} left") } else { "stopped".to_owned() };
    } else if placed == 0 {
        "placing "
    } else if healthy < wanted {
        "starting"
    } else if placed > wanted {
        return format!("draining  {wanted}/{wanted} healthy, {} more than wanted", placed - wanted);
    } else if old > 0 {
        "draining"
    } else {
        "healthy "
    };
    let replaced = if old > 0 { format!(", {old} of the old revision left") } else { String::new() };
    format!("{step}  {healthy}/{wanted} healthy{replaced}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_news_is_said() {
        let mut progress = Progress::new("shop");
        let at = |placed: u32, healthy: u32| {
            json!({ "state": "running", "regions": { "fra": { "web": {
                "wanted": 2, "placed": placed, "starting": placed - healthy, "healthy": healthy, "old": 0
            }}}})
        };
        assert_eq!(progress.news(&at(0, 0)), ["shop  fra  placing   0/2 healthy"]);
        assert_eq!(progress.news(&at(2, 1)), ["shop  fra  starting  1/2 healthy"]);
        assert!(progress.news(&at(2, 1)).is_empty());
        assert_eq!(progress.news(&at(2, 2)), ["shop  fra  healthy   2/2 healthy"]);
        let serving =
            json!({ "state": "serving", "edges": { "a": { "serves": true }, "b": { "serves": false } } });
        assert_eq!(progress.news(&serving), ["shop  edges that serve it: 1/2"]);
    }

    #[test]
    fn a_removal_counts_down() {
        let mut progress = Progress::new("shop");
        let at = |old: u32| json!({ "delete": true, "regions": { "fra": { "web": { "wanted": 0, "old": old } } } });
        assert_eq!(progress.news(&at(3)), ["shop  fra  stopping, 3 left"]);
        assert_eq!(progress.news(&at(0)), ["shop  fra  stopped"]);
    }
}
