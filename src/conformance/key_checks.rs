//! Checks of stored key checks, and of the counts of digests by key.

use super::bench::{Bench, Seen, ensure, join_all};
use super::fixtures::{record, records, remove, revocation};
use crate::BoxedFuture;
use crate::owner::Realm;
use crate::store::{KeyChecks, TokenStore};
use crate::token::{ForeignDigest, KeyCheck, KeyId, KeyedDigest, Reason, StoredDigest};

pub(super) async fn digests_are_counted_by_key<S: TokenStore + KeyChecks>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let mut tokens = records(1..=6)?;
    for (number, token) in (1..).zip(&mut tokens) {
        token.digest = match number {
            1 => StoredDigest::Foreign(ForeignDigest::new("sha256", &[1; 32])),
            2 | 3 => StoredDigest::Keyed(KeyedDigest::new(KeyId::new(u16::MAX), [1; 32])),
            _ => StoredDigest::Keyed(KeyedDigest::new(KeyId::new(0), [1; 32])),
        };
        match number {
            4 => token.realm = Realm::new("elsewhere")?,
            5 => token.facts.revocation = Some(revocation(Reason::Owner, 0)?),
            _ => {}
        }
    }
    bench.insert(&tokens).await?;
    bench.settle().await;
    let mut counts = bench.store.tokens_per_key().await?;
    counts.retain(|(_, count)| *count > 0);
    counts.sort_unstable();
    let expected = [(KeyId::new(0), 3), (KeyId::new(u16::MAX), 2)];
    ensure(counts == expected, || format!("the counts were {counts:?}, not {expected:?}"))
}

pub(super) async fn the_first_key_check_stays<S: TokenStore + KeyChecks>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let check = |key, byte| KeyCheck::new(KeyId::new(key), [byte; 16]);
    let known = async || -> Result<Vec<(KeyId, [u8; 16])>, Seen> {
        bench.settle().await;
        let known = bench.store.key_checks().await?;
        let mut known: Vec<_> = known.iter().map(|check| (check.key(), *check.value())).collect();
        known.sort_unstable();
        Ok(known)
    };
    let found = known().await?;
    ensure(found.is_empty(), || format!("an empty store has the key checks {found:?}"))?;
    let value = [255, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
    let first = KeyCheck::new(KeyId::new(u16::MAX), value);
    bench.store.record_key_check(&first).await?;
    bench.store.record_key_check(&check(0, 0)).await?;
    bench.store.record_key_check(&first).await?;
    bench.store.record_key_check(&check(u16::MAX, 7)).await?;
    bench.store.record_key_check(&check(0, 8)).await?;
    // Keys stay known even if no record uses them.
    let token = record(1)?;
    bench.insert(std::slice::from_ref(&token)).await?;
    bench.commit([remove(&token)]).await?;
    let expected = [(KeyId::new(0), [0; 16]), (KeyId::new(u16::MAX), value)];
    let found = known().await?;
    ensure(found == expected, || format!("the key checks were {found:?}, not {expected:?}"))?;
    // One of many concurrent check values remains.
    let writers: Vec<KeyCheck> = (1..=8).map(|byte| check(1, byte)).collect();
    let writers = writers
        .iter()
        .map(|check| -> BoxedFuture<'_, _> { Box::pin(bench.store.record_key_check(check)) });
    for result in join_all(writers.collect()).await {
        result?;
    }
    let found = known().await?;
    ensure(found.len() == 3, || format!("the key checks were {found:?}, not one per key"))
}
