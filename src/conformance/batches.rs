//! Checks of batches, which are committed whole or not at all.

use super::bench::{Bench, Seen};
use super::fixtures::{
    by_owner, changed, id, ids, insert, namesake, record, records, remove, update,
};
use crate::owner::OwnerKind;
use crate::store::{Change, Conflict, TokenStore};
use crate::token::Token;

pub(super) async fn a_batch_is_done_whole<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let (changes_later, goes) = (record(1)?, record(2)?);
    bench.insert(&[changes_later.clone(), goes.clone()]).await?;
    let comes = record(3)?;
    let after = changed(&changes_later, |token| token.notified_days = Some(7));
    bench.commit([remove(&goes), insert(&comes), update(&after)]).await?;
    bench.settle().await;
    bench.lacks(goes.id).await?;
    bench.holds(&comes).await?;
    bench.holds(&after).await?;
    bench.lists(&by_owner("owner", None)?, &ids([1, 3])?).await?;
    bench.commit([]).await
}

pub(super) async fn a_batch_that_conflicts_leaves_nothing<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let before = records([1, 2, 3])?;
    bench.insert(&before).await?;
    let [stays, goes, other] = before.as_slice() else {
        return Ok(());
    };
    let comes = record(4)?;
    let after = changed(stays, |token| token.notified_days = Some(7));
    let stale = changed(&changed(other, |_| {}), |_| {});
    let same_id = Token { id: other.id, ..record(5)? };
    let same_name = namesake(record(5)?, other);
    let misfit = Token { owner_kind: OwnerKind::Internal, ..record(5)? };
    let gone = Change::Remove { id: id(9)?, version: 1 };
    let last = [
        (insert(&same_id), Conflict::Id(other.id)),
        (update(&stale), Conflict::Version(other.id)),
        (gone, Conflict::Version(id(9)?)),
        (insert(&same_name), Conflict::Name(same_name.id)),
        (insert(&misfit), Conflict::OwnerKind(misfit.id)),
    ];
    for (change, conflict) in last {
        let changes = [insert(&comes), update(&after), remove(goes), change];
        bench.refused(changes, conflict).await?;
    }
    bench.settle().await;
    for token in &before {
        bench.holds(token).await?;
    }
    bench.lacks(comes.id).await?;
    bench.lacks(id(5)?).await?;
    bench.lists(&by_owner("owner", None)?, &ids([1, 2, 3])?).await?;
    // Names were neither claimed nor freed, and versions did not change.
    let claims = namesake(record(6)?, &comes);
    let takes = namesake(record(7)?, goes);
    bench.commit([insert(&claims), update(&after)]).await?;
    bench.refused([insert(&takes)], Conflict::Name(takes.id)).await
}

pub(super) async fn the_first_conflict_is_told<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let tokens = records([1, 2, 3])?;
    bench.insert(&tokens).await?;
    let stale: Vec<Change> = tokens.iter().rev().map(update).collect();
    bench.refused(stale, Conflict::Version(id(3)?)).await?;
    let again: Vec<Change> = tokens.iter().map(insert).collect();
    bench.refused(again, Conflict::Id(id(1)?)).await
}
