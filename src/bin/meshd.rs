//! The peer: one process per machine.

use std::process::ExitCode;

use meshnet::daemon::config::{self, Request};

fn main() -> ExitCode {
    match config::load(std::env::args_os(), std::env::vars_os()) {
        Ok(Request::Run(settings)) => {
            settings.warnings.iter().for_each(|warning| eprintln!("meshd: {warning}"));
            ExitCode::SUCCESS
        }
        Ok(Request::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit)
        }
    }
}
