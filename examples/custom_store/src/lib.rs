//! A token store on [redb], an embedded key-value database.
//!
//! [`TokenStore`] says what a store must promise, and the suite in `tests/conformance.rs` checks
//! that this one does: `cargo test -p custom_store`. To write a store of your own, replace the four
//! tables by yours and keep the steps of [`RedbStore::commit`].
//!
//! redb has one writer at a time, and its calls block. A host that keeps the database on a disk
//! runs these calls on a thread for blocking work, for example with `tokio::task::spawn_blocking`.

mod row;

use chrono::{DateTime, Utc};
use patkit::store::{
    Change, ChangeBatch, Conflict, CorruptRecord, KeyChecks, ListQuery, MAX_PAGE, Page,
    TokenCounts, Touch,
};
use patkit::token::{KeyCheck, KeyId, StoredDigest, TokenState};
use patkit::{AuditEvent, OwnerId, Realm, StoreError, Token, TokenId, TokenStore};
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use row::{decode_event, decode_token, encode_event, encode_token};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Tokens by id. Ids grow with time, so the last row is the newest token.
const TOKENS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("tokens");
/// The names in use, each with the token that has it. The key is a [`name_slot`].
const NAMES: TableDefinition<'_, &[u8], [u8; 16]> = TableDefinition::new("names");
/// Audit events by id.
const EVENTS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("events");
/// The check value of each key of the keyring.
const KEY_CHECKS: TableDefinition<'_, u16, [u8; 16]> = TableDefinition::new("key_checks");

/// A token store on redb.
#[derive(Debug)]
pub struct RedbStore {
    database: Database,
}

impl RedbStore {
    /// Creates a store in this database, with its tables if they are missing.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the database cannot be written.
    pub fn new(database: Database) -> Result<Self, StoreError> {
        create_tables(&database)?;
        Ok(Self { database })
    }

    fn read(&self, id: TokenId) -> Result<Option<Token>, Failure> {
        let tokens = self.database.begin_read()?.open_table(TOKENS)?;
        read_token(&tokens, id)
    }

    /// Calls `visit` with every token, newest first, until `visit` returns `false`.
    ///
    /// Starts after the token `after`, if there is one. A record that cannot be read is passed on
    /// as such, because one corrupt record must not hide the others.
    fn visit(
        &self,
        after: Option<TokenId>,
        mut visit: impl FnMut(Result<Token, CorruptRecord>) -> bool,
    ) -> Result<(), Failure> {
        let tokens = self.database.begin_read()?.open_table(TOKENS)?;
        let rows = match after {
            Some(after) => tokens.range(..after.to_bytes())?,
            None => tokens.iter()?,
        };
        for row in rows.rev() {
            let (_, value) = row?;
            if !visit(decode_token(value.value())) {
                break;
            }
        }
        Ok(())
    }

    fn read_page(&self, query: &ListQuery) -> Result<Page, Failure> {
        let limit = query.limit.clamp(1, MAX_PAGE);
        let (mut tokens, mut corrupt) = (Vec::new(), Vec::new());
        let mut is_last = true;
        self.visit(query.after, |record| {
            match record {
                // There is one more than the page may hold, so another page follows.
                Ok(token) if query.holds(&token) && tokens.len() == limit => is_last = false,
                Ok(token) if query.holds(&token) => tokens.push(Arc::new(token)),
                Ok(_) => {}
                Err(record) => corrupt.push(record),
            }
            is_last
        })?;
        let next = if is_last { None } else { tokens.last().map(|token| token.id) };
        Ok(Page::new(tokens, corrupt, next))
    }

    fn read_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, Failure> {
        let (mut ended, mut corrupt) = (Vec::new(), Vec::new());
        self.visit(None, |record| {
            match record {
                Ok(token) => match token.facts.ended_at() {
                    Some(end) if end <= before => ended.push((end, Arc::new(token))),
                    _ => {}
                },
                Err(record) => corrupt.push(record),
            }
            true
        })?;
        corrupt.truncate(limit);
        ended.sort_by_key(|(end, token)| (*end, token.id));
        ended.truncate(limit - corrupt.len());
        Ok(Page::new(ended.into_iter().map(|(_, token)| token).collect(), corrupt, None))
    }

    fn write_uses(&self, uses: &[Touch]) -> Result<(), Failure> {
        let transaction = self.database.begin_write()?;
        {
            let mut tokens = transaction.open_table(TOKENS)?;
            for touch in uses {
                // A removed token stays removed, and a token that cannot be read keeps its bytes.
                let Ok(Some(mut token)) = read_token(&tokens, touch.id) else { continue };
                if token.last_used.is_none_or(|known| touch.replaces(known.at)) {
                    token.last_used = Some(touch.last_use);
                    tokens.insert(touch.id.to_bytes(), &*encode_token(&token))?;
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn read_key_checks(&self) -> Result<Vec<KeyCheck>, Failure> {
        let table = self.database.begin_read()?.open_table(KEY_CHECKS)?;
        let mut checks = Vec::new();
        for row in table.iter()? {
            let (key, value) = row?;
            checks.push(KeyCheck::new(KeyId::new(key.value()), value.value()));
        }
        Ok(checks)
    }

    fn write_key_check(&self, check: &KeyCheck) -> Result<(), Failure> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(KEY_CHECKS)?;
            let key = check.key().get();
            let is_recorded = table.get(key)?.is_some();
            if !is_recorded {
                table.insert(key, check.value())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

impl TokenStore for RedbStore {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        Ok(self.read(id)?.map(Arc::new))
    }

    /// Does the same as [`find`](Self::find): without a cache, both ask the database.
    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find(id).await
    }

    /// Scans all tokens. A store with many tokens needs an index for each kind of list.
    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        Ok(self.read_page(query)?)
    }

    /// Commits a whole batch in one transaction, or nothing. If a step fails, dropping the
    /// transaction undoes it.
    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(Failure::from)?;
        let replaced = check(&transaction, batch)?;
        write_tokens(&transaction, batch, &replaced)?;
        write_events(&transaction, batch)?;
        // If this fails, the changes may be on the disk or not.
        transaction.commit().map_err(|error| StoreError::OutcomeUnknown(Box::new(error)))
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        Ok(self.write_uses(uses)?)
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        Ok(self.read_ended(before, limit)?)
    }
}

impl TokenCounts for RedbStore {
    async fn count_by_state(
        &self,
        now: DateTime<Utc>,
    ) -> Result<Vec<(TokenState, u64)>, StoreError> {
        let mut counts: HashMap<TokenState, u64> = HashMap::new();
        self.visit(None, |record| {
            if let Ok(token) = record {
                *counts.entry(token.state(now)).or_default() += 1;
            }
            true
        })?;
        Ok(counts.into_iter().collect())
    }
}

impl KeyChecks for RedbStore {
    async fn key_checks(&self) -> Result<Vec<KeyCheck>, StoreError> {
        Ok(self.read_key_checks()?)
    }

    async fn record_key_check(&self, check: &KeyCheck) -> Result<(), StoreError> {
        Ok(self.write_key_check(check)?)
    }

    async fn tokens_per_key(&self) -> Result<Vec<(KeyId, u64)>, StoreError> {
        let mut counts: BTreeMap<KeyId, u64> = BTreeMap::new();
        self.visit(None, |record| {
            if let Ok(Token { digest: StoredDigest::Keyed(digest), .. }) = record {
                *counts.entry(digest.key()).or_default() += 1;
            }
            true
        })?;
        Ok(counts.into_iter().collect())
    }
}

// The steps of a commit.

/// The tokens that a batch updates or removes, as they are before it.
type Replaced = HashMap<TokenId, Token>;

/// Checks that each change fits the stored record, and returns the records that will be replaced.
fn check(transaction: &WriteTransaction, batch: &ChangeBatch) -> Result<Replaced, Failure> {
    let tokens = transaction.open_table(TOKENS)?;
    let mut replaced = Replaced::new();
    for change in &batch.changes {
        let id = change.id();
        let stored = read_token(&tokens, id)?;
        let stored_version = stored.as_ref().map(|token| token.version);
        match change {
            Change::Insert(token) => {
                if stored.is_some() {
                    return Err(Failure::Conflict(Conflict::Id(id)));
                }
                check_owner_kind(token)?;
            }
            Change::Update(token) => {
                // The new version must be one more than the version that the caller read.
                if stored_version.map(|version| version + 1) != Some(token.version) {
                    return Err(Failure::Conflict(Conflict::Version(id)));
                }
                check_owner_kind(token)?;
            }
            Change::Remove { version, .. } => {
                if stored_version != Some(*version) {
                    return Err(Failure::Conflict(Conflict::Version(id)));
                }
            }
            // A later patkit may have more kinds of changes. Refusing them is safe, and ignoring
            // them is not.
            _ => return Err(Failure::Conflict(Conflict::Version(id))),
        }
        if let Some(stored) = stored {
            replaced.insert(id, stored);
        }
    }
    Ok(replaced)
}

fn check_owner_kind(token: &Token) -> Result<(), Failure> {
    if token.owner_kind == token.kind.owner_kind() {
        Ok(())
    } else {
        Err(Failure::Conflict(Conflict::OwnerKind(token.id)))
    }
}

/// Removes what the batch replaces or removes, then inserts what it inserts or updates.
///
/// All names are freed before the first one is taken, because a batch may hand a name from one
/// token to another.
fn write_tokens(
    transaction: &WriteTransaction,
    batch: &ChangeBatch,
    replaced: &Replaced,
) -> Result<(), Failure> {
    let mut tokens = transaction.open_table(TOKENS)?;
    let mut names = transaction.open_table(NAMES)?;
    for (id, old) in replaced {
        tokens.remove(id.to_bytes())?;
        if let Some(slot) = name_slot(old) {
            names.remove(&*slot)?;
        }
    }
    for change in &batch.changes {
        let (Change::Insert(token) | Change::Update(token)) = change else { continue };
        let mut token = Token::clone(token);
        // Only `touch` changes the last use.
        if let Some(old) = replaced.get(&token.id) {
            token.last_used = old.last_used;
        }
        if let Some(slot) = name_slot(&token) {
            let is_taken = names.insert(&*slot, token.id.to_bytes())?.is_some();
            if is_taken {
                return Err(Failure::Conflict(Conflict::Name(token.id)));
            }
        }
        tokens.insert(token.id.to_bytes(), &*encode_token(&token))?;
    }
    Ok(())
}

/// Erases an owner from the stored events if the batch says so, then adds the events of the batch.
fn write_events(transaction: &WriteTransaction, batch: &ChangeBatch) -> Result<(), Failure> {
    let mut events = transaction.open_table(EVENTS)?;
    if let Some((realm, owner)) = &batch.erase {
        erase_owner(&mut events, realm, owner)?;
    }
    for event in &batch.events {
        // A caller that does not know whether a commit happened sends the event again, so the
        // stored event is kept.
        let is_stored = events.get(event.id.to_bytes())?.is_some();
        if !is_stored {
            events.insert(event.id.to_bytes(), &*encode_event(event))?;
        }
    }
    Ok(())
}

fn erase_owner(
    events: &mut Table<'_, [u8; 16], &'static [u8]>,
    realm: &Realm,
    owner: &OwnerId,
) -> Result<(), Failure> {
    let mut stored: Vec<AuditEvent> = Vec::new();
    for row in events.iter()? {
        let (_, value) = row?;
        // An event that cannot be read stays as it is.
        stored.extend(decode_event(value.value()));
    }
    for mut event in stored {
        event.erase(realm, owner);
        events.insert(event.id.to_bytes(), &*encode_event(&event))?;
    }
    Ok(())
}

// Helpers.

fn create_tables(database: &Database) -> Result<(), Failure> {
    let transaction = database.begin_write()?;
    transaction.open_table(TOKENS)?;
    transaction.open_table(NAMES)?;
    transaction.open_table(EVENTS)?;
    transaction.open_table(KEY_CHECKS)?;
    transaction.commit()?;
    Ok(())
}

fn read_token(
    tokens: &impl ReadableTable<[u8; 16], &'static [u8]>,
    id: TokenId,
) -> Result<Option<Token>, Failure> {
    match tokens.get(id.to_bytes())? {
        Some(row) => decode_token(row.value()).map(Some).map_err(Failure::Corrupt),
        None => Ok(None),
    }
}

/// Returns what two tokens may not share: the realm, the owner, the kind and the key of the name.
///
/// Returns `None` for a token whose name is free for others, such as one that was rotated.
fn name_slot(token: &Token) -> Option<Vec<u8>> {
    let holder = format!("{}\0{}\0{}\0", token.realm.as_str(), token.owner, token.kind);
    Some([holder.as_bytes(), token.name_key?.as_bytes()].concat())
}

/// The reason why a step failed.
enum Failure {
    Conflict(Conflict),
    Corrupt(CorruptRecord),
    Redb(redb::Error),
}

/// Covers every error of redb, which has a type for each kind of call and `redb::Error` for all.
impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Conflict(conflict) => Self::Conflict(conflict),
            Failure::Corrupt(record) => Self::Corrupt(record),
            Failure::Redb(error) => Self::unavailable(error),
        }
    }
}
