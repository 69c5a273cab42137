//! The driver: patkit's statements in a transaction of SeaORM.

use patkit::SqlStore;
use patkit::store::sql::{Connection, Postgres, Row, SqlError, SqlStoreBuilder, Statement, Value};
use sea_orm::sqlx::{self, PgPool, Row as _};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult,
    RuntimeErr, TransactionTrait,
};

/// Returns a builder for a store on the pool of SeaORM, which must be one of PostgreSQL.
pub fn store(connection: &DatabaseConnection) -> SqlStoreBuilder<PgPool> {
    SqlStore::builder(connection.get_postgres_connection_pool().clone())
}

/// A transaction of the host's that changes of tokens can join.
///
/// Dropping it rolls it back.
pub struct Transaction(Option<DatabaseTransaction>);

impl Transaction {
    pub async fn begin(connection: &DatabaseConnection) -> Result<Self, DbErr> {
        Ok(Self(Some(connection.begin().await?)))
    }

    /// Returns the transaction of SeaORM. Fails if a call of patkit has failed or was dropped, as
    /// the transaction was rolled back then.
    pub fn get(&self) -> Result<&DatabaseTransaction, DbErr> {
        self.0.as_ref().ok_or_else(|| DbErr::Custom("the transaction was rolled back".into()))
    }

    pub async fn commit(mut self) -> Result<(), DbErr> {
        self.get()?;
        match self.0.take() {
            Some(transaction) => transaction.commit().await,
            None => Ok(()),
        }
    }
}

impl Connection for Transaction {
    type Engine = Postgres;
    type Row = Cells;

    async fn fetch(&mut self, statement: Statement) -> Result<Vec<Cells>, SqlError> {
        let transaction = self.get().map_err(failed)?;
        let rows = transaction.query_all_raw(bound(statement)).await.map_err(failed)?;
        Ok(rows.into_iter().map(Cells).collect())
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        let transaction = self.get().map_err(failed)?;
        let changed = transaction.execute_raw(bound(statement)).await.map_err(failed)?;
        Ok(changed.rows_affected())
    }

    async fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        let transaction = self.get().map_err(failed)?;
        transaction.execute_unprepared(sql).await.map(drop).map_err(failed)
    }

    fn abandon(&mut self) {
        self.0 = None;
    }
}

/// Returns the statement for SeaORM, which keeps every statement prepared.
fn bound(statement: Statement) -> sea_orm::Statement {
    let sql = statement.sql().to_owned();
    let values = statement.into_values().into_iter().map(|value| match value {
        Value::Int(value) => value.into(),
        Value::Text(value) => value.into(),
        Value::Bytes(value) => value.into(),
    });
    sea_orm::Statement::from_sql_and_values(DbBackend::Postgres, sql, values)
}

/// A row.
pub struct Cells(QueryResult);

impl Row for Cells {
    fn int(&self, index: usize) -> Option<Option<i64>> {
        self.0.try_as_pg_row()?.try_get(index).ok()
    }

    fn text(&self, index: usize) -> Option<Option<&str>> {
        self.0.try_as_pg_row()?.try_get(index).ok()
    }

    fn bytes(&self, index: usize) -> Option<Option<&[u8]>> {
        self.0.try_as_pg_row()?.try_get(index).ok()
    }
}

fn failed(error: DbErr) -> SqlError {
    let (DbErr::Exec(RuntimeErr::SqlxError(of_sqlx))
    | DbErr::Query(RuntimeErr::SqlxError(of_sqlx))) = &error
    else {
        return SqlError::failed(&error);
    };
    match &**of_sqlx {
        sqlx::Error::Database(of_database) => {
            SqlError::reported(&of_database.code().unwrap_or_default(), of_database.message())
        }
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) => SqlError::unreachable(&error),
        _ => SqlError::failed(&error),
    }
}
