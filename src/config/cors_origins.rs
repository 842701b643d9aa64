//! `CORS_ORIGIN`: the sites whose pages may connect.

use std::str::FromStr;

use http::HeaderValue;
use url::Url;

/// All sites.
pub(super) const DEFAULT: &str = "*";

/// The origins (RFC 6454) whose pages may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigins {
    /// All origins.
    Any,
    /// Origins that match one of the entries.
    List(Vec<Site>),
}

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Site {
    /// `https://chat.example.com`: compared with the text that browsers send.
    Exact(String),
    /// `https://*.example.com`: the hosts below a domain, not the domain itself.
    Below {
        /// `None` (`*.example.com`) stands for http and https.
        scheme: Option<String>,
        /// With a leading dot, and with the port unless it is the default of the scheme.
        suffix: String,
    },
}

/// A text that is not an origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an origin like https://chat.example.com, https://*.example.com or *.example.com"
)]
pub struct InvalidOrigin(String);

impl CorsOrigins {
    /// Whether a page may connect, by the `Origin` that its browser sent.
    pub fn allow(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::Any => true,
            Self::List(sites) => origin
                .to_str()
                .is_ok_and(|origin| sites.iter().any(|site| site.is(origin))),
        }
    }
}

impl Site {
    fn is(&self, origin: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == origin,
            Self::Below { scheme, suffix } => {
                let Some((own_protocol, host)) = origin.split_once("://") else {
                    return false;
                };
                let fits = match scheme {
                    Some(scheme) => scheme == own_protocol,
                    None => matches!(own_protocol, "http" | "https"),
                };
                // Refuses texts that no browser sends, such as a host with a path.
                let below = host.strip_suffix(suffix.as_str());
                fits && below.is_some_and(|name| !name.is_empty()) && is_origin(origin)
            }
        }
    }
}

fn is_origin(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text)
}

impl Default for CorsOrigins {
    fn default() -> Self {
        DEFAULT.parse().expect("the default is valid")
    }
}

impl FromStr for Site {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidOrigin(text.to_owned());
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        let Some(domain) = rest.strip_prefix("*.") else {
            return match is_origin(text) && !text.contains('*') {
                true => Ok(Self::Exact(text.to_owned())),
                false => Err(invalid()),
            };
        };
        // The sites below `*.com` have many owners.
        let is_domain = domain.contains('.') || domain.split(':').next() == Some("localhost");
        let example = format!("{}://{domain}", scheme.unwrap_or("https"));
        match is_domain && !domain.contains('*') && is_origin(&example) {
            true => Ok(Self::Below {
                scheme: scheme.map(str::to_owned),
                suffix: format!(".{domain}"),
            }),
            false => Err(invalid()),
        }
    }
}

impl FromStr for CorsOrigins {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "*" => Ok(Self::Any),
            list => {
                let sites = list.split(',').map(|site| site.trim().parse());
                sites.collect::<Result<_, _>>().map(Self::List)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &str, origin: &str) -> bool {
        let list: CorsOrigins = list.parse().unwrap();
        list.allow(&HeaderValue::from_str(origin).unwrap())
    }

    #[test]
    fn origins_are_compared_as_browsers_send_them() {
        let list = "https://chat.example.com, http://localhost:5173";
        assert!(allows(list, "https://chat.example.com"));
        assert!(allows(list, "http://localhost:5173"));
        for origin in [
            "http://chat.example.com",
            "https://chat.example.com:8443",
            "https://chat.example.com.evil.com",
            "https://a.chat.example.com",
            "http://localhost:51730",
            "null",
            "",
        ] {
            assert!(!allows(list, origin), "{origin}");
            assert!(allows("*", origin), "{origin}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_the_hosts_below_a_domain() {
        for (list, origin, expected) in [
            ("*.example.com", "https://a.example.com", true),
            ("*.example.com", "http://a.b.example.com", true),
            ("*.example.com", "https://example.com", false),
            ("*.example.com", "https://.example.com", false),
            ("*.example.com", "https://evilexample.com", false),
            ("*.example.com", "https://a.example.com.evil.com", false),
            ("*.example.com", "https://evil.com/.example.com", false),
            ("*.example.com", "https://evil.com#.example.com", false),
            ("*.example.com", "https://evil.com?.example.com", false),
            ("*.example.com", "https://x@a.example.com", false),
            ("*.example.com", "https://evil.com:80.example.com", false),
            ("*.example.com", "https://a.example.com:8443", false),
            ("*.example.com", "ftp://a.example.com", false),
            ("*.example.com", "https://A.example.com", false),
            ("*.example.com:8443", "https://a.example.com:8443", true),
            ("https://*.example.com", "https://a.example.com", true),
            ("https://*.example.com", "http://a.example.com", false),
            ("https://b.com,*.example.com", "https://a.example.com", true),
            ("*.localhost:5173", "http://a.localhost:5173", true),
        ] {
            assert_eq!(allows(list, origin), expected, "{list} {origin}");
        }
    }

    #[test]
    fn what_no_browser_would_send_cannot_be_listed() {
        for text in [
            "",
            "chat.example.com",
            "https://chat.example.com/",
            "https://chat.example.com:443",
            "https://Chat.example.com",
            "*,http://a",
            "*.com",
            "*.",
            "*.*.example.com",
            "a.*.example.com",
            "https://a*.example.com",
            "*.example.com/",
            "https://*",
        ] {
            assert!(text.parse::<CorsOrigins>().is_err(), "{text:?}");
        }
    }
}
