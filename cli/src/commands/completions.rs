//! `atoll completions`

use crate::args::Cli;
use crate::out;
use clap::CommandFactory;
use clap_complete::{Shell, generate};

pub(super) fn run(shell: Shell) {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "atoll", &mut script);
    out::data(String::from_utf8_lossy(&script).trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            generate(*shell, &mut Cli::command(), "atoll", &mut script);
            let script = String::from_utf8_lossy(&script);
            assert!(script.contains("deploy") && script.contains("completions"), "{shell}");
            assert!(!script.contains("probe-instance"), "{shell}: what is hidden stays so");
        }
    }
}
