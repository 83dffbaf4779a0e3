//! `atoll help CODE`

use crate::args::Cli;
use crate::failure::{Failure, Outcome};
use crate::out::{self, Column, Format};
use atoll_model::Reason;
use clap::CommandFactory;
use serde_json::{Value, json};

pub(super) fn run(topic: Option<&str>, output: Format) -> Outcome {
    let Some(topic) = topic else {
        out::data(&Cli::command().render_help().to_string());
        return Ok(());
    };
    if let Some(command) = Cli::command().find_subcommand_mut(topic) {
        out::data(&command.render_long_help().to_string());
        return Ok(());
    }
    if topic == "codes" {
        let rows: Vec<Value> = Reason::ALL.iter().map(|reason| facts(*reason)).collect();
        match output {
            Format::Json => out::json(&Value::Array(rows)),
            Format::Table => {
                out::table(
                    &[Column("CODE", "code"), Column("STATUS", "status"), Column("MEANING", "text")],
                    &rows,
                    "",
                );
            }
        }
        return Ok(());
    }
    let reason = Reason::from_code(topic).ok_or_else(|| {
        Failure::usage(format!("`{}` is neither a command nor a reason code", out::harmless(topic)))
            .fix("`atoll help codes` lists the codes")
    })?;
    match output {
        Format::Json => out::json(&facts(reason)),
        Format::Table => {
            out::data(&format!("{} (HTTP {}, {})", reason.code(), reason.status(), reason.proxy_error()));
            out::data(&format!("  {}", reason.text()));
            out::data(&format!("  {}", retry_text(reason)));
        }
    }
    Ok(())
}

fn facts(reason: Reason) -> Value {
    json!({
        "code": reason.code(),
        "status": reason.status(),
        "proxy_error": reason.proxy_error(),
        "text": reason.text(),
        "unsent": reason.is_unsent(),
        "retryable": reason.is_retryable(),
    })
}

fn retry_text(reason: Reason) -> &'static str {
    if reason.is_unsent() {
        "The request reached no instance: the platform tries others first, and a client may repeat it."
    } else if reason.is_retryable() {
        "The request may have reached an instance: the platform repeats it only if its method is idempotent."
    } else {
        "The platform does not repeat such a request."
    }
}
