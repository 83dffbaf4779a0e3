//! Following a deploy to its end, over restarts of control.

use super::progress::Progress;
use crate::api::{Api, encode};
use crate::failure::{Exit, Failure, Outcome};
use crate::out;
use atoll_model::AppName;
use atoll_model::manifest::CompiledApp;
use http::Method;
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;

/// How long control may be away while a deploy is followed.
const AWAY_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(300);

/// How a deploy stands, as its `state` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It does what was asked.
    Done,
    /// It failed; what ran before still runs.
    RolledBack,
    /// It failed.
    Failed,
}

/// Whether and how a deploy has ended.
pub fn ended(deploy: &Value) -> Option<Ended> {
    match deploy["state"].as_str()? {
        "done" => Some(Ended::Done),
        "rolled-back" => Some(Ended::RolledBack),
        "failed" => Some(Ended::Failed),
        _ => None,
    }
}

/// Follows a deploy until it has ended; gives its last state. Each change is handed to `progress`.
pub async fn follow(api: &Api, id: &str, mut progress: Option<&mut Progress>) -> Outcome<Value> {
    let mut away_since: Option<Instant> = None;
    loop {
        let failure = match stream(api, id, &mut progress, &mut away_since).await {
            Ok(Some(deploy)) => return Ok(deploy),
            Ok(None) => None,
            Err(failure) if failure.exit == Exit::Unreachable => Some(failure),
            Err(failure) => return Err(failure),
        };
        if let Some(failure) = failure {
            let since = *away_since.get_or_insert_with(|| {
                out::note("control went away; the deploy goes on when it is back");
                Instant::now()
            });
            if since.elapsed() > AWAY_MAX {
                return Err(failure);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reads events until the deploy has ended (gives it) or the stream has.
async fn stream(
    api: &Api,
    id: &str,
    progress: &mut Option<&mut Progress>,
    away_since: &mut Option<Instant>,
) -> Outcome<Option<Value>> {
    let path = format!("/v1/deploys/{}", encode(id));
    let mut take = |deploy: Value| {
        *away_since = None;
        if let Some(progress) = progress.as_deref_mut() {
            progress.show(&deploy);
        }
        ended(&deploy).map(|_| deploy)
    };
    let mut events = api.events(&format!("{path}/events")).await?;
    while let Some(event) = events.next().await? {
        // What is no state of a deploy (a kind of event that came later than us) is passed over.
        let Ok(deploy) = serde_json::from_str::<Value>(&event.data) else { continue };
        if deploy["state"].is_string()
            && let Some(last) = take(deploy)
        {
            return Ok(Some(last));
        }
    }
    Ok(take(api.get(&path).await?))
}

/// Sends an app's desired state; gives the API's answer with the deploy's id.
pub async fn send(api: &Api, app: &CompiledApp, query: &str) -> Outcome<Value> {
    let body = serde_json::to_value(app).map_err(|error| Failure::failed(error.to_string()))?;
    api.change(Method::PUT, &format!("/v1/apps/{}{query}", app.app), Some(&body)).await
}

/// The deploy that an answer of the API speaks of.
pub fn deploy_id(answer: &Value) -> Outcome<String> {
    let id = out::lookup(answer, "deploy.id|deploy|id");
    id.as_str().map(str::to_owned).ok_or_else(|| Failure::failed("the API's answer names no deploy"))
}

/// Deploys without a word, waiting first for a deploy of the same app that still runs.
pub async fn deploy_quietly(api: &Api, app: &CompiledApp) -> Outcome {
    let answer = match send(api, app, "").await {
        Err(failure) if failure.busy => {
            let status = api.get(&format!("/v1/status/{}", app.app)).await?;
            follow(api, &deploy_id(&status)?, None).await?;
            send(api, app, "").await?
        }
        answer => answer?,
    };
    let last = follow(api, &deploy_id(&answer)?, None).await?;
    outcome(&last, app.app.as_str())
}

/// Removes an app without a word.
pub async fn delete_quietly(api: &Api, app: &AppName) -> Outcome {
    let answer = api.change(Method::DELETE, &format!("/v1/apps/{app}"), None).await?;
    let last = follow(api, &deploy_id(&answer)?, None).await?;
    outcome(&last, app.as_str())
}

/// What a deploy's last state means for the command that waited for it.
pub fn outcome(deploy: &Value, app: &str) -> Outcome {
    let exit = match ended(deploy) {
        Some(Ended::Done) => return Ok(()),
        Some(Ended::RolledBack) => Exit::RolledBack,
        Some(Ended::Failed) => Exit::NotRolledBack,
        None => Exit::TimedOut,
    };
    let cause = &deploy["cause"];
    let text = |key: &str| cause[key].as_str().filter(|text| !text.is_empty()).map(out::harmless);
    let mut what = format!(
        "the deploy of {app} failed: {}",
        text("message").unwrap_or_else(|| "no cause is known".to_owned())
    );
    let ended = match (cause["exit_status"].as_i64(), cause["signal"].as_i64()) {
        (_, Some(signal)) => Some((format!("signal {signal}"), format!(" (ended by signal {signal})"))),
        (Some(status), None) => Some((format!("status {status}"), format!(" (exit status {status})"))),
        (None, None) => None,
    };
    // Control's sentence often says it already.
    if let Some((_, text)) = ended.filter(|(said, _)| !what.contains(said.as_str())) {
        what.push_str(&text);
    }
    let mut failure = Failure::new(exit, what);
    let place: Vec<String> = ["service", "region", "instance"]
        .into_iter()
        .filter_map(|key| text(key).map(|value| format!("{key} {value}")))
        .collect();
    if !place.is_empty() {
        failure = failure.place(place.join(", "));
    }
    let output = cause["output"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let lines: Vec<String> = output.map(str::to_owned).collect();
    if !lines.is_empty() {
        failure = failure.details(std::iter::once("its last output:".to_owned()).chain(lines));
    }
    Err(match exit {
        Exit::RolledBack => {
            failure.fix("what ran before, if anything, still runs; mend the cause and deploy again")
        }
        _ => failure.fix(format!("`atoll status {app}` says what runs now")),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_state_has_its_exit_code() {
        let exit =
            |state: &str| outcome(&json!({ "state": state }), "shop").err().map(|failure| failure.exit);
        assert_eq!(exit("done"), None);
        assert_eq!(exit("rolled-back"), Some(Exit::RolledBack));
        assert_eq!(exit("failed"), Some(Exit::NotRolledBack));
        assert_eq!(exit("running"), Some(Exit::TimedOut));
    }

    #[test]
    fn a_failed_deploy_gives_its_cause() {
        let deploy = json!({ "state": "rolled-back", "cause": {
            "message": "the program ended", "service": "web", "region": "fra", "instance": "i-1",
            "exit_status": 3, "signal": null, "output": ["boom", "\u{1b}[2J"],
        }});
        let text = outcome(&deploy, "shop").unwrap_err().to_string();
        for part in [
            "the program ended (exit status 3)",
            "service web, region fra, instance i-1",
            "    boom",
            "\\u{1b}[2J",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
