//! Follows the HTTP/1.1 requests on a connection: where each head begins and ends.
//!
//! hyper does not tell how far it has read, and it accepts lines that end without a
//! carriage return, which proxies may read differently (RFC 9112, 2.2 and 11.2). So
//! this module looks at the bytes before hyper does. Of what a head says, only the
//! length of the body matters here; everything else is hyper's to check.
//!
//! Invariant: however the bytes are cut into reads, the outcome is the same.
//!
//! Pure; imports nothing of this crate.

/// Bytes of a line that are kept: enough for a body's length.
const LINE_BYTES: usize = 48;

/// Where in the requests the bytes so far have led to.
#[derive(Debug)]
pub(super) struct Heads {
    position: Position,
    last: u8,
    /// The start of the line, in lower case.
    line: [u8; LINE_BYTES],
    /// Bytes of the line so far.
    length: usize,
    /// The body's length, as far as the head has said.
    body: BodyLength,
    /// Whether a head has begun and not ended.
    is_within: bool,
    /// Requests whose head has ended.
    requests: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Head,
    /// In a body, with this number of bytes still to come.
    Body(u64),
    /// In a body whose end is not looked for: no request may follow it.
    Rest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyLength {
    Of(u64),
    Unknown,
}

impl Default for Heads {
    fn default() -> Self {
        Self {
            position: Position::Head,
            last: 0,
            line: [0; LINE_BYTES],
            length: 0,
            body: BodyLength::Of(0),
            is_within: false,
            requests: 0,
        }
    }
}

impl Heads {
    /// Reads on. A line feed without a carriage return is overwritten by a byte that no
    /// head may hold, and so is the end of a `Content-Length` that is not understood here:
    /// hyper then refuses the request.
    pub(super) fn read(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            match self.position {
                Position::Rest => return,
                Position::Body(left) => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX);
                    let here = here.min(bytes.len());
                    self.position = match left - here as u64 {
                        0 => Position::Head,
                        left => Position::Body(left),
                    };
                    bytes = &mut bytes[here..];
                }
                Position::Head => {
                    self.read_head(&mut bytes[0]);
                    bytes = &mut bytes[1..];
                }
            }
        }
    }

    /// Whether exactly this number of requests has ended and nothing came after them.
    pub(super) fn end_with(&self, requests: u64) -> bool {
        self.requests == requests && self.position == Position::Head && !self.is_within
    }

    fn read_head(&mut self, byte: &mut u8) {
        self.is_within = true;
        if *byte == b'\n' && self.last != b'\r' {
            *byte = 0;
        }
        let is_end_of_line = *byte == b'\n';
        self.last = *byte;
        if !is_end_of_line {
            if let Some(next) = self.line.get_mut(self.length) {
                *next = byte.to_ascii_lowercase();
            }
            self.length += 1;
            return;
        }
        // The line ends with its carriage return.
        let line = &self.line[..self.length.min(LINE_BYTES)];
        let is_empty = self.length == 1;
        if let Some(value) = line.strip_prefix(b"content-length:") {
            let value = std::str::from_utf8(value).ok().map(str::trim);
            let length = value.and_then(|value| value.parse().ok());
            match length.filter(|_| self.length < LINE_BYTES) {
                Some(length) => self.body = BodyLength::Of(length),
                None => *byte = 0,
            }
        } else if line.starts_with(b"transfer-encoding:") {
            self.body = BodyLength::Unknown;
        }
        self.length = 0;
        if is_empty {
            self.position = match self.body {
                BodyLength::Of(0) => Position::Head,
                BodyLength::Of(length) => Position::Body(length),
                BodyLength::Unknown => Position::Rest,
            };
            self.body = BodyLength::Of(0);
            self.is_within = false;
            self.requests += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(text: &str) -> (Heads, String) {
        let (mut heads, mut bytes) = (Heads::default(), text.as_bytes().to_vec());
        heads.read(&mut bytes);
        (heads, String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn the_end_of_a_head_is_known() {
        for (text, requests) in [
            ("", Some(0)),
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", Some(1)),
            ("GET / HTTP/1.1\r\nHost: x\r\n", None),
            ("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n", Some(2)),
            ("GET / HTTP/1.1\r\n\r\n\u{1}\u{2}\r\n", None),
            (
                "POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\na\nb\n",
                Some(1),
            ),
            ("POST / HTTP/1.1\r\ncontent-length:4\r\n\r\na\n", None),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\naGET", None),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                None,
            ),
        ] {
            let (heads, unchanged) = after(text);
            let ends_with = (0..3).find(|&requests| heads.end_with(requests));
            assert_eq!(ends_with, requests, "{text:?}");
            assert_eq!(unchanged, text);
        }
    }

    #[test]
    fn a_line_that_ends_otherwise_is_spoilt_and_a_body_is_not() {
        let (_, text) = after("GET / HTTP/1.1\nHost: x\r\nX: y\n\r\n");
        assert_eq!(text, "GET / HTTP/1.1\0Host: x\r\nX: y\0\r\n");
        let (_, text) = after("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n\n\nGET /\n");
        assert_eq!(
            text,
            "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n\n\nGET /\0"
        );
    }

    #[test]
    fn only_the_header_itself_says_that_a_bodys_end_is_unknown() {
        let (heads, _) = after("GET / HTTP/1.1\r\nTransfer-Encoding-Of: chunked\r\n\r\n");
        assert!(heads.end_with(1));
        let (_, text) = after("GET / HTTP/1.1\r\nTransfer-Encoding-Of: x\r\n\r\nGET /\n");
        assert!(text.ends_with("GET /\0"), "{text:?}");
    }

    #[test]
    fn a_length_that_is_not_read_here_is_spoilt() {
        let spaces = " ".repeat(LINE_BYTES);
        for length in [
            "x",
            "",
            "-1",
            "1, 1",
            &format!("{spaces}1"),
            "18446744073709551616",
        ] {
            let (_, text) = after(&format!(
                "POST / HTTP/1.1\r\nContent-Length:{length}\r\n\r\n"
            ));
            assert!(text.contains(&format!("{length}\r\0")), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn however_requests_are_cut_they_are_read_alike(
            bodies in proptest::collection::vec("[a\\n\\r]{0,100}", 1..6),
            rest in "[a\\n\\r:]{0,20}",
            cuts in proptest::collection::vec(1..60_usize, 1..20),
        ) {
            let request = |body: &String| {
                format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            };
            let requests: String = bodies.iter().map(request).collect();
            let (heads, text) = after(&requests);
            prop_assert!(heads.end_with(bodies.len() as u64));
            prop_assert_eq!(&text, &requests);
            let whole = requests + &rest;
            let (heads, text) = after(&whole);
            let mut bytes = whole.into_bytes();
            let (mut cut, mut at) = (Heads::default(), 0);
            for length in cuts.iter().cycle() {
                if at == bytes.len() {
                    break;
                }
                let end = (at + length).min(bytes.len());
                cut.read(&mut bytes[at..end]);
                at = end;
            }
            prop_assert_eq!(String::from_utf8(bytes).unwrap(), text);
            prop_assert_eq!((cut.requests, cut.position), (heads.requests, heads.position));
        }
    }
}
