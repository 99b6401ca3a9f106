//! Rows in one encoding: fixed memory, a row a slot.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::engine::arena::Arena;
use crate::engine::codes::{Codec, Coded};
use crate::engine::distance::Kernel;
use crate::model::Encoding;

/// Rows of one codec. Which slots hold one is the owner's knowledge.
pub struct Table {
    codec: Codec,
    bytes: Arena<u8>,
    /// Rows without a direction under cosine. As codes they are all zero bytes; no other row is.
    directionless: AtomicU32,
}

impl Table {
    /// Room for `capacity` rows; memory is taken as they come.
    pub fn try_new(codec: Codec, capacity: usize) -> io::Result<Table> {
        let bytes = capacity.checked_mul(codec.stride()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Table { codec, bytes: Arena::try_new(bytes)?, directionless: AtomicU32::new(0) })
    }

    /// How rows are encoded.
    pub fn encoding(&self) -> Encoding {
        self.codec.encoding()
    }

    /// Can the encoding say what a prepared row is?
    pub fn holds(&self, row: &[f32]) -> bool {
        self.codec.holds(row)
    }

    /// Bytes in memory of so many rows and of what was learned.
    pub fn memory_bytes(&self, rows: usize) -> usize {
        self.bytes_of(rows) + self.codec.memory_bytes()
    }

    /// Bytes of so many rows.
    pub fn bytes_of(&self, rows: usize) -> usize {
        rows * self.codec.stride()
    }

    /// A row's bytes.
    ///
    /// # Safety
    /// The slot holds a row that nobody writes.
    #[inline]
    pub unsafe fn row(&self, slot: u32) -> &[u8] {
        let stride = self.codec.stride();
        // SAFETY: by contract a whole row inside the arena.
        unsafe { std::slice::from_raw_parts(self.bytes.at(slot as usize * stride), stride) }
    }

    /// A row of floats, padding included.
    ///
    /// # Safety
    /// As for [`Table::row`].
    #[inline]
    pub unsafe fn floats(&self, slot: u32) -> &[f32] {
        debug_assert_eq!(self.encoding(), Encoding::F32);
        // SAFETY: arenas are aligned to 64 bytes and rows of floats are whole multiples of that.
        unsafe { std::slice::from_raw_parts(self.row(slot).as_ptr().cast(), self.codec.stride() / 4) }
    }

    /// A row of floats to write, padding included.
    ///
    /// # Safety
    /// The slot is inside the table, and nobody reads or writes it meanwhile.
    #[expect(clippy::mut_from_ref, reason = "the contract makes it the only one")]
    pub unsafe fn floats_mut(&self, slot: u32) -> &mut [f32] {
        debug_assert_eq!(self.encoding(), Encoding::F32);
        let stride = self.codec.stride();
        // SAFETY: as in `floats`.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.at(slot as usize * stride).cast(), stride / 4) }
    }

    /// Writes the code of a row, for the first time.
    ///
    /// # Safety
    /// As for [`Table::floats_mut`].
    pub unsafe fn encode(&self, slot: u32, row: &[f32], directionless: bool) {
        let stride = self.codec.stride();
        if directionless {
            self.directionless.fetch_add(1, Ordering::Release);
            return;
        }
        // SAFETY: by contract.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.bytes.at(slot as usize * stride), stride) };
        self.codec.encode(row, bytes);
        if bytes.iter().all(|&byte| byte == 0) {
            bytes[0] = 1;
        }
    }

    /// Writes the codes of the first `count` rows (format: the head of `file.rs`).
    pub fn save(&self, count: u32, out: &mut dyn Write) -> io::Result<()> {
        self.codec.save(out)?;
        out.write_all(&self.directionless.load(Ordering::Acquire).to_le_bytes())?;
        // SAFETY: the caller counts rows that are there.
        (0..count).try_for_each(|slot| out.write_all(unsafe { self.row(slot) }))
    }

    /// Reads `count` rows of codes; `None` where there are none. What follows from false bytes are false distances.
    pub fn load(kernel: Kernel, dim: usize, count: u32, input: &mut dyn Read) -> io::Result<Option<Table>> {
        let Some(codec) = Codec::load(kernel, dim, input)? else { return Ok(None) };
        let mut directionless = [0; 4];
        input.read_exact(&mut directionless)?;
        let table = Table::try_new(codec, count as usize)?;
        table.directionless.store(u32::from_le_bytes(directionless), Ordering::Relaxed);
        let bytes = table.bytes_of(count as usize);
        // SAFETY: nobody else knows the table yet, and it has room for `count` rows.
        input.read_exact(unsafe { std::slice::from_raw_parts_mut(table.bytes.start(), bytes) })?;
        Ok(Some(table))
    }

    /// Makes a query of a prepared row.
    pub fn query(&self, row: &[f32], into: &mut Coded) {
        self.codec.query(row, into);
    }

    /// Makes a query of a stored row.
    ///
    /// # Safety
    /// As for [`Table::row`].
    pub unsafe fn row_as_query(&self, slot: u32, into: &mut Coded) {
        // SAFETY: by contract.
        self.codec.row_as_query(unsafe { self.row(slot) }, into);
    }

    /// Inner values of a query against rows; smaller is nearer, never NaN.
    ///
    /// # Safety
    /// As for [`Table::row`], for every slot.
    #[inline]
    pub unsafe fn gather(&self, query: &Coded, slots: &[u32], out: &mut [f32]) {
        // SAFETY: by contract.
        unsafe { self.codec.gather(query, self.bytes.start(), slots, out) };
        if self.directionless.load(Ordering::Relaxed) > 0 {
            for (&slot, value) in slots.iter().zip(out) {
                // SAFETY: by contract.
                if unsafe { self.row(slot) }.iter().all(|&byte| byte == 0) {
                    *value = f32::INFINITY;
                }
            }
        }
    }

    /// Inner value of a query and one row.
    ///
    /// # Safety
    /// As for [`Table::row`].
    #[inline]
    pub unsafe fn one(&self, query: &Coded, slot: u32) -> f32 {
        let mut out = [0.0];
        // SAFETY: by contract.
        unsafe { self.gather(query, &[slot], &mut out) };
        out[0]
    }

    /// Some slots by their distance to a prepared row, nearest first.
    ///
    /// # Safety
    /// As for [`Table::row`], for every slot.
    pub unsafe fn nearest(&self, row: &[f32], slots: &[u32]) -> Vec<(f32, u32)> {
        let (mut query, mut values) = (Coded::default(), vec![0.0; slots.len()]);
        self.query(row, &mut query);
        // SAFETY: by contract.
        unsafe { self.gather(&query, slots, &mut values) };
        let mut nearest: Vec<_> = values.into_iter().zip(slots.iter().copied()).collect();
        nearest.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        nearest
    }
}
