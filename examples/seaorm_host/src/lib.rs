//! A host whose tokens are in PostgreSQL, through SeaORM.
//!
//! SeaORM's pool is a pool of sqlx, for which patkit has a driver. What is missing is the
//! transaction of SeaORM, which [`driver`] adds.

pub mod driver;
