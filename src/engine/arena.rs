//! Arenas: fixed-size anonymous memory, zeroed and populated on first touch, on huge pages where the system grants them.
//!
//! A random read of a large table costs a TLB miss besides the cache miss on 4 KiB pages; 2 MiB pages save 10 to 20 % of
//! a search. Untouched capacity costs address space only.

use std::alloc::{Layout, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use memmap2::{MmapMut, MmapOptions};

const HUGE_PAGE: usize = 2 << 20;

/// Zeroed memory for `len` values of `T`, aligned to 64 bytes or more; its address never changes.
///
/// It hands out raw pointers only: who writes what when is the owner's protocol.
pub struct Arena<T> {
    start: NonNull<T>,
    len: usize,
    // Keeps the mapping alive; never touched through this handle again.
    _map: MmapMut,
}

// SAFETY: an arena is an address range; access to its contents is governed by the owner, who must be `Sync` on its own grounds.
unsafe impl<T: Send> Send for Arena<T> {}
// SAFETY: as above; no method reads or writes the contents.
unsafe impl<T: Sync> Sync for Arena<T> {}

/// Types for which all-zero bytes are a value.
///
/// # Safety
/// Zeroed memory must be a valid value of the type.
pub unsafe trait Zeroed {}
// SAFETY: a byte of zero bits.
unsafe impl Zeroed for u8 {}
// SAFETY: 0.0 is all zero bytes.
unsafe impl Zeroed for f32 {}
// SAFETY: an atomic has the bytes of its value.
unsafe impl Zeroed for AtomicU32 {}

impl<T: Zeroed> Arena<T> {
    /// Maps room for `len` values; fails when the address space or the overcommit policy says no.
    pub fn try_new(len: usize) -> io::Result<Arena<T>> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?.max(1);
        let huge = bytes >= HUGE_PAGE;
        // The kernel gives huge pages to aligned 2 MiB ranges only, so leave room to align the start.
        let mapped = if huge { bytes.checked_add(2 * HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)? } else { bytes };
        if mapped > isize::MAX as usize {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let mut map = MmapOptions::new().len(mapped).no_reserve_swap().map_anon()?;
        #[cfg(target_os = "linux")]
        if huge {
            // Advice only: without huge pages everything works, slower.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let base = map.as_mut_ptr();
        let skip = if huge { base.align_offset(HUGE_PAGE) } else { 0 };
        let start = NonNull::new(base.wrapping_add(skip).cast()).expect("a mapping is never at address zero");
        Ok(Arena { start, len, _map: map })
    }

    /// Like [`Arena::try_new`], but ends the process as any failed allocation does.
    pub fn new(len: usize) -> Arena<T> {
        Arena::try_new(len).unwrap_or_else(|_| {
            handle_alloc_error(Layout::array::<T>(len).unwrap_or(Layout::new::<T>()));
        })
    }
}

impl<T> Arena<T> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no room at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first value; `start + i` is inside for `i < len`.
    pub fn start(&self) -> *mut T {
        self.start.as_ptr()
    }

    /// The address of value `at`, checked.
    pub fn at(&self, at: usize) -> *mut T {
        assert!(at <= self.len, "inside the arena");
        self.start.as_ptr().wrapping_add(at)
    }
}

impl Arena<AtomicU32> {
    /// All words; atomics may be shared freely.
    #[inline]
    pub fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is zeroed, `len` words long, lives as long as `self`, and is reached through atomics only.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_aligned_and_lazy() {
        for len in [0, 1, 1000, 3 << 20] {
            let arena = Arena::<f32>::new(len);
            assert_eq!(arena.start() as usize % 64, 0);
            assert_eq!(arena.len(), len);
            if len > 0 {
                // SAFETY: both ends are inside the arena, and nothing else uses it.
                unsafe {
                    assert_eq!(*arena.at(len - 1), 0.0);
                    *arena.at(len - 1) = 1.0;
                    assert_eq!(*arena.at(0), if len == 1 { 1.0 } else { 0.0 });
                }
            }
        }
        // Far more than the machine has: address space only.
        assert!(Arena::<f32>::try_new(1 << 40).is_ok());
        assert!(Arena::<f32>::try_new(usize::MAX / 8).is_err());
    }
}
