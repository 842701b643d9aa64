//! Tokens that were refused lately. A client that comes back with one of them waits for its
//! answer, longer each time, and costs no verification.
//!
//! Holds no token, but a keyed hash of each token together with the client it came from:
//! nobody can slow another client down by presenting that client's token.
//!
//! Invariants: the memory for tokens and the number of waiting clients are bounded; a
//! verdict is repeated for [`VERDICT_LASTS`] only, since keys, revocations and times
//! change.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::auth::Refusal;

/// Tokens that are remembered at once.
const MAX_TOKENS: usize = 10_000;

/// Clients that wait for their answer at once.
const MAX_WAITING: usize = 1_024;

/// The first wait; each next one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The longest wait: half of the 10 s after which a session without a socket ends.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How long a verdict is repeated without another verification.
const VERDICT_LASTS: Duration = Duration::from_secs(10);

/// How long after its last refusal a token is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The tokens that were refused lately, by client.
pub struct RefusedTokens {
    hasher: RandomState,
    tokens: Mutex<HashMap<u64, Refused>>,
    waiting: Semaphore,
}

struct Refused {
    times: u32,
    last: Instant,
    verdict: Refusal,
    /// When the verdict was reached.
    found: Instant,
}

/// What awaits a client that comes back with a refused token.
#[derive(Debug, PartialEq, Eq)]
pub struct Again {
    pub wait: Duration,
    /// The last verdict, if it still holds.
    pub verdict: Option<Refusal>,
}

impl RefusedTokens {
    pub fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            tokens: Mutex::default(),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }

    /// What awaits this client, if it was refused with this token lately.
    pub fn find(&self, client: IpAddr, token: &str) -> Option<Again> {
        self.find_at(self.key(client, token), Instant::now())
    }

    /// Remembers that this client was refused with this token.
    pub fn note(&self, client: IpAddr, token: &str, verdict: Refusal) {
        self.note_at(self.key(client, token), verdict, Instant::now());
    }

    /// Forgets a token that was accepted.
    pub fn forget(&self, client: IpAddr, token: &str) {
        self.lock().remove(&self.key(client, token));
    }

    /// A place to wait in. `None` while too many clients wait.
    pub fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.waiting.try_acquire().ok()
    }

    fn key(&self, client: IpAddr, token: &str) -> u64 {
        self.hasher.hash_one((client, token))
    }

    fn find_at(&self, key: u64, now: Instant) -> Option<Again> {
        let mut tokens = self.lock();
        let refused = tokens.get_mut(&key)?;
        let since_last = now.saturating_duration_since(refused.last);
        let doublings = refused.times.saturating_sub(1).min(10);
        let wait = (FIRST_WAIT * 2_u32.pow(doublings)).min(LONGEST_WAIT);
        if since_last > REMEMBERED {
            tokens.remove(&key);
            return None;
        }
        let is_fresh = now.saturating_duration_since(refused.found) < VERDICT_LASTS;
        let verdict = Some(refused.verdict).filter(|verdict| is_fresh && verdict.lasts());
        refused.times = refused.times.saturating_add(1);
        refused.last = now;
        Some(Again { wait, verdict })
    }

    fn note_at(&self, key: u64, verdict: Refusal, now: Instant) {
        let mut tokens = self.lock();
        if let Some(refused) = tokens.get_mut(&key) {
            (refused.verdict, refused.found) = (verdict, now);
            return;
        }
        if tokens.len() >= MAX_TOKENS {
            // Tokens that came once go first: a flood of made-up ones fills the memory again.
            tokens.retain(|_, refused| refused.times > 1 && refused.is_recent(now));
            if tokens.len() >= MAX_TOKENS {
                tokens.clear();
            }
        }
        let refused = Refused {
            times: 1,
            last: now,
            verdict,
            found: now,
        };
        tokens.insert(key, refused);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Refused>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refused {
    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) <= REMEMBERED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    #[test]
    fn each_return_waits_longer_up_to_a_limit_and_a_pause_ends_it() {
        let (tokens, now) = (RefusedTokens::new(), Instant::now());
        let key = tokens.key(client(1), "t");
        assert_eq!(tokens.find_at(key, now), None);
        tokens.note_at(key, Refusal::TokenExpired, now);
        let waits: Vec<_> = (0..40)
            .map(|_| tokens.find_at(key, now).unwrap().wait.as_millis())
            .collect();
        assert_eq!(waits[..5], [500, 1_000, 2_000, 4_000, 5_000]);
        assert_eq!(waits[39], 5_000);
        let later = now + REMEMBERED + Duration::from_secs(1);
        assert_eq!(tokens.find_at(key, later), None);
    }

    #[test]
    fn a_verdict_is_repeated_for_a_while_and_only_if_it_lasts() {
        let (tokens, now) = (RefusedTokens::new(), Instant::now());
        let find = |verdict, after| {
            let key = tokens.key(client(1), verdict);
            tokens.find_at(key, now + after).unwrap().verdict
        };
        for refusal in [Refusal::TokenExpired, Refusal::TokenRevoked] {
            tokens.note_at(tokens.key(client(1), refusal.label()), refusal, now);
        }
        let soon = Duration::from_secs(5);
        assert_eq!(find("token_expired", soon), Some(Refusal::TokenExpired));
        assert_eq!(find("token_expired", VERDICT_LASTS), None);
        assert_eq!(find("token_revoked", soon), None);
    }

    #[test]
    fn only_the_client_that_was_refused_waits_and_only_with_that_token() {
        let tokens = RefusedTokens::new();
        tokens.note(client(1), "t", Refusal::TokenInvalid);
        assert!(tokens.find(client(1), "t").is_some());
        assert!(tokens.find(client(1), "u").is_none());
        assert!(tokens.find(client(2), "t").is_none());
        tokens.forget(client(1), "t");
        assert!(tokens.find(client(1), "t").is_none());
    }

    #[test]
    fn tokens_that_come_once_push_out_none_that_came_again_and_memory_is_bounded() {
        let (tokens, now) = (RefusedTokens::new(), Instant::now());
        let returns = tokens.key(client(1), "t");
        tokens.note_at(returns, Refusal::TokenInvalid, now);
        tokens.find_at(returns, now);
        for number in 0..3 * MAX_TOKENS as u64 {
            tokens.note_at(number, Refusal::TokenInvalid, now);
            assert!(tokens.lock().len() <= MAX_TOKENS);
        }
        assert!(tokens.find_at(returns, now).is_some());
    }
}
