//! Compiles the code of the README, which needs more dependencies than patkit itself.

#[doc = include_str!("../../README.md")]
#[cfg(doctest)]
struct Readme;
