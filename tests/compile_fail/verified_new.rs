use std::sync::Arc;

fn forge(token: Arc<patkit::Token>, owner: Arc<patkit::Owner>, roles: &Arc<patkit::RoleCatalog>) -> patkit::Verified {
    patkit::Verified::new(token, owner, roles, None, chrono::DateTime::UNIX_EPOCH)
}

fn main() {}
