//! The text of each statement.

use super::driver::Statement;
use super::engine::{Dialect, EngineKind, Sql};
use super::error::{Meaning, SqlError};
use super::names::Names;
use crate::audit::AuditEvent;
use crate::clock::plausible_until;
use crate::store::record::{EVENT_COLUMNS, TOKEN_COLUMNS, Value, event_values};
use crate::store::{EventOrder, EventQuery, ListBy, ListQuery, Touch};
use crate::token::{TokenId, TokenState};
use std::collections::BTreeSet;
use std::fmt::Write;

/// The maximum number of records or events in a statement that connections keep prepared.
///
/// Each number of them is another text, and not every driver limits how many texts it keeps.
const MAX_KEPT: usize = 8;

/// The texts of all statements, built once so that connections find their prepared statements
/// again.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) dialect: &'static Dialect,
    /// Whether connections keep the statements prepared.
    pub(super) keeps: bool,
    pub(super) names: Names,
    /// The name of the unique index of names, which the database names in errors.
    pub(super) name_index: String,
    /// The quoted name of the table of tokens.
    pub(super) tokens: String,
    pub(super) events: String,
    /// The name of the table of tokens in errors.
    pub(super) tokens_shown: String,
    pub(super) events_shown: String,
    pub(super) find: Sql,
    pub(super) insert: Sql,
    pub(super) update: Sql,
    pub(super) remove: Sql,
    pub(super) erase: Sql,
    pub(super) count_by_state: Sql,
    pub(super) tokens_per_key: Sql,
    pub(super) key_checks_shown: String,
    pub(super) read_key_checks: Sql,
    pub(super) record_key_check: Sql,
    pub(super) health: Sql,
    pub(super) export: Sql,
}

impl Statements {
    pub(super) fn new(names: Names, keeps: bool, dialect: &'static Dialect) -> Self {
        let (tokens, events) = (names.table("tokens"), names.table("events"));
        let key_checks = names.table("key_checks");
        let columns = TOKEN_COLUMNS.join(", ");
        // All columns but the id and, at the end, those of the last use.
        let assignments: Vec<String> = TOKEN_COLUMNS
            .iter()
            .enumerate()
            .filter(|(_, column)| **column != "id" && !column.starts_with("last_used"))
            .map(|(index, column)| format!("{column} = ${}", index.saturating_add(1)))
            .collect();
        let version = TOKEN_COLUMNS.len().saturating_sub(2);
        let sql = |text: String| dialect.sql(text);
        Self {
            find: sql(format!("SELECT {columns} FROM {tokens} WHERE id = $1")),
            insert: sql(format!(
                "INSERT INTO {tokens} ({columns}) VALUES ({})",
                places(1, TOKEN_COLUMNS.len())
            )),
            update: sql(format!(
                "UPDATE {tokens} SET {} WHERE id = $1 AND version = ${version} - 1",
                assignments.join(", ")
            )),
            remove: sql(format!("DELETE FROM {tokens} WHERE id = $1 AND version = $2")),
            // The last column is the one that the others depend on, because MySQL assigns one after
            // the other.
            erase: sql(format!(
                "UPDATE {events} SET address = NULL, \
                 owner = CASE WHEN owner = $2 THEN NULL ELSE owner END, \
                 actor = CASE WHEN actor_owner = $2 THEN 'erased' ELSE actor END, \
                 actor_token = CASE WHEN actor_owner = $2 THEN NULL ELSE actor_token END, \
                 actor_owner = CASE WHEN actor_owner = $2 THEN NULL ELSE actor_owner END \
                 WHERE (realm = $1 AND owner = $2) OR (realm = $1 AND actor_owner = $2)"
            )),
            count_by_state: sql(format!(
                "SELECT COUNT(CASE WHEN {} THEN 1 END), COUNT(CASE WHEN {} THEN 1 END), \
                 COUNT(CASE WHEN {} THEN 1 END) FROM {tokens}",
                in_state(TokenState::Active, "$1"),
                in_state(TokenState::Revoked, "$1"),
                in_state(TokenState::Expired, "$1"),
            )),
            tokens_per_key: sql(format!(
                "SELECT digest_key, COUNT(*) FROM {tokens} WHERE digest_key IS NOT NULL \
                 GROUP BY digest_key ORDER BY digest_key"
            )),
            read_key_checks: sql(format!(
                "SELECT key_id, check_value FROM {key_checks} ORDER BY key_id"
            )),
            record_key_check: sql(format!(
                "INSERT INTO {key_checks} (key_id, check_value) VALUES ($1, $2){}",
                (dialect.keep_first)("key_id")
            )),
            health: sql(format!("SELECT 1 FROM {tokens} LIMIT 1")),
            export: sql((dialect.export)(
                &EVENT_COLUMNS.map(|column| format!("event.{column}")).join(", "),
                &names,
            )),
            name_index: names.index("tokens_name"),
            dialect,
            tokens_shown: names.shown("tokens"),
            events_shown: names.shown("events"),
            key_checks_shown: names.shown("key_checks"),
            keeps,
            names,
            tokens,
            events,
        }
    }

    /// Returns the statement for a list, with its values.
    ///
    /// `after` is the id that the list starts after. It may be a value that is not a valid id.
    pub(super) fn list(&self, query: &ListQuery, after: Option<Value>) -> Statement {
        let mut values = Vec::new();
        let mut conditions: Vec<String> = Vec::new();
        let mut bind = |value: Value| {
            values.push(value);
            format!("${}", values.len())
        };
        let index = match &query.by {
            ListBy::Owner { realm, owner, kind } => {
                conditions.push(format!("realm = {}", bind(Value::text(realm.as_str()))));
                conditions.push(format!("owner = {}", bind(Value::text(owner))));
                conditions.extend(kind.map(|kind| format!("kind = {}", bind(Value::text(&kind)))));
                Some("tokens_owner")
            }
            ListBy::Kind { realm, kind } => {
                conditions.push(format!("realm = {}", bind(Value::text(realm.as_str()))));
                conditions.push(format!("kind = {}", bind(Value::text(&kind))));
                Some("tokens_kind")
            }
            ListBy::Creator(creator) => {
                conditions.push(format!("created_by_token = {}", bind(Value::id(*creator))));
                Some("tokens_creator")
            }
            ListBy::Restorer(restorer) => {
                conditions.push(format!("restored_by_token = {}", bind(Value::id(*restorer))));
                Some("tokens_restorer")
            }
            ListBy::Ancestor(ancestor) => {
                conditions.push(format!("ancestor = {}", bind(Value::id(*ancestor))));
                Some("tokens_ancestor")
            }
            ListBy::Key(key) => {
                conditions.push(format!("digest_key = {}", bind(Value::count(key.get()))));
                Some("tokens_key")
            }
            ListBy::Idle(before) => {
                let before = bind(Value::time(*before));
                let latest = query.active_at.map(|now| bind(Value::time(plausible_until(now))));
                let is_before = |column: &str| match &latest {
                    None => format!("{column} < {before}"),
                    Some(latest) => format!("({column} < {before} OR {column} > {latest})"),
                };
                conditions.push(is_before("idle_from"));
                conditions.push(format!("(last_used_at IS NULL OR {})", is_before("last_used_at")));
                None
            }
        };
        if let Some(now) = query.active_at {
            let now = bind(Value::time(now));
            conditions.push(in_state(TokenState::Active, &now));
        }
        conditions.extend(after.map(|after| format!("id < {}", bind(after))));
        // Reads one row more than requested, to know whether there is a next page.
        let limit = bind(Value::count(query.limit.max(1).saturating_add(1)));
        let sql = format!(
            "SELECT {} FROM {}{} WHERE {} ORDER BY id DESC LIMIT {limit}",
            TOKEN_COLUMNS.join(", "),
            self.tokens,
            index.map(|index| self.by(index)).unwrap_or_default(),
            conditions.join(" AND ")
        );
        self.statement(&self.dialect.sql(sql), values)
    }

    /// Returns the statement for a page of events and one event more, with its values.
    pub(super) fn events(&self, query: &EventQuery) -> Statement {
        let mut values = Vec::new();
        let mut bind = |value: Value| {
            values.push(value);
            format!("${}", values.len())
        };
        let index = match (query.token, &query.owner) {
            (Some(_), _) => "events_token",
            (None, Some(_)) => "events_owner",
            (None, None) => "events_realm",
        };
        let mut conditions = vec![format!("realm = {}", bind(Value::text(query.realm.as_str())))];
        conditions.extend(query.token.map(|token| format!("token = {}", bind(Value::id(token)))));
        conditions.extend(
            query.owner.as_ref().map(|owner| format!("owner = {}", bind(Value::text(owner)))),
        );
        conditions.extend(query.from.map(|from| format!("at >= {}", bind(Value::time(from)))));
        conditions.extend(query.until.map(|until| format!("at < {}", bind(Value::time(until)))));
        let (direction, is_further) = match query.order {
            EventOrder::NewestFirst => (" DESC", "<"),
            EventOrder::OldestFirst => ("", ">"),
        };
        if let Some(after) = query.after {
            let micros = bind(Value::Int(Some(after.micros())));
            let id = bind(Value::Bytes(Some(after.id_bytes().to_vec())));
            // A comparison of rows would use no index in MySQL.
            conditions.push(format!(
                "at {is_further}= {micros} AND (at {is_further} {micros} OR id {is_further} {id})"
            ));
        }
        let limit = bind(Value::count(query.limit.max(1).saturating_add(1)));
        let sql = format!(
            "SELECT {} FROM {}{} WHERE {} ORDER BY at{direction}, id{direction} LIMIT {limit}",
            EVENT_COLUMNS.join(", "),
            self.events,
            self.by(index),
            conditions.join(" AND ")
        );
        self.statement(&self.dialect.sql(sql), values)
    }

    /// Returns the clause that names the index for a page; empty if the engine chooses it.
    fn by(&self, index: &str) -> String {
        (self.dialect.index_hint)(&self.names.quoted(index))
    }

    /// Returns the channel for notifications of changes. Its name is short, however long the
    /// table's name is.
    ///
    /// Two stores that share a channel occasionally invalidate a record needlessly.
    pub(super) fn channel(&self) -> String {
        format!("patkit_{:08x}", crc32fast::hash(self.tokens.as_bytes()))
    }

    /// Selects the ids and versions of records.
    pub(super) fn versions(&self, ids: Vec<Value>) -> Statement {
        let places = places(1, ids.len());
        let sql = format!("SELECT id, version FROM {} WHERE id IN ({places})", self.tokens);
        self.of_several(sql, ids.len(), ids)
    }

    /// Frees the names of records temporarily.
    ///
    /// The placeholders collide with no name, because no hash of a name is as short as an id.
    pub(super) fn clear_names(&self, ids: Vec<Value>) -> Statement {
        let sql = format!(
            "UPDATE {} SET name_key = id WHERE id IN ({}) AND successor IS NULL",
            self.tokens,
            places(1, ids.len())
        );
        self.of_several(sql, ids.len(), ids)
    }

    /// Locks several records in the order of their ids; `None` if the engine needs no such locks.
    pub(super) fn lock_rows(&self, ids: Vec<Value>) -> Option<Statement> {
        let lock = self.dialect.lock_rows?;
        let places = places(1, ids.len());
        let sql =
            format!("SELECT id FROM {} WHERE id IN ({places}) ORDER BY id{lock}", self.tokens);
        Some(self.of_several(sql, ids.len(), ids))
    }

    /// Selects ended records.
    ///
    /// Both numbers are literals so that the planner can estimate how few rows end before the
    /// instant, and choose the right index. The text therefore differs each time and is not kept.
    pub(super) fn list_ended(&self, before: i64, limit: usize) -> Statement {
        let sql = format!(
            "SELECT {} FROM {}{} WHERE ended_at <= {before} ORDER BY ended_at, id LIMIT {limit}",
            TOKEN_COLUMNS.join(", "),
            self.tokens,
            self.by("tokens_ended"),
        );
        Statement::new(sql.into(), Vec::new())
    }

    pub(super) fn prune_events(&self, before: i64, limit: usize) -> Statement {
        let sql = (self.dialect.prune_events)(&self.events, before, limit);
        Statement::new(sql.into(), Vec::new())
    }

    /// Records last uses, each of a different token.
    pub(super) fn touch(&self, uses: &[Touch]) -> Statement {
        let (sql, values) = (self.dialect.touch)(&self.tokens, uses);
        let sql = self.dialect.sql(sql);
        let values = sql.arrange(values);
        Statement::new(sql.text, values).kept(self.keeps && self.dialect.is_touch_fixed)
    }

    /// Takes numbers for events, which the transaction then keeps for itself; `None` if the database
    /// numbers them.
    pub(super) fn take_numbers(&self, count: usize) -> Option<Statement> {
        let numbers = self.numbers()?;
        let sql = format!("UPDATE {numbers} SET newest = newest + $1");
        Some(self.statement(&self.dialect.sql(sql), vec![Value::count(count)]))
    }

    /// Returns the name of the table with the number of the newest event, in engines whose numbers
    /// would not be in commit order.
    fn numbers(&self) -> Option<String> {
        (self.dialect.kind == EngineKind::MySql).then(|| self.names.table("numbers"))
    }

    /// Stores events, and notifies of changes of `ids` in engines that do.
    ///
    /// `later` is the number of events that the transaction stores after these.
    pub(super) fn insert_events(
        &self,
        events: &[AuditEvent],
        later: usize,
        ids: impl Iterator<Item = TokenId>,
    ) -> Statement {
        let numbers = self.numbers();
        let mut values: Vec<Value> = events.iter().flat_map(event_values).collect();
        let number = if numbers.is_some() { "seq, " } else { "" };
        let columns = EVENT_COLUMNS.join(", ");
        let mut sql = format!("INSERT INTO {} ({number}{columns}) VALUES ", self.events);
        for event in 0..events.len() {
            let first = event.saturating_mul(EVENT_COLUMNS.len()).saturating_add(1);
            sql.push_str(if event == 0 { "(" } else { ", (" });
            if let Some(numbers) = &numbers {
                let after = events.len().saturating_sub(event).saturating_sub(1);
                let after = after.saturating_add(later);
                // Writing to a `String` cannot fail.
                let _ = write!(sql, "(SELECT newest - {after} FROM {numbers}), ");
            }
            sql.push_str(&places(first, EVENT_COLUMNS.len()));
            sql.push(')');
        }
        sql.push_str(&(self.dialect.keep_first)("id"));
        if self.dialect.notifies {
            // One statement stores the events and notifies. The notification is sent when the
            // transaction commits.
            let place = values.len().saturating_add(1);
            sql = format!(
                "WITH stored AS ({sql} RETURNING 1) SELECT pg_notify({})::text",
                places(place, 2)
            );
            values.push(Value::text(&self.channel()));
            values.push(Value::Text(Some(told(ids.chain(events.iter().map(|event| event.token))))));
        }
        self.of_several(sql, events.len(), values)
    }

    /// Returns what a failure means.
    pub(super) fn meaning(&self, error: &SqlError) -> Meaning {
        error.meaning(self.dialect.kind, &self.name_index)
    }

    /// Returns the statement for this many records or events, with its values.
    fn of_several(&self, sql: String, count: usize, values: Vec<Value>) -> Statement {
        let statement = self.statement(&self.dialect.sql(sql), values);
        statement.kept(self.keeps && count <= MAX_KEPT)
    }

    /// Returns a statement with its values, which a connection keeps prepared if it can.
    pub(super) fn statement(&self, sql: &Sql, values: Vec<Value>) -> Statement {
        Statement::new(sql.text.clone(), sql.arrange(values)).kept(self.keeps)
    }
}

/// Returns `count` placeholders: `$first, …`.
fn places(first: usize, count: usize) -> String {
    let mut text = String::new();
    for place in first..first.saturating_add(count) {
        let comma = if place == first { "" } else { ", " };
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{comma}${place}");
    }
    text
}

/// Returns the condition of the records that are in a state at `now`, as
/// [`Facts::state`](crate::token::Facts::state) derives it.
fn in_state(state: TokenState, now: &str) -> String {
    match state {
        TokenState::Active => {
            format!("revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {now})")
        }
        TokenState::Revoked => {
            format!("revoked_at IS NOT NULL AND (expires_at IS NULL OR expires_at > {now})")
        }
        TokenState::Expired => format!("expires_at <= {now}"),
    }
}

/// Builds the payload of a notification: the ids, or a mark that they are too many for one payload.
fn told(ids: impl Iterator<Item = TokenId>) -> String {
    let ids: BTreeSet<TokenId> = ids.collect();
    // PostgreSQL allows 7,999 bytes.
    if ids.len() > 300 {
        return "*".into();
    }
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::{Engine, MySql, Postgres, Sqlite};
    use super::*;

    #[test]
    fn only_texts_of_which_there_are_few_are_kept_prepared() {
        for dialect in [Sqlite::DIALECT, Postgres::DIALECT, MySql::DIALECT] {
            let names = Names::new(dialect, "patkit_".into(), None).unwrap();
            let statements = Statements::new(names, true, dialect);
            let ids = |count| vec![Value::Bytes(Some(vec![0; 16])); count];
            for (count, is_kept) in [(1, true), (MAX_KEPT, true), (MAX_KEPT + 1, false)] {
                assert_eq!(statements.versions(ids(count)).is_kept(), is_kept);
                assert_eq!(statements.clear_names(ids(count)).is_kept(), is_kept);
                let locks = statements.lock_rows(ids(count));
                assert!(locks.is_none_or(|locks| locks.is_kept() == is_kept));
            }
            assert!(!statements.list_ended(1_000, 50).is_kept());
            assert!(!statements.prune_events(1_000, 50).is_kept());
        }
    }
}
