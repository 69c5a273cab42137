//! Checks of lists and their pages.

use super::bench::{Bench, Seen, ensure, shown_ids};
use super::fixtures::{
    at, by_owner, changed, id, ids, record, records, remove, revocation, touch, update,
};
use crate::clock::MAX_CLOCK_ERROR;
use crate::owner::{OwnerId, OwnerKind, Realm};
use crate::store::{ListBy, ListQuery, MAX_PAGE, TokenStore};
use crate::token::{
    ActorRef, ForeignDigest, KeyId, KeyedDigest, LastUse, Reason, StoredDigest, Token, TokenId,
    TokenKind,
};
use std::collections::BTreeSet;

pub(super) async fn a_list_holds_what_it_should<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let service =
        |token: Token| Token { kind: TokenKind::Service, owner_kind: OwnerKind::Service, ..token };
    let made_by = |number: u64| -> Result<ActorRef, Seen> {
        Ok(ActorRef::Token { owner: OwnerId::new("owner")?, id: id(number)? })
    };
    let elsewhere = Realm::new("elsewhere")?;
    let tokens = [
        record(1)?,
        service(record(2)?),
        Token { created_by: made_by(1)?, ..record(3)? },
        Token { owner: OwnerId::new("other")?, created_by: made_by(1)?, ..service(record(4)?) },
        Token { realm: elsewhere.clone(), restored_by: Some(id(1)?), ..record(5)? },
        Token {
            realm: elsewhere.clone(),
            created_by: made_by(3)?,
            ancestor: Some(id(2)?),
            ..service(record(6)?)
        },
    ];
    bench.insert(&tokens).await?;
    bench.settle().await;
    let owner = |realm: &Realm, owner: &str, kind| -> Result<ListBy, Seen> {
        Ok(ListBy::Owner { realm: realm.clone(), owner: OwnerId::new(owner)?, kind })
    };
    let of_kind = |realm: &Realm, kind| ListBy::Kind { realm: realm.clone(), kind };
    let here = Realm::default();
    let (personal, of_service) = (TokenKind::Personal, TokenKind::Service);
    let table: [(ListBy, &[u64]); 19] = [
        (owner(&here, "owner", None)?, &[1, 2, 3]),
        (owner(&here, "owner", Some(personal))?, &[1, 3]),
        (owner(&here, "owner", Some(of_service))?, &[2]),
        (owner(&here, "other", None)?, &[4]),
        (owner(&here, "other", Some(personal))?, &[]),
        (owner(&here, "nobody", None)?, &[]),
        (owner(&elsewhere, "owner", None)?, &[5, 6]),
        (of_kind(&here, personal), &[1, 3]),
        (of_kind(&here, of_service), &[2, 4]),
        (of_kind(&elsewhere, of_service), &[6]),
        (of_kind(&Realm::new("nowhere")?, personal), &[]),
        (ListBy::Creator(id(1)?), &[3, 4]),
        (ListBy::Creator(id(3)?), &[6]),
        (ListBy::Creator(id(2)?), &[]),
        (ListBy::Restorer(id(1)?), &[5]),
        (ListBy::Restorer(id(3)?), &[]),
        (ListBy::Ancestor(id(2)?), &[6]),
        (ListBy::Ancestor(id(1)?), &[]),
        (ListBy::Idle(at(1_000)?), &[1, 2, 3, 4, 5, 6]),
    ];
    for (by, expected) in table {
        bench.lists(&ListQuery::new(by), &ids(expected.iter().copied())?).await?;
    }
    // An update moves a record from one list to another.
    let [.., adopted] = &tokens;
    let third = id(3)?;
    let adopted = changed(adopted, |token| {
        token.created_by = ActorRef::Erased;
        token.restored_by = Some(third);
        token.ancestor = Some(third);
    });
    bench.commit([update(&adopted)]).await?;
    bench.settle().await;
    bench.lists(&ListQuery::new(ListBy::Creator(id(3)?)), &[]).await?;
    bench.lists(&ListQuery::new(ListBy::Restorer(id(3)?)), &ids([6])?).await?;
    bench.lists(&ListQuery::new(ListBy::Ancestor(id(2)?)), &[]).await?;
    bench.lists(&ListQuery::new(ListBy::Ancestor(id(3)?)), &ids([6])?).await
}

pub(super) async fn a_list_of_a_key_holds_its_digests<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let under = |key| StoredDigest::Keyed(KeyedDigest::new(KeyId::new(key), [1; 32]));
    let mut tokens = records(1..=6)?;
    for (number, token) in (1..).zip(&mut tokens) {
        token.digest = match number {
            1 => StoredDigest::Foreign(ForeignDigest::new("sha256", &[1; 32])),
            2 | 5 => under(u16::MAX),
            _ => under(0),
        };
    }
    if let [_, second, third, ..] = &mut *tokens {
        second.realm = Realm::new("elsewhere")?;
        third.facts.revocation = Some(revocation(Reason::Owner, 0)?);
    }
    bench.insert(&tokens).await?;
    bench.settle().await;
    let by = |key| ListQuery::new(ListBy::Key(KeyId::new(key)));
    bench.lists(&by(0), &ids([3, 4, 6])?).await?;
    bench.lists(&by(u16::MAX), &ids([2, 5])?).await?;
    bench.lists(&by(1), &[]).await?;
    bench.lists(&by(0).active_at(at(0)?), &ids([4, 6])?).await?;
    // A digest that changes its key moves from one list to another.
    let Some(moved) = tokens.get(3) else { return Ok(()) };
    bench.commit([update(&changed(moved, |token| token.digest = under(u16::MAX)))]).await?;
    bench.settle().await;
    bench.lists(&by(0), &ids([3, 6])?).await?;
    bench.lists(&by(u16::MAX), &ids([2, 4, 5])?).await
}

pub(super) async fn a_list_is_newest_first<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    // Inserts records out of the order of their ids, many of one millisecond, and older ones last.
    let numbers = [17, 3, 25, 4, 12, 5, 11, 24, 16, 13];
    bench.insert(&records(numbers)?).await?;
    bench.settle().await;
    let expected = ids(numbers)?;
    bench.lists(&by_owner("owner", None)?, &expected).await?;
    let personal = ListBy::Kind { realm: Realm::default(), kind: TokenKind::Personal };
    bench.lists(&ListQuery::new(personal), &expected).await?;
    bench.lists(&ListQuery::new(ListBy::Idle(at(1_000)?)), &expected).await
}

pub(super) async fn pages_are_exact<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let count = u64::try_from(MAX_PAGE)?.saturating_add(1);
    bench.insert(&records(1..=count)?).await?;
    bench.settle().await;
    let all = ids(1..=count)?;
    let child_of = ListQuery::new(ListBy::Idle(at(1_000)?));
    for query in [by_owner("owner", Some(TokenKind::Personal))?, child_of] {
        for limit in [1, 2, 67, MAX_PAGE] {
            bench.lists(&query.clone().limit(limit), &all).await?;
        }
        // The end of a list: a page with all remaining records is the last one, even if it is full.
        for (left, limit, more) in
            [(2, 1, true), (2, 2, false), (2, 3, false), (1, 1, false), (0, 1, false)]
        {
            let last = id(u64::try_from(left)?.saturating_add(1))?;
            let page = bench.store.list(&query.clone().after(Some(last)).limit(limit)).await?;
            let seen = page.tokens.len();
            ensure(seen == limit.min(left) && page.next.is_some() == more, || {
                format!(
                    "with {left} left, a page of {limit} held {seen} and went on at {:?}",
                    page.next
                )
            })?;
        }
    }
    // A page may begin at an id without a record.
    let between = by_owner("owner", None)?.after(Some(id(count.saturating_add(1_000))?));
    bench.lists(&between, &all).await?;
    bench.commit([remove(&record(100)?)]).await?;
    bench.settle().await;
    let rest = by_owner("owner", None)?.after(Some(id(100)?));
    bench.lists(&rest, &ids(1..100)?).await
}

pub(super) async fn pages_hold_while_records_come_and_go<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    // Records with multiples of three stay. Others appear and disappear between the pages.
    let stay = || (100..140_u64).filter(|number| number.checked_rem(3) == Some(0));
    let go: Vec<u64> = (100..140_u64).filter(|number| number.checked_rem(3) == Some(1)).collect();
    let come: Vec<u64> = (90..150_u64).filter(|number| number.checked_rem(3) == Some(2)).collect();
    bench.insert(&records(stay())?).await?;
    bench.insert(&records(go.iter().copied())?).await?;
    bench.settle().await;
    let mut seen = Vec::new();
    let mut query = by_owner("owner", None)?.limit(2);
    let mut leaving = go.iter().copied();
    let mut coming = come.iter().copied();
    loop {
        let page = bench.store.list(&query).await?;
        seen.extend(page.tokens.iter().map(|token| token.id));
        let Some(next) = page.next else { break };
        query = query.after(Some(next));
        // Removes records at both ends and in the middle, and also the record after which the next
        // page begins.
        if page.tokens.len() == 2
            && let Some(last) = page.tokens.last()
            && go.contains(&number_of(last))
        {
            bench.commit([remove(last)]).await.unwrap_or_default();
        }
        for number in leaving.by_ref().take(1) {
            bench.commit([remove(&record(number)?)]).await.unwrap_or_default();
        }
        for number in coming.by_ref().take(2) {
            bench.insert(&[record(number)?]).await?;
        }
        bench.settle().await;
        ensure(seen.len() < 1_000, || "the pages did not end".into())?;
    }
    ensure(seen.is_sorted_by(|one, next| one > next), || {
        format!("the pages held {} in this order", shown_ids(&seen))
    })?;
    let seen: BTreeSet<TokenId> = seen.into_iter().collect();
    let missing: Vec<TokenId> = ids(stay())?.into_iter().filter(|id| !seen.contains(id)).collect();
    ensure(missing.is_empty(), || {
        format!("the pages lacked {}, which were there all the time", shown_ids(&missing))
    })
}

/// Returns the number from which [`record`] made the token.
fn number_of(token: &Token) -> u64 {
    let micros = token.created_at.timestamp_micros();
    u64::try_from(micros.saturating_sub(1_800_000_000_000_000)).unwrap_or_default()
}

pub(super) async fn only_active_ones_are_listed<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let expires = |number: u64, micros: i64| -> Result<Token, Seen> {
        let mut token = record(number)?;
        token.facts.expires_at = Some(at(micros)?);
        Ok(token)
    };
    let revoke = |mut token: Token, micros: i64| -> Result<Token, Seen> {
        token.facts.revocation = Some(revocation(Reason::Owner, micros)?);
        Ok(token)
    };
    let tokens = [
        record(1)?,
        expires(2, 999)?,
        expires(3, 1_000)?,
        expires(4, 1_001)?,
        revoke(record(5)?, 0)?,
        // This record is revoked at a later instant, which makes no difference, because a
        // revocation always counts.
        revoke(record(6)?, 5_000)?,
        revoke(expires(7, 5_000)?, 0)?,
    ];
    bench.insert(&tokens).await?;
    bench.settle().await;
    let table: [(i64, &[u64]); 4] =
        [(998, &[1, 2, 3, 4]), (999, &[1, 3, 4]), (1_000, &[1, 4]), (1_001, &[1])];
    let personal = ListBy::Kind { realm: Realm::default(), kind: TokenKind::Personal };
    let queries = [
        by_owner("owner", None)?,
        ListQuery::new(personal),
        ListQuery::new(ListBy::Idle(at(9_999)?)),
    ];
    for query in queries {
        for (now, expected) in table {
            for limit in [1, 2, MAX_PAGE] {
                let query = query.clone().active_at(at(now)?).limit(limit);
                bench.lists(&query, &ids(expected.iter().copied())?).await?;
            }
        }
        bench.lists(&query, &ids(1..=7)?).await?;
    }
    Ok(())
}

#[allow(clippy::arithmetic_side_effects, reason = "instants of a test, far from the ends")]
pub(super) async fn idle_ones_are_listed<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let idle = |number: u64, from: i64, used: Option<i64>| -> Result<Token, Seen> {
        let last_used = used.map(at).transpose()?.map(|at| LastUse::new(at, None));
        Ok(Token { idle_from: at(from)?, last_used, ..record(number)? })
    };
    let tokens = [
        idle(1, 999, None)?,
        idle(2, 1_000, None)?,
        idle(3, 1_001, None)?,
        idle(4, 0, Some(999))?,
        idle(5, 0, Some(1_000))?,
        // This token was restored after its last use.
        idle(6, 1_000, Some(500))?,
        Token { realm: Realm::new("elsewhere")?, ..idle(7, 500, Some(0))? },
    ];
    bench.insert(&tokens).await?;
    bench.settle().await;
    let idle_at =
        |micros: i64| -> Result<ListQuery, Seen> { Ok(ListQuery::new(ListBy::Idle(at(micros)?))) };
    bench.lists(&idle_at(1_000)?, &ids([1, 4, 7])?).await?;
    bench.lists(&idle_at(1_001)?, &ids([1, 2, 4, 5, 6, 7])?).await?;
    bench.lists(&idle_at(0)?, &[]).await?;
    // A use counts immediately.
    let [first, ..] = &tokens;
    bench.store.touch(&[touch(first, 1_000, None)?]).await?;
    bench.settle().await;
    bench.lists(&idle_at(1_000)?, &ids([4, 7])?).await?;
    // Instants that a wrong clock recorded do not keep a record active.
    let error = MAX_CLOCK_ERROR.num_seconds() * 1_000_000;
    let from_the_future = [
        idle(11, error + 500, None)?,
        idle(12, error + 501, None)?,
        idle(13, 0, Some(error + 500))?,
        idle(14, 0, Some(error + 501))?,
        idle(15, error + 501, Some(error + 501))?,
        idle(16, error + 501, Some(499))?,
        idle(17, error + 501, Some(500))?,
    ];
    bench.insert(&from_the_future).await?;
    bench.settle().await;
    let at_that_time = ListQuery::new(ListBy::Idle(at(500)?)).active_at(at(500)?);
    bench.lists(&at_that_time, &ids([12, 14, 15, 16])?).await
}
