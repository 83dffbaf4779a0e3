//! `atoll context …`

use super::chosen;
use crate::api::Api;
use crate::args::{ContextCommand, Global};
use crate::contexts::{Chosen, Context, ContextsFile, unknown};
use crate::failure::{self, Failure, Outcome};
use crate::out::{self, Column, Format};
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest token or CA file.
const FILE_BYTES_MAX: u64 = 256 * 1024;

pub(super) fn run(command: ContextCommand, global: &Global) -> Outcome {
    let file = ContextsFile::of_user()?;
    match command {
        ContextCommand::List => list(&file, global),
        ContextCommand::Show => show(global),
        ContextCommand::Use { name } => file.change(|contexts| {
            if !contexts.contexts.contains_key(&name) {
                return Err(unknown(&name, contexts));
            }
            out::note(&format!("context {name} is now the current one"));
            contexts.current = Some(name);
            Ok(())
        }),
        ContextCommand::Remove { name } => file.change(|contexts| {
            if contexts.contexts.remove(&name).is_none() {
                return Err(unknown(&name, contexts));
            }
            if contexts.current.as_ref() == Some(&name) {
                contexts.current = None;
            }
            out::note(&format!("context {name} is forgotten"));
            Ok(())
        }),
        ContextCommand::Add { name, api, token_file, ca } => add(&file, name, api, token_file, ca),
    }
}

fn list(file: &ContextsFile, global: &Global) -> Outcome {
    let contexts = file.read()?;
    let rows: Vec<Value> = contexts
        .contexts
        .iter()
        .map(|(name, context)| {
            let current = contexts.current.as_ref() == Some(name);
            json!({ "name": name, "api": context.api, "current": current, "token": context.token.is_some(), "ca": context.ca.is_some() })
        })
        .collect();
    match global.output {
        Format::Json => out::json(&Value::Array(rows)),
        Format::Table => out::table(
            &[
                Column("NAME", "name"),
                Column("API", "api"),
                Column("CURRENT", "current"),
                Column("TOKEN", "token"),
                Column("CA", "ca"),
            ],
            &rows,
            "no contexts; add one with `atoll context add`, or start a platform with `atoll dev`",
        ),
    }
    Ok(())
}

/// What a command would act on; never the token itself.
fn show(global: &Global) -> Outcome {
    let Chosen { name, context } = chosen(global)?;
    let row = json!({ "name": name, "api": context.api, "token": context.token.is_some(), "ca": context.ca.is_some() });
    match global.output {
        Format::Json => out::json(&row),
        Format::Table => out::data(&format!("{name}  {}", out::harmless(&context.api))),
    }
    Ok(())
}

fn add(
    file: &ContextsFile,
    name: String,
    api: String,
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
) -> Outcome {
    let well_formed = !name.is_empty()
        && name.len() <= 40
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.');
    if !well_formed {
        return Err(Failure::usage("a context's name is 1 to 40 letters, digits, `-`, `_` and `.`"));
    }
    let token = match token_file {
        Some(path) => Some(read(&path)?.trim().to_owned()),
        None => std::env::var("ATOLL_TOKEN").ok(),
    };
    let token = token.filter(|token| !token.is_empty());
    if token.is_none() {
        out::note("note: the context has no token; set ATOLL_TOKEN when you use it");
    }
    let ca = ca.map(|path| read(&path)).transpose()?;
    let context = Context { api, token, ca };
    // Refuses what could not be used.
    Api::new(&Chosen { name: name.clone(), context: context.clone() })?;
    let current = file.change(|contexts| {
        contexts.contexts.insert(name.clone(), context);
        Ok(contexts.current.get_or_insert_with(|| name.clone()).clone())
    })?;
    out::note(&if current == name {
        format!("context {name} is added, and the current one")
    } else {
        format!(
            "context {name} is added; the current one is {current} (`atoll context use {name}` changes that)"
        )
    });
    Ok(())
}

fn read(path: &Path) -> Outcome<String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| failure::io(format!("cannot read {}", path.display()), &error))?;
    Ok(text)
}
