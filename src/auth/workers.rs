//! Verifies slow signatures on a few threads beside those that serve sockets.
//!
//! Invariants: clients take turns, whatever any of them asks for, so that a client waits
//! for no more than a few verifications of each other client; the number of waiting jobs
//! is bounded.

use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::available_parallelism,
};

use tokio::{sync::Semaphore, task::spawn_blocking};

/// Jobs that wait at once: about as many as a worker does in a second. Each holds a CONNECT
/// of 64 KiB at most. A client that is turned away soon comes back.
const MAX_WAITING: usize = 4_096;

/// Most worker threads; a machine with few cores needs its cores for sockets.
const MAX_WORKERS: usize = 4;

/// The worker threads and the queues before them.
pub struct Workers {
    count: usize,
    /// The common queue: first come, first served.
    free: Semaphore,
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    by_client: HashMap<IpAddr, Queue>,
    waiting: usize,
}

/// One client's jobs. As many of them as there are workers may stand in the common queue;
/// the others wait here.
struct Queue {
    turns: Arc<Semaphore>,
    jobs: usize,
}

/// Why a job was not done.
#[derive(Debug, PartialEq, Eq)]
pub enum NotDone {
    /// Too many jobs wait.
    Full,
    /// The job was no longer wanted when its turn came.
    Unwanted,
}

impl Workers {
    pub fn new() -> Self {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        Self::of((cores / 2).clamp(1, MAX_WORKERS))
    }

    fn of(count: usize) -> Self {
        Self {
            count,
            free: Semaphore::new(count),
            queues: Mutex::default(),
        }
    }

    /// Does `job` for `client` when its turn comes, if the job `is_wanted` then.
    pub async fn run<T: Send + 'static>(
        &self,
        client: IpAddr,
        is_wanted: impl Fn() -> bool,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        let place = self.queue(client).ok_or(NotDone::Full)?;
        let open = "the semaphores are never closed";
        let _turn = place.turns.acquire().await.expect(open);
        // An unwanted job leaves before it takes a place in the common queue.
        if !is_wanted() {
            return Err(NotDone::Unwanted);
        }
        let _worker = self.free.acquire().await.expect(open);
        if !is_wanted() {
            return Err(NotDone::Unwanted);
        }
        // An error means that the runtime shuts down, or that the job panicked.
        spawn_blocking(job).await.map_err(|_| NotDone::Unwanted)
    }

    fn queue(&self, client: IpAddr) -> Option<Place<'_>> {
        let mut queues = self.lock();
        if queues.waiting >= MAX_WAITING {
            return None;
        }
        queues.waiting += 1;
        let queue = queues.by_client.entry(client).or_insert_with(|| Queue {
            turns: Arc::new(Semaphore::new(self.count)),
            jobs: 0,
        });
        queue.jobs += 1;
        Some(Place {
            workers: self,
            client,
            turns: queue.turns.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job's place in its client's queue.
struct Place<'a> {
    workers: &'a Workers,
    client: IpAddr,
    turns: Arc<Semaphore>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queues = self.workers.lock();
        queues.waiting -= 1;
        if let Some(queue) = queues.by_client.get_mut(&self.client) {
            queue.jobs -= 1;
            if queue.jobs == 0 {
                queues.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::{FutureExt, future::join_all};

    use super::*;

    fn client(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    #[tokio::test]
    async fn clients_take_turns_however_many_jobs_one_of_them_has() {
        let workers = Workers::of(1);
        let order = Arc::new(Mutex::new(Vec::new()));
        let job = |number| {
            let order = order.clone();
            workers.run(
                client(number),
                || true,
                move || order.lock().unwrap().push(number),
            )
        };
        let numbers = [1; 20].into_iter().chain([2, 3]);
        let done = join_all(numbers.map(job)).await;
        assert!(done.iter().all(Result::is_ok));
        // Two jobs of the first client may run before it: the current one and the next.
        let order = order.lock().unwrap();
        for number in [2, 3] {
            let place = order.iter().position(|other| *other == number).unwrap();
            assert!(place <= 4, "{order:?}");
        }
        assert!(workers.lock().by_client.is_empty());
        assert_eq!(workers.lock().waiting, 0);
    }

    #[tokio::test]
    async fn a_job_that_is_no_longer_wanted_is_skipped() {
        let workers = Workers::of(1);
        let is_wanted = AtomicBool::new(true);
        let held = workers.free.acquire().await.unwrap();
        let job = workers.run(client(1), || is_wanted.load(Ordering::Relaxed), || ());
        let mut job = Box::pin(job);
        assert!((&mut job).now_or_never().is_none());
        is_wanted.store(false, Ordering::Relaxed);
        drop(held);
        assert_eq!(job.await, Err(NotDone::Unwanted));
    }

    #[tokio::test]
    async fn who_waits_is_bounded_and_a_job_that_is_given_up_makes_room() {
        let workers = Workers::of(1);
        let _held = workers.free.acquire().await.unwrap();
        let mut jobs: Vec<_> = (0..MAX_WAITING)
            .map(|_| Box::pin(workers.run(client(1), || true, || ())))
            .collect();
        for job in &mut jobs {
            assert!(job.now_or_never().is_none());
        }
        let one_more = workers.run(client(2), || true, || ()).await;
        assert_eq!(one_more, Err(NotDone::Full));
        jobs.pop();
        let one_more = Box::pin(workers.run(client(2), || true, || ()));
        assert!(one_more.now_or_never().is_none());
    }
}
