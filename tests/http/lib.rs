//! Documentation whose code needs more than patkit itself does: it compiles.

#[doc = include_str!("../../src/http/cors.md")]
#[cfg(doctest)]
struct Cors;
