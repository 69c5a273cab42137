//! Checks of stored audit events.

use super::bench::{Bench, Seen, batch, conflicts, ensure};
use super::fixtures::{at, id, insert, namesake, record, update, v4, v6};
use crate::audit::{AuditAction, AuditEvent, EventId};
use crate::owner::{OwnerId, Realm};
use crate::store::{
    AuditLog, ChangeBatch, Conflict, EventPage, EventQuery, ExportCursor, StoreError, TokenStore,
};
use crate::token::{ActorRef, Reason};
use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

/// Returns an event of the token with this number, at this many microseconds. Its id is greater
/// than those of earlier calls.
fn event(number: u64, micros: i64, action: AuditAction) -> Result<AuditEvent, Seen> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    Ok(AuditEvent {
        id: EventId::new(id(COUNT.fetch_add(1, Ordering::Relaxed))?),
        at: at(micros)?,
        realm: Realm::default(),
        action,
        actor: ActorRef::System,
        token: id(number)?,
        owner: Some(OwnerId::new("owner")?),
        reason: None,
        address: None,
    })
}

fn events_alone(events: Vec<AuditEvent>) -> ChangeBatch {
    ChangeBatch { events, ..ChangeBatch::new() }
}

async fn logs<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
    realm: &Realm,
    expected: &[AuditEvent],
) -> Result<(), Seen> {
    bench.settle().await;
    let found = bench.store.events(&EventQuery::new(realm.clone()).oldest_first()).await?;
    ensure(found.corrupt.is_empty() && found.next.is_none() && found.events == expected, || {
        format!("the events were {found:?}, not {expected:?}")
    })
}

pub(super) async fn an_event_comes_back_unchanged<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let actors = [
        ActorRef::System,
        ActorRef::Owner(OwnerId::new(&"é".repeat(127))?),
        ActorRef::Token { owner: OwnerId::new("o'wner \"%_\\")?, id: id(7)? },
        ActorRef::Erased,
    ];
    let addresses = [None, Some(v4(9)), Some(v6())];
    let reasons = Reason::ALL.map(Reason::as_str);
    let mut events = Vec::new();
    for ((number, action), actor) in (0..).zip(AuditAction::ALL).zip(actors.iter().cycle()) {
        let place = usize::try_from(number)?;
        events.push(AuditEvent {
            actor: actor.clone(),
            owner: if number & 1 == 0 { Some(OwnerId::new("owner")?) } else { None },
            reason: reasons.get(place).map(|reason| Cow::Borrowed(*reason)),
            address: addresses.iter().copied().cycle().nth(place).flatten(),
            ..event(u64::try_from(number)?, number, action)?
        });
    }
    let (first, rest) = events.split_at(1);
    let with_change = ChangeBatch { events: first.to_vec(), ..batch([insert(&record(0)?)]) };
    bench.store.commit(&with_change).await?;
    bench.store.commit(&events_alone(rest.to_vec())).await?;
    logs(bench, &Realm::default(), &events).await
}

pub(super) async fn events_are_of_one_realm_token_owner_and_period<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    use AuditAction::{Generated, Renamed, Revoked};
    let elsewhere = Realm::new("elsewhere")?;
    let other = OwnerId::new("Owner")?;
    let one = event(1, 0, Generated)?;
    let two = event(2, 1, Generated)?;
    let three = event(1, 2, Renamed)?;
    let four = AuditEvent { owner: Some(other.clone()), ..event(1, 2, Revoked)? };
    let ownerless = AuditEvent { owner: None, ..event(2, 3, Revoked)? };
    let abroad = AuditEvent { realm: elsewhere.clone(), ..event(1, 3, Revoked)? };
    let all = [&one, &two, &three, &four, &ownerless, &abroad].map(Clone::clone);
    // Stores the events out of the order of their times.
    bench.store.commit(&events_alone(all.iter().rev().cloned().collect())).await?;
    let home = Realm::default();
    logs(bench, &home, all.get(..5).unwrap_or_default()).await?;
    logs(bench, &elsewhere, std::slice::from_ref(&abroad)).await?;
    logs(bench, &Realm::new("nowhere")?, &[]).await?;
    let of = || EventQuery::new(home.clone()).oldest_first();
    let (token, nobody) = (id(1)?, OwnerId::new("nobody")?);
    let table = [
        (of().from(at(1)?), vec![&two, &three, &four, &ownerless]),
        (of().until(at(2)?), vec![&one, &two]),
        (of().from(at(1)?).until(at(3)?), vec![&two, &three, &four]),
        (of().from(at(2)?).until(at(2)?), vec![]),
        (of().from(at(4)?), vec![]),
        (of().token(token), vec![&one, &three, &four]),
        (of().token(token).limit(2), vec![&one, &three]),
        (of().token(token).from(at(1)?).limit(1), vec![&three]),
        (of().token(id(3)?), vec![]),
        (of().owner(other.clone()), vec![&four]),
        (of().owner(one.owner.clone().unwrap_or(nobody.clone())), vec![&one, &two, &three]),
        (of().owner(nobody), vec![]),
        (of().owner(other).token(id(2)?), vec![]),
        (EventQuery::new(elsewhere.clone()).token(token), vec![&abroad]),
    ];
    for (query, expected) in table {
        let newest = EventQuery { order: crate::store::EventOrder::NewestFirst, ..query.clone() };
        let found = bench.store.events(&query).await?;
        ensure(found.events.iter().eq(expected.iter().copied()), || {
            format!("the events of {query:?} were {found:?}, not {expected:?}")
        })?;
        if newest.limit >= 5 {
            let found = bench.store.events(&newest).await?;
            ensure(found.events.iter().eq(expected.iter().rev().copied()), || {
                format!("the events of {newest:?} were {found:?}, not {expected:?} from the end")
            })?;
        }
    }
    Ok(())
}

/// Ten events have one instant, one is before it and one is after it.
pub(super) async fn pages_of_events_neither_repeat_nor_skip<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let mut expected = vec![event(1, -1, AuditAction::Generated)?];
    for number in 0..10 {
        expected.push(event(number, 0, AuditAction::Revoked)?);
    }
    expected.push(event(1, 1, AuditAction::Restored)?);
    // Stores the events out of order, half of them in one commit.
    let mut stored = expected.clone();
    stored.reverse();
    stored.rotate_left(5);
    let together = stored.split_off(6);
    bench.store.commit(&events_alone(together)).await?;
    for event in stored {
        bench.store.commit(&events_alone(vec![event])).await?;
    }
    bench.settle().await;
    for oldest_first in [true, false] {
        for limit in [1, 2, 3, 4, 12, 13] {
            let mut query = EventQuery::new(Realm::default()).limit(limit);
            if oldest_first {
                query = query.oldest_first();
            }
            let mut read = Vec::new();
            loop {
                let EventPage { events, next, .. } = bench.store.events(&query).await?;
                ensure(events.len() <= limit, || {
                    format!("{} events came, not {limit}", events.len())
                })?;
                read.extend(events);
                // The cursor goes through its text, as with a client.
                let Some(next) = next.filter(|_| read.len() <= expected.len()) else { break };
                let next =
                    next.to_string().parse().map_err(|error| Seen(format!("{next}: {error}")))?;
                query = query.after(Some(next));
            }
            ensure(read == expected, || {
                format!(
                    "the pages of {limit}, oldest first {oldest_first}, held {read:?}, not {expected:?}"
                )
            })?;
        }
        expected.reverse();
    }
    Ok(())
}

pub(super) async fn an_event_is_stored_once<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let told = event(1, 0, AuditAction::Refused)?;
    let other = event(1, 0, AuditAction::Refused)?;
    bench.store.commit(&events_alone(vec![told.clone()])).await?;
    bench.store.commit(&events_alone(vec![told.clone(), other.clone()])).await?;
    logs(bench, &Realm::default(), &[told.clone(), other.clone()]).await?;
    exports(bench, &mut ExportCursor::start(), 10, &[told, other]).await
}

/// The number of times that an export is retried for events that are held back by another
/// transaction that is still open.
const EXPORT_TRIES: usize = 20_000;

/// Exports all events, this many at once.
async fn exports<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
    cursor: &mut ExportCursor,
    limit: usize,
    expected: &[AuditEvent],
) -> Result<(), Seen> {
    bench.settle().await;
    let mut read = Vec::new();
    for _ in 0..EXPORT_TRIES {
        let page = bench.store.export(cursor, limit).await?;
        ensure(page.events.len() <= limit, || {
            format!("{} events came, not {limit}", page.events.len())
        })?;
        *cursor = ExportCursor::new(page.next.as_str());
        let is_late = page.is_empty() && read.len() < expected.len();
        if !is_late && (page.is_empty() || read.len() > expected.len()) {
            break;
        }
        read.extend(page.events);
    }
    ensure(read == expected, || {
        format!("the export of {limit} at once held {read:?}, not {expected:?}")
    })
}

pub(super) async fn an_export_holds_each_event_once_in_the_order_of_the_commits<
    S: TokenStore + AuditLog,
>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let elsewhere = Realm::new("elsewhere")?;
    // Later commits have earlier events, as with a flush.
    let mut commits = Vec::new();
    for (number, micros) in [9, 5, 5, -3, 7].into_iter().enumerate() {
        let realm = if number == 2 { elsewhere.clone() } else { Realm::default() };
        commits.push(AuditEvent { realm, ..event(1, micros, AuditAction::Refused)? });
    }
    let mut cursors = [1, 2, 3, 4].map(|limit| (limit, ExportCursor::start()));
    for (limit, cursor) in &mut cursors {
        exports(bench, cursor, *limit, &[]).await?;
    }
    for event in &commits {
        bench.store.commit(&events_alone(vec![event.clone()])).await?;
        for (limit, cursor) in &mut cursors {
            exports(bench, cursor, *limit, std::slice::from_ref(event)).await?;
        }
    }
    for limit in [1, 2, 3, 4] {
        exports(bench, &mut ExportCursor::start(), limit, &commits).await?;
    }
    // Purged events are not exported, and an existing cursor continues.
    ensure(bench.store.prune_events(at(6)?, 10).await? == 3, || "not all were pruned".into())?;
    let [(_, cursor), ..] = &mut cursors;
    exports(bench, cursor, 2, &[]).await?;
    let last = event(1, 0, AuditAction::Refused)?;
    bench.store.commit(&events_alone(vec![last.clone()])).await?;
    exports(bench, cursor, 2, std::slice::from_ref(&last)).await?;
    let left: Vec<AuditEvent> = commits
        .iter()
        .filter(|event| event.at >= at(6).unwrap_or(event.at))
        .cloned()
        .chain([last])
        .collect();
    exports(bench, &mut ExportCursor::start(), 2, &left).await
}

pub(super) async fn a_cursor_of_another_store_is_refused<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let told = event(1, 0, AuditAction::Refused)?;
    bench.store.commit(&events_alone(vec![told.clone()])).await?;
    bench.settle().await;
    let mut own = ExportCursor::start();
    exports(bench, &mut own, 1, std::slice::from_ref(&told)).await?;
    let of_list = crate::store::EventCursor::of(&told).to_string();
    let texts = [
        "another",
        "another:1",
        "another:1:1",
        "\0",
        "é",
        &of_list,
        &format!("{own}0x"),
        &format!(" {own}"),
    ];
    for text in texts {
        let seen = bench.store.export(&ExportCursor::new(text), 1).await;
        ensure(matches!(seen, Err(StoreError::Cursor(_))), || {
            format!("the export after the cursor {text:?} gave {seen:?}, not `StoreError::Cursor`")
        })?;
    }
    Ok(())
}

pub(super) async fn a_batch_may_hold_events_alone<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let told = event(1, 0, AuditAction::Refused)?;
    bench.store.commit(&events_alone(vec![told.clone()])).await?;
    logs(bench, &Realm::default(), &[told]).await
}

pub(super) async fn a_conflict_leaves_no_event<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let token = record(1)?;
    let told = event(1, 0, AuditAction::Generated)?;
    let good = ChangeBatch { events: vec![told.clone()], ..batch([insert(&token)]) };
    bench.store.commit(&good).await?;
    let bad = [
        (insert(&token), Conflict::Id(token.id)),
        (update(&token), Conflict::Version(token.id)),
        (insert(&namesake(record(3)?, &token)), Conflict::Name(id(3)?)),
    ];
    for (change, conflict) in bad {
        let batch = ChangeBatch {
            events: vec![event(2, 1, AuditAction::Generated)?],
            erase: Some((Realm::default(), token.owner.clone())),
            ..batch([insert(&record(2)?), change])
        };
        conflicts(&bench.store.commit(&batch).await, conflict)?;
    }
    logs(bench, &Realm::default(), &[told]).await
}

pub(super) async fn erasing_takes_out_every_trace<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let (owner, other) = (OwnerId::new("owner")?, OwnerId::new("other")?);
    let told =
        |micros: i64, realm: &Realm, of: &OwnerId, by: ActorRef| -> Result<AuditEvent, Seen> {
            Ok(AuditEvent {
                realm: realm.clone(),
                owner: Some(of.clone()),
                actor: by,
                address: Some(v4(1)),
                ..event(1, micros, AuditAction::Revoked)?
            })
        };
    let through = ActorRef::Token { owner: owner.clone(), id: id(1)? };
    let (home, elsewhere) = (Realm::default(), Realm::new("elsewhere")?);
    let events = vec![
        told(0, &home, &owner, ActorRef::Owner(owner.clone()))?,
        told(1, &home, &owner, ActorRef::System)?,
        told(2, &home, &other, through)?,
        told(3, &home, &other, ActorRef::Owner(other.clone()))?,
        told(4, &elsewhere, &owner, ActorRef::Owner(owner.clone()))?,
    ];
    bench.store.commit(&events_alone(events.clone())).await?;
    let last = told(5, &home, &owner, ActorRef::Owner(owner.clone()))?;
    let erasing = ChangeBatch {
        erase: Some((home.clone(), owner.clone())),
        ..events_alone(vec![last.clone()])
    };
    bench.store.commit(&erasing).await?;
    let mut expected = events;
    for event in &mut expected {
        event.erase(&home, &owner);
    }
    let abroad = expected.pop();
    expected.push(last);
    logs(bench, &home, &expected).await?;
    logs(bench, &elsewhere, &Vec::from_iter(abroad)).await
}

pub(super) async fn events_are_pruned_oldest_first<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let mut events = Vec::new();
    for number in 0..5 {
        events.push(event(1, number, AuditAction::Refused)?);
    }
    bench.store.commit(&events_alone(events.clone())).await?;
    for (removed, left) in [(2, 2), (1, 3), (0, 3)] {
        let count = bench.store.prune_events(at(3)?, 2).await?;
        ensure(count == removed, || format!("{count} events were pruned, not {removed}"))?;
        logs(bench, &Realm::default(), events.get(left..).unwrap_or_default()).await?;
    }
    Ok(())
}
