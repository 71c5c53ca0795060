//! `mesh-cni`: the CNI plugin. With `CNI_COMMAND` set a runtime runs it; without, people install it by it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use meshnet::cni::{self, install};
use meshnet::ctl::{exit, usage};
use meshnet::telemetry::VERSION;

/// The CNI plugin of meshnet. Runtimes run it with CNI_COMMAND set.
#[derive(Debug, Parser)]
#[command(name = "mesh-cni", version = VERSION)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Puts the plugin, those that runtimes need beside it, and the configuration on this machine. Each flag can be set by the environment, too
    Install(install::Install),
    /// Takes away what install put there
    Uninstall(install::Uninstall),
    /// Waits for SIGTERM or SIGINT and does nothing
    Pause,
}

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let as_loopback = Path::new(&name).file_name() == Some(OsStr::new("loopback"));
    if as_loopback || std::env::var_os("CNI_COMMAND").is_some() {
        return cni::main(as_loopback);
    }
    let done = match Cli::try_parse().map(|cli| cli.command) {
        Ok(Command::Install(options)) => install::install(&options),
        Ok(Command::Uninstall(options)) => install::uninstall(&options),
        Ok(Command::Pause) => install::pause(),
        Err(error) if usage::is_help(&error) => {
            print!("{error}");
            return ExitCode::from(exit::DONE);
        }
        Err(error) => {
            eprintln!("{}", usage::one_line(&Cli::command(), &error));
            return ExitCode::from(exit::USAGE);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-cni: {error:#}");
            ExitCode::from(exit::REFUSED)
        }
    }
}
