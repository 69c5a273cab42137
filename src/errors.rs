//! The errors that a host may return from `main`: their `Debug` is one sentence.

use crate::sentence;
use std::fmt;

/// Implements `Debug` for errors by [`sentence::write`].
///
/// A macro, because no function implements a trait for several types.
macro_rules! debug_is_a_sentence {
    ($($error:ty),+ $(,)?) => {$(
        impl fmt::Debug for $error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                sentence::write(self, f)
            }
        }
    )+};
}

debug_is_a_sentence!(
    crate::lifecycle::Refusal,
    crate::owner::DirectoryError,
    crate::owner::IdError,
    crate::owner::cache::OwnerCacheError,
    crate::permission::PermissionError,
    crate::permission::ScopeError,
    crate::policy::LifetimeError,
    crate::policy::PolicyError,
    crate::random::RandomError,
    crate::role::RoleError,
    crate::role::RoleNameError,
    crate::service::BuildError,
    crate::service::CheckError,
    crate::service::InvalidInput,
    crate::service::PermissionDenied,
    crate::service::Unavailable,
    crate::store::Conflict,
    crate::store::CorruptRecord,
    crate::store::StoreError,
    crate::token::BrandError,
    crate::token::KeyringEnvError,
    crate::token::KeyringError,
    crate::token::NameError,
    crate::token::NetworkError,
    crate::token::NetworksError,
    crate::token::TokenFormatError,
    crate::token::TokenIdError,
);

#[cfg(feature = "api")]
debug_is_a_sentence!(crate::http::OriginError);
#[cfg(feature = "cache")]
debug_is_a_sentence!(crate::store::cached::CacheError);
#[cfg(feature = "sql")]
debug_is_a_sentence!(crate::store::sql::SetupError);
#[cfg(feature = "testkit")]
debug_is_a_sentence!(crate::testkit::FakeTokenError);
#[cfg(feature = "tower")]
debug_is_a_sentence!(crate::http::RealmError);
