//! The commands, and the modules that only they need.
//!
//! Owns what each command does. `main` owns the process that runs it: signals, exit codes,
//! systemd. A command prints its results and returns its errors to `main`.

mod command_line;
pub(crate) mod dev;
pub(crate) mod doctor;
mod health;
pub(crate) mod publisher;
pub mod telemetry;

use std::process::ExitCode;

use anyhow::Context;

pub use self::{
    command_line::{Cli, Command},
    dev::Development,
    doctor::examine,
    health::check as check_health,
};
use self::{
    command_line::{PublishArgs, TokenArgs},
    publisher::Published,
};
use crate::{
    auth::Signer,
    config::{Config, Secret},
    server::Server,
    user::User,
};

/// Binds the server of `serve`.
///
/// # Errors
/// When a setting is wrong, or an address cannot be bound.
pub async fn serve(config: Config) -> anyhow::Result<Server> {
    Ok(Server::builder(config).bind().await?)
}

/// Signs the token that `token` prints.
///
/// # Errors
/// When there is no secret to sign with.
pub fn token(args: &TokenArgs) -> anyhow::Result<String> {
    let secret = args.jwt.jwt_secret.as_ref().and_then(Secret::expose);
    let secret = secret.context("no secret to sign with: set JWT_SECRET")?;
    let user = User {
        id: args.user.clone(),
        tenant: args.tenant.clone(),
    };
    let signer = Signer::new(secret, &args.jwt);
    let (token, _) = signer.sign(&user, args.expires.into())?;
    Ok(token)
}

/// Publishes. Fails if no update reached a queue, since nobody can have received any.
///
/// # Errors
/// When RabbitMQ cannot be reached or refuses.
pub async fn publish(args: &PublishArgs) -> anyhow::Result<ExitCode> {
    let published = publisher::publish(args).await?;
    let Published {
        count,
        unrouted,
        routing_key,
    } = published;
    let routed = count - unrouted;
    println!(
        "published {count} {} for {} with key {routing_key}: {routed} reached a queue",
        args.event, args.user
    );
    if unrouted == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "chat3-gateway: no queue is bound for {unrouted} of {count}, key {routing_key}: is the user \
connected ({}, of tenant {}), and do the gateway's RABBITMQ_BINDING_KEYS match that key? \
`chat3-gateway doctor` tells. On a new broker, where this command has just made the exchange, a \
gateway finds it within seconds: publish again",
        args.user, args.tenant
    );
    Ok(match routed {
        0 => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}
