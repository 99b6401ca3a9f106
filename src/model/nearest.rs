//! The known word that a misspelt one was meant to be.

/// Longer words are nobody's spelling mistake.
const LONGEST: usize = 64;

/// The known word that is nearest to this one, if one is near: a third of its letters may differ.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST {
        return None;
    }
    let word = word.to_lowercase();
    let near = |known: &'a str| {
        let (steps, most) = (steps(&word, known), word.len().max(known.len()) / 3);
        (steps <= most.max(1) && steps < known.len()).then_some((steps, known))
    };
    known.into_iter().filter_map(near).min_by_key(|(steps, _)| *steps).map(|(_, known)| known)
}

/// Letters to insert, remove, replace, or swap with their neighbour (optimal string alignment).
fn steps(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            rows[i][j] = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                rows[i][j] = rows[i][j].min(rows[i - 2][j - 2] + 1);
            }
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_finds_its_neighbour() {
        let known = ["slot", "dsn", "publication", "max_retained_wal_mib", "limit"];
        for (word, expected) in [
            ("slott", Some("slot")),
            ("SLOT", Some("slot")),
            ("solt", Some("slot")),
            ("publikation", Some("publication")),
            ("max_retained_wal_mb", Some("max_retained_wal_mib")),
            ("limt", Some("limit")),
            ("dns", Some("dsn")),
            ("k", None),
            ("", None),
            ("threshold", None),
        ] {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
        assert_eq!(nearest(&"slot".repeat(100), known), None);
    }
}
