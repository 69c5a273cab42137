//! The life of a token, from its creation to the audit trail: `cargo run --example quickstart`.
//!
//! Everything is in memory, and the clock is set by hand, so that a token expires within a second.
//! Each step checks what it shows, and the example fails if a check fails.

#![allow(clippy::print_stdout, reason = "showing is its job")]
#![allow(clippy::too_many_lines, reason = "one story, told from the top to the bottom")]
#![allow(clippy::arithmetic_side_effects, reason = "a few days on a fixed date")]

use chrono::{DateTime, TimeDelta};
use patkit::store::{AuditLog, EventQuery};
use patkit::{
    Actor, Credential, Keyring, ManageError, ManualClock, MemoryDirectory, MemoryStore, NewToken,
    Owner, OwnerId, OwnerKind, Realm, Reason, RejectReason, RoleCatalog, TokenService, TokenState,
};
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Returns the only user of the host, with one role.
fn ada(role: &str) -> Result<Owner, Box<dyn Error>> {
    let owner = Owner::new(OwnerId::new("ada")?, OwnerKind::Human);
    Ok(owner.with_name("Ada Lovelace").with_role(role))
}

fn step(title: &str) {
    println!("\n== {title}");
}

/// Returns the header that a script sends.
fn header(text: &str) -> String {
    format!("Bearer {text}")
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    step("A service: a store, the users, the roles, the keys");
    let start = DateTime::from_timestamp(1_893_488_400, 0).ok_or("2030-01-01 09:00 is a date")?;
    let clock = Arc::new(ManualClock::at(start));
    let users = Arc::new(MemoryDirectory::new());
    users.put(ada("editor")?);
    let roles = RoleCatalog::standard_builder()
        .grant("member", ["datastores:read"])
        .role("editor")
        .inherits("editor", "member")
        .grant("editor", ["datastores:write"])
        .build()?;
    let tokens = TokenService::builder(MemoryStore::new(), users.clone())
        .brand("acme")
        .keyring(Keyring::ephemeral()?)
        .roles(roles)
        .clock(clock.clone())
        .build()?;
    println!("The keys are right: {}", tokens.check().await?);
    println!("Ada is an editor: she may read and write datastores. It is {start}.");

    step("Generate");
    let session = Actor::signed_in(OwnerId::new("ada")?);
    let issued =
        tokens.generate(&session, NewToken::named("ci-pipeline").expires_in_days(30)).await?;
    let id = issued.token.id();
    let text = issued.plaintext.expose_secret().to_owned();
    println!("Shown once, kept nowhere: {text}");
    println!("Its id is public and may be logged: {id}");
    println!("Debug shows no secret: {:?}", issued.plaintext);
    assert_eq!(text.len(), tokens.format().text_len());
    assert!(!format!("{issued:?}").contains(&text));

    step("Authenticate a request");
    let peer: IpAddr = "192.0.2.7".parse()?;
    let verified =
        tokens.verify(Credential::headers(Some(&header(&text))).from_address(Some(peer))).await?;
    println!("{} by the token {:?}", verified.owner().id(), verified.token().name().as_str());
    assert_eq!(verified.token().id(), id);
    tokens.flush().await?;
    let last_used = tokens.get(&session, id).await?.last_used();
    println!("Its last use, written by the flush: {:?}", last_used.map(|used| used.at));
    assert_eq!(last_used.and_then(|used| used.address), Some(peer));

    step("Require a permission");
    verified.require("datastores:write")?;
    println!("datastores:write is allowed");
    let denied = verified.require("datastores:drop");
    println!("datastores:drop is denied");
    assert!(denied.is_err());

    step("Narrow a token to a scope");
    let narrow = NewToken::named("nightly report").scope(["datastores:read"]);
    let narrow = tokens.generate(&session, narrow).await?;
    let narrowed = tokens.verify(Credential::text(narrow.plaintext.expose_secret())).await?;
    println!("Ada may write, this token of hers may not: {:?}", narrowed.effective_permissions());
    assert!(narrowed.require("datastores:read").is_ok());
    assert!(narrowed.require("datastores:write").is_err());

    step("Demote the owner: every token follows at once");
    users.put(ada("member")?);
    let verified = tokens.verify(Credential::headers(Some(&header(&text)))).await?;
    println!("The same token, verified again: {:?}", verified.effective_permissions());
    assert!(verified.require("datastores:read").is_ok());
    assert!(verified.require("datastores:write").is_err());

    step("Delete: refused while it is active");
    match tokens.delete(&session, id).await {
        Err(ManageError::Refused(refusal)) => println!("{refusal}"),
        other => return Err(format!("expected a refusal, got {other:?}").into()),
    }

    step("Revoke");
    let revoked = tokens.revoke(&session, id, Reason::Owner).await?;
    assert_eq!(revoked.state(), TokenState::Revoked);
    let refused = refusal(tokens.verify(Credential::text(&text)).await)?;
    println!("The client is told: {}", refused.0);
    println!("The operator's log: {:?}", refused.1);
    assert_eq!(refused.1, RejectReason::Revoked);
    let unknown = refusal(tokens.verify(Credential::text("acme_pat_nonsense")).await)?;
    println!("Nonsense instead of a token: {} ({:?})", unknown.0, unknown.1);
    assert_eq!(unknown, (refused.0, RejectReason::Malformed), "one answer for all clients");

    let stream = refusal(tokens.recheck(&verified).await)?;
    println!("A stream that was opened before, checked again: {:?}", stream.1);
    assert_eq!(stream.1, RejectReason::Revoked);

    step("Restore");
    tokens.restore(&session, id).await?;
    tokens.verify(Credential::text(&text)).await?;
    println!("It works again");

    step("Rotate, with an hour to change over");
    let rotated = tokens.rotate(&session, id, Duration::from_secs(3_600)).await?;
    let new_text = rotated.plaintext.expose_secret().to_owned();
    tokens.verify(Credential::text(&text)).await?;
    tokens.verify(Credential::text(&new_text)).await?;
    println!("The old text and the new one both work");
    clock.advance(TimeDelta::hours(1));
    let refused = refusal(tokens.verify(Credential::text(&text)).await)?;
    tokens.verify(Credential::text(&new_text)).await?;
    println!(
        "An hour later: the old one is refused ({:?}) and reported, the new one works",
        refused.1
    );
    assert_eq!(refused.1, RejectReason::Expired);

    step("Expire");
    let expires_at = rotated.token.expires_at().ok_or("a token of 30 days has an end")?;
    assert_eq!(expires_at, start + TimeDelta::days(30));
    clock.set(expires_at - TimeDelta::microseconds(1));
    tokens.verify(Credential::text(&new_text)).await?;
    clock.set(expires_at);
    let refused = refusal(tokens.verify(Credential::text(&new_text)).await)?;
    println!("Good until {expires_at}, refused at that very instant: {:?}", refused.1);
    assert_eq!(refused.1, RejectReason::Expired);

    step("Delete");
    tokens.delete(&session, id).await?;
    let gone = tokens.get(&session, id).await;
    assert!(matches!(gone, Err(ManageError::NotFound)));
    println!("The record is gone; the trail stays");

    step("The audit trail, stored with each change");
    let query = EventQuery::new(Realm::default()).from(start).oldest_first();
    let events = tokens.store().events(&query).await?.events;
    for event in &events {
        let who = event.actor.owner_id().map_or("the service", OwnerId::as_str);
        println!(
            "{}  {:<10} {}  by {who}",
            event.at.format("%F %T"),
            event.action.as_str(),
            event.token
        );
    }
    let actions: Vec<&str> = events.iter().map(|event| event.action.as_str()).collect();
    let expected = [
        "generated",
        "generated",
        "revoked",
        "restored",
        "rotated",
        "generated",
        "reuse",
        "deleted",
    ];
    assert_eq!(actions, expected);
    assert!(!format!("{events:?}").contains(&text));

    tokens.shutdown().await?;
    println!("\nEvery step did what it should.");
    Ok(())
}

/// Returns what the client learns, and the reason that the operator sees.
fn refusal(
    result: Result<patkit::Verified, patkit::VerifyError>,
) -> Result<(String, RejectReason), Box<dyn Error>> {
    match result {
        Ok(verified) => Err(format!("accepted: {verified:?}").into()),
        Err(error) => {
            let reason = error.reject_reason().ok_or("unavailable")?;
            Ok((error.to_string(), reason))
        }
    }
}
