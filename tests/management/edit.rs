//! Edits of tokens.

use patkit::service::TokenEdit;
use patkit::token::{ActorRef, Authority, Revocation};
use patkit::{ManageError, NewToken, Reason, TokenState};
use support::{World, ready, session, start};

#[test]
fn an_edit_is_one_change_or_none() {
    let world = World::new();
    let ann = session("ann");
    let token = world.token("ann", "a");
    world.token("ann", "taken");
    let before = world.snapshot();
    for edit in [
        TokenEdit::new().active(false).name("taken"),
        TokenEdit::new().active(false).name(""),
        TokenEdit::new().active(false).description("\u{202E}"),
        TokenEdit::new().active(false).reason(Reason::System).name("b"),
    ] {
        assert!(ready(world.service.edit(&ann, token, edit)).is_err());
        assert_eq!(world.snapshot(), before);
    }
    let version = world.stored(token).version;
    let all = TokenEdit::new().active(false).name("b").description("c");
    ready(world.service.edit(&ann, token, all)).unwrap();
    let after = world.stored(token);
    assert_eq!((after.version, after.name.as_str()), (version + 1, "b"));
    assert_eq!(after.state(world.now()), TokenState::Revoked);
    assert_eq!(after.description.as_ref().unwrap().as_str(), "c");
    let all = TokenEdit::new().active(true).name("d").description("");
    ready(world.service.edit(&ann, token, all)).unwrap();
    let after = world.stored(token);
    assert_eq!((after.name.as_str(), after.description.clone()), ("d", None));
    assert_eq!(after.state(world.now()), TokenState::Active);
}

#[test]
fn an_edit_that_sends_back_what_it_got_changes_nothing_and_is_never_refused() {
    let world = World::new();
    let issue = |name: &str| {
        let new = NewToken::named(name).description("for the tests").expires_in_days(30);
        world.issue("ann", new).token.id()
    };
    let (active, revoked, expired, both) =
        (issue("active"), issue("revoked"), issue("expired"), issue("both"));
    let ann = session("ann");
    for id in [revoked, both] {
        ready(world.service.revoke(&ann, id, Reason::Owner)).unwrap();
    }
    let by_admin = issue("by admin");
    world.force(by_admin, |token| {
        let revocation = Revocation {
            at: start(),
            by: ActorRef::System,
            authority: Authority::Admin,
            reason: Reason::Admin,
        };
        token.facts.revocation = Some(Box::new(revocation));
    });
    for id in [expired, both] {
        world.force(id, |token| token.facts.expires_at = Some(start()));
    }
    let mut before = world.snapshot();
    for id in [active, revoked, expired, both, by_admin] {
        let got = ready(world.service.get(&ann, id)).unwrap();
        let whole = TokenEdit::new()
            .name(got.name().as_str())
            .description(got.description().unwrap().as_str())
            .active(got.state() == TokenState::Active);
        let mut edits = vec![
            TokenEdit::new().active(got.state() == TokenState::Active),
            TokenEdit::new().name(got.name().as_str()),
            TokenEdit::new().name(&format!("  {} ", got.name().as_str())),
            TokenEdit::new().description(got.description().unwrap().as_str()),
            whole.clone(),
        ];
        if let Some(revocation) = got.revocation() {
            // With the reason of the revocation, whoever gave it.
            edits.push(whole.clone().reason(revocation.reason));
        }
        if got.state() != TokenState::Active {
            edits.push(whole.reason(Reason::Owner));
        }
        for edit in edits {
            let shown = ready(world.service.edit(&ann, id, edit.clone()))
                .unwrap_or_else(|e| panic!("{edit:?}: {e}"));
            assert_eq!((shown.version(), shown.state()), (got.version(), got.state()), "{edit:?}");
            assert_eq!(world.snapshot(), before, "{edit:?}");
        }
    }
    // A real change is refused as before: another reason, a restoration, and each operation under
    // its own name.
    let refused = |result: Result<patkit::TokenView, ManageError>| result.unwrap_err().to_string();
    let with = |id, edit| ready(world.service.edit(&ann, id, edit));
    refused(with(revoked, TokenEdit::new().active(false).reason(Reason::Admin)));
    refused(with(expired, TokenEdit::new().active(false).reason(Reason::Admin)));
    refused(with(expired, TokenEdit::new().active(true)));
    refused(ready(world.service.revoke(&ann, expired, Reason::Owner)));
    refused(ready(world.service.restore(&ann, active)));
    assert_eq!(world.snapshot(), before);
    // A compromise is also recorded for an expired token.
    with(expired, TokenEdit::new().active(false).reason(Reason::Compromised)).unwrap();
    assert_eq!(world.facts(expired).revocation.unwrap().reason, Reason::Compromised);
    before = world.snapshot();
    with(expired, TokenEdit::new().active(false).reason(Reason::Compromised)).unwrap();
    assert_eq!(world.snapshot(), before);
    // A field that differs is changed. Fields that do not differ are no reason to refuse.
    let shown =
        with(expired, TokenEdit::new().active(false).name("renamed").description("for the tests"))
            .unwrap();
    assert_eq!((shown.name().as_str(), shown.state()), ("renamed", TokenState::Expired));
}
