//! Writes errors as sentences, for `Debug`, which `main` uses to print an error.

use std::error::Error;
use std::fmt;

/// Writes an error and all of its causes as one sentence.
pub(crate) fn write(error: &dyn Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{error}")?;
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
}
