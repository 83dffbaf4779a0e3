//! The `atoll` binary.

mod api;
mod args;
mod commands;
mod contexts;
mod dev;
mod failure;
mod node;
mod out;
mod program;

use clap::Parser;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    commands::run(args::Cli::parse())
}
