//! Names that the role catalogue does not know, which are usually typing errors. Unknown scope
//! entries are refused, and unknown roles and demanded permissions are reported.

#![allow(clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects, reason = "tests")]

use patkit::permission::{PermissionError, ScopeError};
use patkit::policy::UnknownScopes;
use patkit::role::{MAX_REPORTED_NAMES, RoleError, UnknownName};
use patkit::service::InvalidInput;
use patkit::{
    AuditEvent, AuditSink, Credential, DeclaredPermission, ManageError, NewToken, Owner,
    Permission, PermissionDenied, RoleCatalog, TokenEdit, TokenPolicy,
};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use support::{Service, World, grants, home, ready, session};

/// Returns a catalogue with granted and declared permissions, and with `*`, which makes nothing
/// known.
fn catalog() -> RoleCatalog {
    RoleCatalog::standard_builder()
        .grant("member", ["deployments:write", "buckets:*"])
        .grant("admin", ["*"])
        .permission("deployments:read")
        .permission(
            DeclaredPermission::new("reports:daily:print")
                .with_label("Print")
                .with_group("Reports"),
        )
        .build()
        .unwrap()
}

fn world() -> World {
    World::built(|builder| builder.roles(catalog())).unwrap()
}

/// Returns the index, the entry and the likely entry of each unknown scope entry.
fn unknown(world: &World, owner: &str, scope: &[&str]) -> Vec<(usize, String, Option<String>)> {
    let before = world.snapshot();
    match world.generate(&session(owner), NewToken::named("new").scope(scope.to_vec())) {
        Ok(made) => {
            ready(world.service.revoke(&session(owner), made.token.id(), patkit::Reason::Owner))
                .unwrap();
            ready(world.service.delete(&session(owner), made.token.id())).unwrap();
            Vec::new()
        }
        Err(ManageError::Invalid(InvalidInput::Scope(ScopeError::Unknown { entries }))) => {
            assert_eq!(world.snapshot(), before);
            let text = |grant: &patkit::Grant| grant.to_string();
            entries
                .iter()
                .map(|each| (each.index, text(&each.entry), each.likely.as_ref().map(text)))
                .collect()
        }
        Err(error) => panic!("{owner} {scope:?}: {error:?}"),
    }
}

#[test]
fn a_scope_entry_that_covers_no_known_permission_is_refused() {
    let world = world();
    // `ann` holds `datastores:read` directly, and `ada` holds everything through `*`.
    for (owner, entry) in [
        ("ann", "deployments:write"),
        ("ann", "deployments:read"),
        ("ann", "deployments:*"),
        ("ann", "reports:daily:print"),
        ("ann", "reports:*"),
        ("ann", "reports:daily:*"),
        ("ann", "buckets:read"),
        ("ann", "buckets:any:*"),
        ("ann", "datastores:read"),
        ("ann", "datastores:*"),
        ("ann", "tokens:manage"),
        ("ann", "service-tokens:manage"),
        ("ada", "scim:users"),
        ("ada", "scim:*"),
        ("ada", "tokens:scim"),
        ("ada", "tokens:oversee"),
        ("ada", "*"),
    ] {
        assert_eq!(unknown(&world, owner, &[entry]), [], "{owner} {entry}");
    }
    for (owner, entry, likely) in [
        ("ann", "deploymnts:wirte", Some("deployments:write")),
        ("ann", "deployment:write", Some("deployments:write")),
        ("ann", "datastores:raed", Some("datastores:read")),
        ("ann", "deployments", None),
        ("ann", "reports:weekly", None),
        ("ann", "reports:daily", None),
        ("ann", "reports:daily:print:now", None),
        ("ann", "bucket:*", Some("buckets:*")),
        ("ann", "xyz:*", None),
        ("ann", "tokens:mange", Some("tokens:manage")),
        // Suggestions do not reveal permissions that the owner does not hold.
        ("ann", "deployments:raed", None),
        ("ann", "service-tokens:mange", None),
        ("bob", "datastores:read", None),
        ("ada", "deployments:raed", Some("deployments:read")),
        ("ada", "datastors:read", Some("datastores:read")),
        ("ada", "servers:write", None),
    ] {
        let expected = (0, entry.to_owned(), likely.map(ToOwned::to_owned));
        assert_eq!(unknown(&world, owner, &[entry]), [expected], "{owner}");
    }
    let several = ["deployments:read", "a:b", "tokens:manage", "c:*", "a:b"];
    let found = unknown(&world, "ann", &several);
    assert_eq!(found.iter().map(|(index, ..)| *index).collect::<Vec<_>>(), [1, 3, 4]);
}

#[test]
fn the_error_names_the_entry_and_what_was_likely_meant() {
    let world = world();
    let refused = |scope: Vec<String>| {
        world
            .generate(&session("ann"), NewToken::named("new").scope(scope))
            .unwrap_err()
            .to_string()
    };
    let text = refused(vec!["deploymnts:wirte".into()]);
    assert!(
        text.contains("deploymnts:wirte") && text.contains("write deployments:write"),
        "{text}"
    );
    let text = refused(vec!["x:y".into()]);
    assert!(text.contains("x:y") && text.contains("declare the permission"), "{text}");
    // As many entries as a scope may have, each as long as possible.
    let many = (0..64).map(|n| format!("{}{n:03}", "deployments:write".repeat(7)));
    let text = refused(many.collect());
    assert!(text.contains("and 61 more entries") && text.len() < 1_000, "{text}");
}

#[test]
fn unknown_entries_are_allowed_where_the_policy_says_so() {
    let allowed = TokenPolicy::builder().unknown_scopes(UnknownScopes::Allowed).build().unwrap();
    let world = World::built(|builder| builder.roles(catalog()).policy(allowed)).unwrap();
    let made = world
        .generate(&session("ann"), NewToken::named("new").scope(["deploymnts:wirte"]))
        .unwrap();
    assert_eq!(made.token.scope().as_set().unwrap().len(), 1);

    // Existing tokens are never refused for unknown entries, under any policy and catalogue.
    let strict =
        support::builder(world.store.clone(), world.directory.clone(), world.clock.clone());
    let strict: Service = strict.roles(catalog()).build().unwrap();
    let ann = session("ann");
    let id = made.token.id();
    ready(strict.edit(&ann, id, TokenEdit::new().name("renamed"))).unwrap();
    ready(strict.revoke(&ann, id, patkit::Reason::Owner)).unwrap();
    ready(strict.restore(&ann, id)).unwrap();
    let rotated = ready(strict.rotate(&ann, id, Duration::ZERO)).unwrap();
    assert_eq!(rotated.token.scope(), made.token.scope());
    assert!(ready(strict.verify(Credential::text(rotated.plaintext.expose_secret()))).is_ok());
}

#[test]
fn a_service_token_may_have_what_its_owner_holds() {
    let world = world();
    let new = |entry: &str| NewToken::named(entry).scope([entry]).for_service(support::id("bot"));
    assert!(world.generate(&session("ada"), new("datastores:read")).is_ok());
    let error = world.generate(&session("ada"), new("datastors:read")).unwrap_err();
    assert!(error.to_string().contains("write datastores:read"), "{error}");
}

#[test]
fn declared_permissions_are_checked() {
    let build = RoleCatalog::standard_builder;
    for (text, expected) in [
        ("", PermissionError::Empty),
        ("a:*", PermissionError::NotConcrete { at: 2 }),
        ("*", PermissionError::NotConcrete { at: 0 }),
        ("a::b", PermissionError::EmptySegment { at: 2 }),
        ("A", PermissionError::BadCharacter { at: 0 }),
    ] {
        let error = build().permission(text).build().unwrap_err();
        assert_eq!(
            error,
            RoleError::BadPermission { permission: text.to_owned(), source: expected }
        );
    }
    let twice = build().permission("a").permission(DeclaredPermission::new("a").with_label("A"));
    assert_eq!(
        twice.build().unwrap_err(),
        RoleError::DuplicatePermission { permission: "a".to_owned() }
    );
    let many =
        (0..=10_000).fold(build(), |catalog, n| catalog.permission(format!("p{n}").as_str()));
    assert_eq!(many.build().unwrap_err(), RoleError::TooManyPermissions { count: 10_001 });

    let catalog = catalog();
    let [read, print] = catalog.declared() else { panic!("{:?}", catalog.declared()) };
    assert_eq!((read.as_str(), read.label(), read.group()), ("deployments:read", None, None));
    assert_eq!((print.label(), print.group()), (Some("Print"), Some("Reports")));
    for (text, known) in [
        ("deployments:read", true),
        ("buckets:any", true),
        ("tokens:oversee", true),
        ("scim:users", true),
        ("deployments:delete", false),
        ("datastores", false),
        ("buckets", false),
    ] {
        assert_eq!(catalog.knows(&Permission::parse(text).unwrap()), known, "{text}");
    }
}

/// Collects the unknown names.
#[derive(Default)]
struct Unknown(Mutex<Vec<(bool, String)>>);

impl Unknown {
    fn roles(&self) -> Vec<String> {
        self.of(true)
    }

    fn permissions(&self) -> Vec<String> {
        self.of(false)
    }

    fn of(&self, roles: bool) -> Vec<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(is_role, _)| *is_role == roles).map(|(_, name)| name.clone()).collect()
    }
}

impl AuditSink for Unknown {
    fn record(&self, _: &AuditEvent) {}

    fn unknown_name(&self, name: UnknownName<'_>) {
        let is_role = matches!(name, UnknownName::Role(_));
        assert!(name.to_string().contains(if is_role { "role" } else { "permission" }));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((is_role, name.as_str().to_owned()));
    }
}

fn watched() -> (World, Arc<Unknown>) {
    let unknown = Arc::new(Unknown::default());
    let sink = unknown.clone();
    (World::built(|builder| builder.roles(catalog()).audit_sink(sink)).unwrap(), unknown)
}

#[test]
fn an_unknown_role_of_an_owner_is_reported_once() {
    let (world, unknown) = watched();
    let token = world.issue("ann", NewToken::named("a"));
    for round in 0..3 {
        // Each round puts a new value, as a directory does that queries a database.
        world.put("ann", |owner| {
            owner.with_role("member").with_role("memer").with_role(&format!("odd-{}", round % 2))
        });
        assert!(world.verify(&token).is_ok());
        ready(world.service.standing(&session("ann"))).unwrap();
    }
    assert_eq!(unknown.roles(), ["memer", "odd-0", "odd-1"]);
    assert_eq!(unknown.permissions(), [""; 0]);
}

#[test]
fn any_number_of_unknown_roles_takes_bounded_memory() {
    let (world, unknown) = watched();
    let many: Vec<String> = (0..100_000).map(|n| format!("role-{n}")).collect();
    world.put("ann", |owner| {
        many.iter().fold(owner.with_role("member"), |owner, role| owner.with_role(role))
    });
    assert!(ready(world.service.standing(&session("ann"))).unwrap().manages_tokens);
    let reported = unknown.roles();
    assert_eq!(reported.len(), MAX_REPORTED_NAMES);
    assert_eq!(reported.iter().collect::<HashSet<_>>().len(), MAX_REPORTED_NAMES, "each once");
    // The two kinds of names have separate limits.
    let token = world.issue("bob", NewToken::named("b"));
    let verified = world.verify(&token).unwrap();
    assert!(verified.require("unheard:of").is_err());
    assert_eq!(unknown.permissions(), ["unheard:of"]);
}

#[test]
fn a_reported_name_is_cut() {
    for long in
        ["x".repeat(1 << 20), "é".repeat(1 << 20), format!("x{}", "\u{10ffff}".repeat(1 << 18))]
    {
        let (world, unknown) = watched();
        world.put("ann", |owner| owner.with_role(&long));
        ready(world.service.standing(&session("ann"))).unwrap();
        let [name] = &unknown.roles()[..] else { panic!("{}", unknown.roles().len()) };
        assert!((125..=128).contains(&name.len()) && long.starts_with(name.as_str()), "{name}");
    }
}

#[test]
fn a_permission_that_is_demanded_and_not_known_is_reported_once() {
    let (world, unknown) = watched();
    let ann = world.verify(&world.issue("ann", NewToken::named("a"))).unwrap();
    let ada = world.verify(&world.issue("ada", NewToken::named("a"))).unwrap();
    // Known permissions are not reported, whether granted or refused.
    assert!(ann.require("deployments:write").is_ok() && ann.require("deployments:read").is_err());
    assert!(ada.require("deployments:read").is_ok() && ada.require("buckets:any").is_ok());
    // A permission that the owner holds is not reported, even if the catalogue does not know it.
    assert!(ann.require("datastores:read").is_ok());
    assert_eq!(unknown.permissions(), [""; 0]);
    for _ in 0..3 {
        // `ada` may do everything, so that the typing error goes unnoticed.
        assert!(ada.require("deployments:wirte").is_ok());
        assert!(ann.require("datastores").is_err());
        assert!(!ann.allows(&Permission::parse("datastors:read").unwrap()));
        assert!(ada.allows(&Permission::parse("all:of:it").unwrap()));
    }
    let expected = ["deployments:wirte", "datastores", "datastors:read", "all:of:it"];
    assert_eq!(unknown.permissions(), expected);
    assert_eq!(unknown.roles(), [""; 0]);
}

#[test]
fn a_text_that_is_no_permission_is_refused_as_such() {
    let (world, unknown) = watched();
    for owner in ["ann", "ada"] {
        let verified = world.verify(&world.issue(owner, NewToken::named("a"))).unwrap();
        for text in ["deployments:*", "*", "", "Deployments", "a::b", "a b"] {
            let denied = verified.require(text).unwrap_err();
            assert!(
                matches!(&denied, PermissionDenied::NotAPermission { text: of, .. } if of == text),
                "{denied}"
            );
            assert!(denied.to_string().contains(&format!("{text:?}")), "{denied}");
        }
        let denied = verified.require("deployments:delete").map_err(|denied| denied.to_string());
        let expected = "the token does not have the permission deployments:delete; use a token \
                        whose scope and whose owner have it"
            .to_owned();
        assert_eq!(denied, if owner == "ann" { Err(expected) } else { Ok(()) });
    }
    assert_eq!(unknown.permissions().len(), 7);
}

#[test]
fn racing_reports_of_one_name_are_one() {
    let (world, unknown) = watched();
    let world = &world;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(move || {
                for n in 0..200 {
                    let owner =
                        Owner::new(support::id("x"), patkit::OwnerKind::Human).in_realm(home());
                    let owner = owner.with_grants(grants(&["a:b"])).with_role(&format!("odd-{n}"));
                    let catalog = world.service.roles();
                    catalog.resolve(owner.roles(), owner.grants());
                }
            });
        }
    });
    assert_eq!(unknown.roles().len(), 200);
}
