//! Patkit over HTTP, one module for each topic.

mod carriers;
mod gateways;
mod http;
mod messages;
mod mount;
mod refusals;
mod tonic;
