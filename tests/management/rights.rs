//! Every kind of actor with every operation on every kind of token under every policy, against
//! a table in this file.

use super::{How, OPERATIONS, Scene, Target, ids};
use patkit::policy::{Oversight, TokenManagement};
use patkit::service::InvalidInput;
use patkit::token::{ActorRef, Authority, Revocation};
use patkit::{ManageError, NewToken, Reason, Token, TokenId, TokenKind};
use support::{beta, home, id, nowhere, ready};

const MANAGEMENTS: [TokenManagement; 3] =
    [TokenManagement::Attenuated, TokenManagement::Named, TokenManagement::Forbidden];
const OVERSIGHTS: [Oversight; 2] = [Oversight::Hidden, Oversight::RevokeOnly];

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
