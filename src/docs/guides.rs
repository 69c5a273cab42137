//! Recipes: one job each, with code to copy.

#[doc = include_str!("guides/first_token.md")]
pub mod first_token {}

#[doc = include_str!("guides/frameworks.md")]
pub mod frameworks {}

#[doc = include_str!("guides/axum.md")]
pub mod axum {}

#[doc = include_str!("guides/actix.md")]
pub mod actix {}

#[doc = include_str!("guides/hyper.md")]
pub mod hyper {}

#[doc = include_str!("guides/tonic.md")]
pub mod tonic {}

#[doc = include_str!("guides/poem.md")]
pub mod poem {}

#[doc = include_str!("guides/sessions.md")]
pub mod sessions {}

#[doc = include_str!("guides/permissions.md")]
pub mod permissions {}

#[doc = include_str!("guides/service_users.md")]
pub mod service_users {}

#[doc = include_str!("guides/tenants.md")]
pub mod tenants {}

#[doc = include_str!("guides/rotation.md")]
pub mod rotation {}

#[doc = include_str!("guides/keys.md")]
pub mod keys {}

#[doc = include_str!("guides/backups.md")]
pub mod backups {}

#[doc = include_str!("guides/which_store.md")]
pub mod which_store {}

#[doc = include_str!("guides/sqlx.md")]
pub mod sqlx {}

#[doc = include_str!("guides/tokio_postgres.md")]
pub mod tokio_postgres {}

#[doc = include_str!("guides/rusqlite.md")]
pub mod rusqlite {}

#[doc = include_str!("guides/diesel.md")]
pub mod diesel {}

#[doc = include_str!("guides/seaorm.md")]
pub mod seaorm {}

#[doc = include_str!("guides/own_driver.md")]
pub mod own_driver {}

#[doc = include_str!("guides/several_nodes.md")]
pub mod several_nodes {}

#[doc = include_str!("guides/shutdown.md")]
pub mod shutdown {}

#[doc = include_str!("guides/cors.md")]
pub mod cors {}

#[doc = include_str!("guides/carriers.md")]
pub mod carriers {}

#[doc = include_str!("guides/git.md")]
pub mod git {}

#[doc = include_str!("guides/pip.md")]
pub mod pip {}

#[doc = include_str!("guides/npm.md")]
pub mod npm {}

#[doc = include_str!("guides/cargo_registry.md")]
pub mod cargo_registry {}

#[doc = include_str!("guides/curl.md")]
pub mod curl {}

#[doc = include_str!("guides/wget.md")]
pub mod wget {}

#[doc = include_str!("guides/maven.md")]
pub mod maven {}

#[doc = include_str!("guides/docker.md")]
pub mod docker {}

#[doc = include_str!("guides/gateways.md")]
pub mod gateways {}

#[doc = include_str!("guides/nginx.md")]
pub mod nginx {}

#[doc = include_str!("guides/caddy.md")]
pub mod caddy {}

#[doc = include_str!("guides/traefik.md")]
pub mod traefik {}

#[doc = include_str!("guides/envoy.md")]
pub mod envoy {}

#[doc = include_str!("guides/introspection.md")]
pub mod introspection {}

#[doc = include_str!("guides/testing.md")]
pub mod testing {}

#[doc = include_str!("guides/own_store.md")]
pub mod own_store {}
