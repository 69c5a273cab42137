//! The differences between the database engines: the text of statements, and what a database must
//! be set to.

mod mysql;
mod postgres;
mod sqlite;

use super::Value;
use super::migrate::Migration;
use super::names::Names;
use crate::store::Touch;
use std::sync::Arc;

/// A database engine that can hold tokens: [`Sqlite`], [`Postgres`] or [`MySql`].
///
/// A driver names its engine by this type, so that a transaction of one engine cannot be passed to
/// a store in another.
pub trait Engine: sealed::Sealed + Send + Sync + 'static {
    /// The differences in the text of statements.
    #[doc(hidden)]
    const DIALECT: &'static Dialect;
}

mod sealed {
    pub trait Sealed {}
}

#[doc = include_str!("engine/sqlite.md")]
#[derive(Debug, Clone, Copy)]
#[allow(clippy::exhaustive_enums, reason = "it has no value and gets none")]
pub enum Sqlite {}

#[doc = include_str!("engine/postgres.md")]
#[derive(Debug, Clone, Copy)]
#[allow(clippy::exhaustive_enums, reason = "it has no value and gets none")]
pub enum Postgres {}

#[doc = include_str!("engine/mysql.md")]
#[derive(Debug, Clone, Copy)]
#[allow(clippy::exhaustive_enums, reason = "it has no value and gets none")]
pub enum MySql {}

impl sealed::Sealed for Sqlite {}
impl sealed::Sealed for Postgres {}
impl sealed::Sealed for MySql {}

impl Engine for Sqlite {
    const DIALECT: &'static Dialect = &sqlite::DIALECT;
}

impl Engine for Postgres {
    const DIALECT: &'static Dialect = &postgres::DIALECT;
}

impl Engine for MySql {
    const DIALECT: &'static Dialect = &mysql::DIALECT;
}

pub(super) use mysql::check as check_mysql;
pub(super) use postgres::check as check_postgres;
pub(super) use sqlite::check as check_sqlite;

/// The engine of a [`Dialect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EngineKind {
    Sqlite,
    Postgres,
    MySql,
}

/// The differences between the engines in the text of statements.
///
/// Statements are written with the placeholders `$1`, `$2`, …, which [`sql`](Self::sql) replaces by
/// those of the engine.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    pub(super) kind: EngineKind,
    /// The prefix of export cursors.
    pub(super) name: &'static str,
    /// The character that quotes names.
    pub(super) quote: char,
    /// Builds the statement that reads up to `$3` events after the transaction `$1` and the number
    /// `$2`.
    ///
    /// It selects the columns, the transaction and the number of each event, and the newest
    /// transaction or number. If there are no events, it returns one row that has only the newest.
    pub(super) export: fn(columns: &str, names: &Names) -> String,
    /// Whether events are exported in the order of their transaction ids.
    pub(super) has_transaction_ids: bool,
    /// The statement to run before the one that begins a transaction that writes.
    pub(super) before_begin: Option<&'static str>,
    /// Begins a transaction that writes.
    pub(super) begin: &'static str,
    /// Builds the statement that removes up to `limit` events from before `before`.
    pub(super) prune_events: fn(events: &str, before: i64, limit: usize) -> String,
    /// Builds the end of an insert that leaves a row alone if it has the same value in this column.
    pub(super) keep_first: fn(column: &str) -> String,
    /// Builds the statement that records last uses, each of a different token.
    pub(super) touch: fn(table: &str, uses: &[Touch]) -> (String, Vec<Value>),
    /// Whether the text of that statement is the same for any number of uses.
    pub(super) is_touch_fixed: bool,
    /// The suffix of a query that locks the rows it reads; `None` if a transaction locks the whole
    /// database.
    pub(super) lock_rows: Option<&'static str>,
    /// Builds the clause that names the index for a page; empty if the engine chooses it.
    pub(super) index_hint: fn(index: &str) -> String,
    /// Builds the statement that waits for a random time of up to this many milliseconds; `None` if
    /// transactions wait for each other instead of failing.
    pub(super) pause: Option<fn(millis: u32) -> String>,
    /// Counts the schemas with the name `$1`; `None` if the host cannot choose a schema.
    pub(super) count_schemas: Option<&'static str>,
    /// Returns null if no table has the quoted name `$1`; `None` if the error of a statement is enough.
    pub(super) find_table: Option<&'static str>,
    /// The maximum length of a name in the engine's units; the engine truncates or refuses longer
    /// names.
    pub(super) longest_name: Option<usize>,
    /// The prefix that no name may have, in lower case.
    pub(super) reserved_prefix: Option<&'static str>,
    /// Ensures that only one node migrates at a time.
    pub(super) lock: Option<&'static str>,
    /// Whether listening nodes are notified of changes.
    pub(super) notifies: bool,
    pub(super) migrations: &'static [Migration],
}

/// The text of a statement in an engine's form.
#[derive(Debug, Clone)]
pub(super) struct Sql {
    pub(super) text: Arc<str>,
    /// The index of the value of each placeholder; `None` if they have the order of the values.
    order: Option<Arc<[usize]>>,
}

impl Sql {
    /// Returns the values in the order of the placeholders.
    pub(super) fn arrange(&self, values: Vec<Value>) -> Vec<Value> {
        let Some(order) = &self.order else {
            return values;
        };
        let value = |index: &usize| {
            values.get(*index).cloned().expect("a statement is built with a value for each place")
        };
        order.iter().map(value).collect()
    }
}

impl Dialect {
    /// Returns a statement in the engine's form.
    ///
    /// What stands between quotes, such as a host's name of a table, is left alone.
    pub(super) fn sql(&self, text: impl Into<String>) -> Sql {
        let text = text.into();
        if self.kind == EngineKind::Postgres {
            return Sql { text: text.into(), order: None };
        }
        let (mut sql, mut order) = (String::with_capacity(text.len()), Vec::new());
        let mut quote = None;
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            match quote {
                Some(end) if character == end => quote = None,
                None if matches!(character, '"' | '`' | '\'') => quote = Some(character),
                None if character == '$' => {
                    sql.push('?');
                    let mut place = String::new();
                    while let Some(digit) = characters.next_if(char::is_ascii_digit) {
                        place.push(digit);
                    }
                    if self.kind == EngineKind::Sqlite {
                        sql.push_str(&place);
                    }
                    let place: usize = place.parse().expect("a place is a small number");
                    order.push(place.saturating_sub(1));
                    continue;
                }
                Some(_) | None => {}
            }
            sql.push(character);
        }
        let order = (self.kind == EngineKind::MySql).then(|| order.into());
        Sql { text: sql.into(), order }
    }

    /// Quotes a name.
    pub(super) fn quoted(&self, name: &str) -> String {
        let quote = self.quote;
        let doubled = String::from_iter([quote, quote]);
        format!("{quote}{}{quote}", name.replace(quote, &doubled))
    }
}

/// Returns `ON CONFLICT … DO NOTHING`, as PostgreSQL and SQLite have it.
fn on_conflict_do_nothing(column: &str) -> String {
    format!(" ON CONFLICT ({column}) DO NOTHING")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_take_the_form_of_the_engine_outside_quotes_alone() {
        let text = r#"SELECT $2, "a$1""b" FROM `x$1` WHERE c = '$1''$2' AND d = $12 OR e = $2"#;
        let sqlite = Sqlite::DIALECT.sql(text);
        assert_eq!(
            &*sqlite.text,
            r#"SELECT ?2, "a$1""b" FROM `x$1` WHERE c = '$1''$2' AND d = ?12 OR e = ?2"#
        );
        let mysql = MySql::DIALECT.sql(text);
        assert_eq!(
            &*mysql.text,
            r#"SELECT ?, "a$1""b" FROM `x$1` WHERE c = '$1''$2' AND d = ? OR e = ?"#
        );
        let values: Vec<Value> = (1..=12).map(|value| Value::Int(Some(value))).collect();
        let int = |value| Value::Int(Some(value));
        assert_eq!(mysql.arrange(values.clone()), [int(2), int(12), int(2)]);
        assert_eq!(sqlite.arrange(values.clone()), values);
        assert_eq!(&*Postgres::DIALECT.sql(text).text, text);
    }
}
