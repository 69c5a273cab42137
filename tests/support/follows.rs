//! Checks that a cache hears of the changes of others. The tests of each driver include this file.

use patkit::store::ChangeFeed;
use patkit::{
    Actor, CachedStore, Credential, MemoryDirectory, NewToken, Reason, RejectReason, TokenService,
    TokenStore,
};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Revokes a token through another service than the one that has it cached. The cache hears of it
/// long before the cached record ends by itself, which takes 30 s.
pub async fn hears_of_a_change<S: TokenStore + ChangeFeed, T: TokenStore>(
    cached: &TokenService<CachedStore<S>, MemoryDirectory>,
    other: &TokenService<T, MemoryDirectory>,
    actor: &Actor,
) {
    let issued = other.generate(actor, NewToken::named("followed")).await.unwrap();
    let credential = Credential::text(issued.plaintext.expose_secret());
    let is_heard = async {
        while !cached.store().stats().is_following {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(!cached.store().stats().is_polling_instead, "nothing is wrong");
        cached.verify(credential).await.unwrap();
        other.revoke(actor, issued.token.id(), Reason::Owner).await.unwrap();
        while cached.verify(credential).await.is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        ended = cached.store().run_following(Duration::from_millis(20), sleep) => {
            panic!("it no longer follows: {ended:?}");
        }
        heard = timeout(Duration::from_secs(10), is_heard) => {
            heard.expect("the change was not heard of");
        }
    }
    let refused = cached.verify(credential).await.unwrap_err();
    assert_eq!(refused.reject_reason(), Some(RejectReason::Revoked));
}
