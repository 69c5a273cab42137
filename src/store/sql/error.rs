//! The errors of setting up an SQL store, and the mapping of database errors to store errors.

use super::engine::EngineKind;
use crate::store::StoreError;
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
    NameTaken(SqlError),
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
    Denied(SqlError),
    /// The database cannot be reached.
    #[error(
        "the database cannot be reached: {0}; check its URL, that the server runs or the file of SQLite exists \
         (`.create_if_missing(true)` makes it), and that the pool has a free connection"
    )]
    Unreachable(SqlError),
    /// The database refused a statement.
    #[error("the database refused the setup of the token tables: {0}")]
    Database(SqlError),
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
    /// The name has a character beyond U+FFFF, which MySQL allows in no name.
    #[error(
        "the name has the character {0:?}, and MySQL allows none beyond U+FFFF in names; remove it"
    )]
    Supplementary(char),
    /// The name ends with a space, which MySQL allows in no name of a database.
    #[error("the name ends with a space, which MySQL does not allow; remove the space")]
    TrailingSpace,
}

/// A failure of the database or of the driver.
///
/// It shows the engine's code and message, but no details: PostgreSQL puts values of rows into
/// those.
pub struct SqlError {
    kind: Kind,
    code: Option<String>,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The database answered.
    Reported,
    /// The database could not be asked, or its answer did not arrive.
    Unreachable,
    /// Anything else.
    Failed,
}

impl SqlError {
    /// Creates an error that the database reported.
    ///
    /// `code` is the SQLSTATE in PostgreSQL (`23505`), the extended result code in SQLite (`2067`),
    /// and the error number in MySQL and MariaDB (`1062`). `message` is the primary message
    /// without details. The store derives from both whether a name is taken, whether a batch may be
    /// tried again, and whether a commit happened.
    pub fn reported(code: &str, message: &str) -> Self {
        Self { kind: Kind::Reported, code: Some(code.to_owned()), text: message.to_owned() }
    }

    /// Creates an error for a connection that could not be made, was lost, or did not become free
    /// in time.
    pub fn unreachable(reason: &(impl fmt::Display + ?Sized)) -> Self {
        Self { kind: Kind::Unreachable, code: None, text: reason.to_string() }
    }

    /// Creates an error for anything else, such as an answer that the driver cannot read.
    pub fn failed(reason: &(impl fmt::Display + ?Sized)) -> Self {
        Self { kind: Kind::Failed, code: None, text: reason.to_string() }
    }

    /// Returns the engine's code of the failure, if the database reported it.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Returns the message.
    pub fn message(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, "{} (code {code})", self.text),
            None => f.write_str(&self.text),
        }
    }
}

impl fmt::Debug for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlError({self})")
    }
}

impl std::error::Error for SqlError {}

/// What a failure means to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The unique index of names has the name already.
    NameTaken,
    /// Another unique index has the value already, which is an id.
    IdTaken,
    /// The transaction was rolled back because of another one that ran at the same time. Trying
    /// again may succeed.
    RolledBack,
    /// A table is missing, or its schema.
    MissingTable,
    /// A table, an index or a constraint of someone else has the store's name.
    Occupied,
    /// The role of the connection lacks a right.
    Denied,
    /// The server cannot be reached, does not know the database or the role, or has no room.
    Unreachable,
    /// The statement or the commit was refused and changed nothing.
    Refused,
    /// None of these. If a commit failed like this, its outcome is unknown.
    Unknown,
}

impl SqlError {
    /// `name_index` is the name of the unique index of names.
    pub(super) fn meaning(&self, engine: EngineKind, name_index: &str) -> Meaning {
        let code = self.code.as_deref().unwrap_or_default();
        match (self.kind, engine) {
            (Kind::Unreachable, _) => Meaning::Unreachable,
            (Kind::Failed, _) => Meaning::Unknown,
            (Kind::Reported, EngineKind::Postgres) => postgres(code, &self.text, name_index),
            (Kind::Reported, EngineKind::Sqlite) => sqlite(code, &self.text),
            (Kind::Reported, EngineKind::MySql) => mysql(code, &self.text, name_index),
        }
    }
}

/// SQLSTATEs are from appendix A of PostgreSQL's documentation.
fn postgres(code: &str, message: &str, name_index: &str) -> Meaning {
    match code {
        // unique_violation; the message names the index in every language.
        "23505" if message.contains(name_index) => Meaning::NameTaken,
        "23505" => Meaning::IdTaken,
        // serialization_failure, deadlock_detected
        "40001" | "40P01" => Meaning::RolledBack,
        // undefined_table, invalid_schema_name
        "42P01" | "3F000" => Meaning::MissingTable,
        // duplicate_table, duplicate_object, undefined_column, wrong_object_type
        "42P07" | "42710" | "42703" | "42809" => Meaning::Occupied,
        // insufficient_privilege
        "42501" => Meaning::Denied,
        // The server is starting or stopping, has no room, or does not know the database or the
        // role.
        "3D000" | "28000" | "28P01" | "53300" | "57P01" | "57P03" => Meaning::Unreachable,
        // statement_completion_unknown
        "40003" => Meaning::Unknown,
        // Classes: integrity, transaction rollback.
        _ if code.starts_with("23") || code.starts_with("40") => Meaning::Refused,
        _ => Meaning::Unknown,
    }
}

/// Result codes are from <https://www.sqlite.org/rescode.html>. SQLite has one code for all errors
/// in a statement.
fn sqlite(code: &str, message: &str) -> Meaning {
    let primary = code.parse::<u32>().map_or(0, |code| code % 256);
    match (primary, code) {
        // SQLITE_CONSTRAINT_UNIQUE and _PRIMARYKEY; the message names the columns.
        (_, "2067" | "1555") if message.ends_with(".name_key") => Meaning::NameTaken,
        (_, "2067" | "1555") => Meaning::IdTaken,
        _ if message.starts_with("no such table") => Meaning::MissingTable,
        _ if message.ends_with("already exists") || message.starts_with("no such column") => {
            Meaning::Occupied
        }
        // SQLITE_CANTOPEN
        (14, _) => Meaning::Unreachable,
        // SQLITE_BUSY
        (5, _) => Meaning::Refused,
        _ => Meaning::Unknown,
    }
}

/// Error numbers are from the MySQL Server Error Message Reference, which MariaDB shares.
fn mysql(code: &str, message: &str, name_index: &str) -> Meaning {
    match code {
        // ER_DUP_ENTRY; the message ends with the index: 'name' in MariaDB, 'table.name' in MySQL.
        "1062" => {
            let index = message.strip_suffix('\'').unwrap_or(message);
            if index.ends_with(name_index) { Meaning::NameTaken } else { Meaning::IdTaken }
        }
        // ER_LOCK_DEADLOCK, which Galera reports too if a transaction fails its certification;
        // ER_CHECKREAD, which MariaDB reports if innodb_snapshot_isolation is on.
        "1213" | "1020" => Meaning::RolledBack,
        // ER_NO_SUCH_TABLE
        "1146" => Meaning::MissingTable,
        // ER_TABLE_EXISTS_ERROR, ER_BAD_FIELD_ERROR, ER_DUP_KEYNAME, ER_FK_DUP_NAME and
        // ER_DUP_CONSTRAINT_NAME
        "1050" | "1054" | "1061" | "1826" | "1813" => Meaning::Occupied,
        // ER_TABLEACCESS_DENIED_ERROR
        "1142" => Meaning::Denied,
        // ER_DBACCESS_DENIED_ERROR, ER_ACCESS_DENIED_ERROR, ER_NO_DB_ERROR, ER_BAD_DB_ERROR,
        // ER_CON_COUNT_ERROR, ER_SERVER_SHUTDOWN, ER_UNKNOWN_COM_ERROR (a Galera node that has not
        // joined its cluster)
        "1044" | "1045" | "1046" | "1049" | "1040" | "1053" | "1047" => Meaning::Unreachable,
        // ER_LOCK_WAIT_TIMEOUT, ER_OPTION_PREVENTS_STATEMENT (read-only)
        "1205" | "1290" => Meaning::Refused,
        _ => Meaning::Unknown,
    }
}

impl SetupError {
    pub(super) fn new(error: SqlError, engine: EngineKind) -> Self {
        match error.meaning(engine, "") {
            Meaning::Denied => Self::Denied(error),
            Meaning::Occupied => Self::NameTaken(error),
            Meaning::Unreachable => Self::Unreachable(error),
            Meaning::NameTaken
            | Meaning::IdTaken
            | Meaning::RolledBack
            | Meaning::MissingTable
            | Meaning::Refused
            | Meaning::Unknown => Self::Database(error),
        }
    }
}

/// Maps an error after which nothing was changed.
pub(in crate::store) fn unavailable(error: SqlError) -> StoreError {
    StoreError::unavailable(error)
}

/// Maps the error of a failed commit.
///
/// If the database reported that it refused, the commit was not done. After any other error, such
/// as a lost connection, the outcome is unknown.
pub(super) fn commit(error: SqlError, engine: EngineKind) -> StoreError {
    match error.meaning(engine, "") {
        Meaning::NameTaken | Meaning::IdTaken | Meaning::RolledBack | Meaning::Refused => {
            unavailable(error)
        }
        Meaning::MissingTable
        | Meaning::Occupied
        | Meaning::Denied
        | Meaning::Unreachable
        | Meaning::Unknown => StoreError::OutcomeUnknown(Box::new(error)),
    }
}
