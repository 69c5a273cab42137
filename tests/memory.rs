//! The tests over the in-memory store, with one module for each topic. `cargo test -p patkit-tests
//! rotation::` runs the tests of one topic.

mod adversary;
mod bad_input;
mod cached;
mod conformance;
mod family;
mod faults;
mod former_bearer;
mod keys;
mod lifecycle;
mod management;
mod names;
mod owner_cache;
mod permission;
mod races;
mod realms;
mod record;
mod rotation;
mod texts;
mod unknown_names;
mod usage;
mod verification;
