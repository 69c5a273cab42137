//! Pages about the crate as a whole: a guide for each job, how it is built, what it withstands, and
//! what it costs.
//!
//! The guides are in the documentation with all features.

#[doc = include_str!("docs/design.md")]
pub mod design {}

#[doc = include_str!("docs/threat_model.md")]
pub mod threat_model {}

#[doc = include_str!("docs/performance.md")]
pub mod performance {}

#[cfg(all(
    feature = "actix",
    feature = "api",
    feature = "axum",
    feature = "cache",
    feature = "conformance",
    feature = "console",
    feature = "gateways",
    feature = "openapi",
    feature = "sqlx-mysql",
    feature = "sqlx-postgres",
    feature = "sqlx-sqlite",
    feature = "testkit",
    feature = "tokio-postgres"
))]
pub mod guides;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// The rank of each module by the table of the page on the design: its row, from the top.
    fn ranks() -> HashMap<&'static str, usize> {
        let rows =
            include_str!("docs/design.md").lines().skip_while(|line| !line.starts_with("| module"));
        let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
        let mut ranks = HashMap::new();
        for (rank, row) in rows.enumerate() {
            let names = row.split('|').nth(1).unwrap();
            for name in names.split('`').skip(1).step_by(2) {
                assert_eq!(ranks.insert(name, rank), None, "{name} stands in the table twice");
            }
        }
        ranks
    }

    fn source_files(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                source_files(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }

    /// The modules that a source names after `crate::`, without its comments and its unit tests.
    fn imports(source: &str) -> Vec<&str> {
        let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let names = lines.flat_map(|line| line.split("crate::").skip(1));
        let names = names
            .map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap());
        names.filter(|name| !name.is_empty()).collect()
    }

    #[test]
    fn modules_import_only_what_stands_above_them() {
        let ranks = ranks();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        source_files(&root, &mut files);
        let mut found = 0;
        for file in files {
            let path = file.strip_prefix(&root).unwrap();
            let module = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
            if ["lib", "docs"].contains(&module) {
                continue;
            }
            let rank =
                *ranks.get(module).unwrap_or_else(|| panic!("{module} is missing in the table"));
            for import in imports(&fs::read_to_string(&file).unwrap()) {
                let of_import = *ranks
                    .get(import)
                    .unwrap_or_else(|| panic!("{import} is missing in the table"));
                assert!(
                    import == module || of_import < rank,
                    "{} imports {import}, which does not stand above {module}",
                    path.display()
                );
                found += 1;
            }
        }
        assert!(found > 100, "only {found} imports were found");
    }
}
