//! Checks of single records: inserts, updates and removes.

use super::bench::{Bench, Seen, same};
use super::fixtures::{
    at, by_owner, changed, every_kind_of_record, id, insert, named, record, records, remove, touch,
    update, v4, v6,
};
use crate::owner::{OwnerId, OwnerKind, Realm};
use crate::store::{Change, Conflict, ListBy, ListQuery, TokenStore};
use crate::token::{LastUse, Lifetime, Token, TokenKind};

pub(super) async fn an_inserted_record_comes_back_unchanged<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let tokens = every_kind_of_record()?;
    bench.insert(&tokens).await?;
    bench.settle().await;
    for token in &tokens {
        bench.holds(token).await?;
        // A list also reads records, and maybe by other code.
        let query = ListQuery::new(ListBy::Owner {
            realm: token.realm.clone(),
            owner: token.owner.clone(),
            kind: None,
        });
        let page = bench.store.list(&query).await?;
        let listed = page.tokens.iter().find(|listed| listed.id == token.id);
        let listed =
            listed.ok_or_else(|| Seen(format!("the list of its owner lacked {}", token.id)))?;
        same(token, listed)?;
    }
    Ok(())
}

pub(super) async fn an_updated_record_comes_back_unchanged<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let tokens = every_kind_of_record()?;
    // The identity and the owner of a record stay. Everything else changes, and then changes back.
    let plain = |token: &Token| -> Result<Token, Seen> {
        let plain = Token {
            id: token.id,
            realm: token.realm.clone(),
            kind: token.kind,
            owner: token.owner.clone(),
            owner_kind: token.owner_kind,
            created_at: token.created_at,
            ..record(1)?
        };
        named(plain, &format!("plain {}", token.id))
    };
    let before = tokens.iter().map(plain).collect::<Result<Vec<_>, _>>()?;
    bench.insert(&before).await?;
    let full: Vec<Token> =
        tokens.iter().map(|token| Token { version: 2, last_used: None, ..token.clone() }).collect();
    let updates: Vec<Change> = full.iter().map(update).collect();
    bench.commit_all(&updates).await?;
    bench.settle().await;
    for token in &full {
        bench.holds(token).await?;
    }
    let bare: Vec<Token> =
        before.iter().map(|token| Token { version: 3, ..token.clone() }).collect();
    let updates: Vec<Change> = bare.iter().map(update).collect();
    bench.commit_all(&updates).await?;
    bench.settle().await;
    for token in &bare {
        bench.holds(token).await?;
    }
    Ok(())
}

pub(super) async fn what_is_not_there_is_not_found<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    bench.lacks(id(1)?).await?;
    bench.insert(&records([1, 3])?).await?;
    bench.settle().await;
    for number in [0, 2, 4, 1_000] {
        bench.lacks(id(number)?).await?;
    }
    Ok(())
}

/// Reads without waiting, however stale other reads may be.
pub(super) async fn a_change_is_current_at_once<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let mut token = record(1)?;
    let is_current = async |expected: Option<&Token>| match (
        bench.store.find_current(id(1)?).await?,
        expected,
    ) {
        (Some(found), Some(expected)) => same(expected, &found),
        (None, None) => Ok(()),
        (found, _) => Err(Seen(format!("the record was {found:?} instead of {expected:?}"))),
    };
    is_current(None).await?;
    bench.insert(std::slice::from_ref(&token)).await?;
    is_current(Some(&token)).await?;
    // Reads before each change, so that a cache holds the earlier answer.
    for lifetime in [Lifetime::Never, Lifetime::Days(7)] {
        drop(bench.store.find(token.id).await?);
        token = Token { lifetime, version: token.version.saturating_add(1), ..token };
        bench.commit([update(&token)]).await?;
        is_current(Some(&token)).await?;
    }
    drop(bench.store.find(token.id).await?);
    bench.commit([Change::Remove { id: token.id, version: token.version }]).await?;
    is_current(None).await
}

pub(super) async fn an_insert_never_overwrites<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let first = record(1)?;
    bench.insert(std::slice::from_ref(&first)).await?;
    let other = Token { id: first.id, ..record(2)? };
    bench.refused([insert(&other)], Conflict::Id(first.id)).await?;
    // Another realm, another owner and the next version make no difference: the id is the same.
    let elsewhere = Token {
        realm: Realm::new("elsewhere")?,
        owner: OwnerId::new("somebody else")?,
        version: 2,
        ..other
    };
    bench.refused([insert(&elsewhere)], Conflict::Id(first.id)).await?;
    bench.settle().await;
    bench.holds(&first).await
}

pub(super) async fn a_kind_fits_its_owner<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let misfits = [
        (TokenKind::Personal, OwnerKind::Service),
        (TokenKind::Personal, OwnerKind::Internal),
        (TokenKind::Service, OwnerKind::Human),
        (TokenKind::Service, OwnerKind::Internal),
    ];
    let good = record(1)?;
    bench.insert(std::slice::from_ref(&good)).await?;
    for (kind, owner_kind) in misfits {
        let token = Token { kind, owner_kind, ..record(2)? };
        bench.refused([insert(&token)], Conflict::OwnerKind(token.id)).await?;
        let after = changed(&good, |good| (good.kind, good.owner_kind) = (kind, owner_kind));
        bench.refused([update(&after)], Conflict::OwnerKind(good.id)).await?;
    }
    bench.settle().await;
    bench.lacks(id(2)?).await?;
    bench.holds(&good).await
}

pub(super) async fn an_update_needs_the_version_before<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let first = record(1)?;
    let second = changed(&first, |token| token.notified_days = Some(7));
    bench.insert(std::slice::from_ref(&first)).await?;
    bench.commit([update(&second)]).await?;
    for version in [0, 1, 2, 4, u64::MAX] {
        let stale = named(Token { version, ..second.clone() }, "stale")?;
        bench.refused([update(&stale)], Conflict::Version(first.id)).await?;
    }
    for version in [0, 1, 2] {
        let missing = Token { version, ..record(2)? };
        bench.refused([update(&missing)], Conflict::Version(missing.id)).await?;
    }
    bench.settle().await;
    bench.lacks(id(2)?).await?;
    bench.holds(&second).await?;
    let third = changed(&second, |token| token.notified_days = Some(1));
    bench.commit([update(&third)]).await?;
    bench.settle().await;
    bench.holds(&third).await
}

pub(super) async fn an_update_keeps_the_last_use<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let used = record(1)?;
    let unused = record(2)?;
    bench.insert(&[used.clone(), unused.clone()]).await?;
    bench.store.touch(&[touch(&used, 500, Some(v4(1)))?]).await?;
    let known = Some(LastUse::new(at(500)?, Some(v4(1))));
    let mut stored = used;
    // A missing, an older and a newer last use: the record's own value has no effect.
    for claimed in
        [None, Some(LastUse::new(at(400)?, None)), Some(LastUse::new(at(600)?, Some(v6())))]
    {
        stored = changed(&stored, |token| token.last_used = claimed);
        bench.commit([update(&stored)]).await?;
    }
    let claims = changed(&unused, |token| token.last_used = known);
    bench.commit([update(&claims)]).await?;
    bench.settle().await;
    stored.last_used = known;
    bench.holds(&stored).await?;
    bench.holds(&Token { last_used: None, ..claims }).await
}

pub(super) async fn a_remove_needs_its_version<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let first = record(1)?;
    let second = changed(&first, |token| token.notified_days = Some(7));
    bench.insert(std::slice::from_ref(&first)).await?;
    bench.commit([update(&second)]).await?;
    for version in [0, 1, 3] {
        let stale = Token { version, ..first.clone() };
        bench.refused([remove(&stale)], Conflict::Version(first.id)).await?;
    }
    let missing = record(2)?;
    bench.refused([remove(&missing)], Conflict::Version(missing.id)).await?;
    bench.settle().await;
    bench.holds(&second).await?;
    bench.commit([remove(&second)]).await?;
    bench.settle().await;
    bench.lacks(first.id).await?;
    bench.lists(&by_owner("owner", None)?, &[]).await?;
    bench.refused([remove(&second)], Conflict::Version(first.id)).await?;
    let third = changed(&second, |_| {});
    bench.refused([update(&third)], Conflict::Version(first.id)).await
}
