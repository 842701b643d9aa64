//! Holds `docs/CONFIGURATION.md` against the command line's own definitions. Its tables
//! stand between `<!-- generated: … -->` and `<!-- /generated -->`; the prose around
//! them is written by hand. `make docs` writes the tables anew.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use chat3_gateway::internal::cli::Cli;
use clap::{Arg, Command, CommandFactory};

const OPEN: &str = "<!-- generated: ";
const CLOSE: &str = "<!-- /generated -->";

/// The mark of the table of what each command has of its own.
const COMMANDS: &str = "commands";

#[test]
fn the_tables_are_those_of_the_command_line() {
    let written = read("docs/CONFIGURATION.md");
    let (generated, tables) = regenerate(&written);
    let sections: BTreeSet<String> = settings().iter().map(heading).collect();
    for section in &sections {
        let mark = tables.contains(section);
        assert!(
            mark,
            "docs/CONFIGURATION.md has no {OPEN}{section} --> table"
        );
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path("docs/CONFIGURATION.md"), generated).unwrap();
        return;
    }
    let difference = written.lines().zip(generated.lines()).find(|(a, b)| a != b);
    assert!(
        written == generated,
        "docs/CONFIGURATION.md is not what the code says; run `make docs`. First difference \
         (written, generated): {difference:#?}"
    );
}

#[test]
fn every_variable_is_in_the_russian_page_and_in_the_example() {
    let (russian, example) = (read("docs/ru/CONFIGURATION.md"), read(".env.example"));
    let variables: Vec<String> = settings().iter().filter_map(variable).collect();
    assert!(variables.len() > 40, "{variables:?}");
    let missing = |holds: &dyn Fn(&str) -> bool| -> Vec<&String> {
        variables.iter().filter(|name| !holds(name)).collect()
    };
    let none: Vec<&String> = Vec::new();
    let in_russian = |name: &str| russian.contains(&format!("`{name}`"));
    assert_eq!(
        missing(&in_russian),
        none,
        "not in docs/ru/CONFIGURATION.md"
    );
    let in_example = |name: &str| {
        let is_it = |line: &str| {
            line.trim_start_matches('#')
                .starts_with(&format!("{name}="))
        };
        example.lines().any(is_it)
    };
    assert_eq!(missing(&in_example), none, "not in .env.example");
}

/// The page with its tables made anew, and the names of the tables.
fn regenerate(page: &str) -> (String, BTreeSet<String>) {
    let (mut text, mut names, mut is_table) = (String::new(), BTreeSet::new(), false);
    for line in page.lines() {
        if line == CLOSE {
            is_table = false;
        }
        if !is_table {
            text.push_str(line);
            text.push('\n');
        }
        let name = line.strip_prefix(OPEN);
        if let Some(name) = name.and_then(|rest| rest.strip_suffix(" -->")) {
            is_table = true;
            names.insert(name.to_owned());
            text.push_str(&match name {
                COMMANDS => commands_table(),
                section => settings_table(section),
            });
        }
    }
    assert!(!is_table, "a table without {CLOSE}");
    (text, names)
}

fn settings_table(section: &str) -> String {
    let mut table = String::from("| variable | flag | default | |\n|---|---|---|---|\n");
    let of_section = |argument: &&Arg| heading(argument) == section;
    let settings = settings();
    assert!(
        settings.iter().any(|argument| of_section(&argument)),
        "no settings under {section}"
    );
    for argument in settings.iter().filter(of_section) {
        let variable = variable(argument).map_or("none".to_owned(), |name| format!("`{name}`"));
        let (flag, default, help) = (flag(argument), default(argument), help(argument));
        writeln!(table, "| {variable} | {flag} | {default} | {help} |").unwrap();
    }
    table
}

/// What each command has that `serve` has not.
fn commands_table() -> String {
    let shared: BTreeSet<String> = settings().iter().map(flag).collect();
    let mut table = String::from("| command | its own flag | default | |\n|---|---|---|---|\n");
    for command in command().get_subcommands() {
        let name = command.get_name();
        if name == "help" || command.is_hide_set() {
            continue;
        }
        let about = command.get_about().map(ToString::to_string);
        writeln!(table, "| `{name}` | | | {} |", cell(about.as_deref())).unwrap();
        for argument in command.get_arguments() {
            if argument.get_long().is_none()
                || shared.contains(&flag(argument))
                || built_in(argument)
            {
                continue;
            }
            let (flag, default, help) = (flag(argument), default(argument), help(argument));
            writeln!(table, "| | {flag} | {default} | {help} |").unwrap();
        }
    }
    table
}

fn command() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// What `serve` reads.
fn settings() -> Vec<Arg> {
    let command = command();
    let serve = command.find_subcommand("serve").expect("serve is there");
    let arguments = serve.get_arguments().filter(|argument| !built_in(argument));
    arguments.cloned().collect()
}

fn built_in(argument: &Arg) -> bool {
    matches!(argument.get_id().as_str(), "help" | "version") || argument.is_hide_set()
}

fn heading(argument: &Arg) -> String {
    argument.get_help_heading().unwrap_or("Options").to_owned()
}

fn variable(argument: &Arg) -> Option<String> {
    Some(argument.get_env()?.to_str()?.to_owned())
}

fn flag(argument: &Arg) -> String {
    format!("`--{}`", argument.get_long().unwrap_or_default())
}

fn default(argument: &Arg) -> String {
    match argument.get_default_values().first() {
        Some(value) if !value.is_empty() => {
            // A bar ends a cell, also in code.
            format!("`{}`", value.to_string_lossy().replace('|', "\\|"))
        }
        _ => "unset".to_owned(),
    }
}

fn help(argument: &Arg) -> String {
    // The long help repeats the short one as its first paragraph.
    let text = argument.get_long_help().or_else(|| argument.get_help());
    cell(text.map(ToString::to_string).as_deref())
}

/// Text as it stands in one cell of a table.
fn cell(text: Option<&str>) -> String {
    let words: Vec<&str> = text.unwrap_or_default().split_whitespace().collect();
    // A bare * would be emphasis where there are two of them.
    words
        .join(" ")
        .replace('|', "\\|")
        .replace('*', "\\*")
        .replace('<', "&lt;")
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file)
}
