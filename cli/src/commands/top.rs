//! `atoll top`

use super::{api, interrupted};
use crate::api::{Api, Event, EventReader, encode};
use crate::args::{Global, TopArgs};
use crate::failure::{Exit, Failure, Outcome};
use crate::out::{self, Column, Format, Keys, Paint};
use atoll_model::manifest::parse_duration_ms;
use serde_json::{Value, json};

/// A screen of its own, without the cursor, and back.
const SCREEN: (&str, &str) = ("\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l");
/// To the upper left, and everything after it cleared.
const CLEAR: &str = "\x1b[H\x1b[J";

const SERVICES: [Column; 11] = [
    Column("APP", "app"),
    Column("SERVICE", "service"),
    Column("REGION", "region"),
    Column("HEALTHY", "healthy_of"),
    Column("REQ/S", "requests"),
    Column("ERR/S", "failures"),
    Column("IN FLIGHT", "in_flight"),
    Column("P50", "p50"),
    Column("P99", "p99"),
    Column("CPU", "cpu_share"),
    Column("MEMORY", "memory"),
];
const INSTANCES: [Column; 8] = [
    Column("INSTANCE", "instance"),
    Column("SERVICE", "name"),
    Column("REGION", "region"),
    Column("HOST", "host"),
    Column("STATE", "state"),
    Column("CPU", "cpu_share"),
    Column("MEMORY", "memory"),
    Column("SIDECAR", "sidecar_memory"),
];
const NODES: [Column; 5] = [
    Column("NODE", "node"),
    Column("REGION", "region"),
    Column("ROLES", "roles"),
    Column("CPU", "cpu_share"),
    Column("MEMORY", "memory"),
];

pub(super) async fn run(args: TopArgs, global: &Global) -> Outcome {
    let interval_ms = parse_duration_ms(&args.interval)
        .map_err(|error| Failure::usage(error.to_string()).place("--interval"))?;
    let api = api(global)?;
    let app = args.app.as_ref().map(|app| format!("&app={}", encode(app))).unwrap_or_default();
    let path = format!("/v1/top?interval_ms={interval_ms}{app}");
    tokio::select! {
        ended = watch(&api, &path, &args, global.output) => ended,
        _ = tokio::signal::ctrl_c() => Err(interrupted()),
    }
}

async fn watch(api: &Api, path: &str, args: &TopArgs, format: Format) -> Outcome {
    let mut events = api.events(path).await?;
    let on_screen = out::size().is_some() && !args.once && format == Format::Table;
    if !on_screen {
        out::note(&out::for_stderr(Paint::Dim, &format!("measuring for {}", args.interval)));
        loop {
            let turn = next(&mut events).await?;
            match format {
                Format::Json if args.once => out::json(&turn),
                Format::Json => out::data(&turn.to_string()),
                Format::Table => out::data(&format!("{}\n", text(&turn, args))),
            }
            if args.once || out::stdout_gone() {
                return Ok(());
            }
        }
    }
    let (_screen, mut keys) = (Screen::open(), Keys::take());
    out::raw(&format!("{CLEAR}measuring for {} …  (q ends it)\n", args.interval));
    loop {
        let turn = tokio::select! {
            turn = next(&mut events) => turn?,
            () = keys.wait_for(b'q') => return Ok(()),
        };
        let rows = out::size().map_or(24, |(_, rows)| rows);
        let text = text(&turn, args);
        let lines: Vec<&str> = text.lines().take(rows.saturating_sub(2)).collect();
        let foot = out::for_stdout(Paint::Dim, "q ends it");
        out::raw(&format!("{CLEAR}{}\n\n{foot}", lines.join("\n")));
        if out::stdout_gone() {
            return Ok(());
        }
    }
}

async fn next(events: &mut EventReader) -> Outcome<Value> {
    while let Some(Event { name, data, .. }) = events.next().await? {
        if name == "top" {
            return serde_json::from_str(&data)
                .map_err(|error| Failure::failed(format!("the API sent an event that is no JSON: {error}")));
        }
    }
    Err(Failure::new(Exit::Unreachable, "control ended the stream"))
}

/// A screen of its own for as long as it lives.
struct Screen;

impl Screen {
    fn open() -> Self {
        out::raw(SCREEN.0);
        Self
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        out::raw(SCREEN.1);
    }
}

fn text(turn: &Value, args: &TopArgs) -> String {
    let rows =
        |name: &str| -> Vec<Value> { turn[name].as_array().into_iter().flatten().map(with_texts).collect() };
    let mut parts = Vec::new();
    let services = rows("services");
    parts.push(match services.as_slice() {
        [] => "no instances".to_owned(),
        services => out::table_text(&SERVICES, services),
    });
    let instances = if args.instances { rows("instances") } else { Vec::new() };
    if !instances.is_empty() {
        parts.push(out::table_text(&INSTANCES, &instances));
    }
    let nodes = rows("nodes");
    if !nodes.is_empty() && args.app.is_none() {
        parts.push(out::table_text(&NODES, &nodes));
    }
    for missing in turn["missing"].as_array().into_iter().flatten() {
        let text = |key: &str| out::harmless(missing[key].as_str().unwrap_or_default());
        let what = if missing["node"].is_string() { text("node") } else { text("region") };
        parts.push(format!("not measured: {what} ({})", text("detail")));
    }
    parts.join("\n\n")
}

/// A row with what people read beside what programs do.
fn with_texts(row: &Value) -> Value {
    let mut row = row.clone();
    let number = |value: &Value, shown: &dyn Fn(f64) -> String| value.as_f64().map(shown);
    let ms = |ms: f64| if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") };
    let load = |value: &Value, key: &str| match &value["program"] {
        Value::Null => value[key].clone(),
        program => program[key].clone(),
    };
    let texts = [
        ("requests", number(&row["requests_per_s"], &|rate| format!("{rate:.1}"))),
        ("failures", number(&row["failures_per_s"], &|rate| format!("{rate:.1}"))),
        ("p50", number(&row["p50_ms"], &ms)),
        ("p99", number(&row["p99_ms"], &ms)),
        ("cpu_share", number(&load(&row, "cpu"), &|cpu| format!("{:.1} %", cpu * 100.0))),
        ("memory", number(&load(&row, "memory_bytes"), &mebibytes)),
        ("sidecar_memory", number(&row["sidecar"]["memory_bytes"], &mebibytes)),
    ];
    for (key, text) in texts {
        row[key] = text.map_or(Value::Null, Value::String);
    }
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    if row["instances"].is_number() {
        row["healthy_of"] = json!(format!("{}/{}", row["healthy"], row["instances"]));
    } else if row["instance"].is_string() {
        row["name"] = json!(format!("{}/{}", text(&row, "app"), text(&row, "service")));
    }
    row
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_was_not_measured_is_not_shown() {
        let turn = json!({
            "services": [
                { "app": "shop", "service": "web", "region": "fra", "instances": 2, "healthy": 1,
                  "requests_per_s": 12.34, "failures_per_s": 0.0, "in_flight": 3, "p50_ms": 1.234, "p99_ms": 56.7,
                  "cpu": 0.125, "memory_bytes": 3_145_728 },
                { "app": "shop", "service": "web", "region": "was", "instances": 1, "healthy": 1,
                  "requests_per_s": null, "p50_ms": null },
            ],
            "missing": [{ "node": "was1-gateway", "region": "was", "detail": "away" },
                { "region": "fra", "detail": "no answer" }],
        });
        let args = TopArgs { app: None, once: true, interval: "1s".to_owned(), instances: false };
        let text = text(&turn, &args);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            words[1],
            [
                "shop", "web", "fra", "1/2", "12.3", "0.0", "3", "1.2", "ms", "57", "ms", "12.5", "%", "3.0",
                "MiB"
            ]
        );
        assert_eq!(words[2], ["shop", "web", "was", "1/1", "-", "-", "-", "-", "-", "-", "-"]);
        assert!(
            text.ends_with("not measured: was1-gateway (away)\n\nnot measured: fra (no answer)"),
            "{text}"
        );
    }
}
