//! The ledger: the queue that remembers what consumers were told, from one keeper to the next.
//!
//! A page is in the ledger before the first of its events is published. From time to time all
//! is written anew and the older pages are taken out. Between the two, everything is there twice,
//! and the later pages hold.

use std::sync::atomic::{AtomicUsize, Ordering};

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
    /// Reads the ledger, without taking anything out of it. A page that ends the connection would end
    /// every further one: `unreadable` remembers its number, counted from 1, and the next reading
    /// takes that page out.
    pub(super) async fn read(
        reader: Line,
        names: &Names,
        unreadable: &AtomicUsize,
    ) -> Result<(Self, Vec<Page>), LinkError> {
        let mut pages = Vec::new();
        let mut ledger = Self {
            reader,
            name: names.ledger.clone(),
            fleet: names.fleet.clone(),
            pages: 0,
        };
        let taken_out = unreadable.swap(0, Ordering::Relaxed);
        loop {
            let number = ledger.pages + 1;
            if number == taken_out {
                warn!(
                    "RabbitMQ presence ledger: a page that the AMQP library cannot read is taken out"
                );
            } else {
                unreadable.store(number, Ordering::Relaxed);
            }
            let got = ledger.reader.get(&ledger.name, number != taken_out).await?;
            unreadable.store(0, Ordering::Relaxed);
            let Some(body) = got else { break };
            ledger.pages += 1;
            match serde_json::from_slice(&body) {
                Ok(page) => pages.push(page),
                Err(error) => warn!(%error, "RabbitMQ presence ledger: a page cannot be read"),
            }
        }
        Ok((ledger, pages))
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
        self.send(by, std::slice::from_ref(page)).await?;
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
            self.send(by, some).await?;
        }
        Ok(pages.len())
    }

    async fn send(&self, by: &mut Line, pages: &[Page]) -> Result<(), LinkError> {
        let letter = |page| Letter {
            persistent: true,
            ..Letter::within(&self.fleet, TO_LEDGER, page)
        };
        let letters = pages.iter().map(letter).collect();
        match by.publish(letters).await?.is_empty() {
            true => Ok(()),
            false => Err(LinkError::Amqp("the ledger is gone".to_owned())),
        }
    }
}
