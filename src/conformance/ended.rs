//! Checks of the list of records that expired or were revoked.

use super::bench::{Bench, Seen, ensure, same, shown_ids};
use super::fixtures::{at, changed, id, ids_of, record, records, revocation, update};
use crate::owner::Realm;
use crate::store::TokenStore;
use crate::token::{Reason, Token, TokenId};

fn in_order(numbers: &[u64]) -> Result<Vec<TokenId>, Seen> {
    numbers.iter().map(|number| id(*number)).collect()
}

pub(super) async fn ended_records_are_listed<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let ends = |number: u64, expires: Option<i64>, revoked: Option<i64>| -> Result<Token, Seen> {
        let mut token = record(number)?;
        token.facts.expires_at = expires.map(at).transpose()?;
        token.facts.revocation =
            revoked.map(|micros| revocation(Reason::Admin, micros)).transpose()?;
        Ok(token)
    };
    let ended = [
        ends(1, Some(994), None)?,
        ends(2, Some(1_000), None)?,
        ends(3, None, Some(995))?,
        ends(4, None, Some(999))?,
        ends(5, Some(5_000), Some(998))?,
        ends(6, Some(997), Some(5_000))?,
        Token { realm: Realm::new("elsewhere")?, ..ends(7, Some(996), None)? },
    ];
    let others = [
        ends(11, Some(1_001), None)?,
        ends(12, None, Some(1_001))?,
        ends(13, Some(1_001), Some(1_001))?,
        ends(14, None, None)?,
    ];
    bench.insert(&ended).await?;
    bench.insert(&others).await?;
    bench.settle().await;
    let expected = in_order(&[1, 3, 7, 6, 5, 4, 2])?;
    let page = bench.store.list_ended(at(1_000)?, 100).await?;
    let listed = ids_of(&page.tokens);
    ensure(listed == expected && page.corrupt.is_empty(), || {
        format!("it listed {}, not {}", shown_ids(&listed), shown_ids(&expected))
    })?;
    for found in &page.tokens {
        let inserted = ended.iter().find(|token| token.id == found.id);
        same(inserted.ok_or_else(|| Seen(format!("{} was never inserted", found.id)))?, found)?;
    }
    Ok(())
}

pub(super) async fn the_first_to_end_are_listed_first<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    // Older records ended later.
    let mut tokens = records(1..=5)?;
    for (place, token) in (0_i64..).zip(&mut tokens) {
        token.facts.expires_at = Some(at(place.saturating_neg())?);
    }
    bench.insert(&tokens).await?;
    bench.settle().await;
    for (limit, expected) in
        [(2, &[5, 4][..]), (4, &[5, 4, 3, 2]), (5, &[5, 4, 3, 2, 1]), (9, &[5, 4, 3, 2, 1])]
    {
        let page = bench.store.list_ended(at(1_000)?, limit).await?;
        let (listed, expected) = (ids_of(&page.tokens), in_order(expected)?);
        ensure(listed == expected, || {
            format!("a list of {limit} held {}, not {}", shown_ids(&listed), shown_ids(&expected))
        })?;
    }
    // A restored record leaves the list, and a revoked one joins it.
    let [first, .., last] = tokens.as_slice() else { return Ok(()) };
    let restored = changed(last, |token| token.facts.expires_at = None);
    let revoked = revocation(Reason::Owner, -100)?;
    let revoked = changed(first, |token| token.facts.revocation = Some(revoked));
    bench.commit([update(&restored), update(&revoked)]).await?;
    bench.settle().await;
    let listed = ids_of(&bench.store.list_ended(at(1_000)?, 100).await?.tokens);
    let expected = in_order(&[1, 4, 3, 2])?;
    ensure(listed == expected, || {
        format!("it listed {}, not {}", shown_ids(&listed), shown_ids(&expected))
    })
}
