//! Checks this machine and the settings that concern it: file limits, port, log file,
//! admin token, origins.

use std::{net::IpAddr, path::Path, time::Duration};

use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rustix::{
    fs::{Access, access},
    process::{Resource, getrlimit},
};
use tokio::{net::TcpListener, time::timeout};

use super::report::{Report, counted};
use crate::{
    cli::command_line::{NodeEnv, ServeArgs},
    config::{CorsOrigins, HttpConfig, MIN_ADMIN_TOKEN_BYTES, Secret},
};

/// File descriptors other than clients' sockets: logs, RabbitMQ, listeners, timers.
const OTHER_FILES: u64 = 64;

/// A limit below that of a login shell is too low for any use.
const FEWEST_FILES: u64 = 1024;

const STEP: Duration = Duration::from_secs(3);

pub(super) async fn examine(args: &ServeArgs, report: &mut Report) {
    files(&args.config.http, report);
    port(&args.config.host, &args.config.http, report).await;
    admin_token(&args.config.http, report);
    match (&args.config.http.cors_origin, args.log.node_env) {
        (CorsOrigins::Any, NodeEnv::Production) => report.warning(
            "cors_origin",
            "*: pages of every site may connect, with a token",
            "set CORS_ORIGIN to your frontend's origins, e.g. https://chat.example.com",
        ),
        (CorsOrigins::Any, _) => report.ok("cors_origin", "*, outside production"),
        (CorsOrigins::List(sites), _) => {
            report.ok(
                "cors_origin",
                format!("{} listed", counted(sites.len(), "origin")),
            );
        }
    }
    log_file(&args.log.log_file, report);
}

fn files(config: &HttpConfig, report: &mut Report) {
    let limit = getrlimit(Resource::Nofile);
    let most = |limit: Option<u64>| limit.map_or_else(|| "no limit".to_owned(), |n| n.to_string());
    let (soft, hard) = (limit.current, limit.maximum);
    let limits = format!("{} open files (at most {})", most(soft), most(hard));
    let needed = match config.max_sockets {
        0 => None,
        sockets => Some(u64::from(sockets) + OTHER_FILES),
    };
    let advice = |needed: u64| {
        format!(
            "ulimit -n {needed}, LimitNOFILE={needed} (systemd) or --ulimit nofile={needed} (docker); or lower MAX_SOCKETS"
        )
    };
    match (soft, needed) {
        (None, _) => report.ok("files", limits),
        (Some(soft), needed) if soft < FEWEST_FILES => report.problem(
            "files",
            format!("{limits}: enough for {} sockets", soft.saturating_sub(OTHER_FILES)),
            advice(needed.unwrap_or(65_536)),
        ),
        (Some(soft), Some(needed)) if soft < needed => report.warning(
            "files",
            format!(
                "{limits}: enough for {} sockets, and MAX_SOCKETS is {}; beyond that, no connection is accepted",
                soft - OTHER_FILES,
                config.max_sockets
            ),
            advice(needed),
        ),
        (Some(soft), None) => report.ok(
            "files",
            format!("{limits}: enough for {} sockets", soft - OTHER_FILES),
        ),
        (Some(_), Some(_)) => report.ok(
            "files",
            format!("{limits}: enough for MAX_SOCKETS {}", config.max_sockets),
        ),
    }
}

async fn port(host: &str, config: &HttpConfig, report: &mut Report) {
    let port = config.port;
    let address = format!("{host}:{port}");
    let error = match timeout(STEP, TcpListener::bind((host, port))).await {
        Ok(Ok(_)) if port == 0 => return report.ok("port", "0: a free one is taken"),
        Ok(Ok(_)) => return report.ok("port", format!("{address} is free")),
        Ok(Err(error)) => error,
        Err(_) => {
            let advice = "set HOST to an address of this machine, or 0.0.0.0 for all";
            return report.problem(
                "port",
                format!("{host}: not resolved within {STEP:?}"),
                advice,
            );
        }
    };
    match error.kind() {
        std::io::ErrorKind::AddrInUse => match health(host, port).await {
            // Only the operator knows whether that gateway has these settings.
            Some(rabbitmq) => report.unclear(
                "port",
                format!(
                    "a gateway listens on {address} already (its RabbitMQ: {rabbitmq}); no other can start there"
                ),
                "good if it is the one that you run; a second one needs another PORT",
            ),
            None => report.problem(
                "port",
                format!("{address} is taken by something that is no gateway"),
                format!("choose another PORT; ss -ltnp 'sport = :{port}' shows whose it is"),
            ),
        },
        std::io::ErrorKind::PermissionDenied => report.problem(
            "port",
            format!("{address}: {error}"),
            "ports below 1024 need CAP_NET_BIND_SERVICE; take one above, behind the proxy",
        ),
        _ => report.problem(
            "port",
            format!("{address}: {error}"),
            "set HOST to an address of this machine, or 0.0.0.0 for all",
        ),
    }
}

/// What the gateway at that address reports about RabbitMQ; `None` if it is not a gateway.
async fn health(host: &str, port: u16) -> Option<String> {
    let host = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(IpAddr::V6(address)) if address.is_unspecified() => "[::1]".to_owned(),
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => host.to_owned(),
    };
    let request = Request::get(format!("http://{host}:{port}/health")).body(Empty::<&[u8]>::new());
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = request.ok()?;
    let answer = async {
        let response = client.request(request).await.ok()?;
        Some(
            Limited::new(response.into_body(), 4096)
                .collect()
                .await
                .ok()?
                .to_bytes(),
        )
    };
    let body = timeout(STEP, answer).await.ok()??;
    let health: serde_json::Value = serde_json::from_slice(&body).ok()?;
    health.get("isConnected")?;
    match health.get("rabbitmq")?.as_str()? {
        rabbitmq @ ("connected" | "disconnected" | "none") => Some(rabbitmq.to_owned()),
        _ => None,
    }
}

fn admin_token(config: &HttpConfig, report: &mut Report) {
    match config.admin_token.as_ref().and_then(Secret::expose) {
        None => report.ok("admin_token", "unset: there is no /api"),
        Some(token) if token.len() < MIN_ADMIN_TOKEN_BYTES || super::jwt::is_placeholder(token) => {
            report.warning(
                "admin_token",
                format!(
                    "{} bytes, or a word that others use: it can be guessed",
                    token.len()
                ),
                "set ADMIN_TOKEN to the output of openssl rand -hex 32",
            );
        }
        Some(token) => report.ok("admin_token", format!("{} bytes", token.len())),
    }
}

fn log_file(path: &Path, report: &mut Report) {
    let shown = path.display();
    if path.as_os_str().is_empty() {
        return report.ok("log_file", "none: stdout only");
    }
    // The file is not created: the examination leaves nothing behind.
    let mut existing = path;
    while !existing.exists() {
        match existing.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => existing = parent,
            _ => existing = Path::new("."),
        }
    }
    let is_place = existing == path && path.is_file() || existing != path && existing.is_dir();
    match access(existing, Access::WRITE_OK) {
        Ok(()) if is_place => report.ok("log_file", format!("{shown} can be written")),
        Ok(()) => report.warning(
            "log_file",
            format!(
                "{shown} cannot be a file: {} is in its place",
                existing.display()
            ),
            "set LOG_FILE to another path, or to nothing for stdout only",
        ),
        Err(error) => report.warning(
            "log_file",
            format!("{shown} cannot be written: {}: {error}", existing.display()),
            "give the gateway's user the right to it, or set LOG_FILE to nothing for stdout only",
        ),
    }
}
