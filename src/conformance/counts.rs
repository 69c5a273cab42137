//! Checks of the counts of records by state.

use super::bench::{Bench, Seen, ensure};
use super::fixtures::{at, records, revocation};
use crate::store::{TokenCounts, TokenStore};
use crate::token::{Facts, Reason, TokenState};

pub(super) async fn states_are_counted_at_an_instant<S: TokenStore + TokenCounts>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let mut tokens = records(1..=5)?;
    for (number, token) in (1..).zip(&mut tokens) {
        token.facts = Facts {
            expires_at: if number < 4 { Some(at(1_000)?) } else { None },
            revocation: if number & 1 == 1 { Some(revocation(Reason::Owner, 0)?) } else { None },
            succession: None,
        };
    }
    bench.insert(&tokens).await?;
    bench.settle().await;
    for (now, active, revoked, expired) in [(999, 2, 3, 0), (1_000, 1, 1, 3), (1_001, 1, 1, 3)] {
        let counts = bench.store.count_by_state(at(now)?).await?;
        for (state, expected) in [
            (TokenState::Active, active),
            (TokenState::Revoked, revoked),
            (TokenState::Expired, expired),
        ] {
            let counted: u64 = counts
                .iter()
                .filter(|(counted, _)| *counted == state)
                .map(|(_, count)| count)
                .sum();
            ensure(counted == expected, || {
                format!("{counted} were counted as {state} at {now}, not {expected}")
            })?;
        }
    }
    Ok(())
}
