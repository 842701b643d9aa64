//! A connection to RabbitMQ: opened blocking, then driven by the caller's poll.
//! Requests are `no_wait` where the protocol has it; answers are skipped.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream as Blocking};
use std::time::Duration;

use mio::net::TcpStream;

/// A delivery from RabbitMQ.
pub struct Delivery<'a> {
    pub channel: u16,
    pub tag: u64,
    pub routing_key: &'a [u8],
    pub body: &'a [u8],
}

/// An open connection, with its read and write buffers.
pub struct Link {
    pub stream: TcpStream,
    pub out: Vec<u8>,
    inbox: Vec<u8>,
    pending: Vec<Pending>,
}

/// The incomplete delivery of a channel: its body has not arrived yet.
#[derive(Default, Clone)]
struct Pending {
    tag: u64,
    routing_key: Vec<u8>,
    wanted: usize,
    body: Vec<u8>,
}

/// Login, password and address in `amqp://login:password@host:port/`; the vhost is `/`.
fn parse(url: &str) -> Option<(String, String, SocketAddr)> {
    let url = url::Url::parse(url).ok()?;
    let address = url.socket_addrs(|| Some(5672)).ok()?.into_iter().next()?;
    Some((url.username().into(), url.password()?.into(), address))
}

impl Link {
    /// Connects, signs in and opens the channels 1 to `channels`.
    pub fn open(url: &str, channels: u16) -> io::Result<Self> {
        let (login, password, address) = parse(url).ok_or(io::ErrorKind::InvalidInput)?;
        let mut stream = Blocking::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"AMQP\0\0\x09\x01")?;
        expect(&mut stream, 10, 10)?;
        let mut out = Vec::new();
        let start = Method::new(10, 11)
            .u32(0)
            .short("PLAIN")
            .long(format!("\0{login}\0{password}").as_bytes())
            .short("en_US");
        start.frame(0, &mut out);
        stream.write_all(&out)?;
        expect(&mut stream, 10, 30)?;
        out.clear();
        Method::new(10, 31)
            .u16(2047)
            .u32(131_072)
            .u16(0)
            .frame(0, &mut out);
        Method::new(10, 40)
            .short("/")
            .short("")
            .u8(0)
            .frame(0, &mut out);
        stream.write_all(&out)?;
        expect(&mut stream, 10, 41)?;
        for channel in 1..=channels {
            out.clear();
            Method::new(20, 10).short("").frame(channel, &mut out);
            stream.write_all(&out)?;
            expect(&mut stream, 20, 11)?;
        }
        stream.set_read_timeout(None)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: TcpStream::from_std(stream),
            out: Vec::new(),
            inbox: Vec::new(),
            pending: vec![Pending::default(); usize::from(channels) + 1],
        })
    }

    pub fn declare_exchange(&mut self, exchange: &str) {
        let method = Method::new(40, 10)
            .u16(0)
            .short(exchange)
            .short("topic")
            .u8(2 | 16)
            .u32(0);
        method.frame(1, &mut self.out);
    }

    /// Declares an exclusive queue and consumes it.
    pub fn declare(&mut self, channel: u16, queue: &str) {
        Method::new(50, 10)
            .u16(0)
            .short(queue)
            .u8(4 | 8 | 16)
            .u32(0)
            .frame(channel, &mut self.out);
    }

    pub fn bind(&mut self, channel: u16, queue: &str, exchange: &str, key: &str) {
        let method = Method::new(50, 20)
            .u16(0)
            .short(queue)
            .short(exchange)
            .short(key)
            .u8(1)
            .u32(0);
        method.frame(channel, &mut self.out);
    }

    pub fn unbind(&mut self, channel: u16, queue: &str, exchange: &str, key: &str) {
        let method = Method::new(50, 50)
            .u16(0)
            .short(queue)
            .short(exchange)
            .short(key)
            .u32(0);
        method.frame(channel, &mut self.out);
    }

    pub fn consume(&mut self, channel: u16, queue: &str) {
        Method::new(60, 20)
            .u16(0)
            .short(queue)
            .short(queue)
            .u8(4 | 8)
            .u32(0)
            .frame(channel, &mut self.out);
    }

    pub fn delete(&mut self, channel: u16, queue: &str) {
        Method::new(50, 40)
            .u16(0)
            .short(queue)
            .u8(4)
            .frame(channel, &mut self.out);
    }

    /// How many messages each consumer of the channel gets before it acknowledges.
    pub fn prefetch(&mut self, channel: u16, count: u16) {
        Method::new(60, 10)
            .u32(0)
            .u16(count)
            .u8(0)
            .frame(channel, &mut self.out);
    }

    /// Acknowledges everything on the channel up to `tag`.
    pub fn ack(&mut self, channel: u16, tag: u64) {
        Method::new(60, 80)
            .u64(tag)
            .u8(1)
            .frame(channel, &mut self.out);
    }

    /// Publishes as Chat3 does: persistent JSON.
    pub fn publish(&mut self, exchange: &str, key: &str, body: &[u8]) {
        Method::new(60, 40)
            .u16(0)
            .short(exchange)
            .short(key)
            .u8(0)
            .frame(1, &mut self.out);
        let header = Method::new(60, 0)
            .u64(body.len() as u64)
            .u16(0x9000)
            .short("application/json")
            .u8(2);
        frame(2, 1, &header.0, &mut self.out);
        frame(3, 1, body, &mut self.out);
    }

    /// Writes as much as the broker takes. Returns false when the connection is gone.
    pub fn flush(&mut self) -> bool {
        super::write_available(&mut self.stream, &mut self.out)
    }

    /// Reads what has arrived and hands over each delivery. Returns false when the connection
    /// is gone.
    pub fn receive(&mut self, scratch: &mut [u8], mut deliver: impl FnMut(Delivery<'_>)) -> bool {
        let alive = super::read_available(&mut self.stream, &mut self.inbox, scratch);
        let mut at = 0;
        let mut open = true;
        while let Some((kind, channel, payload, next)) = split(&self.inbox[at..]) {
            let pending = &mut self.pending[usize::from(channel)];
            match (kind, payload) {
                (1, [0, 60, 0, 60, rest @ ..]) => {
                    let rest = &rest[1 + usize::from(rest[0])..];
                    pending.tag = rest[..8].try_into().map_or(0, u64::from_be_bytes);
                    let exchange = usize::from(rest[9]);
                    let key = &rest[10 + exchange..];
                    pending.routing_key.clear();
                    pending
                        .routing_key
                        .extend_from_slice(&key[1..=usize::from(key[0])]);
                }
                // The server closes the channel or the connection.
                (1, [0, 20, 0, 40, ..] | [0, 10, 0, 50, ..]) => {
                    eprintln!(
                        "RabbitMQ closed: {}",
                        String::from_utf8_lossy(&payload[6..])
                    );
                    open = false;
                }
                (2, header) => {
                    let size = header[4..12].try_into().map_or(0, u64::from_be_bytes);
                    pending.wanted = usize::try_from(size).unwrap_or(usize::MAX);
                    pending.body.clear();
                }
                (3, body) => {
                    // The usual body comes in one frame and is not copied.
                    let whole = pending.body.is_empty() && body.len() >= pending.wanted;
                    if !whole {
                        pending.body.extend_from_slice(body);
                    }
                    if whole || pending.body.len() >= pending.wanted {
                        deliver(Delivery {
                            channel,
                            tag: pending.tag,
                            routing_key: &pending.routing_key,
                            body: if whole { body } else { &pending.body },
                        });
                    }
                }
                _ => {}
            }
            at += next;
        }
        self.inbox.drain(..at);
        if self.inbox.is_empty() && self.inbox.capacity() > 1 << 20 {
            self.inbox = Vec::new();
        }
        alive && open
    }
}

/// The first frame of `bytes`: kind, channel, payload, length of all.
fn split(bytes: &[u8]) -> Option<(u8, u16, &[u8], usize)> {
    let channel = u16::from_be_bytes(bytes.get(1..3)?.try_into().ok()?);
    let size = u32::from_be_bytes(bytes.get(3..7)?.try_into().ok()?) as usize;
    (bytes.len() >= size + 8).then(|| (bytes[0], channel, &bytes[7..7 + size], size + 8))
}

fn expect(stream: &mut Blocking, class: u8, method: u8) -> io::Result<()> {
    let mut head = [0; 7];
    stream.read_exact(&mut head)?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    let mut payload = vec![0; size + 1];
    stream.read_exact(&mut payload)?;
    match payload.starts_with(&[0, class, 0, method]) {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "unexpected answer of RabbitMQ instead of {class}.{method}"
        ))),
    }
}

fn frame(kind: u8, channel: u16, payload: &[u8], into: &mut Vec<u8>) {
    into.push(kind);
    into.extend_from_slice(&channel.to_be_bytes());
    into.extend_from_slice(
        &u32::try_from(payload.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    into.extend_from_slice(payload);
    into.push(0xce);
}

/// A method's payload under construction.
struct Method(Vec<u8>);

impl Method {
    fn new(class: u16, method: u16) -> Self {
        Self(Vec::with_capacity(64)).u16(class).u16(method)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    fn short(self, text: &str) -> Self {
        self.u8(u8::try_from(text.len()).unwrap_or(u8::MAX))
            .bytes(text.as_bytes())
    }

    fn long(self, text: &[u8]) -> Self {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX))
            .bytes(text)
    }

    fn frame(self, channel: u16, into: &mut Vec<u8>) {
        frame(1, channel, &self.0, into);
    }
}
