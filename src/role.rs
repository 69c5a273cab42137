//! Roles, which are named bundles of grants that may inherit from each other, and their catalogue.
//!
//! The host's directory decides who has which role.
//!
//! ```
//! use patkit::permission::PermissionSet;
//! use patkit::role::RoleCatalog;
//!
//! let catalog = RoleCatalog::standard_builder()
//!     .grant("member", ["datastores:read"])
//!     .grant("admin", ["datastores:*"])
//!     .role("auditor").inherits("auditor", "member").grant("auditor", ["reports:read"])
//!     .build()?;
//!
//! let held = catalog.resolve(["auditor"], &PermissionSet::empty());
//! assert!(held.allows_str("datastores:read")?);
//! assert!(!held.allows_str("datastores:write")?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::likely::likely;
use crate::permission::{
    Grant, Permission, PermissionError, PermissionSet, SCIM, SERVICE_TOKENS_MANAGE,
    TOKENS_INTROSPECT, TOKENS_MANAGE, TOKENS_OVERSEE, TOKENS_SCIM,
};
use crate::shard;
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The maximum length of a role name, in bytes.
pub const MAX_ROLE_NAME_BYTES: usize = 64;

/// The maximum number of roles in one catalogue.
pub const MAX_ROLES: usize = 10_000;

/// The maximum number of distinct grants in one catalogue, over all its roles.
///
/// A role takes one bit for each grant, so this limit and [`MAX_ROLES`] together keep a catalogue
/// below 13 MB however its roles inherit.
///
/// The same limit applies to the declared permissions.
pub const MAX_CATALOG_GRANTS: usize = 10_000;

/// The maximum number of unknown roles that one service reports, and of unknown permissions.
///
/// The limit bounds the memory of the reported names, because a directory may return any number of
/// them.
pub const MAX_REPORTED_NAMES: usize = 1_024;

/// The name of a role: 1 to [`MAX_ROLE_NAME_BYTES`] of `[a-z0-9_-]`. A clone shares the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleName(Arc<str>);

/// The error if a text is not a [`RoleName`].
///
/// Positions are byte offsets into the text, which the error does not repeat.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoleNameError {
    /// The text is empty.
    #[error("the name of the role is empty; use 1 to {MAX_ROLE_NAME_BYTES} bytes")]
    Empty,
    /// The text is longer than [`MAX_ROLE_NAME_BYTES`].
    #[error("the name of the role has {bytes} bytes; use {MAX_ROLE_NAME_BYTES} at most")]
    TooLong {
        /// The length of the text, in bytes.
        bytes: usize,
    },
    /// The text has a character other than `a` to `z`, `0` to `9`, `_` and `-`.
    #[error(
        "the name of the role has a character at byte {at} that is not allowed; use a-z, 0-9, '_' and '-'"
    )]
    BadCharacter {
        /// The position where the character begins.
        at: usize,
    },
}

/// The checked roles of a host, the permissions of each role, and the permissions that the host
/// knows.
///
/// A catalogue is immutable. It knows the permissions that its roles grant,
/// [declared](RoleCatalogBuilder::permission) permissions, the permissions of this crate and
/// everything below `scim:`. A grant such as `datastores:*` makes everything below `datastores:`
/// known; a grant of `*` makes no permission known. A scope entry that covers no known permission
/// is most often a typing error; [`UnknownScopes`](crate::policy::UnknownScopes) sets its handling.
#[derive(Debug, Clone)]
pub struct RoleCatalog {
    roles: BTreeMap<RoleName, PermissionSet>,
    declared: Vec<DeclaredPermission>,
    /// The grants that make permissions known, which never include `*`.
    known: PermissionSet,
    reports: Option<Arc<Reports>>,
}

/// A permission of a host, with the texts that a page shows for it.
///
/// ```
/// # use patkit::{DeclaredPermission, RoleCatalog};
/// let catalog = RoleCatalog::standard_builder()
///     .permission("deployments:read")
///     .permission(DeclaredPermission::new("deployments:write").with_label("Deploy").with_group("Deployments"))
///     .build()?;
/// # Ok::<(), patkit::role::RoleError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredPermission {
    name: String,
    label: Option<String>,
    group: Option<String>,
    description: Option<String>,
}

/// A name that the catalogue does not know, most often a typing error. The name is cut after 128
/// bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownName<'a> {
    /// The directory gave this role to an owner.
    Role(&'a str),
    /// A route demanded this permission.
    Permission(&'a str),
}

/// Builds a [`RoleCatalog`] from roles.
///
/// The order of the calls does not matter. Mistakes are reported by [`build`](Self::build).
#[derive(Debug, Clone, Default)]
pub struct RoleCatalogBuilder {
    declared: Vec<DeclaredPermission>,
    roles: Vec<String>,
    /// The role and its parent.
    parents: Vec<(String, String)>,
    /// The role and its grant.
    grants: Vec<(String, String)>,
}

/// The error if roles do not form a [`RoleCatalog`]. Invalid role names are shown escaped.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoleError {
    /// A role is defined under an invalid name.
    #[error(
        "the role name {name:?} is not valid; use 1 to {MAX_ROLE_NAME_BYTES} of a-z, 0-9, '_' and '-'"
    )]
    BadName {
        /// The name, as given.
        name: String,
        /// The reason.
        source: RoleNameError,
    },
    /// A role is defined twice.
    #[error("the role {role} is defined twice; leave out one of the two")]
    Duplicate {
        /// The role.
        role: RoleName,
    },
    /// An undefined role is given a parent or a grant.
    #[error(
        "the role {role:?} is given {given:?}, but is not defined; define the role, or correct its name"
    )]
    UnknownRole {
        /// The name of the role, as given.
        role: String,
        /// The parent or the grant.
        given: String,
    },
    /// A role inherits an undefined role.
    #[error(
        "the role {role} inherits {parent:?}, which is not defined; define the parent, or correct its name"
    )]
    UnknownParent {
        /// The role.
        role: RoleName,
        /// The name of the parent, as given.
        parent: String,
    },
    /// Roles inherit each other in a cycle.
    #[error("roles inherit in a ring; remove one of these inheritances: {}", Ring(.roles))]
    Cycle {
        /// The roles of the cycle: each inherits the next, the last the first.
        roles: Vec<RoleName>,
    },
    /// A role is given a text that is not a grant.
    #[error(
        "the role {role} is given {grant:?}, which is not a grant; write one such as datastores:read or datastores:*"
    )]
    BadGrant {
        /// The role.
        role: RoleName,
        /// The text.
        grant: String,
        /// The reason.
        source: PermissionError,
    },
    /// A declared permission is not concrete.
    #[error(
        "the declared permission {permission:?} is not a concrete one; write one such as datastores:read"
    )]
    BadPermission {
        /// The permission, as declared.
        permission: String,
        /// The reason.
        source: PermissionError,
    },
    /// A permission is declared twice.
    #[error("the permission {permission} is declared twice; leave out one of the two")]
    DuplicatePermission {
        /// The permission.
        permission: String,
    },
    /// More than [`MAX_CATALOG_GRANTS`] permissions are declared.
    #[error("the catalogue declares {count} permissions; declare {MAX_CATALOG_GRANTS} at most")]
    TooManyPermissions {
        /// The number of declared permissions.
        count: usize,
    },
    /// There are more than [`MAX_ROLES`] roles.
    #[error("the catalogue has {count} roles; define {MAX_ROLES} at most")]
    TooManyRoles {
        /// The number of roles.
        count: usize,
    },
    /// There are more than [`MAX_CATALOG_GRANTS`] distinct grants.
    #[error("the catalogue has {count} distinct grants; give {MAX_CATALOG_GRANTS} at most")]
    TooManyGrants {
        /// The number of distinct grants.
        count: usize,
    },
}

impl RoleName {
    /// Parses the name of a role.
    ///
    /// # Errors
    /// [`RoleNameError`] if `text` is empty, is longer than [`MAX_ROLE_NAME_BYTES`] or has a
    /// character outside `[a-z0-9_-]`.
    pub fn parse(text: &str) -> Result<Self, RoleNameError> {
        if text.is_empty() {
            return Err(RoleNameError::Empty);
        }
        if text.len() > MAX_ROLE_NAME_BYTES {
            return Err(RoleNameError::TooLong { bytes: text.len() });
        }
        match text.bytes().position(|byte| !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
        {
            Some(at) => Err(RoleNameError::BadCharacter { at }),
            None => Ok(Self(Arc::from(text))),
        }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl RoleCatalog {
    /// Creates a builder without roles.
    pub fn builder() -> RoleCatalogBuilder {
        RoleCatalogBuilder::default()
    }

    /// Creates the catalogue of the ready-made roles:
    ///
    /// | role | inherits | grants |
    /// |---|---|---|
    /// | `member` | | `tokens:manage` |
    /// | `manager` | `member` | |
    /// | `admin` | `manager` | `service-tokens:manage`, `tokens:scim`, `tokens:oversee` |
    pub fn standard() -> Self {
        Self::standard_builder().build().expect("the ready-made roles are valid")
    }

    /// Creates a builder with the roles of [`standard`](Self::standard), to which a host adds its
    /// own roles and grants.
    pub fn standard_builder() -> RoleCatalogBuilder {
        Self::builder()
            .role("member")
            .grant("member", [TOKENS_MANAGE])
            .role("manager")
            .inherits("manager", "member")
            .role("admin")
            .inherits("admin", "manager")
            .grant("admin", [SERVICE_TOKENS_MANAGE, TOKENS_SCIM, TOKENS_OVERSEE])
    }

    /// Returns all permissions of a role, its own and inherited, or `None` if the role is unknown.
    pub fn permissions_of(&self, role: &str) -> Option<&PermissionSet> {
        self.roles.get(role)
    }

    /// Returns the permissions of an owner that has `roles` and the `direct` grants.
    ///
    /// A role that is not in the catalogue gives nothing.
    pub fn resolve<I>(&self, roles: I, direct: &PermissionSet) -> PermissionSet
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        // Sets of one catalogue share a table, so joining them first is cheap.
        roles
            .into_iter()
            .filter_map(|role| {
                let permissions = self.permissions_of(role.as_ref());
                if permissions.is_none() {
                    self.report(UnknownName::Role(role.as_ref()));
                }
                permissions
            })
            .fold(PermissionSet::empty(), |held, role| held.union(role))
            .union(direct)
    }

    /// Returns the names of the roles, sorted.
    pub fn roles(&self) -> impl Iterator<Item = &RoleName> {
        self.roles.keys()
    }

    /// Returns the declared permissions, in the order of their declaration.
    pub fn declared(&self) -> &[DeclaredPermission] {
        &self.declared
    }

    /// Returns whether the catalogue knows a permission.
    pub fn knows(&self, permission: &Permission) -> bool {
        self.known.allows(permission)
    }

    /// Returns whether the catalogue [`knows`](Self::knows) a permission given as text. Does not
    /// allocate.
    pub(crate) fn knows_text(&self, permission: &str) -> bool {
        matches!(self.known.allows_str(permission), Ok(true))
    }

    /// Returns whether a scope entry covers a permission that the catalogue knows or that is in
    /// `held`.
    pub(crate) fn knows_entry(&self, entry: &Grant, held: &PermissionSet) -> bool {
        self.known.makes_known(entry) || held.makes_known(entry)
    }

    /// Returns the grant that an unknown scope entry was likely meant to be.
    ///
    /// The grant is known to the catalogue or in `held`. It is always covered by `held`, so that
    /// nobody learns of a permission that they do not hold.
    pub(crate) fn likely_entry(&self, entry: &Grant, held: &PermissionSet) -> Option<Grant> {
        let known = self.known.iter().filter(|known| held.covers_grant(known));
        likely(entry.as_str(), known.chain(held.iter())).cloned()
    }

    /// Calls `listener` once for each unknown name, for up to [`MAX_REPORTED_NAMES`] of each kind.
    pub(crate) fn reporting_to(
        self,
        listener: impl Fn(UnknownName<'_>) + Send + Sync + 'static,
    ) -> Self {
        Self { reports: Some(Arc::new(Reports::new(Box::new(listener)))), ..self }
    }

    /// Reports a name that the catalogue does not know.
    #[cold]
    pub(crate) fn report(&self, name: UnknownName<'_>) {
        if let Some(reports) = &self.reports {
            reports.report(name);
        }
    }
}

impl DeclaredPermission {
    /// Creates a concrete permission, such as `datastores:read`.
    ///
    /// [`RoleCatalogBuilder::build`] refuses a text that is not a concrete permission.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), label: None, group: None, description: None }
    }

    /// Sets the label that a page shows for the permission.
    pub fn with_label(mut self, label: &str) -> Self {
        self.label = Some(label.to_owned());
        self
    }

    /// Sets the heading under which a page shows the permission.
    pub fn with_group(mut self, group: &str) -> Self {
        self.group = Some(group.to_owned());
        self
    }

    /// Sets the description that a page shows for the permission.
    pub fn with_description(mut self, description: &str) -> Self {
        self.description = Some(description.to_owned());
        self
    }

    /// Returns the permission as text.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Returns the label that a page shows for the permission.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// Returns the heading under which a page shows the permission.
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// Returns the description that a page shows for the permission.
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }
}

impl From<&str> for DeclaredPermission {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl UnknownName<'_> {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Role(name) | Self::Permission(name) => name,
        }
    }
}

impl fmt::Display for UnknownName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role(name) => write!(
                f,
                "the role catalogue does not know the role {name:?} of an owner, so that the role grants nothing; correct the \
                 directory, or define the role with RoleCatalogBuilder::role"
            ),
            Self::Permission(name) => write!(
                f,
                "the role catalogue does not know the permission {name:?}, which a route demands; correct the route, or declare \
                 the permission with RoleCatalogBuilder::permission"
            ),
        }
    }
}

type Listener = Box<dyn Fn(UnknownName<'_>) + Send + Sync>;

/// Reports each unknown name once.
struct Reports {
    listener: Listener,
    /// The hasher's keys are random, so that nobody can choose a name that hides another.
    hasher: RandomState,
    roles: Seen,
    permissions: Seen,
}

/// The hashes of the reported names. Readers take no lock.
struct Seen {
    /// Zero marks a free slot.
    hashes: Box<[AtomicU64; MAX_REPORTED_NAMES]>,
    is_full: AtomicBool,
}

impl Reports {
    fn new(listener: Listener) -> Self {
        Self { listener, hasher: RandomState::new(), roles: Seen::new(), permissions: Seen::new() }
    }

    fn report(&self, name: UnknownName<'_>) {
        let seen = match name {
            UnknownName::Role(_) => &self.roles,
            UnknownName::Permission(_) => &self.permissions,
        };
        if seen.is_full.load(Ordering::Relaxed)
            || !seen.insert(self.hasher.hash_one(name.as_str()).max(1))
        {
            return;
        }
        (self.listener)(match name {
            UnknownName::Role(name) => UnknownName::Role(beginning(name)),
            UnknownName::Permission(name) => UnknownName::Permission(beginning(name)),
        });
    }
}

impl Seen {
    fn new() -> Self {
        let hashes = [const { AtomicU64::new(0) }; MAX_REPORTED_NAMES];
        Self { hashes: Box::new(hashes), is_full: AtomicBool::new(false) }
    }

    /// Returns whether the hash was missing and has been added.
    fn insert(&self, hash: u64) -> bool {
        let first = shard::index_of::<MAX_REPORTED_NAMES>(hash);
        // Every lookup of a name probes the same slots in the same order, so that no two threads
        // add it twice.
        for slot in self.hashes.iter().cycle().skip(first).take(MAX_REPORTED_NAMES) {
            match slot.compare_exchange(0, hash, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(found) if found == hash => return false,
                Err(_) => {}
            }
        }
        self.is_full.store(true, Ordering::Relaxed);
        false
    }
}

/// Returns at most the first 128 bytes of a name.
///
/// A directory or a route may give a name of any length.
pub(crate) fn beginning(name: &str) -> &str {
    let mut ends = (0..=name.len().min(128)).rev();
    ends.find_map(|end| name.get(..end)).expect("every text begins with the empty text")
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reports").finish_non_exhaustive()
    }
}

impl RoleCatalogBuilder {
    /// Defines a role, which grants nothing until [`grant`](Self::grant) or
    /// [`inherits`](Self::inherits) adds to it.
    pub fn role(mut self, name: &str) -> Self {
        self.roles.push(name.to_owned());
        self
    }

    /// Lets a role also inherit all that `parent` gives.
    pub fn inherits(mut self, role: &str, parent: &str) -> Self {
        self.parents.push((role.to_owned(), parent.to_owned()));
        self
    }

    /// Adds grants to a role.
    pub fn grant<I>(mut self, role: &str, grants: I) -> Self
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        self.grants
            .extend(grants.into_iter().map(|grant| (role.to_owned(), grant.as_ref().to_owned())));
        self
    }

    /// Declares a permission that the host has, whether or not a role grants it.
    pub fn permission(mut self, permission: impl Into<DeclaredPermission>) -> Self {
        self.declared.push(permission.into());
        self
    }

    /// Checks the roles and computes the permissions of each.
    ///
    /// # Errors
    /// The first [`RoleError`] found: a bad or repeated name, an unknown role or parent, a bad
    /// grant, too many roles or grants, or roles that inherit in a cycle.
    pub fn build(mut self) -> Result<RoleCatalog, RoleError> {
        let declared = std::mem::take(&mut self.declared);
        let mut known = checked(&declared)?;
        let drafts = self.drafts()?;
        // Each role is a selection from this set, and joining two roles is joining bits. A long
        // chain of roles, each with a grant of its own, therefore does not copy its grants
        // repeatedly.
        let all: PermissionSet = drafts.values().flat_map(|draft| &draft.grants).cloned().collect();
        let count = all.len();
        if count > MAX_CATALOG_GRANTS {
            return Err(RoleError::TooManyGrants { count });
        }
        let mut roles: BTreeMap<RoleName, PermissionSet> = BTreeMap::new();
        for (name, draft) in parents_first(&drafts)? {
            let own = all.select(&draft.grants);
            let parents =
                draft.parents.iter().map(|parent| roles.get(parent).expect("parents come first"));
            let closure = parents.fold(own, |held, parent| held.union(parent));
            roles.insert(name.clone(), closure);
        }
        known.extend(all.iter().filter(|grant| !grant.is_everything()).cloned());
        known.extend(
            OWN.map(|text| Grant::parse(text).expect("this crate's permissions are grants")),
        );
        Ok(RoleCatalog { roles, declared, known: known.into_iter().collect(), reports: None })
    }

    /// Parses everything and checks that every name is that of a defined role.
    fn drafts(self) -> Result<BTreeMap<RoleName, Draft>, RoleError> {
        let count = self.roles.len();
        if count > MAX_ROLES {
            return Err(RoleError::TooManyRoles { count });
        }
        let mut drafts: BTreeMap<RoleName, Draft> = BTreeMap::new();
        for name in self.roles {
            let role =
                RoleName::parse(&name).map_err(|source| RoleError::BadName { name, source })?;
            if drafts.insert(role.clone(), Draft::default()).is_some() {
                return Err(RoleError::Duplicate { role });
            }
        }
        for (name, parent) in self.parents {
            let Some(role) = defined(&drafts, &name) else {
                return Err(RoleError::UnknownRole { role: name, given: parent });
            };
            let Some(parent) = defined(&drafts, &parent) else {
                return Err(RoleError::UnknownParent { role, parent });
            };
            drafts.entry(role).or_default().parents.insert(parent);
        }
        for (name, grant) in self.grants {
            let Some(role) = defined(&drafts, &name) else {
                return Err(RoleError::UnknownRole { role: name, given: grant });
            };
            match Grant::parse(&grant) {
                Ok(grant) => drafts.entry(role).or_default().grants.push(grant),
                Err(source) => return Err(RoleError::BadGrant { role, grant, source }),
            }
        }
        Ok(drafts)
    }
}

impl fmt::Debug for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RoleName").field(&self.0).finish()
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for RoleName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for RoleName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for RoleName {
    type Err = RoleNameError;

    fn from_str(text: &str) -> Result<Self, RoleNameError> {
        Self::parse(text)
    }
}

impl TryFrom<&str> for RoleName {
    type Error = RoleNameError;

    fn try_from(text: &str) -> Result<Self, RoleNameError> {
        Self::parse(text)
    }
}

/// The permissions that every catalogue knows: those of this crate and of SCIM (RFC 7644).
const OWN: [&str; 6] =
    [TOKENS_MANAGE, SERVICE_TOKENS_MANAGE, TOKENS_SCIM, TOKENS_OVERSEE, TOKENS_INTROSPECT, SCIM];

/// Returns the declared permissions as grants.
fn checked(declared: &[DeclaredPermission]) -> Result<BTreeSet<Grant>, RoleError> {
    let count = declared.len();
    if count > MAX_CATALOG_GRANTS {
        return Err(RoleError::TooManyPermissions { count });
    }
    let mut known = BTreeSet::new();
    for DeclaredPermission { name, .. } in declared {
        let permission = Permission::parse(name)
            .map_err(|source| RoleError::BadPermission { permission: name.clone(), source })?;
        if !known.insert(Grant::from(permission)) {
            return Err(RoleError::DuplicatePermission { permission: name.clone() });
        }
    }
    Ok(known)
}

/// A role whose parents are not resolved yet.
#[derive(Default)]
struct Draft {
    parents: BTreeSet<RoleName>,
    grants: Vec<Grant>,
}

fn defined(drafts: &BTreeMap<RoleName, Draft>, name: &str) -> Option<RoleName> {
    drafts.get_key_value(name).map(|(role, _)| role.clone())
}

/// Orders the roles so that each comes after its parents.
///
/// Does not recurse, because a chain of roles may be as long as the catalogue.
fn parents_first(
    drafts: &BTreeMap<RoleName, Draft>,
) -> Result<Vec<(&RoleName, &Draft)>, RoleError> {
    let mut children: HashMap<&RoleName, Vec<&RoleName>> = HashMap::new();
    // The number of parents of a role that have not come yet.
    let mut waiting: BTreeMap<&RoleName, usize> = BTreeMap::new();
    for (role, draft) in drafts {
        waiting.insert(role, draft.parents.len());
        for parent in &draft.parents {
            children.entry(parent).or_default().push(role);
        }
    }
    let mut ready: Vec<&RoleName> =
        drafts.keys().filter(|role| waiting.get(role) == Some(&0)).collect();
    let mut order = Vec::new();
    while let Some(role) = ready.pop() {
        waiting.remove(role);
        order.push(drafts.get_key_value(role).expect("only defined roles are ordered"));
        for child in children.remove(role).into_iter().flatten() {
            let parents = waiting.get_mut(child).expect("a role waits until its last parent came");
            *parents = parents.saturating_sub(1);
            if *parents == 0 {
                ready.push(child);
            }
        }
    }
    match waiting.keys().next() {
        None => Ok(order),
        Some(stuck) => Err(RoleError::Cycle { roles: ring(drafts, &waiting, stuck) }),
    }
}

/// Returns a cycle: follows waiting roles to their waiting parents until a role comes up again.
fn ring(
    drafts: &BTreeMap<RoleName, Draft>,
    waiting: &BTreeMap<&RoleName, usize>,
    start: &RoleName,
) -> Vec<RoleName> {
    let mut path = Vec::new();
    let mut seen = HashMap::new();
    let mut next = Some(start);
    while let Some(role) = next {
        if let Some(first) = seen.insert(role, path.len()) {
            return path.into_iter().skip(first).collect();
        }
        path.push(role.clone());
        let parents = drafts.get(role).into_iter().flat_map(|draft| &draft.parents);
        next = parents.into_iter().find(|parent| waiting.contains_key(parent));
    }
    path
}

/// Shows a cycle of roles. A long one is shown in part, because the error may end up in one line of
/// a log.
struct Ring<'a>(&'a [RoleName]);

impl fmt::Display for Ring<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        for role in self.0.iter().take(SHOWN) {
            write!(f, "{role} -> ")?;
        }
        match (self.0.len().checked_sub(SHOWN), self.0.first()) {
            (Some(left), _) if left > 0 => write!(f, "({left} more)"),
            (_, Some(first)) => write!(f, "{first}"),
            (_, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(catalog: &RoleCatalog, role: &str) -> Vec<String> {
        catalog.permissions_of(role).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_ready_made_roles_inherit_and_may_be_added_to() {
        let catalog = RoleCatalog::standard_builder()
            .grant("member", ["datastores:read"])
            .role("operator")
            .inherits("operator", "manager")
            .grant("operator", ["datastores:*"])
            .inherits("admin", "operator")
            .build()
            .unwrap();
        assert_eq!(held(&catalog, "member"), ["datastores:read", "tokens:manage"]);
        assert_eq!(held(&catalog, "manager"), held(&catalog, "member"));
        assert_eq!(
            held(&catalog, "admin"),
            [
                "datastores:*",
                "datastores:read",
                "service-tokens:manage",
                "tokens:manage",
                "tokens:oversee",
                "tokens:scim"
            ]
        );
        let names: Vec<&str> = catalog.roles().map(RoleName::as_str).collect();
        assert_eq!(names, ["admin", "manager", "member", "operator"]);
    }

    #[test]
    fn unknown_roles_give_nothing() {
        let catalog = RoleCatalog::standard();
        let direct = PermissionSet::parse(["a:b"]).unwrap();
        assert!(catalog.permissions_of("owner").is_none());
        assert_eq!(catalog.resolve(["owner", "Admin", ""], &direct), direct);
        assert_eq!(catalog.resolve([""; 0], &PermissionSet::empty()), PermissionSet::empty());
        let both = catalog.resolve(["member", "owner"], &direct);
        assert_eq!(both, PermissionSet::parse(["a:b", "tokens:manage"]).unwrap());
        let named: Vec<RoleName> = catalog.roles().cloned().collect();
        assert_eq!(
            catalog.resolve(&named, &PermissionSet::empty()),
            *catalog.permissions_of("admin").unwrap()
        );
    }

    #[test]
    fn a_role_does_not_get_what_its_children_have() {
        let catalog = RoleCatalog::builder()
            .role("left")
            .inherits("left", "base")
            .grant("left", ["l"])
            .role("right")
            .inherits("right", "base")
            .grant("right", ["r"])
            .role("both")
            .inherits("both", "left")
            .inherits("both", "right")
            .role("base")
            .grant("base", ["*"])
            .grant("base", ["b"])
            .role("apart")
            .grant("apart", ["x"])
            .build()
            .unwrap();
        assert_eq!(held(&catalog, "both"), ["*", "b", "l", "r"]);
        assert_eq!(held(&catalog, "left"), ["*", "b", "l"]);
        assert_eq!(held(&catalog, "apart"), ["x"]);
        assert_eq!(catalog.permissions_of("apart").unwrap().allows_str("l"), Ok(false));
    }

    #[test]
    fn a_line_of_roles_may_be_as_long_as_a_catalogue() {
        let mut builder = RoleCatalog::builder().role("r0").grant("r0", ["p0"]);
        for at in 1..MAX_ROLES {
            builder = builder
                .role(&format!("r{at}"))
                .inherits(&format!("r{at}"), &format!("r{}", at - 1))
                .grant(&format!("r{at}"), [&format!("p{at}")]);
        }
        let catalog = builder.clone().build().unwrap();
        assert_eq!(catalog.permissions_of("r9999").unwrap().len(), MAX_ROLES);
        assert_eq!(catalog.permissions_of("r9999").unwrap().allows_str("p0"), Ok(true));
        assert_eq!(catalog.permissions_of("r500").unwrap().allows_str("p501"), Ok(false));

        let Err(RoleError::Cycle { roles }) = builder.clone().inherits("r0", "r9999").build()
        else {
            panic!("a ring was not found");
        };
        assert_eq!(roles.len(), MAX_ROLES);
        let shown = RoleError::Cycle { roles }.to_string();
        assert!(shown.ends_with("(9990 more)") && shown.len() < 200, "{shown}");

        let too_many = builder.role("one-more").build();
        assert_eq!(too_many.unwrap_err(), RoleError::TooManyRoles { count: MAX_ROLES + 1 });
    }

    #[test]
    fn the_number_of_distinct_grants_is_bounded() {
        let grants: Vec<String> = (0..=MAX_CATALOG_GRANTS).map(|at| format!("p{at}")).collect();
        let full = RoleCatalog::builder().role("r").grant("r", grants.iter().skip(1));
        assert!(full.clone().grant("r", ["p1"]).build().is_ok());
        assert_eq!(
            full.grant("r", ["p0"]).build().unwrap_err(),
            RoleError::TooManyGrants { count: MAX_CATALOG_GRANTS + 1 }
        );
    }

    #[test]
    fn a_ring_names_the_roles_on_it_alone() {
        let built = RoleCatalog::builder()
            .role("0-below")
            .inherits("0-below", "a")
            .role("a")
            .inherits("a", "b")
            .inherits("a", "above")
            .role("b")
            .inherits("b", "c")
            .role("c")
            .inherits("c", "a")
            .role("above")
            .build();
        let Err(RoleError::Cycle { roles }) = built else {
            panic!("a ring was not found");
        };
        assert_eq!(roles.iter().map(RoleName::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
        let error = RoleError::Cycle { roles };
        assert_eq!(
            error.to_string(),
            "roles inherit in a ring; remove one of these inheritances: a -> b -> c -> a"
        );

        let itself = RoleCatalog::builder().role("a").inherits("a", "a").build().unwrap_err();
        assert_eq!(
            itself.to_string(),
            "roles inherit in a ring; remove one of these inheritances: a -> a"
        );
    }
}
