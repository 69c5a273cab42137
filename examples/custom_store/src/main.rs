//! A host's own store, here on redb, and the suite that proves it right: `cargo run -p custom_store`. One table of
//! records by id, one of names, one of events, one of check values of keys. What a store must promise is said at `patkit::TokenStore`.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "an example")]

use chrono::{DateTime, Utc};
use patkit::conformance::Suite;
use patkit::store::record::{Value, event_values, read_event, read_token, token_values};
use patkit::store::{Change, ChangeBatch, Conflict, CorruptRecord, KeyChecks, ListQuery, Page, Touch};
use patkit::token::{Credential, KeyCheck, KeyId};
use patkit::{StoreError, Token, TokenId, TokenStore};
use redb::backends::InMemoryBackend;
use redb::{Database, Error, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde_json::json;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

const TOKENS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("tokens");
const NAMES: TableDefinition<'_, &[u8], ()> = TableDefinition::new("names");
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
const KEY_CHECKS: TableDefinition<'_, u16, [u8; 16]> = TableDefinition::new("key_checks");

struct RedbStore(Database);

impl RedbStore {
    fn in_memory() -> Result<Self, Error> {
        let store = Self(Database::builder().create_with_backend(InMemoryBackend::new())?);
        let begin = store.0.begin_write()?;
        drop((begin.open_table(TOKENS)?, begin.open_table(NAMES)?, begin.open_table(EVENTS)?));
        begin.open_table(KEY_CHECKS)?;
        begin.commit()?;
        Ok(store)
    }

    /// All records, newest first, each readable or not.
    fn all(&self) -> Result<Vec<Result<Token, CorruptRecord>>, Error> {
        let table = self.0.begin_read()?.open_table(TOKENS)?;
        table.iter()?.rev().map(|row| Ok(decode(row?.1.value()))).collect()
    }
}

fn down(error: impl Into<Error>) -> StoreError {
    StoreError::unavailable(error.into())
}

/// Does a batch within a transaction, or says why not; the transaction is dropped then.
fn write(begun: &WriteTransaction, batch: &ChangeBatch) -> Result<Result<(), Conflict>, Error> {
    let (mut tokens, mut names) = (begun.open_table(TOKENS)?, begun.open_table(NAMES)?);
    let find = |tokens: &redb::Table<'_, &[u8], &[u8]>, id: TokenId| -> Result<Option<Token>, Error> {
        Ok(tokens.get(&id.to_bytes()[..])?.and_then(|row| decode(row.value()).ok()))
    };
    let (mut seen, mut olds) = (HashSet::new(), Vec::new());
    for change in &batch.changes {
        let (id, old) = (change.id(), find(&tokens, change.id())?);
        let version = old.as_ref().map(|old| old.version);
        let (fits, conflict) = match change {
            Change::Insert(_) => (old.is_none(), Conflict::Id(id)),
            Change::Update(token) => {
                (version.is_some() && version == token.version.checked_sub(1), Conflict::Version(id))
            }
            Change::Remove { version: expected, .. } => (version == Some(*expected), Conflict::Version(id)),
            _ => (false, Conflict::Version(id)),
        };
        if !fits || !seen.insert(id) {
            return Ok(Err(conflict));
        }
        olds.extend(old);
    }
    // What goes first: a name may be handed on within the batch.
    for old in &olds {
        tokens.remove(&old.id.to_bytes()[..])?;
        names.remove(&*name(old).unwrap_or_default())?;
    }
    for change in &batch.changes {
        let (Change::Insert(token) | Change::Update(token)) = change else { continue };
        if token.owner_kind != token.kind.owner_kind() {
            return Ok(Err(Conflict::OwnerKind(token.id)));
        }
        if let Some(name) = name(token)
            && names.insert(&*name, ())?.is_some()
        {
            return Ok(Err(Conflict::Name(token.id)));
        }
        let old = olds.iter().find(|old| old.id == token.id);
        let stored =
            Token { last_used: old.map_or(token.last_used, |old| old.last_used), ..Token::clone(token) };
        tokens.insert(&token.id.to_bytes()[..], &*encode(token_values(&stored)))?;
    }
    let mut events = begun.open_table(EVENTS)?;
    if let Some((realm, owner)) = &batch.erase {
        let rows =
            events.iter()?.map(|row| row.map(|(number, event)| (number.value(), event.value().to_vec())));
        for (number, event) in rows.collect::<Result<Vec<_>, _>>()? {
            if let Ok(mut event) = read_event(&*row(&event), "events") {
                event.erase(realm, owner);
                events.insert(number, &*encode(event_values(&event)))?;
            }
        }
    }
    let mut number = events.last()?.map_or(0, |(number, _)| number.value());
    for event in &batch.events {
        number = number.saturating_add(1);
        events.insert(number, &*encode(event_values(event)))?;
    }
    Ok(Ok(()))
}

/// What no two records without successor may share.
fn name(token: &Token) -> Option<Vec<u8>> {
    let owner = format!("{}\0{}\0{}\0", token.realm.as_str(), token.owner, token.kind);
    Some([owner.as_bytes(), token.name_key?.as_bytes()].concat())
}

impl TokenStore for RedbStore {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        let table = self.0.begin_read().map_err(down)?.open_table(TOKENS).map_err(down)?;
        let row = table.get(&id.to_bytes()[..]).map_err(down)?;
        let token = row.map(|row| decode(row.value())).transpose().map_err(StoreError::Corrupt)?;
        Ok(token.map(Arc::new))
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        let (mut tokens, mut corrupt) = (Vec::new(), Vec::new());
        for record in self.all().map_err(down)? {
            match record {
                Ok(token) if query.holds(&token) => tokens.push(Arc::new(token)),
                Ok(_) => {}
                Err(record) => corrupt.push(record),
            }
        }
        let is_last = tokens.len() <= query.limit.max(1);
        tokens.truncate(query.limit.max(1));
        let next = tokens.last().map(|token| token.id).filter(|_| !is_last);
        Ok(Page::new(tokens, corrupt, next))
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        let begun = self.0.begin_write().map_err(down)?;
        write(&begun, batch).map_err(down)?.map_err(StoreError::Conflict)?;
        begun.commit().map_err(|error| StoreError::OutcomeUnknown(Box::new(error)))
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        let touched = || {
            let begun = self.0.begin_write()?;
            let mut tokens = begun.open_table(TOKENS)?;
            for touch in uses {
                let row = tokens.get(&touch.id.to_bytes()[..])?.map(|row| decode(row.value()));
                let Some(Ok(mut token)) = row else { continue };
                if token.last_used.is_none_or(|known| touch.replaces(known.at)) {
                    token.last_used = Some(touch.last_use);
                    tokens.insert(&touch.id.to_bytes()[..], &*encode(token_values(&token)))?;
                }
            }
            drop(tokens);
            begun.commit().map_err(Error::from)
        };
        touched().map_err(down)
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        let all = self.all().map_err(down)?.into_iter().flatten();
        let is_over = |token: &Token| token.facts.ended_at().is_some_and(|at| at <= before);
        let mut ended: Vec<Token> = all.filter(is_over).collect();
        ended.sort_by_key(|token| (token.facts.ended_at(), token.id));
        ended.truncate(limit);
        Ok(Page::new(ended.into_iter().map(Arc::new).collect(), Vec::new(), None))
    }
}

impl KeyChecks for RedbStore {
    async fn key_checks(&self) -> Result<Vec<KeyCheck>, StoreError> {
        let read = || -> Result<Vec<KeyCheck>, Error> {
            let table = self.0.begin_read()?.open_table(KEY_CHECKS)?;
            let rows = table.iter()?;
            rows.map(|row| row.map(|(key, value)| KeyCheck::new(KeyId::new(key.value()), value.value())))
                .map(|row| row.map_err(Error::from))
                .collect()
        };
        read().map_err(down)
    }

    async fn record_key_check(&self, check: &KeyCheck) -> Result<(), StoreError> {
        let record = || -> Result<(), Error> {
            let begun = self.0.begin_write()?;
            let mut table = begun.open_table(KEY_CHECKS)?;
            if table.get(check.key().get())?.is_none() {
                table.insert(check.key().get(), check.value())?;
            }
            drop(table);
            Ok(begun.commit()?)
        };
        record().map_err(down)
    }

    async fn tokens_per_key(&self) -> Result<Vec<(KeyId, u64)>, StoreError> {
        let mut counts: BTreeMap<KeyId, u64> = BTreeMap::new();
        for token in self.all().map_err(down)?.into_iter().flatten() {
            if let Credential::Keyed(digest) = &token.credential {
                let count = counts.entry(digest.key()).or_default();
                *count = count.saturating_add(1);
            }
        }
        Ok(counts.into_iter().collect())
    }
}

/// A row as JSON; a host writes what it likes, as long as it comes back as it was.
fn encode(row: Vec<Value>) -> Vec<u8> {
    let cells = row.into_iter().map(|value| match value {
        Value::Int(int) => json!({ "int": int }),
        Value::Text(text) => json!({ "text": text }),
        Value::Bytes(bytes) => json!({ "bytes": bytes }),
    });
    json!(cells.collect::<Vec<_>>()).to_string().into_bytes()
}

fn row(bytes: &[u8]) -> Vec<Value> {
    let cells: Vec<serde_json::Value> = serde_json::from_slice(bytes).unwrap_or_default();
    let read = |cell: serde_json::Value| match cell.as_object().and_then(|cell| cell.iter().next()) {
        Some((kind, int)) if kind == "int" => Value::Int(int.as_i64()),
        Some((kind, text)) if kind == "text" => Value::Text(text.as_str().map(str::to_owned)),
        Some((_, bytes)) => Value::Bytes(serde_json::from_value(bytes.clone()).unwrap_or_default()),
        None => Value::Int(None),
    };
    cells.into_iter().map(read).collect()
}

fn decode(bytes: &[u8]) -> Result<Token, CorruptRecord> {
    read_token(&*row(bytes), "tokens")
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let suite = Suite::new(|| async { RedbStore::in_memory().expect("memory is there") });
    let passed = [suite.run().await?.passed, suite.run_key_checks().await?.passed].concat();
    println!("The store keeps the contract, in {} checks.", passed.len());
    Ok(())
}
