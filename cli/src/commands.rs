//! What each command does.

mod access;
mod cache;
mod completions;
mod context;
mod deploy;
mod domains;
mod drain;
mod help;
mod lists;
mod logs;
pub mod mesh;
mod moments;
mod nodes;
pub mod progress;
mod scale;
mod status;
mod top;
mod upload;
pub mod watch;

use crate::api::Api;
use crate::args::{CaCommand, Cli, Command, Global};
use crate::contexts::{Choice, Chosen, ContextsFile};
use crate::failure::{Exit, Failure, Outcome};
use crate::{dev, node, out};
use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

/// Runs what the command line says.
pub fn run(cli: Cli) -> ExitCode {
    let done = dispatch(cli).and_then(|code| match out::stdout_failure() {
        // A script that keeps our output must not take half of it for the whole.
        Some(error) => Err(Failure::failed(format!("cannot write to stdout: {error}"))),
        None => Ok(code),
    });
    match done {
        Ok(code) => code,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn dispatch(cli: Cli) -> Outcome<ExitCode> {
    let global = &cli.global;
    out::choose_color(global.color);
    install_crypto();
    let done = |()| ExitCode::SUCCESS;
    match cli.command {
        Command::Node(args) => node(args),
        Command::Sidecar(args) => sidecar(args),
        Command::DemoShop { args } => dev::demo::serve(args).map(done),
        Command::ProbeInstance { listen } => block_on(dev::probe::serve(listen)).map(done),
        Command::Dev(args) => block_on(dev::run(args)).map(done),
        Command::Help { topic, below } => {
            help::run(topic.as_deref(), below.as_deref(), global.output).map(done)
        }
        Command::Context(command) => context::run(command, global).map(done),
        Command::Deploy(args) => block_on(deploy::run(args, global)).map(done),
        Command::Plan(args) => block_on(deploy::plan(args, global)).map(done),
        Command::Delete(args) => block_on(deploy::delete(args, global)).map(done),
        Command::Status(args) => block_on(status::run(args, global)).map(done),
        Command::Apps => block_on(lists::run(&lists::APPS, None, global)).map(done),
        Command::Services(args) => block_on(lists::run(&lists::SERVICES, args.app, global)).map(done),
        Command::Instances(args) => block_on(lists::run(&lists::INSTANCES, args.app, global)).map(done),
        Command::Revisions(args) => block_on(lists::run(&lists::REVISIONS, args.app, global)).map(done),
        Command::Scale(args) => block_on(scale::run(args, global)).map(done),
        Command::Domains(args) => block_on(domains::run(args, global)).map(done),
        Command::Routes(args) => block_on(lists::run(&lists::ROUTES, args.app(), global)).map(done),
        Command::Certs(args) => block_on(domains::certificates(args.app(), global)).map(done),
        Command::Nodes(args) => block_on(nodes::run(args, global)).map(done),
        Command::Sites => block_on(lists::run(&lists::SITES, None, global)).map(done),
        Command::Drain(args) => block_on(drain::run(args, global)).map(done),
        Command::Cache(args) => block_on(cache::run(args, global)).map(done),
        Command::Held(args) => block_on(nodes::held(args, global)).map(done),
        Command::Logs(args) => block_on(logs::run(args, global)).map(done),
        Command::Top(args) => block_on(top::run(args, global)).map(done),
        Command::Completions { shell } => {
            completions::run(shell);
            Ok(ExitCode::SUCCESS)
        }
        Command::Ca(CaCommand::Status) => block_on(mesh::ca_status(global)).map(done),
        Command::Tokens(command) => block_on(mesh::tokens(command, global)).map(done),
        Command::Orgs(command) => block_on(access::orgs(command, global)).map(done),
        Command::Whoami => block_on(access::whoami(global)).map(done),
        Command::Audit(args) => block_on(access::audit(args, global)).map(done),
    }
}

fn node(args: crate::args::NodeArgs) -> Outcome<ExitCode> {
    if args.check {
        return match node::config::NodeConfig::load(&args.config) {
            Ok(_) => {
                out::note(&format!("{} is usable", args.config.display()));
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => Err(Failure::usage(chain(&error))),
        };
    }
    match node::run(node::NodeArgs { config: args.config }) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Failure::failed(format!("{error:#}"))),
    }
}

fn sidecar(args: crate::args::SidecarArgs) -> Outcome<ExitCode> {
    atoll_process::logging::init(atoll_process::logging::Format::Auto);
    let instance = args.instance.parse().map_err(|_| Failure::usage("`--instance` is no instance's id"))?;
    let config =
        atoll_sidecar::Config { listen: args.listen, ..atoll_sidecar::Config::new(args.socket, instance) };
    atoll_sidecar::run_process(config)
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| Failure::failed(chain(&error)))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// One provider for the process, before anything uses TLS.
fn install_crypto() {
    let _was_installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn block_on<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| crate::failure::io("cannot start", &error))?;
    runtime.block_on(work)
}

/// Which platform the user means.
fn chosen(global: &Global) -> Outcome<Chosen> {
    let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let choice = Choice {
        flag: global.context.clone(),
        variable: variable("ATOLL_CONTEXT"),
        api: variable("ATOLL_API"),
        token: variable("ATOLL_TOKEN"),
        ca: variable("ATOLL_CA").map(|file| pem_file(Path::new(&file))).transpose()?,
    };
    choice.resolve(&ContextsFile::of_user()?.read()?)
}

/// What ATOLL_CA names.
fn pem_file(file: &Path) -> Outcome<String> {
    std::fs::read_to_string(file).map_err(|error| {
        crate::failure::io(format!("cannot read the CA in {}", file.display()), &error)
            .fix("ATOLL_CA is the path of a PEM file with the CA that the API's certificate must come from")
    })
}

/// The API of the platform that the user means.
fn api(global: &Global) -> Outcome<Api> {
    Api::new(&chosen(global)?)
}

/// The same, for a command that changes something: says what it acts on.
fn api_to_change(global: &Global) -> Outcome<Api> {
    let chosen = chosen(global)?;
    out::note(&format!("context {} ({})", chosen.name, out::harmless(&chosen.context.api)));
    Api::new(&chosen)
}

/// Ctrl-C.
fn interrupted() -> Failure {
    Failure::silent(Exit::Interrupted)
}
