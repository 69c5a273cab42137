//! Compiles documentation whose code needs more dependencies than patkit itself.

#[doc = include_str!("../../src/http/cors.md")]
#[cfg(doctest)]
struct Cors;
