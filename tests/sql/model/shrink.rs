//! Shortens a failing history: delta debugging (Zeller, 1999) over its steps.

use super::history::Step;

/// The maximum number of histories played while one is shortened.
const MOST: usize = 600;

/// Returns the shortest history found that still fails.
///
/// A token keeps its label when earlier steps are removed. The label of a token that is no longer
/// made refers to no token.
pub(crate) fn shrink(steps: Vec<Step>, mut fails: impl FnMut(&[Step]) -> bool) -> Vec<Step> {
    let mut steps = steps;
    let mut played = 0;
    let mut size = steps.len() / 2;
    while size > 0 {
        let mut start = 0;
        let mut is_shorter = false;
        while start < steps.len() && played < MOST {
            let end = steps.len().min(start + size);
            let rest: Vec<Step> = steps[..start].iter().chain(&steps[end..]).cloned().collect();
            played += 1;
            if fails(&rest) {
                steps = rest;
                is_shorter = true;
            } else {
                start = end;
            }
        }
        if !(is_shorter && size == 1) {
            size /= 2;
        }
    }
    steps
}
