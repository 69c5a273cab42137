//! The tests of the stores in SQLite and PostgreSQL, one module for each topic.

mod conformance;
mod errors;
mod export;
mod names;
mod names_of_another_unicode;
mod queries;
mod queries_sqlite;
mod setup;
mod within;
