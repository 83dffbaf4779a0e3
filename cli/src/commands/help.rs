//! `atoll help CODE`

use crate::args::Cli;
use crate::failure::{Failure, Outcome};
use crate::out::{self, Column, Format};
use atoll_model::Reason;
use clap::CommandFactory;
use serde_json::{Value, json};

/// What to do about each code: the page of the docs, so that both say the same.
const PAGE: &str = include_str!("../../../docs/reasons.md");

pub(super) fn run(topic: Option<&str>, below: Option<&str>, output: Format) -> Outcome {
    let mut cli = Cli::command();
    // Gives the commands their full names.
    cli.build();
    let Some(topic) = topic else {
        out::data(cli.render_help().to_string().trim_end());
        return Ok(());
    };
    if let Some(mut command) = cli.find_subcommand_mut(topic) {
        if let Some(below) = below {
            command = command.find_subcommand_mut(below).ok_or_else(|| {
                Failure::usage(format!("`{topic}` has no command `{}`", out::harmless(below)))
                    .fix(format!("`atoll help {topic}` lists its commands"))
            })?;
        }
        out::data(command.render_help().to_string().trim_end());
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
            for line in advice(reason).lines() {
                out::data(&format!("  {line}"));
            }
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
        "advice": advice(reason),
        "unsent": reason.is_unsent(),
        "retryable": reason.is_retryable(),
    })
}

/// What the docs say to do about a code: what follows the facts in its section.
fn advice(reason: Reason) -> &'static str {
    let heading = format!("\n## `{}`\n", reason.code());
    let section = PAGE.split_once(heading.as_str()).map_or("", |(_, rest)| rest);
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section).trim();
    section.split_once("\n\n").map_or("", |(_, advice)| advice)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_docs_say_what_to_do_about_every_code_and_its_facts() {
        for reason in Reason::ALL.iter().copied() {
            assert!(!advice(reason).is_empty(), "docs/reasons.md has no advice for `{}`", reason.code());
            let facts = format!("HTTP {}, `{}`", reason.status(), reason.proxy_error());
            let section =
                PAGE.split_once(&format!("\n## `{}`\n", reason.code())).map_or("", |(_, rest)| rest);
            assert!(
                section.trim_start().starts_with(&facts),
                "docs/reasons.md: {} is {facts}",
                reason.code()
            );
        }
    }
}
