//! The TLS handshake with RabbitMQ: whether the certificates are accepted on both sides,
//! and how long they are valid.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, Error as TlsFailure,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_cert::{
    Certificate,
    der::{DateTime, Decode},
};

use super::{super::report::Report, STEP};
use crate::{config::RabbitMqConfig, tls};

/// Certificates are usually renewed a month before they expire: later, something is wrong.
const EXPIRES_SOON: Duration = Duration::from_hours(14 * 24);

/// Shakes hands as the gateway would; returns the stream to speak AMQP over.
pub(super) async fn examine(
    stream: TcpStream,
    config: &RabbitMqConfig,
    report: &mut Report,
) -> Option<TlsStream<TcpStream>> {
    let (ca_file, client) = (config.tls.ca_file(), config.tls.client());
    let tls_config = match tls::client_config(ca_file, client) {
        Ok(tls_config) => tls_config,
        Err(error) => {
            let advice =
                "check RABBITMQ_CA_FILE, RABBITMQ_CLIENT_CERT_FILE and RABBITMQ_CLIENT_KEY_FILE";
            report.problem("tls", error.to_string(), advice);
            return None;
        }
    };
    let Ok(name) = ServerName::try_from(config.url.first().host.clone()) else {
        let advice = "check the host in RABBITMQ_URL";
        report.problem(
            "tls",
            "the host is no name that a certificate can have",
            advice,
        );
        return None;
    };
    let connect = TlsConnector::from(Arc::new(tls_config)).connect(name, stream);
    let stream = match timeout(STEP, connect).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            refused_tls(&error, config, report);
            return None;
        }
        Err(_) => {
            let advice = "is this the TLS port (5671 as a rule)? With the plain one (5672), the scheme is amqp://";
            report.problem(
                "tls",
                format!("no answer to a TLS handshake within {STEP:?}"),
                advice,
            );
            return None;
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
    Some(stream)
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

/// When a certificate expires.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_readable_whatever_a_certificate_says() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(1_800_000_000), "2027-01-15");
        assert_eq!(date(u64::MAX), "a date after the year 9999");
    }
}
