//! What the keeper knows of the fleet: who has sockets where, and what consumers were told.
//! Decides what they are told next, and when.
//!
//! Pure: time is an argument, in milliseconds, and never goes back. Invariant: whoever has a
//! socket and was not told to be online is due, and so is, after the grace, whoever has none and
//! was not told to be offline. All other users have no entry.

mod person;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use self::person::{Person, Said};
use super::{
    Asked, State,
    words::{Event, Here, Line, Millis, Page, Report},
};
use crate::user::{User, UserId};

/// Most lines of a page: some 60 KB at most of the longest ids, and usually a fifth of that.
pub const PAGE_LINES: usize = 256;

/// The fleet, as its keeper knows it.
#[derive(Debug)]
pub struct Fleet {
    grace: u64,
    /// By id, since a question may leave the tenant open.
    people: HashMap<UserId, Vec<Person>>,
    instances: HashMap<Arc<str>, Instance>,
    /// Who may have to be announced, and when to look.
    due: BTreeSet<(Millis, User)>,
    /// How many users consumers believe to be online.
    announced: usize,
    /// The latest time of an event.
    at: Millis,
    /// The number of the latest page.
    page: u64,
}

/// What is known of one instance.
#[derive(Debug)]
struct Instance {
    run: u64,
    next: u64,
    /// Numbers its lists of everybody: who is not on the latest has left.
    list: u64,
    /// Whether a list of everybody has begun, and nothing of it was lost.
    is_listing: bool,
}

/// What follows from a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nothing.
    Known,
    /// Reports before it are missing: the instance must report everybody.
    Gap,
}

impl Fleet {
    /// What the ledger says, whatever the order of its pages. Whoever was online counts as gone
    /// from `now` on until an instance reports them.
    pub fn from_ledger(grace: u64, mut pages: Vec<Page>, now: Millis) -> Self {
        pages.sort_by_key(|page| page.number);
        let last = pages.last().filter(|page| page.announces);
        let doubtful = last.map(|page| page.number);
        let mut fleet = Self {
            grace,
            people: HashMap::new(),
            instances: HashMap::new(),
            due: BTreeSet::new(),
            announced: 0,
            at: pages.iter().map(|page| page.at).max().unwrap_or_default(),
            page: pages.last().map_or(0, |page| page.number),
        };
        let mut lines: HashMap<User, (Said, Line)> = HashMap::new();
        for page in pages {
            for line in page.lines {
                let said = match line.online {
                    _ if doubtful == Some(page.number) => Said::Either,
                    Some(true) => Said::Online,
                    Some(false) => Said::Offline,
                    None => Said::Either,
                };
                match said {
                    Said::Offline => lines.remove(&line.user),
                    _ => lines.insert(line.user.clone(), (said, line)),
                };
            }
        }
        for (user, (said, line)) in lines {
            fleet.change(&user, |person| {
                person.said = said;
                person.left = now;
                person.instance = line.instance.into();
                person.since = match line.online {
                    Some(false) => Millis::MAX,
                    _ => line.since,
                };
            });
        }
        fleet
    }

    /// Takes in what an instance reports.
    pub fn hear(&mut self, report: Report, now: Millis) -> Heard {
        let name: Arc<str> = report.from.as_str().into();
        let mut heard = Heard::Known;
        let instance = self.instances.entry(name.clone()).or_insert(Instance {
            run: report.run,
            // The first report of a run begins a list.
            next: 0,
            list: 0,
            is_listing: false,
        });
        if report.run < instance.run {
            // Of a connection that ended before.
            return heard;
        }
        if report.begins {
            instance.list += 1;
            instance.is_listing = true;
        } else if report.run > instance.run || report.number > instance.next {
            instance.is_listing = false;
            heard = Heard::Gap;
        } else if report.number < instance.next {
            return heard;
        }
        instance.run = report.run;
        instance.next = report.number + 1;
        let list = instance.list;
        let is_complete = report.ends && std::mem::take(&mut instance.is_listing);
        for Here { user, sockets, age } in report.users {
            let at = now.saturating_sub(age);
            self.change(&user, |person| {
                person.has(&name, sockets, list, at);
            });
        }
        if is_complete {
            self.depart(&name, list, now);
        }
        heard
    }

    /// An instance is gone, with all of its sockets.
    pub fn lose(&mut self, name: &str, now: Millis) {
        if let Some((name, _)) = self.instances.remove_entry(name) {
            self.depart(&name, u64::MAX, now);
        }
    }

    /// The instances that have reported.
    pub fn instances(&self) -> impl Iterator<Item = &str> {
        self.instances.keys().map(|name| &**name)
    }

    /// Users have left an instance who are not on its list of this number, or a later one.
    fn depart(&mut self, name: &str, list: u64, now: Millis) {
        let mut left = Vec::new();
        for (id, people) in &self.people {
            let gone = people.iter().filter(|one| one.is_listed_before(name, list));
            left.extend(gone.map(|person| User {
                id: id.clone(),
                tenant: person.tenant.clone(),
            }));
        }
        for user in left {
            self.change(&user, |person| person.has(name, 0, list, now));
        }
    }

    /// When there may be something to announce.
    pub fn next_due(&self) -> Option<Millis> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Decides what consumers are told now, of at most [`PAGE_LINES`] users, and takes it for
    /// told. The page must be in the ledger before the first event is published, and every event
    /// before the next page is written.
    pub fn announce(&mut self, now: Millis) -> Option<(Page, Vec<Event>)> {
        let mut events = Vec::new();
        while events.len() < PAGE_LINES
            && let Some((at, _)) = self.due.first()
            && *at <= now
            && let Some((_, user)) = self.due.pop_first()
        {
            self.at = self.at.max(now);
            let at = self.at;
            self.change(&user, |person| {
                person.due = None;
                events.extend(person.announce(&user, at));
            });
        }
        if events.is_empty() {
            return None;
        }
        let line = |event: &Event| Line {
            user: event.user.clone(),
            online: Some(event.online),
            since: event.since,
            instance: event.instance.clone(),
        };
        let lines = events.iter().map(line).collect();
        Some((self.new_page(true, lines), events))
    }

    /// The whole ledger anew: what earlier pages say is in these.
    pub fn pages(&mut self) -> Vec<Page> {
        let mut lines = Vec::new();
        for (id, people) in &self.people {
            for person in people {
                lines.extend(person.line(id));
            }
        }
        let mut pages: Vec<_> = lines
            .chunks(PAGE_LINES)
            .map(|lines| self.new_page(false, lines.to_vec()))
            .collect();
        if pages.is_empty() {
            // It keeps the time and the number.
            pages.push(self.new_page(false, Vec::new()));
        }
        pages
    }

    fn new_page(&mut self, announces: bool, lines: Vec<Line>) -> Page {
        self.page += 1;
        Page {
            number: self.page,
            at: self.at,
            announces,
            lines,
        }
    }

    /// How many users consumers believe to be online.
    pub fn announced(&self) -> usize {
        self.announced
    }

    /// Who is online, as consumers were or are about to be told.
    pub fn state(&self, asked: &Asked) -> State {
        let people = self.people.get(&asked.id).into_iter().flatten();
        let mut state = State::default();
        for person in people {
            if asked.tenant.is_some() && asked.tenant != person.tenant {
                continue;
            }
            state.sockets += person.sockets();
            if person.is_here() || person.said == Said::Online {
                let since = state.since.unwrap_or(u64::MAX).min(person.since);
                (state.online, state.since) = (true, Some(since));
            }
        }
        state
    }

    /// Changes what is known of a user, and what follows from that.
    fn change(&mut self, user: &User, change: impl FnOnce(&mut Person)) {
        if !self.people.contains_key(&user.id) {
            self.people.insert(user.id.clone(), Vec::with_capacity(1));
        }
        let people = self.people.get_mut(&user.id).expect("it was inserted");
        let is_one = |person: &Person| person.tenant == user.tenant;
        let index = people.iter().position(is_one).unwrap_or_else(|| {
            people.push(Person::new(user.tenant.clone()));
            people.len() - 1
        });
        let person = &mut people[index];
        let was_announced = person.said == Said::Online;
        change(person);
        let due = person.when_due(self.grace);
        if let Some(before) = std::mem::replace(&mut person.due, due)
            && due != Some(before)
        {
            self.due.remove(&(before, user.clone()));
        }
        if let Some(due) = due {
            self.due.insert((due, user.clone()));
        }
        match (was_announced, person.said == Said::Online) {
            (false, true) => self.announced += 1,
            (true, false) => self.announced -= 1,
            _ => {}
        }
        if person.is_forgettable() {
            people.swap_remove(index);
            if people.is_empty() {
                self.people.remove(&user.id);
            }
        }
    }
}
