//! Measures a verification without a cache against the bare lookup of the same row: `cargo bench` in
//! this folder, or `cargo bench -- ROWS`.

#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
#[path = "../../../benches/sql/lookup.rs"]
mod lookup;

use lookup::measure;
use lookup::rows::Engine;
use patkit::{SqlStore, TokenId};
use rusqlite::types::Value;
use rusqlite_host::pool::Pool;
use std::hint::black_box;

/// Looks up a row and copies its cells, as a host does that uses the row after it has given the
/// connection back.
async fn bare(pool: &Pool, sql: &str, id: TokenId) -> bool {
    let mut connection = pool.get().await.unwrap();
    let found = connection.call_here(|connection| {
        let mut statement = connection.prepare_cached(sql)?;
        let columns = statement.column_count();
        statement.query_row([id.to_bytes()], |row| {
            (0..columns).map(|index| row.get(index)).collect::<rusqlite::Result<Vec<Value>>>()
        })
    });
    black_box(found).is_ok()
}

#[tokio::main]
async fn main() {
    let file = std::env::temp_dir().join(format!("rusqlite_host-{}.db", std::process::id()));
    let pool = Pool::open(&file, 4).unwrap();
    let store = SqlStore::builder(pool).migrate().await.unwrap();
    measure((Engine::Sqlite, "rusqlite"), (store, "patkit_"), bare).await;
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{ending}", file.display()));
    }
}
