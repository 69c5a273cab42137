//! Rows for the tables of an SQL store, inserted directly. The benches of drivers outside this
//! workspace include this file.

/// The number of tokens of each owner.
pub const PER_OWNER: u64 = 10;
/// A thousandth of the tokens ended before this instant, in microseconds.
pub const ENDED: u64 = 1_000;

/// A database engine.
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    Sqlite,
    Postgres,
    MariaDb,
}

/// Returns the statements that insert this many tokens, update the statistics of the planner and
/// write all to the disk. One connection must run them all.
///
/// The n-th token was created in the n-th millisecond of 1970 and belongs to one of `size / 10` owners, and the first thousandth is revoked.
pub fn insert(engine: Engine, table: &str, size: u64) -> Vec<String> {
    let (id, hash, numbers) = match engine {
        Engine::Sqlite => (
            "unhex(printf('%012x70008%015x', n, n))",
            "unhex(printf('%064x', n))",
            format!(
                "(WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT {size}) \
                 SELECT n FROM numbers)"
            ),
        ),
        Engine::Postgres => (
            "decode(lpad(to_hex(n), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'), 'hex')",
            "sha256(n::text::bytea)",
            format!("generate_series(1, {size}) AS numbers (n)"),
        ),
        Engine::MariaDb => (
            "unhex(concat(lpad(hex(n), 12, '0'), '70008', lpad(hex(n), 15, '0')))",
            "unhex(sha2(n, 256))",
            format!("(SELECT seq AS n FROM seq_1_to_{size}) AS numbers"),
        ),
    };
    let when = |value: &str| format!("CASE WHEN n <= {} THEN {value} END", size / 1_000);
    let insert = format!(
        "INSERT INTO {table} (id, realm, owner, owner_kind, kind, name, name_key, created_at, created_by, revoked_at, \
         revoked_reason, revoked_by, revoked_authority, lifetime, scope, digest_key, digest, idle_from, version) \
         SELECT {id}, '', concat('owner ', n % {}), 'human', 'personal', concat('token ', n), {hash}, n, 'system', {}, {}, \
         {}, {}, 'default', 'inherit', 1, {hash}, n, 1 FROM {numbers}",
        size / PER_OWNER,
        when(&format!("n % {ENDED}")),
        when("'system'"),
        when("'system'"),
        when("'system'"),
    );
    let analyze = match engine {
        Engine::Sqlite => "ANALYZE".to_owned(),
        Engine::Postgres => format!("ANALYZE {table}"),
        Engine::MariaDb => format!("ANALYZE TABLE {table}"),
    };
    // Writes the new rows to the disk now instead of while something is measured.
    let settle = match engine {
        Engine::Sqlite => vec!["PRAGMA wal_checkpoint(TRUNCATE)".to_owned()],
        Engine::Postgres => vec!["CHECKPOINT".to_owned()],
        Engine::MariaDb => {
            vec![format!("FLUSH TABLES {table} FOR EXPORT"), "UNLOCK TABLES".to_owned()]
        }
    };
    [vec![insert, analyze], settle].concat()
}
