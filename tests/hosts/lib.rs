//! The code of the README, which needs more than patkit itself does: it compiles.

#[doc = include_str!("../../README.md")]
#[cfg(doctest)]
struct Readme;
