//! Tokens and events as bytes.
//!
//! patkit turns a record into a list of values and back. A store may write those values in any
//! form, as long as they come back unchanged. This store writes them as JSON.

use patkit::store::CorruptRecord;
use patkit::store::record::{Value, event_values, read_event, read_token, token_values};
use patkit::{AuditEvent, Token};
use serde::{Deserialize, Serialize};

/// A [`Value`] that serde can write and read.
#[derive(Serialize, Deserialize)]
enum Cell {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

/// Returns the bytes to store for a token.
pub fn encode_token(token: &Token) -> Vec<u8> {
    encode(token_values(token))
}

/// Reads a stored token.
///
/// # Errors
/// Returns the place of the fault if the bytes are not a token.
pub fn decode_token(bytes: &[u8]) -> Result<Token, CorruptRecord> {
    read_token(&*decode(bytes), "tokens")
}

/// Returns the bytes to store for an event.
pub fn encode_event(event: &AuditEvent) -> Vec<u8> {
    encode(event_values(event))
}

/// Reads a stored event.
///
/// # Errors
/// Returns the place of the fault if the bytes are not an event.
pub fn decode_event(bytes: &[u8]) -> Result<AuditEvent, CorruptRecord> {
    read_event(&*decode(bytes), "events")
}

fn encode(values: Vec<Value>) -> Vec<u8> {
    let cells = values.into_iter().map(|value| match value {
        Value::Int(int) => Cell::Int(int),
        Value::Text(text) => Cell::Text(text),
        Value::Bytes(bytes) => Cell::Bytes(bytes),
    });
    serde_json::to_vec(&cells.collect::<Vec<_>>())
        .expect("integers, texts and bytes are always JSON")
}

/// Returns no values if the bytes are damaged, which the caller then reports as a corrupt record.
fn decode(bytes: &[u8]) -> Vec<Value> {
    let cells: Vec<Cell> = serde_json::from_slice(bytes).unwrap_or_default();
    let values = cells.into_iter().map(|cell| match cell {
        Cell::Int(int) => Value::Int(int),
        Cell::Text(text) => Value::Text(text),
        Cell::Bytes(bytes) => Value::Bytes(bytes),
    });
    values.collect()
}
