//! Sets the `cfg` by which the table takes its parts from this package.
//!
//! It is a name of our own and set for this package alone, because tokio and others change at a
//! `cfg(loom)` for the whole build.

fn main() {
    println!("cargo::rustc-cfg=patkit_loom");
}
