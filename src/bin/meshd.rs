//! The peer: one process per machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    meshnet::daemon::main(std::env::args_os(), std::env::vars_os())
}
