//! Vectors that are mostly zeros.

/// Largest number of dimensions of a sparse vector, pgvector's own.
pub const MAX_SPARSE_DIMENSIONS: usize = 1_000_000_000;
/// Most elements of a sparse vector that are not zero, pgvector's own limit for storage.
pub const MAX_NONZERO: usize = 16_000;

/// The elements of a vector that are not zero, by ascending index.
#[derive(Debug, Clone, PartialEq)]
pub struct SparseVector {
    dimensions: u32,
    indices: Box<[u32]>,
    values: Box<[f32]>,
}

impl SparseVector {
    /// A vector of these elements: indices from 0, in any order, each once. Zeros are left out; values may be of any kind
    /// otherwise, the collection decides what it takes. An error says what is wrong.
    pub fn new(dimensions: usize, mut elements: Vec<(u32, f32)>) -> Result<SparseVector, String> {
        if !(1..=MAX_SPARSE_DIMENSIONS).contains(&dimensions) {
            return Err(format!("{dimensions} dimensions; 1 to {MAX_SPARSE_DIMENSIONS} can be"));
        }
        elements.sort_by_key(|(index, _)| *index);
        if let Some(pair) = elements.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("index {} stands there twice", pair[0].0));
        }
        if let Some((index, _)) = elements.last().filter(|(index, _)| *index as usize >= dimensions) {
            return Err(format!("index {index} (from 0) for {dimensions} dimensions"));
        }
        elements.retain(|(_, value)| *value != 0.0);
        if elements.len() > MAX_NONZERO {
            return Err(format!("{} elements are not zero; at most {MAX_NONZERO} can be", elements.len()));
        }
        let (indices, values): (Vec<_>, Vec<_>) = elements.into_iter().unzip();
        Ok(SparseVector { dimensions: dimensions as u32, indices: indices.into(), values: values.into() })
    }

    /// How many there are, zeros included.
    pub fn dimensions(&self) -> usize {
        self.dimensions as usize
    }

    /// Where it is not zero, from 0, ascending.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// What stands there.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Index and value of what is not zero.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f32)> + '_ {
        self.indices.iter().copied().zip(self.values.iter().copied())
    }

    /// Both values at every index where one of the two is not zero.
    pub fn pairs<'s>(&'s self, other: &'s SparseVector) -> impl Iterator<Item = (f32, f32)> + 's {
        let (mut ours, mut theirs) = (self.iter().peekable(), other.iter().peekable());
        std::iter::from_fn(move || {
            let at = match (ours.peek(), theirs.peek()) {
                (Some(a), Some(b)) => a.0.min(b.0),
                (Some(one), None) | (None, Some(one)) => one.0,
                (None, None) => return None,
            };
            let value = |(_, value)| value;
            let a = ours.next_if(|(index, _)| *index == at).map_or(0.0, value);
            Some((a, theirs.next_if(|(index, _)| *index == at).map_or(0.0, value)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_sorted_and_zeros_left_out() {
        let vector = SparseVector::new(9, vec![(8, 1.0), (0, -2.0), (3, 0.0), (4, -0.0)]).expect("a vector");
        assert_eq!((vector.dimensions(), vector.indices(), vector.values()), (9, &[0, 8][..], &[-2.0, 1.0][..]));
        let other = SparseVector::new(9, vec![(8, 5.0), (2, 7.0)]).expect("a vector");
        assert_eq!(vector.pairs(&other).collect::<Vec<_>>(), [(-2.0, 0.0), (0.0, 7.0), (1.0, 5.0)]);
    }

    #[test]
    fn what_is_no_vector_is_told() {
        for (dimensions, elements) in
            [(0, vec![]), (1_000_000_001, vec![]), (3, vec![(3, 1.0)]), (3, vec![(1, 1.0); 2])]
        {
            SparseVector::new(dimensions, elements).expect_err("no vector");
        }
        let many = |count: u32| SparseVector::new(20_000, (0..count).map(|index| (index, 1.0)).collect());
        assert!(many(16_000).is_ok() && many(16_001).is_err());
    }
}
