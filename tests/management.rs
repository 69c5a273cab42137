//! Management of tokens: every kind of actor with every operation on every kind of token under
//! every policy, against a table in this file, and the effects of each operation.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::items_after_statements,
    clippy::string_slice,
    clippy::type_complexity,
    clippy::arithmetic_side_effects,
    clippy::too_many_lines
)]

use chrono::{DateTime, TimeDelta, Utc};
use patkit::audit::AuditAction;
use patkit::policy::{LifetimeError, Oversight, TokenManagement};
use patkit::service::{Attenuation, InvalidInput, PolicyRule, TokenEdit, TokenPage};
use patkit::store::{Change, ChangeBatch, ListQuery, MAX_PAGE, Page, StoreError, Touch};
use patkit::token::{ActorRef, Authority, Revocation};
use patkit::{
    Actor, AuditEvent, Credential, IssuedToken, ManageError, NewToken, Owner, OwnerId, OwnerKind,
    Reason, RejectReason, Token, TokenId, TokenKind, TokenPolicy, TokenState, TokenStore,
};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{World, beta, builder, home, id, nowhere, ready, session, start};

const MANAGEMENTS: [TokenManagement; 3] =
    [TokenManagement::Attenuated, TokenManagement::Named, TokenManagement::Forbidden];
const OVERSIGHTS: [Oversight; 2] = [Oversight::Hidden, Oversight::RevokeOnly];

fn policy(management: TokenManagement, oversight: Oversight) -> TokenPolicy {
    TokenPolicy::builder().tokens_managing_tokens(management).oversight(oversight).build().unwrap()
}

/// How an actor acts.
#[derive(Debug, Clone, Copy)]
enum How {
    /// An owner of the default realm in a session.
    Session(&'static str),
    /// An owner of the other realm in a session.
    Beta(&'static str),
    /// The host itself, in the default realm or in the other one.
    System,
    BetaSystem,
    /// Through a token of this owner, which inherits or has this scope.
    Inherit(&'static str),
    Only(&'static str, &'static [&'static str]),
    /// Through an inheriting token of the other realm.
    BetaInherit(&'static str),
}

/// The policies of a row, by their letters.
///
/// The first word is the management of tokens by tokens (`a`ttenuated, `n`amed, `f`orbidden), and
/// the second one is the oversight (`h`idden, `r`evoke-only).
type When = (&'static str, &'static str);

/// The answers of the operations, one letter each.
///
/// `+` done, `F` forbidden (for lack of a permission, by the policy, or because the host may not),
/// `N` not found, `R` the actor is rejected, `K` the owner has no such tokens, `S` refused by the
/// token's state, `.` there is no such token.
struct Row {
    how: How,
    when: When,
    /// generate: a personal token, a service token.
    generate: &'static str,
    /// list: own tokens, service tokens, another owner's tokens.
    list: &'static str,
    /// get, rename, revoke, restore, rotate, delete: a personal token of the actor's owner.
    own: &'static str,
    /// The operations of `own` on a personal token of another owner.
    other: &'static str,
    /// The operations of `own` on a service token.
    service: &'static str,
    /// The operations of `own` on the token that the actor acts through.
    itself: &'static str,
}

const fn row(
    how: How,
    when: When,
    [generate, list]: [&'static str; 2],
    [own, other, service, itself]: [&'static str; 4],
) -> Row {
    Row { how, when, generate, list, own, other, service, itself }
}

const ALL: &str = "++++++";
const FORBIDDEN: &str = "FFFFFF";
const UNSEEN: &str = "NNNNNN";
const REJECTED: &str = "RRRRRR";
const NONE: &str = "......";
/// An overseer sees a personal token of another owner in a list, and may only revoke it.
const OVERSEEN: &str = "FF+FFF";
/// A token may get, revoke and rotate itself without further permissions.
const ITSELF: &str = "+F+F+F";
/// A token may only get and revoke itself if the policy forbids tokens to manage tokens.
const ITSELF_FORBIDDEN: &str = "+F+FFF";
/// A token that may manage tokens of its kind may also rename itself. It is active, so that it is
/// neither restored nor deleted.
const ITSELF_ALL: &str = "+++S+S";

const ANY: When = ("anf", "hr");

const TABLE: &[Row] = &[
    // Sessions, which the policy on the management of tokens by tokens does not affect.
    row(How::Session("ann"), ANY, ["+F", "+FF"], [ALL, UNSEEN, UNSEEN, NONE]),
    row(How::Session("bob"), ANY, ["+F", "+FF"], [ALL, UNSEEN, UNSEEN, NONE]),
    row(How::Session("mia"), ANY, ["+F", "+FF"], [ALL, UNSEEN, UNSEEN, NONE]),
    row(How::Session("ada"), ("anf", "h"), ["++", "++F"], [ALL, UNSEEN, ALL, NONE]),
    row(How::Session("ada"), ("anf", "r"), ["++", "+++"], [ALL, OVERSEEN, ALL, NONE]),
    row(How::Session("nil"), ANY, ["FF", "FFF"], [FORBIDDEN, FORBIDDEN, FORBIDDEN, NONE]),
    row(How::Session("bot"), ANY, ["FF", "FFF"], [NONE, FORBIDDEN, FORBIDDEN, NONE]),
    row(How::Session("robot"), ANY, ["F+", "F+F"], [NONE, UNSEEN, ALL, NONE]),
    row(How::Session("core"), ("anf", "h"), ["K+", "++F"], [NONE, UNSEEN, ALL, NONE]),
    row(How::Session("core"), ("anf", "r"), ["K+", "+++"], [NONE, OVERSEEN, ALL, NONE]),
    row(How::Session("off"), ANY, ["RR", "RRR"], [REJECTED, REJECTED, REJECTED, NONE]),
    row(How::Session("ghost"), ANY, ["RR", "RRR"], [NONE, REJECTED, REJECTED, NONE]),
    row(How::Beta("ann"), ANY, ["+F", "+FF"], [ALL, UNSEEN, UNSEEN, NONE]),
    row(How::Beta("ada"), ("anf", "h"), ["++", "++F"], [ALL, UNSEEN, UNSEEN, NONE]),
    row(How::Beta("ada"), ("anf", "r"), ["++", "+++"], [ALL, UNSEEN, UNSEEN, NONE]),
    row(How::Beta("nil"), ANY, ["FF", "FFF"], [FORBIDDEN, FORBIDDEN, FORBIDDEN, NONE]),
    // The host lists, gets, revokes and restores tokens, and makes service tokens.
    row(How::System, ANY, ["F+", "+++"], [NONE, "+F++FF", "+F++FF", NONE]),
    row(How::BetaSystem, ANY, ["F+", "+++"], [NONE, "NFNNFF", "NFNNFF", NONE]),
    // Tokens that inherit.
    row(How::Inherit("ann"), ("a", "hr"), ["+F", "+FF"], [ALL, UNSEEN, UNSEEN, ITSELF_ALL]),
    row(How::Inherit("ann"), ("n", "hr"), ["FF", "FFF"], [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF]),
    row(
        How::Inherit("ann"),
        ("f", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF_FORBIDDEN],
    ),
    row(How::Inherit("ada"), ("a", "h"), ["++", "++F"], [ALL, UNSEEN, ALL, ITSELF_ALL]),
    row(How::Inherit("ada"), ("a", "r"), ["++", "+++"], [ALL, OVERSEEN, ALL, ITSELF_ALL]),
    row(How::Inherit("ada"), ("n", "hr"), ["FF", "FFF"], [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF]),
    row(
        How::Inherit("ada"),
        ("f", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF_FORBIDDEN],
    ),
    row(
        How::Inherit("nil"),
        ("an", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF],
    ),
    row(
        How::Inherit("nil"),
        ("f", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF_FORBIDDEN],
    ),
    row(How::Inherit("bot"), ("an", "hr"), ["FF", "FFF"], [NONE, FORBIDDEN, FORBIDDEN, ITSELF]),
    row(
        How::Inherit("bot"),
        ("f", "hr"),
        ["FF", "FFF"],
        [NONE, FORBIDDEN, FORBIDDEN, ITSELF_FORBIDDEN],
    ),
    row(How::Inherit("robot"), ("a", "hr"), ["F+", "F+F"], [NONE, UNSEEN, ALL, ITSELF_ALL]),
    row(How::Inherit("robot"), ("n", "hr"), ["FF", "FFF"], [NONE, FORBIDDEN, FORBIDDEN, ITSELF]),
    row(
        How::Inherit("robot"),
        ("f", "hr"),
        ["FF", "FFF"],
        [NONE, FORBIDDEN, FORBIDDEN, ITSELF_FORBIDDEN],
    ),
    row(How::Inherit("off"), ANY, ["RR", "RRR"], [REJECTED, REJECTED, REJECTED, REJECTED]),
    row(How::BetaInherit("ada"), ("a", "h"), ["++", "++F"], [ALL, UNSEEN, UNSEEN, ITSELF_ALL]),
    row(How::BetaInherit("ada"), ("a", "r"), ["++", "+++"], [ALL, UNSEEN, UNSEEN, ITSELF_ALL]),
    row(
        How::BetaInherit("ada"),
        ("n", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF],
    ),
    row(
        How::BetaInherit("ada"),
        ("f", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF_FORBIDDEN],
    ),
    // Tokens that are narrowed to managing tokens, because their scope names the permission.
    row(
        How::Only("ann", &["tokens:manage"]),
        ("an", "hr"),
        ["+F", "+FF"],
        [ALL, UNSEEN, UNSEEN, ITSELF_ALL],
    ),
    row(
        How::Only("ann", &["tokens:manage"]),
        ("f", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF_FORBIDDEN],
    ),
    row(
        How::Only("ada", &["tokens:manage"]),
        ("an", "hr"),
        ["+F", "+FF"],
        [ALL, UNSEEN, UNSEEN, ITSELF_ALL],
    ),
    row(
        How::Only("ada", &["service-tokens:manage"]),
        ("an", "hr"),
        ["F+", "F+F"],
        [UNSEEN, UNSEEN, ALL, ITSELF],
    ),
    row(
        How::Only("ada", &["service-tokens:manage"]),
        ("f", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF_FORBIDDEN],
    ),
    row(
        How::Only("robot", &["service-tokens:manage"]),
        ("an", "hr"),
        ["F+", "F+F"],
        [NONE, UNSEEN, ALL, ITSELF_ALL],
    ),
    row(
        How::Only("robot", &["service-tokens:manage"]),
        ("f", "hr"),
        ["FF", "FFF"],
        [NONE, FORBIDDEN, FORBIDDEN, ITSELF_FORBIDDEN],
    ),
    // A scope adds nothing to the permissions of the owner.
    row(
        How::Only("ann", &["service-tokens:manage", "tokens:oversee"]),
        ("an", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF],
    ),
    row(
        How::Only("bot", &["tokens:manage", "service-tokens:manage"]),
        ("an", "hr"),
        ["FF", "FFF"],
        [NONE, FORBIDDEN, FORBIDDEN, ITSELF],
    ),
    // A wildcard covers the permission but does not name it.
    row(
        How::Only("ada", &["tokens:*"]),
        ("a", "h"),
        ["+F", "+FF"],
        [ALL, UNSEEN, UNSEEN, ITSELF_ALL],
    ),
    row(
        How::Only("ada", &["tokens:*"]),
        ("a", "r"),
        ["+F", "+F+"],
        [ALL, OVERSEEN, UNSEEN, ITSELF_ALL],
    ),
    row(
        How::Only("ada", &["tokens:*"]),
        ("n", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF],
    ),
    row(How::Only("ada", &["*"]), ("a", "h"), ["++", "++F"], [ALL, UNSEEN, ALL, ITSELF_ALL]),
    row(
        How::Only("ada", &["*"]),
        ("n", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF],
    ),
    // Tokens that oversee: without the permission to manage, they only list and revoke. (Whether
    // such a token may revoke another token of its own owner is not specified, and is left out.)
    row(
        How::Only("ada", &["tokens:oversee"]),
        ("an", "h"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF],
    ),
    row(
        How::Only("ada", &["tokens:oversee"]),
        ("an", "r"),
        ["FF", "FF+"],
        [NONE, OVERSEEN, "FFNFFF", ITSELF],
    ),
    row(
        How::Only("ada", &["tokens:oversee"]),
        ("f", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF_FORBIDDEN],
    ),
    // Tokens for an unrelated permission.
    row(
        How::Only("ann", &["datastores:read"]),
        ("an", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF],
    ),
    row(
        How::Only("ann", &["datastores:read"]),
        ("f", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF_FORBIDDEN],
    ),
    row(
        How::Only("ada", &["datastores:read"]),
        ("an", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF],
    ),
    row(
        How::Only("ada", &[]),
        ("an", "hr"),
        ["FF", "FFF"],
        [FORBIDDEN, FORBIDDEN, FORBIDDEN, ITSELF],
    ),
    row(
        How::Only("bot", &["datastores:read"]),
        ("an", "hr"),
        ["FF", "FFF"],
        [NONE, FORBIDDEN, FORBIDDEN, ITSELF],
    ),
    row(
        How::Only("bot", &["datastores:read"]),
        ("f", "hr"),
        ["FF", "FFF"],
        [NONE, FORBIDDEN, FORBIDDEN, ITSELF_FORBIDDEN],
    ),
];

const OPERATIONS: [&str; 6] = ["get", "rename", "revoke", "restore", "rotate", "delete"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Own,
    Other,
    Service,
    Itself,
}

/// A world under a policy, with an actor and the tokens to act on.
struct Scene {
    world: World,
    actor: Actor,
    via: Option<IssuedToken>,
    own: Option<TokenId>,
    other: TokenId,
    service: TokenId,
}

impl Scene {
    fn new(how: How, management: TokenManagement, oversight: Oversight) -> Self {
        let world = World::with(policy(management, oversight));
        // An empty scope is within any other scope.
        let narrow = |name: &str| NewToken::named(name).scope([""; 0]);
        let other_owner = match how {
            How::Session("ann") | How::Inherit("ann") | How::Only("ann", _) => "bob",
            _ => "ann",
        };
        let other = world.issue(other_owner, narrow("other")).token.id();
        let service = world.issue("bot", narrow("service")).token.id();
        let (realm, owner) = match how {
            How::Session(owner) | How::Inherit(owner) | How::Only(owner, _) => {
                (home(), Some(owner))
            }
            How::Beta(owner) | How::BetaInherit(owner) => (beta(), Some(owner)),
            How::System | How::BetaSystem => (home(), None),
        };
        let via = match how {
            How::Inherit(owner) | How::BetaInherit(owner) => {
                Some(world.issue_in(&realm, owner, NewToken::named("via")))
            }
            How::Only(owner, scope) => Some(world.issue_in(
                &realm,
                owner,
                NewToken::named("via").scope(scope.iter().copied()),
            )),
            _ => None,
        };
        let human = |name: &str| {
            support::OWNERS.iter().any(|each| each.0 == name && each.1 == OwnerKind::Human)
        };
        let own = owner
            .filter(|owner| human(owner))
            .map(|owner| world.issue_in(&realm, owner, narrow("own")).token.id());
        let actor = match how {
            How::Session(owner) => session(owner),
            How::Beta(owner) => Actor::signed_in_to(beta(), id(owner)),
            How::System => Actor::system(),
            How::BetaSystem => Actor::system_in(beta()),
            How::Inherit(_) | How::Only(..) | How::BetaInherit(_) => {
                world.through(via.as_ref().unwrap())
            }
        };
        Self { world, actor, via, own, other, service }
    }

    fn target(&self, target: Target) -> TokenId {
        match target {
            Target::Own => self.own.unwrap(),
            Target::Other => self.other,
            Target::Service => self.service,
            Target::Itself => self.via.as_ref().unwrap().token.id(),
        }
    }

    fn operate(&self, operation: &str, id: TokenId) -> Result<(), ManageError> {
        let service = &self.world.service;
        match operation {
            "get" => ready(service.get(&self.actor, id)).map(drop),
            "rename" => ready(service.rename(&self.actor, id, "renamed")).map(drop),
            "revoke" => {
                ready(service.edit(&self.actor, id, TokenEdit::new().active(false))).map(drop)
            }
            "restore" => ready(service.restore(&self.actor, id)).map(drop),
            "rotate" => ready(service.rotate(&self.actor, id, Duration::ZERO)).map(drop),
            "delete" => ready(service.delete(&self.actor, id)),
            _ => panic!("no such operation"),
        }
    }
}

fn letter(result: &Result<(), ManageError>) -> char {
    match result {
        Ok(()) => '+',
        Err(
            ManageError::Forbidden { .. }
            | ManageError::ForbiddenByPolicy(_)
            | ManageError::NotForHost,
        ) => 'F',
        Err(ManageError::NotFound) => 'N',
        Err(ManageError::ActorRejected(_)) => 'R',
        Err(ManageError::Invalid(InvalidInput::OwnerKind(_))) => 'K',
        Err(ManageError::Refused(_)) => 'S',
        Err(error) => panic!("{error:?}"),
    }
}

/// Runs `check` for every row of the table under every policy of the row.
fn each(mut check: impl FnMut(&Row, TokenManagement, Oversight, &str)) {
    for row in TABLE {
        for management in MANAGEMENTS {
            for oversight in OVERSIGHTS {
                let (m, o) = match (management, oversight) {
                    (TokenManagement::Attenuated, Oversight::Hidden) => ("a", "h"),
                    (TokenManagement::Attenuated, _) => ("a", "r"),
                    (TokenManagement::Named, Oversight::Hidden) => ("n", "h"),
                    (TokenManagement::Named, _) => ("n", "r"),
                    (_, Oversight::Hidden) => ("f", "h"),
                    (_, _) => ("f", "r"),
                };
                if row.when.0.contains(m) && row.when.1.contains(o) {
                    check(
                        row,
                        management,
                        oversight,
                        &format!("{:?} {management:?} {oversight:?}", row.how),
                    );
                }
            }
        }
    }
}

#[test]
fn every_actor_with_every_operation_on_every_token_gets_the_answer_of_the_table() {
    let mut wrong = Vec::new();
    let mut cells = 0;
    each(|row, management, oversight, label| {
        for (target, letters) in [
            (Target::Own, row.own),
            (Target::Other, row.other),
            (Target::Service, row.service),
            (Target::Itself, row.itself),
        ] {
            for (operation, expected) in OPERATIONS.iter().zip(letters.chars()) {
                if expected == '.' {
                    continue;
                }
                cells += 1;
                let scene = Scene::new(row.how, management, oversight);
                let id = scene.target(target);
                if matches!(*operation, "restore" | "delete") && target != Target::Itself {
                    let by = ActorRef::System;
                    let at = scene.world.now();
                    scene.world.force(id, |token| {
                        token.facts.revocation = Some(Box::new(Revocation {
                            at,
                            by,
                            authority: Authority::Owner,
                            reason: Reason::Owner,
                        }));
                    });
                }
                let before = scene.world.snapshot();
                let result = scene.operate(operation, id);
                let got = letter(&result);
                if let Err(error) = &result {
                    assert_true_refusal(&scene, error, label);
                }
                if got != expected {
                    wrong.push(format!(
                        "{label}: {operation} {target:?} answers {got}, not {expected}"
                    ));
                    continue;
                }
                if got != '+' || *operation == "get" {
                    assert_eq!(scene.world.snapshot(), before, "{label}: {operation} {target:?}");
                } else {
                    assert_ne!(scene.world.snapshot(), before, "{label}: {operation} {target:?}");
                }
                // A token that the actor may not see answers like a missing token. So does an
                // operation that is forbidden before the id is read.
                let seen =
                    target == Target::Itself || (target == Target::Other && row.other == OVERSEEN);
                if matches!(got, 'N' | 'R') || (got == 'F' && !seen) {
                    let nothing = scene.operate(operation, nowhere());
                    if let (Err(one), Err(other)) = (&result, &nothing) {
                        assert_eq!(
                            format!("{one:?}"),
                            format!("{other:?}"),
                            "{label}: {operation} {target:?}"
                        );
                        assert_eq!(one.to_string(), other.to_string());
                    } else {
                        panic!("{label}: {operation} of nothing answers {nothing:?}");
                    }
                }
            }
        }
    });
    assert!(wrong.is_empty(), "{} of {cells} cells:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cells > 2_500, "{cells}");
}

#[test]
fn every_actor_generates_what_the_table_says() {
    each(|row, management, oversight, label| {
        for (kind, expected) in
            [TokenKind::Personal, TokenKind::Service].iter().zip(row.generate.chars())
        {
            let scene = Scene::new(row.how, management, oversight);
            let new = NewToken::named("new").scope([""; 0]);
            let new = if *kind == TokenKind::Service { new.for_service(id("bot")) } else { new };
            let before = scene.world.snapshot();
            let result = scene.world.generate(&scene.actor, new);
            match &result {
                Ok(issued) => {
                    let made = scene.world.stored(issued.token.id());
                    assert_eq!(made.kind, *kind, "{label}");
                    let realm = match row.how {
                        How::BetaSystem => beta(),
                        _ => scene.own.map_or(home(), |own| scene.world.stored(own).realm.clone()),
                    };
                    assert_eq!(made.realm, realm, "{label}");
                    assert_eq!(
                        made.creator(),
                        scene.via.as_ref().map(|via| via.token.id()),
                        "{label}"
                    );
                }
                Err(_) => assert_eq!(scene.world.snapshot(), before, "{label}"),
            }
            if let Err(error) = &result {
                assert_true_refusal(&scene, error, label);
            }
            assert_eq!(letter(&result.map(drop)), expected, "{label}: {kind}");
        }
    });
}

/// Asserts that a refusal does not name a permission that the actor holds, because the policy is
/// the cause then.
fn assert_true_refusal(scene: &Scene, error: &ManageError, label: &str) {
    let ManageError::Forbidden { permission } = error else { return };
    let standing = ready(scene.world.service.standing(&scene.actor)).unwrap();
    assert_ne!(standing.permissions.allows_str(permission), Ok(true), "{label}: {error}");
}

#[test]
fn every_actor_lists_what_the_table_says_and_nothing_else() {
    each(|row, management, oversight, label| {
        let scene = Scene::new(row.how, management, oversight);
        let service = &scene.world.service;
        let other = scene.world.stored(scene.other).owner.clone();
        let realm = match row.how {
            How::Beta(_) | How::BetaInherit(_) | How::BetaSystem => beta(),
            _ => home(),
        };
        let me = match row.how {
            How::Session(me)
            | How::Beta(me)
            | How::Inherit(me)
            | How::BetaInherit(me)
            | How::Only(me, _) => id(me),
            How::System | How::BetaSystem => id("system"),
        };
        let before = scene.world.snapshot();
        let lists = [
            ready(service.list(&scene.actor, None, 200)),
            ready(service.list_service(&scene.actor, None, 200)),
            ready(service.list_overseen(&scene.actor, &other, None, 200)),
        ];
        assert_eq!(scene.world.snapshot(), before, "{label}");
        let is_system = matches!(row.how, How::System | How::BetaSystem);
        let wanted: [&dyn Fn(&Token) -> bool; 3] = [
            &|token| is_system || token.kind == TokenKind::Personal && token.owner == me,
            &|token| token.kind == TokenKind::Service,
            &|token| (is_system || token.kind == TokenKind::Personal) && token.owner == other,
        ];
        for ((list, expected), wanted) in lists.into_iter().zip(row.list.chars()).zip(wanted) {
            if let Ok(page) = &list {
                let all = scene.world.tokens();
                let right: Vec<TokenId> = all
                    .iter()
                    .filter(|token| token.realm == realm && wanted(token))
                    .map(|token| token.id)
                    .collect();
                assert_eq!(ids(page), right, "{label}");
            }
            if let Err(error) = &list {
                assert_true_refusal(&scene, error, label);
            }
            assert_eq!(letter(&list.map(drop)), expected, "{label}");
        }
    });
}

fn ids(page: &TokenPage) -> Vec<TokenId> {
    page.items.iter().map(patkit::TokenView::id).collect()
}

#[test]
fn an_actor_that_is_no_longer_somebody_is_rejected_in_every_operation() {
    type Change = fn(&World, TokenId);
    let revoke: Change = |world, via| {
        ready(world.service.revoke(&session("ada"), via, Reason::Owner)).unwrap();
    };
    let delete: Change = |world, via| {
        ready(world.service.revoke(&session("ada"), via, Reason::Owner)).unwrap();
        ready(world.service.delete(&session("ada"), via)).unwrap();
    };
    let expire: Change = |world, via| world.clock.set(world.facts(via).expires_at.unwrap());
    let disable: Change =
        |world, _| world.put("ada", |ada| ada.with_role("admin").with_enabled(false));
    let remove: Change = |world, _| assert!(world.directory.remove(&home(), &id("ada")));
    let sign_out: Change = |world, _| {
        let after = world.now() + TimeDelta::microseconds(1);
        world.put("ada", |ada| ada.with_role("admin").with_tokens_valid_after(after));
    };
    let convert: Change = |world, _| {
        world.directory.put(Owner::new(id("ada"), OwnerKind::Service).with_role("admin"));
    };
    // The end of the token, the resulting rejection of the token, and that of a session.
    let table = [
        (revoke, RejectReason::Revoked, None),
        (delete, RejectReason::Unknown, None),
        (expire, RejectReason::Expired, None),
        (disable, RejectReason::OwnerDisabled, Some(RejectReason::OwnerDisabled)),
        (remove, RejectReason::OwnerUnknown, Some(RejectReason::OwnerUnknown)),
        (sign_out, RejectReason::BeforeValidAfter, None),
        (convert, RejectReason::OwnerKind, None),
    ];
    for (end, token_reason, session_reason) in table {
        for through_token in [true, false] {
            let expected = if through_token { Some(token_reason) } else { session_reason };
            let Some(expected) = expected else { continue };
            for operation in OPERATIONS {
                for target in [Target::Other, Target::Service, Target::Itself] {
                    let mut scene = Scene::new(
                        How::Inherit("ada"),
                        TokenManagement::Attenuated,
                        Oversight::RevokeOnly,
                    );
                    if !through_token {
                        scene.actor = session("ada");
                    }
                    let via = scene.via.as_ref().unwrap().token.id();
                    end(&scene.world, via);
                    let before = scene.world.snapshot();
                    match scene.operate(operation, scene.target(target)) {
                        Err(ManageError::ActorRejected(rejected)) => {
                            assert_eq!(rejected.reason, expected);
                        }
                        other => panic!("{operation}: {other:?}, not {expected}"),
                    }
                    assert_eq!(scene.world.snapshot(), before);
                }
            }
        }
    }
}

#[test]
fn a_demoted_owner_loses_the_management_of_what_it_made_at_once() {
    let world = World::new();
    let service = world.issue("bot", NewToken::named("a")).token.id();
    let personal = world.token("ada", "b");
    let via = world.issue("ada", NewToken::named("via"));
    for actor in [session("ada"), world.through(&via)] {
        world.put("ada", |ada| ada.with_role("admin"));
        ready(world.service.get(&actor, service)).unwrap();
        world.put("ada", |ada| ada.with_role("member"));
        assert!(matches!(ready(world.service.get(&actor, service)), Err(ManageError::NotFound)));
        ready(world.service.get(&actor, personal)).unwrap();
        world.put("ada", |ada| ada);
        let forbidden = ready(world.service.get(&actor, personal));
        assert!(matches!(forbidden, Err(ManageError::Forbidden { .. })));
    }
}

/// The reasons that each actor may give, and the one that is used if it gives none.
#[test]
fn an_actor_revokes_for_its_own_reasons_alone() {
    use Reason::{Admin, Compromised, Idle, Offboarding, Owner, System};
    let table: [(&str, How, Target, Reason, Authority, &[Reason]); 7] = [
        ("owner", How::Session("ann"), Target::Own, Owner, Authority::Owner, &[Owner, Compromised]),
        (
            "owner through a token",
            How::Inherit("ann"),
            Target::Own,
            Owner,
            Authority::Owner,
            &[Owner, Compromised],
        ),
        (
            "token itself",
            How::Only("ann", &[]),
            Target::Itself,
            Owner,
            Authority::Owner,
            &[Owner, Compromised],
        ),
        (
            "admin",
            How::Session("ada"),
            Target::Service,
            Admin,
            Authority::Admin,
            &[Admin, Compromised],
        ),
        (
            "overseer",
            How::Session("ada"),
            Target::Other,
            Admin,
            Authority::Admin,
            &[Admin, Compromised],
        ),
        (
            "host, personal",
            How::System,
            Target::Other,
            System,
            Authority::System,
            &[Owner, Admin, System, Offboarding, Idle, Compromised],
        ),
        (
            "host, service",
            How::System,
            Target::Service,
            System,
            Authority::System,
            &[Owner, Admin, System, Offboarding, Idle, Compromised],
        ),
    ];
    for (label, how, target, own, authority, allowed) in table {
        for reason in Reason::ALL.map(Some).into_iter().chain([None]) {
            let scene = Scene::new(how, TokenManagement::Attenuated, Oversight::RevokeOnly);
            let token = scene.target(target);
            let edit = TokenEdit::new().active(false);
            let edit = reason.into_iter().fold(edit, TokenEdit::reason);
            let before = scene.world.snapshot();
            let result = ready(scene.world.service.edit(&scene.actor, token, edit));
            if reason.is_none_or(|reason| allowed.contains(&reason)) {
                let view = result.unwrap();
                let revocation = view.revocation().unwrap();
                assert_eq!(revocation.reason, reason.unwrap_or(own), "{label}");
                assert_eq!(revocation.authority, authority, "{label}");
            } else {
                match result {
                    Err(ManageError::ReasonNotAllowed(refused)) => {
                        assert_eq!(Some(refused), reason, "{label}");
                    }
                    other => panic!("{label}: {reason:?} answers {other:?}"),
                }
                assert_eq!(scene.world.snapshot(), before, "{label}");
            }
        }
    }
}

#[test]
fn what_is_made_through_a_token_is_no_wider_than_it_in_scope() {
    type Entries = Option<&'static [&'static str]>;
    const MANAGE: &[&str] = &["tokens:manage", "service-tokens:manage", "datastores:*"];
    // The token's scope, the requested scope, and whether it is allowed for its own owner and for
    // another one.
    let table: [(Entries, Entries, bool, bool); 12] = [
        (None, None, true, false),
        (None, Some(&[]), true, true),
        (None, Some(&["anything:at:all"]), true, true),
        (Some(MANAGE), None, false, false),
        (Some(MANAGE), Some(&[]), true, true),
        (Some(MANAGE), Some(&["tokens:manage"]), true, true),
        (Some(MANAGE), Some(&["datastores:read"]), true, true),
        (Some(MANAGE), Some(&["datastores:*"]), true, true),
        (Some(MANAGE), Some(&["datastores:read", "buckets:read"]), false, false),
        (Some(MANAGE), Some(&["datastores"]), false, false),
        (Some(MANAGE), Some(&["tokens:*"]), false, false),
        (Some(MANAGE), Some(&["tokens:oversee"]), false, false),
    ];
    for (outer, inner, own, another) in table {
        for (expected, for_service) in [(own, false), (another, true)] {
            let world = World::new();
            let with = |new: NewToken, scope: Entries| {
                scope.into_iter().fold(new, |new, s| new.scope(s.iter().copied()))
            };
            let via = world.issue("ada", with(NewToken::named("via"), outer));
            let actor = world.through(&via);
            let new = with(NewToken::named("child"), inner);
            let new = if for_service { new.for_service(id("bot")) } else { new };
            let before = world.snapshot();
            let result = world.generate(&actor, new);
            let label = format!("{outer:?} makes {inner:?}, for a service user: {for_service}");
            check_attenuated(
                &world,
                result.map(|made| made.token.id()),
                expected,
                Attenuation::Scope,
                &before,
                &label,
            );
        }
    }
}

fn check_attenuated(
    world: &World,
    result: Result<TokenId, ManageError>,
    expected: bool,
    what: Attenuation,
    before: &(Vec<Token>, Vec<AuditEvent>),
    label: &str,
) {
    match result {
        Ok(_) => assert!(expected, "{label}"),
        Err(ManageError::Attenuation(refused)) => {
            assert!(!expected, "{label}");
            assert_eq!(refused, what, "{label}");
            assert_eq!(world.snapshot(), *before, "{label}");
        }
        Err(error) => panic!("{label}: {error:?}"),
    }
}

type Networks = Option<&'static [&'static str]>;

/// A token's networks, the networks of another token, and whether the latter are within the former.
const NETWORKS: [(Networks, Networks, bool); 9] = [
    (None, None, true),
    (None, Some(&["10.0.0.0/8"]), true),
    (Some(&["10.0.0.0/8"]), None, false),
    (Some(&["10.0.0.0/8"]), Some(&["10.0.0.0/8"]), true),
    (Some(&["10.0.0.0/8"]), Some(&["10.1.0.0/16", "10.2.3.4"]), true),
    (Some(&["10.0.0.0/8"]), Some(&["10.0.0.0/7"]), false),
    (Some(&["10.0.0.0/8"]), Some(&["10.1.0.0/16", "11.0.0.1"]), false),
    (Some(&["10.0.0.0/8"]), Some(&["::/0"]), false),
    (Some(&["10.0.0.0/8", "2001:db8::/32"]), Some(&["2001:db8:1::/48", "::ffff:10.0.0.1"]), true),
];

fn networked(new: NewToken, networks: Networks) -> NewToken {
    networks.into_iter().fold(new, |new, networks| new.networks(networks.iter().copied()))
}

/// Returns an actor through a token that is restricted to networks, verified from within them.
fn through_from_inside(world: &World, via: &IssuedToken) -> Actor {
    let inside: IpAddr = "10.0.0.1".parse().unwrap();
    let verified = ready(
        world
            .service
            .verify(Credential::text(via.plaintext.expose_secret()).from_address(Some(inside))),
    )
    .unwrap();
    Actor::token(&verified)
}

#[test]
fn what_is_made_restored_or_rotated_through_a_token_is_no_wider_than_it_in_networks() {
    for (outer, inner, expected) in NETWORKS {
        let label = format!("{outer:?}, {inner:?}");
        for operation in ["generate", "restore", "rotate"] {
            let world = World::new();
            let via = world.issue("ann", networked(NewToken::named("via"), outer));
            let actor = through_from_inside(&world, &via);
            let new = networked(NewToken::named("other"), inner);
            let result = if operation == "generate" {
                let before = world.snapshot();
                (world.generate(&actor, new).map(|made| made.token.id()), before)
            } else {
                operate_on_other(&world, &actor, new, operation)
            };
            check_attenuated(&world, result.0, expected, Attenuation::Networks, &result.1, &label);
        }
    }
}

/// Restores or rotates another token of `ann` through an actor.
fn operate_on_other(
    world: &World,
    actor: &Actor,
    new: NewToken,
    operation: &str,
) -> (Result<TokenId, ManageError>, (Vec<Token>, Vec<AuditEvent>)) {
    let other = world.issue("ann", new).token.id();
    if operation == "restore" {
        ready(world.service.revoke(&session("ann"), other, Reason::Owner)).unwrap();
    }
    let before = world.snapshot();
    let result = match operation {
        "restore" => ready(world.service.restore(actor, other)).map(|view| view.id()),
        "rotate" => {
            ready(world.service.rotate(actor, other, Duration::ZERO)).map(|made| made.token.id())
        }
        _ => panic!("no such operation"),
    };
    (result, before)
}

#[test]
fn what_is_restored_or_rotated_through_a_token_is_no_wider_than_it_in_scope_and_expiry() {
    let manage =
        || NewToken::named("via").scope(["tokens:manage", "datastores:*"]).expires_in_days(10);
    let other = || NewToken::named("other").expires_in_days(10);
    let table = [
        (other().scope(["datastores:read"]), None),
        (other().scope(["datastores:read"]).expires_in_days(9), None),
        (other(), Some(Attenuation::Scope)),
        (other().scope(["buckets:read"]), Some(Attenuation::Scope)),
        (other().scope(["tokens:*"]), Some(Attenuation::Scope)),
        (other().scope(["datastores:read"]).expires_in_days(11), Some(Attenuation::Expiry)),
        (other().scope(["datastores:read"]).never_expires(), Some(Attenuation::Expiry)),
    ];
    for (new, refused) in table {
        for operation in ["restore", "rotate"] {
            let world = World::new();
            let actor = world.through(&world.issue("ann", manage()));
            let label = format!("{operation} {new:?}");
            let (result, before) = operate_on_other(&world, &actor, new.clone(), operation);
            let what = refused.unwrap_or(Attenuation::Scope);
            check_attenuated(&world, result, refused.is_none(), what, &before, &label);
        }
    }
}

#[test]
fn a_service_token_that_inherits_is_neither_restored_nor_rotated_through_a_token_of_another_owner()
{
    for operation in ["restore", "rotate"] {
        for inherits in [true, false] {
            let world = World::new();
            let actor = world.through(&world.issue("ada", NewToken::named("via")));
            let new = NewToken::named("service");
            let new = if inherits { new } else { new.scope(["datastores:read"]) };
            let token = world.issue("bot", new).token.id();
            if operation == "restore" {
                ready(world.service.revoke(&session("ada"), token, Reason::Admin)).unwrap();
            }
            let before = world.snapshot();
            let result = match operation {
                "restore" => ready(world.service.restore(&actor, token)).map(|view| view.id()),
                _ => ready(world.service.rotate(&actor, token, Duration::ZERO))
                    .map(|made| made.token.id()),
            };
            check_attenuated(&world, result, !inherits, Attenuation::Scope, &before, operation);
        }
    }
}

#[test]
fn what_is_made_through_a_token_ends_no_later_and_the_default_is_shortened() {
    let days = |count| start() + TimeDelta::days(count);
    let outer = |new: NewToken, limit: Option<i64>| match limit {
        Some(limit) => new.expires_in_days(limit),
        None => new.never_expires(),
    };
    type Ask = fn(NewToken) -> NewToken;
    let default: Ask = |new| new;
    let ten: Ask = |new| new.expires_in_days(10);
    let eleven: Ask = |new| new.expires_in_days(11);
    let never: Ask = NewToken::never_expires;
    // The end of the token in days, the requested lifetime, and the result.
    let table = [
        (Some(10), default, Ok(Some(days(10)))),
        (Some(10), ten, Ok(Some(days(10)))),
        (Some(10), eleven, Err(LifetimeError::OutlivesCreator)),
        (Some(10), never, Err(LifetimeError::OutlivesCreator)),
        (Some(200), default, Ok(Some(days(90)))),
        (None, default, Ok(Some(days(90)))),
        (None, eleven, Ok(Some(days(11)))),
        (None, never, Ok(None)),
    ];
    for (limit, ask, expected) in table {
        let world = World::new();
        let actor = world.through(&world.issue("ann", outer(NewToken::named("via"), limit)));
        let result = world.generate(&actor, ask(NewToken::named("child")));
        match (result, expected) {
            (Ok(made), Ok(expected)) => assert_eq!(made.token.expires_at(), expected),
            (Err(ManageError::Invalid(InvalidInput::Lifetime(error))), Err(expected)) => {
                assert_eq!(error, expected);
            }
            (result, expected) => panic!("{limit:?}: {result:?}, not {expected:?}"),
        }
    }
    // One minute later, a lifetime of ten days outlives the token.
    let world = World::new();
    let actor = world.through(&world.issue("ann", NewToken::named("via").expires_in_days(10)));
    world.advance(TimeDelta::minutes(1));
    assert!(world.generate(&actor, NewToken::named("a").expires_in_days(10)).is_err());
    let made = world.generate(&actor, NewToken::named("b")).unwrap();
    assert_eq!(made.token.expires_at(), Some(days(10)));
}

#[test]
fn the_creator_is_recorded() {
    let world = World::new();
    let by_session = world.generate(&session("ann"), NewToken::named("a")).unwrap();
    assert_eq!(*by_session.token.created_by(), ActorRef::Owner(id("ann")));
    let via = world.issue("ada", NewToken::named("via"));
    let actor = world.through(&via);
    let expected = ActorRef::Token { owner: id("ada"), id: via.token.id() };
    let personal = world.generate(&actor, NewToken::named("b")).unwrap();
    let service = NewToken::named("c").scope([""; 0]).for_service(id("bot"));
    let service = world.generate(&actor, service).unwrap();
    for made in [&personal, &service] {
        assert_eq!(*made.token.created_by(), expected);
        assert_eq!(world.stored(made.token.id()).created_by, expected);
    }
}

#[test]
fn a_scope_that_covers_scim_takes_its_own_permission() {
    let world = World::new();
    for (scope, covers) in [
        (vec!["scim:*"], true),
        (vec!["scim:users"], true),
        (vec!["datastores:read", "scim:users:read"], true),
        (vec!["*"], true),
        (vec!["scim"], false),
        (vec!["scimitar:*"], false),
        (vec![], false),
    ] {
        let new = || NewToken::named(&format!("{scope:?}")).scope(scope.iter().copied());
        let for_bot = || new().for_service(id("bot"));
        // `ann` and `robot` may manage tokens of their kind but lack `tokens:scim`; `ada` has all
        // permissions.
        for (actor, asked) in [(session("ann"), new()), (session("robot"), for_bot())] {
            match world.generate(&actor, asked) {
                Err(ManageError::Forbidden { permission }) => {
                    assert_eq!((permission, covers), ("tokens:scim", true));
                }
                result => assert!(result.is_ok() && !covers, "{scope:?}: {result:?}"),
            }
        }
        world.generate(&session("ada"), new()).unwrap();
        if covers {
            world.generate(&session("ada"), for_bot()).unwrap();
        }
    }
    // Restores and rotates a token that somebody else made.
    let token = world.issue("ann", NewToken::named("scim").scim_only()).token.id();
    let rotated = ready(world.service.rotate(&session("ann"), token, Duration::ZERO));
    assert!(matches!(rotated, Err(ManageError::Forbidden { permission: "tokens:scim" })));
    ready(world.service.revoke(&session("ann"), token, Reason::Owner)).unwrap();
    let restored = ready(world.service.restore(&session("ann"), token));
    assert!(matches!(restored, Err(ManageError::Forbidden { permission: "tokens:scim" })));
    assert_eq!(world.stored(token).state(world.now()), TokenState::Revoked);
}

#[test]
fn a_child_stays_within_its_creators_scope_when_the_owner_is_promoted() {
    let world = World::new();
    let narrow = NewToken::named("via").scope(["tokens:manage", "datastores:*"]);
    let via = world.issue("ann", narrow);
    let child = NewToken::named("child").scope(["datastores:read", "tokens:manage"]);
    let child = world.generate(&world.through(&via), child).unwrap();
    let inheriting = world.issue("ann", NewToken::named("inherits"));
    world.put("ann", |ann| ann.with_role("admin").with_grants(support::grants(&["*"])));
    for token in [&via, &child] {
        let verified = world.verify(token).unwrap();
        for permission in ["service-tokens:manage", "tokens:oversee", "buckets:read", "scim:users"]
        {
            assert!(verified.require(permission).is_err(), "{permission}");
        }
        verified.require("datastores:read").unwrap();
    }
    // A token that inherits follows its owner in both directions.
    world.verify(&inheriting).unwrap().require("buckets:read").unwrap();
    world.put("ann", |ann| ann);
    assert!(world.verify(&inheriting).unwrap().require("datastores:read").is_err());
    assert!(world.verify(&child).unwrap().require("datastores:read").is_err());
}

#[test]
fn a_service_token_that_an_admin_reports_takes_its_family_with_it() {
    let world = World::new();
    let robot = world.issue("robot", NewToken::named("robot"));
    let make = |through: &IssuedToken, name: &str| {
        let new = NewToken::named(name).scope(["service-tokens:manage"]).for_service(id("robot"));
        world.generate(&world.through(through), new).unwrap()
    };
    let child = make(&robot, "child");
    let grandchild = make(&child, "grandchild");
    let other = world.issue("robot", NewToken::named("other"));
    ready(world.service.revoke(&session("ada"), robot.token.id(), Reason::Compromised)).unwrap();
    for token in [&robot, &child, &grandchild] {
        assert_eq!(reason_of(&world, token), Some(Reason::Compromised));
        let restored = ready(world.service.restore(&Actor::system(), token.token.id()));
        assert!(matches!(restored, Err(ManageError::Refused(_))));
    }
    assert_eq!(world.refusal(&other), None);
}

/// A token that made a child, which made a grandchild, which made a great-grandchild.
struct Family {
    root: IssuedToken,
    child: IssuedToken,
    grandchild: IssuedToken,
    great: IssuedToken,
    stranger: IssuedToken,
    sibling: IssuedToken,
}

fn family(world: &World) -> Family {
    let make = |through: &IssuedToken, name: &str| {
        world.generate(&world.through(through), NewToken::named(name)).unwrap()
    };
    let root = world.issue("ada", NewToken::named("root"));
    let child = make(&root, "child");
    let grandchild = make(&child, "grandchild");
    let service = NewToken::named("great").scope(["datastores:read"]).for_service(id("bot"));
    let great = world.generate(&world.through(&grandchild), service).unwrap();
    let stranger = world.issue("ada", NewToken::named("stranger"));
    let sibling = make(&stranger, "sibling");
    Family { root, child, grandchild, great, stranger, sibling }
}

fn reason_of(world: &World, issued: &IssuedToken) -> Option<Reason> {
    world.facts(issued.token.id()).revocation.map(|revocation| revocation.reason)
}

#[test]
fn compromise_follows_the_family_through_every_state_of_the_middle() {
    type Before = fn(&World, &Family);
    let nothing: Before = |_, _| {};
    let revoked: Before = |world, family| {
        ready(world.service.revoke(&session("ada"), family.child.token.id(), Reason::Owner))
            .unwrap();
    };
    let deleted: Before = |world, family| {
        let child = family.child.token.id();
        ready(world.service.revoke(&session("ada"), child, Reason::Owner)).unwrap();
        ready(world.service.delete(&session("ada"), child)).unwrap();
    };
    let both_deleted: Before = |world, family| {
        for token in [&family.child, &family.grandchild] {
            let id = token.token.id();
            ready(world.service.revoke(&session("ada"), id, Reason::Owner)).unwrap();
            ready(world.service.delete(&session("ada"), id)).unwrap();
        }
    };
    let pruned: Before = |world, family| {
        ready(world.service.revoke(&session("ada"), family.child.token.id(), Reason::Owner))
            .unwrap();
        world.advance(TimeDelta::days(3));
        ready(world.service.prune(Duration::from_secs(86_400))).unwrap();
    };
    let rotated_by_itself: Before = |world, family| {
        let actor = world.through(&family.child);
        ready(world.service.rotate(&actor, family.child.token.id(), Duration::ZERO)).unwrap();
    };
    let root_expired: Before = |world, family| {
        world.clock.set(world.facts(family.root.token.id()).expires_at.unwrap());
    };
    for (label, before) in [
        ("nothing", nothing),
        ("revoked", revoked),
        ("deleted", deleted),
        ("both deleted", both_deleted),
        ("pruned", pruned),
        ("rotated by itself", rotated_by_itself),
        ("all expired", root_expired),
    ] {
        for by in ["its owner", "itself", "the host"] {
            let world = World::new();
            let family = family(&world);
            let itself = world.through(&family.root);
            before(&world, &family);
            let actor = match by {
                "its owner" => session("ada"),
                "itself" if label == "all expired" => continue,
                "itself" => itself,
                _ => Actor::system(),
            };
            world.heard.take();
            let told = world.events();
            ready(world.service.revoke(&actor, family.root.token.id(), Reason::Compromised))
                .unwrap();
            let mut family_events = 0;
            for token in world.tokens() {
                let is_family =
                    token.id != family.stranger.token.id() && token.id != family.sibling.token.id();
                let reason = token.facts.revocation.as_ref().map(|revocation| revocation.reason);
                let expected = is_family.then_some(Reason::Compromised);
                assert_eq!(reason, expected, "{label}, by {by}: {}", token.name);
                family_events += usize::from(is_family);
            }
            let stored = world.events_since(&told);
            assert_eq!(stored.len(), family_events, "{label}, by {by}: one event per token");
            assert!(stored.iter().all(|event| {
                event.action == AuditAction::Revoked
                    && event.reason.as_deref() == Some("compromised")
            }));
            assert_eq!(world.heard.take(), stored);
            let again = world.snapshot();
            let who = if by == "itself" { session("ada") } else { actor };
            ready(world.service.revoke(&who, family.root.token.id(), Reason::Compromised)).unwrap();
            assert_eq!(world.snapshot(), again, "a second report changes nothing");
        }
    }
}

#[test]
fn compromise_goes_down_the_family_and_not_up() {
    let world = World::new();
    let family = family(&world);
    ready(world.service.revoke(&session("ada"), family.grandchild.token.id(), Reason::Compromised))
        .unwrap();
    for token in [&family.root, &family.child, &family.stranger, &family.sibling] {
        assert_eq!(world.refusal(token), None);
    }
    assert_eq!(reason_of(&world, &family.grandchild), Some(Reason::Compromised));
    assert_eq!(reason_of(&world, &family.great), Some(Reason::Compromised));
}

#[test]
fn no_other_reason_follows_the_family() {
    for reason in [Reason::System, Reason::Offboarding, Reason::Idle] {
        let world = World::new();
        let family = family(&world);
        ready(world.service.revoke(&Actor::system(), family.root.token.id(), reason)).unwrap();
        for token in [&family.child, &family.grandchild, &family.great] {
            assert_eq!(reason_of(&world, token), None, "{reason}");
        }
    }
}

#[test]
fn a_deleted_record_hands_its_children_to_its_own_maker() {
    let world = World::new();
    let family = family(&world);
    let (root, child) = (family.root.token.id(), family.child.token.id());
    let grandchild = family.grandchild.token.id();
    ready(world.service.revoke(&session("ada"), child, Reason::Owner)).unwrap();
    ready(world.service.delete(&session("ada"), child)).unwrap();
    assert_eq!(world.stored(grandchild).creator(), Some(root));
    ready(world.service.revoke(&session("ada"), root, Reason::Owner)).unwrap();
    ready(world.service.delete(&session("ada"), root)).unwrap();
    assert_eq!(world.stored(grandchild).created_by, ActorRef::Owner(id("ada")));
    assert_eq!(
        world.refusal(&family.grandchild),
        None,
        "no other reason than its own takes it away"
    );
}

#[test]
fn offboarding_revokes_what_is_active_and_keeps_first_facts() {
    let world = World::new();
    let active = world.issue("ann", NewToken::named("active"));
    let narrowed = world.issue("ann", NewToken::named("narrowed").scope(["datastores:read"]));
    let revoked = world.issue("ann", NewToken::named("revoked"));
    let expired = world.issue("ann", NewToken::named("expired").expires_in_days(1));
    let elsewhere = world.issue_in(&beta(), "ann", NewToken::named("active"));
    let others = world.issue("bob", NewToken::named("active"));
    let robots = world.issue("bot", NewToken::named("service"));
    ready(world.service.revoke(&session("ann"), revoked.token.id(), Reason::Owner)).unwrap();
    world.advance(TimeDelta::days(1));
    world.heard.take();
    let told = world.events();
    assert_eq!(ready(world.service.revoke_all(&home(), &id("ann"))).unwrap(), 2);
    for token in [&active, &narrowed] {
        let revocation = world.facts(token.token.id()).revocation.unwrap();
        assert_eq!(revocation.reason, Reason::Offboarding);
        assert_eq!(revocation.authority, Authority::System);
        assert_eq!(revocation.by, ActorRef::System);
        assert_eq!(revocation.at, world.now());
        assert_eq!(world.refusal(token), Some(RejectReason::Revoked));
        let restored = ready(world.service.restore(&session("ann"), token.token.id()));
        assert!(matches!(restored, Err(ManageError::Refused(_))), "not by its owner");
    }
    assert_eq!(reason_of(&world, &revoked), Some(Reason::Owner));
    assert_eq!(reason_of(&world, &expired), None);
    for token in [&elsewhere, &others, &robots] {
        assert_eq!(reason_of(&world, token), None);
    }
    let stored = world.events_since(&told);
    assert_eq!(world.heard.take().len(), 2);
    assert_eq!(stored.len(), 2);
    assert_eq!(ready(world.service.revoke_all(&home(), &id("ann"))).unwrap(), 0, "twice is once");
    assert_eq!(ready(world.service.revoke_all(&home(), &id("ghost"))).unwrap(), 0);
    assert_eq!(
        ready(world.service.revoke_all(&home(), &id("bot"))).unwrap(),
        1,
        "service tokens too"
    );
    ready(world.service.restore(&Actor::system(), active.token.id())).unwrap();
    assert_eq!(world.refusal(&active), None);
}

const ERASED: &str = "somebody@to-be-erased.example";

/// Lets one owner do everything that is audited, and has everything done to that owner.
fn a_life(world: &World) -> Vec<IssuedToken> {
    let address: IpAddr = "192.0.2.7".parse().unwrap();
    world.put(ERASED, |owner| owner.with_role("admin"));
    let me = session(ERASED).from_address(address);
    let made = world.generate(&me, NewToken::named("one")).unwrap();
    let one = made.token.id();
    ready(world.service.rename(&me, one, "uno")).unwrap();
    ready(world.service.revoke(&me, one, Reason::Owner)).unwrap();
    assert!(world.verify(&made).is_err());
    ready(world.service.restore(&me, one)).unwrap();
    let successor = ready(world.service.rotate(&me, one, Duration::ZERO)).unwrap();
    assert!(
        ready(
            world.service.verify(
                Credential::text(made.plaintext.expose_secret()).from_address(Some(address))
            )
        )
        .is_err()
    );
    let through = Actor::token(
        &ready(world.service.verify(
            Credential::text(successor.plaintext.expose_secret()).from_address(Some(address)),
        ))
        .unwrap(),
    );
    let child = world.generate(&through, NewToken::named("child")).unwrap();
    let bots = NewToken::named("bots").scope(["datastores:read"]).for_service(id("bot"));
    let bots = world.generate(&through, bots).unwrap();
    ready(world.service.rename(&through, bots.token.id(), "theirs")).unwrap();
    let gone = world.generate(&me, NewToken::named("gone")).unwrap();
    ready(world.service.revoke(&Actor::system(), gone.token.id(), Reason::System)).unwrap();
    ready(world.service.delete(&me, gone.token.id())).unwrap();
    ready(world.service.flush()).unwrap();
    vec![made, successor, child, bots]
}

fn traces(events: &[AuditEvent]) -> Vec<&AuditEvent> {
    events.iter().filter(|event| format!("{event:?}").contains(ERASED)).collect()
}

#[test]
fn erasing_an_owner_leaves_no_trace_in_any_stored_event() {
    let world = World::built(|builder| builder.audit_refusals(1)).unwrap();
    let lives = a_life(&world);
    let elsewhere = world.issue_in(&beta(), "ann", NewToken::named("elsewhere"));
    assert!(traces(&world.events()).len() > 10, "there is something to erase");
    let kinds: std::collections::HashSet<AuditAction> =
        world.events().iter().map(|event| event.action).collect();
    for action in [
        AuditAction::Generated,
        AuditAction::Renamed,
        AuditAction::Revoked,
        AuditAction::Restored,
        AuditAction::Rotated,
        AuditAction::Reuse,
        AuditAction::Deleted,
        AuditAction::Refused,
    ] {
        assert!(kinds.contains(&action), "{action}");
    }
    let before = world.events().len();
    world.heard.take();
    assert_eq!(ready(world.service.erase_owner(&home(), &id(ERASED))).unwrap(), 3);
    assert_eq!(traces(&world.events()), Vec::<&AuditEvent>::new());
    let heard = world.heard.take();
    assert_eq!(
        (heard.len(), traces(&heard)),
        (3, vec![]),
        "the sink is not told of whom they were"
    );
    let after = world.events();
    assert_eq!(after.len(), before + 3, "no event goes, and each removal is told");
    let address: IpAddr = "192.0.2.7".parse().unwrap();
    assert!(after.iter().all(|event| event.address != Some(address)), "the address is a trace too");
    let [made, successor, child, bots] = lives.as_slice() else { panic!("four tokens") };
    for token in [made, successor, child] {
        assert!(world.find(token.token.id()).is_none());
        assert_eq!(world.refusal(token), Some(RejectReason::Unknown));
    }
    assert_eq!(world.refusal(bots), None, "what was made for others stays");
    assert_eq!(world.stored(bots.token.id()).created_by, ActorRef::Erased);
    assert_eq!(world.refusal(&elsewhere), None);
    assert_eq!(ready(world.service.erase_owner(&home(), &id(ERASED))).unwrap(), 0, "twice is once");
}

#[test]
fn erasing_an_owner_leaves_the_other_realm_alone() {
    let world = World::new();
    let here = world.issue("ann", NewToken::named("here"));
    let there = world.issue_in(&beta(), "ann", NewToken::named("there"));
    let before = world.events_in(&beta());
    assert_eq!(ready(world.service.erase_owner(&home(), &id("ann"))).unwrap(), 1);
    assert_eq!(world.events_in(&beta()), before);
    assert_eq!(world.refusal(&here), Some(RejectReason::Unknown));
    assert!(world.find(there.token.id()).is_some());
}

fn idle_world(days: u32) -> World {
    let policy = TokenPolicy::builder()
        .idle_limit_days(days)
        .last_used_granularity(Duration::from_secs(60))
        .build()
        .unwrap();
    World::built(|builder| builder.policy(policy).flush_interval(Duration::from_secs(10))).unwrap()
}

#[test]
fn the_sweep_waits_for_the_limit_and_its_slack_to_the_microsecond() {
    // The limit of one day, plus the granularity and the flush interval.
    let end = TimeDelta::days(1) + TimeDelta::seconds(60) + TimeDelta::seconds(10);
    let tick = TimeDelta::microseconds(1);
    for (waited, swept) in [(end - tick, 0), (end, 0), (end + tick, 1)] {
        let world = idle_world(1);
        let token = world.issue("ann", NewToken::named("a"));
        world.advance(waited);
        assert_eq!(ready(world.service.sweep_idle()).unwrap(), swept, "{waited}");
        let revocation = world.facts(token.token.id()).revocation;
        assert_eq!(revocation.is_some(), swept == 1);
        if let Some(revocation) = revocation {
            assert_eq!(revocation.reason, Reason::Idle);
            assert_eq!(revocation.authority, Authority::System);
            ready(world.service.restore(&session("ann"), token.token.id())).unwrap();
            assert_eq!(
                ready(world.service.sweep_idle()).unwrap(),
                0,
                "restored: it counts from then"
            );
            world.advance(end + tick);
            assert_eq!(ready(world.service.sweep_idle()).unwrap(), 1);
        }
    }
}

#[test]
fn a_use_puts_the_sweep_off_also_one_that_was_not_written_yet() {
    let end = TimeDelta::days(1) + TimeDelta::seconds(70);
    for flushed in [true, false] {
        let world = idle_world(1);
        let token = world.issue("ann", NewToken::named("a"));
        world.advance(TimeDelta::hours(20));
        world.verify(&token).unwrap();
        if flushed {
            ready(world.service.flush()).unwrap();
        }
        world.advance(TimeDelta::hours(20));
        assert_eq!(ready(world.service.sweep_idle()).unwrap(), 0);
        world.advance(end - TimeDelta::hours(20));
        assert_eq!(ready(world.service.sweep_idle()).unwrap(), 0);
        world.advance(TimeDelta::microseconds(1));
        assert_eq!(ready(world.service.sweep_idle()).unwrap(), 1);
    }
}

#[test]
fn a_sweep_takes_what_is_active_in_all_realms_and_nothing_without_a_limit() {
    let world = World::new();
    world.issue("ann", NewToken::named("a").never_expires());
    world.advance(TimeDelta::days(1_000));
    assert_eq!(ready(world.service.sweep_idle()).unwrap(), 0, "no limit, no sweep");

    let world = idle_world(2);
    let tokens = [
        world.issue("ann", NewToken::named("a")),
        world.issue_in(&beta(), "ann", NewToken::named("a")),
        world.issue("bot", NewToken::named("a")),
    ];
    let revoked = world.issue("ann", NewToken::named("revoked"));
    ready(world.service.revoke(&session("ann"), revoked.token.id(), Reason::Owner)).unwrap();
    let expired = world.issue("ann", NewToken::named("expired").expires_in_days(1));
    world.advance(TimeDelta::days(3));
    let young = world.issue("ann", NewToken::named("young"));
    assert_eq!(ready(world.service.sweep_idle()).unwrap(), 3);
    for token in &tokens {
        assert_eq!(reason_of(&world, token), Some(Reason::Idle));
    }
    assert_eq!(reason_of(&world, &revoked), Some(Reason::Owner));
    assert_eq!(reason_of(&world, &expired), None);
    assert_eq!(reason_of(&world, &young), None);
    assert_eq!(ready(world.service.sweep_idle()).unwrap(), 0);
}

#[test]
fn the_limit_of_live_tokens_counts_what_is_active_and_has_no_successor() {
    let policy = TokenPolicy::builder().live_tokens_per_owner(2).build().unwrap();
    let world = World::with(policy);
    let ann = session("ann");
    let generate = |name: &str| world.generate(&ann, NewToken::named(name).expires_in_days(10));
    let full = |result: Result<(), ManageError>| {
        assert!(matches!(result, Err(ManageError::TooManyTokens { most: 2 })), "{result:?}");
    };
    let first = generate("1").unwrap().token.id();
    let second = generate("2").unwrap().token.id();
    let before = world.snapshot();
    full(generate("3").map(drop));
    assert_eq!(world.snapshot(), before);
    // Other owners have limits of their own.
    world.generate(&session("bob"), NewToken::named("1")).unwrap();
    world.generate(&Actor::signed_in_to(beta(), id("ann")), NewToken::named("1")).unwrap();
    let service = |name: &str| NewToken::named(name).for_service(id("bot"));
    world.generate(&session("ada"), service("1")).unwrap();
    world.generate(&session("ada"), service("2")).unwrap();
    full(world.generate(&session("ada"), service("3")).map(drop));
    // A revoked token makes room, and a restored token needs room.
    ready(world.service.revoke(&ann, first, Reason::Owner)).unwrap();
    let third = generate("3").unwrap().token.id();
    full(ready(world.service.restore(&ann, first)).map(drop));
    full(ready(world.service.edit(&ann, first, TokenEdit::new().active(true))).map(drop));
    // A rotation needs no room, and a token in its overlap takes none.
    let hour = Duration::from_secs(3_600);
    let fourth = ready(world.service.rotate(&ann, third, hour)).unwrap().token.id();
    assert_eq!(world.stored(third).state(world.now()), TokenState::Active);
    full(generate("5").map(drop));
    ready(world.service.revoke(&ann, fourth, Reason::Owner)).unwrap();
    generate("5").unwrap();
    full(generate("6").map(drop));
    // An expired token makes room.
    world.clock.set(world.facts(second).expires_at.unwrap());
    generate("7").unwrap();
    generate("8").unwrap();
    full(generate("9").map(drop));
}

/// Counts the lists of ended tokens, and records the largest one.
struct Counting {
    store: Arc<patkit::MemoryStore>,
    lists: AtomicUsize,
    largest: AtomicUsize,
}

impl TokenStore for Counting {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.store.find(id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.store.list(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.store.commit(batch).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.store.touch(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        let page = self.store.list_ended(before, limit).await?;
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.largest.fetch_max(page.tokens.len().max(limit), Ordering::SeqCst);
        Ok(page)
    }
}

#[test]
fn pruning_goes_in_bounded_batches_until_nothing_is_left() {
    let world = World::new();
    let made = world.issue("ann", NewToken::named("model"));
    let model = world.stored(made.token.id());
    ready(world.service.revoke(&session("ann"), made.token.id(), Reason::Owner)).unwrap();
    // 1,700 revoked copies of the token.
    let mut batch = ChangeBatch::new();
    for number in 0_u16..1_700 {
        let mut bytes = model.id.to_bytes();
        bytes[14..].copy_from_slice(&number.to_be_bytes());
        bytes[9] ^= 1;
        let mut token = Token {
            id: TokenId::from_bytes(bytes).unwrap(),
            facts: world.facts(model.id),
            ..Token::clone(&model)
        };
        token.rename(patkit::token::TokenName::new(&format!("copy {number}")).unwrap());
        batch = batch.change(Change::Insert(Arc::new(token)));
    }
    ready(world.store.commit(&batch)).unwrap();
    let alive = world.issue("ann", NewToken::named("alive"));
    world.advance(TimeDelta::days(2));
    let counting = Arc::new(Counting {
        store: world.store.clone(),
        lists: AtomicUsize::new(0),
        largest: AtomicUsize::new(0),
    });
    let service = patkit::TokenService::builder(counting.clone(), world.directory.clone())
        .brand("acme")
        .keyring(patkit::Keyring::ephemeral().unwrap())
        .clock(world.clock.clone())
        .build()
        .unwrap();
    assert_eq!(ready(service.prune(Duration::from_secs(3 * 86_400))).unwrap(), 0, "not that long");
    assert_eq!(world.store.len(), 1_702);
    assert_eq!(ready(service.prune(Duration::from_secs(86_400))).unwrap(), 1_701);
    assert_eq!(world.store.len(), 1);
    assert!(world.find(alive.token.id()).is_some());
    assert!(counting.largest.load(Ordering::SeqCst) <= 500);
    assert!(counting.lists.load(Ordering::SeqCst) >= 4);
}

#[test]
fn pruning_takes_what_ended_long_enough_ago_to_the_microsecond() {
    let tick = TimeDelta::microseconds(1);
    let age = TimeDelta::days(30);
    for (waited, removed) in [(age - tick, 0), (age, 2), (age + tick, 2)] {
        let world = World::new();
        let expired = world.issue("ann", NewToken::named("expired").expires_in_days(1));
        let revoked = world.issue("ann", NewToken::named("revoked"));
        let active = world.issue("ann", NewToken::named("active"));
        world.advance(TimeDelta::days(1));
        ready(world.service.revoke(&session("ann"), revoked.token.id(), Reason::Owner)).unwrap();
        world.advance(waited);
        assert_eq!(ready(world.service.prune(age.to_std().unwrap())).unwrap(), removed, "{waited}");
        assert_eq!(world.find(expired.token.id()).is_none(), removed == 2);
        assert!(world.find(active.token.id()).is_some());
    }
}

#[test]
fn pruning_never_takes_what_has_not_ended() {
    let world = World::new();
    world.token("ann", "a");
    for age in [Duration::ZERO, Duration::from_secs(86_400), Duration::MAX] {
        assert_eq!(ready(world.service.prune(age)).unwrap(), 0, "{age:?}");
    }
    assert_eq!(world.store.len(), 1);
}

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
fn names_are_unique_for_realm_owner_and_kind_among_what_is_not_deleted() {
    let world = World::new();
    let ann = session("ann");
    let generate =
        |name: &str| world.generate(&ann, NewToken::named(name)).map(|made| made.token.id());
    let taken = |result: Result<TokenId, ManageError>| {
        assert!(matches!(result, Err(ManageError::NameTaken)), "{result:?}");
    };
    let first = generate("Straße").unwrap();
    for same in ["Straße", "STRASSE", "strasse ", "stra\u{AD}sse", "ｓtrasse"] {
        let before = world.snapshot();
        taken(generate(same));
        assert_eq!(world.snapshot(), before);
    }
    let second = generate("b").unwrap();
    taken(ready(world.service.rename(&ann, second, "STRASSE")).map(|view| view.id()));
    ready(world.service.rename(&ann, first, "STRASSE")).unwrap();
    assert_eq!(world.stored(first).name.as_str(), "STRASSE", "its own name in another form");
    // Another owner, another kind and another realm may have the same name.
    world.generate(&session("bob"), NewToken::named("b")).unwrap();
    world.generate(&session("ada"), NewToken::named("b").for_service(id("bot"))).unwrap();
    world.generate(&session("ada"), NewToken::named("b").for_service(id("robot"))).unwrap();
    world.generate(&Actor::signed_in_to(beta(), id("ann")), NewToken::named("b")).unwrap();
    // A revoked or expired token keeps its name, and a deleted one does not.
    ready(world.service.revoke(&ann, second, Reason::Owner)).unwrap();
    taken(generate("b"));
    ready(world.service.delete(&ann, second)).unwrap();
    let second = generate("b").unwrap();
    world.clock.set(world.facts(second).expires_at.unwrap());
    taken(generate("b"));
    ready(world.service.delete(&ann, second)).unwrap();
    generate("b").unwrap();
}

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

/// Returns an event in the form of the table below.
fn told(event: &AuditEvent) -> (AuditAction, TokenId, Option<String>) {
    (event.action, event.token, event.reason.as_ref().map(ToString::to_string))
}

#[test]
fn every_operation_stores_its_events_and_tells_the_sink_the_same() {
    use AuditAction::{Deleted, Generated, Renamed, Restored, Revoked, Rotated};
    let address: IpAddr = "203.0.113.5".parse().unwrap();
    type Operate = fn(&World, &Actor, TokenId) -> Option<TokenId>;
    let generate: Operate =
        |world, actor, _| Some(world.generate(actor, NewToken::named("new")).unwrap().token.id());
    let rename: Operate = |world, actor, id| {
        ready(world.service.rename(actor, id, "renamed")).unwrap();
        None
    };
    let describe: Operate = |world, actor, id| {
        ready(world.service.edit(actor, id, TokenEdit::new().description("d"))).unwrap();
        None
    };
    let revoke: Operate = |world, actor, id| {
        ready(world.service.edit(actor, id, TokenEdit::new().active(false))).unwrap();
        None
    };
    let compromise: Operate = |world, actor, id| {
        ready(world.service.revoke(actor, id, Reason::Compromised)).unwrap();
        None
    };
    let restore: Operate = |world, actor, id| {
        ready(world.service.restore(actor, id)).unwrap();
        None
    };
    let rotate: Operate = |world, actor, id| {
        let made = ready(world.service.rotate(actor, id, Duration::ZERO)).unwrap();
        Some(made.token.id())
    };
    let delete: Operate = |world, actor, id| {
        ready(world.service.delete(actor, id)).unwrap();
        None
    };
    let get: Operate = |world, actor, id| {
        ready(world.service.get(actor, id)).unwrap();
        None
    };
    let list: Operate = |world, actor, _| {
        ready(world.service.list(actor, None, 10)).unwrap();
        None
    };
    let nothing: Operate = |world, actor, id| {
        ready(world.service.edit(actor, id, TokenEdit::new().active(true).name("target"))).unwrap();
        None
    };
    // The operation, whether the token is revoked before, and the events. `true` marks an event of
    // the token that the operation makes.
    let table: [(&str, Operate, bool, Vec<(AuditAction, bool, Option<&str>)>); 11] = [
        ("generate", generate, false, vec![(Generated, true, None)]),
        ("rename", rename, false, vec![(Renamed, false, None)]),
        ("describe", describe, false, vec![(Renamed, false, None)]),
        ("revoke", revoke, false, vec![(Revoked, false, Some("owner"))]),
        ("compromise", compromise, false, vec![(Revoked, false, Some("compromised"))]),
        ("restore", restore, true, vec![(Restored, false, None)]),
        ("rotate", rotate, false, vec![(Rotated, false, None), (Generated, true, None)]),
        ("delete", delete, true, vec![(Deleted, false, None)]),
        ("get", get, false, vec![]),
        ("list", list, false, vec![]),
        ("nothing", nothing, false, vec![]),
    ];
    for (label, operate, revoked, expected) in table {
        for through_token in [false, true] {
            let world = World::new();
            let token = world.token("ann", "target");
            if revoked {
                ready(world.service.revoke(&session("ann"), token, Reason::Owner)).unwrap();
            }
            let via = world.issue("ann", NewToken::named("via"));
            let (actor, by) = if through_token {
                let verified = ready(world.service.verify(
                    Credential::text(via.plaintext.expose_secret()).from_address(Some(address)),
                ))
                .unwrap();
                let by = ActorRef::Token { owner: id("ann"), id: via.token.id() };
                (Actor::token(&verified), by)
            } else {
                (session("ann").from_address(address), ActorRef::Owner(id("ann")))
            };
            world.advance(TimeDelta::minutes(5));
            let before = world.events();
            world.heard.take();
            let made = operate(&world, &actor, token);
            let stored = world.events_since(&before);
            let wanted: Vec<_> = expected
                .iter()
                .map(|(action, new, reason)| {
                    let about = if *new { made.unwrap() } else { token };
                    (*action, about, reason.map(str::to_owned))
                })
                .collect();
            assert_eq!(stored.iter().map(told).collect::<Vec<_>>(), wanted, "{label}");
            for event in &stored {
                assert_eq!(event.at, world.now(), "{label}");
                assert_eq!(event.realm, home(), "{label}");
                assert_eq!(event.actor, by, "{label}");
                assert_eq!(event.owner, Some(id("ann")), "{label}");
                assert_eq!(event.address, Some(address), "{label}");
            }
            assert_eq!(world.heard.take(), stored, "{label}");
        }
    }
}

/// Checks that each event is already stored when the sink receives it.
struct AfterTheCommit(Arc<patkit::MemoryStore>, Mutex<usize>);

impl patkit::AuditSink for AfterTheCommit {
    fn record(&self, event: &AuditEvent) {
        use patkit::store::{AuditLog, EventQuery};
        let query = EventQuery::new(event.realm.clone()).token(event.token).from(event.at);
        let stored = ready(self.0.events(&query)).unwrap();
        assert!(stored.events.contains(event), "{event:?}");
        *self.1.lock().unwrap() += 1;
    }
}

#[test]
fn the_sink_is_told_after_the_commit() {
    let world = World::new();
    let sink = Arc::new(AfterTheCommit(world.store.clone(), Mutex::new(0)));
    let service = builder(world.store.clone(), world.directory.clone(), world.clock.clone())
        .audit_sink(sink.clone())
        .build()
        .unwrap();
    let ann = session("ann");
    let made = ready(service.generate(&ann, NewToken::named("a"))).unwrap().token.id();
    let next = ready(service.rotate(&ann, made, Duration::ZERO)).unwrap().token.id();
    ready(service.rename(&ann, next, "b")).unwrap();
    ready(service.revoke(&ann, next, Reason::Owner)).unwrap();
    ready(service.restore(&ann, next)).unwrap();
    ready(service.revoke_all(&home(), &id("ann"))).unwrap();
    ready(service.delete(&ann, next)).unwrap();
    ready(service.erase_owner(&home(), &id("ann"))).unwrap();
    assert_eq!(*sink.1.lock().unwrap(), 9);
}

#[test]
fn an_owner_of_the_wrong_kind_gets_no_token() {
    let world = World::new();
    let ada = session("ada");
    let cases: [(&str, Option<OwnerKind>); 4] = [
        ("ann", Some(OwnerKind::Human)),
        ("core", Some(OwnerKind::Internal)),
        ("bot", None),
        ("robot", None),
    ];
    for (owner, refused) in cases {
        let before = world.snapshot();
        let result = world.generate(&ada, NewToken::named("a").for_service(id(owner)));
        match (result, refused) {
            (Ok(_), None) => {}
            (Err(ManageError::Invalid(InvalidInput::OwnerKind(kind))), Some(expected)) => {
                assert_eq!(kind, expected);
                assert_eq!(world.snapshot(), before);
            }
            (result, _) => panic!("{owner}: {result:?}"),
        }
    }
    // A personal token for an owner that is not human but has all permissions.
    for (owner, kind) in [("bot", OwnerKind::Service), ("core", OwnerKind::Internal)] {
        world.put(owner, |owner| owner.with_role("admin"));
        match world.generate(&session(owner), NewToken::named("b")) {
            Err(ManageError::Invalid(InvalidInput::OwnerKind(refused))) => {
                assert_eq!(refused, kind);
            }
            result => panic!("{owner}: {result:?}"),
        }
    }
    let nobody: OwnerId = id("ghost");
    let unknown = world.generate(&ada, NewToken::named("c").for_service(nobody));
    assert!(matches!(unknown, Err(ManageError::Invalid(InvalidInput::OwnerUnknown))));
    world.put("bot", |bot| bot.with_enabled(false));
    let disabled = world.generate(&ada, NewToken::named("d").for_service(id("bot")));
    assert!(matches!(disabled, Err(ManageError::Invalid(InvalidInput::OwnerDisabled))));
}

#[test]
fn a_refusal_that_was_not_written_yet_leaves_no_trace_of_an_erased_owner() {
    let world = World::built(|builder| builder.audit_refusals(1)).unwrap();
    world.put("somebody@to-be-erased.example", |owner| owner.with_role("member"));
    let token =
        world.generate(&session("somebody@to-be-erased.example"), NewToken::named("a")).unwrap();
    ready(world.service.revoke(
        &session("somebody@to-be-erased.example"),
        token.token.id(),
        Reason::Owner,
    ))
    .unwrap();
    assert!(world.verify(&token).is_err());
    ready(world.service.erase_owner(&home(), &id("somebody@to-be-erased.example"))).unwrap();
    ready(world.service.flush()).unwrap();
    assert!(
        world
            .events()
            .iter()
            .all(|event| !format!("{event:?}").contains("somebody@to-be-erased.example"))
    );
}

/// The refusal is pending in the service while the owner is erased within a transaction of the
/// host.
#[test]
fn a_refusal_that_was_not_written_yet_leaves_no_trace_of_an_owner_that_was_erased_within_a_transaction()
 {
    let world = World::built(|builder| builder.audit_refusals(1)).unwrap();
    world.put(ERASED, |owner| owner.with_role("member"));
    let token = world.generate(&session(ERASED), NewToken::named("a")).unwrap();
    ready(world.service.revoke(&session(ERASED), token.token.id(), Reason::Owner)).unwrap();
    assert!(world.verify(&token).is_err());
    let within = world.service.within(world.store.clone());
    ready(within.erase_owner(&home(), &id(ERASED))).unwrap();
    world.service.after_commit(&within.into_uncommitted());
    ready(world.service.flush()).unwrap();
    assert!(world.events().iter().any(|event| event.action == AuditAction::Refused));
    assert_eq!(traces(&world.events()), Vec::<&AuditEvent>::new());
}

#[test]
fn a_service_token_that_revokes_itself_does_so_with_the_authority_of_an_owner() {
    let world = World::new();
    let token = world.issue("robot", NewToken::named("a"));
    let actor = world.through(&token);
    let edit = TokenEdit::new().active(false);
    let view = ready(world.service.edit(&actor, token.token.id(), edit)).unwrap();
    assert_eq!(view.revocation().unwrap().authority, Authority::Owner);
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

#[test]
fn the_host_lists_counts_and_gets_everything_of_its_realm() {
    let world = World::new();
    // Personal and service tokens alternate, with many of one kind before and after them, and with
    // tokens of another realm in between.
    for number in 0..23 {
        let owner = if number % 2 == 0 || !(5..=12).contains(&number) { "ann" } else { "bot" };
        world.issue(owner, NewToken::named(&format!("{number}")));
        world.issue_in(&beta(), owner, NewToken::named(&format!("{number}")));
    }
    let all: Vec<TokenId> =
        world.tokens().iter().filter(|token| token.realm == home()).map(|token| token.id).collect();
    assert_eq!(all.len(), 23);
    for limit in [0, 1, 2, 3, 5, 22, 23, 24, 200, usize::MAX] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = ready(world.service.list(&Actor::system(), after, limit)).unwrap();
            assert!(page.items.len() <= limit.clamp(1, 200));
            seen.extend(ids(&page));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, all, "{limit}");
    }
    for id in &all {
        assert_eq!(ready(world.service.get(&Actor::system(), *id)).unwrap().id(), *id);
        let other = ready(world.service.get(&Actor::system_in(beta()), *id));
        assert!(matches!(other, Err(ManageError::NotFound)));
    }
    let of = |name: &str| {
        let page =
            ready(world.service.list_overseen(&Actor::system(), &id(name), None, 200)).unwrap();
        ids(&page)
    };
    assert_eq!((of("ann").len(), of("bot").len(), of("ghost").len()), (19, 4, 0));
    assert_eq!(
        ids(&ready(world.service.list_service(&Actor::system(), None, 200)).unwrap()),
        of("bot")
    );
    // Revoked and expired tokens are listed and counted too.
    let counts = |actor: &Actor| {
        let counts = ready(world.service.count(actor)).unwrap();
        (counts.active, counts.revoked, counts.expired)
    };
    assert_eq!(counts(&Actor::system()), (23, 0, 0));
    ready(world.service.revoke(&Actor::system(), all[0], Reason::System)).unwrap();
    world.force(all[1], |token| token.facts.expires_at = Some(start()));
    assert_eq!(counts(&Actor::system()), (21, 1, 1));
    assert_eq!(counts(&Actor::system_in(beta())), (23, 0, 0));
    // An owner counts only its own tokens.
    assert_eq!(counts(&session("ann")), (17, 1, 1));
    assert_eq!(counts(&session("bob")), (0, 0, 0));
    let refused = ready(world.service.count(&session("nil")));
    assert!(
        matches!(refused, Err(ManageError::Forbidden { permission: "tokens:manage" })),
        "{refused:?}"
    );
}

#[test]
fn the_host_makes_the_first_service_token_and_no_other() {
    let world = World::new();
    let system = Actor::system();
    let issued = world.generate(&system, NewToken::named("first").for_service(id("bot"))).unwrap();
    assert_eq!(world.refusal(&issued), None);
    let stored = world.stored(issued.token.id());
    assert_eq!((&stored.created_by, stored.kind), (&ActorRef::System, TokenKind::Service));
    // A scope under `scim:` is allowed too, because nobody else could make the first such token.
    world.generate(&system, NewToken::named("scim").for_service(id("bot")).scim_only()).unwrap();
    let refused = world.generate(&system, NewToken::named("personal"));
    assert!(matches!(refused, Err(ManageError::NotForHost)), "{refused:?}");
    for (owner, expected) in [("ann", OwnerKind::Human), ("core", OwnerKind::Internal)] {
        let refused = world.generate(&system, NewToken::named("x").for_service(id(owner)));
        let Err(ManageError::Invalid(InvalidInput::OwnerKind(kind))) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(kind, expected);
    }
    let refused = world.generate(&system, NewToken::named("x").for_service(id("ghost")));
    assert!(
        matches!(refused, Err(ManageError::Invalid(InvalidInput::OwnerUnknown))),
        "{refused:?}"
    );
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

#[test]
fn the_limit_of_live_tokens_counts_both_kinds_together() {
    let policy = TokenPolicy::builder().live_tokens_per_owner(2).build().unwrap();
    let world = World::with(policy);
    // The host changes the kind of the owner.
    world.issue("bot", NewToken::named("as a service"));
    let second = world.issue("bot", NewToken::named("second")).token.id();
    world.directory.put(Owner::new(id("bot"), OwnerKind::Human).with_role("member"));
    let bot = session("bot");
    let error = world.generate(&bot, NewToken::named("as a human")).unwrap_err();
    assert!(matches!(error, ManageError::TooManyTokens { most: 2 }), "{error:?}");
    assert!(error.is_conflict());
    ready(world.service.revoke(&Actor::system(), second, Reason::System)).unwrap();
    world.generate(&bot, NewToken::named("as a human")).unwrap();
    let error = ready(world.service.restore(&Actor::system(), second)).unwrap_err();
    assert!(matches!(error, ManageError::TooManyTokens { most: 2 }), "{error:?}");
}

#[test]
fn a_service_token_makes_none_that_inherits_for_another_service_user() {
    for (scope, allowed) in [(None, false), (Some(["datastores:read"]), true)] {
        let world = World::new();
        let actor = world.through(&world.issue("robot", NewToken::named("via")));
        let new = NewToken::named("child").for_service(id("bot"));
        let before = world.snapshot();
        let made = world.generate(&actor, scope.into_iter().fold(new, NewToken::scope));
        let made = made.map(|made| made.token.id());
        check_attenuated(&world, made, allowed, Attenuation::Scope, &before, &format!("{scope:?}"));
    }
}

#[test]
fn through_a_token_the_trace_of_a_rotation_stays_also_when_its_successor_is_gone() {
    let world = World::new();
    let ann = session("ann");
    let thief = world.through(&world.issue("ann", NewToken::named("stolen")));
    let old = world.token("ann", "a");
    let successor = ready(world.service.rotate(&ann, old, Duration::ZERO)).unwrap().token.id();
    ready(world.service.revoke(&ann, successor, Reason::Owner)).unwrap();
    ready(world.service.delete(&ann, successor)).unwrap();
    let before = world.snapshot();
    let deleted = ready(world.service.delete(&thief, old));
    assert!(matches!(deleted, Err(ManageError::Attenuation(Attenuation::Family))), "{deleted:?}");
    assert_eq!(world.snapshot(), before);
    ready(world.service.delete(&ann, old)).unwrap();
}

/// The family is larger than one page of the store.
#[test]
fn compromise_reaches_every_child_of_a_large_family() {
    let world = World::new();
    let root = world.issue("ann", NewToken::named("root"));
    let through = world.through(&root);
    let children = MAX_PAGE + 2;
    for number in 0..children {
        world.generate(&through, NewToken::named(&format!("child {number}"))).unwrap();
    }
    ready(world.service.revoke(&session("ann"), root.token.id(), Reason::Compromised)).unwrap();
    let tokens = world.tokens();
    assert_eq!(tokens.len(), children + 1);
    for token in tokens {
        assert_eq!(token.facts.revocation.unwrap().reason, Reason::Compromised, "{}", token.name);
    }
}

#[test]
fn a_token_of_the_other_kind_is_anothers_even_if_its_owner_has_the_same_id() {
    let world = World::new();
    let ada = world.issue("ada", NewToken::named("ada's"));
    let through = world.through(&ada);
    let service = world.issue("bot", NewToken::named("of the service user before")).token.id();
    world.force(service, |token| {
        token.owner = id("ada");
        let (at, by) = (start(), ActorRef::System);
        let (authority, reason) = (Authority::Admin, Reason::Admin);
        token.facts.revocation = Some(Box::new(Revocation { at, by, authority, reason }));
    });
    let restored = ready(world.service.restore(&through, service)).map(drop);
    assert!(matches!(restored, Err(ManageError::Attenuation(Attenuation::Scope))), "{restored:?}");
}

#[test]
fn ids_increase_with_a_clock_that_stands_still_or_goes_back_also_within_a_transaction() {
    let world = World::new();
    let mut made = Vec::new();
    for number in 0..100 {
        let within = world.service.within(world.store.clone());
        let name = |part: &str| NewToken::named(&format!("{part} {number}"));
        made.push(world.generate(&session("ann"), name("outside")).unwrap().token.id());
        made.push(ready(within.generate(&session("ann"), name("within"))).unwrap().token.id());
        let uncommitted = within.into_uncommitted();
        world.service.after_commit(&uncommitted);
        if number % 10 == 9 {
            world.clock.set(start() - TimeDelta::seconds(number));
        }
    }
    assert!(made.is_sorted_by(|one, other| one < other));
    let page = ready(world.service.list(&session("ann"), None, 200)).unwrap();
    assert!(ids(&page).into_iter().rev().eq(made), "newest first");
}
