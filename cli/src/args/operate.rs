//! Arguments of the commands that change what runs where: scale, drain, domains, nodes, held.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `atoll scale`
#[derive(Debug, Clone, Args)]
pub struct ScaleArgs {
    /// The service
    #[arg(value_name = "APP/SERVICE")]
    pub of: String,
    /// How many instances a region is to have, such as `fra=3`; `fra=min` for the manifest's again; none shows what there is
    #[arg(value_name = "REGION=N")]
    pub counts: Vec<String>,
    /// Return as soon as the platform has taken it
    #[arg(long)]
    pub no_wait: bool,
}

/// `atoll drain`
#[derive(Debug, Clone, Args)]
pub struct DrainArgs {
    /// The node or region; without one, what is drained is shown
    #[arg(value_name = "NODE|REGION")]
    pub name: Option<String>,
    /// End the drain: it takes requests and instances again
    #[arg(long, requires = "name")]
    pub off: bool,
    /// Return as soon as the platform has taken it
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait until it can be stopped
    #[arg(long, default_value = "10m", value_name = "DURATION")]
    pub timeout: String,
}

/// `atoll domains …`
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DomainsArgs {
    /// What to do; without it they are listed
    #[command(subcommand)]
    pub command: Option<DomainsCommand>,
}

/// What `atoll domains` does.
#[derive(Debug, Clone, Subcommand)]
pub enum DomainsCommand {
    /// The domains of one app or of all, with what their certificates are worth
    List {
        /// Only this app
        app: Option<String>,
    },
    /// Serve a domain of your own, or replace its certificate
    Add(DomainArgs),
    /// Serve a domain no more
    Remove {
        /// It
        domain: String,
    },
}

/// `atoll domains add`
#[derive(Debug, Clone, Args)]
pub struct DomainArgs {
    /// Such as www.example.com; `*.example.com` stands for one label before it
    pub domain: String,
    /// The app behind it
    #[arg(long)]
    pub app: String,
    /// The public service behind it [default: `web`, or the only public one]
    #[arg(long)]
    pub service: Option<String>,
    /// PEM file with the domain's certificate, then its issuers'
    #[arg(long, value_name = "FILE")]
    pub cert: PathBuf,
    /// PEM file with the private key
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Return as soon as the platform has taken it
    #[arg(long)]
    pub no_wait: bool,
}

/// `atoll nodes …`
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct NodesArgs {
    /// What to do; without it they are listed
    #[command(subcommand)]
    pub command: Option<NodesCommand>,
}

/// What `atoll nodes` does.
#[derive(Debug, Clone, Subcommand)]
pub enum NodesCommand {
    /// The nodes of the platform
    List,
    /// Take a node out of the platform for good: it is cut off everywhere, and must join anew to come back
    Remove {
        /// Its name
        name: String,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
}

/// `atoll held …`
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct HeldArgs {
    /// What to do; without it they are listed
    #[command(subcommand)]
    pub command: Option<HeldCommand>,
}

/// What `atoll held` does.
#[derive(Debug, Clone, Subcommand)]
pub enum HeldCommand {
    /// What waits
    List,
    /// Let it go
    Confirm {
        /// How many there are, as `list` says
        count: usize,
    },
}

/// `atoll certs …` and `atoll routes …`
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ListedArgs {
    /// What to do; without it they are listed
    #[command(subcommand)]
    pub command: Option<ListedCommand>,
}

/// What they do.
#[derive(Debug, Clone, Subcommand)]
pub enum ListedCommand {
    /// Of one app or of all
    List {
        /// Only this app
        app: Option<String>,
    },
}

impl ListedArgs {
    /// The app that they are narrowed to.
    pub fn app(self) -> Option<String> {
        self.command.and_then(|ListedCommand::List { app }| app)
    }
}
