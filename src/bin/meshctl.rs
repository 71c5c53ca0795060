//! `meshctl`: asks and commands the local peer. All of it is in `meshnet::ctl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    meshnet::ctl::main(std::env::args_os())
}
