//! Counts the statements of each operation on the wire, and checks that each statement uses an
//! index.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use patkit::policy::Oversight;
use patkit::service::TokenEdit;
use patkit::store::{AuditLog, KeyChecks, ListBy, ListQuery, TokenCounts};
use patkit::token::KeyId;
use patkit::{
    Actor, Credential, Keyring, ManualClock, MemoryDirectory, NewToken, Owner, OwnerId, OwnerKind,
    Realm, Reason, TokenPolicy, TokenService, TokenStore,
};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{AssertSqlSafe, Row, raw_sql};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support_sql::{
    Folder, PostgresStore, SqliteStore, postgres_pool, postgres_url, schema, sqlite_pool,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// The statements seen on the wire.
#[derive(Default)]
pub(super) struct Wire {
    /// The number of statements run: Execute and Query messages of the protocol (PostgreSQL's
    /// documentation, section 55.7).
    pub(super) count: AtomicUsize,
    /// The texts of prepared statements: Parse messages.
    prepared: Mutex<BTreeSet<String>>,
}

/// Starts a proxy between a client and the server.
pub(super) async fn proxy() -> (u16, Arc<Wire>) {
    let options: PgConnectOptions = postgres_url().parse().unwrap();
    let socket =
        options.get_socket().map(|dir| dir.join(format!(".s.PGSQL.{}", options.get_port())));
    let address = (options.get_host().to_owned(), options.get_port());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let wire = Arc::new(Wire::default());
    let seen = wire.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (socket, address, seen) = (socket.clone(), address.clone(), seen.clone());
            tokio::spawn(async move {
                if let Some(socket) = socket {
                    relay(client, UnixStream::connect(socket).await.unwrap(), seen).await;
                } else {
                    relay(client, TcpStream::connect(address).await.unwrap(), seen).await;
                }
            });
        }
    });
    (port, wire)
}

async fn relay<S>(client: TcpStream, server: S, wire: Arc<Wire>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    client.set_nodelay(true).unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    });
    // The first message has no type.
    let mut is_first = true;
    loop {
        let mut head = vec![0; if is_first { 4 } else { 5 }];
        if from_client.read_exact(&mut head).await.is_err() {
            return;
        }
        let length = u32::from_be_bytes(head[head.len() - 4..].try_into().unwrap());
        let mut message = vec![0; usize::try_from(length).unwrap() - 4];
        if from_client.read_exact(&mut message).await.is_err() {
            return;
        }
        match head[0] {
            _ if is_first => {}
            b'E' | b'Q' => {
                wire.count.fetch_add(1, Ordering::SeqCst);
            }
            b'P' => {
                let text = message.split(|byte| *byte == 0).nth(1).unwrap().to_vec();
                wire.prepared.lock().unwrap().insert(String::from_utf8(text).unwrap());
            }
            _ => {}
        }
        is_first = false;
        if to_server.write_all(&head).await.is_err() || to_server.write_all(&message).await.is_err()
        {
            return;
        }
    }
}

fn owner(name: &str) -> OwnerId {
    OwnerId::new(name).unwrap()
}

/// Creates a store whose connection goes through the proxy.
async fn watched_store(schema: &str) -> (PostgresStore, Arc<Wire>) {
    let (port, wire) = proxy().await;
    let options: PgConnectOptions = postgres_url().parse().unwrap();
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .username(options.get_username())
        .database(options.get_database().unwrap_or("postgres"))
        .ssl_mode(PgSslMode::Disable);
    let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    (PostgresStore::builder(pool).schema(schema).migrate().await.unwrap(), wire)
}

type Service = TokenService<PostgresStore, MemoryDirectory>;

fn service(store: PostgresStore, clock: Arc<ManualClock>) -> Service {
    let users = [
        Owner::new(owner("ada"), OwnerKind::Human).with_role("admin"),
        Owner::new(owner("eve"), OwnerKind::Human).with_role("member"),
        Owner::new(owner("robot"), OwnerKind::Service),
    ];
    let policy = TokenPolicy::builder()
        .idle_limit_days(300)
        .oversight(Oversight::RevokeOnly)
        .build()
        .unwrap();
    TokenService::builder(store, users.into_iter().collect::<MemoryDirectory>())
        .brand("acme")
        .keyring(Keyring::ephemeral().unwrap())
        .policy(policy)
        .clock(clock)
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_costs_as_many_statements_as_it_must() {
    let schema = schema(&postgres_pool(1).await).await;
    let (store, wire) = watched_store(&schema).await;
    let clock =
        Arc::new(ManualClock::at(chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap()));
    let service = service(store, clock.clone());
    let ada = Actor::signed_in(owner("ada"));
    macro_rules! costs {
        ($what:literal, $count:literal, $operation:expr) => {{
            let result;
            wire.count.store(0, Ordering::SeqCst);
            result = $operation.await;
            assert_eq!(wire.count.load(Ordering::SeqCst), $count, $what);
            result
        }};
    }
    // BEGIN, the record, the event, COMMIT.
    let issued = costs!("generate", 4, service.generate(&ada, NewToken::named("a"))).unwrap();
    let (id, text) = (issued.token.id(), issued.plaintext.expose_secret());
    let verified = costs!("verify", 1, service.verify(Credential::text(text))).unwrap();
    costs!("recheck", 1, service.recheck(&verified)).unwrap();
    costs!("refused by its text", 0, service.verify(Credential::text(&text[..80]))).unwrap_err();
    let through = Actor::token(&verified);
    costs!("get", 1, service.get(&ada, id)).unwrap();
    costs!("get itself", 2, service.get(&through, id)).unwrap();
    // Also reads the token that acts, and changes it so that a compromise finds the new token.
    costs!("generate through a token", 6, service.generate(&through, NewToken::named("b")))
        .unwrap();
    costs!("list", 1, service.list(&ada, None, 50)).unwrap();
    costs!("list_service", 1, service.list_service(&ada, None, 50)).unwrap();
    costs!("list_overseen", 1, service.list_overseen(&ada, &owner("eve"), None, 50)).unwrap();
    // The record, and a transaction with two statements.
    costs!("rename", 5, service.rename(&ada, id, "c")).unwrap();
    costs!("edit to what it is", 1, service.edit(&ada, id, TokenEdit::new().name("c"))).unwrap();
    let next = costs!("rotate", 6, service.rotate(&ada, id, Duration::from_secs(60))).unwrap();
    let next_id = next.token.id();
    costs!("revoke", 5, service.revoke(&ada, next_id, Reason::Owner)).unwrap();
    costs!(
        "refused as revoked",
        1,
        service.verify(Credential::text(next.plaintext.expose_secret()))
    )
    .unwrap_err();
    costs!("restore", 5, service.restore(&ada, next_id)).unwrap();
    // Also lists the tokens that it made and those that were restored through it.
    costs!("revoke as compromised", 7, service.revoke(&ada, next_id, Reason::Compromised)).unwrap();
    costs!("flush of one", 1, service.flush()).unwrap();
    costs!("flush of nothing", 0, service.flush()).unwrap();
    clock.advance(chrono::TimeDelta::days(200));
    // The record; the tokens made or restored through it, and its descendants through removed
    // tokens; its predecessor; and a transaction of four statements that locks and changes both.
    costs!("delete", 11, service.delete(&ada, next_id)).unwrap();
    // A list of both ended tokens; for each, the tokens made or restored through it, and its
    // descendants through removed tokens; for one of them its missing successor; a transaction of
    // four statements that locks both, removes them and writes their events; and a last list, which
    // is empty.
    costs!("prune", 15, service.prune(Duration::from_secs(86_400))).unwrap();
    costs!("sweep_idle", 1, service.sweep_idle()).unwrap();
    costs!("tokens_per_key", 1, service.store().tokens_per_key()).unwrap();
    // The check values, a transaction that records one, the values again, and the counts.
    costs!("check for the first time", 6, service.check()).unwrap();
    costs!("check", 2, service.check()).unwrap();
    let key = KeyId::new(1);
    costs!("list_under_key", 1, service.list_under_key(&Realm::default(), key, None, 50)).unwrap();
    costs!("count_by_state", 1, service.store().count_by_state(patkit::Clock::now(&*clock)))
        .unwrap();
    costs!("health", 1, service.store().health()).unwrap();
    let eve = Actor::signed_in(owner("eve"));
    service.generate(&eve, NewToken::named("a")).await.unwrap();
    // The owner's tokens; the lists of the descendants of each (made, restored, through removed
    // tokens); and a transaction of three statements: the removal, the owner's traces in all
    // events, and the event. Then all of it again, which finds nothing.
    costs!("erase_owner", 13, service.erase_owner(&Realm::default(), &owner("eve"))).unwrap();
    // A savepoint replaces the transaction.
    let mut transaction = service.store().pool().begin().await.unwrap();
    let within = service.within(service.store().within(&mut transaction));
    costs!("generate within", 4, within.generate(&ada, NewToken::named("within"))).unwrap();
    drop(within.into_uncommitted());
    transaction.rollback().await.unwrap();
    let many: Vec<NewToken> =
        (0..1_000).map(|number| NewToken::named(&format!("many {number}"))).collect();
    for new in many {
        let issued = service.generate(&ada, new).await.unwrap();
        service.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap();
    }
    costs!("flush of a thousand", 1, service.flush()).unwrap();
    let all =
        ListQuery::new(ListBy::Owner { realm: Realm::default(), owner: owner("ada"), kind: None });
    let page = costs!("a page", 1, service.store().list(&all)).unwrap();
    assert!(page.tokens.iter().all(|token| token.last_used.is_some()));
    // Four for each token, and six pages of the list.
    costs!("revoke_all of a thousand", 4006, service.revoke_all(&Realm::default(), &owner("ada")))
        .unwrap();
}

/// Enough rows to notice a full scan, inserted directly: tokens of 5,000 owners, a tenth of them
/// ended.
const ROWS: &str = "INSERT INTO patkit_tokens (id, realm, owner, owner_kind, kind, name, name_key, created_at, created_by, \
    revoked_at, revoked_reason, revoked_by, revoked_authority, lifetime, scope, digest_key, digest, idle_from, version) \
    SELECT ID, '', 'owner ' || (n % 5000), 'human', 'personal', 'token ' || n, KEY, n, 'system', \
    CASE WHEN n % 10 = 0 THEN n END, CASE WHEN n % 10 = 0 THEN 'system' END, CASE WHEN n % 10 = 0 THEN 'system' END, \
    CASE WHEN n % 10 = 0 THEN 'system' END, 'default', 'inherit', 1, KEY, n, 1 FROM numbers";
const COUNT: usize = 50_000;

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "one statement after the other")]
async fn no_statement_reads_a_whole_table_but_the_counts_and_the_sweep() {
    let pool = postgres_pool(1).await;
    let schema = schema(&pool).await;
    let (store, wire) = watched_store(&schema).await;
    let clock =
        Arc::new(ManualClock::at(chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap()));
    let service = service(store, clock);
    let ada = Actor::signed_in(owner("ada"));
    let robot = NewToken::named("robot").for_service(owner("robot"));
    service.generate(&ada, robot).await.unwrap();
    let issued = service.generate(&ada, NewToken::named("a")).await.unwrap();
    let verified =
        service.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap();
    service.generate(&Actor::token(&verified), NewToken::named("b")).await.unwrap();
    service.flush().await.unwrap();
    for page in [
        service.list(&ada, None, 50).await,
        service.list_service(&ada, Some(issued.token.id()), 50).await,
    ] {
        page.unwrap();
    }
    service.check().await.unwrap();
    service
        .list_under_key(&Realm::default(), KeyId::new(1), Some(issued.token.id()), 50)
        .await
        .unwrap();
    service.rotate(&ada, issued.token.id(), Duration::ZERO).await.unwrap();
    service.revoke(&ada, issued.token.id(), Reason::Compromised).await.unwrap();
    service.revoke_all(&Realm::default(), &owner("ada")).await.unwrap();
    service.delete(&ada, issued.token.id()).await.unwrap();
    service.prune(Duration::from_secs(1)).await.unwrap();
    let pruned = 1_799_999_999_000_000_i64;
    service
        .store()
        .prune_events(chrono::DateTime::from_timestamp_micros(100).unwrap(), 1_000)
        .await
        .unwrap();
    service.erase_owner(&Realm::default(), &owner("ada")).await.unwrap();
    let statements = wire.prepared.lock().unwrap().clone();
    assert!(statements.len() > 12, "{statements:#?}");

    let rows = ROWS
        .replace(
            "ID",
            "decode(lpad(to_hex(n), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'), 'hex')",
        )
        .replace("KEY", "sha256(n::text::bytea)")
        .replace("numbers", &format!("generate_series(1, {COUNT}) AS numbers (n)"))
        .replace("INTO ", &format!("INTO {schema}."));
    let events = format!(
        "INSERT INTO {schema}.patkit_events (id, at, realm, action, actor, token, owner) \
         SELECT decode(lpad(to_hex(n), 32, '0'), 'hex'), n, '', 'generated', 'system', decode(lpad(to_hex(n), 32, '0'), 'hex'), 'owner ' || (n % 5000) \
         FROM generate_series(1, {COUNT}) AS numbers (n)"
    );
    let analyze = format!("ANALYZE {schema}.patkit_tokens; ANALYZE {schema}.patkit_events");
    raw_sql(AssertSqlSafe(format!(
        "{rows}; {events}; {analyze}; SET plan_cache_mode = force_generic_plan"
    )))
    .execute(&pool)
    .await
    .unwrap();

    let folder = Folder::new();
    let sqlite = sqlite_pool(&folder.path().join("db"), 1).await;
    SqliteStore::builder(sqlite.clone()).migrate().await.unwrap();
    let numbers = format!(
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT {COUNT})"
    );
    let rows = ROWS
        .replace("ID", "unhex(printf('%012x70008%015x', n, n))")
        .replace("KEY", "unhex(printf('%064x', n))");
    raw_sql(AssertSqlSafe(format!("{numbers} {rows}; ANALYZE"))).execute(&sqlite).await.unwrap();

    for statement in statements
        .iter()
        .filter(|statement| {
            statement.contains("patkit_tokens") || statement.contains("patkit_events")
        })
        // A count reads all rows that it counts.
        .filter(|statement| !statement.contains("COUNT(*)"))
    {
        // An instant before which few tokens ended, as between two prunes.
        let statement = statement.replace(&format!("ended_at <= {pruned}"), "ended_at <= 100");
        let places = (1..100).take_while(|place| statement.contains(&format!("${place}"))).count();
        let nulls = vec!["NULL"; places].join(", ");
        raw_sql(AssertSqlSafe(format!("PREPARE watched AS {statement}")))
            .execute(&pool)
            .await
            .unwrap();
        let explain = format!("EXPLAIN EXECUTE watched({nulls})").replace("()", "");
        let plan = raw_sql(AssertSqlSafe(explain)).fetch_all(&pool).await.unwrap();
        raw_sql("DEALLOCATE watched").execute(&pool).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get::<String, _>(0)).collect();
        assert!(!plan.iter().any(|line| line.contains("Seq Scan")), "{statement}\n{plan:#?}");

        // Checks the statement in SQLite too, unless it uses features that only PostgreSQL has.
        if ["unnest", "migrations", "pg_notify", "FOR NO KEY"]
            .iter()
            .any(|only| statement.contains(only))
        {
            continue;
        }
        let statement =
            statement.replace(&format!("\"{schema}\"."), "").replace(" FOR UPDATE SKIP LOCKED", "");
        let plan = raw_sql(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}")))
            .fetch_all(&sqlite)
            .await
            .unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get::<String, _>(3)).collect();
        let is_whole = |line: &String| {
            line.starts_with("SCAN")
                && !line.contains("VALUES CLAUSE")
                && !line.contains("CONSTANT")
                && !line.contains("USING")
        };
        assert!(!plan.iter().any(is_whole), "{statement}\n{plan:#?}");
    }
}
