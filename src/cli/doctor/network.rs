//! Checks the network path to RabbitMQ before the login: name, addresses, TLS, and whether
//! the peer speaks AMQP.

mod greeting;
mod tls;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::report::Report;
use crate::config::RabbitMqConfig;

/// Time limit of each step. A broker that needs longer is in trouble.
const STEP: Duration = Duration::from_secs(5);

/// The most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 4;

/// Examines the path to the only node of `config`; returns whether a login can be tried.
pub(super) async fn examine(config: &RabbitMqConfig, report: &mut Report) -> bool {
    match reach(config, report).await {
        Some(address) => greet(config, address, report).await,
        None => false,
    }
}

/// Checks whether the login is one that everybody knows.
pub(super) fn examine_login(config: &RabbitMqConfig, report: &mut Report) {
    let url = config.url.first();
    let (user, password) = (url.user.as_str(), url.password.as_str());
    if [("guest", "guest"), ("rmuser", "rmpassword")].contains(&(user, password)) {
        report.warning(
            "default_login",
            format!("{user} has the password that is in every documentation"),
            "give the gateway a user and password of its own (docs/SECURITY.md)",
        );
    }
}

/// Resolves the host and connects; returns the first address that accepts.
async fn reach(config: &RabbitMqConfig, report: &mut Report) -> Option<SocketAddr> {
    let url = config.url.first();
    let (host, port) = (url.host.as_str(), url.port);
    let looked_up = timeout(STEP, lookup_host((host, port))).await;
    let addresses: Vec<_> = match looked_up.map(|found| found.map(Iterator::collect)) {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(error)) => {
            let advice = "check the host in RABBITMQ_URL, and the name server that this machine (or container) asks";
            report.problem("dns", format!("{host} is not known: {error}"), advice);
            return None;
        }
        Err(_) => {
            let advice = "check the name server that this machine (or container) asks";
            report.problem("dns", format!("{host}: no answer within {STEP:?}"), advice);
            return None;
        }
    };
    let addresses = unique(addresses);
    let ips: Vec<_> = addresses
        .iter()
        .map(|address| address.ip().to_string())
        .collect();
    if host.parse::<IpAddr>().is_err() {
        report.ok("dns", format!("{host} is {}", ips.join(", ")));
    }
    let (mut accepting, mut silent, mut refused) = (None, Vec::new(), Vec::new());
    for address in addresses.iter().take(MAX_ADDRESSES) {
        let start = Instant::now();
        match timeout(STEP, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {
                let ms = start.elapsed().as_secs_f64() * 1000.0;
                report.ok(
                    "tcp",
                    format!("{address} accepts connections, within {ms:.1} ms"),
                );
                accepting = accepting.or(Some(*address));
            }
            Ok(Err(error)) => refused.push(format!("{address}: {error}")),
            Err(_) => silent.push(format!("{address}: no answer within {STEP:?}")),
        }
    }
    let failed = [silent.as_slice(), &refused].concat().join("; ");
    match (accepting, silent.is_empty()) {
        (Some(_), _) if failed.is_empty() => {}
        // Usual for localhost, which often has two addresses of which one is used.
        (Some(_), true) => report.ok("tcp", format!("{failed} (another address of it accepts)")),
        (Some(_), false) => report.warning(
            "tcp",
            failed,
            "connects are slow when this address is tried first: remove it from the name, or open the way",
        ),
        (None, true) => report.problem(
            "tcp",
            failed,
            "is RabbitMQ running there? Check host and port in RABBITMQ_URL; in a container, localhost is the container itself",
        ),
        (None, false) => report.problem(
            "tcp",
            failed,
            "a firewall or security group drops it, or the host is down: check host and port in RABBITMQ_URL",
        ),
    }
    accepting
}

fn unique(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut unique = Vec::new();
    for address in addresses {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    unique
}

/// TLS, if configured, and the first frame of AMQP.
async fn greet(config: &RabbitMqConfig, address: SocketAddr, report: &mut Report) -> bool {
    let Ok(Ok(stream)) = timeout(STEP, TcpStream::connect(address)).await else {
        let advice = "the broker, or what is before it, has just stopped accepting";
        report.problem(
            "tcp",
            format!("{address} does not accept a second connection"),
            advice,
        );
        return false;
    };
    if !config.url.first().tls {
        return greeting::examine(stream, config, report).await;
    }
    match tls::examine(stream, config, report).await {
        Some(stream) => greeting::examine(stream, config, report).await,
        None => false,
    }
}
