//! Helpers for the tests of races and of faults: a service over any store, and a way to wait for
//! its futures.

use patkit::service::TokenServiceBuilder;
use patkit::store::TokenStore;
use patkit::{Actor, Keyring, MemoryDirectory, Owner, OwnerId, OwnerKind, TokenService, Verified};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

pub const OLD_KEY: &str = "1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
pub const NEW_KEY: &str = "2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

/// Polls a future in a loop on this thread until it completes, so that it needs no waker.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
        std::thread::yield_now();
    }
}

pub fn owner_id(text: &str) -> OwnerId {
    OwnerId::new(text).unwrap()
}

/// Returns a directory with the admin `ada` and the service user `bot`.
pub fn directory() -> Arc<MemoryDirectory> {
    let ada = Owner::new(owner_id("ada"), OwnerKind::Human).with_role("admin");
    let bot = Owner::new(owner_id("bot"), OwnerKind::Service).with_role("admin");
    Arc::new([ada, bot].into_iter().collect())
}

/// Returns a builder with everything that a service must have. Its owners may do everything.
pub fn builder<S: TokenStore>(store: S) -> TokenServiceBuilder<S, Arc<MemoryDirectory>> {
    TokenService::builder(store, directory())
        .brand("acme")
        .keyring(Keyring::from_text(OLD_KEY).unwrap())
}

/// Returns `ada` in a session.
pub fn ada() -> Actor {
    Actor::signed_in(owner_id("ada"))
}

/// Returns an actor through this token.
pub fn through(verified: &Verified) -> Actor {
    Actor::token(verified)
}
