//! The sources of randomness. No other file asks the system for it.

use rand::TryRng;
use rand::rngs::SysRng;

/// The source of secrets and ids: the operating system's generator, or a CSPRNG seeded from it.
///
/// Every unguessable bit of every token comes from here. Replace it only with a hardware generator
/// or, in tests, with one that fails.
pub trait SecureRandom: Send + Sync {
    /// Fills `buffer` with unpredictable bytes.
    ///
    /// # Errors
    /// [`RandomError`] if the generator fails. Then no token is made.
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RandomError>;
}

/// The generator failed. The bytes that it gave before the failure were not used.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the random generator of the operating system failed, so that no secret was made; try again"
)]
#[non_exhaustive]
pub struct RandomError;

impl RandomError {
    /// Creates the error.
    pub const fn new() -> Self {
        Self
    }
}

impl Default for RandomError {
    fn default() -> Self {
        Self::new()
    }
}

/// The operating system's generator.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct SystemRandom;

impl SystemRandom {
    /// Creates the operating system's generator.
    pub const fn new() -> Self {
        Self
    }
}

impl SecureRandom for SystemRandom {
    #[allow(clippy::disallowed_methods)]
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RandomError> {
        SysRng.try_fill_bytes(buffer).map_err(|_| RandomError)
    }
}
