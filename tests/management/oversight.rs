//! Oversight, and the refusals that name a rule of the policy.

use super::{ids, policy};
use patkit::policy::{Oversight, TokenManagement};
use patkit::service::{PolicyRule, TokenEdit};
use patkit::{ManageError, NewToken, Reason, RejectReason};
use std::time::Duration;
use support::{World, id, ready, session};

#[test]
fn oversight_shows_and_revokes_and_does_nothing_else() {
    let world = World::with(policy(TokenManagement::Attenuated, Oversight::RevokeOnly));
    let token = world.issue("ann", NewToken::named("a"));
    let ada = session("ada");
    let page = ready(world.service.list_overseen(&ada, &id("ann"), None, 10)).unwrap();
    assert_eq!(ids(&page), [token.token.id()]);
    let page = ready(world.service.list_overseen(&ada, &id("bot"), None, 10)).unwrap();
    assert!(page.items.is_empty(), "personal tokens alone");
    ready(world.service.revoke(&ada, token.token.id(), Reason::Admin)).unwrap();
    assert_eq!(world.refusal(&token), Some(RejectReason::Revoked));
    let by_owner = ready(world.service.restore(&session("ann"), token.token.id()));
    assert!(matches!(by_owner, Err(ManageError::Refused(_))), "an admin revoked it");
    let by_overseer = ready(world.service.restore(&ada, token.token.id()));
    let rule = PolicyRule::OversightRevokeOnly;
    assert!(matches!(by_overseer, Err(ManageError::ForbiddenByPolicy(by)) if by == rule));
    let both = TokenEdit::new().active(false).name("mine");
    let edited = ready(world.service.edit(&ada, token.token.id(), both));
    assert!(matches!(edited, Err(ManageError::ForbiddenByPolicy(by)) if by == rule));
    assert_eq!(world.stored(token.token.id()).name.as_str(), "a");
}

#[test]
fn what_the_policy_hides_is_refused_as_hidden_by_the_policy() {
    let rule = |result: Result<(), ManageError>| match result {
        Err(ManageError::ForbiddenByPolicy(rule)) => rule,
        other => panic!("{other:?}"),
    };
    let world = World::with(policy(TokenManagement::Attenuated, Oversight::Hidden));
    let token = world.token("ann", "hidden");
    let listed = ready(world.service.list_overseen(&session("ada"), &id("ann"), None, 10));
    assert_eq!(rule(listed.map(drop)), PolicyRule::OversightHidden);
    // A missing permission is named first, whatever the policy hides.
    let listed = ready(world.service.list_overseen(&session("mia"), &id("ann"), None, 10));
    assert!(
        matches!(listed, Err(ManageError::Forbidden { permission: "tokens:oversee" })),
        "{listed:?}"
    );
    // An overseer without the permission to manage tokens.
    world.put("mia", |mia| mia.with_grants(support::grants(&["tokens:oversee"])));
    let revoked = ready(world.service.revoke(&session("mia"), token, Reason::Admin));
    assert_eq!(rule(revoked.map(drop)), PolicyRule::OversightHidden);
    let service = world.under(policy(TokenManagement::Attenuated, Oversight::RevokeOnly));
    ready(service.list_overseen(&session("mia"), &id("ann"), None, 10)).unwrap();
    let renamed = ready(service.rename(&session("ada"), token, "seen"));
    assert_eq!(rule(renamed.map(drop)), PolicyRule::OversightRevokeOnly);
    // A token that holds the permission, under a policy that forbids tokens to manage tokens.
    let issued = world.issue("ann", NewToken::named("manager").scope(["tokens:manage"]));
    let through = world.through(&issued);
    let service = world.under(policy(TokenManagement::Forbidden, Oversight::Hidden));
    let results = [
        ready(service.list(&through, None, 10)).map(drop),
        ready(service.generate(&through, NewToken::named("child"))).map(drop),
        ready(service.rename(&through, token, "other")).map(drop),
        ready(service.rotate(&through, issued.token.id(), Duration::ZERO)).map(drop),
    ];
    for result in results {
        assert_eq!(rule(result), PolicyRule::TokensManagingTokens);
    }
}
