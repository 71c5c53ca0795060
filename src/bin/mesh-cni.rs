//! `mesh-cni`: the CNI plugin. The verbs have an issue of their own; until then it says so rather than pretend.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use meshnet::ctl::{exit, usage};
use meshnet::telemetry::VERSION;

/// The CNI plugin of meshnet.
#[derive(Debug, Parser)]
#[command(name = "mesh-cni", version = VERSION)]
struct Cli {
    /// Verbs and their flags, `install` among them.
    #[arg(hide = true, trailing_var_arg = true)]
    _words: Vec<String>,
}

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(Cli { .. }) => {
            eprintln!("mesh-cni: the CNI verbs are not in this version");
            ExitCode::from(exit::REFUSED)
        }
        Err(error) if usage::is_help(&error) => {
            print!("{error}");
            ExitCode::from(exit::DONE)
        }
        Err(error) => {
            eprintln!("{}", usage::one_line(&Cli::command(), &error));
            ExitCode::from(exit::USAGE)
        }
    }
}
