//! The check of the keyring against the store, and the list of tokens under a key.

use super::error::{ManageError, Unavailable};
use super::manage::TokenPage;
use super::{Actor, TokenService};
use crate::owner::{Directory, Realm};
use crate::store::{KeyChecks, ListBy, ListQuery, MAX_PAGE, Page, StoreError, TokenStore};
use crate::token::{KeyId, TokenId};
use std::collections::BTreeMap;
use std::fmt;

/// The result of comparing the keyring with the store.
///
/// `Display` writes one sentence with the cure for each wrong or missing key. If all keys are good,
/// it writes the number of tokens under each key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct KeyReport {
    /// Keys of the keyring that differ from the keys that this store knows under their ids.
    pub wrong: Vec<KeyId>,
    /// Keys that records need and the keyring lacks.
    pub missing: Vec<KeyId>,
    /// The number of records with a digest under each key, revoked and expired ones included. Lists
    /// each key of the keyring and each key that records need, ordered by id.
    pub tokens: Vec<(KeyId, u64)>,
}

impl KeyReport {
    /// Returns how many records have a digest under this key.
    ///
    /// A key may be removed once this is zero.
    pub fn tokens_under(&self, key: KeyId) -> u64 {
        self.tokens.iter().find(|(each, _)| *each == key).map_or(0, |(_, tokens)| *tokens)
    }

    /// Returns whether no key is wrong or missing.
    pub fn is_good(&self) -> bool {
        self.wrong.is_empty() && self.missing.is_empty()
    }
}

impl fmt::Display for KeyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |key| match self.tokens_under(key) {
            1 => "1 token".to_owned(),
            tokens => format!("{tokens} tokens"),
        };
        let needed = |key| match self.tokens_under(key) {
            1 => "1 token needs".to_owned(),
            tokens => format!("{tokens} tokens need"),
        };
        let wrong = self.wrong.iter().map(|key| {
            format!(
                "key {key} of the keyring is not the key that this store knows as key {key}, which {}: \
                 restore the secret of key {key}, or give the new secret an id that was never used",
                needed(*key)
            )
        });
        let missing = self.missing.iter().map(|key| {
            format!(
                "the keyring has no key {key}, which {}: add key {key} to the keyring, or remove the tokens under \
                 it if its secret is lost",
                needed(*key)
            )
        });
        let mut sentences: Vec<String> = wrong.chain(missing).collect();
        if sentences.is_empty() {
            sentences = self
                .tokens
                .iter()
                .map(|(key, _)| format!("{} under key {key}", counted(*key)))
                .collect();
            return f.write_str(&sentences.join(", "));
        }
        f.write_str(&sentences.join("; "))
    }
}

/// Why [`TokenService::check`] failed.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// Keys are wrong or missing.
    #[error("{0}")]
    Keys(KeyReport),
    /// The store did not answer, so the keys were not checked.
    #[error("the keys were not checked, because the token store did not answer; check again")]
    Store(#[source] StoreError),
}

impl<S: TokenStore + KeyChecks, D: Directory> TokenService<S, D> {
    /// Checks the keyring against the store.
    ///
    /// Each key of the keyring must be the key that this store knows under its id, and the keyring
    /// must have each key that a record needs. Call this at the start of the process and in the
    /// health check. The check reads the number of tokens under each key, from an index in the
    /// shipped stores.
    ///
    /// The first check that sees a key id records a check value for it, permanently: an HMAC that
    /// reveals nothing about the key. Later checks, on this node and on others, compare with that
    /// value. **The first check trusts the keyring**, because no digest can be checked without the
    /// token's text. So call it once with keys that are known to be right before you change any.
    ///
    /// If the last check found a key wrong, verifying a token under that key returns
    /// [`Unavailable::WrongKey`] instead of a rejection, and no token is made under the key or
    /// moved to it.
    ///
    /// # Errors
    /// [`CheckError::Keys`] if a key is wrong or missing. This error has the same report that a
    /// good keyring gets, and its text names each such key and the cure. If a key is lost for good,
    /// the host may ignore that it is missing while it removes the tokens under it
    /// ([`list_under_key`](Self::list_under_key)). [`CheckError::Store`] if the store did not
    /// answer.
    pub async fn check(&self) -> Result<KeyReport, CheckError> {
        let mut known = self.store.key_checks().await.map_err(CheckError::Store)?;
        let mut has_recorded = false;
        for check in self.keyring.checks() {
            if !known.iter().any(|known| known.key() == check.key()) {
                self.store.record_key_check(&check).await.map_err(CheckError::Store)?;
                has_recorded = true;
            }
        }
        if has_recorded {
            // Reads again, because another node may have recorded another key meanwhile.
            known = self.store.key_checks().await.map_err(CheckError::Store)?;
        }
        let per_key = self.store.tokens_per_key().await.map_err(CheckError::Store)?;

        let mut report = KeyReport::default();
        let wrong = self.keyring.checks().filter(|check| !known.contains(check));
        report.wrong.extend(wrong.map(|check| check.key()));
        report.wrong.sort_unstable();
        let mut tokens: BTreeMap<KeyId, u64> = self.keyring.ids().map(|key| (key, 0)).collect();
        for (key, count) in per_key.into_iter().filter(|(_, count)| *count > 0) {
            if !self.keyring.ids().any(|id| id == key) && !report.missing.contains(&key) {
                report.missing.push(key);
            }
            let sum = tokens.entry(key).or_default();
            *sum = sum.saturating_add(count);
        }
        report.missing.sort_unstable();
        report.tokens = tokens.into_iter().collect();

        self.keyring.set_wrong(&report.wrong);
        if report.is_good() { Ok(report) } else { Err(CheckError::Keys(report)) }
    }
}

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Lists the tokens of a realm whose digest was made with this key, newest first.
    ///
    /// Returns a page of up to `limit` tokens (at most [`MAX_PAGE`]) after `after`. Meant for the
    /// host itself when it retires a key. Notify the owners of these tokens or revoke the tokens,
    /// and remove the key once [`check`](Self::check) counts none.
    ///
    /// # Errors
    /// [`ManageError`] if the operation failed.
    pub async fn list_under_key(
        &self,
        realm: &Realm,
        key: KeyId,
        after: Option<TokenId>,
        limit: usize,
    ) -> Result<TokenPage, ManageError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let mut page = Page { next: after, ..Page::default() };
        // Reads as many pages of the store as needed, because a key serves all realms, and a page
        // may hold few tokens of this one.
        loop {
            let query = ListQuery::new(ListBy::Key(key)).after(page.next).limit(limit);
            let found = self.store.list(&query).await.map_err(Unavailable::Store)?;
            page.corrupt.extend(found.corrupt);
            page.next = found.next;
            page.tokens.extend(found.tokens.into_iter().filter(|token| token.realm == *realm));
            if page.tokens.len() > limit {
                page.tokens.truncate(limit);
                page.next = page.tokens.last().map(|token| token.id);
            }
            if page.next.is_none() || page.tokens.len() >= limit {
                break;
            }
        }
        let acting = self.acting(&Actor::system_in(realm.clone())).await?;
        Ok(self.shown(&acting, page).await)
    }
}
