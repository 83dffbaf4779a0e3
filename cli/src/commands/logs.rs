//! `atoll logs`

use super::{api, interrupted, moments};
use crate::api::{Api, Event, encode};
use crate::args::{Global, LogsArgs};
use crate::failure::{Exit, Failure, Outcome};
use crate::out::{self, Format, Paint};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Pauses between tries to read on, when the connection broke.
const PAUSE_MIN: Duration = Duration::from_millis(300);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How much before the last line a new stream begins, ms: times are not exact. What was shown already is
/// known by its position.
const OVERLAP_MS: u64 = 2_000;
const TAIL_MAX: u32 = 10_000;

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Asked {
    app: Option<String>,
    service: Option<String>,
    region: Option<String>,
    instance: Option<String>,
    grep: Option<String>,
    since_ms: u64,
    tail: u32,
    follow: bool,
}

pub(super) async fn run(args: LogsArgs, global: &Global) -> Outcome {
    let asked = Asked::of(&args, atoll_process::clock::unix_ms())?;
    let api = api(global)?;
    let view = View { format: global.output, labelled: asked.instance.is_none(), times: args.times };
    let all = async {
        if asked.follow { follow(&api, &asked, view).await } else { show(&api, &asked, view).await }
    };
    tokio::select! {
        ended = all => ended,
        _ = tokio::signal::ctrl_c() => Err(interrupted()),
    }
}

impl Asked {
    fn of(args: &LogsArgs, now_ms: u64) -> Outcome<Self> {
        let (mut app, mut service, mut instance) = (None, args.service.clone(), args.instance.clone());
        match args.of.as_deref() {
            Some(id) if id.parse::<atoll_model::InstanceId>().is_ok() => match &instance {
                Some(other) if other != id => {
                    return Err(Failure::usage(format!("`{id}` and `--instance {other}` are two instances")));
                }
                _ => instance = Some(id.to_owned()),
            },
            Some(of) => match of.split_once('/') {
                Some((_, of_app)) if service.as_deref().is_some_and(|service| service != of_app) => {
                    return Err(Failure::usage(format!("`{of}` and `--service` name two services")));
                }
                Some((name, of_app)) => (app, service) = (Some(name.to_owned()), Some(of_app.to_owned())),
                None => app = Some(of.to_owned()),
            },
            None => {}
        }
        let since = args.since.as_deref().map(|text| moments::parse(text, now_ms));
        Ok(Self {
            app,
            service,
            region: args.region.clone(),
            instance,
            grep: args.grep.clone().filter(|text| !text.is_empty()),
            since_ms: since.transpose()?.unwrap_or(0),
            tail: args.tail,
            follow: args.follow,
        })
    }

    fn path(&self) -> String {
        let mut path = format!("/v1/logs?tail={}&follow={}", self.tail, self.follow);
        let texts = [
            ("app", &self.app),
            ("service", &self.service),
            ("region", &self.region),
            ("instance", &self.instance),
            ("grep", &self.grep),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                path.push_str(&format!("&{name}={}", encode(text)));
            }
        }
        if self.since_ms > 0 {
            path.push_str(&format!("&since_ms={}", self.since_ms));
        }
        path
    }

    /// As a person would say it.
    fn name(&self) -> String {
        let name = match (&self.instance, &self.app, &self.service) {
            (Some(instance), _, _) => instance.clone(),
            (None, Some(app), Some(service)) => format!("{app}/{service}"),
            (None, app, service) => app.clone().or_else(|| service.clone()).unwrap_or_default(),
        };
        out::harmless(&name)
    }
}

/// How lines are shown.
#[derive(Debug, Clone, Copy)]
struct View {
    format: Format,
    labelled: bool,
    times: bool,
}

/// What came so far.
#[derive(Debug, Default)]
struct Seen {
    /// Of each instance, where its last line ended.
    positions: BTreeMap<String, u64>,
    /// The latest time of a line.
    at_ms: u64,
    /// Lines up to this time may come again.
    again_until_ms: u64,
    lines: u64,
    /// How often an instance could not be read.
    errors: u64,
    /// What `end` said of how many there were.
    instances: Option<u64>,
}

/// What there is.
async fn show(api: &Api, asked: &Asked, view: View) -> Outcome {
    let mut seen = Seen::default();
    let ended = read(api, asked, view, &mut seen).await?;
    if out::stdout_gone() {
        return Ok(());
    }
    if !ended {
        return Err(Failure::new(Exit::Unreachable, "the stream ended before everything was told"));
    }
    if seen.instances == Some(0) {
        return Err(Failure::failed(format!("no instance of `{}` runs", asked.name()))
            .fix("`atoll instances` lists the instances; name one, an app, or APP/SERVICE"));
    }
    if seen.errors > 0 {
        return Err(Failure::failed("not everything could be read; see above"));
    }
    if seen.lines == 0 {
        out::note(match (&asked.grep, asked.since_ms) {
            (None, 0) => "nothing was written so far",
            _ => "no line is meant",
        });
    }
    Ok(())
}

/// What there is and what comes, also from instances that start meanwhile, and over restarts of control.
async fn follow(api: &Api, asked: &Asked, view: View) -> Outcome {
    let (mut seen, mut asked) = (Seen::default(), asked.clone());
    let (mut pause, mut connected) = (PAUSE_MIN, false);
    loop {
        let before = seen.lines;
        let why = match read(api, &asked, view, &mut seen).await {
            Ok(true) => return Ok(()),
            _ if out::stdout_gone() => return Ok(()),
            Ok(false) => "control ended the stream".to_owned(),
            Err(failure) if failure.exit == Exit::Unreachable && (connected || seen.lines > 0) => {
                failure.what
            }
            Err(failure) => return Err(failure),
        };
        if seen.lines > before {
            pause = PAUSE_MIN;
        }
        if pause == PAUSE_MIN {
            out::note(&out::for_stderr(Paint::Dim, &format!("{}; trying to go on", out::harmless(&why))));
        }
        connected = true;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        if seen.at_ms > 0 {
            let away = atoll_process::clock::unix_ms().saturating_sub(seen.at_ms);
            let overlap_ms = OVERLAP_MS + away / 128;
            asked.since_ms = asked.since_ms.max(seen.at_ms.saturating_sub(overlap_ms));
            seen.again_until_ms = seen.at_ms + overlap_ms;
            asked.tail = TAIL_MAX;
        }
    }
}

/// Shows a stream; whether it came to its end, rather than broke off.
async fn read(api: &Api, asked: &Asked, view: View, seen: &mut Seen) -> Outcome<bool> {
    let mut events = api.events(&asked.path()).await?;
    while let Some(Event { name, data, .. }) = events.next().await? {
        let fields: Value = serde_json::from_str(&data)
            .map_err(|error| Failure::failed(format!("the API sent an event that is no JSON: {error}")))?;
        match name.as_str() {
            "line" => {
                if seen.is_new(&fields) {
                    show_line(&fields, view);
                }
            }
            "end" => {
                seen.instances = fields["instances"].as_u64();
                return Ok(true);
            }
            other => {
                seen.errors += u64::from(other == "error");
                if let Some(text) = notice(other, &fields) {
                    out::note(&out::for_stderr(Paint::Dim, &out::harmless(&text)));
                }
            }
        }
        if out::stdout_gone() {
            return Ok(false);
        }
    }
    Ok(false)
}

impl Seen {
    /// Whether a line was not shown yet; then it is now.
    fn is_new(&mut self, fields: &Value) -> bool {
        let instance = fields["instance"].as_str().unwrap_or_default();
        let (position, at_ms) = (fields["position"].as_u64(), fields["at_ms"].as_u64().unwrap_or(0));
        if let (Some(position), Some(last)) = (position, self.positions.get(instance)) {
            // Positions only begin anew where a host lost its index; then times tell. They may have become later.
            if position <= *last && at_ms <= self.again_until_ms {
                return false;
            }
        }
        if let Some(position) = position {
            self.positions.insert(instance.to_owned(), position);
        }
        self.at_ms = self.at_ms.max(at_ms);
        self.lines += 1;
        true
    }
}

/// What other events say to a person.
fn notice(name: &str, fields: &Value) -> Option<String> {
    let who = fields["instance"].as_str().map(|_| label(fields));
    match (name, who) {
        ("gone", Some(who)) => Some(format!("{who} has ended")),
        ("dropped", Some(who)) => {
            let count = fields["count"].as_u64().unwrap_or(0);
            Some(format!("{who}: {count} lines were overwritten before they could be read"))
        }
        ("error", Some(who)) => {
            let host = fields["host"].as_str().unwrap_or("unknown");
            Some(format!("{who} on {host}: {}", fields["detail"].as_str().unwrap_or("unknown")))
        }
        ("error", None) => fields["detail"].as_str().map(str::to_owned),
        // Of a newer control.
        _ => None,
    }
}

fn label(fields: &Value) -> String {
    let text = |key: &str| fields[key].as_str().unwrap_or("-");
    format!("{}/{} {}", text("service"), text("instance"), text("region"))
}

fn show_line(fields: &Value, view: View) {
    if view.format == Format::Json {
        out::data(&fields.to_string());
        return;
    }
    let mut shown = String::new();
    if view.times {
        let at_ms = fields["at_ms"].as_u64();
        let time = at_ms.map_or_else(|| "-".to_owned(), moments::show);
        shown.push_str(&out::for_stdout(Paint::Dim, &time));
        shown.push_str("  ");
    }
    if view.labelled {
        let instance = fields["instance"].as_str().unwrap_or_default();
        let number =
            instance.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        shown.push_str(&out::for_stdout(Paint::Number(number), &out::harmless(&label(fields))));
        shown.push_str("  ");
    }
    shown.push_str(&out::harmless(fields["line"].as_str().unwrap_or_default()));
    if fields["cut"].as_bool().unwrap_or(false) {
        shown.push_str(&out::for_stdout(Paint::Dim, " [… the line was longer]"));
    }
    out::data(&shown);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;
    use serde_json::json;

    fn asked(arguments: &[&str]) -> Outcome<Asked> {
        let all = ["atoll", "logs"].iter().chain(arguments);
        let Command::Logs(args) = Cli::parse_from(all).command else { panic!("not logs") };
        Asked::of(&args, 1_000_000)
    }

    #[test]
    fn what_is_meant_becomes_one_question() {
        let id = "i-01m7y7j0mm2tdrnx316rs7e5bw";
        assert_eq!(asked(&["shop"]).unwrap().path(), "/v1/logs?tail=100&follow=false&app=shop");
        let all = ["shop/web", "-f", "-n", "5", "--region", "fra", "--since", "10s", "--grep", "a b"];
        assert_eq!(
            asked(&all).unwrap().path(),
            "/v1/logs?tail=5&follow=true&app=shop&service=web&region=fra&grep=a%20b&since_ms=990000"
        );
        for arguments in [&[id][..], &["--instance", id], &[id, "--instance", id]] {
            assert_eq!(asked(arguments).unwrap().instance.as_deref(), Some(id));
        }
        assert!(asked(&[id, "--instance", "i-other"]).is_err());
        assert!(asked(&["shop/web", "--service", "api"]).is_err());
    }

    #[test]
    fn no_line_is_shown_twice() {
        let mut seen = Seen::default();
        let line = |instance: &str, position: u64, at_ms: u64| json!({ "instance": instance, "position": position, "at_ms": at_ms });
        assert!(seen.is_new(&line("a", 10, 1_000)));
        assert!(seen.is_new(&line("b", 10, 1_000)));
        assert!(seen.is_new(&line("a", 20, 2_000)));
        seen.again_until_ms = 4_000;
        assert!(!seen.is_new(&line("a", 10, 1_000)));
        assert!(!seen.is_new(&line("a", 20, 2_250)), "its time was noted late");
        assert!(seen.is_new(&line("a", 5, 5_000)), "the host began to count anew");
    }
}
