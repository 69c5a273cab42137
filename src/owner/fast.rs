//! Directory lookups that a verification need not wait for.
//!
//! Only this crate's own directories have such a shortcut, because no other crate can name its
//! type.

use super::cache::Answers;
use super::{MemoryDirectory, Owner, OwnerId, Realm};
use crate::snapshot::Snapshot;
use std::fmt;

/// The part of a directory that answers at once.
#[derive(Clone, Copy)]
pub struct DirectoryShortcut<'a>(Kind<'a>);

#[derive(Clone, Copy)]
enum Kind<'a> {
    None,
    Memory(&'a MemoryDirectory),
    Cache(&'a Answers),
}

impl<'a> DirectoryShortcut<'a> {
    pub(super) const fn none() -> Self {
        Self(Kind::None)
    }

    #[inline]
    pub(super) const fn memory(directory: &'a MemoryDirectory) -> Self {
        Self(Kind::Memory(directory))
    }

    #[inline]
    pub(super) const fn cache(answers: &'a Answers) -> Self {
        Self(Kind::Cache(answers))
    }

    /// Returns the owner, or `None` if the directory has to be asked.
    ///
    /// The inner `None` means that there is no such owner.
    #[allow(clippy::option_option, reason = "not known, or known that there is no such owner")]
    #[inline]
    pub(crate) fn find(self, realm: &Realm, id: &OwnerId) -> Option<Option<Snapshot<Owner>>> {
        match self.0 {
            Kind::None => None,
            Kind::Memory(directory) => Some(directory.lend(realm, id)),
            Kind::Cache(answers) => answers.find(realm, id).map(|owner| owner.map(Snapshot::from)),
        }
    }
}

impl fmt::Debug for DirectoryShortcut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryShortcut").finish_non_exhaustive()
    }
}
