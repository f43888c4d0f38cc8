//! What is made of the command line itself: completion scripts and man pages.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;

use super::output;

const HELP_COMPLETION: &str = "\
Examples:
  source <(pontoon completion bash)
  pontoon completion zsh > \"${fpath[1]}/_pontoon\"
  pontoon completion fish > ~/.config/fish/completions/pontoon.fish";

const HELP_MAN: &str = "\
Examples:
  pontoon man | man -l -
  sudo pontoon man /usr/local/share/man/man1";

/// The verbs.
pub fn commands() -> Vec<Command> {
    vec![
        Command::new("completion")
            .about("Print a completion script for a shell")
            .arg(
                Arg::new("shell")
                    .value_name("SHELL")
                    .help("The shell")
                    .required(true)
                    .value_parser(clap::value_parser!(Shell)),
            )
            .after_help(HELP_COMPLETION),
        Command::new("man")
            .about("Print the man page, or write those of all verbs to a directory")
            .arg(
                Arg::new("dir")
                    .value_name("DIR")
                    .help("Where to write them")
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .after_help(HELP_MAN),
    ]
}

/// `completion`.
pub fn completion(mut whole: Command, matches: &ArgMatches) -> anyhow::Result<()> {
    let shell = *matches.get_one::<Shell>("shell").context("SHELL")?;
    let name = whole.get_name().to_string();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut whole, name, &mut script);
    print(&script)
}

/// `man`.
pub fn man(whole: Command, matches: &ArgMatches) -> anyhow::Result<()> {
    match matches.get_one::<PathBuf>("dir") {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
            clap_mangen::generate_to(whole, dir).with_context(|| format!("cannot write to {}", dir.display()))
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(whole).render(&mut page)?;
            print(&page)
        }
    }
}

fn print(bytes: &[u8]) -> anyhow::Result<()> {
    match output::write(bytes) {
        Err(failed) if !failed.message.is_empty() => anyhow::bail!(failed.message),
        _ => Ok(()),
    }
}
