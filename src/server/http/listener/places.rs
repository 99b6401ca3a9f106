//! The places of a listener: a connection has one. When all are taken, the one whose client has not asked for anything for
//! the longest time gives its own up: connections that idle keep nobody out.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// All places of a listener.
pub(super) struct Places {
    free: Arc<Semaphore>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    last: u64,
    by: HashMap<u64, Holder>,
}

/// Who has a place.
struct Holder {
    permit: OwnedSemaphorePermit,
    /// Told when the place is another's.
    evicted: CancellationToken,
    /// It has sent a whole request.
    asked: bool,
    /// Requests that are worked on.
    working: usize,
    /// Since when none is.
    since: Instant,
}

/// A connection's place; it is free again when this is dropped.
pub(super) struct Place {
    number: u64,
    places: Arc<Places>,
    evicted: CancellationToken,
}

/// A request that is worked on.
pub(super) struct Work(Arc<Place>);

impl Places {
    pub(super) fn new(count: usize) -> Arc<Places> {
        Arc::new(Places { free: Arc::new(Semaphore::new(count)), taken: Mutex::default() })
    }

    /// A free place, or that of whoever has not asked for the longest time; none when requests are worked on everywhere.
    /// Those who never sent a whole request come first.
    pub(super) fn take(self: &Arc<Places>) -> Option<Arc<Place>> {
        let mut taken = self.taken.lock();
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let idle = taken.by.iter().filter(|(_, holder)| holder.working == 0);
                let longest = *idle.min_by_key(|(number, holder)| (holder.asked, holder.since, **number))?.0;
                let Holder { permit, evicted, .. } = taken.by.remove(&longest)?;
                evicted.cancel();
                permit
            }
        };
        taken.last += 1;
        let (number, evicted) = (taken.last, CancellationToken::new());
        let holder = Holder { permit, evicted: evicted.clone(), asked: false, working: 0, since: Instant::now() };
        taken.by.insert(number, holder);
        Some(Arc::new(Place { number, places: self.clone(), evicted }))
    }
}

impl Place {
    /// Resolves when the place is another's.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Has it sent a whole request?
    pub(super) fn has_asked(&self) -> bool {
        self.places.taken.lock().by.get(&self.number).is_some_and(|holder| holder.asked)
    }

    /// A request has come; it is worked on until this is dropped.
    pub(super) fn work(self: &Arc<Place>) -> Work {
        if let Some(holder) = self.places.taken.lock().by.get_mut(&self.number) {
            (holder.asked, holder.working) = (true, holder.working + 1);
        }
        Work(self.clone())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(holder) = self.0.places.taken.lock().by.get_mut(&self.0.number) {
            (holder.working, holder.since) = (holder.working.saturating_sub(1), Instant::now());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.lock().by.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_never_asked_goes_first_then_who_idles_longest_and_nobody_who_works() {
        let places = Places::new(3);
        let later = || std::thread::sleep(std::time::Duration::from_millis(2));
        let first = places.take().expect("free");
        drop(first.work());
        later();
        let (second, third) = (places.take().expect("free"), places.take().expect("free"));
        let work = second.work();
        later();
        let fourth = places.take().expect("the third's");
        assert!(third.evicted.is_cancelled() && !first.evicted.is_cancelled() && !third.has_asked());
        drop(third.work());
        drop(third);
        drop(fourth.work());
        let fifth = places.take().expect("the first's");
        assert!(first.evicted.is_cancelled() && !fourth.evicted.is_cancelled());
        let (_also, _as_well) = (fourth.work(), fifth.work());
        assert!(places.take().is_none(), "all are at work");
        drop(work);
        later();
        let sixth = places.take().expect("the second's");
        assert!(second.evicted.is_cancelled());
        drop(sixth);
        assert!(places.take().is_some(), "one is free again");
    }
}
