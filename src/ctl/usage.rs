//! A wrong command line as one line that names what is wrong and says what would be right. For all three programs.

use clap::Command;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// The line. For `--help` and `--version`, which clap reports as errors too, use [`is_help`] first.
pub fn one_line(command: &Command, error: &Error) -> String {
    let program = command.get_name();
    let get = |kind| error.get(kind).map(words).filter(|text| !text.is_empty());
    let argument = get(ContextKind::InvalidArg);
    let value = get(ContextKind::InvalidValue);
    let what = match (error.kind(), argument, value) {
        (ErrorKind::InvalidSubcommand, ..) => {
            format!("there is no command '{}'", get(ContextKind::InvalidSubcommand).unwrap_or_default())
        }
        (ErrorKind::MissingSubcommand, ..) | (ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, ..) => {
            "a command is missing".to_owned()
        }
        (ErrorKind::UnknownArgument, Some(argument), _) if argument.starts_with('-') => {
            format!("there is no flag '{argument}'")
        }
        (ErrorKind::UnknownArgument, Some(argument), _) => format!("'{argument}' is one word too many"),
        (ErrorKind::MissingRequiredArgument, Some(argument), _) => format!("{argument} is missing"),
        (ErrorKind::ArgumentConflict, Some(argument), _) => match get(ContextKind::PriorArg) {
            Some(prior) if prior != argument => format!("{argument} does not go together with {prior}"),
            _ => format!("{argument} is given more than once"),
        },
        (ErrorKind::InvalidValue, Some(argument), None) => format!("{argument} needs a value"),
        (_, Some(argument), Some(value)) => format!("'{value}' is wrong for {argument}"),
        (_, Some(argument), None) => format!("{argument} is wrong"),
        _ => first_line(error),
    };
    let right = why(error)
        .or_else(|| get(ContextKind::ValidValue).map(|values| format!("one of: {values}")))
        .or_else(|| get(ContextKind::SuggestedArg).map(|flag| format!("did you mean {flag}?")))
        .or_else(|| get(ContextKind::SuggestedSubcommand).map(|name| format!("did you mean {name}?")))
        .or_else(|| get(ContextKind::ValidSubcommand).map(|names| format!("one of: {names}")))
        .or_else(|| subcommands(command, error))
        .or_else(|| get(ContextKind::Usage).map(|usage| usage.trim_start_matches("Usage:").trim().to_owned()))
        .unwrap_or_else(|| format!("see {program} --help"));
    // Values are whatever was typed or stood in a file: one line it stays.
    format!("{program}: {what}: {right}").chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// Whether this "error" is the text of `--help` or `--version`, for standard output and exit 0.
pub fn is_help(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
}

/// The commands that could have stood where a wrong one, or none, stands.
fn subcommands(command: &Command, error: &Error) -> Option<String> {
    use ErrorKind::{DisplayHelpOnMissingArgumentOrSubcommand, InvalidSubcommand, MissingSubcommand};
    if !matches!(error.kind(), InvalidSubcommand | MissingSubcommand | DisplayHelpOnMissingArgumentOrSubcommand) {
        return None;
    }
    // The words of the usage lead to the command that was reached.
    let usage = error.get(ContextKind::Usage).map(words).unwrap_or_default();
    let reached = usage.split_whitespace().fold(command, |at, word| at.find_subcommand(word).unwrap_or(at));
    let names: Vec<&str> = reached.get_subcommands().map(Command::get_name).filter(|name| *name != "help").collect();
    (!names.is_empty()).then(|| format!("one of: {}", names.join(", ")))
}

/// The words of a value parser.
fn why(error: &Error) -> Option<String> {
    (error.kind() == ErrorKind::ValueValidation)
        .then(|| std::error::Error::source(error))?
        .map(|source| source.to_string())
        .filter(|text| !text.is_empty())
}

fn words(value: &ContextValue) -> String {
    match value {
        ContextValue::None => String::new(),
        ContextValue::Strings(list) => list.join(", "),
        ContextValue::StyledStrs(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn first_line(error: &Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}
