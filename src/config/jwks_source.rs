//! `JWT_JWKS`: the place that the key set is read from.

use std::{fmt, net::Ipv6Addr, path::PathBuf, str::FromStr};

use url::{Host, Url};

/// The file or URL of a JSON Web Key Set (RFC 7517 §5).
#[derive(Clone, PartialEq, Eq)]
pub enum JwksSource {
    /// No source; also for an empty text (`JWT_JWKS=` in a .env file).
    Unset,
    /// A file.
    File(PathBuf),
    /// `https`, or `http` to this machine: whoever can change the answer in transit can sign
    /// in as anybody.
    Url(Url),
}

/// What is wrong with a source. Never repeats the source, since a URL may hold a login.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJwksSource {
    #[error("is not a URL: {0}")]
    NotAUrl(url::ParseError),
    #[error(
        "is http:// to another host, where it could be changed on its way; use https:// or a file"
    )]
    Insecure,
    #[error("has the scheme {0:?}; expected https:// or the path of a file")]
    Scheme(String),
    #[error("holds a login, which is not supported")]
    Login,
}

impl FromStr for JwksSource {
    type Err = InvalidJwksSource;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self::Unset);
        }
        if !text.contains("://") {
            return Ok(Self::File(text.into()));
        }
        let url = Url::parse(text).map_err(InvalidJwksSource::NotAUrl)?;
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&url) => {}
            "http" => return Err(InvalidJwksSource::Insecure),
            other => return Err(InvalidJwksSource::Scheme(other.to_owned())),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidJwksSource::Login);
        }
        Ok(Self::Url(url))
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address == Ipv6Addr::LOCALHOST,
        None => false,
    }
}

/// The source for logs, without the query, which may hold an API key.
impl fmt::Display for JwksSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset => f.write_str("unset"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Url(url) => f.write_str(&url[..url::Position::AfterPath]),
        }
    }
}

impl fmt::Debug for JwksSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_trustworthy_urls_are_sources() {
        assert_eq!("".parse(), Ok(JwksSource::Unset));
        assert_eq!(
            "/etc/jwks.json".parse(),
            Ok(JwksSource::File("/etc/jwks.json".into()))
        );
        for url in [
            "https://issuer.example.com/.well-known/jwks.json",
            "http://localhost:8080/jwks",
            "http://127.0.0.1/jwks",
            "http://[::1]:8080/jwks",
        ] {
            assert!(matches!(url.parse(), Ok(JwksSource::Url(_))), "{url}");
        }
    }

    #[test]
    fn urls_that_others_could_answer_for_are_refused_without_repeating_them() {
        for url in [
            "http://issuer.example.com/jwks",
            "http://10.0.0.1/jwks",
            "http://localhost.example.com/jwks",
            "ftp://issuer.example.com/s3cret",
            "https://user:s3cret@issuer.example.com/jwks",
            "https://",
        ] {
            let error = url.parse::<JwksSource>().unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn the_query_is_in_no_rendering() {
        let source: JwksSource = "https://a.example/jwks?key=s3cret".parse().unwrap();
        assert_eq!(source.to_string(), "https://a.example/jwks");
        assert!(!format!("{source:?}").contains("s3cret"));
    }
}
