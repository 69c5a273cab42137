#![allow(clippy::arithmetic_side_effects, clippy::string_slice, reason = "tests")]

use super::*;
use crate::owner::{MemoryDirectory, OwnerId, OwnerKind};
use crate::service::{Actor, NewToken};
use crate::store::{Change, ChangeBatch, MemoryStore};
use crate::token::digest::COUNT;
use crate::token::{ForeignDigest, Keyring};
use crate::token::{StoredDigest, Token};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the memory store waited"),
    }
}

fn service() -> TokenService<MemoryStore, MemoryDirectory> {
    let ada = Owner::new(OwnerId::new("ada").unwrap(), OwnerKind::Human).with_role("member");
    let builder =
        TokenService::builder(MemoryStore::new(), MemoryDirectory::from_iter([ada])).brand("acme");
    builder.keyring(Keyring::ephemeral().unwrap()).build().unwrap()
}

fn issue(service: &TokenService<MemoryStore, MemoryDirectory>, name: &str) -> String {
    let actor = Actor::signed_in(OwnerId::new("ada").unwrap());
    ready(service.generate(&actor, NewToken::named(name)))
        .unwrap()
        .plaintext
        .expose_secret()
        .to_owned()
}

#[test]
fn every_well_formed_text_costs_one_digest_whatever_is_found() {
    let (ours, theirs) = (service(), service());
    let (text, foreign) = (issue(&ours, "one"), issue(&ours, "foreign"));
    let unknown = issue(&theirs, "one");
    let (_, id) = ours.format.check(&foreign).unwrap();
    let mut record = Token::clone(&ready(ours.store.find(id)).unwrap().unwrap());
    record.digest = StoredDigest::Foreign(ForeignDigest::new("sha256", &[0; 32]));
    record.version += 1;
    ready(ours.store.commit(&ChangeBatch::new().change(Change::Update(Arc::new(record))))).unwrap();
    let elsewhere = Realm::new("elsewhere").unwrap();
    let (kind, known) = ours.format.check(&text).unwrap();
    let wrong = ours.format.print(kind, known, &Message::new(kind, known, [1, 2, 3, 4]));
    let count = |realm: Option<&Realm>, text: &str| {
        COUNT.set(0);
        let credential = Credential::text(text);
        let credential = realm.map_or(credential, |realm| credential.in_realm(realm));
        let result = ready(ours.verify(credential));
        (result.err().and_then(|error| error.reject_reason()), COUNT.get())
    };
    for (realm, text, expected) in [
        (None, text.as_str(), None),
        (None, wrong.expose_secret(), Some(RejectReason::WrongSecret)),
        (None, &unknown, Some(RejectReason::Unknown)),
        (None, &foreign, Some(RejectReason::WrongSecret)),
        (Some(&elsewhere), &text, Some(RejectReason::Unknown)),
    ] {
        assert_eq!(count(realm, text), (expected, 1), "{expected:?}");
    }
    assert_eq!(count(None, &text[1..]), (Some(RejectReason::Malformed), 0));
}
