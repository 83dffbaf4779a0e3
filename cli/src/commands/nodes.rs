//! `atoll nodes …`, `atoll held …`

use super::{api, api_to_change, lists};
use crate::api::encode;
use crate::args::{Global, HeldArgs, HeldCommand, NodesArgs, NodesCommand};
use crate::failure::{Failure, Outcome};
use crate::out::{self, Column, Format};
use http::Method;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal};

pub(super) async fn run(args: NodesArgs, global: &Global) -> Outcome {
    match args.command {
        None | Some(NodesCommand::List) => lists::run(&lists::NODES, None, global).await,
        Some(NodesCommand::Remove { name, yes }) => remove(&name, yes, global).await,
    }
}

async fn remove(name: &str, yes: bool, global: &Global) -> Outcome {
    let api = api_to_change(global)?;
    let shown = out::harmless(name);
    let node =
        api.list("/v1/nodes").await?.into_iter().find(|node| node["name"] == name).ok_or_else(|| {
            Failure::failed(format!("there is no node `{shown}`")).fix("`atoll nodes` lists them")
        })?;
    if !yes {
        confirm(&shown, &node)?;
    }
    let answer = api.change(Method::DELETE, &format!("/v1/nodes/{}", encode(name)), None).await?;
    out::note(&format!("{shown} is removed: every node refuses it, and it gets no certificates any more"));
    if global.output == Format::Json {
        out::json(&answer);
    }
    Ok(())
}

/// Lets a person type the name. A script says `--yes`.
fn confirm(shown: &str, node: &Value) -> Outcome {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage(format!("removing {shown} needs a yes"))
            .fix("give --yes; without it, type the node's name on a terminal"));
    }
    let (roles, state) = (out::cell(&node["roles"]), out::cell(&node["state"]));
    out::note(&format!("{shown} ({roles}) is {state}; to come back it must join anew with a token"));
    if state != "drained" && state != "gone" {
        out::note(&format!("its requests and instances are cut; `atoll drain {shown}` first moves them"));
    }
    out::note("type its name to remove it:");
    let mut typed = String::new();
    stdin.lock().read_line(&mut typed).map_err(|error| crate::failure::io("cannot read", &error))?;
    match typed.trim() == shown {
        true => Ok(()),
        false => Err(Failure::failed("that is not its name; nothing was changed")),
    }
}

pub(super) async fn held(args: HeldArgs, global: &Global) -> Outcome {
    match args.command {
        None | Some(HeldCommand::List) => {
            let names = api(global)?.list("/v1/held").await?;
            if global.output == Format::Json {
                out::json(&Value::Array(names));
                return Ok(());
            }
            let rows: Vec<Value> = names.iter().filter_map(Value::as_str).map(row).collect();
            out::table(
                &[Column("KIND", "kind"), Column("SCOPE", "scope"), Column("KEY", "key")],
                &rows,
                "nothing is held back",
            );
            if !rows.is_empty() {
                let count = rows.len();
                out::note(&format!(
                    "nodes have these and control's store has not, which may have been lost: \
                     `atoll held confirm {count}` removes them everywhere"
                ));
            }
            Ok(())
        }
        Some(HeldCommand::Confirm { count }) => {
            let api = api_to_change(global)?;
            let held = api.list("/v1/held").await?.len();
            if held != count {
                return Err(Failure::failed(format!("{held} records are held back, not {count}"))
                    .fix("`atoll held` shows them; give their number"));
            }
            let answer = api.change(Method::POST, &format!("/v1/held/confirm?count={count}"), None).await?;
            out::note(&format!("{count} records are removed"));
            if global.output == Format::Json {
                out::json(&answer);
            }
            Ok(())
        }
    }
}

/// `<kind, hex>/<scope>/<key>`.
fn row(name: &str) -> Value {
    let mut parts = name.splitn(3, '/');
    let mut part = || parts.next().unwrap_or_default();
    let kind = u32::from_str_radix(part(), 16).unwrap_or(0);
    let scope = part();
    let names = [
        (atoll_model::Kind::VIRTUAL_HOST, "virtual host"),
        (atoll_model::Kind::CLUSTER, "cluster"),
        (atoll_model::Kind::CERTIFICATE, "certificate"),
        (atoll_model::Kind::DENIAL, "denial"),
        (atoll_model::Kind::REGION_DENIAL, "denial"),
        (atoll_model::Kind::REGION_CLUSTER, "policy"),
        (atoll_model::Kind::DRAIN, "drain"),
        (atoll_model::Kind::REGION_DRAIN, "drain"),
        (atoll_model::Kind::PLACEMENT, "placement"),
        (atoll_model::Kind::PURGES, "purges"),
    ];
    let named = names.iter().find(|(known, _)| known.0 == kind).map(|(_, name)| (*name).to_owned());
    json!({
        "kind": named.unwrap_or_else(|| format!("{kind:08x}")),
        "scope": if scope.is_empty() { "all" } else { scope },
        "key": part(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_record_is_named_for_people() {
        let name = format!("{:08x}//default/shop/web", atoll_model::Kind::CLUSTER.0);
        assert_eq!(row(&name), json!({ "kind": "cluster", "scope": "all", "key": "default/shop/web" }));
        assert_eq!(row("00000001/fra/x")["kind"], "00000001");
    }
}
