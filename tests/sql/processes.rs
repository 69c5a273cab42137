//! Several processes on one database: each test here starts this program again.

mod crash;
mod many_nodes;
mod races;
