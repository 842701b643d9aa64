//! The gateway's health check by the gateway's own binary: container images
//! without a shell and an HTTP client have nothing else to run.
//!
//! Asks over the network as any client would, so that a process that hangs is
//! not healthy. Imports nothing of this crate but its arguments.

use std::{net::IpAddr, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::timeout;

use super::command_line::HealthArgs;

/// Below the five seconds that supervisors usually give a check.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// More than the answer is; something else listens if this does not hold it.
const MAX_ANSWER_BYTES: usize = 4096;

/// Asks the gateway, and returns its answer if it is a good one.
///
/// # Errors
/// When the gateway is not there, does not answer in time, or says that it is not well.
pub async fn check(args: &HealthArgs) -> anyhow::Result<String> {
    let uri = uri(args)?;
    let answer = timeout(ANSWER_TIMEOUT, ask(&uri)).await;
    answer
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {ANSWER_TIMEOUT:?}")))
        .with_context(|| format!("{uri} is not well"))
}

async fn ask(uri: &Uri) -> anyhow::Result<String> {
    let client: Client<HttpConnector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let response = client.get(uri.clone()).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let body = body.collect().await.map_err(anyhow::Error::from_boxed)?;
    let answer = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    anyhow::ensure!(status.is_success(), "it answers {status}: {answer}");
    Ok(answer)
}

fn uri(args: &HealthArgs) -> anyhow::Result<Uri> {
    let (host, port) = match args.admin_addr {
        Some(address) => (address.ip().to_string(), address.port()),
        None => (args.host.clone(), args.port),
    };
    anyhow::ensure!(port != 0, "PORT is 0: its real port is not known here");
    let host = match host.parse() {
        Ok(IpAddr::V4(ip)) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(IpAddr::V6(ip)) if ip.is_unspecified() => "[::1]".to_owned(),
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => host,
    };
    let path = if args.ready { "ready" } else { "health" };
    let uri = format!("http://{host}:{port}/{path}").parse();
    uri.with_context(|| format!("HOST is no host: {:?}", args.host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_own_settings_say_where_it_is() {
        for (host, port, admin, ready, expected) in [
            ("0.0.0.0", 3001, None, false, "http://127.0.0.1:3001/health"),
            ("::", 80, None, true, "http://[::1]:80/ready"),
            ("10.0.0.7", 3001, None, false, "http://10.0.0.7:3001/health"),
            ("localhost", 1, None, false, "http://localhost:1/health"),
            (
                "::",
                0,
                Some("0.0.0.0:9"),
                false,
                "http://127.0.0.1:9/health",
            ),
            (
                "::",
                1,
                Some("[fe80::1]:9"),
                true,
                "http://[fe80::1]:9/ready",
            ),
        ] {
            let args = HealthArgs {
                ready,
                host: host.to_owned(),
                port,
                admin_addr: admin.map(|address: &str| address.parse().unwrap()),
            };
            assert_eq!(uri(&args).unwrap().to_string(), expected);
        }
    }
}
