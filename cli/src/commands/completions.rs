//! `atoll completions`

use crate::args::Cli;
use crate::out;
use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};

pub(super) fn run(shell: Shell) {
    out::data(script(shell).trim_end());
}

fn script(shell: Shell) -> String {
    let all = Cli::command();
    // Scripts would offer hidden commands too.
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut command = Command::new("atoll")
        .disable_help_subcommand(true)
        .args(all.get_arguments().cloned())
        .subcommands(shown);
    let mut script = Vec::new();
    generate(shell, &mut command, "atoll", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in Shell::value_variants() {
            let script = script(*shell);
            assert!(script.contains("deploy") && script.contains("completions"), "{shell}");
            assert!(!script.contains("probe-instance"), "{shell}: what is hidden stays so");
        }
    }
}
