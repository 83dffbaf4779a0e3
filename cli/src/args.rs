//! The command line.

mod examples;
mod operate;

pub use operate::*;

use crate::out::{Color, Format};
use atoll_model::{NodeName, OrgName, RegionName, Role, SiteName};
use clap::{Args, Parser, Subcommand};
use std::net::IpAddr;
use std::path::PathBuf;

/// Atoll: a multi-region edge and service mesh in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "atoll",
    version,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    after_help = examples::ALL
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The platform to talk to [default: that of ATOLL_API, of ATOLL_CONTEXT, or of the current context]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Options of every command")]
    pub context: Option<String>,
    /// How data is shown: `table` for people, `json` for programs
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "FORMAT",
        help_heading = "Options of every command"
    )]
    pub output: Format,
    /// Colours: `auto` (on a terminal, unless NO_COLOR is set), `always` or `never`
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "WHEN",
        help_heading = "Options of every command"
    )]
    pub color: Color,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole platform on this machine
    #[command(after_help = examples::DEV)]
    Dev(DevArgs),
    /// Run one node from a configuration file
    #[command(after_help = examples::NODE)]
    Node(NodeArgs),
    /// Make the running app match the manifest and wait until it does
    #[command(after_help = examples::DEPLOY)]
    Deploy(DeployArgs),
    /// Remove an app and all that it owns
    #[command(after_help = examples::DELETE)]
    Delete(DeleteArgs),
    /// What a deploy would change
    #[command(after_help = examples::PLAN)]
    Plan(PlanArgs),
    /// An app as it runs: revisions, regions, instances, health, URLs
    #[command(after_help = examples::STATUS)]
    Status(StatusArgs),
    /// The apps of the platform
    Apps,
    /// The services of one app or of all
    Services(FilterArgs),
    /// The instances of one app or of all
    #[command(after_help = examples::INSTANCES)]
    Instances(FilterArgs),
    /// The revisions of one app or of all
    #[command(after_help = examples::REVISIONS)]
    Revisions(FilterArgs),
    /// How many instances of a service run in each region, within the manifest's bounds
    #[command(after_help = examples::SCALE)]
    Scale(ScaleArgs),
    /// The domains that are served, with their certificates; your own are added here
    #[command(after_help = examples::DOMAINS)]
    Domains(DomainsArgs),
    /// Which domains there are and where their requests go
    #[command(after_help = examples::ROUTES)]
    Routes(ListedArgs),
    /// The certificates of domains and of the mesh, and how long they are good
    #[command(after_help = examples::CERTS)]
    Certs(ListedArgs),
    /// The nodes of the platform
    #[command(after_help = examples::NODES)]
    Nodes(NodesArgs),
    /// The sites of the platform: region, place, nodes, health
    #[command(after_help = examples::SITES)]
    Sites,
    /// Make a node or a region take nothing new, until it can be stopped
    #[command(after_help = examples::DRAIN)]
    Drain(DrainArgs),
    /// Removals that wait, because they would empty much at once
    #[command(after_help = examples::HELD)]
    Held(HeldArgs),
    /// What edges keep of an app's responses
    #[command(subcommand, after_help = examples::CACHE)]
    Cache(CacheCommand),
    /// What an instance, or a service's instances, wrote
    #[command(after_help = examples::LOGS)]
    Logs(LogsArgs),
    /// What happens now: requests, errors and times of services, what instances and nodes use
    #[command(after_help = examples::TOP)]
    Top(TopArgs),
    /// The mesh's certificate authority
    #[command(subcommand)]
    Ca(CaCommand),
    /// Tokens with which nodes join; `tokens api`: those with which people and programs come
    #[command(subcommand, after_help = examples::TOKENS)]
    Tokens(TokensCommand),
    /// The organizations that share the platform
    #[command(subcommand, after_help = examples::ORGS)]
    Orgs(OrgsCommand),
    /// Whose the token is that you use, and what it may do
    Whoami,
    /// Who changed what, and when
    #[command(after_help = examples::AUDIT)]
    Audit(AuditArgs),
    /// Which platform the CLI talks to
    #[command(subcommand, after_help = examples::CONTEXT)]
    Context(ContextCommand),
    /// A script with which a shell completes commands and options
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// What a command does, or what a reason code means
    #[command(after_help = examples::HELP)]
    Help {
        /// A command, a reason code such as `no-instance`, or `codes` for all of those
        #[arg(value_name = "TOPIC")]
        topic: Option<String>,
        /// The command below it, such as `create` of `tokens`
        #[arg(hide = true)]
        below: Option<String>,
    },
    /// The proxy beside an instance; started by the host
    #[command(hide = true)]
    Sidecar(SidecarArgs),
    /// The example app's server; started by the host under `atoll dev --demo`
    #[command(hide = true, disable_help_flag = true)]
    DemoShop {
        /// Handed to the example.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The server that `atoll dev` asks through every hop before it says `ready`
    #[command(hide = true)]
    ProbeInstance {
        /// Where it listens.
        #[arg(long)]
        listen: std::net::SocketAddr,
    },
}

/// `atoll dev`
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Folder for everything the platform keeps [default: atoll/dev in the user's state directory]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Regions, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "fra,was,sin", value_name = "NAMES")]
    pub regions: Vec<String>,
    /// Port for HTTPS on 127.0.0.1, 127.0.0.2, …; 0 picks free ones
    #[arg(long, default_value_t = 8443, value_name = "PORT")]
    pub https_port: u16,
    /// Port for plain HTTP, which redirects; 0 picks free ones
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    pub http_port: u16,
    /// Deploy the example app and print its URLs
    #[arg(long)]
    pub demo: bool,
    /// Leave the CLI's contexts alone
    #[arg(long)]
    pub no_context: bool,
    /// Simulate the distances between the regions (without it, another region is 5 ms away)
    #[arg(long)]
    pub wan: bool,
    /// Edges at each site, which share what they cache
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=4))]
    pub edges: u8,
    /// Data-path workers of each edge and gateway; 0 lets each node choose
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub workers: usize,
    /// Life of a node's certificate, such as 7d; short ones show renewal
    #[arg(long, value_name = "DURATION", hide = true)]
    pub node_certificate_life: Option<String>,
    /// Life of a workload's certificate, such as 48h
    #[arg(long, value_name = "DURATION", hide = true)]
    pub workload_certificate_life: Option<String>,
}

/// `atoll node`
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// The node's configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Only say whether the file is usable
    #[arg(long)]
    pub check: bool,
}

/// `atoll sidecar`
#[derive(Debug, Clone, Args)]
pub struct SidecarArgs {
    /// The host's unix socket.
    #[arg(long)]
    pub socket: PathBuf,
    /// The instance it stands beside.
    #[arg(long)]
    pub instance: String,
    /// Where it takes connections from gateways; the port is picked.
    #[arg(long, default_value = "127.0.0.1")]
    pub listen: IpAddr,
}

/// `atoll deploy`
#[derive(Debug, Clone, Args)]
pub struct DeployArgs {
    /// With --revision: whose [default: the app of ./atoll.toml]
    #[arg(value_name = "APP[/SERVICE]", requires = "revision")]
    pub of: Option<String>,
    /// Instead of the manifest, run an earlier revision again: its number, or `previous`
    #[arg(long, value_name = "N", conflicts_with_all = ["file", "dry_run", "confirm"])]
    pub revision: Option<String>,
    /// The manifest
    #[arg(short, long, default_value = "atoll.toml", value_name = "FILE")]
    pub file: PathBuf,
    /// Return as soon as the platform has taken the deploy
    #[arg(long)]
    pub no_wait: bool,
    /// Only show what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Agree to the removal of this many services at once, where that is held back
    #[arg(long, value_name = "N")]
    pub confirm: Option<usize>,
}

/// `atoll plan`
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// The manifest
    #[arg(short, long, default_value = "atoll.toml", value_name = "FILE")]
    pub file: PathBuf,
    /// End with exit code 10 where a deploy would change something
    #[arg(long)]
    pub exit_code: bool,
}

/// `atoll delete`
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// The app
    pub app: String,
    /// Return as soon as the platform has taken it
    #[arg(long)]
    pub no_wait: bool,
}

/// `atoll status`
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// The app [default: the one of ./atoll.toml, else all]
    pub app: Option<String>,
}

/// Which app.
#[derive(Debug, Clone, Args)]
pub struct FilterArgs {
    /// Only this app
    pub app: Option<String>,
}

/// `atoll logs`
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// An app, `APP/SERVICE`, or an instance (`i-…`)
    #[arg(value_name = "APP", required_unless_present = "instance")]
    pub of: Option<String>,
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// How many lines of the past, of each instance; counted after --since and --grep
    #[arg(short = 'n', long, default_value_t = 100, value_name = "LINES", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub tail: u32,
    /// Only instances of this service
    #[arg(long)]
    pub service: Option<String>,
    /// Only instances in this region
    #[arg(long)]
    pub region: Option<String>,
    /// Only this instance
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,
    /// Only lines from this time on: how long ago, such as 10m, or a date such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only lines that contain this text
    #[arg(long, value_name = "TEXT")]
    pub grep: Option<String>,
    /// Show when each line was written
    #[arg(short, long)]
    pub times: bool,
}

/// `atoll top`
#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// Only this app
    pub app: Option<String>,
    /// Measure once, and end
    #[arg(long)]
    pub once: bool,
    /// How long is measured each time, from 1s to 60s
    #[arg(long, default_value = "1s", value_name = "DURATION")]
    pub interval: String,
    /// Show each instance too
    #[arg(short, long)]
    pub instances: bool,
}

/// `atoll cache …`
#[derive(Debug, Clone, Subcommand)]
pub enum CacheCommand {
    /// Let no edge answer from what it has stored of this, and wait until none does
    #[command(after_help = examples::CACHE)]
    Purge(PurgeArgs),
    /// How many requests each edge answered from memory, and how much is stored
    #[command(after_help = examples::CACHE_STATS)]
    Stats(CacheStatsArgs),
    /// What each edge would do with a request for an address, and why
    #[command(after_help = examples::CACHE_EXPLAIN)]
    Explain(CacheExplainArgs),
}

/// `atoll cache purge`
#[derive(Debug, Clone, Args)]
pub struct PurgeArgs {
    /// Of which app
    #[arg(long)]
    pub app: String,
    /// Responses with this tag (`Cache-Tag`, `Surrogate-Key`); can be given more than once
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// This address; can be given more than once
    #[arg(long = "url", value_name = "URL")]
    pub urls: Vec<String>,
    /// Paths that begin so; can be given more than once
    #[arg(long = "prefix", value_name = "PATH")]
    pub prefixes: Vec<String>,
    /// Everything of the app
    #[arg(long, conflicts_with_all = ["tags", "urls", "prefixes"], required_unless_present_any = ["tags", "urls", "prefixes"])]
    pub all: bool,
    /// Let it be validated before it is used again, instead of fetched anew
    #[arg(long)]
    pub soft: bool,
}

/// `atoll cache stats`
#[derive(Debug, Clone, Args)]
pub struct CacheStatsArgs {
    /// Only of this app
    #[arg(long)]
    pub app: Option<String>,
}

/// `atoll cache explain`
#[derive(Debug, Clone, Args)]
pub struct CacheExplainArgs {
    /// The address, with a port where clients have one
    #[arg(value_name = "URL")]
    pub url: String,
    /// A field of the request, `Name: value`; can be given more than once
    #[arg(short = 'H', long = "header", value_name = "FIELD")]
    pub headers: Vec<String>,
}

/// `atoll ca …`
#[derive(Debug, Clone, Subcommand)]
pub enum CaCommand {
    /// Roots, intermediate, lifetimes, what was issued
    Status,
}

/// `atoll tokens …`
#[derive(Debug, Clone, Subcommand)]
pub enum TokensCommand {
    /// Make a single-use token for one node
    Create(TokenArgs),
    /// The tokens that were made: which are valid, and who used the others
    List,
    /// Make a token unusable
    Revoke {
        /// Its id, from `atoll tokens list`
        id: String,
    },
    /// Tokens with which people and programs use the platform
    #[command(subcommand, after_help = examples::API_TOKENS)]
    Api(ApiTokensCommand),
}

/// `atoll tokens api …`
#[derive(Debug, Clone, Subcommand)]
pub enum ApiTokensCommand {
    /// Make a token; it is shown once
    Create(ApiTokenArgs),
    /// The tokens of the organization
    List {
        /// Another organization; for operators
        #[arg(long)]
        org: Option<String>,
    },
    /// End a token at once
    Revoke {
        /// Its id, from `atoll tokens api list`
        id: String,
        /// The organization that it is of, if not yours; for operators
        #[arg(long)]
        org: Option<String>,
    },
}

/// `atoll tokens api create`
#[derive(Debug, Clone, Args)]
pub struct ApiTokenArgs {
    /// Whose it is, as the audit log will name it
    pub name: String,
    /// What it may do: `read`, `deploy`, `admin` (the organization's tokens and audit log too), or `operator`
    /// (the platform too; only in the organization `default`)
    #[arg(long, value_parser = ["read", "deploy", "admin", "operator"], hide_possible_values = true)]
    pub role: String,
    /// How long it lives, such as 90d [default: until it is revoked]
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<String>,
    /// Another organization; for operators
    #[arg(long)]
    pub org: Option<String>,
}

/// `atoll orgs …`
#[derive(Debug, Clone, Subcommand)]
pub enum OrgsCommand {
    /// The organizations
    List,
    /// Make one
    Create {
        /// Its name
        name: OrgName,
    },
    /// Remove one that has no apps, with its tokens and its audit log
    Remove {
        /// Its name
        name: OrgName,
    },
}

/// `atoll audit`
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// Only what was about this app
    #[arg(long)]
    pub app: Option<String>,
    /// Only what is not older, such as 2h or 2026-05-01T10:00:00Z
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
    /// The newest ones, this many [default: 50, or all with --since]
    #[arg(short = 'n', long, value_name = "N")]
    pub tail: Option<u32>,
    /// All that is kept
    #[arg(long, conflicts_with = "tail")]
    pub all: bool,
    /// Another organization; for operators
    #[arg(long)]
    pub org: Option<String>,
}

/// `atoll tokens create`
#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    /// A role that the node may have; can be given more than once, or separated by commas
    #[arg(long = "role", required = true, value_delimiter = ',', value_name = "ROLE")]
    pub roles: Vec<Role>,
    /// The site it must be at
    #[arg(long)]
    pub site: SiteName,
    /// The site's region [default: the site's name without the digits at its end]
    #[arg(long)]
    pub region: Option<RegionName>,
    /// The only name that the node may have
    #[arg(long, value_name = "NAME")]
    pub node: Option<NodeName>,
    /// How long it can be used
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    pub ttl: String,
}

/// `atoll context …`
#[derive(Debug, Clone, Subcommand)]
pub enum ContextCommand {
    /// The contexts; the current one is marked
    List,
    /// Make one the current one
    Use {
        /// Its name
        name: String,
    },
    /// Add or replace one; the token is read from ATOLL_TOKEN, a file, or stdin, never from the command line
    Add {
        /// Its name
        name: String,
        /// The API's address
        #[arg(long)]
        api: String,
        /// File with the token; `-` for stdin [default: ATOLL_TOKEN]
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// PEM file with the CA that the API's certificate must come from
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
    },
    /// Forget one
    Remove {
        /// Its name
        name: String,
    },
    /// The one that a command would act on
    Show,
}

/// The loopback address of the n-th edge, counted from 0.
pub fn edge_ip(n: usize) -> IpAddr {
    IpAddr::from([127, 0, 0, u8::try_from(n + 1).unwrap_or(u8::MAX)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
