//! The tests of the stores in SQLite and PostgreSQL, one module for each topic.

mod conformance;
mod errors;
mod export;
mod faults;
#[allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, unreachable_pub, reason = "tests")]
#[path = "../support/follows.rs"]
mod follows;
mod mariadb;
mod names;
mod names_of_another_unicode;
mod queries;
mod queries_sqlite;
mod setup;
mod tokio_postgres;
mod within;
