//! A host whose tokens are in PostgreSQL, through diesel-async.
//!
//! [`driver`] is all that patkit needs to know of diesel-async.

pub mod driver;
pub mod pool;
