//! What a failure of the database means to a store.

use crate::store::StoreError;
use sqlx::error::DatabaseError;
use std::fmt;

/// Why a store in a database was not opened.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The prefix or the schema is refused.
    #[error("the {field} {reason}")]
    Name {
        /// `prefix` or `schema`.
        field: &'static str,
        /// Why.
        reason: NameError,
    },
    /// The engine has no schemas.
    #[error("SQLite has no schemas: remove `.schema(…)`, and tell stores apart by `.prefix(…)`")]
    NoSchemas,
    /// The schema does not exist.
    #[error("the schema {schema:?} does not exist: create it with `CREATE SCHEMA \"{}\"`", schema.replace('"', "\"\""))]
    NoSchema {
        /// Its name.
        schema: String,
    },
    /// The tables do not exist.
    #[error(
        "the table {table:?} does not exist: call `.migrate()` instead of `.open()`, or run the SQL files in \
         `src/store/migrations` of patkit"
    )]
    NotMigrated {
        /// The table that notes the version of the others.
        table: String,
    },
    /// A table, an index or a constraint of somebody else has a name that the store needs.
    #[error(
        "a name that the token tables need is taken by something else: {0}; choose another with `.prefix(…)`"
    )]
    NameTaken(SqlFault),
    /// The tables are of an earlier version.
    #[error(
        "the token tables are of version {found} and this program needs {needed}: call `.migrate()` instead of `.open()`, \
         or run the SQL files in `src/store/migrations` of patkit"
    )]
    TooOld {
        /// Their version.
        found: i64,
        /// The version that is needed.
        needed: i64,
    },
    /// The tables are of a later version, which this program does not go with.
    #[error(
        "the token tables are of version {found} and need a program that knows version {needed}; this one knows {own}: \
         deploy a newer version of patkit"
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
    #[error("{setting} is {found:?}; patkit needs {needed}: {cure}, or {harm}")]
    Setting {
        /// Which setting.
        setting: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        needed: &'static str,
        /// How to set it.
        cure: &'static str,
        /// What happens otherwise.
        harm: &'static str,
    },
    /// The role of the pool's connections lacks a right.
    #[error(
        "the database refused the setup of the token tables: {0}; grant the role of the pool USAGE and CREATE on the schema, \
         or migrate with a role that has them"
    )]
    Denied(SqlFault),
    /// The database cannot be reached.
    #[error(
        "the database cannot be reached: {0}; check its URL, that the server runs or the file of SQLite exists \
         (`.create_if_missing(true)` makes it), and that the pool has a free connection"
    )]
    Unreachable(SqlFault),
    /// The database refused a statement.
    #[error("the database refused the setup of the token tables: {0}")]
    Database(SqlFault),
}

/// Why the name of a table or a schema is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// It is empty.
    #[error("is empty: leave the setting out for the default, or name at least one character")]
    Empty,
    /// It holds a NUL character, which no database takes.
    #[error("contains a NUL character: remove it")]
    Nul,
    /// The database would cut it, or a name that begins with it, so that two names could become equal.
    #[error("has {found} bytes, and the database would cut names made of it: use at most {most} bytes")]
    TooLong {
        /// How many bytes it has.
        found: usize,
        /// How many it may have.
        most: usize,
    },
    /// The database keeps names that begin so for itself.
    #[error("begins with {0:?}, which the database keeps for itself: choose another")]
    Reserved(&'static str),
}

impl From<sqlx::Error> for SetupError {
    fn from(error: sqlx::Error) -> Self {
        let fault = SqlFault(error);
        let Some(error) = fault.0.as_database_error() else {
            return match &fault.0 {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => Self::Unreachable(fault),
                _ => Self::Database(fault),
            };
        };
        // SQLSTATEs of PostgreSQL's documentation, appendix A; SQLite has one code for all errors in a statement.
        match error.code().as_deref() {
            // insufficient_privilege
            Some("42501") => Self::Denied(fault),
            // duplicate_table, duplicate_object, undefined_column, wrong_object_type: what is there is not the store's.
            Some("42P07" | "42710" | "42703" | "42809") => Self::NameTaken(fault),
            _ if error.message().ends_with("already exists")
                || error.message().starts_with("no such column") =>
            {
                Self::NameTaken(fault)
            }
            // The server is starting or stopping, has no room, or does not know the database or the role.
            Some("3D000" | "28000" | "28P01" | "53300" | "57P01" | "57P03") => Self::Unreachable(fault),
            _ if fault.is_missing_file() => Self::Unreachable(fault),
            _ => Self::Database(fault),
        }
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

    /// Whether a file of a database could not be opened (`SQLITE_CANTOPEN`).
    fn is_missing_file(&self) -> bool {
        self.code().as_deref() == Some("14")
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

/// Whether a table is missing, which is no failure before the first migration.
pub(super) fn is_missing_table(error: &sqlx::Error) -> bool {
    // SQLSTATE undefined_table and invalid_schema_name; SQLite has one code for all errors in a statement.
    error.as_database_error().is_some_and(|error| {
        matches!(error.code().as_deref(), Some("42P01" | "3F000"))
            || error.message().starts_with("no such table")
    })
}

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
            None => error.message().ends_with(".name_key"),
        };
        Some(if is_name { Self::Name } else { Self::Id })
    }
}
