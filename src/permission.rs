//! Permissions, grants with a trailing wildcard, sets of grants, and the scope that narrows one
//! token.
//!
//! The [`role`](crate::role) module and the host decide who holds which permission.
//!
//! A permission is `segment(:segment)*`, and a segment is `[a-z0-9_-]+`: for example
//! `datastores:read`. A grant is a permission, a permission followed by `:*`, or `*` alone. `a:*`
//! covers `a:b` and `a:b:c`, but not `a`; `*` covers everything. A check always asks for a concrete
//! permission. A set without grants allows nothing.
//!
//! ```
//! use patkit::permission::{Permission, PermissionSet};
//!
//! let held = PermissionSet::parse(["datastores:read", "reports:*"])?;
//! assert!(held.allows(&Permission::parse("reports:daily:print")?));
//! assert!(!held.allows_str("datastores:write")?);
//! assert!(held.allows_str("reports:*").is_err());
//! # Ok::<(), patkit::permission::PermissionError>(())
//! ```

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

/// The permission to manage one's own personal tokens.
pub const TOKENS_MANAGE: &str = "tokens:manage";

/// The permission to manage all service tokens of the realm.
pub const SERVICE_TOKENS_MANAGE: &str = "service-tokens:manage";

/// The permission to put permissions under `scim:` into a token's scope.
pub const TOKENS_SCIM: &str = "tokens:scim";

/// The permission to list and revoke personal tokens of others, if the policy allows any oversight.
pub const TOKENS_OVERSEE: &str = "tokens:oversee";

/// The permission to introspect tokens of the realm (RFC 7662), for services that get them.
pub const TOKENS_INTROSPECT: &str = "tokens:introspect";

/// The grant of all permissions of SCIM (RFC 7644).
pub(crate) const SCIM: &str = "scim:*";

/// The maximum length of a permission or a grant, in bytes.
///
/// This leaves room for several spelled-out segments and bounds the cost to store and to check a
/// token's scope.
pub const MAX_PERMISSION_BYTES: usize = 128;

/// The maximum number of entries in the scope of one token; see [`Scope::only`].
pub const MAX_SCOPE_ENTRIES: usize = 64;

/// A concrete permission that a request needs, such as `datastores:read`.
///
/// Parse it once and keep it: the check of a [`PermissionSet`] then costs a few nanoseconds. A
/// clone shares the text. Equality, order and hash are those of the text.
#[derive(Clone)]
pub struct Permission {
    text: Arc<str>,
    hash: u64,
    prefixes: Arc<[Prefix]>,
}

/// A [`Permission`], everything below one (`datastores:*`), or everything (`*`).
///
/// A clone shares the text. Equality, order and hash are those of the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant(Arc<str>);

/// The error if a text is not a permission or not a grant.
///
/// Positions are byte offsets into the text. The error does not repeat the text, because it may
/// come from anyone.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PermissionError {
    /// The text is empty.
    #[error("the permission is empty; write one such as datastores:read")]
    Empty,
    /// The text is longer than [`MAX_PERMISSION_BYTES`].
    #[error("the permission has {bytes} bytes; write {MAX_PERMISSION_BYTES} at most")]
    TooLong {
        /// The length of the text, in bytes.
        bytes: usize,
    },
    /// A segment is empty: before the first colon, between two colons, or after the last.
    #[error(
        "the permission has an empty segment at byte {at}; write a segment before, between and after colons"
    )]
    EmptySegment {
        /// The position where a segment was expected.
        at: usize,
    },
    /// The text has a character other than `a` to `z`, `0` to `9`, `_`, `-` and the colon.
    #[error(
        "the permission has a character at byte {at} that is not allowed; use a-z, 0-9, '_', '-' and ':'"
    )]
    BadCharacter {
        /// The position where the character begins.
        at: usize,
    },
    /// A grant has an asterisk that is not the whole of its last segment.
    #[error(
        "the grant has a '*' at byte {at} that is not its whole last segment; write one such as datastores:*"
    )]
    MisplacedWildcard {
        /// The position of the asterisk.
        at: usize,
    },
    /// The text has an asterisk, but a concrete permission is required.
    #[error("the permission has a '*' at byte {at}; write a concrete one such as datastores:read")]
    NotConcrete {
        /// The position of the asterisk.
        at: usize,
    },
}

/// An immutable set of grants. A clone shares its content.
///
/// The set keeps every distinct entry as written, even if another entry covers it, so that readers
/// find what was given. Two sets are equal if their entries are equal.
#[derive(Clone)]
pub struct PermissionSet {
    /// Every role of a catalogue is a selection from one table. A role then costs one bit for each
    /// grant of the catalogue, and the union of two roles is the union of their bits.
    table: Arc<GrantTable>,
    /// One bit for each grant of the table.
    members: Arc<[u64]>,
    /// Whether `*` is a member.
    everything: bool,
}

/// The restriction of one token: a part of what its owner holds, never more.
///
/// A request through the token needs both [`PermissionSet::allows`] of the owner's current
/// permissions and [`Scope::allows`].
///
/// Neither kind of scope is a default: the maker of a token chooses one, and a scope that is
/// missing from a store is damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope(Narrowing);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Narrowing {
    Inherit,
    Only(PermissionSet),
}

/// The error if a list of entries is not a [`Scope`].
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScopeError {
    /// The list has more than [`MAX_SCOPE_ENTRIES`] entries, repeated ones included.
    #[error(
        "the scope has more than {MAX_SCOPE_ENTRIES} entries; list {MAX_SCOPE_ENTRIES} at most"
    )]
    TooManyEntries,
    /// An entry is not a grant. For example, it is longer than [`MAX_PERMISSION_BYTES`].
    #[error(
        "entry {index} of the scope is not a grant; write one such as datastores:read or \
         datastores:* (entries are counted from 0)"
    )]
    BadEntry {
        /// The index of the entry, counted from 0.
        index: usize,
        /// The reason.
        source: PermissionError,
    },
    /// Some entries cover no permission that the [`RoleCatalog`](crate::RoleCatalog) knows.
    #[error("{}", Entries(entries))]
    Unknown {
        /// All such entries.
        entries: Vec<UnknownEntry>,
    },
}

/// An entry of a scope that covers no known permission.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnknownEntry {
    /// The index of the entry, counted from 0.
    pub index: usize,
    /// The entry.
    pub entry: Grant,
    /// The grant that was likely meant.
    pub likely: Option<Grant>,
}

impl UnknownEntry {
    pub(crate) fn new(index: usize, entry: Grant, likely: Option<Grant>) -> Self {
        Self { index, entry, likely }
    }
}

impl fmt::Display for UnknownEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the scope entry {} covers no known permission; ", self.entry)?;
        match &self.likely {
            Some(likely) => write!(f, "write {likely} if that was meant"),
            None => {
                f.write_str("correct the entry, or declare the permission in the role catalogue")
            }
        }
    }
}

/// Shows unknown entries. Many are shown in part, because the error may end up in one line of a
/// log.
struct Entries<'a>(&'a [UnknownEntry]);

impl fmt::Display for Entries<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        for (place, entry) in self.0.iter().take(SHOWN).enumerate() {
            let separator = if place == 0 { "" } else { "; " };
            write!(f, "{separator}{entry}")?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(left) if left > 0 => write!(f, "; and {left} more entries"),
            _ => Ok(()),
        }
    }
}

impl Permission {
    /// Parses a concrete permission.
    ///
    /// # Errors
    /// [`PermissionError`] if `text` is empty, is longer than [`MAX_PERMISSION_BYTES`], or has an
    /// empty segment, a character outside the grammar, or an asterisk.
    pub fn parse(text: &str) -> Result<Self, PermissionError> {
        check(text, Wildcard::Nowhere)?;
        let prefixes =
            prefixes(text.as_bytes()).map(|key| Prefix { hash: hash_of(key), bytes: key.len() });
        Ok(Self {
            text: Arc::from(text),
            hash: hash_of(text.as_bytes()),
            prefixes: prefixes.collect(),
        })
    }

    /// Returns whether [`parse`](Self::parse) accepts the text. Usable in checks at compile time.
    pub const fn is_concrete(text: &str) -> bool {
        let mut rest = text.as_bytes();
        if rest.len() > MAX_PERMISSION_BYTES {
            return false;
        }
        let mut segment_is_empty = true;
        while let [byte, after @ ..] = rest {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => segment_is_empty = false,
                b':' if !segment_is_empty => segment_is_empty = true,
                _ => return false,
            }
            rest = after;
        }
        !segment_is_empty
    }

    /// Returns the permission as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Grant {
    /// Parses a grant.
    ///
    /// # Errors
    /// [`PermissionError`] if `text` is empty, is longer than [`MAX_PERMISSION_BYTES`], or has an
    /// empty segment, a character outside the grammar, or an asterisk that is not the whole of the
    /// last segment.
    pub fn parse(text: &str) -> Result<Self, PermissionError> {
        check(text, Wildcard::AtTheEnd)?;
        Ok(Self(Arc::from(text)))
    }

    /// Returns the grant as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether the grant ends in `*`.
    pub fn is_wildcard(&self) -> bool {
        self.0.ends_with('*')
    }

    /// Returns whether the grant is `*`.
    pub(crate) fn is_everything(&self) -> bool {
        &*self.0 == "*"
    }

    /// Returns whether the grant gives `permission`.
    pub fn covers(&self, permission: &Permission) -> bool {
        self.covers_text(permission.as_str())
    }

    /// Returns whether the grant gives all that `other` gives.
    ///
    /// For example, `a:*` covers `a:b`, `a:b:*` and itself, but not `a`.
    pub fn covers_grant(&self, other: &Self) -> bool {
        self.covers_text(other.as_str())
    }

    /// Returns whether the grant covers a permission or a grant, given as text.
    ///
    /// The asterisk of `other` needs no check of its own, because it comes after the colon that a
    /// wildcard's key ends with.
    fn covers_text(&self, other: &str) -> bool {
        if self.is_wildcard() { other.starts_with(self.key()) } else { other == self.as_str() }
    }

    /// Returns the text without its asterisk: the prefix that a wildcard covers, or a concrete
    /// grant itself.
    ///
    /// A wildcard's key is empty or ends with a colon. A concrete grant's key never does, so no two
    /// grants share a key.
    fn key(&self) -> &str {
        self.0.strip_suffix('*').unwrap_or(&self.0)
    }
}

impl PermissionSet {
    /// Creates an empty set, which allows nothing.
    pub fn empty() -> Self {
        Self::from_sorted(Vec::new())
    }

    /// Parses a set from grants as text. Their number is not bounded here; see [`Scope::only`].
    ///
    /// # Errors
    /// The [`PermissionError`] of the first entry that is not a grant.
    pub fn parse<I>(grants: I) -> Result<Self, PermissionError>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        grants.into_iter().map(|text| Grant::parse(text.as_ref())).collect()
    }

    /// Returns whether an entry covers `permission`. Does not allocate.
    // Every prefix is within the text, here and in `allows_str`, but an `expect` makes each check
    // slower.
    pub fn allows(&self, permission: &Permission) -> bool {
        let text = permission.text.as_bytes();
        self.everything
            || self.has(permission.hash, text)
            || permission.prefixes.iter().any(|prefix| {
                text.get(..prefix.bytes).is_some_and(|key| self.has(prefix.hash, key))
            })
    }

    /// Returns whether [`allows`](Self::allows) accepts a permission given as text.
    ///
    /// One pass over the bytes checks the grammar and computes the lookup hashes. Does not
    /// allocate.
    ///
    /// # Errors
    /// The [`PermissionError`] of [`Permission::parse`], regardless of the entries: even a set with
    /// `*` never allows `a:*`.
    pub fn allows_str(&self, permission: &str) -> Result<bool, PermissionError> {
        let text = permission.as_bytes();
        let mut allowed = self.everything;
        let hash = scan(text, |hash, bytes| {
            allowed = allowed || text.get(..bytes).is_some_and(|key| self.has(hash, key));
        });
        match hash {
            Some(hash) => Ok(allowed || self.has(hash, text)),
            // If the two parsers ever disagreed, nothing would be allowed.
            None => check(permission, Wildcard::Nowhere).map(|()| false),
        }
    }

    /// Returns whether one entry covers all that `grant` gives.
    pub fn covers_grant(&self, grant: &Grant) -> bool {
        self.names(grant) || self.covers_from_above(grant)
    }

    /// Returns whether an entry of this set covers each entry of `other`.
    ///
    /// If so, `other` allows nothing that this set does not allow.
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|grant| self.covers_grant(grant))
    }

    /// Returns whether `grant` itself is an entry. An entry that merely covers it does not count.
    pub fn names(&self, grant: &Grant) -> bool {
        let key = grant.key().as_bytes();
        self.has(hash_of(key), key)
    }

    /// Returns whether a grant other than `*` covers all or part of what `entry` covers.
    pub(crate) fn makes_known(&self, entry: &Grant) -> bool {
        let mut grants = self.iter().filter(|grant| !grant.is_everything());
        grants.any(|grant| grant.covers_grant(entry) || entry.covers_grant(grant))
    }

    /// Returns whether the set allows everything, by `*`.
    pub(crate) fn is_everything(&self) -> bool {
        self.everything
    }

    /// Returns the set that allows exactly what both sets allow, in the fewest entries.
    pub fn intersection(&self, other: &Self) -> Self {
        // Two grants are disjoint or one covers the other, so the intersection needs no new grant.
        let in_both: Self = self
            .iter()
            .filter(|grant| other.covers_grant(grant))
            .chain(other.iter().filter(|grant| self.covers_grant(grant)))
            .cloned()
            .collect();
        in_both.iter().filter(|grant| !in_both.covers_from_above(grant)).cloned().collect()
    }

    /// Returns the entries of both sets.
    pub fn union(&self, other: &Self) -> Self {
        if other.is_empty() {
            return self.clone();
        }
        if self.is_empty() {
            return other.clone();
        }
        if Arc::ptr_eq(&self.table, &other.table) {
            return Self {
                table: Arc::clone(&self.table),
                members: self
                    .members
                    .iter()
                    .zip(other.members.iter())
                    .map(|(a, b)| a | b)
                    .collect(),
                everything: self.everything || other.everything,
            };
        }
        self.iter().chain(other.iter()).cloned().collect()
    }

    /// Returns the entries, ordered by their text.
    pub fn iter(&self) -> impl Iterator<Item = &Grant> {
        self.table
            .grants
            .iter()
            .enumerate()
            .filter(|(index, _)| self.is_member(*index))
            .map(|(_, grant)| grant)
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Returns whether the set has no entries.
    pub fn is_empty(&self) -> bool {
        self.members.iter().all(|bits| *bits == 0)
    }

    /// Returns a set of those `grants` that are entries. It shares this set's table.
    pub(crate) fn select<'a>(&self, grants: impl IntoIterator<Item = &'a Grant>) -> Self {
        let mut members = vec![0_u64; self.members.len()];
        let mut everything = false;
        for grant in grants {
            let key = grant.key().as_bytes();
            let Some(index) =
                self.table.find(hash_of(key), key).filter(|index| self.is_member(*index))
            else {
                continue;
            };
            everything = everything || key.is_empty();
            let (word, bit) = place(index);
            *members.get_mut(word).expect("a set has a bit for each grant of its table") |= bit;
        }
        Self { table: Arc::clone(&self.table), members: Arc::from(members), everything }
    }

    fn from_sorted(grants: Vec<Grant>) -> Self {
        // Sets whole words, because the bits beyond the last grant belong to no grant.
        let members = vec![u64::MAX; grants.len().div_ceil(64)];
        let everything = grants.first().is_some_and(|grant| grant.key().is_empty());
        Self { table: Arc::new(GrantTable::new(grants)), members: Arc::from(members), everything }
    }

    /// Returns whether a wildcard other than `grant` itself covers it.
    fn covers_from_above(&self, grant: &Grant) -> bool {
        let key = grant.key().as_bytes();
        // The last prefix of a wildcard is its own key, which does not count.
        (self.everything && !key.is_empty())
            || prefixes(key).any(|above| above.len() < key.len() && self.has(hash_of(above), above))
    }

    fn has(&self, hash: u64, key: &[u8]) -> bool {
        self.table.find(hash, key).is_some_and(|index| self.is_member(index))
    }

    fn is_member(&self, index: usize) -> bool {
        let (word, bit) = place(index);
        // A set has a bit for each grant of its table, but an `expect` makes each check slower.
        self.members.get(word).is_some_and(|bits| bits & bit != 0)
    }
}

impl Scope {
    /// Creates a scope that allows all that the owner holds, now and later.
    pub const fn inherit() -> Self {
        Self(Narrowing::Inherit)
    }

    /// Creates a scope that allows nothing.
    pub(crate) fn none() -> Self {
        Self(Narrowing::Only(PermissionSet::empty()))
    }

    /// Creates a scope that allows only what both `entries` cover and the owner holds.
    ///
    /// Without entries, it allows nothing.
    ///
    /// # Errors
    /// [`ScopeError`] if there are more than [`MAX_SCOPE_ENTRIES`] entries, or one is not a
    /// [`Grant`].
    pub fn only<I>(entries: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        let mut grants = Vec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            // Checked before the entry is read, so that an endless list costs no more than a full
            // one.
            if index >= MAX_SCOPE_ENTRIES {
                return Err(ScopeError::TooManyEntries);
            }
            grants.push(
                Grant::parse(entry.as_ref())
                    .map_err(|source| ScopeError::BadEntry { index, source })?,
            );
        }
        Self::only_grants(grants)
    }

    /// Creates the scope of [`only`](Self::only) from parsed grants.
    ///
    /// # Errors
    /// [`ScopeError::TooManyEntries`] if there are more than [`MAX_SCOPE_ENTRIES`].
    pub fn only_grants(grants: impl IntoIterator<Item = Grant>) -> Result<Self, ScopeError> {
        let mut grants = grants.into_iter();
        let kept: Vec<Grant> = grants.by_ref().take(MAX_SCOPE_ENTRIES).collect();
        if grants.next().is_some() {
            return Err(ScopeError::TooManyEntries);
        }
        Ok(Self(Narrowing::Only(kept.into_iter().collect())))
    }

    /// Returns the scope of a token for SCIM endpoints (RFC 7644): only `scim:*`.
    pub fn scim() -> Self {
        Self(Narrowing::Only(std::iter::once(Grant(Arc::from(SCIM))).collect()))
    }

    /// Returns whether the scope covers `permission`. Does not allocate.
    ///
    /// The owner must hold the permission too.
    pub fn allows(&self, permission: &Permission) -> bool {
        match &self.0 {
            Narrowing::Inherit => true,
            Narrowing::Only(set) => set.allows(permission),
        }
    }

    /// Returns whether [`allows`](Self::allows) accepts a permission given as text. Does not
    /// allocate.
    ///
    /// # Errors
    /// The [`PermissionError`] of [`Permission::parse`].
    pub fn allows_str(&self, permission: &str) -> Result<bool, PermissionError> {
        match &self.0 {
            Narrowing::Inherit => check(permission, Wildcard::Nowhere).map(|()| true),
            Narrowing::Only(set) => set.allows_str(permission),
        }
    }

    /// Returns whether a token with the scope `parent` may hand out this scope.
    ///
    /// *Inherit* may be handed out only from *inherit*. A list may be handed out from *inherit*, or
    /// from a list that covers each of its entries.
    pub fn is_within(&self, parent: &Self) -> bool {
        match (&self.0, &parent.0) {
            (_, Narrowing::Inherit) => true,
            (Narrowing::Inherit, Narrowing::Only(_)) => false,
            (Narrowing::Only(child), Narrowing::Only(parent)) => parent.covers(child),
        }
    }

    /// Returns whether the scope is *inherit*.
    pub fn is_inherit(&self) -> bool {
        self.as_set().is_none()
    }

    /// Returns the entries to which the scope narrows, or `None` if it is *inherit*.
    pub fn as_set(&self) -> Option<&PermissionSet> {
        match &self.0 {
            Narrowing::Inherit => None,
            Narrowing::Only(set) => Some(set),
        }
    }

    /// Returns whether an entry covers, or is, a permission below `scim:`.
    ///
    /// Such entries are `*`, `scim:*` and `scim:users`, but not `scim`. *Inherit* lists no entries,
    /// so the result is `false`.
    pub fn covers_scim(&self) -> bool {
        self.as_set().is_some_and(|set| {
            set.everything || set.iter().any(|grant| grant.as_str().starts_with("scim:"))
        })
    }
}

impl PartialEq for Permission {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Permission {}

impl PartialOrd for Permission {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Permission {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

impl Hash for Permission {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Debug for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Permission").field(&self.text).finish()
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl AsRef<str> for Permission {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl FromStr for Permission {
    type Err = PermissionError;

    fn from_str(text: &str) -> Result<Self, PermissionError> {
        Self::parse(text)
    }
}

impl TryFrom<&str> for Permission {
    type Error = PermissionError;

    fn try_from(text: &str) -> Result<Self, PermissionError> {
        Self::parse(text)
    }
}

impl Serialize for Permission {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Permission {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor { expected: "a permission", parse: Self::parse })
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grant").field(&self.0).finish()
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for Grant {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<Permission> for Grant {
    fn from(permission: Permission) -> Self {
        Self(permission.text)
    }
}

impl FromStr for Grant {
    type Err = PermissionError;

    fn from_str(text: &str) -> Result<Self, PermissionError> {
        Self::parse(text)
    }
}

impl TryFrom<&str> for Grant {
    type Error = PermissionError;

    fn try_from(text: &str) -> Result<Self, PermissionError> {
        Self::parse(text)
    }
}

impl Serialize for Grant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Grant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_str(TextVisitor { expected: "a permission grant", parse: Self::parse })
    }
}

impl FromIterator<Grant> for PermissionSet {
    fn from_iter<I: IntoIterator<Item = Grant>>(grants: I) -> Self {
        let mut grants: Vec<Grant> = grants.into_iter().collect();
        grants.sort_unstable();
        grants.dedup();
        Self::from_sorted(grants)
    }
}

impl PartialEq for PermissionSet {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for PermissionSet {}

impl fmt::Debug for PermissionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Grant::as_str)).finish()
    }
}

impl Serialize for PermissionSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for PermissionSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(SetVisitor)
    }
}

/// Serializes *inherit* as null and a list as an array of strings.
///
/// There is no `Deserialize`: a reader must distinguish an absent scope from a null one, and
/// entries go through [`Scope::only`].
impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_set().serialize(serializer)
    }
}

/// Deserializes text through a parser, so that no unchecked text gets in.
struct TextVisitor<T> {
    expected: &'static str,
    parse: fn(&str) -> Result<T, PermissionError>,
}

impl<T> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
}

struct SetVisitor;

impl<'de> Visitor<'de> for SetVisitor {
    type Value = PermissionSet;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of permission grants")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<PermissionSet, A::Error> {
        let mut grants = Vec::new();
        while let Some(grant) = list.next_element::<Grant>()? {
            grants.push(grant);
        }
        Ok(grants.into_iter().collect())
    }
}

/// A prefix `a:b:` of a permission: the key of a wildcard that covers the permission.
struct Prefix {
    hash: u64,
    bytes: usize,
}

/// Distinct grants, sorted by text and found by the hash of their key in an open-addressed table.
///
/// `benches/permission.rs` measures the table against binary search over the sorted text, and
/// against binary search and scan over one array of hashes. Up to 64 grants, the table and the
/// sorted hashes cost the same within a few nanoseconds. At a thousand grants, which the roles of a
/// large catalogue share, the table costs what it costs at 16, and the sorted hashes two to three
/// times that. A scan is slower from 16 grants on. Search over text costs several times as much
/// throughout.
struct GrantTable {
    grants: Box<[Grant]>,
    /// The length is a power of two, at least four times the number of grants, so that a probe
    /// seldom takes a second step. Empty if there are no grants.
    slots: Box<[Slot]>,
}

#[derive(Clone, Copy)]
struct Slot {
    hash: u64,
    /// The index in `grants`, or [`VACANT`].
    index: usize,
}

const VACANT: usize = usize::MAX;

impl GrantTable {
    fn new(grants: Vec<Grant>) -> Self {
        let vacant = Slot { hash: 0, index: VACANT };
        let room =
            if grants.is_empty() { 0 } else { grants.len().saturating_mul(4).next_power_of_two() };
        let mut slots = vec![vacant; room];
        for (index, grant) in grants.iter().enumerate() {
            let hash = hash_of(grant.key().as_bytes());
            let mut at = first_slot(hash, room);
            loop {
                let slot = slots.get_mut(at).expect("a mask keeps the index below the length");
                if slot.index == VACANT {
                    *slot = Slot { hash, index };
                    break;
                }
                at = next_slot(at, room);
            }
        }
        Self { grants: Box::from(grants), slots: Box::from(slots) }
    }

    /// Returns the index of the grant with that key.
    ///
    /// The probe ends at a vacant slot; some are always vacant, unless the table has no slots. An
    /// equal hash alone is no match, because the text decides.
    #[inline]
    fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let mut at = first_slot(hash, self.slots.len());
        loop {
            let slot = self.slots.get(at)?;
            if slot.index == VACANT {
                return None;
            }
            // A slot has the index of a grant, but an `expect` makes each check slower.
            if slot.hash == hash && self.grants.get(slot.index)?.key().as_bytes() == key {
                return Some(slot.index);
            }
            at = next_slot(at, self.slots.len());
        }
    }
}

fn first_slot(hash: u64, room: usize) -> usize {
    // A `usize` of 32 bits has enough bits for a table of any size that fits in memory.
    let low = usize::try_from(hash & u64::from(u32::MAX)).expect("a usize has at least 32 bits");
    low & room.wrapping_sub(1)
}

fn next_slot(at: usize, room: usize) -> usize {
    at.wrapping_add(1) & room.wrapping_sub(1)
}

/// Returns the word and the bit of a set's members that belong to the table's grant at `index`.
fn place(index: usize) -> (usize, u64) {
    let bit = u32::try_from(index % 64).expect("a remainder is below its divisor");
    (index / 64, 1_u64.rotate_left(bit))
}

/// Splits a text into words of eight bytes, the first byte lowest.
///
/// Returns the whole words, the rest padded with zeros at its end, and the number of bytes in the
/// rest. The performance page says what a check of words gains over one byte by byte.
#[inline]
fn words(text: &[u8]) -> (&[[u8; 8]], u64, usize) {
    let (whole, rest) = text.as_chunks();
    let last = match text.last_chunk() {
        // The last eight bytes, without those that are in the word before.
        Some(end) => shifted_out(u64::from_le_bytes(*end), rest.len()),
        None => rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    (whole, last, rest.len())
}

/// Returns the last `kept` bytes (0 to 7) of a word, moved to its beginning.
#[inline]
fn shifted_out(word: u64, kept: usize) -> u64 {
    // The first fallback is never taken, but an `expect` makes each check slower. The second one is
    // the shift by all 64 bits.
    let bits = u32::try_from(8_usize.saturating_sub(kept).saturating_mul(8)).unwrap_or(u64::BITS);
    word.checked_shr(bits).unwrap_or(0)
}

/// Hashes a key.
///
/// The hash is not keyed. An attacker who picks colliding grants slows down only the set that holds
/// them, which has at most 64 grants in a scope, and gains nothing else, because the text decides.
fn hash_of(key: &[u8]) -> u64 {
    let (whole, last, _) = words(key);
    mix(whole.iter().fold(0, |state, word| mix(state, u64::from_le_bytes(*word))), last)
}

/// Mixes one more word into a hash. A zero word changes nothing, so that a text may end with a
/// whole word.
#[inline]
fn mix(state: u64, word: u64) -> u64 {
    if word == 0 {
        return state;
    }
    // The factor is the golden ratio, odd. The shift moves the mixed upper half down to the bits
    // that choose the slot.
    let mixed = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}

/// Returns the keys of the wildcards that cover a text from above: its prefix up to each colon.
fn prefixes(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b':')
        .map(|(at, _)| text.get(..=at).expect("the colon is in the text"))
}

/// Where the grammar allows an asterisk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wildcard {
    Nowhere,
    AtTheEnd,
}

/// Checks a text against the grammar.
fn check(text: &str, wildcard: Wildcard) -> Result<(), PermissionError> {
    if text.is_empty() {
        return Err(PermissionError::Empty);
    }
    if text.len() > MAX_PERMISSION_BYTES {
        return Err(PermissionError::TooLong { bytes: text.len() });
    }
    let mut segment_is_empty = true;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => segment_is_empty = false,
            b':' if segment_is_empty => return Err(PermissionError::EmptySegment { at }),
            b':' => segment_is_empty = true,
            b'*' if wildcard == Wildcard::Nowhere => {
                return Err(PermissionError::NotConcrete { at });
            }
            b'*' if segment_is_empty && at.saturating_add(1) == text.len() => return Ok(()),
            b'*' => return Err(PermissionError::MisplacedWildcard { at }),
            _ => return Err(PermissionError::BadCharacter { at }),
        }
    }
    if segment_is_empty { Err(PermissionError::EmptySegment { at: text.len() }) } else { Ok(()) }
}

/// Checks a concrete permission and hashes it in one pass, eight bytes at a time.
///
/// Calls `on_prefix` with the hash and the length of the prefix up to each colon. A caller must not
/// answer before the text has passed. Returns `None` if the text fails the grammar; [`check`] then
/// returns the reason.
#[inline]
fn scan(text: &[u8], mut on_prefix: impl FnMut(u64, usize)) -> Option<u64> {
    if text.len() > MAX_PERMISSION_BYTES {
        return None;
    }
    let mut hash = 0;
    // The top bit of the lowest byte is set if the byte before the word is a colon. A text begins
    // as if after a colon.
    let mut after_colon = 0x80;
    let mut passed = 0_usize;
    let (whole, last, rest) = words(text);
    for index in 0..=whole.len() {
        // The last word may be empty; it then passes and changes nothing.
        let (word, filled) = match whole.get(index) {
            Some(word) => (u64::from_le_bytes(*word), u64::MAX),
            None => (last, shifted_out(u64::MAX, rest)),
        };
        let colons = range(word, b':', b':');
        let legal = range(word, b'0', b':')
            | range(word, b'a', b'z')
            | range(word, b'_', b'_')
            | range(word, b'-', b'-');
        if legal != TOPS & filled || colons & (colons << 8 | after_colon) != 0 {
            return None;
        }
        let mut left = colons;
        while left != 0 {
            // All bits up to the lowest set bit: the bytes up to the first remaining colon.
            let up_to_colon = left ^ left.wrapping_sub(1);
            let bytes = usize::try_from(left.trailing_zeros() / 8);
            let bytes = bytes.expect("a usize has at least 32 bits").saturating_add(1);
            on_prefix(mix(hash, word & up_to_colon), passed.saturating_add(bytes));
            left &= left.wrapping_sub(1);
        }
        after_colon = colons >> 56;
        passed = passed.saturating_add(8);
        hash = mix(hash, word);
    }
    (text.last() != Some(&b':') && !text.is_empty()).then_some(hash)
}

/// The top bit of each byte of a word.
const TOPS: u64 = u64::from_ne_bytes([0x80; 8]);

/// Returns the top bit of each byte that is in `low..=high`, both of them ASCII.
///
/// A byte beyond ASCII is in no range. It may carry into the next byte, whose bit is then
/// meaningless. This is harmless because a word is refused if any of its bytes is in no range.
#[inline]
fn range(word: u64, low: u8, high: u8) -> u64 {
    // Each sum sets the top bit of its byte: the first from `low` on, the second beyond `high`. An
    // ASCII byte never carries.
    let reaches_low = word.wrapping_add(u64::from_ne_bytes([0x80_u8.wrapping_sub(low); 8]));
    let exceeds_high = word.wrapping_add(u64::from_ne_bytes([0x7f_u8.wrapping_sub(high); 8]));
    reaches_low & !exceeds_high & TOPS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(text: &str) -> Grant {
        Grant::parse(text).unwrap()
    }

    fn permission(text: &str) -> Permission {
        Permission::parse(text).unwrap()
    }

    fn set(grants: &[&str]) -> PermissionSet {
        PermissionSet::parse(grants).unwrap()
    }

    #[test]
    fn a_wildcard_covers_what_is_below_it_and_itself() {
        for (text, covered, not_covered) in [
            ("a:*", &["a:b", "a:b:c", "a:*", "a:b:*"][..], &["a", "ab", "ab:c", "b:a", "*"][..]),
            ("*", &["a", "a:b", "a:*", "*"], &[]),
            ("a:b", &["a:b"], &["a", "a:b:c", "a:bc", "a:*", "a:b:*", "*"]),
        ] {
            for (others, expected) in [(covered, true), (not_covered, false)] {
                for other in others {
                    assert_eq!(grant(text).covers_grant(&grant(other)), expected, "{text} {other}");
                    assert_eq!(
                        set(&[text]).covers_grant(&grant(other)),
                        expected,
                        "{text} {other}"
                    );
                    if let Ok(concrete) = Permission::parse(other) {
                        assert_eq!(grant(text).covers(&concrete), expected, "{text} {other}");
                        assert_eq!(set(&[text]).allows(&concrete), expected, "{text} {other}");
                        assert_eq!(set(&[text]).allows_str(other), Ok(expected), "{text} {other}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_text_is_concrete_exactly_if_it_is_read_as_a_permission() {
        let parts = ["", "a", "z9_-", ":", "*", "A", " ", "\u{e9}", "\0", "a:b"];
        let mut texts: Vec<String> =
            vec!["a".repeat(MAX_PERMISSION_BYTES), "a".repeat(MAX_PERMISSION_BYTES + 1)];
        for first in parts {
            for second in parts {
                texts.extend(parts.map(|third| format!("{first}{second}{third}")));
            }
        }
        for text in texts {
            assert_eq!(
                Permission::is_concrete(&text),
                Permission::parse(&text).is_ok(),
                "{text:?}"
            );
        }
    }

    #[test]
    fn nothing_granted_means_nothing_allowed() {
        let nothing = PermissionSet::empty();
        assert!(!nothing.allows(&permission("a")));
        assert_eq!(nothing.allows_str("a:b"), Ok(false));
        assert!(!nothing.covers_grant(&grant("a")));
        assert!(nothing.is_empty() && nothing.covers(&nothing) && !nothing.covers(&set(&["a"])));
        assert!(!Scope::only([""; 0]).unwrap().allows(&permission("a")));
    }

    #[test]
    fn an_equal_hash_alone_grants_nothing() {
        let asked = permission("x:y");
        let mut table = GrantTable::new(vec![grant("a:b")]);
        for slot in &mut table.slots {
            *slot = Slot { hash: asked.hash, index: 0 };
        }
        let vacant =
            first_slot(asked.hash, table.slots.len()).wrapping_sub(1) & (table.slots.len() - 1);
        table.slots[vacant].index = VACANT;
        let set = PermissionSet {
            table: Arc::new(table),
            members: Arc::from([u64::MAX]),
            everything: false,
        };
        assert!(!set.allows(&asked));
        assert_eq!(set.allows_str("x:y"), Ok(false));
        assert!(!set.covers_grant(&Grant::from(asked)));
    }

    #[test]
    fn every_grant_of_a_large_set_is_found_and_no_other() {
        let texts: Vec<String> = (0..10_000).map(|n| format!("part-{n}:read")).collect();
        let set = PermissionSet::parse(&texts).unwrap();
        assert_eq!(set.len(), texts.len());
        for (n, text) in texts.iter().enumerate() {
            assert!(set.allows(&permission(text)));
            assert_eq!(set.allows_str(&format!("part-{n}:write")), Ok(false));
        }
    }

    #[test]
    fn the_hash_of_a_prefix_does_not_depend_on_what_follows() {
        for length in 1..40 {
            let text = format!("{}:{}:c", "a".repeat(length), "b".repeat(length));
            let mut found = Vec::new();
            let hash = scan(text.as_bytes(), |hash, bytes| found.push((hash, bytes)));
            let expected: Vec<_> =
                prefixes(text.as_bytes()).map(|key| (hash_of(key), key.len())).collect();
            assert_eq!((hash, found), (Some(hash_of(text.as_bytes())), expected), "{text}");
        }
    }

    #[test]
    fn words_are_judged_as_bytes_are() {
        let legal =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        for first in 0..=u8::MAX {
            for second in 0..=u8::MAX {
                let passes = legal(second) && (legal(first) || first == b':');
                for text in
                    [&[b'a', first, second][..], &[b"abcdef-", &[first, second][..]].concat()]
                {
                    assert_eq!(scan(text, |_, _| ()).is_some(), passes, "{text:?}");
                }
            }
        }
    }

    #[test]
    fn a_selection_holds_no_more_than_was_selected() {
        let all = set(&["*", "a:*", "a:b", "c"]);
        let some = all.select(&[grant("a:b"), grant("d")]);
        assert_eq!(some, set(&["a:b"]));
        assert!(!some.allows(&permission("a:c")) && !some.allows(&permission("c")));
        assert!(!some.names(&grant("*")) && !some.covers_grant(&grant("a:*")));
        assert_eq!(some.select(&[grant("c")]), PermissionSet::empty());
        let joined = some.union(&all.select(&[grant("*")]));
        assert_eq!(joined, set(&["*", "a:b"]));
        assert!(joined.allows(&permission("z")));
        assert_eq!(some.union(&set(&["x"])), set(&["a:b", "x"]));
    }

    #[test]
    fn entries_are_kept_as_written() {
        let set = set(&["b", "a:*", "a:b", "b"]);
        assert_eq!(set.iter().map(Grant::as_str).collect::<Vec<_>>(), ["a:*", "a:b", "b"]);
        assert_eq!(set.len(), 3);
        assert!(set.names(&grant("a:b")) && !set.names(&grant("a:c")));
        assert_eq!(format!("{set:?}"), r#"{"a:*", "a:b", "b"}"#);
    }

    #[test]
    fn an_intersection_is_minimal() {
        for (a, b, both) in [
            (&["a:*", "c"][..], &["a:b", "a:b:*", "c:*"][..], &["a:b", "a:b:*"][..]),
            (&["*"], &["a:*", "a:b"], &["a:*"]),
            (&["*", "a"], &["*", "b"], &["*"]),
            (&["a:*", "a:b"], &["a:b", "a:*"], &["a:*"]),
            (&["a"], &["b"], &[]),
        ] {
            assert_eq!(set(a).intersection(&set(b)), set(both));
            assert_eq!(set(b).intersection(&set(a)), set(both));
        }
    }

    #[test]
    fn what_covers_scim() {
        for entry in ["*", "scim:*", "scim:users", "scim:users:*"] {
            assert!(Scope::only([entry]).unwrap().covers_scim(), "{entry}");
        }
        for entry in ["scim", "scim2:users", "a:scim:users", "scim-x:*"] {
            assert!(!Scope::only([entry]).unwrap().covers_scim(), "{entry}");
        }
        assert!(!Scope::inherit().covers_scim());
        assert!(Scope::scim().covers_scim());
        assert_eq!(Scope::scim(), Scope::only(["scim:*"]).unwrap());
    }
}
