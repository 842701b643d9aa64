//! The first frames of AMQP: who answers, and in which protocol.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{super::report::Report, STEP};
use crate::config::RabbitMqConfig;

/// Sends the protocol header of AMQP and examines the answer.
pub(super) async fn examine(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    config: &RabbitMqConfig,
    report: &mut Report,
) -> bool {
    let mut answer = Vec::new();
    let handshake = async {
        stream.write_all(b"AMQP\0\0\x09\x01").await?;
        stream.flush().await?;
        // The frame of `connection.start`: a header of 7 bytes, the payload, and one byte.
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
    let outcome = timeout(STEP, handshake).await;
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
        // The alert of a broker that requires a client certificate can get lost.
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

/// The long string after `name`, which is a name and a type in a field table.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_complete_when_all_that_it_announces_has_come() {
        assert_eq!(frame_length(&[1, 0, 0, 0, 0, 0]), None);
        assert_eq!(frame_length(&[1, 0, 0, 0, 0, 1, 4]), Some(268));
        // Whatever a stranger says, nothing overflows.
        let _ = frame_length(&[0xff; 8]);
    }

    #[test]
    fn product_and_version_are_read_as_far_as_they_have_come() {
        let product = |text: &[u8]| text_after(text, b"\x07productS");
        let frame = b"\x01\0\0\0\0\x01\x04..\x07productS\0\0\0\x08RabbitMQ\x07version";
        assert_eq!(product(frame).as_deref(), Some("RabbitMQ"));
        assert_eq!(product(b"\x07productS\0\0\0\x08Rabbit"), None);
        assert_eq!(product(b"\x07productS\0\0"), None);
        assert_eq!(product(b"\x07versionS\0\0\0\x013"), None);
        // A long one is cut off; one that is not UTF-8 is shown as far as it can be.
        let long = [b"\x07productS\xff\xff\xff\xff".as_slice(), &[b'x'; 50]].concat();
        assert_eq!(product(&long), Some("x".repeat(40)));
        assert!(product(b"\x07productS\0\0\0\x02\xff\xfe").is_some());
    }
}
