//! Why a link could not be made or was lost, and what the operator can do about it.
//!
//! Owns the reading of RabbitMQ's and amqprs's texts, where they tell by words alone. Pure.

use std::time::Duration;

use amqprs::error::Error;

use crate::tls::TlsError;

// Reply codes of AMQP 0-9-1.
pub(crate) const ACCESS_REFUSED: u16 = 403;
pub(crate) const NOT_FOUND: u16 = 404;
pub(crate) const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;
/// Also what RabbitMQ 4.3 answers to kinds of queues that it no longer has.
const INTERNAL_ERROR: u16 = 541;

/// Class and method of `queue.declare` in AMQP 0-9-1.
const QUEUE_DECLARE: (u16, u16) = (50, 10);

/// What the server said when it closed a connection or channel.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code} {text}")]
pub(crate) struct ServerClose {
    pub(crate) code: u16,
    pub(crate) text: String,
    /// Class and method of what was refused, where it was that.
    refused: (u16, u16),
}

impl ServerClose {
    /// RabbitMQ's longer texts have line breaks; ours are lines in a log.
    pub(super) fn new(code: u16, text: &str, refused: (u16, u16)) -> Self {
        let words: Vec<_> = text.split_whitespace().collect();
        let text = words.join(" ");
        Self {
            code,
            text,
            refused,
        }
    }

    /// Whether it was the declaration of a queue that was refused.
    pub(super) fn is_of_declare(&self) -> bool {
        self.refused == QUEUE_DECLARE
    }

    /// The queue that does not exist, if that is the reason: RabbitMQ says so only in the
    /// text.
    pub(super) fn missing_queue(&self) -> Option<&str> {
        let (_, rest) = self.text.split_once("no queue '")?;
        let (queue, _) = rest.split_once('\'')?;
        (self.code == NOT_FOUND).then_some(queue)
    }

    /// Whether a queue that exists is not up: after a start, RabbitMQ has not got to it yet, or
    /// too few of its nodes run.
    pub(crate) fn is_of_a_queue_that_is_down(&self) -> bool {
        self.code == NOT_FOUND
            && self.text.contains("queue '")
            && self.text.contains("is down or inaccessible")
    }

    /// Whether topic permissions have refused this binding key: RabbitMQ says so only in
    /// the text, of which 255 bytes arrive.
    pub(super) fn refuses_key(&self, key: &str) -> bool {
        let Some((_, about)) = self.text.split_once("access to topic '") else {
            return false;
        };
        let is_key = match about.strip_prefix(key) {
            Some(rest) => rest.starts_with('\''),
            None => key.starts_with(about.trim_end_matches('.')),
        };
        self.code == ACCESS_REFUSED && is_key
    }

    /// What the operator can do about it, if it is not a passing fault.
    fn advice(&self) -> Option<&'static str> {
        match self.code {
            ACCESS_REFUSED => Some(
                "grant the user configure, write and read on chat3-gateway.* and read on the exchange \
                 and, with topic permissions, on its binding keys (docs/SECURITY.md)",
            ),
            NOT_ALLOWED => Some("check the vhost in RABBITMQ_URL and the user's access to it"),
            INTERNAL_ERROR => Some(
                "RabbitMQ's own log says what it does not support, and which deprecated_features.permit.* setting would allow it",
            ),
            PRECONDITION_FAILED if self.text.contains("x-stream-offset") => Some(
                "a queue that is no stream has its name: delete it, or name another in RABBITMQ_STREAM",
            ),
            _ => None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The queue was exclusive to this connection, and the message is lost with it.
    #[error("a message cannot be read by the AMQP library and is lost: {0}")]
    Unreadable(&'static str),
    #[error(
        "RabbitMQ allows {allowed} channels on a connection, and {needed} are needed: raise its channel_max"
    )]
    TooFewChannels { allowed: u16, needed: usize },
    #[error(
        "what answers is no RabbitMQ that the AMQP library understands; check host and port in RABBITMQ_URL"
    )]
    Foreign,
    #[error("{0}")]
    Amqp(String),
    #[error("closed by RabbitMQ: {0}{advice}", advice = advised(.0))]
    Closed(ServerClose),
    #[error("closed by RabbitMQ during login; check user and password in RABBITMQ_URL ({0})")]
    Login(String),
    /// The alert of a broker that misses a client certificate can get lost.
    #[error(
        "closed by RabbitMQ during login; check user and password in RABBITMQ_URL, and, if RabbitMQ \
         asks for a client certificate, RABBITMQ_CLIENT_CERT_FILE and RABBITMQ_CLIENT_KEY_FILE ({0})"
    )]
    LoginOverTls(String),
    #[error("TLS: {0}; {advice}", advice = advised_tls(.0))]
    Tls(String),
    #[error("TLS: {0}")]
    Certificates(#[from] TlsError),
    #[error(
        "the stream cannot be used: {0}; delete what has its name, or name another in RABBITMQ_STREAM, \
         and see that RabbitMQ has streams (since 3.9; rabbitmqctl enable_feature_flag stream_queue)"
    )]
    NoStream(ServerClose),
    /// Its consumer is there, and yet nothing comes.
    #[error("the reader of the stream has stopped: a marker that RabbitMQ took has not come back")]
    Stopped,
    /// It is not a fault of the broker: a new connection works at once.
    #[error("renewed after many refusals, each of which costs a channel")]
    Worn,
}

fn advised(close: &ServerClose) -> String {
    close
        .advice()
        .map_or_else(String::new, |advice| format!("; {advice}"))
}

/// What the operator can do about a TLS connection that one side refused.
fn advised_tls(refusal: &str) -> &'static str {
    // An alert comes from the broker; anything else is the verdict of this side.
    match refusal.contains("alert") {
        true => "check RABBITMQ_CLIENT_CERT_FILE and RABBITMQ_CLIENT_KEY_FILE",
        false => "check RABBITMQ_CA_FILE and the host in RABBITMQ_URL",
    }
}

impl LinkError {
    /// Whether only a change of configuration, here or at the broker, can help.
    pub(super) fn is_configuration(&self) -> bool {
        match self {
            Self::Closed(close) => close.advice().is_some(),
            Self::Login(_)
            | Self::LoginOverTls(_)
            | Self::Tls(_)
            | Self::Certificates(_)
            | Self::TooFewChannels { .. }
            | Self::NoStream(_) => true,
            Self::Timeout(_)
            | Self::Unreadable(_)
            | Self::Foreign
            | Self::Amqp(_)
            | Self::Stopped
            | Self::Worn => false,
        }
    }

    /// Whether something is gone that was there, such as the exchange.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Closed(close) if close.code == NOT_FOUND)
    }
}

impl From<Error> for LinkError {
    fn from(error: Error) -> Self {
        Self::Amqp(error.to_string())
    }
}

/// amqprs reports a refusal during the handshake only in the text of its error.
pub(super) fn login_error(error: Error, is_tls: bool) -> LinkError {
    let text = error.to_string();
    match error {
        // The texts of rustls, for its verdict and for the broker's.
        Error::NetworkError(_)
            if text.contains("peer certificate") || text.contains("fatal alert") =>
        {
            LinkError::Tls(text)
        }
        // RabbitMQ refuses a login by closing the connection without a reason, for clients
        // that do not announce `authentication_failure_close`.
        Error::NetworkError(_)
            if ["reset by peer", "shutdown", "Broken pipe"]
                .iter()
                .any(|end| text.contains(end)) =>
        {
            match is_tls {
                true => LinkError::LoginOverTls(text),
                false => LinkError::Login(text),
            }
        }
        Error::ConnectionOpenError(_) => match refusal(&text) {
            Some(close) => LinkError::Closed(close),
            None => LinkError::Amqp(text),
        },
        _ => LinkError::Amqp(text),
    }
}

/// The reply code and text inside a rendered `connection.close`.
fn refusal(text: &str) -> Option<ServerClose> {
    for (code, name) in [
        (NOT_ALLOWED, "NOT_ALLOWED"),
        (ACCESS_REFUSED, "ACCESS_REFUSED"),
    ] {
        if let Some(start) = text.find(name) {
            let text = text[start..].split('"').next().unwrap_or(name);
            return Some(ServerClose::new(code, text, (0, 0)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(code: u16, text: &str) -> ServerClose {
        ServerClose::new(code, text, (50, 20))
    }

    #[test]
    fn texts_of_several_lines_become_one() {
        let close = close(541, "INTERNAL_ERROR - Feature\n  `x` is\r\n\tdeprecated. ");
        assert_eq!(
            close.to_string(),
            "541 INTERNAL_ERROR - Feature `x` is deprecated."
        );
    }

    #[test]
    fn a_queue_that_is_down_is_not_missing() {
        let down = close(
            404,
            "NOT_FOUND - home node 'a@b' of durable queue 'chat3-gateway.updates' in vhost '/' is down or inaccessible",
        );
        assert!(down.is_of_a_queue_that_is_down());
        assert_eq!(down.missing_queue(), None);
        let missing = close(404, "NOT_FOUND - no queue 'is down' in vhost '/'");
        assert!(!missing.is_of_a_queue_that_is_down());
    }

    #[test]
    fn a_missing_queue_is_named_and_a_missing_exchange_is_not_taken_for_one() {
        for (code, text, expected) in [
            (
                404,
                "NOT_FOUND - no queue 'chat3-gateway.h-1.0.ab.7' in vhost '/'",
                Some("chat3-gateway.h-1.0.ab.7"),
            ),
            (404, "NOT_FOUND - no queue '' in vhost '/'", Some("")),
            (
                404,
                "NOT_FOUND - no exchange 'chat3_updates' in vhost '/'",
                None,
            ),
            // An exchange may have any name.
            (404, "NOT_FOUND - no exchange 'no queue' in vhost '/'", None),
            (403, "ACCESS_REFUSED - no queue 'x' in vhost '/'", None),
            (404, "NOT_FOUND - no queue 'cut off after 255 byt", None),
            (404, "", None),
        ] {
            assert_eq!(close(code, text).missing_queue(), expected, "{text}");
        }
    }

    #[test]
    fn a_refused_key_is_told_from_others_also_where_the_text_is_cut_off() {
        let text = |key: &str| {
            format!(
                "ACCESS_REFUSED - access to topic '{key}' in exchange 'x' in vhost '/' refused for user 'u'"
            )
        };
        assert!(close(403, &text("user.carl.*")).refuses_key("user.carl.*"));
        assert!(!close(403, &text("user.carl.*")).refuses_key("user.carl"));
        assert!(!close(403, &text("user.carl")).refuses_key("user.carl.*"));
        assert!(!close(404, &text("user.carl.*")).refuses_key("user.carl.*"));
        let long = format!("user.{}.*", "x".repeat(200));
        let cut = |at: usize| text(&long)[..at].to_owned();
        assert!(close(403, &cut(200)).refuses_key(&long));
        assert!(close(403, &format!("{}...", cut(200))).refuses_key(&long));
        assert!(!close(403, &cut(200)).refuses_key("user.carl.*"));
        assert!(!close(403, "ACCESS_REFUSED - access to exchange 'x' refused").refuses_key("x"));
    }

    #[test]
    fn only_the_declaration_of_a_queue_is_one() {
        assert!(ServerClose::new(403, "", (50, 10)).is_of_declare());
        assert!(!ServerClose::new(403, "", (50, 20)).is_of_declare());
        assert!(!ServerClose::new(403, "", (40, 10)).is_of_declare());
    }

    /// As amqprs renders a `connection.close` that comes in the place of `open-ok`.
    fn refused_open(code: u16, text: &str) -> Error {
        let frame = format!(
            "Close(MethodHeader {{ class_id: 10, method_id: 50 }}, Close {{ reply_code: {code}, \
             reply_text: ShortStr({}, {text:?}), class_id: 10, method_id: 40 }})",
            text.len()
        );
        Error::ConnectionOpenError(format!("failed to open connection, reason: {frame}"))
    }

    #[test]
    fn a_refused_vhost_is_read_from_what_amqprs_says() {
        for (code, text) in [
            (530, "NOT_ALLOWED - vhost nope not found"),
            (
                530,
                "NOT_ALLOWED - access to vhost 'nope' refused for user 'guest'",
            ),
            (
                403,
                "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.",
            ),
        ] {
            let LinkError::Closed(close) = login_error(refused_open(code, text), false) else {
                panic!("{text}");
            };
            assert_eq!((close.code, close.text.as_str()), (code, text));
            assert!(LinkError::Closed(close).is_configuration());
        }
        let other = login_error(refused_open(541, "INTERNAL_ERROR"), false);
        assert!(matches!(other, LinkError::Amqp(_)), "{other}");
    }

    #[test]
    fn a_refused_login_is_told_from_a_broken_connection_and_from_tls() {
        let error = |text: &str, is_tls| {
            let error = Error::NetworkError(text.to_owned());
            login_error(error, is_tls)
        };
        for text in [
            "peer shutdown",
            "network io error: Connection reset by peer (os error 104)",
            "network io error: Broken pipe (os error 32)",
        ] {
            let (plain, tls) = (error(text, false), error(text, true));
            assert!(matches!(plain, LinkError::Login(_)), "{plain}");
            assert!(matches!(tls, LinkError::LoginOverTls(_)), "{tls}");
            assert!(plain.is_configuration() && tls.is_configuration());
        }
        for (text, advice) in [
            (
                "network io error: invalid peer certificate: UnknownIssuer",
                "check RABBITMQ_CA_FILE",
            ),
            (
                "network io error: received fatal alert: CertificateRequired",
                "check RABBITMQ_CLIENT_CERT_FILE",
            ),
        ] {
            let error = error(text, true);
            assert!(matches!(error, LinkError::Tls(_)), "{error}");
            assert!(error.to_string().contains(advice), "{error}");
            assert!(error.is_configuration());
        }
        for text in [
            "network io error: Connection refused (os error 111)",
            "network io error: No route to host (os error 113)",
        ] {
            let error = error(text, false);
            assert!(matches!(error, LinkError::Amqp(_)), "{error}");
            assert!(!error.is_configuration());
        }
    }

    #[test]
    fn an_operator_is_told_what_to_do_about_what_only_an_operator_can_mend() {
        for (code, advice) in [
            (403, Some("grant the user")),
            (530, Some("check the vhost")),
            (541, Some("deprecated_features")),
            (404, None),
            (320, None),
            (504, None),
        ] {
            let error = LinkError::Closed(close(code, "TEXT"));
            assert_eq!(error.is_configuration(), advice.is_some(), "{error}");
            assert!(
                error.to_string().contains(advice.unwrap_or_default()),
                "{error}"
            );
        }
        assert!(!LinkError::Worn.is_configuration());
        assert!(!LinkError::Foreign.is_configuration());
    }
}
