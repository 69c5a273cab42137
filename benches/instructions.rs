//! The hot paths that `scripts/instructions` counts under callgrind: each runs a thousand times, in
//! a function of its own.
//!
//! Without callgrind the program measures and prints nothing.

#![allow(missing_docs, clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "a bench")]

use bench_common::ready;
use http::{HeaderValue, Request, Response};
use patkit::http::Authenticator;
use patkit::{
    Actor, Credential, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind,
    Permission, RoleCatalog, TokenService,
};
use sha2::block_api::compress256;
use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower_layer::Layer;
use tower_service::Service;

/// How often each path runs. The script divides by it.
const TIMES: usize = 1_000;

fn main() {
    let ada = OwnerId::new("ada").unwrap();
    let owner = Owner::new(ada.clone(), OwnerKind::Human).with_role("member");
    let roles =
        RoleCatalog::standard_builder().grant("member", ["datastores:read"]).build().unwrap();
    let service = TokenService::builder(MemoryStore::new(), MemoryDirectory::from_iter([owner]))
        .brand("acme")
        .keyring(Keyring::ephemeral().unwrap())
        .roles(roles)
        .build()
        .unwrap();
    let service = Arc::new(service);
    let new = NewToken::named("one").scope(["datastores:*"]);
    let issued = ready(service.generate(&Actor::signed_in(ada), new)).unwrap();
    let header = format!("Bearer {}", issued.plaintext.expose_secret());
    let mut damaged = header.clone();
    let last = if header.ends_with('0') { "1" } else { "0" };
    damaged.replace_range(header.len() - 1.., last);

    let verify = |header: &str| ready(service.verify(Credential::headers(Some(header))));
    // Runs each path once first, so that the count excludes work that only the first run does.
    let verified = verify(&header).unwrap();
    ready(service.flush()).unwrap();
    drop(verify(&header));
    drop(verify(&damaged));
    let permission = Permission::parse("datastores:read").unwrap();

    let value = HeaderValue::try_from(&header).unwrap();
    let request = || {
        let mut request = Request::new(());
        request.headers_mut().insert("authorization", value.clone());
        request.headers_mut().insert("host", HeaderValue::from_static("localhost"));
        // A host's own layers have put something into the extensions.
        request.extensions_mut().insert(7_u8);
        request
    };
    let mut behind = Authenticator::new(service.clone()).required().layer(Answer);
    let mut bare = Answer;
    assert!(ready(behind.call(request())).unwrap().status().is_success());

    counted_digest(|| {
        let mut state = [7; 8];
        compress256(&mut state, black_box(&[[7; 64]]));
        compress256(&mut state, black_box(&[[7; 64]]));
        black_box(state);
    });
    counted_verify(|| drop(black_box(verify(black_box(&header))).unwrap()));
    counted_refuse(|| assert!(black_box(verify(black_box(&damaged))).is_err()));
    counted_require(|| assert!(verified.require(black_box("datastores:read")).is_ok()));
    counted_allows(|| assert!(verified.allows(black_box(&permission))));
    counted_bare(|| drop(black_box(ready(bare.call(black_box(request()))))));
    counted_layer(|| drop(black_box(ready(behind.call(black_box(request()))))));
}

/// The service of a host, which answers at once.
#[derive(Clone)]
struct Answer;

impl Service<Request<()>> for Answer {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        drop(black_box(request));
        std::future::ready(Ok(Response::new(())))
    }
}

/// A request to a service without the layer.
#[inline(never)]
fn counted_bare(mut work: impl FnMut()) {
    for _ in 0..TIMES {
        work();
    }
}

/// The same request to the service behind the layer.
#[inline(never)]
fn counted_layer(mut work: impl FnMut()) {
    for _ in 0..TIMES {
        work();
    }
}

/// The two compressions of a digest.
#[inline(never)]
fn counted_digest(work: impl Fn()) {
    (0..TIMES).for_each(|_| work());
}

#[inline(never)]
fn counted_verify(work: impl Fn()) {
    (0..TIMES).for_each(|_| work());
}

#[inline(never)]
fn counted_refuse(work: impl Fn()) {
    (0..TIMES).for_each(|_| work());
}

#[inline(never)]
fn counted_require(work: impl Fn()) {
    (0..TIMES).for_each(|_| work());
}

#[inline(never)]
fn counted_allows(work: impl Fn()) {
    (0..TIMES).for_each(|_| work());
}
