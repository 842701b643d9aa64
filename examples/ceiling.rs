//! The raw limit: the smallest server that speaks the protocol, to compare the gateway
//! with. One thread, frames by hand, websocket only. It believes every token, recovers
//! nothing, counts nothing and limits nobody: never serve with it.
//!
//! `--drop-every N` swallows every Nth event, to show that the load generator notices.

mod wire;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use clap::{Parser, ValueEnum};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use serde::Deserialize;
use serde_json::value::RawValue;
use socket2::{Domain, Socket as Socket2, Type};
use wire::amqp::Link;
use wire::websocket;

/// RabbitMQ works on one channel's declares one after the other.
const CHANNELS: u16 = 16;
const LISTENER: Token = Token(0);
const BROKER: Token = Token(1);
const FIRST_SOCKET: usize = 2;
const PING: Duration = Duration::from_secs(25);

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Topology {
    PerUser,
    Shared,
    Firehose,
}

#[derive(Parser)]
struct Options {
    #[arg(long, env = "PORT", default_value_t = 3001)]
    port: u16,
    #[arg(
        long,
        env = "RABBITMQ_URL",
        default_value = "amqp://rmuser:rmpassword@localhost:5672/"
    )]
    amqp: String,
    #[arg(
        long,
        env = "RABBITMQ_UPDATES_EXCHANGE",
        default_value = "chat3_updates"
    )]
    exchange: String,
    #[arg(
        long,
        env = "RABBITMQ_TOPOLOGY",
        value_enum,
        default_value = "per-user"
    )]
    topology: Topology,
    #[arg(long, default_value_t = 0)]
    drop_every: u64,
}

struct Socket {
    stream: TcpStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    upgraded: bool,
    user: Option<String>,
}

/// An online user: the sockets, and a number that no queue name has had before.
struct User {
    sockets: Vec<usize>,
    serial: u64,
}

struct Ceiling {
    options: Options,
    poll: Poll,
    link: Option<Link>,
    sockets: HashMap<usize, Socket>,
    users: HashMap<String, User>,
    next: usize,
    serial: u64,
    events: u64,
}

fn main() -> anyhow::Result<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let options = Options::parse();
    let mut listener = listen(SocketAddr::from(([127, 0, 0, 1], options.port)))?;
    let poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    println!(
        "Listening address=127.0.0.1:{}",
        listener.local_addr()?.port()
    );
    let mut ceiling = Ceiling {
        options,
        poll,
        link: None,
        sockets: HashMap::new(),
        users: HashMap::new(),
        next: FIRST_SOCKET,
        serial: 0,
        events: 0,
    };
    ceiling.connect();
    ceiling.run(&listener).context("polling")
}

/// A listener with a backlog as long as the gateway's: a full backlog costs a client a
/// second.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket2::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(TcpListener::from_std(socket.into()))
}

impl Ceiling {
    fn run(&mut self, listener: &TcpListener) -> std::io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; 1 << 18];
        let mut pinged = Instant::now();
        loop {
            self.poll
                .poll(&mut events, Some(Duration::from_millis(200)))?;
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(listener)?,
                    BROKER => self.receive(&mut scratch),
                    Token(id) => self.serve(id, event.is_readable(), &mut scratch),
                }
            }
            if self.link.as_mut().is_none_or(|link| !link.flush()) {
                self.connect();
            }
            if pinged.elapsed() > PING {
                pinged = Instant::now();
                self.ping();
            }
        }
    }

    /// One attempt; the next one follows within 200 ms.
    fn connect(&mut self) {
        self.link = None;
        let Ok(mut link) = Link::open(&self.options.amqp, CHANNELS) else {
            return;
        };
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self
            .poll
            .registry()
            .register(&mut link.stream, BROKER, interest)
            .is_err()
        {
            return;
        }
        let exchange = &self.options.exchange;
        match self.options.topology {
            Topology::PerUser => (1..=CHANNELS).for_each(|channel| link.prefetch(channel, 100)),
            Topology::Shared => {
                link.prefetch(1, 1000);
                link.declare(1, &queue(1));
                link.consume(1, &queue(1));
            }
            Topology::Firehose => {
                link.prefetch(1, 1000);
                let queue = queue(1);
                link.declare(1, &queue);
                link.bind(1, &queue, exchange, "user.*.*");
                link.consume(1, &queue);
            }
        }
        for (name, user) in &self.users {
            join(&mut link, &self.options, name, user.serial);
        }
        if link.flush() {
            self.link = Some(link);
            println!("connected to RabbitMQ");
        }
    }

    fn accept(&mut self, listener: &TcpListener) -> std::io::Result<()> {
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_nodelay(true)?;
            let id = self.next;
            self.next += 1;
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll
                .registry()
                .register(&mut stream, Token(id), interest)?;
            let (inbox, outbox) = (Vec::new(), Vec::new());
            self.sockets.insert(
                id,
                Socket {
                    stream,
                    inbox,
                    outbox,
                    upgraded: false,
                    user: None,
                },
            );
        }
        Ok(())
    }

    fn serve(&mut self, id: usize, readable: bool, scratch: &mut [u8]) {
        let Some(socket) = self.sockets.get_mut(&id) else {
            return;
        };
        let mut alive = wire::write_available(&mut socket.stream, &mut socket.outbox);
        if readable {
            alive &= wire::read_available(&mut socket.stream, &mut socket.inbox, scratch);
        }
        let joined = if alive && readable {
            socket.listen(id)
        } else {
            None
        };
        if let Some(name) = joined {
            self.enter(id, name);
        }
        if !alive {
            self.leave(id);
        }
    }

    fn enter(&mut self, id: usize, name: String) {
        let user = self.users.entry(name.clone()).or_insert_with(|| {
            self.serial += 1;
            if let Some(link) = &mut self.link {
                join(link, &self.options, &name, self.serial);
            }
            User {
                sockets: Vec::new(),
                serial: self.serial,
            }
        });
        user.sockets.push(id);
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.user = Some(name);
        }
    }

    fn leave(&mut self, id: usize) {
        let Some(name) = self.sockets.remove(&id).and_then(|socket| socket.user) else {
            return;
        };
        let Some(user) = self.users.get_mut(&name) else {
            return;
        };
        user.sockets.retain(|&other| other != id);
        if !user.sockets.is_empty() {
            return;
        }
        let serial = user.serial;
        self.users.remove(&name);
        let Some(link) = &mut self.link else { return };
        match self.options.topology {
            Topology::PerUser => link.delete(channel(serial), &queue(serial)),
            Topology::Shared => {
                let key = format!("user.{name}.*");
                link.unbind(1, &queue(1), &self.options.exchange, &key);
            }
            Topology::Firehose => {}
        }
    }

    /// Passes on what RabbitMQ has sent, and acknowledges it once for each channel.
    fn receive(&mut self, scratch: &mut [u8]) {
        let Self {
            link,
            users,
            sockets,
            events,
            options,
            ..
        } = self;
        let Some(connection) = link else { return };
        let mut settled = [0; CHANNELS as usize + 1];
        let mut frames = Vec::with_capacity(4096);
        let mut gone = Vec::new();
        let alive = connection.receive(scratch, |delivery| {
            settled[usize::from(delivery.channel)] = delivery.tag;
            let user = user_of(delivery.routing_key).and_then(|name| users.get(name));
            let Some(user) = user else { return };
            frames.clear();
            encode(delivery.body, options.drop_every, events, &mut frames);
            for id in &user.sockets {
                let Some(socket) = sockets.get_mut(id) else {
                    continue;
                };
                if !socket.send(&frames) {
                    gone.push(*id);
                }
            }
        });
        for (channel, &tag) in (0..).zip(&settled) {
            if tag > 0 {
                connection.ack(channel, tag);
            }
        }
        if !alive {
            *link = None;
        }
        for id in gone {
            self.leave(id);
        }
    }

    fn ping(&mut self) {
        let mut ping = Vec::new();
        websocket::text(&mut ping, &[b"2"]);
        for socket in self.sockets.values_mut().filter(|socket| socket.upgraded) {
            socket.send(&ping);
        }
    }
}

impl Socket {
    /// Takes what the client has sent. Returns the user's id if that was a CONNECT.
    fn listen(&mut self, id: usize) -> Option<String> {
        if !self.upgraded {
            let end = memchr::memmem::find(&self.inbox, b"\r\n\r\n")? + 4;
            let mut reply =
                websocket::accept(str::from_utf8(&self.inbox[..end]).ok()?)?.into_bytes();
            let open = format!(
                r#"0{{"sid":"{id}","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}}"#
            );
            websocket::text(&mut reply, &[open.as_bytes()]);
            self.inbox.drain(..end);
            self.upgraded = true;
            self.send(&reply);
        }
        let mut name = None;
        while let Some(frame) = websocket::frame(&self.inbox) {
            let mut payload = self.inbox[frame.start..frame.end].to_vec();
            for (byte, mask) in payload
                .iter_mut()
                .zip(frame.mask.unwrap_or_default().iter().cycle())
            {
                *byte ^= mask;
            }
            self.inbox.drain(..frame.end);
            if let Some(auth) = payload.strip_prefix(b"40") {
                name = Some(user_of_token(auth)?);
                let mut reply = Vec::new();
                websocket::text(&mut reply, &[format!(r#"40{{"sid":"{id}"}}"#).as_bytes()]);
                self.send(&reply);
            }
        }
        if self.inbox.is_empty() {
            self.inbox = Vec::new();
        }
        name
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        if !self.outbox.is_empty() {
            self.outbox.extend_from_slice(bytes);
            return true;
        }
        let written = match std::io::Write::write(&mut self.stream, bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(_) => return false,
        };
        self.outbox.extend_from_slice(&bytes[written..]);
        true
    }
}

/// Subscribes a user.
fn join(link: &mut Link, options: &Options, name: &str, serial: u64) {
    let key = format!("user.{name}.*");
    match options.topology {
        Topology::PerUser => {
            let queue = queue(serial);
            link.declare(channel(serial), &queue);
            link.bind(channel(serial), &queue, &options.exchange, &key);
            link.consume(channel(serial), &queue);
        }
        Topology::Shared => {
            link.bind(1, &queue(1), &options.exchange, &key);
        }
        Topology::Firehose => {}
    }
}

fn channel(serial: u64) -> u16 {
    u16::try_from(serial % u64::from(CHANNELS)).unwrap_or_default() + 1
}

/// A name that the previous run cannot still hold.
fn queue(number: u64) -> String {
    format!("ceiling-{}-{number}", std::process::id())
}

fn user_of(routing_key: &[u8]) -> Option<&str> {
    str::from_utf8(routing_key).ok()?.split('.').nth(1)
}

/// The user id in a token's payload; the signature is not checked.
fn user_of_token(auth: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Auth<'a> {
        token: &'a str,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Claims {
        user_id: String,
    }
    let auth: Auth<'_> = serde_json::from_slice(auth).ok()?;
    let payload = BASE64_URL_SAFE_NO_PAD
        .decode(auth.token.split('.').nth(1)?)
        .ok()?;
    Some(serde_json::from_slice::<Claims>(&payload).ok()?.user_id)
}

/// Both events of an update, encoded once for all sockets of its user.
fn encode(body: &[u8], drop_every: u64, events: &mut u64, frames: &mut Vec<u8>) {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Update<'a> {
        event_type: &'a str,
        #[serde(borrow)]
        data: &'a RawValue,
    }
    let mut emit = |event: &[u8], payload: &[u8]| {
        *events += 1;
        if !events.is_multiple_of(drop_every) {
            websocket::text(frames, &[b"42[\"", event, b"\",", payload, b"]"]);
        }
    };
    emit(b"chat3:update", body);
    let Ok(update) = serde_json::from_slice::<Update<'_>>(body) else {
        return;
    };
    match update.event_type {
        "message.create" => emit(b"message:new", update.data.get().as_bytes()),
        other if other.starts_with("message.") => emit(b"message:update", body),
        other if other.starts_with("dialog.") => emit(b"dialog:update", body),
        _ => {}
    }
}
