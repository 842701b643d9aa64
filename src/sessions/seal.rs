//! What instances sign for each other: the `pid` of a session that any instance can resume,
//! and the places in the log that clients are told. Nothing of either is remembered.
//!
//! Keys are derived from `RECOVERY_SECRET` with HKDF (RFC 5869), signatures are HMAC-SHA-256.
//! A pid is signed together with its user and tenant, and a place together with the update
//! that stands there: of another user, or where another update stands now, neither is valid.
//!
//! Invariant: whoever does not know a secret makes no pid and no place that is accepted, and
//! learns from a place nothing about the update.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use ring::{
    hkdf::{self, HKDF_SHA256},
    hmac::{self, HMAC_SHA256},
};
use subtle::ConstantTimeEq;

use super::offset::{CHECK_BYTES, Place};
use crate::{broker::Delivery, config::Secret, user::User};

const SALT: &[u8] = b"chat3-gateway recovery";

/// Bytes of a pid's signature: as many as of its random part.
const SIGNATURE_BYTES: usize = 16;

/// Bytes of a `socket.id`, which is random text.
const ID_BYTES: usize = 16;

/// Key id, socket id, milliseconds, place, signature.
pub(super) const SEALED_BYTES: usize = 1 + ID_BYTES + 8 + 8 + CHECK_BYTES + SIGNATURE_BYTES;

/// No entry of a log has this offset: the session began where no place was known.
const NOWHERE: u64 = u64::MAX;

/// The keys; the newest comes first.
pub(super) struct Seal(Vec<Keys>);

struct Keys {
    id: u8,
    pids: hmac::Key,
    places: hmac::Key,
}

/// A signed pid, not verified yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sealed(pub(super) [u8; SEALED_BYTES]);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[pid]")
    }
}

/// What a pid says of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    /// The `socket.id`.
    pub(super) id: [u8; ID_BYTES],
    pub(super) begun: SystemTime,
    /// The newest update when the session began, which its client need not see.
    pub(super) start: Option<Place>,
}

impl Ticket {
    /// The session of the socket `id`, which begins now behind `start`.
    pub(super) fn new(id: impl fmt::Display, start: Option<Place>) -> Self {
        let mut bytes = [0; ID_BYTES];
        let text = id.to_string();
        // A longer id is never found again: its session is not resumed.
        for (byte, letter) in bytes.iter_mut().zip(text.bytes()) {
            *byte = letter;
        }
        Self {
            id: bytes,
            begun: SystemTime::now(),
            start,
        }
    }

    /// The `socket.id` as a number, to compare.
    pub(super) fn key(&self) -> u128 {
        u128::from_be_bytes(self.id)
    }

    /// The `socket.id` as its text.
    pub(super) fn id(&self) -> Option<&str> {
        let text = std::str::from_utf8(&self.id).ok()?;
        Some(text.trim_end_matches('\0'))
    }
}

impl Seal {
    /// Keys of each secret, and of the log's name.
    pub(super) fn new<'s>(secrets: impl Iterator<Item = &'s [u8]>, log: &str) -> Self {
        Self(secrets.map(|secret| Keys::new(secret, log)).collect())
    }

    /// Keys that no other instance has.
    pub(super) fn random(log: &str) -> Self {
        let secret: [u8; 32] = rand::random();
        Self::new([&secret[..]].into_iter(), log)
    }

    /// Signs a session of `user`.
    pub(super) fn seal(&self, user: &User, ticket: &Ticket) -> Sealed {
        let keys = &self.0[0];
        let mut bytes = [0; SEALED_BYTES];
        let since = ticket.begun.duration_since(SystemTime::UNIX_EPOCH);
        let millis = since.unwrap_or_default().as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        let nowhere = Place {
            offset: NOWHERE,
            check: [0; CHECK_BYTES],
        };
        let start = ticket.start.unwrap_or(nowhere);
        let fields: [&[u8]; 5] = [
            &[keys.id],
            &ticket.id,
            &millis.to_be_bytes(),
            &start.offset.to_be_bytes(),
            &start.check,
        ];
        let mut at = 0;
        for field in fields {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        let signature = keys.sign_pid(user, &bytes[..at]);
        bytes[at..].copy_from_slice(&signature);
        Sealed(bytes)
    }

    /// What a pid says, if it was signed here for `user`.
    pub(super) fn open(&self, user: &User, sealed: Sealed) -> Option<Ticket> {
        let (signed, signature) = sealed.0.split_at(SEALED_BYTES - SIGNATURE_BYTES);
        let is_signed = |keys: &&Keys| {
            keys.id == signed[0] && bool::from(keys.sign_pid(user, signed).ct_eq(signature))
        };
        self.0.iter().find(is_signed)?;
        let (id, rest) = signed[1..].split_first_chunk()?;
        let (millis, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (check, _) = rest.split_first_chunk()?;
        let millis = Duration::from_millis(u64::from_be_bytes(*millis));
        let place = Place {
            offset: u64::from_be_bytes(*offset),
            check: *check,
        };
        Some(Ticket {
            id: *id,
            begun: SystemTime::UNIX_EPOCH.checked_add(millis)?,
            start: Some(place).filter(|place| place.offset != NOWHERE),
        })
    }

    /// The place of an update of the log.
    pub(super) fn place(&self, delivery: &Delivery<'_>) -> Option<Place> {
        let offset = delivery.position?.offset;
        Some(Place {
            offset,
            check: self.0[0].check(offset, delivery),
        })
    }

    /// Whether `place` is that of `delivery`.
    pub(super) fn is_place(&self, place: Place, delivery: &Delivery<'_>) -> bool {
        let is_same = |keys: &Keys| {
            keys.check(place.offset, delivery)
                .ct_eq(&place.check)
                .into()
        };
        let offset = delivery.position.map(|position| position.offset);
        offset == Some(place.offset) && self.0.iter().any(is_same)
    }
}

impl Keys {
    fn new(secret: &[u8], log: &str) -> Self {
        let material = hkdf::Salt::new(HKDF_SHA256, SALT).extract(secret);
        let key = |purpose: &[u8]| -> [u8; 32] {
            let mut key = [0; 32];
            material
                .expand(&[purpose, log.as_bytes()], HMAC_SHA256)
                .and_then(|expanded| expanded.fill(&mut key))
                .expect("a key is not too long");
            key
        };
        Self {
            id: key(b"id")[0],
            pids: hmac::Key::new(HMAC_SHA256, &key(b"pid")),
            places: hmac::Key::new(HMAC_SHA256, &key(b"place")),
        }
    }

    fn sign_pid(&self, user: &User, signed: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut context = hmac::Context::with_key(&self.pids);
        context.update(signed);
        // Of a fixed length until here; ids contain no control characters.
        context.update(user.id.as_str().as_bytes());
        if let Some(tenant) = &user.tenant {
            context.update(b"\0");
            context.update(tenant.as_str().as_bytes());
        }
        first(context.sign())
    }

    fn check(&self, offset: u64, delivery: &Delivery<'_>) -> [u8; CHECK_BYTES] {
        let published = delivery.published_at;
        let published = published.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let published = published.map_or(0, |since| since.as_millis());
        let mut context = hmac::Context::with_key(&self.places);
        context.update(&offset.to_be_bytes());
        context.update(&published.to_be_bytes());
        context.update(&(delivery.routing_key.len() as u64).to_be_bytes());
        context.update(delivery.routing_key.as_bytes());
        context.update(delivery.body);
        first(context.sign())
    }
}

/// The first bytes of a signature.
fn first<const N: usize>(tag: hmac::Tag) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&tag.as_ref()[..N]);
    bytes
}

/// The secrets of a setting.
pub(super) fn bytes(secrets: &[Secret]) -> impl Iterator<Item = &[u8]> {
    let exposed = secrets.iter().filter_map(Secret::expose);
    exposed.map(str::as_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        broker::LogPosition,
        user::{TenantId, UserId},
    };

    fn seal(secrets: &[&str]) -> Seal {
        Seal::new(secrets.iter().map(|secret| secret.as_bytes()), "log")
    }

    fn user(id: &str, tenant: Option<&str>) -> User {
        User {
            id: UserId::parse(id).unwrap(),
            tenant: tenant.map(|tenant| TenantId::parse(tenant).unwrap()),
        }
    }

    fn delivery(offset: u64, body: &str) -> Delivery<'_> {
        Delivery {
            body: body.as_bytes(),
            routing_key: "user.a.update",
            published_at: None,
            position: Some(LogPosition { offset, number: 7 }),
        }
    }

    #[test]
    fn former_secrets_are_known_and_others_are_not() {
        let ticket = Ticket::new("0123456789abcdef", None);
        let alice = user("alice", None);
        let former = seal(&["former"]).seal(&alice, &ticket);
        let both = seal(&["new", "former"]);
        assert!(both.open(&alice, former).is_some());
        assert!(seal(&["new"]).open(&alice, former).is_none());
        assert!(
            seal(&["new"])
                .open(&alice, both.seal(&alice, &ticket))
                .is_some()
        );
        let place = seal(&["former"]).place(&delivery(3, "x")).unwrap();
        assert!(both.is_place(place, &delivery(3, "x")));
        assert!(!seal(&["new"]).is_place(place, &delivery(3, "x")));
        let elsewhere = Seal::new([&b"former"[..]].into_iter(), "another log");
        assert!(!elsewhere.is_place(place, &delivery(3, "x")));
    }

    #[test]
    fn a_place_is_that_of_one_update() {
        let seal = seal(&["secret"]);
        let place = seal.place(&delivery(3, "x")).unwrap();
        assert!(seal.is_place(place, &delivery(3, "x")));
        assert!(!seal.is_place(place, &delivery(3, "y")));
        assert!(!seal.is_place(place, &delivery(4, "x")));
    }

    proptest! {
        #[test]
        fn a_pid_says_what_was_sealed_to_its_user_alone(
            id in "[a-zA-Z0-9_-]{16}",
            offset in proptest::option::of(0..NOWHERE),
            check: [u8; CHECK_BYTES],
            names in ("[ab]{1,2}", proptest::option::of("[ab]{1,2}")),
            others in ("[ab]{1,2}", proptest::option::of("[ab]{1,2}")),
            flipped in 0..SEALED_BYTES * 8,
        ) {
            let seal = seal(&["secret"]);
            let start = offset.map(|offset| Place { offset, check });
            let ticket = Ticket::new(&id, start);
            let (owner, other) = (user(&names.0, names.1.as_deref()), user(&others.0, others.1.as_deref()));
            let sealed = seal.seal(&owner, &ticket);
            let opened = seal.open(&owner, sealed).unwrap();
            prop_assert_eq!((opened.id(), opened.start, opened.key()), (Some(&*id), start, ticket.key()));
            let late = ticket.begun.duration_since(opened.begun).unwrap();
            prop_assert!(late < Duration::from_millis(1));
            prop_assert_eq!(seal.open(&other, sealed).is_some(), owner == other);
            let mut forged = sealed;
            forged.0[flipped / 8] ^= 1 << (flipped % 8);
            prop_assert!(seal.open(&owner, forged).is_none());
        }
    }
}
