//! Round trips of the recheck: searches that wait for a connection at the same time and ask the same share one.
//!
//! A search joins a trip that has not been sent, or begins one. When a connection is free the trip is closed and sent, so
//! that its snapshot is later than every question in it.

use crate::consistency::recheck::{Seen, SourceHeap};
use crate::model::{CollectionDef, RowKey, Viewer};
use crate::source::SourceError;
use crate::source::connect::Manager;
use crate::source::rows::{self, Ask, HeapRow};
use crate::telemetry::names;
use deadpool::managed::{Object, PoolError, TimeoutType};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Keys of a trip that others may join: one more search must not cost those who wait much.
const MAX_SHARED: usize = 2_000;

/// What all rows of a trip are asked.
struct Question {
    def: CollectionDef,
    columns: Vec<String>,
    vector: Option<usize>,
    condition: Option<(String, Vec<String>)>,
    viewer: Option<Viewer>,
}

impl Question {
    fn new(def: &CollectionDef, ask: Ask<'_>) -> Question {
        Question {
            def: def.clone(),
            columns: ask.columns.to_vec(),
            vector: ask.vector,
            condition: ask.condition.map(|(sql, params)| (sql.to_owned(), params.to_vec())),
            viewer: ask.viewer.cloned(),
        }
    }

    fn ask(&self) -> Ask<'_> {
        Ask {
            columns: &self.columns,
            vector: self.vector,
            condition: self.condition.as_ref().map(|(sql, params)| (&sql[..], &params[..])),
            viewer: self.viewer.as_ref(),
        }
    }
}

/// One search that waits for its answer.
struct Passenger {
    keys: Vec<RowKey>,
    since: Instant,
    answer: oneshot::Sender<Result<Seen, SourceError>>,
}

/// A trip that has not been sent.
struct Trip {
    number: u64,
    question: Question,
    passengers: Vec<Passenger>,
    keys: usize,
}

impl Trip {
    /// Each key once.
    fn keys(&self) -> Vec<RowKey> {
        let mut keys: Vec<_> = self.passengers.iter().flat_map(|one| one.keys.iter().cloned()).collect();
        if self.passengers.len() > 1 {
            keys.sort_unstable();
            keys.dedup();
        }
        keys
    }

    /// To each what it asked for.
    fn answer(self, found: Result<Vec<HeapRow>, SourceError>) {
        let together = self.passengers.len();
        if together == 1 {
            let mut found = Some(found);
            for one in self.passengers {
                // Nobody waits any more where that fails, here and below.
                let _ = one.answer.send(found.take().unwrap_or(Ok(Vec::new())).map(|rows| Seen { rows, together }));
            }
            return;
        }
        let found = found.map(|rows| rows.into_iter().map(|row| (row.key.clone(), row)).collect::<HashMap<_, _>>());
        for one in self.passengers {
            let own =
                |rows: &HashMap<RowKey, HeapRow>| one.keys.iter().filter_map(|key| rows.get(key).cloned()).collect();
            let answer = found.as_ref().map(|rows| Seen { rows: own(rows), together });
            let _ = one.answer.send(answer.map_err(SourceError::clone));
        }
    }
}

/// The trips that have not been sent.
#[derive(Default)]
pub struct Trips(Mutex<(u64, Vec<Trip>)>);

impl Trips {
    /// Takes a question into a trip; the number of that trip where it is a new one, which somebody has to make.
    fn join(&self, def: &CollectionDef, ask: Ask<'_>, passenger: Passenger) -> Option<u64> {
        let (last, trips) = &mut *self.0.lock();
        let more = passenger.keys.len();
        let open = trips
            .iter_mut()
            .find(|trip| trip.keys + more <= MAX_SHARED && trip.question.ask() == ask && trip.question.def == *def);
        if let Some(trip) = open {
            trip.keys += more;
            trip.passengers.push(passenger);
            metrics::counter!(names::RECHECK_JOINED).increment(1);
            return None;
        }
        *last += 1;
        let (number, question) = (*last, Question::new(def, ask));
        trips.push(Trip { number, question, passengers: vec![passenger], keys: more });
        Some(number)
    }

    /// Closes a trip: from now on nobody joins it. `None` when nobody waits for it any more.
    fn close(&self, number: u64) -> Option<Trip> {
        let (_, trips) = &mut *self.0.lock();
        let place = trips.iter().position(|trip| trip.number == number)?;
        let mut trip = trips.swap_remove(place);
        trip.passengers.retain(|one| !one.answer.is_closed());
        (!trip.passengers.is_empty()).then_some(trip)
    }

    /// There was no connection: tells those who have waited for so long. Does anybody go on waiting?
    fn refuse(&self, number: u64, error: &SourceError, waited: Duration) -> bool {
        let (_, trips) = &mut *self.0.lock();
        let Some(place) = trips.iter().position(|trip| trip.number == number) else { return false };
        let all = std::mem::take(&mut trips[place].passengers);
        let (refused, left): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| one.since.elapsed() >= waited);
        for one in refused {
            trips[place].keys -= one.keys.len();
            let _ = one.answer.send(Err(error.clone()));
        }
        trips[place].passengers = left;
        let goes_on = !trips[place].passengers.is_empty();
        if !goes_on {
            trips.swap_remove(place);
        }
        goes_on
    }
}

/// A connection that goes back to the pool only when nothing is under way on it: another would find itself in our
/// transaction, or read our answer.
struct Lent(Option<Object<Manager>>);

impl Lent {
    fn give_back(mut self) {
        self.0.take();
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}

impl SourceHeap {
    /// Asks as soon as a connection is free, together with others who wait for one.
    pub(super) async fn ask(&self, def: &CollectionDef, keys: &[RowKey], ask: Ask<'_>) -> Result<Seen, SourceError> {
        let (answer, answered) = oneshot::channel();
        let passenger = Passenger { keys: keys.to_vec(), since: Instant::now(), answer };
        if let Some(number) = self.trips.join(def, ask, passenger) {
            let heap = self.clone();
            // Not ours to end: others rely on it.
            tokio::spawn(async move { heap.make(number).await });
        }
        answered.await.unwrap_or_else(|_| Err(SourceError::Unavailable("the service is stopping".into())))
    }

    async fn make(&self, number: u64) {
        let client = loop {
            match self.pool.get().await {
                Ok(client) => break client,
                Err(error) => {
                    let waited = match error {
                        PoolError::Timeout(TimeoutType::Wait) => self.timeout,
                        // Whoever waits on would hear the same.
                        _ => Duration::ZERO,
                    };
                    if !self.trips.refuse(number, &error.into(), waited) {
                        return;
                    }
                }
            }
        };
        let Some(trip) = self.trips.close(number) else { return };
        let found = self.fetch(client, &trip).await;
        if let Some(first) = trip.passengers.first() {
            metrics::histogram!(names::RECHECK_SECONDS).record(first.since.elapsed().as_secs_f64());
        }
        trip.answer(found);
    }

    async fn fetch(&self, client: Object<Manager>, trip: &Trip) -> Result<Vec<HeapRow>, SourceError> {
        let (keys, question) = (trip.keys(), &trip.question);
        let lent = Lent(Some(client));
        let Some(client) = &lent.0 else { return Ok(Vec::new()) };
        match tokio::time::timeout(self.timeout, rows::fetch(client, &question.def, &keys, question.ask())).await {
            Ok((rows, rows::Left::Clean)) => {
                lent.give_back();
                rows
            }
            Ok((rows, rows::Left::Unclear)) => rows,
            Err(_) => Err(SourceError::Unavailable(format!("the source did not answer within {:?}", self.timeout))),
        }
    }
}
