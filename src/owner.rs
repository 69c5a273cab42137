//! Who tokens act as, and how the host says who that is now.

pub mod cache;
mod fast;

pub(crate) use fast::DirectoryShortcut;

use crate::permission::{Grant, PermissionSet};
use crate::role::RoleCatalog;
use crate::snapshot::Snapshot;
use crate::table::{Key, LEAST_SECOND_WORD, Table};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, OnceLock};

/// Most bytes of an owner's id and of a realm's name.
pub const MAX_ID_BYTES: usize = 255;

/// The host's id of an owner: opaque UTF-8 of 1 to 255 bytes without control characters, compared byte by byte.
#[derive(Clone)]
pub struct OwnerId {
    /// Keyed anew in each process: nobody can choose ids that fall together in a map.
    hash: u64,
    text: Arc<str>,
}

/// The tenant. Owners, actors and tokens belong to exactly one, and nothing crosses from one to another.
///
/// A host without tenants never sees it: everything is in the [default](Realm::default) realm, whose name is empty.
#[derive(Clone, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::derived_hash_with_manual_eq, reason = "equal where the derived one is, and faster")]
pub struct Realm(Arc<str>);

/// Anew in each process.
static HASH_KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Names what an [`IdError`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Identifier {
    /// The id of an owner.
    Owner,
    /// The name of a realm.
    Realm,
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Owner => "owner id",
            Self::Realm => "realm",
        })
    }
}

/// Why an owner's id or a realm's name was refused.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text is empty.
    #[error("the {0} is empty; it needs 1 to {MAX_ID_BYTES} bytes")]
    Empty(Identifier),
    /// The text has more than [`MAX_ID_BYTES`] bytes.
    #[error("the {what} has {bytes} bytes; it may have at most {MAX_ID_BYTES}")]
    TooLong {
        /// Which text.
        what: Identifier,
        /// How many bytes it has.
        bytes: usize,
    },
    /// The text has a control character.
    #[error("the {0} has a control character, such as a line feed; remove that character")]
    Control(Identifier),
}

impl OwnerId {
    /// The id with this text.
    ///
    /// # Errors
    /// [`IdError`] when the text is empty, longer than 255 bytes or has a control character.
    pub fn new(text: &str) -> Result<Self, IdError> {
        checked_id(Identifier::Owner, text).map(Self::from_checked)
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn from_checked(text: Arc<str>) -> Self {
        Self { hash: HASH_KEY.hash_one(&*text), text }
    }
}

impl PartialEq for OwnerId {
    fn eq(&self, other: &Self) -> bool {
        // Most often it is one text that both share, and then nothing more is read.
        self.hash == other.hash && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Eq for OwnerId {}

impl PartialOrd for OwnerId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Byte by byte.
impl Ord for OwnerId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl Hash for OwnerId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Finds owners by the hash that their ids bring along.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ByOwnHash(u64);

impl Hasher for ByOwnHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// Not what an id's hash comes by; still no two inputs are sure to fall together.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

/// A map of owners by their ids.
pub(crate) type OwnerMap<V> = HashMap<OwnerId, V, BuildHasherDefault<ByOwnHash>>;

impl PartialEq for Realm {
    fn eq(&self, other: &Self) -> bool {
        // Nearly always the default realm on both sides, which is one text.
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Realm {
    /// The realm with this name.
    ///
    /// # Errors
    /// [`IdError`] when the name is empty, longer than 255 bytes or has a control character.
    pub fn new(name: &str) -> Result<Self, IdError> {
        checked_id(Identifier::Realm, name).map(Self)
    }

    /// The realm's name; empty for the default realm.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Realm {
    /// Whether it is the default realm, the only one that a host without tenants has.
    pub fn is_default(&self) -> bool {
        self.0.is_empty()
    }
}

impl Default for Realm {
    fn default() -> Self {
        static DEFAULT: OnceLock<Realm> = OnceLock::new();
        DEFAULT.get_or_init(|| Self(Arc::from(""))).clone()
    }
}

fn checked_id(what: Identifier, text: &str) -> Result<Arc<str>, IdError> {
    match text.len() {
        0 => Err(IdError::Empty(what)),
        1..=MAX_ID_BYTES if text.chars().any(char::is_control) => Err(IdError::Control(what)),
        1..=MAX_ID_BYTES => Ok(text.into()),
        bytes => Err(IdError::TooLong { what, bytes }),
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnerId({:?})", &*self.text)
    }
}

impl Serialize for OwnerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for OwnerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::new(&text).map_err(de::Error::custom)
    }
}

impl fmt::Display for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Realm({:?})", &*self.0)
    }
}

/// What an owner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OwnerKind {
    /// A person: has personal tokens.
    Human,
    /// A service user: has service tokens, which admins manage.
    Service,
    /// Part of the host itself: has no tokens.
    Internal,
}

impl OwnerKind {
    /// `human`, `service` or `internal`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Service => "service",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for OwnerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the host says of an owner, now.
///
/// ```
/// # use patkit::owner::{Owner, OwnerId, OwnerKind};
/// let owner = Owner::new(OwnerId::new("42")?, OwnerKind::Human).named("Ada").role("manager");
/// assert!(owner.is_enabled());
/// # Ok::<(), patkit::owner::IdError>(())
/// ```
#[derive(Clone)]
// Aligned to a line of the cache: the counts of its `Arc` are written all the time, the rest is only read. What a
// verification reads comes first, in two lines.
#[repr(C, align(64))]
pub struct Owner {
    id: OwnerId,
    realm: Realm,
    /// The permissions under the catalogue that asked first: computed once, however often the owner is handed out.
    resolved: OnceLock<(Arc<RoleCatalog>, PermissionSet)>,
    /// The later of both instants that the host gave: no token from before it works.
    valid_after: Option<DateTime<Utc>>,
    kind: OwnerKind,
    enabled: bool,
    name: Option<Box<str>>,
    roles: Vec<Box<str>>,
    grants: PermissionSet,
    held_since: Option<DateTime<Utc>>,
}

impl Owner {
    /// An enabled owner in the default realm, without roles and grants.
    pub fn new(id: OwnerId, kind: OwnerKind) -> Self {
        Self {
            id,
            realm: Realm::default(),
            kind,
            enabled: true,
            name: None,
            roles: Vec::new(),
            grants: PermissionSet::empty(),
            valid_after: None,
            held_since: None,
            resolved: OnceLock::new(),
        }
    }

    /// In this realm.
    pub fn in_realm(mut self, realm: Realm) -> Self {
        self.realm = realm;
        self
    }

    /// With this name to show.
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// With this role too. A role that the service's catalogue does not know grants nothing.
    pub fn role(mut self, role: &str) -> Self {
        self.roles.push(role.into());
        self.resolved = OnceLock::new();
        self
    }

    /// With these grants too, beside those of its roles.
    pub fn grants(mut self, grants: impl IntoIterator<Item = Grant>) -> Self {
        self.grants = self.grants.union(&grants.into_iter().collect());
        self.resolved = OnceLock::new();
        self
    }

    /// Enabled or not. All tokens of a disabled owner are refused; they work again when it is enabled again.
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// Tokens made before `instant` are refused: "sign out everywhere". Their owner goes on seeing them.
    pub fn valid_after(mut self, instant: DateTime<Utc>) -> Self {
        self.valid_after = Some(crate::clock::cut(instant)).max(self.held_since);
        self
    }

    /// The id belongs to this owner since `instant`, and belonged to somebody else before. Tokens made before it are refused.
    /// This owner does not see them, nor do they count for its limit or keep it from using their names; admins, overseers and
    /// the host still see them.
    pub fn held_since(mut self, instant: DateTime<Utc>) -> Self {
        self.held_since = Some(crate::clock::cut(instant));
        self.valid_after = self.valid_after.max(self.held_since);
        self
    }

    /// The owner's id.
    pub fn id(&self) -> &OwnerId {
        &self.id
    }

    /// The owner's realm.
    pub fn realm(&self) -> &Realm {
        &self.realm
    }

    /// What the owner is.
    pub fn kind(&self) -> OwnerKind {
        self.kind
    }

    /// Whether the owner's tokens work.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The name to show.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The owner's roles, as the host gave them.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.iter().map(|role| &**role)
    }

    /// The owner's grants beside those of its roles.
    pub fn direct_grants(&self) -> &PermissionSet {
        &self.grants
    }

    /// The instant before which no token was made that still works: the later one of *valid after* and *held since*.
    pub fn tokens_valid_after(&self) -> Option<DateTime<Utc>> {
        self.valid_after
    }

    /// Since when the id belongs to this owner, if it belonged to somebody else before.
    pub fn id_held_since(&self) -> Option<DateTime<Utc>> {
        self.held_since
    }

    /// What the owner may do: the closure of its roles under `catalog`, and its direct grants.
    pub fn permissions(&self, catalog: &Arc<RoleCatalog>) -> PermissionSet {
        self.resolved_by(catalog).cloned().unwrap_or_else(|| self.resolve(catalog))
    }

    /// The permissions under `catalog`, computed once; `None` where another catalogue was there first.
    pub(crate) fn resolved_by(&self, catalog: &Arc<RoleCatalog>) -> Option<&PermissionSet> {
        let (by, permissions) = self.resolved.get_or_init(|| (catalog.clone(), self.resolve(catalog)));
        Arc::ptr_eq(by, catalog).then_some(permissions)
    }

    /// The permissions under the catalogue that asked first, and that catalogue.
    pub(crate) fn resolved(&self) -> Option<&(Arc<RoleCatalog>, PermissionSet)> {
        self.resolved.get()
    }

    /// An owner that may do nothing: stands where there always is one, should there be none.
    pub(crate) fn nobody() -> &'static Arc<Self> {
        static NOBODY: LazyLock<Arc<Owner>> = LazyLock::new(|| {
            let id = OwnerId::from_checked(Arc::from(""));
            Arc::new(Owner::new(id, OwnerKind::Internal).enabled(false))
        });
        &NOBODY
    }

    /// Whether this is the owner with this realm and id.
    pub(crate) fn is(&self, realm: &Realm, id: &OwnerId) -> bool {
        self.id == *id && self.realm == *realm
    }

    fn resolve(&self, catalog: &RoleCatalog) -> PermissionSet {
        catalog.resolve(self.roles(), &self.grants)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner")
            .field("id", &self.id)
            .field("realm", &self.realm)
            .field("kind", &self.kind)
            .field("enabled", &self.enabled)
            .field("roles", &self.roles)
            .finish_non_exhaustive()
    }
}

/// The host's answer to "who is this owner now?". It is asked on every verification and for every actor, so that a
/// token follows its owner at once; put an [`OwnerCache`](cache::OwnerCache) in front of a slow one.
///
/// Hand out shared owners (`Arc<Owner>` from a map) where you can: an owner's permissions are computed once per
/// `Owner` value.
///
/// An answer for another id or realm than was asked for, `bot` when asked for `BOT`, counts as no such owner.
///
/// ```
/// # use patkit::owner::{Directory, DirectoryError, Owner, OwnerId, OwnerKind, Realm};
/// # use std::sync::Arc;
/// struct Users;
///
/// impl Directory for Users {
///     async fn find(&self, _realm: &Realm, id: &OwnerId) -> Result<Option<Arc<Owner>>, DirectoryError> {
///         Ok((id.as_str() == "ada").then(|| Owner::new(id.clone(), OwnerKind::Human).role("member").into()))
///     }
/// }
/// ```
pub trait Directory: Send + Sync {
    /// The owner with this id in this realm, as it is now; `None` when there is none.
    ///
    /// # Errors
    /// [`DirectoryError`] when the directory cannot say; then verification answers *unavailable*.
    fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> impl Future<Output = Result<Option<Arc<Owner>>, DirectoryError>> + Send;

    /// Answers of this crate's own directories that need not be waited for.
    #[doc(hidden)]
    fn shortcut(&self) -> DirectoryShortcut<'_> {
        DirectoryShortcut::none()
    }
}

/// The directory cannot say who the owner is.
#[derive(Clone, thiserror::Error)]
#[error("the directory of owners cannot tell who the owner is")]
pub struct DirectoryError {
    source: Arc<dyn std::error::Error + Send + Sync>,
}

impl DirectoryError {
    /// A failure with this cause.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { source: Arc::from(source.into()) }
    }
}

impl<D: Directory + ?Sized> Directory for &D {
    fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> impl Future<Output = Result<Option<Arc<Owner>>, DirectoryError>> + Send {
        (**self).find(realm, id)
    }

    fn shortcut(&self) -> DirectoryShortcut<'_> {
        (**self).shortcut()
    }
}

impl<D: Directory + ?Sized> Directory for Arc<D> {
    fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> impl Future<Output = Result<Option<Arc<Owner>>, DirectoryError>> + Send {
        (**self).find(realm, id)
    }

    fn shortcut(&self) -> DirectoryShortcut<'_> {
        (**self).shortcut()
    }
}

impl<D: Directory + ?Sized> Directory for Box<D> {
    fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> impl Future<Output = Result<Option<Arc<Owner>>, DirectoryError>> + Send {
        (**self).find(realm, id)
    }

    fn shortcut(&self) -> DirectoryShortcut<'_> {
        (**self).shortcut()
    }
}

/// [`Directory`] for `dyn`: every directory is one, and `Arc<dyn DynDirectory>` is a directory again, at the price
/// of an allocation per question.
pub trait DynDirectory: Send + Sync {
    /// [`Directory::find`], boxed.
    fn find_boxed<'a>(&'a self, realm: &'a Realm, id: &'a OwnerId) -> BoxedFind<'a>;

    /// [`Directory::shortcut`].
    #[doc(hidden)]
    fn shortcut_dyn(&self) -> DirectoryShortcut<'_>;
}

/// What [`DynDirectory::find_boxed`] gives.
pub type BoxedFind<'a> =
    Pin<Box<dyn Future<Output = Result<Option<Arc<Owner>>, DirectoryError>> + Send + 'a>>;

impl<D: Directory> DynDirectory for D {
    fn find_boxed<'a>(&'a self, realm: &'a Realm, id: &'a OwnerId) -> BoxedFind<'a> {
        Box::pin(self.find(realm, id))
    }

    fn shortcut_dyn(&self) -> DirectoryShortcut<'_> {
        self.shortcut()
    }
}

impl Directory for dyn DynDirectory + '_ {
    async fn find(&self, realm: &Realm, id: &OwnerId) -> Result<Option<Arc<Owner>>, DirectoryError> {
        self.find_boxed(realm, id).await
    }

    fn shortcut(&self) -> DirectoryShortcut<'_> {
        self.shortcut_dyn()
    }
}

/// A directory in memory: for tests, examples and hosts with a fixed set of owners. Reading takes no lock.
pub struct MemoryDirectory {
    /// In a box: a directory is moved, as part of a service, and this is large.
    owners: Box<Table<Owner, 0>>,
}

impl MemoryDirectory {
    /// A directory of nobody.
    pub fn new() -> Self {
        Self { owners: Box::new(Table::new(Owner::nobody().clone())) }
    }

    /// Adds an owner or puts it in the place of the one with its id and realm.
    pub fn put(&self, owner: Owner) {
        let key = key_of(&owner.realm, &owner.id);
        let owner = Arc::new(owner);
        self.owners.put(key, |found| found.is(&owner.realm, &owner.id), [], owner.clone());
    }

    /// Removes an owner; `false` when it was not there.
    pub fn remove(&self, realm: &Realm, id: &OwnerId) -> bool {
        self.owners.remove(key_of(realm, id), |found| found.is(realm, id))
    }

    #[inline]
    pub(crate) fn lend(&self, realm: &Realm, id: &OwnerId) -> Option<Snapshot<Owner>> {
        let found = self.owners.get(key_of(realm, id), |owner| owner.is(realm, id));
        found.map(|entry| Snapshot::lent(entry.value))
    }
}

/// What an owner is looked up by: hashes, so two may share it.
fn key_of(realm: &Realm, id: &OwnerId) -> Key {
    // Most hosts have the default realm alone, and hash nothing here.
    let realm = if realm.is_default() { 0 } else { HASH_KEY.hash_one(realm) };
    [realm, id.hash.max(LEAST_SECOND_WORD)]
}

impl Default for MemoryDirectory {
    fn default() -> Self {
        Self::new()
    }
}

impl FromIterator<Owner> for MemoryDirectory {
    fn from_iter<I: IntoIterator<Item = Owner>>(owners: I) -> Self {
        let directory = Self::new();
        owners.into_iter().for_each(|owner| directory.put(owner));
        directory
    }
}

impl Directory for MemoryDirectory {
    async fn find(&self, realm: &Realm, id: &OwnerId) -> Result<Option<Arc<Owner>>, DirectoryError> {
        Ok(self.lend(realm, id).map(Snapshot::into_arc))
    }

    #[inline]
    fn shortcut(&self) -> DirectoryShortcut<'_> {
        DirectoryShortcut::memory(self)
    }
}

impl fmt::Debug for MemoryDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDirectory").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_bounds() {
        assert!(OwnerId::new(&"x".repeat(255)).is_ok());
        let too_long = |what| IdError::TooLong { what, bytes: 256 };
        let errors: [(String, &dyn Fn(Identifier) -> IdError); 6] = [
            (String::new(), &IdError::Empty),
            ("x".repeat(256), &too_long),
            ("é".repeat(128), &too_long),
            ("a\0".to_owned(), &IdError::Control),
            ("a\n".to_owned(), &IdError::Control),
            ("a\u{85}".to_owned(), &IdError::Control),
        ];
        for (text, error) in errors {
            assert_eq!(OwnerId::new(&text), Err(error(Identifier::Owner)), "{text:?}");
            assert_eq!(Realm::new(&text), Err(error(Identifier::Realm)), "{text:?}");
        }
        assert_ne!(OwnerId::new("A"), OwnerId::new("a"));
        assert_ne!(OwnerId::new("\u{e9}"), OwnerId::new("e\u{301}"), "compared byte by byte");
    }
}
