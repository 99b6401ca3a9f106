//! Links of level 0: words with room for the longest list while a graph is linked, and packed, list after list, when it is
//! sealed. A sealed graph's links are more than half of its memory otherwise, and three quarters as long to fetch.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::engine::arena::Arena;
use crate::engine::distance::prefetch;

/// The lists of level 0.
pub enum Base {
    /// So many words a slot, each a slot + 1; the first zero ends a list.
    Growing(Arena<AtomicU32>, usize),
    /// Of a graph that is not linked any more.
    Packed(Packed),
}

/// Lists of slots, three bytes each where that is enough.
pub struct Packed {
    /// Where a slot's list begins, in links; one more for the end of the last.
    starts: Arena<AtomicU32>,
    /// The links, little-endian, and what a read of the last one may touch beyond it.
    bytes: Arena<u8>,
    width: usize,
    /// Links so far.
    links: usize,
    /// Lists so far.
    lists: usize,
}

/// One list.
#[derive(Clone, Copy)]
pub enum List<'g> {
    /// Words, the first zero ends it; they may change meanwhile.
    Words(&'g [AtomicU32]),
    /// So many links, of that many bytes.
    Packed(&'g [u8], usize, usize),
}

impl Base {
    /// Room for lists of `list` links.
    pub fn growing(capacity: usize, list: usize) -> io::Result<Base> {
        let words = capacity.checked_mul(list).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Base::Growing(Arena::try_new(words)?, list))
    }

    /// A slot's list.
    #[inline]
    pub fn list(&self, slot: u32) -> List<'_> {
        match self {
            Base::Growing(words, list) => List::Words(&words.words()[slot as usize * list..][..*list]),
            Base::Packed(packed) => packed.list(slot),
        }
    }

    /// A slot's words, to be written.
    pub fn words(&self, slot: u32) -> &[AtomicU32] {
        match self.list(slot) {
            List::Words(words) => words,
            List::Packed(..) => unreachable!("a sealed graph is not linked"),
        }
    }

    /// Bytes in use by the lists of so many slots.
    pub fn bytes_of(&self, slots: usize) -> usize {
        match self {
            Base::Growing(_, list) => 4 * list * slots,
            Base::Packed(packed) => packed.links * packed.width + 4 * packed.lists,
        }
    }
}

impl Packed {
    /// Room for `count` lists of at most `list` links; memory is taken as they come.
    pub fn try_new(count: usize, list: usize) -> io::Result<Packed> {
        let width = if count < 1 << 24 { 3 } else { 4 };
        let bytes = count.checked_mul(list).and_then(|links| links.checked_mul(width)).and_then(|n| n.checked_add(4));
        let bytes = Arena::try_new(bytes.ok_or(io::ErrorKind::OutOfMemory)?)?;
        Ok(Packed { starts: Arena::try_new(count + 1)?, bytes, width, links: 0, lists: 0 })
    }

    /// Adds the next slot's list.
    pub fn push(&mut self, slots: impl Iterator<Item = u32>) -> io::Result<()> {
        for slot in slots {
            let at = self.links * self.width;
            assert!(at + self.width <= self.bytes.len(), "as many links as there is room for");
            // SAFETY: inside the arena, which nobody else has while it is filled.
            let link = unsafe { std::slice::from_raw_parts_mut(self.bytes.at(at), self.width) };
            link.copy_from_slice(&slot.to_le_bytes()[..self.width]);
            self.links += 1;
        }
        self.lists += 1;
        let end = u32::try_from(self.links).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.starts.words()[self.lists].store(end, Ordering::Relaxed);
        Ok(())
    }

    #[inline]
    fn list(&self, slot: u32) -> List<'_> {
        let start = |slot: usize| self.starts.words()[slot].load(Ordering::Relaxed) as usize;
        let (from, to) = (start(slot as usize), start(slot as usize + 1));
        // SAFETY: lists lie inside the arena, four bytes before its end, and are not written any more.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.bytes.start().add(from * self.width), (to - from) * self.width + 1)
        };
        List::Packed(bytes, self.width, to - from)
    }
}

impl List<'_> {
    /// Its slots at this moment.
    pub fn slots(self) -> impl Iterator<Item = u32> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let slot = match self {
                // Acquire: the rows the links lead to were published before them.
                List::Words(words) => words.get(at)?.load(Ordering::Acquire).checked_sub(1)?,
                List::Packed(bytes, width, count) => (at < count).then(|| unpack(bytes, width, at))?,
            };
            at += 1;
            Some(slot)
        })
    }

    /// Asks for it from memory.
    #[inline]
    pub fn prefetch(self) {
        match self {
            List::Words(words) => prefetch(words),
            List::Packed(bytes, ..) => prefetch(bytes),
        }
    }

    /// The largest number of slots it may have.
    #[inline]
    pub fn room(self) -> usize {
        match self {
            List::Words(words) => words.len(),
            List::Packed(_, _, count) => count,
        }
    }
}

/// Link `at` of a packed list.
#[inline]
pub fn unpack(bytes: &[u8], width: usize, at: usize) -> u32 {
    if width == 3 {
        let [a, b, c, _] = *bytes[3 * at..].first_chunk::<4>().expect("a byte follows the last link");
        u32::from_le_bytes([a, b, c, 0])
    } else {
        u32::from_le_bytes(*bytes[4 * at..].first_chunk().expect("four bytes"))
    }
}
