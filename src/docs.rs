//! Pages about the crate as a whole: how it is built, what it withstands, and what it costs. There is no code here.

#[doc = include_str!("docs/design.md")]
pub mod design {}

#[doc = include_str!("docs/threat_model.md")]
pub mod threat_model {}

#[doc = include_str!("docs/performance.md")]
pub mod performance {}
