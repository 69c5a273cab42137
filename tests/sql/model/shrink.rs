//! Makes a failing history short: delta debugging (Zeller, 1999) over its steps.

use super::history::Step;

/// Most histories that are played while one is made short.
const MOST: usize = 600;

/// The shortest history found that still fails. A token keeps its label when steps before it are removed; what names a token that is
/// no longer made then names none.
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
