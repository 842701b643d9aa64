//! `RABBITMQ_URL` as a list: the nodes of one RabbitMQ cluster.
//!
//! The broker side decides when to try which node. Invariant: there is at least one node,
//! and all nodes have the same scheme, login and vhost, as the nodes of a cluster do.

use std::{fmt, str::FromStr};

use super::{AmqpUrl, InvalidAmqpUrl, amqp_url};

/// The addresses of a cluster's nodes, or of the only broker.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpUrls(Vec<AmqpUrl>);

/// What is wrong with a list of URLs. Never repeats a login.
#[allow(missing_docs)] // Each variant's text says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAmqpUrls {
    #[error("{0}")]
    Url(InvalidAmqpUrl),
    #[error("has a node (number {number}) that {error}")]
    Node {
        number: usize,
        error: InvalidAmqpUrl,
    },
    #[error("has an empty place in its list of nodes")]
    Empty,
    #[error(
        "has a comma in a host; a list of nodes has a whole URL for each: \
         amqp://user:password@one/,amqp://user:password@two/"
    )]
    CommaInHost,
    #[error(
        "has nodes that differ in their {0}; the nodes of a cluster have the same scheme, login and vhost"
    )]
    Differ(&'static str),
    #[error("names the node {0} twice")]
    Twice(String),
}

impl AmqpUrls {
    /// The nodes in the order of the list; at least one.
    pub fn nodes(&self) -> &[AmqpUrl] {
        &self.0
    }

    /// The first node. Its scheme, login and vhost are those of all nodes.
    pub fn first(&self) -> &AmqpUrl {
        self.0.first().expect("there is at least one node")
    }
}

impl Default for AmqpUrls {
    fn default() -> Self {
        amqp_url::DEFAULT.parse().expect("the default URL is valid")
    }
}

impl From<AmqpUrl> for AmqpUrls {
    fn from(url: AmqpUrl) -> Self {
        Self(vec![url])
    }
}

impl FromStr for AmqpUrls {
    type Err = InvalidAmqpUrls;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = split(text);
        let mut nodes: Vec<AmqpUrl> = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            let part = part.trim();
            if parts.len() > 1 && part.is_empty() || part.ends_with(',') {
                return Err(InvalidAmqpUrls::Empty);
            }
            let node: AmqpUrl = part.parse().map_err(|error| match parts.len() {
                1 => InvalidAmqpUrls::Url(error),
                _ => InvalidAmqpUrls::Node {
                    number: index + 1,
                    error,
                },
            })?;
            if node.host.contains(',') {
                return Err(InvalidAmqpUrls::CommaInHost);
            }
            if let Some(first) = nodes.first() {
                let login = |url: &AmqpUrl| (url.user.clone(), url.password.clone());
                if first.tls != node.tls {
                    return Err(InvalidAmqpUrls::Differ("scheme"));
                }
                if login(first) != login(&node) {
                    return Err(InvalidAmqpUrls::Differ("login"));
                }
                if first.vhost != node.vhost {
                    return Err(InvalidAmqpUrls::Differ("vhost"));
                }
            }
            if nodes.contains(&node) {
                return Err(InvalidAmqpUrls::Twice(node.to_string()));
            }
            nodes.push(node);
        }
        Ok(Self(nodes))
    }
}

/// Splits at commas that a scheme follows, since a password may contain commas, too.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (comma, _) in text.match_indices(',') {
        let rest = text[comma + 1..].trim_start();
        if rest.starts_with("amqp://") || rest.starts_with("amqps://") {
            parts.push(&text[start..comma]);
            start = comma + 1;
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The addresses without the login, for logs.
impl fmt::Display for AmqpUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, node) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{node}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for AmqpUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> InvalidAmqpUrls {
        let error = text.parse::<AmqpUrls>().unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
        error
    }

    #[test]
    fn the_nodes_are_those_of_the_list_in_its_order() {
        let text = "amqps://u:s3cret@a/v, amqps://u:s3cret@b:5/v,\n\tamqps://u:s3cret@[::1]/v ";
        let urls: AmqpUrls = text.parse().unwrap();
        let hosts: Vec<_> = urls.nodes().iter().map(|url| &*url.host).collect();
        assert_eq!(hosts, ["a", "b", "::1"]);
        assert_eq!(
            urls.to_string(),
            "amqps://a:5671/v,amqps://b:5/v,amqps://[::1]:5671/v"
        );
        assert!(!format!("{urls:?}").contains("s3cret"));
    }

    #[test]
    fn one_url_is_what_it_was_before_there_were_lists() {
        for text in ["amqp://u:pa,ss@h/", "amqp://u,v:p@h/", "amqp://h/a,b"] {
            let urls: AmqpUrls = text.parse().unwrap();
            assert_eq!(urls, text.parse::<AmqpUrl>().unwrap().into());
        }
        let scheme = InvalidAmqpUrl::Scheme("http".to_owned());
        assert_eq!(error("http://h/").to_string(), scheme.to_string());
    }

    #[test]
    fn a_list_that_is_no_cluster_is_refused() {
        use InvalidAmqpUrls::{CommaInHost, Differ, Empty, Node, Twice};
        assert_eq!(
            error("amqp://u:s3cret@a/,amqps://u:s3cret@b/"),
            Differ("scheme")
        );
        assert_eq!(error("amqp://u:s3cret@a/,amqp://b/"), Differ("login"));
        assert_eq!(
            error("amqp://u:s3cret@a/,amqp://u:s3cret@b/v"),
            Differ("vhost")
        );
        assert_eq!(
            error("amqp://a/,amqp://b/,amqp://a:5672/"),
            Twice("amqp://a:5672/".to_owned())
        );
        assert_eq!(error("amqp://a/,,amqp://b/"), Empty);
        assert_eq!(error(",amqp://b/"), Empty);
        assert_eq!(error("amqp://a/,"), Empty);
        assert_eq!(error("amqp://u:s3cret@a,b/"), CommaInHost);
        let node = error("amqp://u:s3cret@a/,amqp://u:s3cret@b/x/y");
        assert!(matches!(node, Node { number: 2, .. }), "{node}");
    }
}
