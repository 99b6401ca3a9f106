//! LIKE, and regular expressions as far as programs write them into questions to the catalog.

/// More steps than this are no pattern that a program writes.
const MAX_STEPS: usize = 100_000;

/// Does the text match a LIKE pattern: `%`, `_`, and a backslash before either?
pub fn like(text: &str, pattern: &str, fold: bool) -> bool {
    let chars =
        |text: &str| -> Vec<char> { if fold { text.to_lowercase().chars().collect() } else { text.chars().collect() } };
    let (text, pattern) = (chars(text), chars(pattern));
    // Places in the text that what was read of the pattern can end at.
    let mut ends = vec![false; text.len() + 1];
    ends[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let mut next = vec![false; text.len() + 1];
        match pattern[at] {
            '%' => {
                let first = ends.iter().position(|end| *end).unwrap_or(ends.len());
                next.iter_mut().skip(first).for_each(|end| *end = true);
            }
            wanted => {
                let escaped = wanted == '\\' && at + 1 < pattern.len();
                at += usize::from(escaped);
                let any = wanted == '_';
                for (place, c) in text.iter().enumerate() {
                    next[place + 1] = ends[place] && (any || *c == pattern[at]);
                }
            }
        }
        ends = next;
        at += 1;
    }
    ends[text.len()]
}

/// A piece of a regular expression.
#[derive(Debug)]
enum Piece {
    One(Atom),
    /// Any number of them, or at least one.
    Many(Atom, bool),
    Optional(Atom),
    Start,
    End,
}

#[derive(Debug)]
enum Atom {
    Any,
    Char(char),
    /// Characters and ranges; `true`: none of them.
    Class(Vec<(char, char)>, bool),
    Group(Vec<Vec<Piece>>),
}

/// Does a part of the text match? `None`: the pattern has something that is not known here, or takes too long.
pub fn regex(text: &str, pattern: &str, fold: bool) -> Option<bool> {
    let folded = |text: &str| if fold { text.to_lowercase() } else { text.to_owned() };
    let pattern: Vec<char> = folded(pattern).chars().collect();
    let mut at = 0;
    let ways = alternatives(&pattern, &mut at, 0)?;
    if at < pattern.len() {
        return None;
    }
    let text: Vec<char> = folded(text).chars().collect();
    let mut steps = 0;
    for start in 0..=text.len() {
        let found = ways
            .iter()
            .try_fold(false, |found, way| Some(found || !ends(way, &text, &[start], &mut steps)?.is_empty()))?;
        if found {
            return Some(true);
        }
    }
    Some(false)
}

fn alternatives(pattern: &[char], at: &mut usize, depth: usize) -> Option<Vec<Vec<Piece>>> {
    let mut ways = vec![Vec::new()];
    while let Some(c) = pattern.get(*at) {
        *at += 1;
        let atom = match c {
            '|' => {
                ways.push(Vec::new());
                continue;
            }
            ')' if depth > 0 => {
                *at -= 1;
                break;
            }
            '^' | '$' => {
                ways.last_mut()?.push(if *c == '^' { Piece::Start } else { Piece::End });
                continue;
            }
            '(' if depth < 20 => {
                if pattern.get(*at) == Some(&'?') {
                    return None;
                }
                let inner = alternatives(pattern, at, depth + 1)?;
                if pattern.get(*at) != Some(&')') {
                    return None;
                }
                *at += 1;
                Atom::Group(inner)
            }
            '.' => Atom::Any,
            '[' => class(pattern, at)?,
            // A letter behind a backslash means something; everything else means itself.
            '\\' => {
                *at += 1;
                Atom::Char(*pattern.get(*at - 1).filter(|c| !c.is_alphanumeric())?)
            }
            '*' | '+' | '?' | '{' | '(' => return None,
            c => Atom::Char(*c),
        };
        let piece = match pattern.get(*at) {
            Some('*') => Piece::Many(atom, false),
            Some('+') => Piece::Many(atom, true),
            Some('?') => Piece::Optional(atom),
            _ => {
                ways.last_mut()?.push(Piece::One(atom));
                continue;
            }
        };
        *at += 1;
        ways.last_mut()?.push(piece);
    }
    Some(ways)
}

fn class(pattern: &[char], at: &mut usize) -> Option<Atom> {
    let not = pattern.get(*at) == Some(&'^');
    *at += usize::from(not);
    let mut ranges = Vec::new();
    loop {
        let first = *pattern.get(*at)?;
        *at += 1;
        match first {
            ']' if !ranges.is_empty() => return Some(Atom::Class(ranges, not)),
            '[' | '\\' => return None,
            first if pattern.get(*at) == Some(&'-') && pattern.get(*at + 1).is_some_and(|c| *c != ']') => {
                ranges.push((first, *pattern.get(*at + 1)?));
                *at += 2;
            }
            first => ranges.push((first, first)),
        }
    }
}

/// Where in the text these pieces can end that begin at one of these places; in order, each once.
fn ends(pieces: &[Piece], text: &[char], starts: &[usize], steps: &mut usize) -> Option<Vec<usize>> {
    let mut places = starts.to_vec();
    for piece in pieces {
        places = match piece {
            Piece::Start => places.into_iter().filter(|place| *place == 0).collect(),
            Piece::End => places.into_iter().filter(|place| *place == text.len()).collect(),
            Piece::One(atom) => once(atom, text, &places, steps)?,
            Piece::Optional(atom) => {
                let mut all = once(atom, text, &places, steps)?;
                all.extend(places);
                all
            }
            Piece::Many(atom, at_least_one) => {
                let mut all = if *at_least_one { once(atom, text, &places, steps)? } else { places };
                let mut fresh = all.clone();
                while !fresh.is_empty() {
                    fresh = once(atom, text, &fresh, steps)?;
                    fresh.retain(|place| !all.contains(place));
                    all.extend(&fresh);
                }
                all
            }
        };
        places.sort_unstable();
        places.dedup();
    }
    Some(places)
}

fn once(atom: &Atom, text: &[char], places: &[usize], steps: &mut usize) -> Option<Vec<usize>> {
    *steps += places.len() + 1;
    if *steps > MAX_STEPS {
        return None;
    }
    let one = |holds: &dyn Fn(char) -> bool| {
        let next = |place: &usize| text.get(*place).filter(|c| holds(**c)).map(|_| place + 1);
        Some(places.iter().filter_map(next).collect())
    };
    match atom {
        Atom::Any => one(&|_| true),
        Atom::Char(wanted) => one(&|c| c == *wanted),
        Atom::Class(ranges, not) => one(&|c| ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *not),
        Atom::Group(ways) => {
            let mut all = Vec::new();
            for way in ways {
                all.extend(ends(way, text, places, steps)?);
            }
            all.sort_unstable();
            all.dedup();
            Some(all)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_is_sqls() {
        for (text, pattern, expected) in [
            ("docs", "do%", true),
            ("docs", "%o_s", true),
            ("docs", "d", false),
            ("pg_x", "pg\\_%", true),
            ("pgax", "pg\\_%", false),
            ("", "%", true),
            ("aXb", "a%b%b", false),
        ] {
            assert_eq!(like(text, pattern, false), expected, "{text} LIKE {pattern}");
        }
        assert!(like("DOCS", "do%", true));
    }

    #[test]
    fn regular_expressions_are_those_of_psql() {
        for (text, pattern, expected) in [
            ("docs", "^(docs)$", true),
            ("docs2", "^(docs)$", false),
            ("docs2", "^(docs.*)$", true),
            ("notes", "^(do.s|n.*s)$", true),
            ("pg_toast_7", "^pg_toast", true),
            ("a_pg_toast", "^pg_toast", false),
            ("a.b", "^(a\\.b)$", true),
            ("axb", "^(a\\.b)$", false),
            ("x7", "^[a-z][0-9]+$", true),
            ("x", "^[a-z][0-9]+$", false),
            ("ab", "^(a?b|c)*$", true),
            ("q", "[^a-z]", false),
        ] {
            assert_eq!(regex(text, pattern, false), Some(expected), "{text} ~ {pattern}");
        }
        assert_eq!(regex("DOCS", "^docs$", true), Some(true));
        for unknown in ["(?=a)", "\\d", "a{2}", "(a", "[a", "*"] {
            assert_eq!(regex("a", unknown, false), None, "{unknown}");
        }
        assert_eq!(regex(&"a".repeat(5_000), "(a*)*(a*)*b", false), None, "it does not go on for ever");
    }
}
