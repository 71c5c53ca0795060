//! From the command line to the exit code.

use std::ffi::OsString;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use meshnet_proto::api::{self, MacEntry, Reply, Report, Status, Trace};
use serde::Serialize;

use super::args::{Cli, Command, Format, Table, Topology};
use super::client::{Client, Failure};
use super::render::text::{Style, clean};
use super::render::{Names, graph, ipam, status, table, tree};
use super::{addresses, exit, ping, secret, usage, watch};

/// `meshctl`.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if usage::is_help(&error) => {
            return ExitCode::from(
                emit(&error.to_string()).map_or_else(|failure| failure.exit_code(), |()| exit::DONE),
            );
        }
        Err(error) => {
            eprintln!("{}", usage::one_line(&Cli::command(), &error));
            return ExitCode::from(exit::USAGE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("meshctl: cannot start: {error}");
            return ExitCode::from(exit::REFUSED);
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(failure) => {
            if failure.exit_code() != exit::DONE {
                eprintln!("meshctl: {}", clean(&failure.to_string()));
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let client = Client::new(&cli.socket);
    let send = async |command| client.command(&command).await.map(drop);
    match cli.command {
        Command::Status(command) => show_status(&client, command.table, command.json).await,
        Command::Topology(command) => show_topology(&client, &command).await,
        Command::Watch(command) => watch::run(&client, command.count, command.json.json).await,
        Command::Report(_) => emit(&json(&client.get::<Report>("/v1/report").await?)?),
        Command::Connect { addresses } => send(api::Command::Connect { addresses }).await,
        Command::Forget { addresses } => send(api::Command::Forget { addresses }).await,
        Command::Attach { namespace, addresses, json } => attach(&client, namespace, addresses, json.json).await,
        Command::Detach { namespace, addresses } => send(api::Command::Detach { namespace, addresses }).await,
        Command::Expose { address } => send(api::Command::Expose { address }).await,
        Command::Hide { address } => send(api::Command::Hide { address }).await,
        Command::Ip { command } => addresses::ip(&client, command).await,
        Command::Rmpeer { peers, force, json } => addresses::rmpeer(&client, peers, force, json.json).await,
        Command::Leave => send(api::Command::Leave).await,
        Command::Ping(command) => ping::run(&client, &command).await,
        Command::Trace { to, json: as_json } => match client.command(&api::Command::Trace { to }).await? {
            Reply::Trace(trace) if as_json.json => emit(&json::<Trace>(&trace)?),
            Reply::Trace(trace) => emit(&table::trace(style(), &trace)),
            _ => Err(client.unexpected()),
        },
        Command::Secret => {
            let secret = secret::make().map_err(|error| Failure::Local(error.to_string()))?;
            emit(&(secret + "\n"))
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut script);
            emit(&String::from_utf8_lossy(&script))
        }
    }
}

async fn show_status(client: &Client, which: Option<Table>, as_json: bool) -> Result<(), Failure> {
    /// A table in JSON: the version, and the same key that the whole status has.
    #[derive(Serialize)]
    struct Macs<'a> {
        version: u32,
        macs: &'a [MacEntry],
    }
    if let Some(Table::Macs) = which {
        let macs: Vec<MacEntry> = client.get("/v1/macs").await?;
        return emit(&if as_json {
            json(&Macs { version: api::VERSION, macs: &macs })?
        } else {
            table::macs(style(), &macs)
        });
    }
    let document: Status = client.get("/v1/status").await?;
    if as_json {
        let Some(which) = which else { return emit(&json(&document)?) };
        let key = match which {
            Table::Peers => "peers",
            Table::Links => "links",
            Table::Ipam => "ipam",
            Table::Routes => "routes",
            Table::Targets => "targets",
            Table::Macs => "macs",
        };
        let whole = serde_json::to_value(&document).map_err(|error| Failure::Local(error.to_string()))?;
        let mut part = serde_json::Map::new();
        part.insert("version".into(), document.version.into());
        part.insert(key.into(), whole.get(key).cloned().unwrap_or_default());
        return emit(&json(&part)?);
    }
    let style = style();
    emit(&match which {
        None => status::screen(style, &document),
        Some(Table::Peers) => table::peers(style, &document),
        Some(Table::Links) => table::links(style, &document),
        Some(Table::Ipam) => ipam::table(style, &document),
        Some(Table::Routes) => table::routes(style, &document),
        Some(Table::Targets) => table::targets(style, &document),
        Some(Table::Macs) => String::new(),
    })
}

async fn show_topology(client: &Client, command: &Topology) -> Result<(), Failure> {
    let format = if command.json { Format::Json } else { command.format };
    if format == Format::Json {
        return emit(&json(&client.get::<api::Topology>("/v1/topology").await?)?);
    }
    let document: Status = client.get("/v1/status").await?;
    if format == Format::Tree {
        return emit(&tree::render(style(), &document, &Names::of_status(&document), usize::MAX));
    }
    let topology = client.get("/v1/topology").await?;
    let draw = if format == Format::Dot { graph::dot } else { graph::svg };
    emit(&draw(&topology, document.peer.id))
}

async fn attach(client: &Client, namespace: String, addresses: Vec<String>, as_json: bool) -> Result<(), Failure> {
    /// What `attach --json` prints.
    #[derive(Serialize)]
    struct Attached {
        interface: String,
        addresses: Vec<String>,
    }
    match client.command(&api::Command::Attach { namespace, addresses }).await? {
        Reply::Attached { interface, addresses } if as_json => emit(&json(&Attached { interface, addresses })?),
        Reply::Attached { interface, addresses } => {
            emit(&(clean(format!("{interface} {}", addresses.join(" ")).trim_end()) + "\n"))
        }
        Reply::Done => Ok(()),
        _ => Err(client.unexpected()),
    }
}

/// Colour only where someone looks, and does not mind.
pub(super) fn style() -> Style {
    let unset = |name| std::env::var_os(name).is_none_or(|value| value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    Style { colour: io::stdout().is_terminal() && unset("NO_COLOR") && !dumb }
}

/// A document for standard output.
pub(super) fn json<T: Serialize>(document: &T) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(document).map_err(|error| Failure::Local(error.to_string()))?;
    Ok(text + "\n")
}

/// To standard output.
pub(super) fn emit(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Local(format!("standard output: {error}")),
    })
}
