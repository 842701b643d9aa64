//! The command `health`: a health check for container images that have neither a shell nor
//! an HTTP client.
//!
//! The check asks over the network, as any client does, so that a process that hangs is
//! not healthy. The gateway may have been told its port by a flag, which the environment does
//! not show, so the check reads the command line of the container's first process. Imports
//! nothing of this crate but its arguments.

use std::{
    ffi::{OsStr, OsString},
    net::IpAddr,
    os::unix::ffi::OsStrExt,
    path::Path,
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::timeout;

use super::command_line::{Cli, HealthArgs};

/// Below the five seconds that supervisors usually give a check.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Larger than any answer of the gateway: a longer one comes from another program.
const MAX_ANSWER_BYTES: usize = 4096;

/// Asks the gateway and returns its answer, if the answer is a success.
///
/// # Errors
/// When the gateway cannot be reached, does not answer in time, or answers with an error.
pub async fn check(args: &HealthArgs) -> anyhow::Result<String> {
    let first_process = match args.is_told_where {
        true => None,
        // In a container. Elsewhere, and where /proc is hidden, there is only the environment.
        false => std::fs::read("/proc/1/cmdline").ok(),
    };
    let gateway = first_process.and_then(|line| started_with(&line, args.ready));
    let uri = uri(gateway.as_ref().unwrap_or(args))?;
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

/// What to ask the gateway that was started with this command line, whose words end with NUL.
/// None if it is another program's.
fn started_with(command_line: &[u8], ready: bool) -> Option<HealthArgs> {
    let words = command_line.strip_suffix(b"\0")?.split(|byte| *byte == 0);
    // Behind an init such as that of `docker run --init`.
    let words = words.map(OsStr::from_bytes).skip_while(|word| {
        let program = Path::new(word).file_name();
        program != Some(OsStr::new("chat3-gateway"))
    });
    let words = words.map(OsString::from).collect::<Vec<_>>();
    words.first()?;
    let (host, http) = Cli::listeners_of(words)?;
    Some(HealthArgs {
        ready,
        host,
        port: http.port,
        admin_addr: http.admin_addr,
        is_told_where: true,
    })
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
                is_told_where: false,
            };
            assert_eq!(uri(&args).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn the_command_line_of_the_first_process_says_where_it_is() {
        for (words, expected) in [
            (
                &["chat3-gateway", "serve", "--port", "8080"][..],
                Some("http://127.0.0.1:8080/health"),
            ),
            (
                &["/usr/local/bin/chat3-gateway", "--port=8080", "--host=::1"],
                Some("http://[::1]:8080/health"),
            ),
            (
                &[
                    "/sbin/docker-init",
                    "--",
                    "/x/chat3-gateway",
                    "dev",
                    "--admin-addr",
                    "10.0.0.7:9",
                ],
                Some("http://10.0.0.7:9/health"),
            ),
            (&["chat3-gateway", "publish", "--user=a", "--event=b"], None),
            (&["chat3-gateway", "serve", "--port", "none"], None),
            (&["/sbin/init", "--port", "8080"], None),
            (&[""], None),
        ] {
            let line = words.iter().map(|word| format!("{word}\0"));
            let line = line.collect::<String>();
            let args = started_with(line.as_bytes(), false);
            let uri = args.map(|args| uri(&args).unwrap().to_string());
            assert_eq!(uri.as_deref(), expected, "{words:?}");
        }
        assert!(started_with(b"", false).is_none());
    }
}
