//! What a failure of the database means to a store.

use crate::store::StoreError;
use sqlx::error::DatabaseError;
use std::fmt;

/// Why a store in a database was not opened.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// A name is refused.
    #[error("the {field} must be 1 to {most} characters of a-z, 0-9 and _, and not begin with a digit")]
    Name {
        /// Which.
        field: &'static str,
        /// Most characters.
        most: usize,
    },
    /// The engine has no schemas.
    #[error("this engine has no schemas; use a prefix")]
    NoSchemas,
    /// The tables are not there, or of an earlier version.
    #[error("the tables are of version {found}, this program needs {needed}: migrate first")]
    TooOld {
        /// Their version; 0 where there are none.
        found: i64,
        /// The version that is needed.
        needed: i64,
    },
    /// The tables are of a later version, which this program does not go with.
    #[error(
        "the tables are of version {found} and need a program of version {needed} or later; this one is of {own}"
    )]
    TooNew {
        /// Their version.
        found: i64,
        /// The earliest version of a program that goes with them.
        needed: i64,
        /// The version of this one.
        own: i64,
    },
    /// The database or the pool is set up in a way that would break what the store promises.
    #[error("{setting} is {found:?}, and must be {needed}: {reason}")]
    Setting {
        /// Which setting.
        setting: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        needed: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// The database did not do what it was asked for.
    #[error("the database failed")]
    Database(#[source] SqlFault),
}

impl From<sqlx::Error> for SetupError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(SqlFault(error))
    }
}

/// A failure of the database. It shows the engine's code and message and no values of rows: those stand in what PostgreSQL
/// calls details.
pub struct SqlFault(sqlx::Error);

impl SqlFault {
    /// The engine's code of the failure, such as an SQLSTATE.
    pub fn code(&self) -> Option<String> {
        self.0.as_database_error().and_then(|error| error.code().map(String::from))
    }
}

impl fmt::Display for SqlFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_database_error() {
            Some(error) => {
                write!(f, "{} (code {})", error.message(), error.code().unwrap_or_default())
            }
            None => fmt::Display::fmt(&self.0, f),
        }
    }
}

impl fmt::Debug for SqlFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlFault({self})")
    }
}

impl std::error::Error for SqlFault {}

/// Nothing happened.
pub(in crate::store) fn unavailable(error: sqlx::Error) -> StoreError {
    StoreError::unavailable(SqlFault(error))
}

/// What a failed commit means. A failure that the engine tells of by a code of its own class for this means that it was not
/// done; after any other, such as a lost connection, that is unknown.
pub(super) fn commit(error: sqlx::Error) -> StoreError {
    let code = error.as_database_error().and_then(DatabaseError::code).unwrap_or_default();
    // SQLSTATE class 23 (integrity) and 40 (transaction rollback) but for 40003 (completion unknown), PostgreSQL documentation,
    // appendix A; SQLite's BUSY.
    let is_busy = code.parse::<u32>().is_ok_and(|code| code < 10_000 && code % 256 == 5);
    let is_of = |class: &str| code.len() == 5 && code.starts_with(class) && code != "40003";
    let is_undone = is_busy || is_of("23") || is_of("40");
    if is_undone { unavailable(error) } else { StoreError::OutcomeUnknown(Box::new(SqlFault(error))) }
}

/// A unique index that a change runs into.
pub(super) enum Violation {
    Id,
    Name,
}

impl Violation {
    pub(super) fn of(error: &sqlx::Error) -> Option<Self> {
        let error = error.as_database_error().filter(|error| error.is_unique_violation())?;
        let is_name = match error.constraint() {
            Some(index) => index.ends_with("tokens_name"),
            // SQLite names the columns instead.
            None => error.message().contains(".name_key"),
        };
        Some(if is_name { Self::Name } else { Self::Id })
    }
}
