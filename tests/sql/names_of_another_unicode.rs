//! Names that were written under the rules of another Unicode version do not block any operation.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use patkit::token::{Reason, TokenName};
use patkit::{Credential, ManageError, NewToken, OwnerId, Realm, TokenEdit, TokenStore};
use std::time::Duration;
use support_sql::{
    PostgresStore, SqliteStore, ada, postgres_pool, schema, service, sqlite_memory_pool,
};

/// In NFD, with an unassigned character, a bidi override, two spaces and a trailing space.
const NAME: &str = "cafe\u{301} \u{202E}\u{378}  x ";
const CHANGES: &str = "UPDATE TABLE SET name = 'cafe\u{301} \u{202E}\u{378}  x ', description = '\u{2028}\u{2800}', \
     name_key = KEY WHERE name = 'one'; \
     UPDATE TABLE SET name = '\u{E000}', description = '' WHERE name = 'two'";

async fn works<S: TokenStore>(store: S, key: &str, table: &str, change: impl AsyncFn(String)) {
    let service = service(store);
    let one = service.generate(&ada(), NewToken::named("one")).await.unwrap();
    let two = service.generate(&ada(), NewToken::named("two")).await.unwrap();
    change(CHANGES.replace("KEY", key).replace("TABLE", table)).await;

    let verified = service.verify(Credential::text(one.plaintext.expose_secret())).await.unwrap();
    assert_eq!(verified.token().name().as_str(), NAME);
    assert_eq!(verified.token().description().unwrap().as_str(), "\u{2028}\u{2800}");
    let listed = service.list(&ada(), None, 50).await.unwrap();
    assert_eq!((listed.items.len(), listed.corrupt.len()), (2, 0));
    // An edit that sends the stored texts changes nothing; a new name is validated.
    let same = TokenEdit::new().name(NAME).description("\u{2028}\u{2800}");
    service.edit(&ada(), one.token.id(), same).await.unwrap();
    let judged = service.rename(&ada(), one.token.id(), "\u{378}").await;
    assert!(matches!(judged, Err(ManageError::Invalid(_))), "{judged:?}");

    // Each successor keeps the stored key.
    let key_of = async |id| service.store().find(id).await.unwrap().unwrap().name_key;
    let before = key_of(one.token.id()).await;
    assert_eq!(before.unwrap().as_bytes(), &[7; 32]);
    let mut current = one.token.id();
    for _ in 0..3 {
        let next = service.rotate(&ada(), current, Duration::ZERO).await.unwrap().token;
        assert_eq!((key_of(current).await, key_of(next.id()).await), (None, before));
        assert_eq!(next.name().as_str(), NAME);
        current = next.id();
    }
    service.revoke(&ada(), current, Reason::Owner).await.unwrap();
    service.restore(&ada(), current).await.unwrap();
    assert_eq!(key_of(current).await, before);
    service.revoke_all(&Realm::default(), &OwnerId::new("ada").unwrap()).await.unwrap();
    for text in [&one.plaintext, &two.plaintext] {
        service.verify(Credential::text(text.expose_secret())).await.unwrap_err();
    }
    // A valid new name gets a key under the current rules.
    service.rename(&ada(), two.token.id(), "two").await.unwrap();
    assert_eq!(key_of(two.token.id()).await, Some(TokenName::new("two").unwrap().key()));
}

#[tokio::test]
async fn a_text_of_another_version_stops_nothing_in_sqlite() {
    let pool = sqlite_memory_pool(2).await;
    let store = SqliteStore::builder(pool.clone()).migrate().await.unwrap();
    let key = format!("x'{}'", "07".repeat(32));
    works(store, &key, "patkit_tokens", async |sql| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_text_of_another_version_stops_nothing_in_postgres() {
    let pool = postgres_pool(2).await;
    let schema = schema(&pool).await;
    let store = PostgresStore::builder(pool.clone()).schema(&schema).migrate().await.unwrap();
    let key = format!("'\\x{}'", "07".repeat(32));
    works(store, &key, &format!("{schema}.patkit_tokens"), async |sql| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    })
    .await;
}
