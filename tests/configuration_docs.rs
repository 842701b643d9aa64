//! Holds `docs/CONFIGURATION.md` against the command line's own definitions. Its lists of
//! settings stand between `<!-- generated: … -->` and `<!-- /generated -->`; the prose
//! around them is written by hand. `make docs` writes the lists again.

use std::{collections::BTreeSet, fs, path::PathBuf};

use chat3_gateway::internal::cli::Cli;
use clap::{Arg, Command, CommandFactory};

const OPEN: &str = "<!-- generated: ";
const CLOSE: &str = "<!-- /generated -->";

/// The mark of the list of commands.
const COMMANDS: &str = "commands";

/// Longer lines are hard to read in an editor.
const WIDTH: usize = 150;

#[test]
fn the_lists_are_those_of_the_command_line() {
    let written = read("docs/CONFIGURATION.md");
    let (generated, lists) = regenerate(&written);
    let sections: BTreeSet<String> = settings().iter().map(heading).collect();
    for section in &sections {
        let mark = lists.contains(section);
        assert!(
            mark,
            "docs/CONFIGURATION.md has no {OPEN}{section} --> list"
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

/// The page with its lists written again, and the names of the lists.
fn regenerate(page: &str) -> (String, BTreeSet<String>) {
    let (mut text, mut names, mut in_list) = (String::new(), BTreeSet::new(), false);
    for line in page.lines() {
        if line == CLOSE {
            in_list = false;
        }
        if !in_list {
            text.push_str(line);
            text.push('\n');
        }
        let name = line.strip_prefix(OPEN);
        if let Some(name) = name.and_then(|rest| rest.strip_suffix(" -->")) {
            in_list = true;
            names.insert(name.to_owned());
            text.push_str(&match name {
                COMMANDS => commands_list(),
                section => settings_list(section),
            });
        }
    }
    assert!(!in_list, "a list without {CLOSE}");
    (text, names)
}

fn settings_list(section: &str) -> String {
    let settings = settings();
    let mut of_section = settings
        .iter()
        .filter(|argument| heading(argument) == section)
        .peekable();
    assert!(of_section.peek().is_some(), "no settings under {section}");
    of_section.map(setting).collect()
}

/// A variable, its default and its help. The page says how its flag is named.
fn setting(argument: &Arg) -> String {
    let variable = variable(argument).expect("each setting has a variable");
    let named = variable.to_lowercase().replace('_', "-");
    assert_eq!(argument.get_long(), Some(&*named), "the flag of {variable}");
    item(
        &format!("`{variable}` ({})", default(argument)),
        &help(argument),
    )
}

/// The commands. Their `--help` has the flags that only one of them has.
fn commands_list() -> String {
    let command = command();
    let shown = command
        .get_subcommands()
        .filter(|command| command.get_name() != "help" && !command.is_hide_set());
    shown
        .map(|command| {
            let about = command.get_about().map(ToString::to_string);
            item(
                &format!("`{}`", command.get_name()),
                &prose(about.as_deref()),
            )
        })
        .collect()
}

/// An item of a list, in lines of at most `WIDTH` characters.
fn item(name: &str, text: &str) -> String {
    let (mut item, mut line) = (String::new(), format!("- {name}:"));
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            item += &line;
            item += "\n";
            " ".clone_into(&mut line);
        }
        line += " ";
        line += word;
    }
    item + &line + "\n"
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

fn default(argument: &Arg) -> String {
    match argument.get_default_values().first() {
        Some(value) if !value.is_empty() => format!("`{}`", value.to_string_lossy()),
        _ => "unset".to_owned(),
    }
}

fn help(argument: &Arg) -> String {
    // The long help repeats the short one as its first paragraph.
    let text = argument.get_long_help().or_else(|| argument.get_help());
    prose(text.map(ToString::to_string).as_deref())
}

/// Text as Markdown shows it.
fn prose(text: Option<&str>) -> String {
    // A bare * would be emphasis where there are two of them.
    text.unwrap_or_default()
        .replace('*', "\\*")
        .replace('<', "&lt;")
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file)
}
