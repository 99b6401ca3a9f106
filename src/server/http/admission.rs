//! Admission: who is worked on, who waits for a turn, who is refused at once, and what requests and answers may hold in memory.
//!
//! There are `max_concurrent` turns and `max_waiting` places to wait for one. The more of these are taken, the more is refused at
//! once: first batches, from a half on, then searches, from three quarters, then rows and counts. What takes no turn (probes, status,
//! lists, what an administrator asks for) is always answered.

use crate::server::http::Shared;
use crate::server::problem::{self, Problem};
use crate::telemetry::names;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use futures_util::StreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// What may be held and waited for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests worked on at once.
    pub max_concurrent: usize,
    /// Requests that wait for a turn.
    pub max_waiting: usize,
    /// How long one waits before it is refused.
    pub patience: Duration,
    /// Largest request body.
    pub max_body_bytes: usize,
    /// How long a body may take to arrive.
    pub body_time: Duration,
    /// Bytes that large bodies may take together, and large answers that clients have not taken yet.
    pub max_buffered_bytes: usize,
}

/// What kind of work a request is: those below are refused first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Rows by key, counts.
    Cheap,
    /// One search.
    Search,
    /// Several searches.
    Batch,
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Class::Cheap => "cheap",
            Class::Search => "search",
            Class::Batch => "batch",
        }
    }

    /// Of so many places to wait, those that may be taken before it is refused.
    fn share(self, places: usize) -> usize {
        match self {
            Class::Cheap => places,
            Class::Search => places.div_ceil(4) * 3,
            Class::Batch => places / 2,
        }
        .min(places)
    }
}

/// Bodies and answers up to here are not counted: connections bound them.
const SMALL: u64 = 64 << 10;
/// What a permit for memory stands for.
const UNIT: u64 = 1 << 10;

/// Who is let in.
pub struct Admission {
    limits: Limits,
    turns: Semaphore,
    waiting: AtomicUsize,
    bodies: Memory,
    answers: Memory,
}

impl Admission {
    /// With nobody inside.
    pub fn new(limits: Limits) -> Admission {
        let half = limits.max_buffered_bytes as u64 / 2;
        Admission {
            limits,
            turns: Semaphore::new(limits.max_concurrent),
            waiting: AtomicUsize::new(0),
            bodies: Memory::new(half),
            answers: Memory::new(half),
        }
    }

    /// Leave to work on one request.
    pub async fn turn(&self, class: Class) -> Result<SemaphorePermit<'_>, Problem> {
        if let Ok(turn) = self.turns.try_acquire() {
            return Ok(turn);
        }
        let _place = Place::take(&self.waiting, class.share(self.limits.max_waiting)).ok_or_else(|| {
            shed(
                class.name(),
                "as many requests wait as may",
                "slow down, or raise http.max_concurrent or http.max_waiting",
            )
        })?;
        let turn = tokio::time::timeout(self.limits.patience, self.turns.acquire()).await;
        turn.ok().and_then(Result::ok).ok_or_else(|| {
            let detail = format!("waited {:?} for a turn", self.limits.patience);
            shed(class.name(), &detail, "slow down, or raise http.max_concurrent")
        })
    }

    /// How many wait for a turn.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Reads the body, if there is leave to hold it: until the request is done, not just parsed.
    async fn receive(&self, request: Request) -> Result<(Request, Option<OwnedSemaphorePermit>), Problem> {
        let size = request.body().size_hint();
        let most = self.limits.max_body_bytes;
        if size.lower() > most as u64 {
            return Err(too_large(format!("the body has {} bytes; at most {most} are taken", size.lower())));
        }
        if size.exact() == Some(0) {
            return Ok((request, None));
        }
        let held = self.bodies.take(size.upper().unwrap_or(most as u64).min(most as u64)).ok_or_else(|| {
            shed(
                "body",
                "the bodies of other requests fill the memory",
                "send smaller ones, or raise http.max_buffered_mb",
            )
        })?;
        let (head, body) = request.into_parts();
        let bytes = tokio::time::timeout(self.limits.body_time, collected(body, size.lower() as usize, most)).await;
        let late = |_| {
            let detail = format!("its body was not there after {:?}", self.limits.body_time);
            Problem::new(problem::SLOW_BODY, detail).hint("send it at once; http.body_timeout_s is the limit")
        };
        Ok((Request::from_parts(head, Body::from(bytes.map_err(late)??)), held))
    }

    /// An answer that is held until the client has taken it, if there is room.
    async fn hold(&self, answer: Response) -> Response {
        let size = answer.body().size_hint().exact().unwrap_or(0);
        let hint = "ask for fewer rows or columns at once, read answers faster, or raise http.max_buffered_mb";
        let full = || shed("answer", "answers that were not read yet fill the memory", hint).into_response();
        let Some(permit) = self.answers.take(size) else { return full() };
        let Some(permit) = permit else { return answer };
        let (head, body) = answer.into_parts();
        match to_bytes(body, usize::MAX).await {
            Ok(bytes) => Response::from_parts(head, Body::from(Bytes::from_owner(Held { bytes, _permit: permit }))),
            Err(error) => Problem::new(problem::INTERNAL, error.to_string()).into_response(),
        }
    }
}

/// The layer around all routes.
pub async fn layer(State(app): Shared, request: Request, next: Next) -> Response {
    match app.admission.receive(request).await {
        Ok((request, held)) => {
            let answer = next.run(request).await;
            drop(held);
            app.admission.hold(answer).await
        }
        Err(problem) => problem.into_response(),
    }
}

fn shed(what: &'static str, detail: &str, hint: &str) -> Problem {
    metrics::counter!(names::HTTP_SHED, "what" => what).increment(1);
    Problem::new(problem::OVERLOADED, detail).hint(hint)
}

fn too_large(detail: String) -> Problem {
    Problem::new(problem::TOO_LARGE, detail).hint("http.max_body_bytes is the limit")
}

/// A body in one piece; nothing beyond `most` bytes is read.
async fn collected(body: Body, expected: usize, most: usize) -> Result<Bytes, Problem> {
    let mut whole = BytesMut::with_capacity(expected);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let broken = |error: axum::Error| Problem::new(problem::MALFORMED, format!("the body did not arrive: {error}"));
        let piece = piece.map_err(broken)?;
        if whole.len() + piece.len() > most {
            return Err(too_large(format!("the body has more than {most} bytes")));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// A place in the queue, until it is left.
struct Place<'a>(&'a AtomicUsize);

impl Place<'_> {
    /// None where `most` wait already.
    fn take(waiting: &AtomicUsize, most: usize) -> Option<Place<'_>> {
        let one_more = |now: usize| (now < most).then(|| now + 1);
        // Lazily: a place that is not taken must not be left either.
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok().then(|| Place(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Memory that can be taken, for what is not [`SMALL`].
struct Memory {
    units: Arc<Semaphore>,
    all: u32,
}

impl Memory {
    fn new(bytes: u64) -> Memory {
        let all = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(1);
        Memory { units: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// None: there is not enough left. What is larger than all of it may be there alone.
    fn take(&self, bytes: u64) -> Option<Option<OwnedSemaphorePermit>> {
        if bytes <= SMALL {
            return Some(None);
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.all);
        self.units.clone().try_acquire_many_owned(units).ok().map(Some)
    }
}

/// An answer with the memory that it takes, which is given back when the last of it is sent.
struct Held {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(max_waiting: usize) -> Admission {
        Admission::new(Limits {
            max_concurrent: 1,
            max_waiting,
            patience: Duration::from_millis(50),
            max_body_bytes: 1 << 20,
            body_time: Duration::from_millis(50),
            max_buffered_bytes: 4 << 20,
        })
    }

    async fn refused(admission: &Admission, class: Class) -> bool {
        admission.turn(class).await.is_err()
    }

    #[tokio::test]
    async fn batches_are_refused_first_then_searches_then_the_rest() {
        let admission = admission(8);
        let turn = admission.turn(Class::Cheap).await.expect("nobody is there");
        let mut seen = Vec::new();
        for already in 0..=8 {
            let places: Vec<_> = (0..already).map(|_| Place::take(&admission.waiting, 8).expect("a place")).collect();
            let mut at_once = Vec::new();
            for class in [Class::Batch, Class::Search, Class::Cheap] {
                let problem = admission.turn(class).await.expect_err("there is one turn, and it is taken");
                // Who had a place waited in vain.
                at_once.push(!problem.detail.starts_with("waited "));
            }
            drop(places);
            seen.push((already, at_once));
        }
        for (already, at_once) in seen {
            assert_eq!(at_once, [already >= 4, already >= 6, already >= 8], "{already}");
        }
        assert_eq!(admission.waiting(), 0);
        drop(turn);
        assert!(!refused(&admission, Class::Batch).await);
    }

    #[tokio::test]
    async fn without_places_nobody_waits() {
        let admission = admission(0);
        let turn = admission.turn(Class::Search).await.expect("nobody is there");
        assert!(refused(&admission, Class::Cheap).await);
        drop(turn);
        assert!(!refused(&admission, Class::Search).await);
    }

    fn request(bytes: usize) -> Request {
        Request::new(Body::from(vec![b' '; bytes]))
    }

    #[tokio::test]
    async fn large_bodies_share_a_budget_and_small_ones_need_none() {
        let admission = admission(0);
        let kind = async |bytes| admission.receive(request(bytes)).await.map_err(|problem| problem.kind);
        let one = kind(1 << 20).await.expect("the first");
        let other = kind(1 << 20).await.expect("the second");
        assert_eq!(kind(1 << 20).await.err(), Some(problem::OVERLOADED));
        assert!(kind(SMALL as usize).await.is_ok());
        drop((one, other));
        assert!(kind(1 << 20).await.is_ok());
        assert_eq!(kind((1 << 20) + 1).await.err(), Some(problem::TOO_LARGE));
    }

    #[tokio::test]
    async fn a_body_that_does_not_say_how_long_it_is_or_does_not_come_is_bounded() {
        let admission = admission(0);
        let pieces =
            futures_util::stream::iter((0..1000).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(&[0; 4096]))));
        let long = admission.receive(Request::new(Body::from_stream(pieces))).await;
        assert_eq!(long.err().map(|problem| problem.kind), Some(problem::TOO_LARGE));
        let nothing = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        let slow = admission.receive(Request::new(Body::from_stream(nothing))).await;
        assert_eq!(slow.err().map(|problem| problem.kind), Some(problem::SLOW_BODY));
        assert!(admission.receive(request(1 << 20)).await.is_ok(), "nothing is held");
    }

    #[tokio::test]
    async fn answers_that_are_not_taken_have_a_budget_too() {
        let admission = admission(0);
        let answer = || vec![b'x'; 1 << 20].into_response();
        let kept = [admission.hold(answer()).await, admission.hold(answer()).await];
        assert_eq!(admission.hold(answer()).await.status(), 503);
        assert_eq!(admission.hold("small".into_response()).await.status(), 200);
        let [one, other] = kept;
        let bytes = to_bytes(one.into_body(), usize::MAX).await.expect("whole");
        assert_eq!(bytes.len(), 1 << 20);
        drop((bytes, other));
        assert_eq!(admission.hold(vec![b'x'; 8 << 20].into_response()).await.status(), 200, "alone");
    }
}
