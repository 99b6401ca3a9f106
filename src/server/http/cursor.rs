//! Cursors of searches: the place behind which the next page begins, opaque and bound to the request it belongs to.

use crate::model::{Embedding, Example, Place, RowKey, SearchBy, SearchRequest};
use crate::server::problem::{self, Problem};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt::{self, Write};
use xxhash_rust::xxh3::Xxh3;

/// Of this form; the next one has another number.
const FORM: u8 = 2;
/// Form, doubt, request, copy, rows so far, distance.
const HEAD: usize = 1 + 1 + 8 + 8 + 8 + 8;

/// The cursor for the next page of this request.
pub fn encode(request: &SearchRequest, next: &Place) -> String {
    let mut bytes = Vec::with_capacity(HEAD + next.key.as_bytes().len());
    bytes.extend_from_slice(&[FORM, u8::from(next.doubtful)]);
    bytes.extend_from_slice(&fingerprint(request).to_le_bytes());
    bytes.extend_from_slice(&next.copy.to_le_bytes());
    bytes.extend_from_slice(&(next.given as u64).to_le_bytes());
    bytes.extend_from_slice(&next.distance.to_bits().to_le_bytes());
    bytes.extend_from_slice(next.key.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The place that a cursor names, if it is one of this request.
pub fn decode(request: &SearchRequest, text: &str) -> Result<Place, Problem> {
    let bad = |detail: &str| {
        let hint = "send `next` of an answer as it is, in the same request but for limit, columns and consistency";
        Problem::new(problem::CURSOR, detail).hint(hint)
    };
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad("`after` is no cursor"))?;
    let [FORM, doubtful @ (0 | 1), rest @ ..] = &bytes[..] else { return Err(bad("`after` is no cursor")) };
    let (doubtful, mut rest) = (*doubtful == 1, rest);
    let mut number = || {
        let (head, tail) = rest.split_first_chunk::<8>()?;
        rest = tail;
        Some(u64::from_le_bytes(*head))
    };
    let numbers = (|| Some((number()?, number()?, number()?, number()?)))();
    let (belongs_to, copy, given, distance) = numbers.ok_or_else(|| bad("`after` is no cursor"))?;
    let key = RowKey::from_bytes(rest);
    if key.decode().is_none_or(|values| values.is_empty()) {
        return Err(bad("`after` is no cursor"));
    }
    if belongs_to != fingerprint(request) {
        return Err(bad("`after` belongs to another request"));
    }
    let given = usize::try_from(given).unwrap_or(usize::MAX);
    Ok(Place { distance: f64::from_bits(distance), key, given, copy, doubtful })
}

/// Everything that decides which rows come and in which order.
fn fingerprint(request: &SearchRequest) -> u64 {
    let mut of = Fingerprint(Xxh3::new());
    match &request.by {
        SearchBy::Vector(vector) => of.vector(vector),
        SearchBy::Row(key) => of.0.update(key.as_bytes()),
        SearchBy::Examples { positive, negative } => {
            for (sign, examples) in [(0, positive), (1, negative)] {
                of.0.update(&[sign]);
                examples.iter().for_each(|example| match example {
                    Example::Vector(vector) => of.vector(vector),
                    Example::Row(key) => of.0.update(key.as_bytes()),
                });
            }
        }
    }
    let SearchRequest { collection, using, filter, ef, exact, recheck, viewer, shape, .. } = request;
    let (within, exactness) = (shape.max_distance.map(f64::to_bits), shape.exactness);
    // Writing into a hash does not fail.
    let _ = write!(of, "{collection:?}{using:?}{filter:?}{ef:?}{exact}{recheck:?}{viewer:?}{within:?}{exactness:?}");
    of.0.digest()
}

struct Fingerprint(Xxh3);

impl Fingerprint {
    fn vector(&mut self, vector: &Embedding) {
        match vector {
            Embedding::Dense(elements) => elements.iter().for_each(|one| self.0.update(&one.to_bits().to_le_bytes())),
            sparse => drop(write!(self, "{sparse:?}")),
        }
    }
}

impl Write for Fingerprint {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}
