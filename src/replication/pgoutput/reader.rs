//! Takes fields off a message one by one and knows where it is when one of them is wrong.

use crate::model::{CommitLsn, Lsn};

use super::{DecodeError, Problem};

/// A place in a message.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub(super) fn offset(&self) -> usize {
        self.at
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.rest().first().copied()
    }

    pub(super) fn error_at(&self, offset: usize, field: &'static str, problem: Problem) -> DecodeError {
        let message = self.bytes.first().map_or(' ', |tag| char::from(*tag));
        DecodeError { message, field, offset, problem }
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.array(field).map(i32::from_be_bytes)
    }

    pub(super) fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.array(field).map(i64::from_be_bytes)
    }

    pub(super) fn lsn(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        self.array(field).map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    pub(super) fn commit_lsn(&mut self, field: &'static str) -> Result<CommitLsn, DecodeError> {
        self.array(field).map(|bytes| CommitLsn(u64::from_be_bytes(bytes)))
    }

    /// Text up to a zero byte.
    pub(super) fn name(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let end = self.rest().iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| self.error_at(self.at, field, Problem::CutShort))?;
        let text = std::str::from_utf8(&self.rest()[..end]);
        let text = text.map_err(|_| self.error_at(self.at, field, Problem::NotUtf8))?;
        self.at += end + 1;
        Ok(text)
    }

    /// Bytes after their 32-bit length.
    pub(super) fn counted_bytes(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (at, length) = (self.at, self.i32(field)?);
        let length = usize::try_from(length).map_err(|_| self.error_at(at, field, Problem::Negative))?;
        let bytes = self.rest().get(..length).ok_or_else(|| self.error_at(at, field, Problem::CutShort))?;
        self.at += length;
        Ok(bytes)
    }

    /// A 16-bit count of things of at least `least` bytes each.
    pub(super) fn count16(&mut self, field: &'static str, least: usize) -> Result<usize, DecodeError> {
        let at = self.at;
        let count = self.array(field).map(i16::from_be_bytes)?;
        self.bounded(at, field, count.into(), least)
    }

    /// The count, if the rest of the message can hold that many things of at least `least` bytes each.
    pub(super) fn bounded(
        &self,
        at: usize,
        field: &'static str,
        count: i64,
        least: usize,
    ) -> Result<usize, DecodeError> {
        let count = usize::try_from(count).map_err(|_| self.error_at(at, field, Problem::Negative))?;
        let fits = count <= self.rest().len() / least;
        if fits { Ok(count) } else { Err(self.error_at(at, field, Problem::TooMany(count))) }
    }

    /// Nothing may follow.
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        match self.rest().len() {
            0 => Ok(()),
            left => Err(self.error_at(self.at, "end", Problem::Trailing(left))),
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let chunk = self.rest().first_chunk::<N>().copied();
        let chunk = chunk.ok_or_else(|| self.error_at(self.at, field, Problem::CutShort))?;
        self.at += N;
        Ok(chunk)
    }

    fn rest(&self) -> &'a [u8] {
        // `at` only moves over bytes that are there.
        self.bytes.get(self.at..).unwrap_or_default()
    }
}
