//! SQLite over sqlx.

use super::super::{NoListener, Sqlite as Engine, Statement};
use super::{SqlxEngine, bound, sealed, statements};
use ::sqlx::{AssertSqlSafe, Pool, Row, raw_sql};
use sqlx_sqlite::{Sqlite, SqliteRow};

impl sealed::Sealed for Sqlite {}

impl SqlxEngine for Sqlite {
    type Engine = Engine;
    type Listener = NoListener;
    const SURVIVES_DROP: bool = true;

    statements!();

    async fn listen(_: &Pool<Self>, _: &str) -> Result<Option<NoListener>, ::sqlx::Error> {
        Ok(None)
    }

    fn text(row: &SqliteRow, index: usize) -> Result<Option<&str>, ::sqlx::Error> {
        row.try_get(index)
    }

    fn bytes(row: &SqliteRow, index: usize) -> Result<Option<&[u8]>, ::sqlx::Error> {
        row.try_get(index)
    }
}
