//! The ledger: the queue that remembers what consumers were told, from one keeper to the next.
//!
//! A page is in the ledger before the first of its events is published. From time to time all
//! is written anew and the older pages are taken out. Between the two, everything is there twice,
//! and the later pages hold.

use std::sync::{Mutex, MutexGuard, PoisonError};

use amqprs::channel::QueueDeclareArguments;
use tracing::warn;

use super::{
    super::link_error::LinkError,
    names::{Names, TO_LEDGER},
    wire::{Letter, Line},
};
use crate::broker::presence::{
    fleet::{Fleet, PAGE_LINES},
    words::Page,
};

/// Pages that are not worth the writing of a new ledger.
const SPARE_PAGES: usize = 64;

/// Pages that are written before their confirms are waited for.
const AT_ONCE: usize = 16;

pub(super) struct Ledger {
    /// The channel that takes messages out. The keeper's channel has delivery tags of its own.
    reader: Line,
    name: String,
    fleet: String,
    /// Pages in the queue.
    pages: usize,
}

impl Ledger {
    /// Reads the ledger, and takes nothing out of it but a page that ended the connection of earlier
    /// readings. Where RabbitMQ puts pages that were not acknowledged is not known, so that takes
    /// three readings: the first one ends, the second one takes page for page to the end of the
    /// ledger until it ends as well, and the page is the only one that comes back, to the front.
    pub(super) async fn read(
        reader: Line,
        by: &mut Line,
        names: &Names,
        doubt: &Doubt,
    ) -> Result<(Self, Vec<Page>), LinkError> {
        let mut ledger = Self {
            reader,
            name: names.ledger.clone(),
            fleet: names.fleet.clone(),
            pages: 0,
        };
        match doubt.next() {
            Reading::Whole => {}
            Reading::PageByPage => {
                for _ in 0..ledger.count().await? {
                    let Some(page) = ledger.reader.get(&ledger.name, true).await? else {
                        break;
                    };
                    ledger.send(by, vec![page]).await?;
                    ledger.reader.acknowledge(0).await?;
                }
            }
            Reading::WithoutFirst => {
                warn!(
                    "RabbitMQ presence ledger: a page that the AMQP library cannot read is taken out"
                );
                if let Some(another) = ledger.reader.get(&ledger.name, false).await? {
                    ledger.send(by, vec![another]).await?;
                }
            }
        }
        doubt.begin();
        let mut pages = Vec::new();
        while let Some(body) = ledger.reader.get(&ledger.name, true).await? {
            ledger.pages += 1;
            match serde_json::from_slice(&body) {
                Ok(page) => pages.push(page),
                Err(error) => warn!(%error, "RabbitMQ presence ledger: a page cannot be read"),
            }
        }
        doubt.end();
        Ok((ledger, pages))
    }

    async fn count(&self) -> Result<u32, LinkError> {
        let passive = QueueDeclareArguments::new(&self.name)
            .passive(true)
            .finish();
        let asked = self
            .reader
            .ask(|channel| async move { channel.queue_declare(passive).await });
        Ok(asked.await?.map_or(0, |(_, messages, _)| messages))
    }

    /// Writes all of it anew, after [`Ledger::read`], and takes out what was read.
    pub(super) async fn renew(
        &mut self,
        by: &mut Line,
        fleet: &mut Fleet,
    ) -> Result<(), LinkError> {
        let written = self.write_all(by, fleet).await?;
        self.reader.acknowledge(0).await?;
        self.pages = written;
        Ok(())
    }

    /// Writes a page. Later, when it is worth it, see [`Ledger::tidy`].
    pub(super) async fn write(&mut self, by: &mut Line, page: &Page) -> Result<(), LinkError> {
        self.send(by, vec![written(page)]).await?;
        self.pages += 1;
        Ok(())
    }

    /// Writes all of it anew if it is much longer than it has to be.
    pub(super) async fn tidy(&mut self, by: &mut Line, fleet: &mut Fleet) -> Result<(), LinkError> {
        let needed = fleet.announced().div_ceil(PAGE_LINES);
        if self.pages <= 2 * needed + SPARE_PAGES {
            return Ok(());
        }
        let written = self.write_all(by, fleet).await?;
        for _ in 0..self.pages {
            if self.reader.get(&self.name, false).await?.is_none() {
                break;
            }
        }
        self.pages = written;
        Ok(())
    }

    async fn write_all(&self, by: &mut Line, fleet: &mut Fleet) -> Result<usize, LinkError> {
        let pages = fleet.pages();
        for some in pages.chunks(AT_ONCE) {
            self.send(by, some.iter().map(written).collect()).await?;
        }
        Ok(pages.len())
    }

    async fn send(&self, by: &mut Line, pages: Vec<Vec<u8>>) -> Result<(), LinkError> {
        let letter = |body| Letter {
            exchange: self.fleet.clone(),
            routing_key: TO_LEDGER.to_owned(),
            body,
            mandatory: true,
            persistent: true,
        };
        let letters = pages.into_iter().map(letter).collect();
        match by.publish(letters).await?.is_empty() {
            true => Ok(()),
            false => Err(LinkError::Amqp("the ledger is gone".to_owned())),
        }
    }
}

fn written(page: &Page) -> Vec<u8> {
    serde_json::to_vec(page).expect("plain JSON")
}

/// How to read the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    Whole,
    PageByPage,
    WithoutFirst,
}

/// Whether a page ended the connection of this instance's last reading. The end of the connection
/// for another reason ends the doubt.
#[derive(Debug, Default)]
pub(super) struct Doubt(Mutex<Reading>);

impl Doubt {
    /// How to begin this reading; the next one goes a step further.
    fn next(&self) -> Reading {
        let mut reading = self.reading();
        let next = match *reading {
            Reading::Whole => Reading::PageByPage,
            Reading::PageByPage => Reading::WithoutFirst,
            Reading::WithoutFirst => Reading::Whole,
        };
        std::mem::replace(&mut *reading, next)
    }

    /// The whole ledger is being read.
    fn begin(&self) {
        *self.reading() = Reading::PageByPage;
    }

    pub(super) fn end(&self) {
        *self.reading() = Reading::Whole;
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
