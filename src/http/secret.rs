//! Bodies with a secret. Each is written once, into memory that is wiped when its last reference is
//! dropped.

use bytes::Bytes;
use serde::Serialize;
use std::io::{self, Write};
use zeroize::Zeroizing;

/// Counts bytes and stores none.
struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a value as JSON into a buffer that is wiped when it is dropped.
///
/// The value is written twice, the first time to count its bytes, because a growing buffer would
/// leave copies behind.
///
/// # Errors
/// The serializer's error.
pub(super) fn json<T: Serialize>(value: &T) -> serde_json::Result<Bytes> {
    let mut length = Count(0);
    serde_json::to_writer(&mut length, value)?;
    let mut buffer = Zeroizing::new(vec![0; length.0]);
    // A slice does not grow, so a value that is longer this time would be an error.
    serde_json::to_writer(buffer.as_mut_slice(), value)?;
    Ok(Bytes::from_owner(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_written_as_serde_json_writes_it() {
        for value in [serde_json::json!({}), serde_json::json!({"a": "é\"\n", "b": [1, null, 2.5]})]
        {
            assert_eq!(json(&value).unwrap(), serde_json::to_vec(&value).unwrap());
        }
    }

    #[test]
    fn a_value_that_grows_is_an_error_and_no_longer_buffer() {
        struct Growing(std::cell::Cell<usize>);
        impl Serialize for Growing {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.set(self.0.get() + 1);
                serializer.serialize_str(&"x".repeat(self.0.get()))
            }
        }
        assert!(json(&Growing(std::cell::Cell::new(0))).is_err());
    }
}
