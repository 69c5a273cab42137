//! Sets the `cfg` that makes the table take its parts from this package.
//!
//! The name is unique to this package, because tokio and others change their code for the whole
//! build at `cfg(loom)`.

fn main() {
    println!("cargo::rustc-cfg=patkit_loom");
}
