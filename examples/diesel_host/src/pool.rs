//! The host's pool.

use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::deadpool::{BuildError, Pool};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
};
use std::time::Duration;

/// Returns a pool of connections to the database at a URL.
pub fn pool(url: &str, size: usize) -> Result<Pool<AsyncPgConnection>, BuildError> {
    let mut config = ManagerConfig::default();
    // By default, each use of a connection begins with a query that checks it.
    config.recycling_method = RecyclingMethod::Fast;
    // A request would otherwise wait for ever if all connections are in use.
    let patience = Some(Duration::from_secs(20));
    Pool::builder(AsyncDieselConnectionManager::new_with_config(url, config))
        .max_size(size)
        .wait_timeout(patience)
        .create_timeout(patience)
        .runtime(deadpool::Runtime::Tokio1)
        .build()
}
