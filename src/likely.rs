//! Suggests the name that a mistyped one was likely meant to be.

/// The maximum number of edits between a text and its suggestion.
const MOST_EDITS: usize = 3;

/// Returns the candidate with the fewest edits from `text`, if it is near enough.
///
/// Allows one edit for each four bytes: at least one, and [`MOST_EDITS`] at most.
pub(crate) fn likely<'a, C>(text: &str, candidates: impl Iterator<Item = &'a C>) -> Option<&'a C>
where
    C: AsRef<str> + 'a,
{
    let most = (text.len() / 4).clamp(1, MOST_EDITS);
    let near = candidates.filter_map(|candidate| {
        let edits = distance(text.as_bytes(), candidate.as_ref().as_bytes(), most)?;
        Some((edits, candidate))
    });
    near.min_by_key(|(edits, _)| *edits).map(|(_, candidate)| candidate)
}

/// Returns the Levenshtein distance of two texts, or `None` if it exceeds `most`.
///
/// Stops at the first row that exceeds `most`, so that very different texts cost little.
fn distance(one: &[u8], other: &[u8], most: usize) -> Option<usize> {
    if one.len().abs_diff(other.len()) > most {
        return None;
    }
    // The distances from the part of `one` read so far to each prefix of `other` but the empty one.
    let mut row: Vec<usize> = (1..=other.len()).collect();
    for (read, byte) in one.iter().enumerate() {
        let (mut diagonal, mut left) = (read, read.saturating_add(1));
        let mut least = left;
        for (cell, against) in row.iter_mut().zip(other) {
            let replaced = diagonal.saturating_add(usize::from(byte != against));
            diagonal = *cell;
            left = replaced.min(left.min(*cell).saturating_add(1));
            *cell = left;
            least = least.min(left);
        }
        if least > most {
            return None;
        }
    }
    row.last().copied().or(Some(one.len())).filter(|edits| *edits <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (one, other, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("read", "raed", 2),
            ("deploymnts:wirte", "deployments:write", 3),
            ("abcdefgh", "hgfedcba", 8),
        ] {
            for most in 0..10 {
                let expected = (edits <= most).then_some(edits);
                assert_eq!(
                    distance(one.as_bytes(), other.as_bytes(), most),
                    expected,
                    "{one} {other} {most}"
                );
                assert_eq!(
                    distance(other.as_bytes(), one.as_bytes(), most),
                    expected,
                    "{other} {one} {most}"
                );
            }
        }
    }

    #[test]
    fn the_nearest_of_those_that_are_near() {
        let names = ["deployments:read", "deployments:write", "datastores:read", "a:b"];
        for (text, expected) in [
            ("deploymnts:wirte", Some("deployments:write")),
            ("deployments:raed", Some("deployments:read")),
            ("datastore:read", Some("datastores:read")),
            ("a:c", Some("a:b")),
            ("x:y", None),
            ("reports:read", None),
            ("", None),
        ] {
            assert_eq!(likely(text, names.iter()).copied(), expected, "{text}");
        }
    }
}
