//! Lists and their pages.

use super::ids;
use chrono::TimeDelta;
use patkit::{Credential, NewToken, TokenId, TokenKind, TokenState};
use std::net::IpAddr;
use support::{World, home, id, nowhere, ready, session, start};

#[test]
fn a_list_entry_tells_all_there_is_to_tell() {
    let world = World::new();
    let address: IpAddr = "198.51.100.9".parse().unwrap();
    let new = NewToken::named(" Nightly ")
        .description(" every night\nat two ")
        .scope(["datastores:read"])
        .networks(["198.51.100.0/24"])
        .expires_in_days(30);
    let made = world.generate(&session("ann"), new).unwrap();
    ready(
        world
            .service
            .verify(Credential::text(made.plaintext.expose_secret()).from_address(Some(address))),
    )
    .unwrap();
    ready(world.service.flush()).unwrap();
    let page = ready(world.service.list(&session("ann"), None, 10)).unwrap();
    let [entry] = page.items.as_slice() else { panic!("{page:?}") };
    assert_eq!(entry.id(), made.token.id());
    assert_eq!(entry.name().as_str(), "Nightly");
    assert_eq!(entry.description().unwrap().as_str(), "every night\nat two");
    assert_eq!(entry.kind(), TokenKind::Personal);
    assert_eq!(entry.state(), TokenState::Active);
    assert_eq!(entry.created_at(), start());
    assert_eq!(entry.expires_at(), Some(start() + TimeDelta::days(30)));
    let used = entry.last_used().unwrap();
    assert_eq!((used.at, used.address), (start(), Some(address)));
    assert_eq!(entry.owner_id(), &id("ann"));
    assert_eq!(entry.owner().unwrap().name(), Some("ann"));
    assert_eq!(entry.revocation(), None);
    assert_eq!(entry.successor(), None);
    assert_eq!(entry.networks().unwrap().iter().count(), 1);
    assert!(!entry.scope().is_inherit());
    let json = serde_json::to_value(entry).unwrap();
    assert_eq!(json["state"], "active");
    assert_eq!(json["user"]["id"], "ann");
    assert_eq!(json["last_used_address"], "198.51.100.9");
    let text = json.to_string() + &format!("{entry:?}{page:?}");
    let secret = &made.plaintext.expose_secret()["acme_pat_".len() + TokenId::TEXT_LEN..];
    assert!(!text.contains(secret) && !text.contains("credential") && !text.contains("digest"));

    // The state is that at the time of the list.
    world.advance(TimeDelta::days(30));
    let page = ready(world.service.list(&session("ann"), None, 10)).unwrap();
    assert_eq!(page.items[0].state(), TokenState::Expired);
    // The entry has no owner if the directory no longer knows the owner.
    let service = world.issue("bot", NewToken::named("s"));
    world.directory.remove(&home(), &id("bot"));
    let page = ready(world.service.list_service(&session("ada"), None, 10)).unwrap();
    assert_eq!(page.items[0].id(), service.token.id());
    assert!(page.items[0].owner().is_none());
    assert_eq!(page.items[0].owner_id(), &id("bot"));
}

#[test]
fn pages_follow_each_other_without_gap_or_repetition() {
    let world = World::new();
    let mut made = Vec::new();
    for number in 0..205 {
        world.advance(TimeDelta::milliseconds(1));
        made.push(world.token("ann", &number.to_string()));
        world.token("bob", &number.to_string());
        world.issue("bot", NewToken::named(&number.to_string()));
    }
    made.reverse();
    let walk = |limit: usize, most: usize| {
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = ready(world.service.list(&session("ann"), after, limit)).unwrap();
            assert!(page.corrupt.is_empty());
            assert!(!page.items.is_empty() && page.items.len() <= most, "{limit}");
            seen.extend(ids(&page));
            match page.next {
                Some(next) => {
                    assert_eq!(page.items.len(), most, "{limit}: only the last page is short");
                    after = Some(next);
                }
                None => return seen,
            }
        }
    };
    for (limit, most) in
        [(0, 1), (1, 1), (7, 7), (41, 41), (200, 200), (201, 200), (usize::MAX, 200)]
    {
        assert_eq!(walk(limit, most), made, "{limit}, newest first");
    }
    // Any token's id may be a cursor, and the page still holds only the caller's own tokens.
    let cursors = world.tokens().into_iter().map(|token| token.id).chain([nowhere()]);
    for cursor in cursors.step_by(50) {
        let page = ready(world.service.list(&session("ann"), Some(cursor), 200)).unwrap();
        assert!(
            page.items.iter().all(|entry| *entry.owner_id() == id("ann") && entry.id() < cursor)
        );
    }
}
