//! The future of a verification.
//!
//! The future is written by hand because a hand-written future writes its result to where the
//! caller wants it, while an `async` block moves the result there.

use super::{Decision, Offered, Peer, unread};
use crate::owner::{Directory, Realm};
use crate::service::TokenService;
use crate::store::TokenStore;
use crate::token::digest::Message;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Decides at the first poll, unless the store or the directory must be waited for.
pub(super) struct Verification<'a, S, D> {
    pub(super) service: &'a TokenService<S, D>,
    pub(super) offered: Offered<'a>,
    pub(super) realm: Option<&'a Realm>,
    pub(super) peer: Peer,
    /// The rest of a verification that waits. The box keeps the size of this future out of all
    /// other verifications.
    pub(super) waiting: Option<Pin<Box<dyn Future<Output = Decision> + Send + 'a>>>,
}

impl<S: TokenStore, D: Directory> Future for Verification<'_, S, D> {
    type Output = Decision;

    // If the compiler inlined this into its caller, it would copy the future there word by word.
    #[inline(never)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Decision> {
        let Self { service, offered, realm, peer, waiting } = &mut *self;
        if let Some(waiting) = waiting {
            return waiting.as_mut().poll(context);
        }
        let mut message = Message::room();
        match service.read(*offered, &mut message) {
            Err(reason) => Poll::Ready(Err(unread(reason))),
            Ok(presented) => service.decide_now(&presented, &message, *realm, peer, |claim| {
                waiting.insert(Box::pin(service.decide(claim))).as_mut().poll(context)
            }),
        }
    }
}
