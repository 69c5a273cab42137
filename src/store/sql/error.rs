//! The errors of setting up an SQL store, and the mapping of database errors to store errors.

use crate::store::StoreError;
use sqlx::error::DatabaseError;
use std::fmt;

/// The reason why an SQL store was not opened.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The prefix or the schema was refused.
    #[error("the {field} is refused: {reason}")]
    Name {
        /// `prefix` or `schema`.
        field: &'static str,
        /// The reason.
        reason: NameError,
    },
    /// The engine has no schemas.
    #[error("SQLite has no schemas: remove `.schema(…)`, and tell stores apart by `.prefix(…)`")]
    NoSchemas,
    /// The schema does not exist.
    #[error("the schema {schema:?} does not exist: create it with `CREATE SCHEMA \"{}\"`", schema.replace('"', "\"\""))]
    NoSchema {
        /// The name of the schema.
        schema: String,
    },
    /// The tables do not exist.
    #[error(
        "the table {table:?} does not exist: call `.migrate()` instead of `.open()`, or run the SQL files in \
         `src/store/migrations` of patkit"
    )]
    NotMigrated {
        /// The table that records the version of the others.
        table: String,
    },
    /// A table, an index or a constraint of someone else has a name that the store needs.
    #[error(
        "a name that the token tables need is taken by something else: {0}; choose another prefix \
         with `.prefix(…)`"
    )]
    NameTaken(SqlFault),
    /// The tables are of an earlier version.
    #[error(
        "the token tables are of version {found} and this program needs {needed}: call `.migrate()` instead of `.open()`, \
         or run the SQL files in `src/store/migrations` of patkit"
    )]
    TooOld {
        /// The version of the tables.
        found: i64,
        /// The required version.
        needed: i64,
    },
    /// The tables have a later version, which this program is not compatible with.
    #[error(
        "the token tables are of version {found} and need a program that knows version {needed}; \
         this program knows {own}: deploy a newer version of patkit"
    )]
    TooNew {
        /// The version of the tables.
        found: i64,
        /// The earliest program version that is compatible with the tables.
        needed: i64,
        /// The version of this program.
        own: i64,
    },
    /// The database or the pool has a setting that would break the guarantees of the store.
    #[error("{setting} is {found:?}; patkit needs {needed}: {cure}; otherwise {harm}")]
    Setting {
        /// The name of the setting.
        setting: &'static str,
        /// The current value.
        found: String,
        /// The required value.
        needed: &'static str,
        /// How to set it.
        cure: &'static str,
        /// The consequence of the current value.
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

/// The reason why a name of a table or a schema is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name is empty.
    #[error(
        "the name is empty; leave the setting out for the default, or write at least 1 character"
    )]
    Empty,
    /// The name has a NUL character, which no database accepts.
    #[error("the name has a NUL character; remove that character")]
    Nul,
    /// The database would truncate the name, or a longer name made of it, so that two names could
    /// become equal.
    #[error(
        "the name has {found} bytes, and the database would cut names made of it; use at most \
         {most} bytes"
    )]
    TooLong {
        /// The length of the name in bytes.
        found: usize,
        /// The maximum length in bytes.
        most: usize,
    },
    /// The database reserves names that begin with this.
    #[error(
        "the name begins with {0:?}, which is reserved for the database; choose another beginning"
    )]
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
        // SQLSTATEs are from appendix A of PostgreSQL's documentation; SQLite has one code for all
        // errors in a statement.
        match error.code().as_deref() {
            // insufficient_privilege
            Some("42501") => Self::Denied(fault),
            // duplicate_table, duplicate_object, undefined_column, wrong_object_type: the existing
            // object is not the store's.
            Some("42P07" | "42710" | "42703" | "42809") => Self::NameTaken(fault),
            _ if error.message().ends_with("already exists")
                || error.message().starts_with("no such column") =>
            {
                Self::NameTaken(fault)
            }
            // The server is starting or stopping, has no room, or does not know the database or the
            // role.
            Some("3D000" | "28000" | "28P01" | "53300" | "57P01" | "57P03") => {
                Self::Unreachable(fault)
            }
            _ if fault.is_missing_file() => Self::Unreachable(fault),
            _ => Self::Database(fault),
        }
    }
}

/// A failure of the database.
///
/// It shows the engine's code and message, but no values of rows: PostgreSQL puts those into the
/// error's details, which are not shown.
pub struct SqlFault(sqlx::Error);

impl SqlFault {
    /// Returns the engine's code of the failure, such as an SQLSTATE.
    pub fn code(&self) -> Option<String> {
        self.0.as_database_error().and_then(|error| error.code().map(String::from))
    }

    /// Whether the database file could not be opened (`SQLITE_CANTOPEN`).
    fn is_missing_file(&self) -> bool {
        self.code().as_deref() == Some("14")
    }
}

impl fmt::Display for SqlFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_database_error() {
            Some(error) => match error.code() {
                Some(code) => write!(f, "{} (code {code})", error.message()),
                None => f.write_str(error.message()),
            },
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

/// Whether a table is missing, which is expected before the first migration.
pub(super) fn is_missing_table(error: &sqlx::Error) -> bool {
    // SQLSTATE undefined_table and invalid_schema_name; SQLite has one code for all errors in a
    // statement.
    error.as_database_error().is_some_and(|error| {
        matches!(error.code().as_deref(), Some("42P01" | "3F000"))
            || error.message().starts_with("no such table")
    })
}

/// Maps an error after which nothing was changed.
pub(in crate::store) fn unavailable(error: sqlx::Error) -> StoreError {
    StoreError::unavailable(SqlFault(error))
}

/// Maps the error of a failed commit.
///
/// If the engine reports a code of a class for such failures, the commit was not done. After any
/// other error, such as a lost connection, the outcome is unknown.
pub(super) fn commit(error: sqlx::Error) -> StoreError {
    let code = error.as_database_error().and_then(DatabaseError::code);
    // SQLSTATE classes 23 (integrity) and 40 (transaction rollback) except 40003 (completion
    // unknown), PostgreSQL documentation, appendix A; SQLite's BUSY.
    let is_undone = |code: &str| {
        let is_busy = code.parse::<u32>().is_ok_and(|code| code < 10_000 && code % 256 == 5);
        let is_of = |class: &str| code.len() == 5 && code.starts_with(class) && code != "40003";
        is_busy || is_of("23") || is_of("40")
    };
    if code.as_deref().is_some_and(is_undone) {
        unavailable(error)
    } else {
        StoreError::OutcomeUnknown(Box::new(SqlFault(error)))
    }
}

/// The unique index that a change violates.
pub(super) enum Violation {
    Id,
    Name,
}

impl Violation {
    pub(super) fn of(error: &sqlx::Error) -> Option<Self> {
        let error = error.as_database_error().filter(|error| error.is_unique_violation())?;
        let is_name = match error.constraint() {
            Some(index) => index.ends_with("tokens_name"),
            // SQLite names the columns instead of the index.
            None => error.message().ends_with(".name_key"),
        };
        Some(if is_name { Self::Name } else { Self::Id })
    }
}
