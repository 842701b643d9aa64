//! What is read of the query of a request to Socket.IO's endpoint, and a handshake's request
//! with nothing else in it. Pure.
//!
//! Invariant: a request is read here exactly as engineioxide reads it.

use axum::http::{HeaderMap, Request, Uri};
use socketioxide::socket::Sid;

/// The parameters of a handshake's query that Engine.IO reads.
const PARAMETERS: [&str; 3] = ["EIO", "transport", "sid"];

/// Longest value of such a parameter, in bytes; valid ones are shorter.
const MAX_VALUE_BYTES: usize = 64;

/// A handshake's request, with nothing but what is read from here on: a socket keeps its
/// request for life.
pub(super) fn lean<B>(request: Request<B>) -> Request<B> {
    let (mut parts, body) = request.into_parts();
    parts.headers = HeaderMap::new();
    let query = parts.uri.query();
    let values = PARAMETERS.map(|name| Some((name, query_value(query, name)?)));
    let pairs = values.into_iter().flatten().map(|(name, value)| {
        // An overlong value is emptied and not left out: a handshake with a wrong `sid` is
        // not one without a `sid`.
        let value = if value.len() <= MAX_VALUE_BYTES {
            value
        } else {
            ""
        };
        format!("{name}={value}")
    });
    let pairs: Vec<String> = pairs.collect();
    let uri = format!("{}?{}", PATH, pairs.join("&"));
    // Parts of a URI that was parsed can be parsed again.
    parts.uri = uri.parse().unwrap_or_default();
    Request::from_parts(parts, body)
}

/// Where Socket.IO's clients look for its endpoint.
const PATH: &str = "/socket.io/";

/// The Engine.IO session that a request belongs to; `None` for a handshake.
pub fn session_id(uri: &Uri) -> Option<Sid> {
    query_value(uri.query(), "sid").and_then(|sid| sid.parse().ok())
}

/// Whether a request is for a websocket, as engineioxide decides: it looks no further
/// than a second `=`. A websocket that was taken for polling here would escape every
/// close.
pub(super) fn is_websocket(query: Option<&str>) -> bool {
    let transport = query_value(query, "transport").and_then(|value| value.split('=').next());
    transport == Some("websocket")
}

/// The first value of a query's parameter, as it was sent.
pub(super) fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(key, value)| (key == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_is_what_engine_io_takes_for_one() {
        for (query, expected) in [
            ("EIO=4&transport=websocket", true),
            ("transport=websocket=x&EIO=4", true),
            ("transport=websocket&transport=polling", true),
            ("transport=polling&transport=websocket", false),
            ("transport=websockets", false),
            ("Transport=websocket", false),
            ("xtransport=websocket", false),
            ("transport", false),
            ("", false),
        ] {
            assert_eq!(is_websocket(Some(query)), expected, "{query}");
        }
        assert!(!is_websocket(None));
    }

    #[test]
    fn a_handshake_keeps_nothing_but_what_is_read_of_it() {
        let lean_uri = |query: &str| {
            let request = Request::get(format!("/socket.io/?{query}"))
                .header("authorization", "Bearer secret")
                .body(());
            let request = lean(request.unwrap());
            assert!(request.headers().is_empty());
            request.uri().to_string()
        };
        assert_eq!(
            lean_uri("token=secret&transport=polling&EIO=4&t=abc"),
            "/socket.io/?EIO=4&transport=polling"
        );
        let longest = "x".repeat(MAX_VALUE_BYTES);
        assert_eq!(
            lean_uri(&format!("EIO=4&sid={longest}")),
            format!("/socket.io/?EIO=4&sid={longest}")
        );
        // An invalid session id does not open a new session.
        assert_eq!(
            lean_uri(&format!("EIO=4&sid={longest}x")),
            "/socket.io/?EIO=4&sid="
        );
    }

    #[test]
    fn only_a_well_formed_id_names_a_session() {
        let sid = Sid::new();
        let named = |query: &str| session_id(&format!("/?{query}").parse().unwrap());
        assert_eq!(named(&format!("EIO=4&sid={sid}")), Some(sid));
        assert_eq!(named("EIO=4"), None);
        assert_eq!(named("sid=x"), None);
        assert_eq!(named(&format!("sid=x&sid={sid}")), None);
    }
}
