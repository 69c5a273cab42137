//! PostgreSQL over sqlx.

use super::super::{Listener, Postgres as Engine, SqlError, Statement};
use super::{SqlxEngine, bound, failed, sealed, statements};
use ::sqlx::{AssertSqlSafe, Pool, Row, raw_sql};
use sqlx_postgres::{PgListener, PgRow, Postgres};

impl sealed::Sealed for Postgres {}

impl SqlxEngine for Postgres {
    type Engine = Engine;
    type Listener = SqlxListener;
    const SURVIVES_DROP: bool = true;

    statements!();

    async fn listen(
        pool: &Pool<Self>,
        channel: &str,
    ) -> Result<Option<SqlxListener>, ::sqlx::Error> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.eager_reconnect(false);
        listener.listen(channel).await?;
        Ok(Some(SqlxListener(listener)))
    }

    fn text(row: &PgRow, index: usize) -> Result<Option<&str>, ::sqlx::Error> {
        row.try_get(index)
    }

    fn bytes(row: &PgRow, index: usize) -> Result<Option<&[u8]>, ::sqlx::Error> {
        row.try_get(index)
    }
}

/// Listens on a connection of a pool of sqlx, which it takes for itself.
#[derive(Debug)]
pub struct SqlxListener(PgListener);

impl Listener for SqlxListener {
    const TAKES_CONNECTION: bool = true;

    async fn next(&mut self) -> Result<String, SqlError> {
        // `None` if the connection was lost.
        let notification = self.0.try_recv().await.map_err(failed::<Postgres>)?;
        let lost = || SqlError::unreachable("the connection that listens for changes was lost");
        Ok(notification.ok_or_else(lost)?.payload().to_owned())
    }
}
