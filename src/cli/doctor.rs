//! `chat3-gateway doctor`: finds what an operator would otherwise learn from complaints.
//!
//! Each check adds findings to a report: the state of a thing, and what to do about it.
//! Checks reuse the code of `serve`, so that both come to the same result.
//!
//! Invariants: the doctor publishes, declares and deletes nothing of Chat3's, and leaves
//! nothing behind at RabbitMQ; every step is bounded in time; no finding contains a
//! secret, a token, a body or a user id from the traffic.

mod bind;
mod clock;
mod control_stream;
mod exchange;
mod grants;
mod host;
mod jwt;
mod listening;
mod login;
mod network;
mod presence;
mod report;
mod rights;
mod stream;
mod trial;
mod updates;

use std::{io::Read, process::ExitCode, time::Duration};

use anyhow::Context;

use self::{
    report::{Report, Section},
    stream::Stream,
};
use crate::{
    cli::command_line::DoctorArgs,
    config::{RabbitMqConfig, Secret},
    observability::metrics::Metrics,
    user::User,
};

/// Examines everything and prints the findings. The exit code is 1 if there are problems.
///
/// # Errors
/// When the token to examine cannot be read.
pub async fn examine(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let token = token(args)?;
    let mut report = Report::new(args.json);
    let window = args.serve.config.http.recovery.window;
    let mut rabbitmq = args.serve.config.rabbitmq.clone();
    rabbitmq.keep_stream_for(window);
    let metrics = Metrics::new();
    let tenant_required = rabbitmq.binding_keys.need_tenant();
    // Before the section about the token: its user's updates can be listened to.
    let known = match &token {
        Some(token) => jwt::user(&args.serve.config.jwt, tenant_required, token, &metrics).await,
        None => None,
    };
    report.begin(Section::RabbitMq);
    if let Some(alone) = reachable_node(&rabbitmq, &mut report).await {
        let stream = Stream {
            config: &alone,
            nodes: rabbitmq.url.nodes(),
            window,
        };
        examine_broker(&alone, &stream, known, args.listen, &mut report).await;
    } else {
        let why = "RabbitMQ is not reached";
        report.unknown("login", format!("not tried: {why}"));
        rights::skip(&rabbitmq, why, &mut report);
        stream::skip(&rabbitmq, why, &mut report);
        updates::skip(why, &mut report);
    }
    report.begin(Section::Jwt);
    let verifier = jwt::examine(
        &args.serve.config.jwt,
        tenant_required,
        &metrics,
        &mut report,
    )
    .await;
    if let Some(token) = token {
        report.begin(Section::Token);
        jwt::examine_token(
            verifier.as_ref(),
            &token,
            &args.serve.config.jwt,
            &mut report,
        )
        .await;
    }
    report.begin(Section::Host);
    host::examine(&args.serve, &mut report).await;
    Ok(report.finish(args.strict))
}

/// Examines what lies behind the login.
async fn examine_broker(
    config: &RabbitMqConfig,
    stream: &Stream<'_>,
    known: Option<User>,
    listen: Duration,
    report: &mut Report,
) {
    let side = match login::examine(config, report).await {
        Ok(side) => side,
        Err(why) => {
            rights::skip(config, why, report);
            stream::skip(config, why, report);
            return updates::skip(why, report);
        }
    };
    match rights::examine(side, config, report).await {
        Ok((mut side, rights)) => {
            stream.examine(&mut side, report).await;
            updates::examine(side, config, &rights, known, listen, report).await;
        }
        Err(why) => {
            stream::skip(config, why, report);
            updates::skip(why, report);
        }
    }
}

/// Examines the way to each node; returns the settings with the first one alone that a
/// login can be tried at. What lies behind the login is the same at all nodes.
async fn reachable_node(config: &RabbitMqConfig, report: &mut Report) -> Option<RabbitMqConfig> {
    let nodes = config.url.nodes();
    let mut reachable = None;
    for (index, node) in nodes.iter().enumerate() {
        if nodes.len() > 1 {
            report.ok("node", format!("{node} ({} of {})", index + 1, nodes.len()));
        }
        let alone = RabbitMqConfig {
            url: node.clone().into(),
            ..config.clone()
        };
        if network::examine(&alone, report).await {
            reachable.get_or_insert(alone);
        }
    }
    if let Some(alone) = &reachable {
        network::examine_login(alone, report);
    }
    reachable
}

/// More than the longest token that is examined, with room for line ends.
const MAX_TOKEN_INPUT: u64 = 64 * 1024;

/// Reads the token to examine from the argument, stdin or a file.
fn token(args: &DoctorArgs) -> anyhow::Result<Option<String>> {
    let mut text = String::new();
    match (
        args.token.as_ref().and_then(Secret::expose),
        &args.token_file,
    ) {
        (Some("-"), _) => {
            let stdin = std::io::stdin().take(MAX_TOKEN_INPUT);
            read(stdin, &mut text).context("cannot read a token from stdin")?;
        }
        (Some(token), _) => token.clone_into(&mut text),
        (None, Some(path)) => {
            let file = std::fs::File::open(path);
            let read = file.and_then(|file| read(file.take(MAX_TOKEN_INPUT), &mut text));
            read.with_context(|| format!("cannot read {}", path.display()))?;
        }
        // An empty --token is a token, too.
        (None, None) if args.token.is_some() => {}
        (None, None) => return Ok(None),
    }
    Ok(Some(text.trim().to_owned()))
}

fn read(mut source: impl Read, text: &mut String) -> std::io::Result<()> {
    source.read_to_string(text).map(drop)
}
