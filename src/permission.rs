//! What may be done: concrete permissions, grants with a trailing wildcard, sets of grants, and the scope that
//! narrows one token. Who holds what is for [`role`](crate::role) and for the host.
//!
//! A permission is `segment(:segment)*`, a segment `[a-z0-9_-]+`, such as `datastores:read`. A grant is a
//! permission, or one followed by `:*`, or `*` alone: `a:*` covers `a:b` and `a:b:c`, not `a`; `*` covers all.
//! What is asked for is always concrete. Nothing granted means nothing allowed.
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

/// The longest a permission or a grant may be, in bytes. Room for a handful of spelled-out segments; it bounds what
/// a token's scope can cost to store and to check.
pub const MAX_PERMISSION_BYTES: usize = 128;

/// The most entries the scope of one token may list; see [`Scope::only`].
pub const MAX_SCOPE_ENTRIES: usize = 64;

/// One concrete permission, such as `datastores:read`: what a request needs.
///
/// Parse it once and keep it: the check of a [`PermissionSet`] then costs a few nanoseconds. A clone shares the text.
/// Equal, ordered and hashed by its text.
#[derive(Clone)]
pub struct Permission {
    text: Arc<str>,
    hash: u64,
    prefixes: Arc<[Prefix]>,
}

/// What is given: a [`Permission`], everything below one (`datastores:*`), or everything (`*`).
///
/// A clone shares the text. Equal, ordered and hashed by its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant(Arc<str>);

/// Why a text is no permission or no grant. Positions are byte offsets into that text; the text itself is not
/// repeated, since it may come from anybody.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PermissionError {
    /// The text is empty.
    #[error("the permission is empty; write one such as datastores:read")]
    Empty,
    /// The text is longer than [`MAX_PERMISSION_BYTES`].
    #[error("the permission has {bytes} bytes; write {MAX_PERMISSION_BYTES} at most")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// There is nothing before the first colon, between two, or after the last.
    #[error(
        "the permission has an empty segment at byte {at}; write a segment before, between and after colons"
    )]
    EmptySegment {
        /// Where a segment was expected.
        at: usize,
    },
    /// A character other than `a` to `z`, `0` to `9`, `_`, `-` and the colon.
    #[error(
        "the permission has a character at byte {at} that is not allowed; use a-z, 0-9, '_', '-' and ':'"
    )]
    BadCharacter {
        /// Where the character begins.
        at: usize,
    },
    /// A grant with an asterisk that is not the whole of its last segment.
    #[error(
        "the grant has a '*' at byte {at} that is not its whole last segment; write one such as datastores:*"
    )]
    MisplacedWildcard {
        /// Where the asterisk is.
        at: usize,
    },
    /// An asterisk, where a concrete permission is wanted.
    #[error("the permission has a '*' at byte {at}; write a concrete one such as datastores:read")]
    NotConcrete {
        /// Where the asterisk is.
        at: usize,
    },
}

/// An immutable set of grants. A clone shares its content.
///
/// The set keeps every distinct entry as it was written, also one that another entry covers, so that whoever reads
/// it finds what they gave. Two sets are equal when their entries are.
#[derive(Clone)]
pub struct PermissionSet {
    /// Every role of a catalogue is a selection from one table: a role then costs one bit for each grant of the
    /// catalogue, and the union of two roles is the union of their bits.
    table: Arc<GrantTable>,
    /// One bit for each grant of the table.
    members: Arc<[u64]>,
    /// Whether `*` is a member.
    everything: bool,
}

/// What one token is narrowed to. It takes away from what the owner holds and never adds to it: a request through
/// the token needs both [`PermissionSet::allows`] of what the owner holds now and [`Scope::allows`].
///
/// Neither kind is a default: whoever makes a token says which, and a scope that is missing from a store is damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope(Narrowing);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Narrowing {
    Inherit,
    Only(PermissionSet),
}

/// Why a list of entries is no [`Scope`].
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScopeError {
    /// The list has more than [`MAX_SCOPE_ENTRIES`] entries, repeated ones included.
    #[error("the scope has more than {MAX_SCOPE_ENTRIES} entries; list {MAX_SCOPE_ENTRIES} at most")]
    TooManyEntries,
    /// An entry is no grant; among other things, longer than [`MAX_PERMISSION_BYTES`].
    #[error("entry {index} of the scope is not a grant; write one such as datastores:read or datastores:*")]
    BadEntry {
        /// Which entry, counted from 0.
        index: usize,
        /// What is wrong with it.
        source: PermissionError,
    },
    /// Entries cover no permission that is known: [`RoleCatalog`](crate::RoleCatalog) says which are.
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
    /// Which entry, counted from 0.
    pub index: usize,
    /// The entry.
    pub entry: Grant,
    /// What it was likely meant to be.
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
            None => f.write_str("correct the entry, or declare the permission in the role catalogue"),
        }
    }
}

/// Shows unknown entries. Many in part: their error may end up in one line of a log.
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
    /// Reads a concrete permission.
    ///
    /// # Errors
    /// [`PermissionError`] when `text` is empty, longer than [`MAX_PERMISSION_BYTES`], has an empty segment, a
    /// character outside the grammar, or an asterisk.
    pub fn parse(text: &str) -> Result<Self, PermissionError> {
        check(text, Wildcard::Nowhere)?;
        let prefixes = prefixes(text.as_bytes()).map(|key| Prefix { hash: hash_of(key), bytes: key.len() });
        Ok(Self { text: Arc::from(text), hash: hash_of(text.as_bytes()), prefixes: prefixes.collect() })
    }

    /// Whether a text is a concrete permission, which [`parse`](Self::parse) then reads. Serves checks at compile time.
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

    /// The permission as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Grant {
    /// Reads a grant.
    ///
    /// # Errors
    /// [`PermissionError`] when `text` is empty, longer than [`MAX_PERMISSION_BYTES`], has an empty segment, a
    /// character outside the grammar, or an asterisk that is not the whole of the last segment.
    pub fn parse(text: &str) -> Result<Self, PermissionError> {
        check(text, Wildcard::AtTheEnd)?;
        Ok(Self(Arc::from(text)))
    }

    /// The grant as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it ends in `*`.
    pub fn is_wildcard(&self) -> bool {
        self.0.ends_with('*')
    }

    /// Whether it is `*`.
    pub(crate) fn is_everything(&self) -> bool {
        &*self.0 == "*"
    }

    /// Whether it gives `permission`.
    pub fn covers(&self, permission: &Permission) -> bool {
        self.covers_text(permission.as_str())
    }

    /// Whether it gives all that `other` gives. `a:*` covers `a:b`, `a:b:*` and itself, not `a`.
    pub fn covers_grant(&self, other: &Self) -> bool {
        self.covers_text(other.as_str())
    }

    /// Serves both of the above: the asterisk of `other` comes after the colon that a wildcard's key ends with.
    fn covers_text(&self, other: &str) -> bool {
        if self.is_wildcard() { other.starts_with(self.key()) } else { other == self.as_str() }
    }

    /// The text without its asterisk: what everything that a wildcard covers begins with, what a concrete grant is.
    /// A wildcard's key is empty or ends with a colon, a concrete one's never does, so no two grants share a key.
    fn key(&self) -> &str {
        self.0.strip_suffix('*').unwrap_or(&self.0)
    }
}

impl PermissionSet {
    /// The set of nothing; it allows nothing.
    pub fn empty() -> Self {
        Self::from_sorted(Vec::new())
    }

    /// Reads a set from grants as text. Their number is not bounded here; see [`Scope::only`].
    ///
    /// # Errors
    /// The [`PermissionError`] of the first entry that is no grant.
    pub fn parse<I>(grants: I) -> Result<Self, PermissionError>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        grants.into_iter().map(|text| Grant::parse(text.as_ref())).collect()
    }

    /// Whether an entry covers `permission`. Allocates nothing.
    pub fn allows(&self, permission: &Permission) -> bool {
        let text = permission.text.as_bytes();
        self.everything
            || self.has(permission.hash, text)
            || permission
                .prefixes
                .iter()
                .any(|prefix| text.get(..prefix.bytes).is_some_and(|key| self.has(prefix.hash, key)))
    }

    /// [`allows`](Self::allows) for a permission given as text: one pass over its bytes checks the grammar and looks
    /// it up. Allocates nothing.
    ///
    /// # Errors
    /// The [`PermissionError`] of [`Permission::parse`], whatever the set holds: `a:*` is never allowed, not by `*`
    /// either.
    pub fn allows_str(&self, permission: &str) -> Result<bool, PermissionError> {
        let text = permission.as_bytes();
        let mut allowed = self.everything;
        let hash = scan(text, |hash, bytes| {
            allowed = allowed || text.get(..bytes).is_some_and(|key| self.has(hash, key));
        });
        match hash {
            Some(hash) => Ok(allowed || self.has(hash, text)),
            // Were the two ever to disagree, nothing is allowed.
            None => check(permission, Wildcard::Nowhere).map(|()| false),
        }
    }

    /// Whether one entry covers all that `grant` gives.
    pub fn covers_grant(&self, grant: &Grant) -> bool {
        self.names(grant) || self.covers_from_above(grant)
    }

    /// Whether each entry of `other` is covered by one of these. Then nothing is allowed by `other` alone.
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|grant| self.covers_grant(grant))
    }

    /// Whether `grant` itself is an entry; one that is merely covered is not.
    pub fn names(&self, grant: &Grant) -> bool {
        let key = grant.key().as_bytes();
        self.has(hash_of(key), key)
    }

    /// Whether a grant other than `*` covers what `entry` covers, or some of it.
    pub(crate) fn makes_known(&self, entry: &Grant) -> bool {
        let mut grants = self.iter().filter(|grant| !grant.is_everything());
        grants.any(|grant| grant.covers_grant(entry) || entry.covers_grant(grant))
    }

    /// Whether it allows everything, by `*`.
    pub(crate) fn is_everything(&self) -> bool {
        self.everything
    }

    /// What both sets allow: exactly that, in the fewest entries.
    pub fn intersection(&self, other: &Self) -> Self {
        // Of two grants one covers the other or they have nothing in common, so no new grant can come up.
        let in_both: Self = self
            .iter()
            .filter(|grant| other.covers_grant(grant))
            .chain(other.iter().filter(|grant| self.covers_grant(grant)))
            .cloned()
            .collect();
        in_both.iter().filter(|grant| !in_both.covers_from_above(grant)).cloned().collect()
    }

    /// The entries of both sets.
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
                members: self.members.iter().zip(other.members.iter()).map(|(a, b)| a | b).collect(),
                everything: self.everything || other.everything,
            };
        }
        self.iter().chain(other.iter()).cloned().collect()
    }

    /// The entries, in the order of their text.
    pub fn iter(&self) -> impl Iterator<Item = &Grant> {
        self.table
            .grants
            .iter()
            .enumerate()
            .filter(|(index, _)| self.is_member(*index))
            .map(|(_, grant)| grant)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether nothing is granted.
    pub fn is_empty(&self) -> bool {
        self.members.iter().all(|bits| *bits == 0)
    }

    /// Those of `grants` that are entries, as a set that shares this one's table.
    pub(crate) fn select<'a>(&self, grants: impl IntoIterator<Item = &'a Grant>) -> Self {
        let mut members = vec![0_u64; self.members.len()];
        let mut everything = false;
        for grant in grants {
            let key = grant.key().as_bytes();
            let Some(index) = self.table.find(hash_of(key), key).filter(|index| self.is_member(*index))
            else {
                continue;
            };
            everything = everything || key.is_empty();
            let (word, bit) = place(index);
            if let Some(bits) = members.get_mut(word) {
                *bits |= bit;
            }
        }
        Self { table: Arc::clone(&self.table), members: Arc::from(members), everything }
    }

    fn from_sorted(grants: Vec<Grant>) -> Self {
        // The bits beyond the last grant belong to none, so every word may be full.
        let members = vec![u64::MAX; grants.len().div_ceil(64)];
        let everything = grants.first().is_some_and(|grant| grant.key().is_empty());
        Self { table: Arc::new(GrantTable::new(grants)), members: Arc::from(members), everything }
    }

    /// Whether a wildcard other than `grant` itself covers it.
    fn covers_from_above(&self, grant: &Grant) -> bool {
        let key = grant.key().as_bytes();
        // The last prefix of a wildcard is its own key.
        (self.everything && !key.is_empty())
            || prefixes(key).any(|above| above.len() < key.len() && self.has(hash_of(above), above))
    }

    fn has(&self, hash: u64, key: &[u8]) -> bool {
        self.table.find(hash, key).is_some_and(|index| self.is_member(index))
    }

    fn is_member(&self, index: usize) -> bool {
        let (word, bit) = place(index);
        self.members.get(word).is_some_and(|bits| bits & bit != 0)
    }
}

impl Scope {
    /// All that the owner holds, now and later.
    pub const fn inherit() -> Self {
        Self(Narrowing::Inherit)
    }

    /// Nothing.
    pub(crate) fn none() -> Self {
        Self(Narrowing::Only(PermissionSet::empty()))
    }

    /// Only what `entries` cover, and of that only what the owner holds. No entries: nothing.
    ///
    /// # Errors
    /// [`ScopeError`] when there are more than [`MAX_SCOPE_ENTRIES`] entries, or one is no [`Grant`].
    pub fn only<I>(entries: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        let mut grants = Vec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            // Before the entry is read, so that a list without end costs no more than a full one.
            if index >= MAX_SCOPE_ENTRIES {
                return Err(ScopeError::TooManyEntries);
            }
            grants
                .push(Grant::parse(entry.as_ref()).map_err(|source| ScopeError::BadEntry { index, source })?);
        }
        Self::only_grants(grants)
    }

    /// [`only`](Self::only) for grants that were read before.
    ///
    /// # Errors
    /// [`ScopeError::TooManyEntries`] when there are more than [`MAX_SCOPE_ENTRIES`].
    pub fn only_grants(grants: impl IntoIterator<Item = Grant>) -> Result<Self, ScopeError> {
        let mut grants = grants.into_iter();
        let kept: Vec<Grant> = grants.by_ref().take(MAX_SCOPE_ENTRIES).collect();
        if grants.next().is_some() {
            return Err(ScopeError::TooManyEntries);
        }
        Ok(Self(Narrowing::Only(kept.into_iter().collect())))
    }

    /// The scope of a token for SCIM endpoints (RFC 7644): only `scim:*`.
    pub fn scim() -> Self {
        Self(Narrowing::Only(std::iter::once(Grant(Arc::from("scim:*"))).collect()))
    }

    /// Whether the scope lets `permission` pass; the owner must hold it too. Allocates nothing.
    pub fn allows(&self, permission: &Permission) -> bool {
        match &self.0 {
            Narrowing::Inherit => true,
            Narrowing::Only(set) => set.allows(permission),
        }
    }

    /// [`allows`](Self::allows) for a permission given as text. Allocates nothing.
    ///
    /// # Errors
    /// The [`PermissionError`] of [`Permission::parse`].
    pub fn allows_str(&self, permission: &str) -> Result<bool, PermissionError> {
        match &self.0 {
            Narrowing::Inherit => check(permission, Wildcard::Nowhere).map(|()| true),
            Narrowing::Only(set) => set.allows_str(permission),
        }
    }

    /// Whether a token with the scope `parent` may hand out this one: *inherit* only from *inherit*, a list from
    /// *inherit* or from a list that covers each of its entries.
    pub fn is_within(&self, parent: &Self) -> bool {
        match (&self.0, &parent.0) {
            (_, Narrowing::Inherit) => true,
            (Narrowing::Inherit, Narrowing::Only(_)) => false,
            (Narrowing::Only(child), Narrowing::Only(parent)) => parent.covers(child),
        }
    }

    /// Whether it is *inherit*.
    pub fn is_inherit(&self) -> bool {
        self.as_set().is_none()
    }

    /// The entries it is narrowed to; `None` when it is *inherit*.
    pub fn as_set(&self) -> Option<&PermissionSet> {
        match &self.0 {
            Narrowing::Inherit => None,
            Narrowing::Only(set) => Some(set),
        }
    }

    /// Whether an entry covers something below `scim:` or lies there: `*`, `scim:*`, `scim:users`; not `scim`.
    /// *Inherit* lists nothing and so is not meant.
    pub fn covers_scim(&self) -> bool {
        self.as_set()
            .is_some_and(|set| set.everything || set.iter().any(|grant| grant.as_str().starts_with("scim:")))
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
        deserializer.deserialize_str(TextVisitor { expected: "a permission grant", parse: Self::parse })
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

/// *Inherit* is null, a list is an array of strings. There is no way back: on input an absent scope and a null one
/// must be told apart by whoever reads it, and entries go through [`Scope::only`].
impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_set().serialize(serializer)
    }
}

/// Reads a text through a parser, so that nothing unchecked comes in.
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

/// One `a:b:` that a permission begins with: the key of a wildcard that covers it.
struct Prefix {
    hash: u64,
    bytes: usize,
}

/// Distinct grants, sorted by text, found by the hash of their key in an open-addressed table.
///
/// Measured in `benches/permission.rs` against binary search over the sorted text, and against binary search and scan
/// over one array of hashes. Up to 64 grants the table and the sorted hashes cost the same within a few nanoseconds;
/// at a thousand, which the roles of a large catalogue share, the table costs what it costs at 16 and the sorted
/// hashes two to three times that. A scan falls behind from 16 on, and search over text costs several times as much
/// throughout.
struct GrantTable {
    grants: Box<[Grant]>,
    /// A power of two, at least four times as many as grants, so that a probe seldom takes a second step; or none
    /// where there are no grants.
    slots: Box<[Slot]>,
}

#[derive(Clone, Copy)]
struct Slot {
    hash: u64,
    /// Where in `grants`, or [`VACANT`].
    index: usize,
}

const VACANT: usize = usize::MAX;

impl GrantTable {
    fn new(grants: Vec<Grant>) -> Self {
        let vacant = Slot { hash: 0, index: VACANT };
        let room = if grants.is_empty() { 0 } else { grants.len().saturating_mul(4).next_power_of_two() };
        let mut slots = vec![vacant; room];
        for (index, grant) in grants.iter().enumerate() {
            let hash = hash_of(grant.key().as_bytes());
            let mut at = first_slot(hash, room);
            while slots.get(at).is_some_and(|slot| slot.index != VACANT) {
                at = next_slot(at, room);
            }
            if let Some(slot) = slots.get_mut(at) {
                *slot = Slot { hash, index };
            }
        }
        Self { grants: Box::from(grants), slots: Box::from(slots) }
    }

    /// The grant with that key. Ends at a vacant slot, of which there are always some. An equal hash
    /// finds nothing by itself: the text decides.
    #[inline]
    fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let mut at = first_slot(hash, self.slots.len());
        loop {
            let slot = self.slots.get(at)?;
            if slot.index == VACANT {
                return None;
            }
            if slot.hash == hash && self.grants.get(slot.index)?.key().as_bytes() == key {
                return Some(slot.index);
            }
            at = next_slot(at, self.slots.len());
        }
    }
}

fn first_slot(hash: u64, room: usize) -> usize {
    // A usize of 32 bits has bits enough for a table of any size it can hold.
    usize::try_from(hash & u64::from(u32::MAX)).unwrap_or(0) & room.wrapping_sub(1)
}

fn next_slot(at: usize, room: usize) -> usize {
    at.wrapping_add(1) & room.wrapping_sub(1)
}

/// Which word of a set's members a grant of its table has, and which bit of it.
fn place(index: usize) -> (usize, u64) {
    (index / 64, 1_u64.rotate_left(u32::try_from(index % 64).unwrap_or(0)))
}

/// A text as words of eight bytes, the first byte lowest: the whole ones, the rest with zeros behind its end, and how
/// many bytes that rest has. A check works on words: byte by byte it costs several times as much.
#[inline]
fn words(text: &[u8]) -> (&[[u8; 8]], u64, usize) {
    let (whole, rest) = text.as_chunks();
    let last = match text.last_chunk() {
        // The last eight bytes, less those that are in the word before.
        Some(end) => shifted_out(u64::from_le_bytes(*end), rest.len()),
        None => rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    (whole, last, rest.len())
}

/// The last `kept` bytes of a word, of 0 to 7, moved to its beginning.
#[inline]
fn shifted_out(word: u64, kept: usize) -> u64 {
    let bits = u32::try_from(8_usize.saturating_sub(kept).saturating_mul(8)).unwrap_or(u64::BITS);
    word.checked_shr(bits).unwrap_or(0)
}

/// The hash of a key. Not keyed: whoever picks grants so that they collide slows down only the set they are in, which
/// in a scope has 64 at most, and gains nothing else, since the text decides.
fn hash_of(key: &[u8]) -> u64 {
    let (whole, last, _) = words(key);
    mix(whole.iter().fold(0, |state, word| mix(state, u64::from_le_bytes(*word))), last)
}

/// Takes one word more into a hash; no word leaves it as it is, so that a text may end with a whole one.
#[inline]
fn mix(state: u64, word: u64) -> u64 {
    if word == 0 {
        return state;
    }
    // The golden ratio, odd; then the mixed upper half comes down to where slots are chosen.
    let mixed = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}

/// The keys of the wildcards that cover a text from above: what it has up to each colon.
fn prefixes(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.iter().enumerate().filter(|(_, byte)| **byte == b':').filter_map(|(at, _)| text.get(..=at))
}

/// Where the grammar lets an asterisk stand.
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
            b'*' if wildcard == Wildcard::Nowhere => return Err(PermissionError::NotConcrete { at }),
            b'*' if segment_is_empty && at.saturating_add(1) == text.len() => return Ok(()),
            b'*' => return Err(PermissionError::MisplacedWildcard { at }),
            _ => return Err(PermissionError::BadCharacter { at }),
        }
    }
    if segment_is_empty { Err(PermissionError::EmptySegment { at: text.len() }) } else { Ok(()) }
}

/// The same grammar for a concrete permission, and its hash, in one pass, eight bytes at a time. Calls `on_prefix` with
/// the hash and the length of what there is up to each colon; a caller gives no answer before the text has passed.
/// `None` when it has not: [`check`] says why.
#[inline]
fn scan(text: &[u8], mut on_prefix: impl FnMut(u64, usize)) -> Option<u64> {
    if text.len() > MAX_PERMISSION_BYTES {
        return None;
    }
    let mut hash = 0;
    // The top bit of the lowest byte, where the byte before the word is a colon; a text begins as after one.
    let mut after_colon = 0x80;
    let mut passed = 0_usize;
    let (whole, last, rest) = words(text);
    for index in 0..=whole.len() {
        // The last word may be none at all; it then passes and changes nothing.
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
            // All bits up to the lowest that is set: the bytes up to the first colon that is left.
            let up_to_colon = left ^ left.wrapping_sub(1);
            let bytes = usize::try_from(left.trailing_zeros() / 8).unwrap_or(0).saturating_add(1);
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

/// The top bit of each byte that lies in `low..=high`, both of them ASCII.
///
/// A byte beyond ASCII lies in no range. It may carry into the byte after it, whose bit then says nothing; but a word
/// in which one byte lies in no range is refused, whatever the others do.
#[inline]
fn range(word: u64, low: u8, high: u8) -> u64 {
    // Each sum sets the top bit of its byte: one from `low` on, the other beyond `high`. In ASCII none carries on.
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
                    assert_eq!(set(&[text]).covers_grant(&grant(other)), expected, "{text} {other}");
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
            assert_eq!(Permission::is_concrete(&text), Permission::parse(&text).is_ok(), "{text:?}");
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
        let vacant = first_slot(asked.hash, table.slots.len()).wrapping_sub(1) & (table.slots.len() - 1);
        table.slots[vacant].index = VACANT;
        let set = PermissionSet { table: Arc::new(table), members: Arc::from([u64::MAX]), everything: false };
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
            let expected: Vec<_> = prefixes(text.as_bytes()).map(|key| (hash_of(key), key.len())).collect();
            assert_eq!((hash, found), (Some(hash_of(text.as_bytes())), expected), "{text}");
        }
    }

    #[test]
    fn words_are_judged_as_bytes_are() {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        for first in 0..=u8::MAX {
            for second in 0..=u8::MAX {
                let passes = legal(second) && (legal(first) || first == b':');
                for text in [&[b'a', first, second][..], &[b"abcdef-", &[first, second][..]].concat()] {
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
