//! Several processes on one database: each test here starts this program again.

mod cluster;
mod crash;
#[allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "tests"
)]
#[path = "../support/kills.rs"]
mod kills;
mod many_nodes;
mod races;
