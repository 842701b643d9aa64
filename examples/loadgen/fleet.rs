//! The sockets, the connection to RabbitMQ and the loop that drives them.
//! Enters everything into the ledger; the phases decide what to publish when. Every update
//! carries the time at which it was handed to the connection to RabbitMQ.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use jsonwebtoken::{EncodingKey, Header};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::json;
use slab::Slab;

use super::client::{Client, Kind, Owner, Said, stamp};
use super::comeback::Comebacks;
use super::ledger::Ledger;
use crate::Options;
use crate::wire::amqp::Link;

const BROKER: Token = Token(usize::MAX - 1);
const TENANT: &str = "tnt_default";
const TOKEN_LIFETIME: u64 = 24 * 3600;
const VISITOR_PROBE: Duration = Duration::from_millis(100);
const VISITOR_PATIENCE: Duration = Duration::from_secs(10);
/// Above this, RabbitMQ does not keep up, and more would only wait here.
const BACKLOG: usize = 1 << 18;

#[derive(Clone, Copy)]
enum Seat {
    Member(usize),
    Visitor(u32),
}

/// The outcomes of the visitors since the phase began.
#[derive(Default)]
pub struct Visitors {
    pub connects: u32,
    pub refused: u32,
    pub missed: u32,
    pub present: u32,
}

pub struct Fleet {
    pub ledger: Ledger,
    pub visitors: Visitors,
    pub comebacks: Comebacks,
    pub joined: usize,
    pub refused: usize,
    options: Options,
    signing: EncodingKey,
    clock: Instant,
    poll: Poll,
    events: Events,
    scratch: Vec<u8>,
    link: Option<Link>,
    clients: Slab<(Client, Seat)>,
    /// When to check which visitor: client, number, next check, final deadline.
    appointments: VecDeque<(usize, u32, Instant, Instant)>,
    next_visitor: u32,
    complained: bool,
}

impl Fleet {
    pub fn new(options: Options) -> io::Result<Self> {
        Ok(Self {
            ledger: Ledger::new(options.users, options.sockets_per_user),
            visitors: Visitors::default(),
            comebacks: Comebacks::new(options.users * options.sockets_per_user, options.reconnect),
            joined: 0,
            refused: 0,
            signing: EncodingKey::from_secret(options.secret.as_bytes()),
            options,
            clock: Instant::now(),
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            scratch: vec![0; 1 << 18],
            link: None,
            clients: Slab::new(),
            appointments: VecDeque::new(),
            next_visitor: 0,
            complained: false,
        })
    }

    /// Microseconds since the start.
    pub fn now(&self) -> u64 {
        micros(self.clock)
    }

    pub fn connect_broker(&mut self) -> io::Result<()> {
        self.link = None;
        let mut link = Link::open(&self.options.amqp, 1)?;
        link.declare_exchange(&self.options.exchange);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut link.stream, BROKER, interest)?;
        self.link = Some(link);
        Ok(())
    }

    /// Whether RabbitMQ keeps up with what is published.
    pub fn writable(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.out.len() < BACKLOG)
    }

    /// Waits for something to happen, at most `timeout`, and deals with it.
    pub fn turn(&mut self, timeout: Duration) -> io::Result<()> {
        self.flush();
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let polled = self.poll.poll(&mut events, Some(timeout));
        if let Err(error) = polled
            && error.kind() != io::ErrorKind::Interrupted
        {
            return Err(error);
        }
        for event in &events {
            match event.token() {
                BROKER => self.hear_broker(),
                Token(key) => self.serve(key, event.is_read_closed() || event.is_error()),
            }
        }
        self.events = events;
        self.look_after_visitors();
        let now = Instant::now();
        while let Some(socket) = self.comebacks.due(now) {
            self.open_member(socket);
        }
        self.flush();
        Ok(())
    }

    fn flush(&mut self) {
        if self.link.as_mut().is_some_and(|link| !link.flush()) {
            self.lose_broker();
        }
    }

    fn hear_broker(&mut self) {
        let Self { link, scratch, .. } = self;
        if link
            .as_mut()
            .is_some_and(|link| !link.receive(scratch, |_| {}))
        {
            self.lose_broker();
        }
    }

    fn lose_broker(&mut self) {
        eprintln!("loadgen: connection to RabbitMQ lost");
        self.link = None;
    }

    /// Opens the connection of a socket that stays.
    pub fn open_member(&mut self, socket: usize) {
        let user = user_number(socket / self.options.sockets_per_user);
        if let Err(error) = self.open(Owner::User(user), Seat::Member(socket)) {
            self.complain("connect", error.to_string().as_bytes());
            if !self.comebacks.lost(socket, false, Vec::new()) {
                self.refused += 1;
            }
        }
    }

    /// Opens the connection of a visitor, who leaves again after one update.
    pub fn open_visitor(&mut self) {
        self.next_visitor += 1;
        self.visitors.connects += 1;
        let number = self.next_visitor;
        match self.open(Owner::Visitor(number), Seat::Visitor(number)) {
            Ok(key) => {
                self.visitors.present += 1;
                let now = Instant::now();
                let appointment = (key, number, now + VISITOR_PROBE, now + VISITOR_PATIENCE);
                self.appointments.push_back(appointment);
            }
            Err(error) => {
                self.complain("connect", error.to_string().as_bytes());
                self.visitors.refused += 1;
            }
        }
    }

    fn open(&mut self, owner: Owner, seat: Seat) -> io::Result<usize> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.options.port));
        let mut stream = TcpStream::connect(address)?;
        let token = self.token(owner);
        let entry = self.clients.vacant_entry();
        let key = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(key), interest)?;
        let session = match seat {
            Seat::Member(socket) => self.comebacks.session(socket),
            Seat::Visitor(_) => None,
        };
        let client = Client::new(stream, self.options.port, &token, session);
        entry.insert((client, seat));
        Ok(key)
    }

    fn token(&self, owner: Owner) -> String {
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let expiry = since_epoch.as_secs() + TOKEN_LIFETIME;
        let claims = json!({"userId": owner.to_string(), "tenantId": TENANT, "exp": expiry});
        jsonwebtoken::encode(&Header::default(), &claims, &self.signing).unwrap_or_default()
    }

    fn serve(&mut self, key: usize, ended: bool) {
        let Some((client, seat)) = self.clients.get_mut(key) else {
            return;
        };
        let (clock, ledger, comebacks) = (self.clock, &mut self.ledger, &mut self.comebacks);
        let (mut has_joined, mut satisfied, mut complaint) = (false, false, None);
        let alive = client.drive(ended, &mut self.scratch, |said| match (said, *seat) {
            // Before the events that come with the reply.
            (Said::Joined(pid), Seat::Member(socket)) => match comebacks.joined(socket, pid) {
                Some(true) => ledger.refetch(socket),
                Some(false) => {}
                None => {
                    has_joined = true;
                    ledger.joined(socket);
                }
            },
            (Said::Joined(_), Seat::Visitor(_)) => has_joined = true,
            (Said::Event(event), Seat::Member(socket)) => {
                ledger.receive(socket, &event, micros(clock));
            }
            (Said::Event(event), Seat::Visitor(number)) => {
                if event.owner == Owner::Visitor(number) {
                    satisfied |= matches!(event.kind, Kind::Message);
                } else {
                    ledger.counts.foreign += 1;
                }
            }
            (Said::Refused(answer), _) => complaint = Some(("refused", answer.to_vec())),
            (Said::Unknown(packet), _) => complaint = Some(("unknown packet", packet.to_vec())),
        });
        let seat = *seat;
        if let Some((what, bytes)) = complaint {
            self.complain(what, &bytes);
        }
        if has_joined {
            match seat {
                Seat::Member(_) => self.joined += 1,
                Seat::Visitor(number) => self.publish(Owner::Visitor(number), 0),
            }
        }
        if satisfied {
            self.visitors.present -= 1;
            self.clients.remove(key).0.leave();
        } else if !alive {
            self.remove(key);
        }
    }

    /// A socket is lost, or its handshake has failed.
    fn remove(&mut self, key: usize) {
        let (client, seat) = self.clients.remove(key);
        let had_joined = client.joined();
        if let Seat::Member(socket) = seat
            && self
                .comebacks
                .lost(socket, had_joined, client.into_offset())
        {
            return;
        }
        match (seat, had_joined) {
            (Seat::Member(socket), true) => self.ledger.close(socket),
            (Seat::Member(_), false) => self.refused += 1,
            (Seat::Visitor(_), had_joined) => {
                self.visitors.present -= 1;
                if had_joined {
                    self.visitors.missed += 1;
                } else {
                    self.visitors.refused += 1;
                }
            }
        }
    }

    /// A visitor's update may have come before the subscription: publishes another one.
    fn look_after_visitors(&mut self) {
        let now = Instant::now();
        while let Some(&(key, number, due, end)) = self.appointments.front() {
            if due > now {
                return;
            }
            self.appointments.pop_front();
            let Some((client, _)) = self
                .clients
                .get(key)
                .filter(|(_, seat)| matches!(*seat, Seat::Visitor(other) if other == number))
            else {
                continue;
            };
            let joined = client.joined();
            if now < end {
                let appointment = (key, number, now + VISITOR_PROBE, end);
                self.appointments.push_back(appointment);
                if joined {
                    self.publish(Owner::Visitor(number), 0);
                }
                continue;
            }
            self.remove(key);
        }
    }

    /// Publishes an update that every socket of the user must receive.
    pub fn update(&mut self, user: usize) {
        self.publish_to_user(user, false);
    }

    /// Publishes an update that the user receives if already subscribed.
    pub fn probe(&mut self, user: usize) {
        self.publish_to_user(user, true);
    }

    /// Publishes an update of somebody who has no socket.
    pub fn foreign(&mut self, number: u32) {
        self.publish(Owner::Visitor(number), 0);
    }

    fn publish_to_user(&mut self, user: usize, probing: bool) {
        if self.link.is_none() {
            return;
        }
        let seq = self.ledger.publish(user, probing);
        self.publish(Owner::User(user_number(user)), seq);
    }

    /// The first generation of Chat3's updates, about 670 bytes.
    fn publish(&mut self, owner: Owner, seq: u32) {
        let id = stamp(owner, seq, self.now());
        let Some(link) = &mut self.link else { return };
        let body = format!(
            r#"{{"_id":"{id}","tenantId":"{TENANT}","userId":"{owner}","dialogId":"dlg_8k2m4n6p0q1r3s5t7v9w","entityId":"msg_2b4d6f8h0j1k3m5n7p9q","eventId":"evt_507f1f77bcf86cd799439014","eventType":"message.create","data":{{"_id":"{id}","messageId":"msg_2b4d6f8h0j1k3m5n7p9q","dialogId":"dlg_8k2m4n6p0q1r3s5t7v9w","content":"Good morning! The delivery is due at ten o'clock, please have somebody at the door who can sign for it; the driver calls half an hour before.","senderId":"usr_x7m2n4k9","type":"text","meta":{{"channel":"support"}},"createdAt":"2025-11-01T09:30:00.000Z"}},"published":true,"publishedAt":"2025-11-01T09:30:00.050Z","createdAt":"2025-11-01T09:30:00.040Z"}}"#
        );
        let key = format!("user.{owner}.messageupdate");
        link.publish(&self.options.exchange, &key, body.as_bytes());
    }

    /// Prints the first error of a kind; the figures count the others.
    fn complain(&mut self, what: &str, bytes: &[u8]) {
        if !std::mem::replace(&mut self.complained, true) {
            let bytes = &bytes[..bytes.len().min(300)];
            eprintln!("loadgen: {what}: {}", String::from_utf8_lossy(bytes));
        }
    }
}

fn user_number(user: usize) -> u32 {
    u32::try_from(user).unwrap_or(u32::MAX)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
