//! MySQL and MariaDB over sqlx.

use super::super::{MySql as Engine, NoListener, Statement};
use super::{SqlxEngine, bound, sealed, statements};
use ::sqlx::error::DatabaseError;
use ::sqlx::{AssertSqlSafe, Pool, Row, raw_sql};
use sqlx_mysql::{MySql, MySqlDatabaseError, MySqlRow};
use std::str::from_utf8;

impl sealed::Sealed for MySql {}

impl SqlxEngine for MySql {
    type Engine = Engine;
    type Listener = NoListener;
    const SURVIVES_DROP: bool = false;

    statements!();

    async fn listen(_: &Pool<Self>, _: &str) -> Result<Option<NoListener>, ::sqlx::Error> {
        Ok(None)
    }

    /// The number, because MySQL has one SQLSTATE for many errors.
    fn code(error: &dyn DatabaseError) -> String {
        error.downcast_ref::<MySqlDatabaseError>().number().to_string()
    }

    /// Names of owners are in columns of bytes.
    fn text(row: &MySqlRow, index: usize) -> Result<Option<&str>, ::sqlx::Error> {
        let bytes: Option<&[u8]> = row.try_get_unchecked(index)?;
        bytes.map(from_utf8).transpose().map_err(|error| ::sqlx::Error::Decode(error.into()))
    }

    fn bytes(row: &MySqlRow, index: usize) -> Result<Option<&[u8]>, ::sqlx::Error> {
        row.try_get(index)
    }
}
