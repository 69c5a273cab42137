//! Reads and exports audit events while transactions overlap.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use patkit::audit::{AuditAction, AuditEvent};
use patkit::store::sql::SqlStore;
use patkit::store::sql::sqlx::SqlxEngine;
use patkit::store::{AuditLog, ChangeBatch, CursorError, EventQuery, ExportCursor};
use patkit::token::ActorRef;
use patkit::{EventId, NewToken, OwnerId, Realm, StoreError, TokenId, TokenStore};
use sqlx::{AssertSqlSafe, raw_sql};
use std::collections::BTreeSet;
use support_sql::{
    Folder, PostgresStore, ada, event_id, mariadb_pool, mariadb_store, pooler_pool, postgres_pool,
    postgres_store, schema, service, sqlite_store,
};

fn event() -> AuditEvent {
    let id = event_id();
    AuditEvent {
        id,
        at: chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
        realm: Realm::default(),
        action: AuditAction::Refused,
        actor: ActorRef::System,
        token: TokenId::from_bytes(id.to_bytes()).unwrap(),
        owner: Some(OwnerId::new("ada").unwrap()),
        reason: None,
        address: None,
    }
}

fn batch(event: &AuditEvent) -> ChangeBatch {
    ChangeBatch::new().event(event.clone())
}

/// Exports until there are `count` events and the page is empty.
///
/// Transactions of other tests on the same server may delay events for a while.
async fn export<S: AuditLog>(
    store: &S,
    cursor: &mut ExportCursor,
    limit: usize,
    count: usize,
) -> Vec<EventId> {
    let mut ids = Vec::new();
    for _ in 0..6_000 {
        let page = store.export(cursor, limit).await.unwrap();
        *cursor = ExportCursor::new(page.next.as_str());
        ids.extend(page.events.iter().map(|event| event.id));
        match (page.is_empty(), ids.len() < count) {
            (true, true) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            (true, false) => return ids,
            (false, _) => {}
        }
    }
    panic!("of {count} events, {ids:?} were exported");
}

/// Several transactions are open at once, and each ends after later ones.
async fn late_commits<E: SqlxEngine>(
    store: &SqlStore<sqlx::Pool<E>>,
    exporting: &impl AuditLog,
    begin: &'static str,
) {
    let mut cursor = ExportCursor::start();
    let (first, late, rolled_back, between, last) = (event(), event(), event(), event(), event());
    store.commit(&batch(&first)).await.unwrap();
    assert_eq!(export(exporting, &mut cursor, 3, 1).await, [first.id]);

    let mut open = store.pool().begin_with(begin).await.unwrap();
    store.within(&mut open).commit(&batch(&late)).await.unwrap();
    let mut undone = store.pool().begin_with(begin).await.unwrap();
    store.within(&mut undone).commit(&batch(&rolled_back)).await.unwrap();
    store.commit(&batch(&between)).await.unwrap();
    // Events behind an open transaction are not exported yet, but a list returns them.
    assert_eq!(export(exporting, &mut cursor, 3, 0).await, []);
    let shown = exporting.events(&EventQuery::new(Realm::default())).await.unwrap().events;
    assert_eq!(shown.iter().map(|event| event.id).collect::<Vec<_>>(), [between.id, first.id]);

    undone.rollback().await.unwrap();
    assert_eq!(export(exporting, &mut cursor, 3, 0).await, []);
    open.commit().await.unwrap();
    let exported: BTreeSet<EventId> =
        export(exporting, &mut cursor, 1, 2).await.into_iter().collect();
    assert_eq!(exported, BTreeSet::from([late.id, between.id]));
    store.commit(&batch(&last)).await.unwrap();
    assert_eq!(export(exporting, &mut cursor, 3, 1).await, [last.id]);
    assert_eq!(export(exporting, &mut ExportCursor::start(), 3, 4).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_committed_late_is_exported_once() {
    let pool = postgres_pool(6).await;
    let schema = schema(&pool).await;
    let store = PostgresStore::builder(pool).schema(&schema).migrate().await.unwrap();
    let behind = PostgresStore::builder(pooler_pool(2).await)
        .schema(&schema)
        .pooler(true)
        .open()
        .await
        .unwrap();
    late_commits(&store, &store, "BEGIN").await;
    let mut cursor = ExportCursor::start();
    assert_eq!(export(&behind, &mut cursor, 1, 4).await.len(), 4, "through a pooler too");
}

/// Exports events that were committed one after the other, with pages of each size.
async fn in_order<E: SqlxEngine>(store: SqlStore<sqlx::Pool<E>>) {
    let mut events: Vec<AuditEvent> = (0..7).map(|_| event()).collect();
    // Ids descend, and times are in no order.
    events.sort_by_key(|event| std::cmp::Reverse(event.id));
    for (event, seconds) in events.iter_mut().zip([3, 1, 6, 0, 5, 2, 4]) {
        event.at += chrono::TimeDelta::seconds(seconds);
        store.commit(&batch(event)).await.unwrap();
    }
    let committed: Vec<EventId> = events.iter().map(|event| event.id).collect();
    for limit in 1..=8 {
        let exported = export(&store, &mut ExportCursor::start(), limit, 7).await;
        assert_eq!(exported, committed, "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_exported_in_the_order_of_their_commits_whatever_their_ids_and_times() {
    in_order(postgres_store(&postgres_pool(2).await).await).await;
    let folder = Folder::new();
    in_order(sqlite_store(&folder.path().join("db")).await).await;
    in_order(mariadb_store(&mariadb_pool(2).await).await).await;
}

/// Slow writers, some of which roll back, and an exporter that never waits for them.
async fn races<E: SqlxEngine>(store: SqlStore<sqlx::Pool<E>>, begin: &'static str) {
    let (is_over, waits) = std::sync::mpsc::channel::<usize>();
    let exporter = tokio::spawn({
        let store = store.clone();
        async move {
            let (mut cursor, mut seen) = (ExportCursor::start(), Vec::new());
            loop {
                if let Ok(count) = waits.try_recv() {
                    let missing = count.saturating_sub(seen.len());
                    seen.extend(export(&store, &mut cursor, 7, missing).await);
                    return seen;
                }
                seen.extend(export(&store, &mut cursor, 7, 0).await);
                tokio::task::yield_now().await;
            }
        }
    });
    let writers: Vec<_> = (0..4_u64)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut committed = Vec::new();
                for round in 0..40_u64 {
                    let (one, two) = (event(), event());
                    if round % 5 == 4 {
                        store.commit(&batch(&one)).await.unwrap();
                        committed.push(one.id);
                        continue;
                    }
                    let mut transaction = store.pool().begin_with(begin).await.unwrap();
                    store.within(&mut transaction).commit(&batch(&one)).await.unwrap();
                    tokio::time::sleep(std::time::Duration::from_millis(
                        (writer * 7 + round * 3) % 11,
                    ))
                    .await;
                    store.within(&mut transaction).commit(&batch(&two)).await.unwrap();
                    if (writer + round) % 3 == 0 {
                        transaction.rollback().await.unwrap();
                    } else {
                        transaction.commit().await.unwrap();
                        committed.extend([one.id, two.id]);
                    }
                }
                committed
            })
        })
        .collect();
    let mut expected = BTreeSet::new();
    for writer in writers {
        expected.extend(writer.await.unwrap());
    }
    is_over.send(expected.len()).unwrap();
    let seen = exporter.await.unwrap();
    assert_eq!(seen.len(), expected.len(), "each once");
    assert_eq!(BTreeSet::from_iter(seen), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_beside_writers_has_each_committed_event_once() {
    races(postgres_store(&postgres_pool(8).await).await, "BEGIN").await;
    let folder = Folder::new();
    races(sqlite_store(&folder.path().join("db")).await, "BEGIN IMMEDIATE").await;
    races(mariadb_store(&mariadb_pool(8).await).await, "START TRANSACTION").await;
}

/// One call revokes the tokens of an owner, at one instant.
async fn revoke_all<E: SqlxEngine>(store: SqlStore<sqlx::Pool<E>>) {
    let tokens = service(store.clone());
    for number in 0..10 {
        tokens.generate(&ada(), NewToken::named(&format!("token {number}"))).await.unwrap();
    }
    let owner = OwnerId::new("ada").unwrap();
    assert_eq!(tokens.revoke_all(&Realm::default(), &owner).await.unwrap(), 10);
    let all = store.events(&EventQuery::new(Realm::default())).await.unwrap().events;
    assert_eq!(all.len(), 20);
    let mut query = EventQuery::new(Realm::default()).owner(owner).limit(3);
    let mut read = Vec::new();
    loop {
        let page = store.events(&query).await.unwrap();
        read.extend(page.events);
        let Some(next) = page.next else { break };
        query = query.after(Some(next));
    }
    assert_eq!(read, all);
    assert!(read.is_sorted_by(|newer, older| newer.id > older.id), "made by one service");
    assert_eq!(export(&store, &mut ExportCursor::start(), 3, 20).await.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_tokens_revoked_at_once_are_read_by_pages_of_three() {
    revoke_all(postgres_store(&postgres_pool(2).await).await).await;
    let folder = Folder::new();
    revoke_all(sqlite_store(&folder.path().join("db")).await).await;
    revoke_all(mariadb_store(&mariadb_pool(2).await).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_store_or_database_is_refused() {
    let postgres = postgres_store(&postgres_pool(2).await).await;
    let folder = Folder::new();
    let sqlite = sqlite_store(&folder.path().join("db")).await;
    postgres.commit(&batch(&event())).await.unwrap();
    sqlite.commit(&batch(&event())).await.unwrap();
    let mariadb = mariadb_store(&mariadb_pool(2).await).await;
    mariadb.commit(&batch(&event())).await.unwrap();
    let mut of_mariadb = ExportCursor::start();
    export(&mariadb, &mut of_mariadb, 1, 1).await;
    let (mut of_postgres, mut of_sqlite) = (ExportCursor::start(), ExportCursor::start());
    export(&postgres, &mut of_postgres, 1, 1).await;
    export(&sqlite, &mut of_sqlite, 1, 1).await;
    let refused = [
        (postgres.export(&of_sqlite, 1).await, CursorError::OtherStore),
        (sqlite.export(&of_postgres, 1).await, CursorError::OtherStore),
        (
            postgres.export(&ExportCursor::new("postgres:99999999999:1"), 1).await,
            CursorError::OtherDatabase,
        ),
        (sqlite.export(&ExportCursor::new("sqlite:0:2"), 1).await, CursorError::OtherDatabase),
        (sqlite.export(&ExportCursor::new("sqlite:0"), 1).await, CursorError::Malformed),
        (mariadb.export(&of_sqlite, 1).await, CursorError::OtherStore),
        (sqlite.export(&of_mariadb, 1).await, CursorError::OtherStore),
        (mariadb.export(&ExportCursor::new("mysql:0:2"), 1).await, CursorError::OtherDatabase),
    ];
    for (result, expected) in refused {
        assert!(
            matches!(result, Err(StoreError::Cursor(error)) if error == expected),
            "{result:?}"
        );
    }
    // A table whose events were all purged is still the same database.
    let before = chrono::DateTime::from_timestamp(2_000_000_000, 0).unwrap();
    assert_eq!(sqlite.prune_events(before, 10).await.unwrap(), 1);
    assert!(sqlite.export(&of_sqlite, 1).await.unwrap().is_empty());
    assert_eq!(mariadb.prune_events(before, 10).await.unwrap(), 1);
    assert!(mariadb.export(&of_mariadb, 1).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_indexes_that_events_are_read_by_serve_each_query() {
    let pool = postgres_pool(1).await;
    let schema = schema(&pool).await;
    PostgresStore::builder(pool.clone()).schema(&schema).migrate().await.unwrap();
    let rows = format!(
        "INSERT INTO {schema}.patkit_events (id, at, realm, action, actor, token, owner, xact) \
         SELECT decode(lpad(to_hex(n), 32, '0'), 'hex'), n, '', 'generated', 'system', \
         decode(lpad(to_hex(n % 5000), 32, '0'), 'hex'), 'owner ' || (n % 5000), n / 7 \
         FROM generate_series(1, 50000) AS numbers (n); ANALYZE {schema}.patkit_events"
    );
    raw_sql(AssertSqlSafe(rows)).execute(&pool).await.unwrap();
    let page = "LIMIT 50";
    for condition in [
        "realm = '' AND (at, id) < (40000, '\\x00') ORDER BY at DESC, id DESC",
        "realm = '' AND owner = 'owner 7' AND (at, id) > (40000, '\\x00') ORDER BY at, id",
        "realm = '' AND token = '\\x00000000000000000000000000000007' ORDER BY at DESC, id DESC",
        "xact < txid_snapshot_xmin(txid_current_snapshot()) AND (xact, seq) > (5000, 35000) ORDER BY xact, seq",
    ] {
        let explain =
            format!("EXPLAIN SELECT * FROM {schema}.patkit_events WHERE {condition} {page}");
        let plan = raw_sql(AssertSqlSafe(explain)).fetch_all(&pool).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| sqlx::Row::get(row, 0)).collect();
        let has = |what: &str| plan.iter().any(|line| line.contains(what));
        assert!(has("Index Scan") && !has("Seq Scan"), "{condition}: {plan:#?}");
        // Sorting is allowed for the ten events of one token, not for a large result.
        assert!(condition.contains("token") || !has("Sort"), "{condition}: {plan:#?}");
    }
}
