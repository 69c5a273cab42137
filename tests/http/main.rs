//! Patkit over HTTP, one module for each topic.

mod http;
mod messages;
mod tonic;
