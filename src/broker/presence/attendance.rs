//! The users who have sockets at this instance, and which of them changed since that was last
//! reported.
//!
//! Invariant: what was reported, together with what `Attendance::changes` still has, is what is
//! true. While nobody listens, nothing is remembered but what is true.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::Notify, time::Instant};

use super::words::{Here, millis_between};
use crate::user::User;

/// Who has sockets here. Shared by the sessions, which say so, and the broker, which reports it.
#[derive(Debug, Default)]
pub struct Attendance {
    book: Mutex<Book>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Book {
    /// Users with sockets, and users who left and are not reported as gone yet.
    users: HashMap<User, Entry>,
    /// Users with an unreported change, each once.
    changes: Vec<User>,
    /// Whether changes are reported one by one: everything before has been.
    is_listening: bool,
}

#[derive(Debug)]
struct Entry {
    sockets: u32,
    /// When the first of them came, or the last went.
    since: Instant,
    /// What was reported last.
    reported: u32,
    is_changed: bool,
}

impl Attendance {
    /// Notes that `user` has this many sockets from `now` on.
    pub fn note(&self, user: &User, sockets: usize, now: Instant) {
        let sockets = u32::try_from(sockets).unwrap_or(u32::MAX);
        let mut book = self.book();
        let book = &mut *book;
        if !book.is_listening && sockets == 0 {
            book.users.remove(user);
            return;
        }
        let entry = match book.users.get_mut(user) {
            Some(entry) => entry,
            None if sockets == 0 => return,
            None => book.users.entry(user.clone()).or_insert(Entry {
                sockets: 0,
                since: now,
                reported: 0,
                is_changed: false,
            }),
        };
        if (entry.sockets == 0) != (sockets == 0) {
            entry.since = now;
        }
        entry.sockets = sockets;
        if book.is_listening && !std::mem::replace(&mut entry.is_changed, true) {
            book.changes.push(user.clone());
            if book.changes.len() == 1 {
                self.changed.notify_one();
            }
        }
    }

    /// Everybody who is here. Changes are remembered from now on.
    pub(crate) fn everybody(&self, now: Instant) -> Vec<Here> {
        let mut book = self.book();
        book.is_listening = true;
        book.changes = Vec::new();
        book.users.retain(|_, entry| entry.sockets > 0);
        let reported = book.users.iter_mut().map(|(user, entry)| {
            entry.reported = entry.sockets;
            entry.is_changed = false;
            entry.report(user, now)
        });
        reported.collect()
    }

    /// The changes that were not reported yet, of at most so many users.
    pub(crate) fn changes(&self, most: usize, now: Instant) -> Vec<Here> {
        let mut book = self.book();
        let book = &mut *book;
        let most = most.min(book.changes.len());
        let mut changes = Vec::with_capacity(most);
        for user in book.changes.drain(..most) {
            let Some(entry) = book.users.get_mut(&user) else {
                continue;
            };
            entry.is_changed = false;
            // Whoever came and went meanwhile is no news.
            if entry.sockets != std::mem::replace(&mut entry.reported, entry.sockets) {
                changes.push(entry.report(&user, now));
            }
            if entry.sockets == 0 {
                book.users.remove(&user);
            }
        }
        changes
    }

    /// Nobody listens any more: the next report is of everybody.
    pub(crate) fn forget_changes(&self) {
        let mut book = self.book();
        book.is_listening = false;
        book.changes = Vec::new();
        book.users.retain(|_, entry| {
            entry.is_changed = false;
            entry.sockets > 0
        });
    }

    /// Returns when there is a change to report. May be dropped at any time.
    pub(crate) async fn changed(&self) {
        while self.book().changes.is_empty() {
            self.changed.notified().await;
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn report(&self, user: &User, now: Instant) -> Here {
        Here {
            user: user.clone(),
            sockets: self.sockets,
            age: millis_between(self.since, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::user::UserId;

    fn user(id: &str) -> User {
        User {
            id: UserId::parse(id).unwrap(),
            tenant: None,
        }
    }

    fn ids(reported: &[Here]) -> Vec<(&str, u32)> {
        let of = |here: &'_ Here| here.sockets;
        let mut ids: Vec<_> = reported
            .iter()
            .map(|here| (here.user.id.as_str(), of(here)))
            .collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn changes_are_told_once_and_a_visit_between_two_reports_not_at_all() {
        let (attendance, now) = (Attendance::default(), Instant::now());
        attendance.note(&user("early"), 1, now);
        attendance.note(&user("gone"), 1, now);
        attendance.note(&user("gone"), 0, now);
        assert_eq!(ids(&attendance.everybody(now)), [("early", 1)]);
        for (id, sockets) in [
            ("early", 2),
            ("short", 1),
            ("short", 0),
            ("a", 1),
            ("early", 1),
        ] {
            attendance.note(&user(id), sockets, now);
        }
        assert_eq!(ids(&attendance.changes(10, now)), [("a", 1)]);
        assert!(attendance.changes(10, now).is_empty());
        attendance.note(&user("a"), 0, now);
        let later = now + Duration::from_millis(1_500);
        let changes = attendance.changes(10, later);
        assert_eq!(ids(&changes), [("a", 0)]);
        assert_eq!(changes[0].age, 1_500);
        assert_eq!(ids(&attendance.everybody(now)), [("early", 1)]);
    }

    #[test]
    fn a_report_has_at_most_so_many_users() {
        let (attendance, now) = (Attendance::default(), Instant::now());
        attendance.everybody(now);
        for id in ["a", "b", "c"] {
            attendance.note(&user(id), 1, now);
        }
        let sizes: Vec<_> = (0..3).map(|_| attendance.changes(2, now).len()).collect();
        assert_eq!(sizes, [2, 1, 0]);
    }

    #[test]
    fn nothing_is_remembered_of_who_left_while_nobody_listens() {
        let (attendance, now) = (Attendance::default(), Instant::now());
        attendance.everybody(now);
        attendance.note(&user("a"), 1, now);
        attendance.note(&user("a"), 0, now);
        attendance.forget_changes();
        for id in 0..100 {
            attendance.note(&user(&id.to_string()), 1, now);
            attendance.note(&user(&id.to_string()), 0, now);
        }
        let book = attendance.book();
        assert_eq!((book.users.len(), book.changes.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_waiter_is_told_of_changes_that_came_before_it_waited() {
        let attendance = Attendance::default();
        attendance.everybody(Instant::now());
        attendance.note(&user("a"), 1, Instant::now());
        attendance.changed().await;
        attendance.changes(1, Instant::now());
        let waiting = tokio::time::timeout(Duration::from_millis(50), attendance.changed());
        assert!(waiting.await.is_err());
    }
}
