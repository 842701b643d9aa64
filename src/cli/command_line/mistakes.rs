//! Words the mistakes of a command line as one line that names flag and variable, in
//! place of clap's several, which repeat the usage and the values of secrets.

use std::{
    error::Error,
    num::{IntErrorKind, ParseIntError},
};

use clap::{
    CommandFactory,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::Cli;

/// The mistake in one line. The value is repeated only if it cannot be a secret.
pub(super) fn describe(error: &clap::Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if let (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    {
        let settings = missing.iter().map(|setting| named(flag_of(setting)).0);
        let settings = settings.collect::<Vec<_>>().join(" and ");
        return format!("required but not given: {settings}");
    }
    let flag = text(ContextKind::InvalidArg).map(flag_of);
    let (Some((name, Some(argument))), Some(value)) =
        (flag.map(named), text(ContextKind::InvalidValue))
    else {
        // The mistake is not about a value: clap's first paragraph says it, without the usage.
        let text = error.to_string();
        let paragraph = text.split("\n\n").next().unwrap_or(&text);
        let line = paragraph.lines().map(str::trim).collect::<Vec<_>>();
        return format!(
            "{} (see --help)",
            line.join(" ").trim_start_matches("error: ")
        );
    };
    let reason = match (error.get(ContextKind::ValidValue), error.source()) {
        (Some(ContextValue::Strings(valid)), _) if !valid.is_empty() => {
            format!("is none of {}", valid.join(", "))
        }
        (_, Some(source)) => in_words(source),
        _ => "must have a value".to_owned(),
    };
    let value = format!("{value:?}");
    match argument.is_hide_env_values_set() {
        true => format!("{name} {reason}"),
        // The reason already begins with the value.
        false if reason.starts_with(&value) => format!("{name}: {reason}"),
        false => format!("{name}: {value} {reason}"),
    }
}

/// The flag in clap's notation of an argument (`--port <PORT>`).
fn flag_of(notation: &str) -> &str {
    notation.split([' ', '=']).next().unwrap_or(notation)
}

/// A flag as a message names it, with its variable first, and its definition.
fn named(flag: &str) -> (String, Option<clap::Arg>) {
    let argument = find_argument(&Cli::command(), flag);
    let variable = argument.as_ref().and_then(clap::Arg::get_env);
    let name = match variable {
        Some(variable) => format!("{} ({flag})", variable.to_string_lossy()),
        None => flag.to_owned(),
    };
    (name, argument)
}

/// What is wrong with a value. Rust's own messages about numbers speak of its types.
fn in_words(source: &(dyn Error + 'static)) -> String {
    match source.downcast_ref().map(ParseIntError::kind) {
        Some(IntErrorKind::PosOverflow) => "is too large".to_owned(),
        Some(IntErrorKind::Zero) => "must be at least 1".to_owned(),
        Some(_) => "must be a whole number, and not negative".to_owned(),
        None => source.to_string(),
    }
}

fn find_argument(command: &clap::Command, flag: &str) -> Option<clap::Arg> {
    let is_it = |argument: &&clap::Arg| {
        let long = argument.get_long();
        long.is_some_and(|long| flag.strip_prefix("--") == Some(long))
    };
    let own = command.get_arguments().find(is_it).cloned();
    let find_in = |command| find_argument(command, flag);
    own.or_else(|| command.get_subcommands().find_map(find_in))
}
