//! A host whose tokens are in SQLite, through rusqlite.
//!
//! [`driver`] is all that patkit needs to know of rusqlite. [`pool`] is the pool that the host has
//! anyway.

pub mod driver;
pub mod pool;
