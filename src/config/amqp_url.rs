//! `RABBITMQ_URL`, parsed once. Written by hand on top of the `url` crate because
//! amqprs's own URI parser does not percent-decode and panics on some queries.

use std::{fmt, str::FromStr};

use percent_encoding::percent_decode_str;
use url::Url;

/// A broker on this machine, with the login of Chat3's own setup.
pub(crate) const DEFAULT: &str = "amqp://rmuser:rmpassword@localhost:5672/";

/// A broker's address and login. Neither `Debug` nor `Display` shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpUrl {
    /// Whether the scheme is `amqps`.
    pub tls: bool,
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// 5672, or 5671 with TLS, where the URL has none.
    pub port: u16,
    /// User of the login; percent-decoded, as the password and the vhost are.
    pub user: String,
    /// Password of the login.
    pub password: String,
    /// `/` where the path is empty.
    pub vhost: String,
}

/// What is wrong with a URL. Never repeats the URL, which may hold a password.
#[allow(missing_docs)] // Each variant's text says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAmqpUrl {
    #[error("is not a URL: {0} (expected amqp://user:password@host:5672/vhost)")]
    NotAUrl(url::ParseError),
    #[error("has the scheme {0:?}; expected amqp or amqps")]
    Scheme(String),
    #[error("names no host")]
    NoHost,
    #[error("has a {0} that is not UTF-8 after percent-decoding")]
    NotUtf8(&'static str),
    #[error("has a {0} longer than 255 bytes")]
    TooLong(&'static str),
    #[error("has a vhost with an unescaped slash; write / inside a vhost as %2F")]
    Path,
    #[error("has a query or fragment, which is not supported; use the gateway's own options")]
    Query,
}

impl FromStr for AmqpUrl {
    type Err = InvalidAmqpUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text).map_err(InvalidAmqpUrl::NotAUrl)?;
        let tls = match url.scheme() {
            "amqp" => false,
            "amqps" => true,
            other => return Err(InvalidAmqpUrl::Scheme(other.to_owned())),
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or(InvalidAmqpUrl::NoHost)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidAmqpUrl::Query);
        }
        // No path, or "/" alone, means the default vhost "/", as in amqplib, which the Node
        // service used. In the URI specification of RabbitMQ, "/" alone is the empty vhost.
        let vhost = match url.path().trim_start_matches('/') {
            "" => "/".to_owned(),
            path if path.contains('/') => return Err(InvalidAmqpUrl::Path),
            path => decode(path, "vhost")?,
        };
        let (user, password) = match (url.username(), url.password()) {
            ("", None) => ("guest".to_owned(), "guest".to_owned()),
            (user, password) => (
                decode(user, "user")?,
                decode(password.unwrap_or_default(), "password")?,
            ),
        };
        Ok(Self {
            tls,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(if tls { 5671 } else { 5672 }),
            user,
            password,
            vhost,
        })
    }
}

/// An AMQP short string holds 255 bytes; amqprs would panic on a longer name.
fn decode(text: &str, what: &'static str) -> Result<String, InvalidAmqpUrl> {
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| InvalidAmqpUrl::NotUtf8(what))?;
    if decoded.len() > 255 {
        return Err(InvalidAmqpUrl::TooLong(what));
    }
    Ok(decoded.into_owned())
}

/// The address without the login, for logs.
impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let vhost = self.vhost.trim_start_matches('/');
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}/{vhost}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}/{vhost}", self.host, self.port),
        }
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> AmqpUrl {
        text.parse().unwrap()
    }

    #[test]
    fn the_documented_default_is_understood() {
        let url = parse("amqp://rmuser:rmpassword@localhost:5672/");
        assert_eq!(
            (url.tls, url.host.as_str(), url.port),
            (false, "localhost", 5672)
        );
        assert_eq!((&*url.user, &*url.password), ("rmuser", "rmpassword"));
        assert_eq!(url.vhost, "/");
    }

    #[test]
    fn login_and_vhost_are_percent_decoded() {
        let url = parse("amqps://us%40er:p%2Fa%25ss@rabbit.example/chat%2F3");
        assert!(url.tls);
        assert_eq!(url.port, 5671);
        assert_eq!(
            (&*url.user, &*url.password, &*url.vhost),
            ("us@er", "p/a%ss", "chat/3")
        );
        assert_eq!(parse("amqp://h/%2F").vhost, "/");
        assert_eq!(parse("amqp://h").vhost, "/");
        assert_eq!(parse("amqp://[::1]:5673/").host, "::1");
    }

    #[test]
    fn the_password_is_in_no_rendering() {
        let url = parse("amqp://alice:s3cret@h:1/v");
        assert_eq!(format!("{url}"), "amqp://h:1/v");
        assert!(!format!("{url:?}").contains("s3cret"));
    }

    #[test]
    fn malformed_urls_are_refused_without_repeating_them() {
        for text in [
            "",
            "localhost",
            "http://alice:s3cret@h/",
            "amqp://alice:s3cret@h/a/b",
            "amqp://alice:s3cret@h:99999/",
            "amqp://alice:s3cret@/",
            "amqp://alice:s3cret@h/?heartbeat",
            "amqp://alice:%ff@h/",
        ] {
            let error = text.parse::<AmqpUrl>().unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
