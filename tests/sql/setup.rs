//! Opens stores in databases: migrations, names, rights, and the settings that a store refuses.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use patkit::service::{CheckError, ManageError};
use patkit::store::sql::SetupError;
use patkit::store::{
    AuditLog, Change, ChangeBatch, Conflict, EventQuery, ExportCursor, KeyChecks, ListBy,
    ListQuery, Touch,
};
use patkit::token::{KeyId, LastUse};
use patkit::{Credential, Keyring, NewToken, OwnerId, Realm, StoreError, TokenStore};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Row, raw_sql};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;
use support_sql::{
    Folder, PostgresStore, SqliteStore, ada, builder, postgres_pool, postgres_store, postgres_url,
    schema, service, sqlite_options, sqlite_pool, unique,
};

fn ada_id() -> OwnerId {
    OwnerId::new("ada").unwrap()
}

/// Generates a token, verifies it and writes its use.
async fn works<S: TokenStore>(store: S) {
    let service = service(store);
    let new = NewToken::named(&unique("token"));
    let issued = service.generate(&ada(), new).await.unwrap();
    service.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap();
    service.flush().await.unwrap();
    let found = service.store().find(issued.token.id()).await.unwrap().unwrap();
    assert!(found.last_used.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn migrating_again_changes_nothing_and_eight_at_once_do_it_once() {
    let pool = postgres_pool(16).await;
    let schema = schema(&pool).await;
    let migrate = || {
        let (pool, schema) = (pool.clone(), schema.clone());
        tokio::spawn(async move { PostgresStore::builder(pool).schema(&schema).migrate().await })
    };
    for task in std::array::from_fn::<_, 8, _>(|_| migrate()) {
        works(task.await.unwrap().unwrap()).await;
    }
    works(migrate().await.unwrap().unwrap()).await;
    let sql = format!("SELECT COUNT(*) FROM {schema}.patkit_migrations");
    let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&pool).await.unwrap();
    assert_eq!(row.get::<i64, _>(0), 1);

    let folder = Folder::new();
    let file = folder.path().join("db");
    // The host chooses the journal mode. SQLite lets only one connection change it, and the change
    // does not wait for locks.
    let pool = sqlite_pool(&file, 1).await;
    let migrate = || {
        let file = file.clone();
        tokio::spawn(
            async move { SqliteStore::builder(sqlite_pool(&file, 2).await).migrate().await },
        )
    };
    for task in std::array::from_fn::<_, 8, _>(|_| migrate()) {
        works(task.await.unwrap().unwrap()).await;
    }
    works(migrate().await.unwrap().unwrap()).await;
    let row = sqlx::query("SELECT COUNT(*) FROM patkit_migrations").fetch_one(&pool).await.unwrap();
    assert_eq!(row.get::<i64, _>(0), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_with_other_prefixes_share_a_database_and_see_nothing_of_each_other() {
    let pool = postgres_pool(8).await;
    let schema = schema(&pool).await;
    let one = PostgresStore::builder(pool.clone())
        .schema(&schema)
        .prefix("one_")
        .migrate()
        .await
        .unwrap();
    let two = PostgresStore::builder(pool.clone())
        .schema(&schema)
        .prefix("two_")
        .migrate()
        .await
        .unwrap();
    works(one.clone()).await;
    works(one.clone()).await;
    let owner = ListBy::Owner { realm: Realm::default(), owner: ada_id(), kind: None };
    assert_eq!(one.list(&ListQuery::new(owner.clone())).await.unwrap().tokens.len(), 2);
    assert!(two.list(&ListQuery::new(owner.clone())).await.unwrap().tokens.is_empty());

    let folder = Folder::new();
    let pool = sqlite_pool(&folder.path().join("db"), 4).await;
    let one = SqliteStore::builder(pool.clone()).prefix("one_").migrate().await.unwrap();
    let two = SqliteStore::builder(pool.clone()).prefix("two_").migrate().await.unwrap();
    works(one.clone()).await;
    assert_eq!(one.list(&ListQuery::new(owner.clone())).await.unwrap().tokens.len(), 1);
    assert!(two.list(&ListQuery::new(owner)).await.unwrap().tokens.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_owns_its_schema_and_nothing_else_is_enough() {
    let pool = postgres_pool(2).await;
    let role = unique("role");
    let sql = format!("CREATE ROLE {role} LOGIN; CREATE SCHEMA {role} AUTHORIZATION {role}");
    raw_sql(AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    let options: PgConnectOptions = postgres_url().parse().unwrap();
    let own = PgPoolOptions::new()
        .max_connections(2)
        .connect_with(options.username(&role))
        .await
        .unwrap();
    works(PostgresStore::builder(own.clone()).schema(&role).migrate().await.unwrap()).await;
    // Without the right, `migrate` fails and leaves nothing half done.
    let other = schema(&pool).await;
    let refused = PostgresStore::builder(own).schema(&other).migrate().await;
    assert!(matches!(refused, Err(SetupError::Denied(_))), "{refused:?}");
    let sql = format!("SELECT 1 FROM information_schema.tables WHERE table_schema = '{other}'");
    assert!(sqlx::query(AssertSqlSafe(sql)).fetch_all(&pool).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_missing_or_of_another_version_are_refused_and_named() {
    let pool = postgres_pool(4).await;
    let schema = schema(&pool).await;
    let open = || PostgresStore::builder(pool.clone()).schema(&schema).open();
    assert!(matches!(open().await, Err(SetupError::NotMigrated { .. })));
    PostgresStore::builder(pool.clone()).schema(&schema).migrate().await.unwrap();
    open().await.unwrap();
    // A later version that is compatible with this program, and one that is not.
    for (version, min_compatible, fits) in [(2, 1, true), (3, 3, false)] {
        let sql = format!(
            "INSERT INTO {schema}.patkit_migrations VALUES ({version}, {min_compatible}, 'later', 0)"
        );
        raw_sql(AssertSqlSafe(sql)).execute(&pool).await.unwrap();
        for result in
            [open().await, PostgresStore::builder(pool.clone()).schema(&schema).migrate().await]
        {
            match result {
                Ok(store) if fits => works(store).await,
                Err(SetupError::TooNew { found: 3, needed: 3, own: 1 }) if !fits => {}
                other => panic!("version {version}: {other:?}"),
            }
        }
    }

    let folder = Folder::new();
    let pool = sqlite_pool(&folder.path().join("db"), 2).await;
    let refused = SqliteStore::builder(pool.clone()).open().await;
    assert!(matches!(refused, Err(SetupError::NotMigrated { .. })), "{refused:?}");
    SqliteStore::builder(pool.clone()).migrate().await.unwrap();
    raw_sql("INSERT INTO patkit_migrations VALUES (9, 2, 'later', 0)")
        .execute(&pool)
        .await
        .unwrap();
    let refused = SqliteStore::builder(pool).open().await;
    assert!(
        matches!(refused, Err(SetupError::TooNew { found: 9, needed: 2, own: 1 })),
        "{refused:?}"
    );
}

/// Hosts may run the SQL files of this crate with their own tool.
#[tokio::test(flavor = "multi_thread")]
async fn the_sql_files_as_they_are_make_tables_that_a_store_opens() {
    let pool = postgres_pool(4).await;
    let schema = schema(&pool).await;
    let script = include_str!("../../src/store/migrations/postgres/0001_tokens.sql");
    let script = format!("BEGIN; SET LOCAL search_path TO {schema}; {script}; COMMIT");
    raw_sql(AssertSqlSafe(script)).execute(&pool).await.unwrap();
    works(PostgresStore::builder(pool.clone()).schema(&schema).open().await.unwrap()).await;
    works(PostgresStore::builder(pool).schema(&schema).migrate().await.unwrap()).await;

    let folder = Folder::new();
    let pool = sqlite_pool(&folder.path().join("db"), 2).await;
    raw_sql(include_str!("../../src/store/migrations/sqlite/0001_tokens.sql"))
        .execute(&pool)
        .await
        .unwrap();
    works(SqliteStore::builder(pool.clone()).open().await.unwrap()).await;
    works(SqliteStore::builder(pool).migrate().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_could_lose_a_revocation_are_refused_and_named() {
    type Change = fn(SqliteConnectOptions) -> SqliteConnectOptions;
    let table: [(Change, &str); 5] = [
        (|options| options.journal_mode(SqliteJournalMode::Memory), "journal_mode"),
        (|options| options.journal_mode(SqliteJournalMode::Delete), "journal_mode"),
        (|options| options.synchronous(SqliteSynchronous::Normal), "synchronous"),
        (|options| options.synchronous(SqliteSynchronous::Off), "synchronous"),
        (|options| options.busy_timeout(Duration::from_millis(10)), "busy_timeout"),
    ];
    for (change, named) in table {
        let folder = Folder::new();
        let options = change(sqlite_options(&folder.path().join("db")));
        let pool = SqlitePoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
        match SqliteStore::builder(pool).migrate().await {
            Err(SetupError::Setting { setting, .. }) => assert_eq!(setting, named),
            other => panic!("{named}: {other:?}"),
        }
    }
    // Each connection has its own database in memory.
    let options = SqliteConnectOptions::new().filename(":memory:");
    let pool = SqlitePoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
    let refused = SqliteStore::builder(pool).migrate().await;
    assert!(
        matches!(refused, Err(SetupError::Setting { setting: "the database in memory", .. })),
        "{refused:?}"
    );

    let options: PgConnectOptions = postgres_url().parse().unwrap();
    let options = options.options([("synchronous_commit", "off")]);
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
    let schema = schema(&pool).await;
    let refused = PostgresStore::builder(pool).schema(&schema).migrate().await;
    assert!(
        matches!(refused, Err(SetupError::Setting { setting: "synchronous_commit", .. })),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_read_only_verifies_and_reports_what_it_cannot_write() {
    let build = service::<Arc<dyn patkit::store::DynTokenStore>>;
    let pool = postgres_pool(4).await;
    let schema = schema(&pool).await;
    let writable = PostgresStore::builder(pool.clone()).schema(&schema).migrate().await.unwrap();
    let options: PgConnectOptions = postgres_url().parse().unwrap();
    let options = options.options([("default_transaction_read_only", "on")]);
    let reader = PgPoolOptions::new().max_connections(4).connect_with(options).await.unwrap();
    let reading = PostgresStore::builder(reader).schema(&schema).open().await.unwrap();

    let folder = Folder::new();
    let file = folder.path().join("db");
    let writable_file = SqliteStore::builder(sqlite_pool(&file, 2).await).migrate().await.unwrap();
    let options = sqlite_options(&file).pragma("query_only", "1");
    let reader = SqlitePoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
    let reading_file = SqliteStore::builder(reader).open().await.unwrap();

    let pairs: [(Arc<dyn patkit::store::DynTokenStore>, Arc<dyn patkit::store::DynTokenStore>); 2] =
        [(Arc::new(writable), Arc::new(reading)), (Arc::new(writable_file), Arc::new(reading_file))];
    for (writable, reading) in pairs {
        let issued = build(writable).generate(&ada(), NewToken::named("a")).await.unwrap();
        let service = build(reading.clone());
        service.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap();
        service.flush().await.unwrap_err();
        assert_eq!(service.usage().failed_flushes, 1);
        assert_eq!(service.usage().pending, 1, "kept for when it can be written");
        let token = reading.find(issued.token.id()).await.unwrap().unwrap();
        let touch = Touch::new(token.id, LastUse::new(token.created_at, None));
        assert!(matches!(reading.touch(&[touch]).await, Err(StoreError::Unavailable(_))));
        let batch = ChangeBatch::new().change(Change::Remove { id: token.id, version: 1 });
        assert!(matches!(reading.commit(&batch).await, Err(StoreError::Unavailable(_))));
    }
}

/// A change that is dropped at any moment leaves no open transaction on its pooled connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_dropped_leaves_the_pool_as_it_was() {
    let direct = postgres_pool(2).await;
    let schema = schema(&direct).await;
    let pool = postgres_pool(1).await;
    let store = PostgresStore::builder(pool).schema(&schema).migrate().await.unwrap();
    let seen_by_others = PostgresStore::builder(direct).schema(&schema).open().await.unwrap();
    let token = service(store.clone()).generate(&ada(), NewToken::named("a")).await.unwrap().token;
    let batch = ChangeBatch::new().change(Change::Remove { id: token.id(), version: 99 });
    for round in 0..150_u32 {
        // Drops the change after a growing number of polls.
        let mut change = Box::pin(store.commit(&batch));
        for _ in 0..round / 3 {
            if change.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                break;
            }
            std::thread::sleep(Duration::from_micros(20));
            tokio::task::yield_now().await;
        }
        drop(change);
        let at = token.created_at() + chrono::TimeDelta::seconds(i64::from(round) + 1);
        store.touch(&[Touch::new(token.id(), LastUse::new(at, None))]).await.unwrap();
        let found = seen_by_others.find(token.id()).await.unwrap().unwrap();
        assert_eq!(found.last_used.unwrap().at, at, "round {round}: it was acknowledged");
    }
}

/// Batches and last uses of the same records take their locks in one order.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_several_records_and_their_last_uses_never_wait_for_each_other_in_a_ring() {
    let pool = postgres_pool(8).await;
    let store = postgres_store(&pool).await;
    let service = service(store.clone());
    let mut tokens = Vec::new();
    for number in 0..6 {
        let issued =
            service.generate(&ada(), NewToken::named(&format!("token {number}"))).await.unwrap();
        tokens.push(store.find(issued.token.id()).await.unwrap().unwrap());
    }
    let ids: Vec<_> = tokens.iter().map(|token| token.id).collect();
    let mut tasks = Vec::new();
    for worker in 0..6_usize {
        let (store, ids) = (store.clone(), ids.clone());
        tasks.push(tokio::spawn(async move {
            for round in 0..60_usize {
                if worker.is_multiple_of(2) {
                    let at = chrono::DateTime::from_timestamp(
                        2_000_000_000 + i64::try_from(round).unwrap(),
                        0,
                    )
                    .unwrap();
                    let uses: Vec<Touch> =
                        ids.iter().map(|id| Touch::new(*id, LastUse::new(at, None))).collect();
                    store.touch(&uses).await.unwrap();
                    continue;
                }
                let mut batch = ChangeBatch::new();
                for step in 0..3 {
                    // A different order each time.
                    let id = ids[(round + step * (worker + 1)) % ids.len()];
                    if batch.changes.iter().any(|change| change.id() == id) {
                        continue;
                    }
                    let mut token = patkit::Token::clone(&store.find(id).await.unwrap().unwrap());
                    token.version += 1;
                    batch = batch.change(Change::Update(Arc::new(token)));
                }
                match store.commit(&batch).await {
                    Ok(()) | Err(StoreError::Conflict(_)) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_joins_a_transaction_of_the_hosts() {
    let pool = postgres_pool(4).await;
    let store = postgres_store(&pool).await;
    let other = service(store.clone());
    let issued = other.generate(&ada(), NewToken::named("a")).await.unwrap();
    let batch = ChangeBatch::new()
        .change(Change::Remove { id: issued.token.id(), version: issued.token.version() });
    let mut transaction = pool.begin().await.unwrap();
    store.within(&mut transaction).commit(&batch).await.unwrap();
    transaction.rollback().await.unwrap();
    assert!(
        store.find(issued.token.id()).await.unwrap().is_some(),
        "it was rolled back with the host's"
    );
    let mut transaction = pool.begin().await.unwrap();
    store.within(&mut transaction).commit(&batch).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(store.find(issued.token.id()).await.unwrap().is_none());
    let mut transaction = pool.begin().await.unwrap();
    let refused = store.within(&mut transaction).commit(&batch).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    store.health().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_row_is_named_by_table_column_and_row_and_harms_itself_alone() {
    let pool = postgres_pool(4).await;
    let schema = schema(&pool).await;
    let postgres = PostgresStore::builder(pool.clone()).schema(&schema).migrate().await.unwrap();
    let folder = Folder::new();
    let file_pool = sqlite_pool(&folder.path().join("db"), 2).await;
    let sqlite = SqliteStore::builder(file_pool.clone()).migrate().await.unwrap();
    for (column, value) in [
        ("scope_grants", "'datastores:*:x'"),
        ("networks", "'10.0.0.0/99'"),
        ("lifetime", "'soon'"),
        ("owner", "''"),
        ("last_used_address", "'localhost'"),
        ("created_by_owner", "NULL"),
        ("revoked_by_owner", "'eve'"),
    ] {
        let set = match column {
            "scope_grants" => format!("scope = 'only', scope_grants = {value}"),
            "last_used_address" => format!("last_used_at = 1, last_used_address = {value}"),
            _ => format!("{column} = {value}"),
        };
        for is_postgres in [true, false] {
            let (list, find, corrupt) = if is_postgres {
                let table = format!("{schema}.patkit_tokens");
                let id = corrupted(&postgres, &table, &set, async |sql| {
                    raw_sql(AssertSqlSafe(sql)).execute(&pool).await.map(drop)
                });
                let id = id.await;
                (postgres.list(&all()).await, postgres.find(id).await.map(drop), (table, id))
            } else {
                let table = "patkit_tokens".to_owned();
                let id = corrupted(&sqlite, &table, &set, async |sql| {
                    raw_sql(AssertSqlSafe(sql)).execute(&file_pool).await.map(drop)
                });
                let id = id.await;
                (sqlite.list(&all()).await, sqlite.find(id).await.map(drop), (table, id))
            };
            let (table, id) = corrupt;
            let Err(StoreError::Corrupt(record)) = find else { panic!("{column}: {find:?}") };
            assert_eq!(record.table, table);
            assert_eq!(record.row, id.to_string(), "{column}");
            let near = ["created_by", "revoked_by"].iter().any(|start| column.starts_with(start));
            assert!(record.column == column || near, "{column} is told as {}", record.column);
            let page = list.unwrap();
            assert!(page.corrupt.iter().any(|record| record.row == id.to_string()));
            assert!(!page.tokens.is_empty(), "the others are there");
        }
    }
}

/// A store on each engine.
struct Engines {
    pool: PgPool,
    schema: String,
    file: SqlitePool,
    _folder: Folder,
}

impl Engines {
    async fn new() -> Self {
        let (pool, folder) = (postgres_pool(4).await, Folder::new());
        let file = sqlite_pool(&folder.path().join("db"), 2).await;
        Self { schema: schema(&pool).await, pool, file, _folder: folder }
    }

    async fn postgres(&self) -> PostgresStore {
        PostgresStore::builder(self.pool.clone()).schema(&self.schema).migrate().await.unwrap()
    }

    async fn sqlite(&self) -> SqliteStore {
        SqliteStore::builder(self.file.clone()).migrate().await.unwrap()
    }

    /// Runs a statement on the tables of one engine; `ID(hex)` becomes the id with these digits.
    async fn run(&self, is_postgres: bool, sql: &str) {
        if is_postgres {
            let sql = sql.replace("ID(", "decode('").replace(')', "', 'hex')");
            let sql = sql.replace("patkit_", &format!("{}.patkit_", self.schema));
            raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
        } else {
            let sql = sql.replace("ID(", "x'").replace(')', "'");
            raw_sql(AssertSqlSafe(sql)).execute(&self.file).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_event_is_named_by_its_id_and_harms_itself_alone() {
    let engines = Engines::new().await;
    for is_postgres in [true, false] {
        let query = EventQuery::new(Realm::default());
        let spoil = "UPDATE patkit_events SET action = 'eaten' WHERE seq = 2";
        let (page, export) = if is_postgres {
            let store = engines.postgres().await;
            make(&store, 3).await;
            engines.run(true, spoil).await;
            // An export waits for the open transactions of other tests.
            let mut export = store.export(&ExportCursor::start(), 10).await.unwrap();
            while export.events.len() + export.corrupt.len() < 3 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                export = store.export(&ExportCursor::start(), 10).await.unwrap();
            }
            (store.events(&query).await.unwrap(), export)
        } else {
            let store = engines.sqlite().await;
            make(&store, 3).await;
            engines.run(false, spoil).await;
            (
                store.events(&query).await.unwrap(),
                store.export(&ExportCursor::start(), 10).await.unwrap(),
            )
        };
        let [newest, oldest] = &*page.events else { panic!("{page:?}") };
        let [corrupt] = &*page.corrupt else { panic!("{page:?}") };
        assert!(corrupt.table.ends_with("patkit_events"), "{corrupt}");
        assert_eq!(corrupt.column, "action");
        let row = corrupt.row.parse().unwrap();
        assert!(oldest.id < row && row < newest.id, "{corrupt}");
        assert_eq!((&export.corrupt, export.events.len()), (&page.corrupt, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_key_check_is_named_and_no_key_is_called_wrong_for_it() {
    async fn corrupt<S: TokenStore + KeyChecks>(store: S) {
        let Err(CheckError::Store(StoreError::Corrupt(corrupt))) = service(store).check().await
        else {
            panic!("a check value of one byte passes");
        };
        assert!(corrupt.table.ends_with("patkit_key_checks"), "{corrupt}");
        assert_eq!((&*corrupt.column, &*corrupt.row), ("check_value", "1"));
    }
    let engines = Engines::new().await;
    service(engines.postgres().await).check().await.unwrap();
    service(engines.sqlite().await).check().await.unwrap();
    let unchecked = format!(
        "ALTER TABLE {}.patkit_key_checks DROP CONSTRAINT patkit_key_checks_check_value_check",
        engines.schema
    );
    raw_sql(AssertSqlSafe(unchecked)).execute(&engines.pool).await.unwrap();
    let spoil = "UPDATE patkit_key_checks SET check_value = ID(00)";
    engines.run(true, spoil).await;
    engines.run(false, &format!("PRAGMA ignore_check_constraints = ON; {spoil}")).await;
    corrupt(engines.postgres().await).await;
    corrupt(engines.sqlite().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_check_for_the_first_time_at_once_agree_on_one_key() {
    async fn checked<S: TokenStore + KeyChecks + Clone + 'static>(store: S) {
        let key = |number: u8| {
            let key: Vec<u8> = (number..).take(32).collect();
            Keyring::new(KeyId::new(7), &key).unwrap()
        };
        let node = |number| builder(store.clone()).keyring(key(number)).build().unwrap();
        let nodes = (0..8).map(|number| {
            let node = node(number);
            tokio::spawn(async move { node.check().await })
        });
        let nodes: Vec<_> = nodes.collect();
        let mut good = 0;
        for result in nodes {
            match result.await.unwrap() {
                Ok(_) => good += 1,
                Err(CheckError::Keys(report)) => assert_eq!(report.wrong, [KeyId::new(7)]),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(good, 1);
    }
    let engines = Engines::new().await;
    checked(engines.postgres().await).await;
    checked(engines.sqlite().await).await;
}

/// Generates `count` tokens of `ada`, and returns their ids, oldest first.
async fn make<S: TokenStore + Clone>(store: &S, count: usize) -> Vec<patkit::TokenId> {
    let service = service(store.clone());
    let mut ids = Vec::new();
    for number in 0..count {
        let issued =
            service.generate(&ada(), NewToken::named(&format!("token {number}"))).await.unwrap();
        ids.push(issued.token.id());
    }
    ids
}

fn hex(id: patkit::TokenId) -> String {
    format!("{:032x}", u128::from_be_bytes(id.to_bytes()))
}

/// Makes five tokens and replaces the ids of the three newest with invalid ones.
async fn spoiled<S: TokenStore + Clone>(
    store: &S,
    engines: &Engines,
    is_postgres: bool,
) -> Vec<patkit::TokenId> {
    let ids = make(store, 5).await;
    for (number, id) in ids.iter().enumerate().skip(2) {
        let sql = format!(
            "UPDATE patkit_tokens SET id = ID({number:x}{:f>31}) WHERE id = ID({})",
            "",
            hex(*id)
        );
        engines.run(is_postgres, &sql).await;
    }
    ids
}

async fn list_through<S: TokenStore>(store: &S) -> (Vec<patkit::TokenId>, usize) {
    let (mut ids, mut corrupt, mut after) = (Vec::new(), 0, None);
    loop {
        let page = store.list(&all().limit(2).after(after)).await.unwrap();
        ids.extend(page.tokens.iter().map(|token| token.id));
        corrupt += page.corrupt.len();
        after = page.next;
        if after.is_none() {
            return (ids, corrupt);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_none_end_no_list_and_stop_no_pruning() {
    let engines = Engines::new().await;
    let (postgres, sqlite) = (engines.postgres().await, engines.sqlite().await);
    for is_postgres in [true, false] {
        let ids = if is_postgres {
            spoiled(&postgres, &engines, true).await
        } else {
            spoiled(&sqlite, &engines, false).await
        };
        let seen =
            if is_postgres { list_through(&postgres).await } else { list_through(&sqlite).await };
        assert_eq!(seen, (vec![ids[1], ids[0]], 3));
        // Ends all tokens but one. Those with invalid ids come last, so that a batch contains only
        // them.
        let end =
            format!("UPDATE patkit_tokens SET expires_at = 1 WHERE id <> ID({})", hex(ids[0]));
        engines.run(is_postgres, &end).await;
        let pruned = if is_postgres {
            service(postgres.clone()).prune(Duration::ZERO).await
        } else {
            service(sqlite.clone()).prune(Duration::ZERO).await
        };
        // Unreadable records are kept and reported, after the others were removed.
        assert!(matches!(pruned, Err(ManageError::Unavailable(_))), "{pruned:?}");
        let seen =
            if is_postgres { list_through(&postgres).await } else { list_through(&sqlite).await };
        assert_eq!(seen, (vec![ids[0]], 3));
    }
}

/// The batch has more values than one statement of SQLite can take.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_forty_thousand_changes_names_its_first_conflict() {
    let engines = Engines::new().await;
    let sqlite = engines.sqlite().await;
    let id = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        patkit::TokenId::from_bytes([0, 0, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, a, b, c, d]).unwrap()
    };
    let removes = (0..40_000_u32).rev().map(|number| Change::Remove { id: id(number), version: 1 });
    let batch = removes.fold(ChangeBatch::new(), ChangeBatch::change);
    let refused = sqlite.commit(&batch).await.unwrap_err();
    assert_eq!(refused.conflict(), Some(Conflict::Version(id(39_999))));
}

fn all() -> ListQuery {
    ListQuery::new(ListBy::Kind { realm: Realm::default(), kind: patkit::TokenKind::Personal })
}

/// Makes two tokens and corrupts the first.
async fn corrupted<S: TokenStore + Clone>(
    store: &S,
    table: &str,
    set: &str,
    run: impl AsyncFn(String) -> Result<(), sqlx::Error>,
) -> patkit::TokenId {
    let service = service(store.clone());
    let mut ids = Vec::new();
    for _ in 0..2 {
        let new = NewToken::named(&unique("token"));
        ids.push(service.generate(&ada(), new).await.unwrap().token.id());
    }
    let hex = hex(ids[0]);
    let id = if table.contains('.') { format!("'\\x{hex}'") } else { format!("x'{hex}'") };
    run(format!("UPDATE {table} SET {set} WHERE id = {id}")).await.unwrap();
    ids[0]
}
