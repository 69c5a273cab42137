//! The bench of a check: the store under test, and comparisons of its answers.

use super::Settling;
use super::fixtures::insert;
use crate::BoxedFuture;
use crate::store::{Change, ChangeBatch, Conflict, ListQuery, StoreError, StoredToken, TokenStore};
use crate::token::{Token, TokenId};
use std::task::Poll;

/// A description of what was seen instead of the promised result.
pub(super) struct Seen(pub(super) String);

impl<E: std::error::Error> From<E> for Seen {
    fn from(error: E) -> Self {
        let mut text = format!("it answered: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Self(text)
    }
}

pub(super) fn ensure(holds: bool, seen: impl FnOnce() -> String) -> Result<(), Seen> {
    if holds { Ok(()) } else { Err(Seen(seen())) }
}

/// A store, and the time to wait until its reads show a change.
pub(super) struct Bench<'a, S> {
    pub(super) store: S,
    pub(super) settling: &'a Settling,
}

impl<S: TokenStore> Bench<'_, S> {
    pub(super) async fn settle(&self) {
        if !self.settling.staleness.is_zero() {
            (self.settling.sleep)(self.settling.staleness).await;
        }
    }

    pub(super) async fn commit_all(&self, changes: &[Change]) -> Result<(), Seen> {
        // A statement per record is slow for thousands of records, and a store need not accept all
        // of them at once.
        for chunk in changes.chunks(100) {
            let batch = ChangeBatch { changes: chunk.to_vec(), ..ChangeBatch::new() };
            self.store.commit(&batch).await?;
        }
        Ok(())
    }

    pub(super) async fn insert(&self, tokens: &[Token]) -> Result<(), Seen> {
        let inserts: Vec<Change> = tokens.iter().map(insert).collect();
        self.commit_all(&inserts).await
    }

    pub(super) async fn commit(
        &self,
        changes: impl IntoIterator<Item = Change> + Send,
    ) -> Result<(), Seen> {
        Ok(self.store.commit(&batch(changes)).await?)
    }

    /// Commits changes that must conflict in this way.
    pub(super) async fn refused(
        &self,
        changes: impl IntoIterator<Item = Change> + Send,
        conflict: Conflict,
    ) -> Result<(), Seen> {
        let result = self.store.commit(&batch(changes)).await;
        conflicts(&result, conflict)
    }

    /// Checks the record without waiting, because the caller has waited.
    pub(super) async fn holds(&self, expected: &Token) -> Result<(), Seen> {
        let is_it = |found: Option<&Token>| match found {
            None => Err(Seen(format!("{} was not found", expected.id))),
            Some(found) => same(expected, found),
        };
        is_it(self.store.find(expected.id).await?.as_deref())?;
        match self.find_at_once(expected.id) {
            Some(found) => is_it(found.as_ref()),
            None => Ok(()),
        }
    }

    pub(super) async fn lacks(&self, id: TokenId) -> Result<(), Seen> {
        let is_none = |found: Option<&Token>| {
            ensure(found.is_none(), || format!("{id} was found: {found:?}"))
        };
        is_none(self.store.find(id).await?.as_deref())?;
        is_none(self.find_at_once(id).flatten().as_ref())
    }

    /// Returns the store's immediate answer for a verification, if it has one.
    #[allow(clippy::option_option, reason = "not known, or known that there is no such record")]
    fn find_at_once(&self, id: TokenId) -> Option<Option<Token>> {
        let shortcut = self.store.shortcut();
        let found = shortcut.find(id, shortcut.prefetch(id))?;
        Some(found.map(StoredToken::into_token))
    }

    /// Returns the ids of all pages of a list.
    async fn list(&self, query: &ListQuery) -> Result<Vec<TokenId>, Seen> {
        let mut ids = Vec::new();
        let mut query = query.clone();
        loop {
            let page = self.store.list(&query).await?;
            ensure(page.corrupt.is_empty(), || {
                format!("these records were corrupt: {:?}", page.corrupt)
            })?;
            ensure(page.tokens.len() <= query.limit, || {
                format!("a page of {} held {}", query.limit, page.tokens.len())
            })?;
            ids.extend(page.tokens.iter().map(|token| token.id));
            let Some(next) = page.next else { return Ok(ids) };
            ensure(!page.tokens.is_empty(), || {
                "an empty page said that there is a next one".into()
            })?;
            ensure(query.after.is_none_or(|after| next < after), || {
                format!("the page after {:?} goes on at {next}", query.after)
            })?;
            query = query.after(Some(next));
        }
    }

    pub(super) async fn lists(&self, query: &ListQuery, expected: &[TokenId]) -> Result<(), Seen> {
        let found = self.list(query).await?;
        ensure(found == expected, || {
            format!("{query:?} held {}, not {}", shown_ids(&found), shown_ids(expected))
        })
    }
}

pub(super) fn batch(changes: impl IntoIterator<Item = Change>) -> ChangeBatch {
    ChangeBatch { changes: changes.into_iter().collect(), ..ChangeBatch::new() }
}

pub(super) fn conflicts(result: &Result<(), StoreError>, conflict: Conflict) -> Result<(), Seen> {
    match result {
        Err(StoreError::Conflict(found)) if *found == conflict => Ok(()),
        Err(other) => Err(Seen(format!("it answered {other:?} instead of {conflict:?}"))),
        Ok(()) => Err(Seen(format!("it was committed instead of {conflict:?}"))),
    }
}

pub(super) fn shown_ids(ids: &[TokenId]) -> String {
    let more = ids.len().saturating_sub(8);
    let mut text: Vec<String> = ids.iter().take(8).map(ToString::to_string).collect();
    if more > 0 {
        text.push(format!("and {more} more"));
    }
    format!("[{}]", text.join(", "))
}

/// Compares every field and names the first that differs.
pub(super) fn same(expected: &Token, found: &Token) -> Result<(), Seen> {
    let Token {
        id,
        realm,
        kind,
        owner,
        owner_kind,
        name,
        name_key,
        description,
        scope,
        networks,
        digest,
        created_at,
        created_by,
        restored_by,
        predecessor,
        ancestor,
        lifetime,
        facts,
        idle_from,
        reuse_reported_at,
        notified_days,
        last_used,
        seal,
        version,
    } = expected;
    macro_rules! compare {
        ($($field:ident),+) => {
            $(ensure(*$field == found.$field, || {
                let (field, wrong) = (stringify!($field), &found.$field);
                format!("the field {field} of {id} was {wrong:?}, not {:?}", $field)
            })?;)+
        };
    }
    compare!(
        id,
        realm,
        kind,
        owner,
        owner_kind,
        name,
        name_key,
        description,
        scope,
        networks,
        digest
    );
    compare!(
        created_at,
        created_by,
        restored_by,
        predecessor,
        ancestor,
        lifetime,
        facts,
        idle_from,
        reuse_reported_at,
        notified_days,
        last_used,
        seal,
        version
    );
    Ok(())
}

/// Polls all futures at once, in one task.
pub(super) async fn join_all<T: Send>(futures: Vec<BoxedFuture<'_, T>>) -> Vec<T> {
    let mut running: Vec<(BoxedFuture<'_, T>, Option<T>)> =
        futures.into_iter().map(|future| (future, None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in &mut running {
            if output.is_none()
                && let Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *output = Some(ready);
            }
        }
        if running.iter().all(|(_, output)| output.is_some()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}
