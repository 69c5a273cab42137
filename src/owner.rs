//! Owners, which tokens act as, and the directory through which the host describes them.

pub mod cache;
mod fast;

pub(crate) use fast::DirectoryShortcut;

use crate::BoxedFuture;
use crate::named_enum::named_enum;
use crate::permission::{Grant, PermissionSet};
use crate::role::RoleCatalog;
use crate::snapshot::Snapshot;
use crate::table::{Key, LEAST_SECOND_WORD, Table};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock, OnceLock};

/// The maximum length of an owner's id and of a realm's name, in bytes.
pub const MAX_ID_BYTES: usize = 255;

/// The host's id of an owner.
///
/// It is opaque UTF-8 of 1 to 255 bytes without control characters and is compared byte by byte.
#[derive(Clone)]
pub struct OwnerId {
    /// The key is random in each process, so that nobody can choose ids that collide in a map.
    hash: u64,
    text: Arc<str>,
}

/// A tenant. Owners, actors and tokens belong to exactly one tenant and never cross to another.
///
/// A host without tenants can ignore it: everything is in the [default](Realm::default) realm,
/// whose name is empty.
#[derive(Clone, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::derived_hash_with_manual_eq, reason = "equal where the derived one is, and faster")]
pub struct Realm(Arc<str>);

/// Chosen at random in each process.
static HASH_KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The identifier that an [`IdError`] is about.
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

/// The error if an owner's id or a realm's name is refused.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text is empty.
    #[error("the {0} is empty; use 1 to {MAX_ID_BYTES} bytes")]
    Empty(Identifier),
    /// The text has more than [`MAX_ID_BYTES`] bytes.
    #[error("the {what} has {bytes} bytes; use at most {MAX_ID_BYTES}")]
    TooLong {
        /// The identifier.
        what: Identifier,
        /// The length of the text, in bytes.
        bytes: usize,
    },
    /// The text has a control character.
    #[error("the {0} has a control character, such as a line feed; remove that character")]
    Control(Identifier),
}

impl OwnerId {
    /// Creates an id from text.
    ///
    /// # Errors
    /// [`IdError`] if the text is empty, longer than 255 bytes or has a control character.
    pub fn new(text: &str) -> Result<Self, IdError> {
        checked_id(Identifier::Owner, text).map(Self::from_checked)
    }

    /// Returns the id's text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn from_checked(text: Arc<str>) -> Self {
        Self { hash: HASH_KEY.hash_one(&*text), text }
    }
}

impl PartialEq for OwnerId {
    fn eq(&self, other: &Self) -> bool {
        // Both ids most often share one text; then no bytes are compared.
        self.hash == other.hash && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Eq for OwnerId {}

impl PartialOrd for OwnerId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Compares byte by byte.
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

/// Hashes owner ids by the hash that each id stores.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ByOwnHash(u64);

impl Hasher for ByOwnHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// Not used for owner ids, which call `write_u64`. Still, different inputs do not all collide.
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
        // No bytes are compared if both sides are the default realm, as they nearly always are.
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Realm {
    /// Creates a realm with this name.
    ///
    /// # Errors
    /// [`IdError`] if the name is empty, longer than 255 bytes or has a control character.
    pub fn new(name: &str) -> Result<Self, IdError> {
        checked_id(Identifier::Realm, name).map(Self)
    }

    /// Returns the realm's name. It is empty for the default realm.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Realm {
    /// Returns whether this is the default realm, the only one of a host without tenants.
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

named_enum! {
    /// The kind of an owner.
    pub enum OwnerKind {
        /// A person, who has personal tokens.
        Human = "human",
        /// A service user, which has service tokens that admins manage.
        Service = "service",
        /// A part of the host itself, which has no tokens.
        Internal = "internal",
    }
}

/// The current state of an owner, as the host describes it.
///
/// ```
/// # use patkit::owner::{Owner, OwnerId, OwnerKind};
/// let owner = Owner::new(OwnerId::new("42")?, OwnerKind::Human).with_name("Ada").with_role("manager");
/// assert!(owner.is_enabled());
/// # Ok::<(), patkit::owner::IdError>(())
/// ```
#[derive(Clone)]
pub struct Owner(Fields);

/// The fields of an owner.
///
/// Aligned to a cache line because the counts of its `Arc` are written all the time, while the rest
/// is only read. The fields that a verification reads come first, in two lines.
#[derive(Clone)]
#[repr(C, align(64))]
struct Fields {
    id: OwnerId,
    realm: Realm,
    /// The permissions under the first catalogue that asked. Computed once per owner value.
    resolved: OnceLock<(Arc<RoleCatalog>, PermissionSet)>,
    /// The later of the two instants that the host gave. No token from before it works.
    valid_after: Option<DateTime<Utc>>,
    kind: OwnerKind,
    enabled: bool,
    name: Option<Box<str>>,
    roles: Vec<Box<str>>,
    grants: PermissionSet,
    held_since: Option<DateTime<Utc>>,
}

impl Owner {
    /// Creates an enabled owner in the default realm, without roles or grants.
    pub fn new(id: OwnerId, kind: OwnerKind) -> Self {
        Self(Fields {
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
        })
    }

    /// Sets the realm.
    pub fn in_realm(mut self, realm: Realm) -> Self {
        self.0.realm = realm;
        self
    }

    /// Sets the name to show.
    pub fn with_name(mut self, name: &str) -> Self {
        self.0.name = Some(name.into());
        self
    }

    /// Adds a role. A role that the service's catalogue does not know grants nothing.
    pub fn with_role(mut self, role: &str) -> Self {
        self.0.roles.push(role.into());
        self.0.resolved = OnceLock::new();
        self
    }

    /// Adds grants beside those of the roles.
    pub fn with_grants(mut self, grants: impl IntoIterator<Item = Grant>) -> Self {
        self.0.grants = self.0.grants.union(&grants.into_iter().collect());
        self.0.resolved = OnceLock::new();
        self
    }

    /// Sets whether the owner is enabled. Defaults to `true`.
    ///
    /// All tokens of a disabled owner are refused. They work again once the owner is enabled again.
    pub fn with_enabled(mut self, enabled: bool) -> Self {
        self.0.enabled = enabled;
        self
    }

    /// Refuses tokens made before `instant`: "sign out everywhere". Their owner still sees them.
    pub fn with_tokens_valid_after(mut self, instant: DateTime<Utc>) -> Self {
        self.0.valid_after = Some(crate::clock::cut(instant)).max(self.0.held_since);
        self
    }

    /// Sets since when the id belongs to this owner, if it belonged to another owner before.
    ///
    /// Tokens made before `instant` are refused. This owner does not see such tokens, and they
    /// neither count for the owner's limit nor reserve their names. Admins, overseers and the host
    /// still see them.
    pub fn with_id_held_since(mut self, instant: DateTime<Utc>) -> Self {
        self.0.held_since = Some(crate::clock::cut(instant));
        self.0.valid_after = self.0.valid_after.max(self.0.held_since);
        self
    }

    /// Returns the owner's id.
    pub fn id(&self) -> &OwnerId {
        &self.0.id
    }

    /// Returns the owner's realm.
    pub fn realm(&self) -> &Realm {
        &self.0.realm
    }

    /// Returns the owner's kind.
    pub fn kind(&self) -> OwnerKind {
        self.0.kind
    }

    /// Returns whether the owner's tokens work.
    pub fn is_enabled(&self) -> bool {
        self.0.enabled
    }

    /// Returns the name to show.
    pub fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// Returns the owner's roles, as the host gave them.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.0.roles.iter().map(|role| &**role)
    }

    /// Returns the owner's grants beside those of its roles.
    pub fn grants(&self) -> &PermissionSet {
        &self.0.grants
    }

    /// Returns the instant before which tokens of this owner no longer work.
    ///
    /// This is the later of *valid after* and *held since*.
    pub fn tokens_valid_after(&self) -> Option<DateTime<Utc>> {
        self.0.valid_after
    }

    /// Returns since when the id belongs to this owner, if it belonged to another owner before.
    pub fn id_held_since(&self) -> Option<DateTime<Utc>> {
        self.0.held_since
    }

    /// Returns the owner's permissions: those of its roles under `catalog`, and its direct grants.
    pub fn permissions(&self, catalog: &Arc<RoleCatalog>) -> PermissionSet {
        self.resolved_by(catalog).cloned().unwrap_or_else(|| self.resolve(catalog))
    }

    /// Returns the permissions under `catalog`, computed once.
    ///
    /// Returns `None` if another catalogue asked first.
    pub(crate) fn resolved_by(&self, catalog: &Arc<RoleCatalog>) -> Option<&PermissionSet> {
        let (by, permissions) =
            self.0.resolved.get_or_init(|| (catalog.clone(), self.resolve(catalog)));
        Arc::ptr_eq(by, catalog).then_some(permissions)
    }

    /// Returns the permissions under the first catalogue that asked, and that catalogue.
    pub(crate) fn resolved(&self) -> Option<&(Arc<RoleCatalog>, PermissionSet)> {
        self.0.resolved.get()
    }

    /// Returns an owner without any permission. It serves as a placeholder where an owner is
    /// required.
    pub(crate) fn nobody() -> &'static Arc<Self> {
        static NOBODY: LazyLock<Arc<Owner>> = LazyLock::new(|| {
            let id = OwnerId::from_checked(Arc::from(""));
            Arc::new(Owner::new(id, OwnerKind::Internal).with_enabled(false))
        });
        &NOBODY
    }

    /// Returns whether this is the owner with this realm and id.
    pub(crate) fn is(&self, realm: &Realm, id: &OwnerId) -> bool {
        self.0.id == *id && self.0.realm == *realm
    }

    fn resolve(&self, catalog: &RoleCatalog) -> PermissionSet {
        catalog.resolve(self.roles(), &self.0.grants)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner")
            .field("id", &self.0.id)
            .field("realm", &self.0.realm)
            .field("kind", &self.0.kind)
            .field("enabled", &self.0.enabled)
            .field("roles", &self.0.roles)
            .finish_non_exhaustive()
    }
}

/// Looks up the current state of an owner for the host.
///
/// A directory is asked on every verification and for every actor, so that a change of an owner
/// applies to its tokens at once. Put an [`OwnerCache`](cache::OwnerCache) in front of a slow
/// directory.
///
/// Return shared owners (`Arc<Owner>` from a map) if you can, because an owner's permissions are
/// computed once per `Owner` value.
///
/// An owner with another id or realm than requested, such as `bot` for `BOT`, counts as missing.
///
/// ```
/// # use patkit::owner::{Directory, DirectoryError, Owner, OwnerId, OwnerKind, Realm};
/// # use std::sync::Arc;
/// struct Users;
///
/// impl Directory for Users {
///     async fn find(&self, _realm: &Realm, id: &OwnerId) -> Result<Option<Arc<Owner>>, DirectoryError> {
///         Ok((id.as_str() == "ada").then(|| Owner::new(id.clone(), OwnerKind::Human).with_role("member").into()))
///     }
/// }
/// ```
pub trait Directory: Send + Sync {
    /// Returns the current state of the owner with this id in this realm, or `None` if there is
    /// none.
    ///
    /// # Errors
    /// [`DirectoryError`] if the directory cannot answer. Verification then returns *unavailable*.
    fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> impl Future<Output = Result<Option<Arc<Owner>>, DirectoryError>> + Send;

    /// Returns the lookups of this crate's own directories that do not need to be awaited.
    #[doc(hidden)]
    fn shortcut(&self) -> DirectoryShortcut<'_> {
        DirectoryShortcut::none()
    }
}

/// The error if the directory cannot say who the owner is.
#[derive(Clone, thiserror::Error)]
#[error("the directory of owners could not look up the owner")]
pub struct DirectoryError {
    source: Arc<dyn std::error::Error + Send + Sync>,
}

impl DirectoryError {
    /// Creates an error with this cause.
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

/// A [`Directory`] for use as `dyn`.
///
/// Every directory is a `DynDirectory`, and `Arc<dyn DynDirectory>` is a directory again, at the
/// cost of one allocation per lookup.
pub trait DynDirectory: Send + Sync {
    /// Calls [`Directory::find`] and boxes the future.
    fn find_boxed<'a>(
        &'a self,
        realm: &'a Realm,
        id: &'a OwnerId,
    ) -> BoxedFuture<'a, Result<Option<Arc<Owner>>, DirectoryError>>;

    /// Calls [`Directory::shortcut`].
    #[doc(hidden)]
    fn shortcut_dyn(&self) -> DirectoryShortcut<'_>;
}

impl<D: Directory> DynDirectory for D {
    fn find_boxed<'a>(
        &'a self,
        realm: &'a Realm,
        id: &'a OwnerId,
    ) -> BoxedFuture<'a, Result<Option<Arc<Owner>>, DirectoryError>> {
        Box::pin(self.find(realm, id))
    }

    fn shortcut_dyn(&self) -> DirectoryShortcut<'_> {
        self.shortcut()
    }
}

impl Directory for dyn DynDirectory + '_ {
    async fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> Result<Option<Arc<Owner>>, DirectoryError> {
        self.find_boxed(realm, id).await
    }

    fn shortcut(&self) -> DirectoryShortcut<'_> {
        self.shortcut_dyn()
    }
}

/// A directory in memory for tests, examples and hosts with a fixed set of owners. Reads take no
/// lock.
pub struct MemoryDirectory {
    /// Boxed because it is large and a directory is moved as part of a service.
    owners: Box<Table<Owner, 0>>,
}

impl MemoryDirectory {
    /// Creates an empty directory.
    pub fn new() -> Self {
        Self { owners: Box::new(Table::new(Owner::nobody().clone())) }
    }

    /// Adds an owner, or replaces the owner with the same id and realm.
    pub fn put(&self, owner: Owner) {
        let key = key_of(owner.realm(), owner.id());
        let owner = Arc::new(owner);
        self.owners.put(key, |found| found.is(owner.realm(), owner.id()), [], owner.clone());
    }

    /// Removes an owner. Returns `false` if the owner was missing.
    pub fn remove(&self, realm: &Realm, id: &OwnerId) -> bool {
        self.owners.remove(key_of(realm, id), |found| found.is(realm, id))
    }

    #[inline]
    pub(crate) fn lend(&self, realm: &Realm, id: &OwnerId) -> Option<Snapshot<Owner>> {
        let found = self.owners.get(key_of(realm, id), |owner| owner.is(realm, id));
        found.map(|entry| Snapshot::lent(entry.value))
    }
}

/// Returns the lookup key of an owner. It consists of hashes, so two owners may share it.
fn key_of(realm: &Realm, id: &OwnerId) -> Key {
    // Most hosts use only the default realm and hash nothing here.
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
    async fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> Result<Option<Arc<Owner>>, DirectoryError> {
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
