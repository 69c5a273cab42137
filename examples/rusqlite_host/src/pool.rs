//! A small pool of rusqlite's connections.

use rusqlite::Connection;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// The longest wait for a connection, and of a change for another one.
const PATIENCE: Duration = Duration::from_secs(30);

/// A pool of connections to one file. A clone is cheap and shares the connections.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    file: PathBuf,
    size: u32,
    /// One permit for each connection that may be lent.
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

/// The reason why a statement was not run.
#[derive(Debug)]
pub enum Error {
    /// No connection became free in time.
    Busy,
    /// An earlier call was dropped while it ran, and took the connection with it.
    Lost,
    Sqlite(rusqlite::Error),
}

/// A connection that the pool lent.
///
/// When it is dropped, its transaction is rolled back and the pool has it again.
pub struct Lent(Option<Owned>);

struct Owned {
    connection: Option<Connection>,
    pool: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    /// Opens a file, or creates it.
    pub fn open(file: &Path, size: u32) -> rusqlite::Result<Self> {
        // The first connection switches a new file to WAL before there are others.
        let idle = Mutex::new(vec![open(file)?]);
        let permits = usize::try_from(size).expect("a pool has few connections");
        let permits = Arc::new(Semaphore::new(permits));
        Ok(Self(Arc::new(Shared { file: file.to_owned(), size, permits, idle })))
    }

    /// Returns the maximum number of connections.
    pub fn size(&self) -> u32 {
        self.0.size
    }

    /// Waits for a connection.
    pub async fn get(&self) -> Result<Lent, Error> {
        let permit = timeout(PATIENCE, self.0.permits.clone().acquire_owned()).await;
        let permit = permit.map_err(|_| Error::Busy)?.expect("the semaphore is never closed");
        let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let pool = self.0.clone();
                let opened = spawn_blocking(move || open(&pool.file)).await;
                opened.map_err(|_| Error::Lost)?.map_err(Error::Sqlite)?
            }
        };
        let pool = self.0.clone();
        Ok(Lent(Some(Owned { connection: Some(connection), pool, _permit: permit })))
    }
}

impl Lent {
    /// Runs work on this thread. Only for work that takes microseconds.
    pub fn call_here<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let owned = self.0.as_ref().ok_or(Error::Lost)?;
        work(owned.connection()).map_err(Error::Sqlite)
    }

    /// Runs work on a thread that may block.
    ///
    /// If the future is dropped, the work ends nevertheless, and then the connection is rolled back
    /// and the pool has it again. All further calls return [`Error::Lost`].
    pub async fn call<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let owned = self.0.take().ok_or(Error::Lost)?;
        let work = move || {
            let result = work(owned.connection());
            (owned, result)
        };
        let (owned, result) = spawn_blocking(work).await.map_err(|_| Error::Lost)?;
        self.0 = Some(owned);
        result.map_err(Error::Sqlite)
    }

    /// Gives the connection back. All further calls return [`Error::Lost`].
    pub fn give_back(&mut self) {
        self.0 = None;
    }
}

impl Owned {
    fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("only the drop takes the connection")
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        // A connection that cannot be rolled back is closed instead.
        if connection.is_autocommit() || connection.execute_batch("ROLLBACK").is_ok() {
            self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("no connection became free in time"),
            Self::Lost => f.write_str("an earlier call was dropped and took the connection"),
            Self::Sqlite(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

fn open(file: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(PATIENCE)?;
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}
