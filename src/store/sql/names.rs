//! The names of tables, indexes and constraints.
//!
//! They are made from the names in the SQL files and the host's prefix and schema, and are quoted.

use super::engine::{Dialect, EngineKind};
use super::error::{NameError, SetupError};

/// The placeholder for the host's prefix in the SQL files.
const PLACEHOLDER: &str = "patkit_";

/// The host's prefix and schema, which were validated.
#[derive(Debug)]
pub(super) struct Names {
    dialect: &'static Dialect,
    prefix: String,
    schema: Option<String>,
}

impl Names {
    /// # Errors
    /// [`SetupError`] if the engine would refuse a name, or truncate it so that two became equal.
    pub(super) fn new(
        dialect: &'static Dialect,
        prefix: String,
        schema: Option<String>,
    ) -> Result<Self, SetupError> {
        let scripts = dialect.migrations.iter().map(|step| step.sql);
        let suffixes = scripts.flat_map(lines).flat_map(pieces).filter_map(|piece| piece.suffix);
        let longest = suffixes.map(str::len).max().expect("the SQL files name tables");
        let refused = |field, reason| SetupError::Name { field, reason };
        let most = dialect.longest_name.map(|most| most.saturating_sub(longest));
        check(&prefix, most, dialect).map_err(|reason| refused("prefix", reason))?;
        if let Some(schema) = &schema {
            if dialect.count_schemas.is_none() {
                return Err(SetupError::NoSchemas);
            }
            check(schema, dialect.longest_name, dialect)
                .map_err(|reason| refused("schema", reason))?;
            if dialect.kind == EngineKind::MySql && schema.ends_with(' ') {
                return Err(refused("schema", NameError::TrailingSpace));
            }
        }
        Ok(Self { dialect, prefix, schema })
    }

    /// Returns the name of a table, quoted and with its schema.
    pub(super) fn table(&self, suffix: &str) -> String {
        let name = self.quoted(suffix);
        self.schema.as_ref().map_or_else(
            || name.clone(),
            |schema| format!("{}.{name}", self.dialect.quoted(schema)),
        )
    }

    /// Returns the quoted name of an index or a constraint, which is in the schema of its table.
    pub(super) fn quoted(&self, suffix: &str) -> String {
        self.dialect.quoted(&self.index(suffix))
    }

    /// Returns the name of an index or a constraint as the database names it in errors.
    pub(super) fn index(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix)
    }

    /// Returns the name of a table for errors.
    pub(super) fn shown(&self, suffix: &str) -> String {
        let name = self.index(suffix);
        self.schema.as_ref().map_or_else(|| name.clone(), |schema| format!("{schema}.{name}"))
    }

    /// Returns the name of a table that does not exist.
    pub(super) fn probe(&self) -> String {
        self.table("probe")
    }

    /// Returns the name of the events table, as a text in SQL.
    pub(super) fn events_text(&self) -> String {
        format!("'{}events'", self.prefix.replace('\'', "''"))
    }

    pub(super) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// Returns the statements of one of the SQL files, with the host's names and without comments.
    pub(super) fn script(&self, sql: &str) -> Vec<String> {
        let sql: String = lines(sql).collect();
        // Split before the host's names are in, because they may contain anything.
        let statements = sql.split(";\n").map(str::trim).filter(|statement| !statement.is_empty());
        statements.map(|statement| self.named(statement)).collect()
    }

    /// Returns a statement of an SQL file with the host's names.
    fn named(&self, statement: &str) -> String {
        let mut named = String::new();
        for Piece { before, suffix } in pieces(statement) {
            named.push_str(before);
            match suffix {
                Some(table @ ("tokens" | "events" | "key_checks" | "numbers" | "migrations")) => {
                    named.push_str(&self.table(table));
                }
                Some(suffix) => named.push_str(&self.quoted(suffix)),
                None => {}
            }
        }
        named
    }
}

/// A piece of an SQL file: a text, and the suffix of the store's name that follows it.
struct Piece<'a> {
    before: &'a str,
    suffix: Option<&'a str>,
}

/// Returns the lines of an SQL file without its comments, which are lines of their own.
///
/// A line feed in a host's prefix would end a comment, and the rest of the name would run as SQL.
fn lines(sql: &str) -> impl Iterator<Item = &str> {
    sql.split_inclusive('\n').filter(|line| !line.trim_start().starts_with("--"))
}

/// Returns the pieces of the statements of an SQL file.
fn pieces(sql: &str) -> impl Iterator<Item = Piece<'_>> {
    sql.split(PLACEHOLDER).enumerate().flat_map(|(index, part)| {
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        let end = part.bytes().position(|byte| !is_name(byte)).unwrap_or(part.len());
        // The text before the first name has no suffix.
        let (suffix, rest) = part
            .split_at_checked(if index == 0 { 0 } else { end })
            .expect("a character begins after ASCII characters");
        let suffix = Some(suffix).filter(|_| index > 0);
        [Piece { before: "", suffix }, Piece { before: rest, suffix: None }]
    })
}

fn check(name: &str, most: Option<usize>, dialect: &Dialect) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.contains('\0') {
        return Err(NameError::Nul);
    }
    if let Some(most) = most.filter(|most| name.len() > *most) {
        return Err(NameError::TooLong { found: name.len(), most });
    }
    // MySQL 8.0 Reference Manual, section 11.2.
    let supplementary = name.chars().find(|character| *character > '\u{ffff}');
    if let Some(character) = supplementary.filter(|_| dialect.kind == EngineKind::MySql) {
        return Err(NameError::Supplementary(character));
    }
    let begins_with = |reserved: &str| name.to_ascii_lowercase().starts_with(reserved);
    match dialect.reserved_prefix.filter(|reserved| begins_with(reserved)) {
        Some(reserved) => Err(NameError::Reserved(reserved)),
        None => Ok(()),
    }
}
