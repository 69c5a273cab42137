//! Measures a verification without a cache against the bare lookup of the same row: `cargo bench` in
//! this folder, or `cargo bench -- ROWS`, with
//! `PATKIT_TEST_POSTGRES_URL`.

#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
#[path = "../../../benches/sql/lookup.rs"]
mod lookup;

use lookup::measure;
use lookup::rows::Engine;
use patkit::store::sql::{Connection, Driver};
use patkit::{SqlStore, TokenId};
use sea_orm::sqlx::PgPool;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, SqlxPostgresConnector, Statement};

async fn bare(pool: &PgPool, sql: &str, id: TokenId) -> bool {
    let database: DatabaseConnection = SqlxPostgresConnector::from_sqlx_postgres_pool(pool.clone());
    let values = [id.to_bytes().to_vec().into()];
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
    database.query_one_raw(statement).await.unwrap().is_some()
}

#[tokio::main]
async fn main() {
    let url =
        std::env::var("PATKIT_TEST_POSTGRES_URL").expect("PATKIT_TEST_POSTGRES_URL is not set");
    let database = sea_orm::Database::connect(&url).await.unwrap();
    let prefix = format!("bench_{}_", std::process::id());
    let store = SqlStore::builder(database.get_postgres_connection_pool().clone())
        .prefix(&prefix)
        .migrate()
        .await
        .unwrap();
    measure((Engine::Postgres, "SeaORM"), (store.clone(), &prefix), bare).await;
    let tables = format!(
        "DROP TABLE {prefix}tokens, {prefix}events, {prefix}key_checks, {prefix}migrations"
    );
    Driver::acquire(store.pool()).await.unwrap().run(&tables).await.unwrap();
}
