//! One user of the fleet: the sockets by instance, and what consumers were told.

use std::sync::Arc;

use super::super::words::{Event, Line, Millis};
use crate::user::{TenantId, User, UserId};

/// What consumers were told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// That the user is offline, or nothing.
    Offline,
    Online,
    /// One or the other: a keeper ended while it told them.
    Either,
}

#[derive(Debug)]
pub(super) struct Person {
    pub(super) tenant: Option<TenantId>,
    /// Where the sockets are. Most users are at one instance.
    places: Vec<Place>,
    pub(super) said: Said,
    /// Since when the user is online; meaningless while offline.
    pub(super) since: Millis,
    /// When the last socket went.
    pub(super) left: Millis,
    /// Where the first socket came, or the last one went.
    pub(super) instance: Arc<str>,
    /// The entry among those that are due.
    pub(super) due: Option<Millis>,
}

#[derive(Debug)]
struct Place {
    instance: Arc<str>,
    sockets: u32,
    /// The instance's latest list that has the user.
    list: u64,
}

impl Person {
    pub(super) fn new(tenant: Option<TenantId>) -> Self {
        Self {
            tenant,
            places: Vec::new(),
            said: Said::Offline,
            since: 0,
            left: 0,
            instance: "".into(),
            due: None,
        }
    }

    pub(super) fn is_here(&self) -> bool {
        !self.places.is_empty()
    }

    /// Over all instances.
    pub(super) fn sockets(&self) -> u64 {
        self.places
            .iter()
            .map(|place| u64::from(place.sockets))
            .sum()
    }

    /// The user has this many sockets at an instance, since `at`.
    pub(super) fn has(&mut self, instance: &str, sockets: u32, list: u64, at: Millis) {
        let was_here = self.is_here();
        let index = self
            .places
            .iter()
            .position(|one| &*one.instance == instance);
        match (index, sockets) {
            (None, 0) => return,
            (Some(index), 0) => {
                self.instance = self.places.swap_remove(index).instance;
            }
            (Some(index), _) => {
                let place = &mut self.places[index];
                (place.sockets, place.list) = (sockets, list);
            }
            (None, _) => self.places.push(Place {
                instance: instance.into(),
                sockets,
                list,
            }),
        }
        match (was_here, self.is_here()) {
            (true, false) => self.left = at,
            (false, true) => {
                self.instance = instance.into();
                self.since = match self.said {
                    Said::Offline => at,
                    // Whoever returns within the grace was never away.
                    Said::Online | Said::Either => self.since.min(at),
                };
            }
            _ => {}
        }
    }

    /// Whether the user was at the instance when it made an earlier list than this one.
    pub(super) fn is_listed_before(&self, instance: &str, list: u64) -> bool {
        let mut places = self.places.iter();
        places.any(|place| &*place.instance == instance && place.list < list)
    }

    /// When consumers have to be told something.
    pub(super) fn when_due(&self, grace: u64) -> Option<Millis> {
        match (self.is_here(), self.said) {
            (true, Said::Online) | (false, Said::Offline) => None,
            (true, Said::Offline | Said::Either) => Some(0),
            (false, Said::Online | Said::Either) => Some(self.left.saturating_add(grace)),
        }
    }

    /// Nothing is known, and nothing due.
    pub(super) fn is_forgettable(&self) -> bool {
        !self.is_here() && self.said == Said::Offline
    }

    /// Tells consumers what is true, if they do not know it.
    pub(super) fn announce(&mut self, user: &User, at: Millis) -> Option<Event> {
        let online = self.is_here();
        let said = if online { Said::Online } else { Said::Offline };
        if std::mem::replace(&mut self.said, said) == said {
            return None;
        }
        Some(Event {
            user: user.clone(),
            online,
            at,
            since: if online { self.since } else { self.left }.min(at),
            instance: self.instance.to_string(),
            sockets: self.sockets(),
        })
    }

    /// What the ledger has to say.
    pub(super) fn line(&self, id: &UserId) -> Option<Line> {
        let online = match self.said {
            Said::Offline => return None,
            Said::Online => Some(true),
            Said::Either => None,
        };
        Some(Line {
            user: User {
                id: id.clone(),
                tenant: self.tenant.clone(),
            },
            online,
            since: self.since,
            instance: self.instance.to_string(),
        })
    }
}
