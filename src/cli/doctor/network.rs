//! The way to RabbitMQ before the login: name, addresses, TLS, and whether AMQP is
//! spoken there.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustls::{
    CertificateError, Error as TlsFailure,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use x509_cert::{
    Certificate,
    der::{DateTime, Decode},
};

use super::Report;
use crate::{config::RabbitMqConfig, tls};

/// Limit of each step. A broker that needs longer is in trouble.
const STEP: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// Certificates are renewed a month before they end, as a rule: then something is wrong.
const EXPIRES_SOON: Duration = Duration::from_hours(14 * 24);

/// Examines the way to the only node of `config`; returns whether a login can be tried.
pub(super) async fn examine(config: &RabbitMqConfig, report: &mut Report) -> bool {
    match reach(config, report).await {
        Some(address) => greet(config, address, report).await,
        None => false,
    }
}

/// Whether the login is one that everybody knows.
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

/// Resolves and connects: the first address that accepts.
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
        // As with localhost, which often is two addresses of which one is used.
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
        return greeting(stream, config, report).await;
    }
    let (ca_file, client) = (config.tls.ca_file(), config.tls.client());
    let tls_config = match tls::client_config(ca_file, client) {
        Ok(tls_config) => tls_config,
        Err(error) => {
            let advice =
                "check RABBITMQ_CA_FILE, RABBITMQ_CLIENT_CERT_FILE and RABBITMQ_CLIENT_KEY_FILE";
            report.problem("tls", error.to_string(), advice);
            return false;
        }
    };
    let Ok(name) = ServerName::try_from(config.url.first().host.clone()) else {
        let advice = "check the host in RABBITMQ_URL";
        report.problem(
            "tls",
            "the host is no name that a certificate can have",
            advice,
        );
        return false;
    };
    let connect = TlsConnector::from(Arc::new(tls_config)).connect(name, stream);
    let stream = match timeout(STEP, connect).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            refused_tls(&error, config, report);
            return false;
        }
        Err(_) => {
            let advice = "is this the TLS port (5671 as a rule)? With the plain one (5672), the scheme is amqp://";
            report.problem(
                "tls",
                format!("no answer to a TLS handshake within {STEP:?}"),
                advice,
            );
            return false;
        }
    };
    let (_, connection) = stream.get_ref();
    let version = connection.protocol_version();
    let version = version.and_then(|version| version.as_str().map(|text| text.replace('_', ".")));
    let version = version.map_or_else(|| "TLS".to_owned(), |text| text.replace("TLSv", "TLS "));
    let certificate = connection
        .peer_certificates()
        .and_then(|chain| chain.first());
    let host = &config.url.first().host;
    let expiry = certificate.and_then(|certificate| Expiry::of(certificate));
    note_expiry(
        "tls",
        &format!("{version}, certificate for {host}"),
        expiry,
        report,
    );
    if let Some((file, _)) = client {
        let certificate = CertificateDer::from_pem_file(file).ok();
        let expiry = certificate.and_then(|certificate| Expiry::of(&certificate));
        let what = format!("client certificate {}", file.display());
        note_expiry("client_certificate", &what, expiry, report);
    }
    greeting(stream, config, report).await
}

fn refused_tls(error: &io::Error, config: &RabbitMqConfig, report: &mut Report) {
    let failure = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<TlsFailure>());
    let host = &config.url.first().host;
    let trusted = config.tls.ca_file().map_or_else(
        || "the public CAs".to_owned(),
        |path: &Path| path.display().to_string(),
    );
    let certificate = match failure {
        Some(TlsFailure::InvalidCertificate(error)) => error,
        Some(TlsFailure::AlertReceived(alert)) => {
            let finding = format!("the broker refused the handshake: {alert:?}");
            let advice = "check RABBITMQ_CLIENT_CERT_FILE and RABBITMQ_CLIENT_KEY_FILE";
            return report.problem("tls", finding, advice);
        }
        Some(TlsFailure::InvalidMessage(_)) => {
            let advice = "is this the TLS port (5671 as a rule)? With the plain one (5672), the scheme is amqp://";
            return report.problem("tls", "what listens there does not speak TLS", advice);
        }
        _ => {
            let advice =
                "is this the TLS port (5671 as a rule)? RabbitMQ's own log may say why it closed";
            return report.problem("tls", error.to_string(), advice);
        }
    };
    let (finding, advice) = match certificate {
        CertificateError::Expired => (
            "the broker's certificate has expired".to_owned(),
            "renew it; if it is not: check the clock of this machine",
        ),
        CertificateError::ExpiredContext { not_after, .. } => (
            format!(
                "the broker's certificate expired on {}",
                date(not_after.as_secs())
            ),
            "renew it; if it is not: check the clock of this machine",
        ),
        CertificateError::NotValidYet => (
            "the broker's certificate is not valid yet".to_owned(),
            "check the clock of this machine",
        ),
        CertificateError::NotValidYetContext { not_before, .. } => (
            format!(
                "the broker's certificate is valid from {} on",
                date(not_before.as_secs())
            ),
            "check the clock of this machine",
        ),
        CertificateError::NotValidForName => (
            format!("the broker's certificate is not for {host}"),
            "use a name of the certificate as the host in RABBITMQ_URL",
        ),
        CertificateError::NotValidForNameContext { presented, .. } => (
            format!(
                "the broker's certificate is for {}, not for {host}",
                presented.join(", ")
            ),
            "use a name of the certificate as the host in RABBITMQ_URL",
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            format!("the broker's certificate is not by {trusted}"),
            "set RABBITMQ_CA_FILE to the CA that signed it (PEM)",
        ),
        other => (
            format!("the broker's certificate is not accepted: {other}"),
            "check RABBITMQ_CA_FILE, and how the certificate was made",
        ),
    };
    report.problem("tls", finding, advice);
}

/// When a certificate ends.
struct Expiry(SystemTime);

impl Expiry {
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = Certificate::from_der(certificate).ok()?;
        Some(Self(
            certificate
                .tbs_certificate
                .validity
                .not_after
                .to_system_time(),
        ))
    }
}

fn note_expiry(check: &'static str, what: &str, expiry: Option<Expiry>, report: &mut Report) {
    let Some(Expiry(end)) = expiry else {
        return report.unknown(check, format!("{what}, whose expiry cannot be read"));
    };
    let seconds = end.duration_since(SystemTime::UNIX_EPOCH);
    let end_date = date(seconds.map_or(0, |since| since.as_secs()));
    let advice = "renew it; the gateway reads the files at each connect and needs no restart";
    match end.duration_since(SystemTime::now()) {
        Ok(left) if left > EXPIRES_SOON => {
            report.ok(check, format!("{what}, valid until {end_date}"));
        }
        Ok(_) => report.warning(
            check,
            format!("{what}, expires soon, on {end_date}"),
            advice,
        ),
        Err(_) => report.problem(check, format!("{what}, expired on {end_date}"), advice),
    }
}

fn date(unix_seconds: u64) -> String {
    match DateTime::from_unix_duration(Duration::from_secs(unix_seconds)) {
        Ok(date) => format!("{:04}-{:02}-{:02}", date.year(), date.month(), date.day()),
        Err(_) => "a date after the year 9999".to_owned(),
    }
}

/// Sends AMQP's header and looks at what comes back.
async fn greeting(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    config: &RabbitMqConfig,
    report: &mut Report,
) -> bool {
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(b"AMQP\0\0\x09\x01").await?;
        stream.flush().await?;
        // A frame of `connection.start`: 7 bytes, as many as these say, and one.
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer).await?;
            answer.extend_from_slice(&buffer[..read]);
            let complete = frame_length(&answer).is_some_and(|length| answer.len() >= length);
            if read == 0 || complete || answer.len() > 64 * 1024 {
                return Ok::<_, io::Error>(());
            }
        }
    };
    let outcome = timeout(STEP, exchange).await;
    let tls_advice = "with a client certificate of the broker's CA: RABBITMQ_CLIENT_CERT_FILE and RABBITMQ_CLIENT_KEY_FILE";
    match (outcome, answer.as_slice()) {
        (_, [1, 0, 0, ..]) => {
            let version = text_after(&answer, b"\x07versionS");
            let product = text_after(&answer, b"\x07productS");
            let product = product.unwrap_or_else(|| "a broker".to_owned());
            let version = version.map_or_else(String::new, |version| format!(" {version}"));
            report.ok("amqp", format!("{product}{version} speaks AMQP 0-9-1"));
            return true;
        }
        (_, [b'A', b'M', b'Q', b'P', ..]) => report.problem(
            "amqp",
            "the peer speaks another version of AMQP, not 0-9-1",
            "RabbitMQ speaks it; is something else in its place?",
        ),
        (_, [b'H', b'T', b'T', b'P', ..]) => report.problem(
            "amqp",
            "a web server answers there, not AMQP",
            "5672 is AMQP's port (5671 with TLS); 15672 is that of RabbitMQ's management",
        ),
        (_, [21, 3, ..]) if !config.url.first().tls => report.problem(
            "amqp",
            "the port expects TLS",
            "write amqps:// in RABBITMQ_URL",
        ),
        (Err(_), []) => report.problem(
            "amqp",
            format!("connected, but no answer within {STEP:?}"),
            "what listens there is hung, or is not AMQP (or expects TLS: amqps://)",
        ),
        // The alert of a broker that misses a client certificate can get lost.
        (Ok(Err(error)), []) if config.url.first().tls => report.problem(
            "client_certificate",
            format!("the broker closed after the handshake: it refused the client certificate, or misses one ({error})"),
            tls_advice,
        ),
        (Ok(Err(error)), []) => report.problem(
            "amqp",
            format!("the connection broke: {error}"),
            "RabbitMQ's own log says why; is something before it (a proxy) that has no broker?",
        ),
        (_, []) if config.url.first().tls => report.problem(
            "amqp",
            "the peer closed the connection without a word",
            "if RabbitMQ asks for a client certificate: RABBITMQ_CLIENT_CERT_FILE and RABBITMQ_CLIENT_KEY_FILE",
        ),
        (_, []) => report.problem(
            "amqp",
            "the peer closed the connection without a word",
            "does the port expect TLS (amqps://)? Is a proxy before RabbitMQ that has no broker?",
        ),
        _ => report.problem(
            "amqp",
            "what answers there is not AMQP",
            "check host and port in RABBITMQ_URL; 5672 is AMQP's port (5671 with TLS)",
        ),
    }
    false
}

fn frame_length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(3..7)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(length))
        .ok()?
        .checked_add(8)
}

/// A long string in a field table, by its name and type.
fn text_after(bytes: &[u8], name: &[u8]) -> Option<String> {
    let start = bytes
        .windows(name.len())
        .position(|window| window == name)?
        + name.len();
    let length = bytes.get(start..start + 4)?.try_into().ok()?;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?.min(40);
    let text = bytes.get(start + 4..start + 4 + length)?;
    Some(String::from_utf8_lossy(text).into_owned())
}
