//! Compares what the documentation says of settings with the definitions of the command
//! line. The lists of `docs/CONFIGURATION.md` stand between `<!-- generated: … -->` and
//! `<!-- /generated -->`; the prose around them is written by hand. `make docs` writes the
//! lists again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use chat3_gateway::internal::cli::Cli;
use clap::{Arg, Command, CommandFactory};

const OPEN: &str = "<!-- generated: ";
const CLOSE: &str = "<!-- /generated -->";

/// The name of the list of commands.
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

/// Where operators read the names of variables: pages, help texts, errors, log lines,
/// deployments, examples.
const TEXTS: [&str; 7] = [
    ".env.example",
    "CHANGELOG.md",
    "README.md",
    "docker",
    "docs",
    "examples",
    "src",
];

/// Names in capitals that these texts use and that are no settings; a final `*` stands
/// for any rest.
const FOREIGN: [&str; 35] = [
    // Variables that others read: Cargo, OpenTelemetry, the images of the Compose files,
    // Vite, this project's tests.
    "ABSENT_USERS",
    "CARGO_*",
    "CHAOS_*",
    "DOCKER_HOST",
    "FLEET_*",
    "FLOOD_REFUSALS",
    "GATEWAY_BASELINE",
    "GATEWAY_BIN",
    "GF_*",
    "JITTER_SECONDS",
    "NPM_CONFIG_REGISTRY",
    "OTEL_*",
    "OUT_DIR",
    "RABBITMQ_TAG",
    "RUST_LOG",
    "SOAK_*",
    "VITE_GATEWAY_*",
    "XDG_RUNTIME_DIR",
    // Names of AMQP and Linux.
    "AF_*",
    "CAP_NET_BIND_SERVICE",
    "CONNECTION_FORCED",
    "PRECONDITION_FAILED",
    "PR_SET_DUMPABLE",
    "TCP_NODELAY",
    // Items of crates that are imported by name, a variant, a placeholder.
    "BASE64_*",
    "ECDSA_*",
    "AARCH64_*",
    "EVENT_TYPE",
    "HKDF_SHA256",
    "HMAC_SHA256",
    "RSA_PKCS1_*",
    "RSA_PSS_*",
    "UNIX_EPOCH",
    "URL_SAFE_NO_PAD",
    "V0_0_77",
];

#[test]
fn every_variable_that_a_text_names_is_a_setting() {
    let mut texts = Vec::new();
    for place in TEXTS {
        collect_texts(&path(place), &mut texts);
    }
    let mut known: BTreeSet<String> = command()
        .get_subcommands()
        .flat_map(Command::get_arguments)
        .filter_map(variable)
        .collect();
    let mut named: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in &texts {
        for (at, word) in words(text) {
            let (before, behind) = (&text[..at], &text[at + word.len()..]);
            if before.ends_with("const ") || before.ends_with("static ") {
                known.insert(word.to_owned());
            }
            let is_item = before.ends_with("::");
            let is_page = behind.starts_with(".md") || behind.starts_with(".ru.md");
            if is_upper_snake(word) && !is_item && !is_page {
                let file = file.strip_prefix(path("")).unwrap_or(file);
                let files = named.entry(word).or_default();
                files.insert(file.display().to_string());
            }
        }
    }
    let is_foreign = |name: &str, foreign: &str| match foreign.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == foreign,
    };
    let unused: Vec<_> = FOREIGN
        .iter()
        .filter(|foreign| !named.keys().any(|name| is_foreign(name, foreign)))
        .collect();
    assert!(unused.is_empty(), "no text names {unused:?}");
    named.retain(|name, _| {
        !known.contains(*name) && !FOREIGN.iter().any(|foreign| is_foreign(name, foreign))
    });
    assert!(named.is_empty(), "no settings: {named:#?}");
}

/// The files at or below `place` that are text.
fn collect_texts(place: &Path, texts: &mut Vec<(PathBuf, String)>) {
    let skipped = ["node_modules", "dist", "socket.io.min.js"];
    if place.is_dir() {
        let entries = fs::read_dir(place).unwrap();
        for entry in entries.map(|entry| entry.unwrap()) {
            if !skipped.iter().any(|name| entry.file_name() == *name) {
                collect_texts(&entry.path(), texts);
            }
        }
    } else if let Ok(text) = fs::read_to_string(place) {
        texts.push((place.to_owned(), text));
    }
}

/// The identifiers in `text`, with their places.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let between = |c: char| !c.is_alphanumeric() && c != '_';
    let pieces = text.split(between).filter(|word| !word.is_empty());
    pieces.map(|word| (word.as_ptr() as usize - text.as_ptr() as usize, word))
}

/// `TWO_WORDS` or more: a single word in capitals is more often an abbreviation.
fn is_upper_snake(word: &str) -> bool {
    let is_capital = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let parts: Vec<&str> = word.split('_').collect();
    word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.chars().all(is_capital)
        && parts.len() > 1
        && parts.iter().all(|part| !part.is_empty())
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

/// A variable, its default and its help. The page explains how flags are named.
fn setting(argument: &Arg) -> String {
    let variable = variable(argument).expect("each setting has a variable");
    let named = variable.to_lowercase().replace('_', "-");
    assert_eq!(argument.get_long(), Some(&*named), "the flag of {variable}");
    item(
        &format!("`{variable}` ({})", default(argument)),
        &help(argument),
    )
}

/// The commands. The flags of a single command are in its `--help`.
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

/// The settings of `serve`.
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
