//! Findings and their output: line by line as they are made, or as one JSON object.

use std::{fmt::Write as _, process::ExitCode};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

/// The state of a thing, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Ok,
    /// It could not be determined, or was not tried because an earlier check failed.
    Unknown,
    /// It works, but is probably not intended.
    Warning,
    /// It does not work.
    Problem,
}

/// What a finding is about. The names are part of the JSON format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Section {
    RabbitMq,
    Updates,
    Jwt,
    Token,
    Host,
}

impl Section {
    fn title(self) -> &'static str {
        match self {
            Self::RabbitMq => "RabbitMQ",
            Self::Updates => "Updates",
            Self::Jwt => "JWT",
            Self::Token => "Token",
            Self::Host => "This machine",
        }
    }
}

/// The result of one check. The field names are part of the JSON format.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    section: Section,
    /// Names the check within its section.
    check: &'static str,
    status: Status,
    /// One line: the state.
    finding: String,
    /// One line: what to do about it.
    advice: Option<String>,
}

/// What has been found so far.
pub(crate) struct Report {
    json: bool,
    section: Section,
    findings: Vec<Finding>,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            section: Section::RabbitMq,
            findings: Vec::new(),
        }
    }

    /// Starts a section: the findings that follow belong to it.
    pub(crate) fn begin(&mut self, section: Section) {
        self.section = section;
        if !self.json {
            let gap = if self.findings.is_empty() { "" } else { "\n" };
            let bold = Style::new().bold();
            anstream::println!("{gap}{bold}{}{bold:#}", section.title());
        }
    }

    /// Tells a waiting operator what takes a while.
    pub(crate) fn announce(&self, what: &str) {
        if !self.json {
            let dim = Style::new().dimmed();
            anstream::println!("  {dim}· {what}{dim:#}");
        }
    }

    pub(crate) fn ok(&mut self, check: &'static str, finding: impl Into<String>) {
        self.add(check, Status::Ok, finding.into(), None);
    }

    /// It works, and could be better.
    pub(crate) fn recommend(
        &mut self,
        check: &'static str,
        finding: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(check, Status::Ok, finding.into(), Some(advice.into()));
    }

    pub(crate) fn unknown(&mut self, check: &'static str, finding: impl Into<String>) {
        self.add(check, Status::Unknown, finding.into(), None);
    }

    /// It is unknown, and the advice says how to find out.
    pub(crate) fn unclear(
        &mut self,
        check: &'static str,
        finding: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(check, Status::Unknown, finding.into(), Some(advice.into()));
    }

    pub(crate) fn warning(
        &mut self,
        check: &'static str,
        finding: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(check, Status::Warning, finding.into(), Some(advice.into()));
    }

    pub(crate) fn problem(
        &mut self,
        check: &'static str,
        finding: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(check, Status::Problem, finding.into(), Some(advice.into()));
    }

    fn add(
        &mut self,
        check: &'static str,
        status: Status,
        finding: String,
        advice: Option<String>,
    ) {
        // Text from servers and files may contain line breaks and control characters.
        let finding = one_line(&finding);
        let advice = advice.as_deref().map(one_line);
        let finding = Finding {
            section: self.section,
            check,
            status,
            finding,
            advice,
        };
        if !self.json {
            anstream::print!("{}", in_colour(&finding));
        }
        self.findings.push(finding);
    }

    fn count(&self, status: Status) -> usize {
        let of_it = |finding: &&Finding| finding.status == status;
        self.findings.iter().filter(of_it).count()
    }

    /// Prints the summary; returns the exit code.
    pub(crate) fn finish(self, strict: bool) -> ExitCode {
        let problems = self.count(Status::Problem);
        let warnings = self.count(Status::Warning);
        let unknown = self.count(Status::Unknown);
        let failed = problems > 0 || (strict && warnings > 0);
        if self.json {
            let document = Document {
                version: env!("CARGO_PKG_VERSION"),
                ok: !failed,
                problems,
                warnings,
                unknown,
                findings: self.findings,
            };
            let json = serde_json::to_string_pretty(&document);
            anstream::println!("{}", json.expect("texts and numbers are JSON"));
        } else {
            let summary = format!(
                "{}, {}, {unknown} unknown",
                counted(problems, "problem"),
                counted(warnings, "warning")
            );
            let worst = match (problems, warnings) {
                (0, 0) => Status::Ok,
                (0, _) => Status::Warning,
                _ => Status::Problem,
            };
            let (_, style) = mark(worst);
            anstream::println!("\n{style}{summary}{style:#}");
        }
        match failed {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        }
    }
}

/// The JSON output. Field names stay; more may be added.
#[derive(Serialize)]
struct Document {
    version: &'static str,
    /// Whether the exit code is 0.
    ok: bool,
    problems: usize,
    warnings: usize,
    unknown: usize,
    findings: Vec<Finding>,
}

fn mark(status: Status) -> (char, Style) {
    match status {
        Status::Ok => ('✓', AnsiColor::Green.on_default()),
        Status::Unknown => ('?', AnsiColor::Cyan.on_default()),
        Status::Warning => ('!', AnsiColor::Yellow.on_default().bold()),
        Status::Problem => ('✗', AnsiColor::Red.on_default().bold()),
    }
}

fn in_colour(finding: &Finding) -> String {
    let (mark, style) = mark(finding.status);
    let check = finding.check.replace('_', " ");
    let mut text = format!("  {style}{mark}{style:#} {check:<18} {}\n", finding.finding);
    if let Some(advice) = &finding.advice {
        writeln!(text, "    {:<18} → {advice}", "").expect("writing to a String does not fail");
    }
    text
}

pub(super) fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

fn one_line(text: &str) -> String {
    let safe = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(safe).collect()
}
