//! How many requests somebody may make: a bucket of tokens that fills at a rate. A request takes one.

use crate::server::problem::{self, Problem};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// A bucket. It holds the tokens of a second, at least one.
pub struct Bucket {
    rate: f64,
    state: Mutex<(f64, Instant)>,
}

/// What a request finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Requests that may come at once.
    pub limit: u64,
    /// How many of them are left.
    pub remaining: u64,
    /// Seconds until all of them are again.
    pub reset: u64,
    /// Seconds to wait, where this one may not go on.
    pub wait: Option<u64>,
}

impl Bucket {
    /// A full one that gets so many tokens a second: more than 0.
    pub fn new(rate: f64) -> Bucket {
        Bucket { rate, state: Mutex::new((rate.max(1.0), Instant::now())) }
    }

    /// Takes a token, if there is one.
    pub fn take(&self, now: Instant) -> Standing {
        let most = self.rate.max(1.0);
        let (tokens, last) = &mut *self.state.lock();
        *tokens = (*tokens + now.saturating_duration_since(*last).as_secs_f64() * self.rate).min(most);
        *last = now.max(*last);
        let enough = *tokens >= 1.0;
        if enough {
            *tokens -= 1.0;
        }
        let seconds = |missing: f64| (missing / self.rate).ceil() as u64;
        Standing {
            limit: most as u64,
            remaining: *tokens as u64,
            reset: seconds(most - *tokens),
            wait: (!enough).then(|| seconds(1.0 - *tokens).max(1)),
        }
    }

    fn is_full(&self, now: Instant) -> bool {
        let (tokens, last) = *self.state.lock();
        tokens + now.saturating_duration_since(last).as_secs_f64() * self.rate >= self.rate.max(1.0)
    }
}

/// Buckets of those whose names are not known before.
pub struct Buckets {
    rate: f64,
    buckets: Mutex<HashMap<String, Arc<Bucket>>>,
    /// Shared by those for whom there is no place.
    others: Arc<Bucket>,
}

/// Names that have a bucket of their own at once.
const MOST_BUCKETS: usize = 10_000;

impl Buckets {
    /// Each of this rate.
    pub fn new(rate: f64) -> Buckets {
        Buckets { rate, buckets: Mutex::default(), others: Arc::new(Bucket::new(rate)) }
    }

    /// The bucket of this name.
    pub fn of(&self, name: &str, now: Instant) -> Arc<Bucket> {
        let mut buckets = self.buckets.lock();
        if let Some(bucket) = buckets.get(name) {
            return bucket.clone();
        }
        if buckets.len() >= MOST_BUCKETS {
            // A full one is as good as a new one.
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        if buckets.len() >= MOST_BUCKETS {
            return self.others.clone();
        }
        let bucket = Arc::new(Bucket::new(self.rate));
        buckets.insert(name.to_owned(), bucket.clone());
        bucket
    }
}

impl Standing {
    /// The refusal, where there is one.
    pub fn refusal(&self) -> Option<Response> {
        let wait = self.wait?;
        let problem = Problem::new(problem::RATE, format!("at most {} requests at once and a second", self.limit));
        let mut response = problem
            .hint("wait as long as Retry-After says, or raise requests_per_second of the key or of [http.jwt]")
            .into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait));
        self.tell(response.headers_mut());
        Some(response)
    }

    /// Adds the headers that say how it stands.
    pub fn tell(&self, headers: &mut HeaderMap) {
        for (name, value) in
            [("ratelimit-limit", self.limit), ("ratelimit-remaining", self.remaining), ("ratelimit-reset", self.reset)]
        {
            headers.insert(name, HeaderValue::from(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_gives_what_its_rate_says_and_no_more() {
        let (bucket, start) = (Bucket::new(2.0), Instant::now());
        let take = |ms: u64| bucket.take(start + Duration::from_millis(ms));
        assert_eq!(take(0), Standing { limit: 2, remaining: 1, reset: 1, wait: None });
        assert_eq!(take(0).remaining, 0);
        assert_eq!(take(0), Standing { limit: 2, remaining: 0, reset: 1, wait: Some(1) });
        assert!(take(400).wait.is_some() && take(500).wait.is_none() && take(501).wait.is_some());
        let much_later = (0..5).filter(|_| take(60_000).wait.is_none()).count();
        assert_eq!(much_later, 2, "it does not overflow");
        assert_eq!(take(0).wait, Some(1), "a clock that goes back gives nothing");
    }

    #[test]
    fn slow_rates_say_how_long_to_wait() {
        let (bucket, start) = (Bucket::new(0.1), Instant::now());
        assert_eq!(bucket.take(start).wait, None);
        assert_eq!(bucket.take(start).wait, Some(10));
        assert_eq!(bucket.take(start + Duration::from_secs(4)).wait, Some(6));
    }

    #[test]
    fn names_that_anybody_may_make_up_take_bounded_memory() {
        let (buckets, now) = (Buckets::new(1.0), Instant::now());
        for name in 0..MOST_BUCKETS {
            buckets.of(&name.to_string(), now).take(now);
        }
        let (one, two) = (buckets.of("one more", now), buckets.of("and one", now));
        assert!(Arc::ptr_eq(&one, &two) && buckets.buckets.lock().len() == MOST_BUCKETS);
        let later = now + Duration::from_secs(2);
        assert!(!Arc::ptr_eq(&one, &buckets.of("one more", later)), "there is place again");
        assert_eq!(buckets.buckets.lock().len(), 1);
    }
}
