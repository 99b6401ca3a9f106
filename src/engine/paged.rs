//! A vector whose snapshots are cheap: pages are shared and copied only when written after a snapshot. One writer,
//! immutable views.

use std::sync::Arc;

/// Small enough that one changed row copies little, large enough that a snapshot of a million rows is short.
const PAGE: usize = 256;

/// A growable vector; `clone` is a snapshot.
#[derive(Debug, Clone)]
pub struct PagedVec<T> {
    pages: Arc<Vec<Arc<Vec<T>>>>,
    len: usize,
}

impl<T> Default for PagedVec<T> {
    fn default() -> Self {
        PagedVec { pages: Arc::default(), len: 0 }
    }
}

impl<T: Clone> PagedVec<T> {
    /// How many items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The item at `index`, if there is one in this snapshot.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&T> {
        self.pages.get(index / PAGE)?.get(index % PAGE)
    }

    /// Adds an item.
    pub fn push(&mut self, item: T) {
        let pages = Arc::make_mut(&mut self.pages);
        if self.len.is_multiple_of(PAGE) {
            pages.push(Arc::new(Vec::with_capacity(PAGE)));
        }
        let last = pages.last_mut().expect("pushed above when the last page is full");
        Arc::make_mut(last).push(item);
        self.len += 1;
    }

    /// Replaces an item; the index must exist.
    pub fn set(&mut self, index: usize, item: T) {
        assert!(index < self.len, "row {index} of {}", self.len);
        let page = &mut Arc::make_mut(&mut self.pages)[index / PAGE];
        Arc::make_mut(page)[index % PAGE] = item;
    }

    /// Every item in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flat_map(|page| page.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_do_not_change() {
        let mut live = PagedVec::default();
        let mut model = Vec::new();
        let mut snapshots = Vec::new();
        for n in 0..3000usize {
            live.push(n);
            model.push(n);
            if n % 7 == 0 {
                live.set(n / 2, n * 10);
                model[n / 2] = n * 10;
            }
            if n % 100 == 0 {
                snapshots.push((live.clone(), model.clone()));
            }
        }
        for (snapshot, model) in snapshots {
            assert_eq!(snapshot.iter().copied().collect::<Vec<_>>(), model);
            assert_eq!(snapshot.get(model.len()), None);
        }
    }
}
