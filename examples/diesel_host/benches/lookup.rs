//! Measures a verification without a cache against the bare lookup of the same row: `cargo bench` in
//! this folder, or `cargo bench -- ROWS`, with
//! `PATKIT_TEST_POSTGRES_URL`.

#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
#[path = "../../../benches/sql/lookup.rs"]
mod lookup;

use diesel::QueryResult;
use diesel::deserialize::{self, QueryableByName};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::row::{Field, NamedRow, Row};
use diesel::sql_types::{Binary, Untyped};
use diesel_async::RunQueryDsl;
use diesel_host::driver::Driver;
use diesel_host::pool::pool;
use lookup::measure;
use lookup::rows::Engine;
use patkit::store::sql::{Connection, Driver as _};
use patkit::{SqlStore, TokenId};

/// A query with one value that diesel keeps prepared.
struct Lookup<'a>(&'a str, &'a [u8]);

impl QueryId for Lookup<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Lookup<'_> {
    type SqlType = Untyped;
}

impl QueryFragment<Pg> for Lookup<'_> {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        pass.push_sql(self.0);
        pass.push_bind_param_value_only::<Binary, _>(self.1)
    }
}

/// A row, whose cells are copied as they came.
struct Copied(#[allow(dead_code, reason = "nobody reads it")] Vec<Option<Vec<u8>>>);

impl QueryableByName<Pg> for Copied {
    fn build<'a>(row: &impl NamedRow<'a, Pg>) -> deserialize::Result<Self> {
        let cell = |index| Some(Row::get(row, index)?.value()?.as_bytes().to_owned());
        Ok(Self((0..row.field_count()).map(cell).collect()))
    }
}

async fn bare(driver: &Driver, sql: &str, id: TokenId) -> bool {
    let mut connection = driver.0.get().await.unwrap();
    let rows: Vec<Copied> = Lookup(sql, &id.to_bytes()).load(&mut connection).await.unwrap();
    rows.len() == 1
}

#[tokio::main]
async fn main() {
    let url =
        std::env::var("PATKIT_TEST_POSTGRES_URL").expect("PATKIT_TEST_POSTGRES_URL is not set");
    let driver = Driver(pool(&url, 4).unwrap());
    let prefix = format!("bench_{}_", std::process::id());
    let store = SqlStore::builder(driver).prefix(&prefix).migrate().await.unwrap();
    measure((Engine::Postgres, "diesel-async"), (store.clone(), &prefix), bare).await;
    let tables = format!(
        "DROP TABLE {prefix}tokens, {prefix}events, {prefix}key_checks, {prefix}migrations"
    );
    store.pool().acquire().await.unwrap().run(&tables).await.unwrap();
}
