//! Permissions, grants, sets, scopes and roles through the public API: laws over random values, and
//! every refusal.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use patkit::permission::{
    Grant, MAX_PERMISSION_BYTES, MAX_SCOPE_ENTRIES, Permission, PermissionError, PermissionSet,
    Scope, ScopeError,
};
use patkit::role::{MAX_ROLE_NAME_BYTES, RoleCatalog, RoleError, RoleName, RoleNameError};
use proptest::prelude::*;

/// Few and short segments, so that random permissions and grants often match.
const PERMISSION: &str = "[ab](:[ab]){0,3}";
const GRANT: &str = r"\*|[ab](:[ab]){0,2}(:\*)?";

fn permission() -> impl Strategy<Value = Permission> {
    PERMISSION.prop_map(|text| Permission::parse(&text).unwrap())
}

fn set() -> impl Strategy<Value = PermissionSet> {
    prop::collection::vec(GRANT, 0..6).prop_map(|grants| PermissionSet::parse(grants).unwrap())
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        1 => Just(Scope::inherit()),
        4 => set().prop_map(|set| Scope::only_grants(set.iter().cloned()).unwrap()),
    ]
}

/// Returns every permission of up to four segments `a` and `b`, which are all that the random
/// grants can tell apart.
fn all_permissions() -> Vec<Permission> {
    let mut texts = vec!["a".to_owned(), "b".to_owned()];
    let mut longest = texts.clone();
    for _ in 1..4 {
        longest =
            longest.iter().flat_map(|text| [format!("{text}:a"), format!("{text}:b")]).collect();
        texts.extend_from_slice(&longest);
    }
    texts.iter().map(|text| Permission::parse(text).unwrap()).collect()
}

/// Returns whether a text follows the grammar, in the simplest code.
fn is_permission(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    text.len() <= MAX_PERMISSION_BYTES
        && text.split(':').all(|segment| !segment.is_empty() && segment.chars().all(legal))
}

fn is_grant(text: &str) -> bool {
    text == "*"
        || is_permission(text)
        || (text.len() <= MAX_PERMISSION_BYTES
            && text.strip_suffix(":*").is_some_and(is_permission))
}

/// Returns whether a grant covers a permission, in the simplest code.
fn plainly_covers(grant: &str, permission: &str) -> bool {
    let mut wanted = permission.split(':');
    let mut given = grant.split(':');
    loop {
        match (given.next(), wanted.next()) {
            (Some("*"), Some(_)) | (None, None) => return true,
            (given, wanted) if given == wanted => {}
            _ => return false,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_set_allows_what_one_of_its_grants_covers(set in set(), asked in permission()) {
        let expected = set.iter().any(|grant| plainly_covers(grant.as_str(), asked.as_str()));
        prop_assert_eq!(set.allows(&asked), expected);
        prop_assert_eq!(set.allows_str(asked.as_str()), Ok(expected));
        prop_assert_eq!(set.iter().any(|grant| grant.covers(&asked)), expected);
        prop_assert_eq!(set.covers_grant(&Grant::from(asked)), expected);
    }

    #[test]
    fn an_intersection_allows_what_both_allow(a in set(), b in set()) {
        let both = a.intersection(&b);
        for asked in all_permissions() {
            prop_assert_eq!(both.allows(&asked), a.allows(&asked) && b.allows(&asked), "{}", asked);
        }
        prop_assert!(a.covers(&both) && b.covers(&both));
        prop_assert_eq!(&both, &b.intersection(&a));
        let minimal = both.iter().all(|one| both.iter().all(|other| one == other || !one.covers_grant(other)));
        prop_assert!(minimal, "{:?}", both);
    }

    #[test]
    fn a_union_allows_what_either_allows(a in set(), b in set()) {
        let either = a.union(&b);
        for asked in all_permissions() {
            prop_assert_eq!(either.allows(&asked), a.allows(&asked) || b.allows(&asked), "{}", asked);
        }
        prop_assert!(a.iter().chain(b.iter()).all(|grant| either.names(grant)));
        prop_assert!(either.covers(&a) && either.covers(&b));
    }

    #[test]
    fn covering_means_allowing_no_less(a in set(), b in set()) {
        if a.covers(&b) {
            for asked in all_permissions() {
                prop_assert!(a.allows(&asked) || !b.allows(&asked), "{}", asked);
            }
            prop_assert!(a.intersection(&b).covers(&b));
        } else {
            let lacking = b.iter().find(|grant| !a.covers_grant(grant)).unwrap();
            // A wildcard covers a fresh segment, and no other grant does.
            let asked = lacking.as_str().replace('*', "fresh");
            prop_assert_eq!((a.allows_str(&asked), b.allows_str(&asked)), (Ok(false), Ok(true)));
        }
    }

    #[test]
    fn within_is_a_partial_order(a in scope(), b in scope(), c in scope(), asked in permission()) {
        prop_assert!(a.is_within(&a));
        prop_assert!(!(a.is_within(&b) && b.is_within(&c)) || a.is_within(&c));
        if a.is_within(&b) {
            prop_assert!(!a.allows(&asked) || b.allows(&asked));
            // Redundant entries are kept, so that scopes within each other need not be the same
            // list.
            if b.is_within(&a) {
                prop_assert_eq!(a.is_inherit(), b.is_inherit());
                prop_assert_eq!(a.allows(&asked), b.allows(&asked));
            }
        }
        prop_assert!(a.is_within(&Scope::inherit()));
        prop_assert_eq!(Scope::inherit().is_within(&a), a.is_inherit());
    }

    #[test]
    fn any_text_is_judged_by_the_grammar_alone(text in r"[a-c09_\-:*A é\x00/@\[`{;.,]{0,24}|[a-z:]{100,140}|.{0,12}") {
        let parsed = Permission::parse(&text);
        prop_assert_eq!(parsed.is_ok(), is_permission(&text), "{:?}", text);
        prop_assert_eq!(Grant::parse(&text).is_ok(), is_grant(&text), "{:?}", text);
        for set in [PermissionSet::empty(), PermissionSet::parse(["*"]).unwrap()] {
            let everything = !set.is_empty();
            prop_assert_eq!(set.allows_str(&text), parsed.clone().map(|_| everything), "{:?}", text);
        }
        prop_assert_eq!(Scope::inherit().allows_str(&text), parsed.map(|_| true));
    }

    #[test]
    fn long_permissions_are_found_by_text_and_parsed(text in "[a-z0-9_-]{1,20}(:[a-z0-9_-]{1,20}){0,4}") {
        let asked = Permission::parse(&text).unwrap();
        let below = Grant::parse(&format!("{text}:*")).unwrap();
        let exact = PermissionSet::from_iter([Grant::from(asked.clone())]);
        prop_assert!(exact.allows(&asked) && exact.allows_str(&text).unwrap());
        let wide = PermissionSet::from_iter([below]);
        prop_assert!(!wide.allows(&asked) && !wide.allows_str(&text).unwrap());
        let child = format!("{text}:child");
        prop_assert!(wide.allows(&Permission::parse(&child).unwrap()) && wide.allows_str(&child).unwrap());
        prop_assert!(!exact.allows_str(&child).unwrap());
    }

    #[test]
    fn what_is_printed_is_read_again(asked in permission(), set in set()) {
        prop_assert_eq!(&asked.to_string().parse::<Permission>().unwrap(), &asked);
        prop_assert_eq!(&PermissionSet::parse(set.iter()).unwrap(), &set);
        let json = serde_json::to_string(&set).unwrap();
        prop_assert_eq!(&serde_json::from_str::<PermissionSet>(&json).unwrap(), &set);
        let json = serde_json::to_string(&asked).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Permission>(&json).unwrap(), &asked);
    }
}

#[test]
fn what_is_no_permission_and_no_grant_is_refused_for_its_reason() {
    use PermissionError::{
        BadCharacter, Empty, EmptySegment, MisplacedWildcard, NotConcrete, TooLong,
    };
    let longest = "a".repeat(MAX_PERMISSION_BYTES);
    let too_long = "a".repeat(MAX_PERMISSION_BYTES + 1);
    let too_long_with_wildcard = format!("{}:*", "a".repeat(MAX_PERMISSION_BYTES - 1));
    let fine = None;
    for (text, as_permission, as_grant) in [
        ("a", fine, fine),
        ("a-1_:b", fine, fine),
        (longest.as_str(), fine, fine),
        ("", Some(Empty), Some(Empty)),
        (&too_long, Some(TooLong { bytes: 129 }), Some(TooLong { bytes: 129 })),
        (&too_long_with_wildcard, Some(TooLong { bytes: 129 }), Some(TooLong { bytes: 129 })),
        (":", Some(EmptySegment { at: 0 }), Some(EmptySegment { at: 0 })),
        (":a", Some(EmptySegment { at: 0 }), Some(EmptySegment { at: 0 })),
        ("a:", Some(EmptySegment { at: 2 }), Some(EmptySegment { at: 2 })),
        ("a::b", Some(EmptySegment { at: 2 }), Some(EmptySegment { at: 2 })),
        ("abcdefg::b", Some(EmptySegment { at: 8 }), Some(EmptySegment { at: 8 })),
        (":*", Some(EmptySegment { at: 0 }), Some(EmptySegment { at: 0 })),
        ("A:b", Some(BadCharacter { at: 0 }), Some(BadCharacter { at: 0 })),
        ("a:B", Some(BadCharacter { at: 2 }), Some(BadCharacter { at: 2 })),
        ("a b", Some(BadCharacter { at: 1 }), Some(BadCharacter { at: 1 })),
        ("a\0", Some(BadCharacter { at: 1 }), Some(BadCharacter { at: 1 })),
        ("a:é", Some(BadCharacter { at: 2 }), Some(BadCharacter { at: 2 })),
        ("a:\u{ff41}", Some(BadCharacter { at: 2 }), Some(BadCharacter { at: 2 })),
        ("a:b\n", Some(BadCharacter { at: 3 }), Some(BadCharacter { at: 3 })),
        ("*", Some(NotConcrete { at: 0 }), fine),
        ("a:*", Some(NotConcrete { at: 2 }), fine),
        ("a*", Some(NotConcrete { at: 1 }), Some(MisplacedWildcard { at: 1 })),
        ("**", Some(NotConcrete { at: 0 }), Some(MisplacedWildcard { at: 0 })),
        ("*:a", Some(NotConcrete { at: 0 }), Some(MisplacedWildcard { at: 0 })),
        ("a:*:b", Some(NotConcrete { at: 2 }), Some(MisplacedWildcard { at: 2 })),
        ("a:b*", Some(NotConcrete { at: 3 }), Some(MisplacedWildcard { at: 3 })),
        ("a:*b", Some(NotConcrete { at: 2 }), Some(MisplacedWildcard { at: 2 })),
    ] {
        assert_eq!(Permission::parse(text).err(), as_permission, "{text:?}");
        assert_eq!(text.parse::<Permission>().err(), as_permission, "{text:?}");
        assert_eq!(Permission::try_from(text).err(), as_permission, "{text:?}");
        assert_eq!(PermissionSet::empty().allows_str(text).err(), as_permission, "{text:?}");
        assert_eq!(
            PermissionSet::parse(["*"]).unwrap().allows_str(text).err(),
            as_permission,
            "{text:?}"
        );
        assert_eq!(Scope::inherit().allows_str(text).err(), as_permission, "{text:?}");
        assert_eq!(Grant::parse(text).err(), as_grant, "{text:?}");
        assert_eq!(text.parse::<Grant>().err(), as_grant, "{text:?}");
        assert_eq!(Grant::try_from(text).err(), as_grant, "{text:?}");
        assert_eq!(PermissionSet::parse(["a", text]).err(), as_grant, "{text:?}");
        let refused = as_grant.map(|source| ScopeError::BadEntry { index: 1, source });
        assert_eq!(Scope::only(["a", text]).err(), refused, "{text:?}");
        refused_by_serde(text, as_permission.is_some(), as_grant.is_some());
    }
}

fn refused_by_serde(text: &str, as_permission: bool, as_grant: bool) {
    let json = serde_json::to_string(text).unwrap();
    assert_eq!(serde_json::from_str::<Permission>(&json).is_err(), as_permission, "{text:?}");
    assert_eq!(serde_json::from_str::<Grant>(&json).is_err(), as_grant, "{text:?}");
    let list = format!("[{json}]");
    assert_eq!(serde_json::from_str::<PermissionSet>(&list).is_err(), as_grant, "{text:?}");
}

#[test]
fn errors_name_the_bound_and_do_not_repeat_the_text() {
    for text in ["\x1b[31m\r\nforged line", "évil", "a:*:\x07"] {
        let shown = Grant::parse(text).unwrap_err().to_string();
        assert!(
            shown.is_ascii() && !shown.contains(text) && !shown.contains(char::is_control),
            "{shown:?}"
        );
    }
    let too_long = Grant::parse(&"a".repeat(500)).unwrap_err();
    assert_eq!(too_long.to_string(), "the permission has 500 bytes; write 128 at most");
    let too_many = Scope::only(["a"; 65]).unwrap_err();
    assert_eq!(too_many.to_string(), "the scope has more than 64 entries; list 64 at most");
    let bad = Scope::only(["a", "A"]).unwrap_err();
    assert!(bad.to_string().starts_with("entry 1 of the scope is not a grant; "), "{bad}");
    let source = std::error::Error::source(&bad).unwrap();
    assert_eq!(source.to_string(), PermissionError::BadCharacter { at: 0 }.to_string());
}

#[test]
fn a_scope_has_no_more_entries_than_its_bound() {
    let texts: Vec<String> = (0..=MAX_SCOPE_ENTRIES).map(|at| format!("p{at}")).collect();
    let grants: Vec<Grant> = texts.iter().map(|text| Grant::parse(text).unwrap()).collect();
    assert!(Scope::only(&texts[1..]).is_ok());
    assert!(Scope::only_grants(grants[1..].iter().cloned()).is_ok());
    assert_eq!(Scope::only(&texts).unwrap_err(), ScopeError::TooManyEntries);
    assert_eq!(Scope::only_grants(grants.clone()).unwrap_err(), ScopeError::TooManyEntries);
    assert_eq!(Scope::only(["a"; MAX_SCOPE_ENTRIES + 1]).unwrap_err(), ScopeError::TooManyEntries);
    // Entries beyond the bound are not read, so that an endless list is refused too.
    let bad_after = texts.iter().take(MAX_SCOPE_ENTRIES).map(String::as_str).chain(["A"]);
    assert_eq!(Scope::only(bad_after).unwrap_err(), ScopeError::TooManyEntries);
    assert_eq!(Scope::only(std::iter::repeat("a")).unwrap_err(), ScopeError::TooManyEntries);
    assert_eq!(
        Scope::only_grants(std::iter::repeat(grants[0].clone())).unwrap_err(),
        ScopeError::TooManyEntries
    );
}

#[test]
fn a_scope_is_written_as_null_or_as_a_list() {
    assert_eq!(serde_json::to_string(&Scope::inherit()).unwrap(), "null");
    assert_eq!(serde_json::to_string(&Scope::only([""; 0]).unwrap()).unwrap(), "[]");
    assert_eq!(
        serde_json::to_string(&Scope::only(["b", "a:*", "b"]).unwrap()).unwrap(),
        r#"["a:*","b"]"#
    );
}

#[test]
fn what_is_read_must_have_the_right_shape() {
    assert!(serde_json::from_str::<Permission>("null").is_err());
    assert!(serde_json::from_str::<Grant>("1").is_err());
    for json in ["null", r#""a""#, "{}", "[1]", r#"["a", null]"#] {
        assert!(serde_json::from_str::<PermissionSet>(json).is_err(), "{json}");
    }
}

#[test]
fn permissions_are_compared_by_text() {
    let mut texts = ["b", "a:b", "a", "a-b", "a:b:c"].map(|text| Permission::parse(text).unwrap());
    texts.sort();
    assert_eq!(texts.each_ref().map(Permission::as_str), ["a", "a-b", "a:b", "a:b:c", "b"]);
    let again: std::collections::HashSet<Permission> =
        texts.iter().chain(&texts).cloned().collect();
    assert_eq!(again.len(), texts.len());
    assert_eq!(format!("{:>4}|{:?}", texts[0], texts[1]), r#"   a|Permission("a-b")"#);
}

#[test]
fn what_is_no_role_name_is_refused_for_its_reason() {
    let longest = "a".repeat(MAX_ROLE_NAME_BYTES);
    let too_long = "a".repeat(MAX_ROLE_NAME_BYTES + 1);
    for (text, expected) in [
        ("a-1_z", None),
        (&longest, None),
        ("", Some(RoleNameError::Empty)),
        (&too_long, Some(RoleNameError::TooLong { bytes: 65 })),
        ("Admin", Some(RoleNameError::BadCharacter { at: 0 })),
        ("a:b", Some(RoleNameError::BadCharacter { at: 1 })),
        ("aé", Some(RoleNameError::BadCharacter { at: 1 })),
        ("a ", Some(RoleNameError::BadCharacter { at: 1 })),
        ("*", Some(RoleNameError::BadCharacter { at: 0 })),
    ] {
        assert_eq!(RoleName::parse(text).err(), expected, "{text:?}");
        assert_eq!(text.parse::<RoleName>().err(), expected, "{text:?}");
        assert_eq!(RoleName::try_from(text).err(), expected, "{text:?}");
        let built = RoleCatalog::builder().role(text).build();
        let refused = expected.map(|source| RoleError::BadName { name: text.to_owned(), source });
        assert_eq!(built.err(), refused, "{text:?}");
    }
}

#[test]
fn roles_that_make_no_catalogue_are_refused_for_their_reason() {
    let role = |name: &str| RoleName::parse(name).unwrap();
    let start = || RoleCatalog::builder().role("a").grant("a", ["x:y"]);
    for (builder, expected, shown) in [
        (
            start().role("a"),
            RoleError::Duplicate { role: role("a") },
            "the role a is defined twice;",
        ),
        (
            RoleCatalog::standard_builder().role("admin"),
            RoleError::Duplicate { role: role("admin") },
            "the role admin is defined twice;",
        ),
        (
            start().role("b").inherits("b", "none\n"),
            RoleError::UnknownParent { role: role("b"), parent: "none\n".to_owned() },
            r#"the role b inherits "none\n", which is not defined;"#,
        ),
        (
            start().inherits("none", "a"),
            RoleError::UnknownRole { role: "none".to_owned(), given: "a".to_owned() },
            r#"the role "none" is given "a", but is not defined;"#,
        ),
        (
            start().grant("none", ["x"]),
            RoleError::UnknownRole { role: "none".to_owned(), given: "x".to_owned() },
            r#"the role "none" is given "x", but is not defined;"#,
        ),
        (
            start().grant("a", ["x:*:\x1b"]),
            RoleError::BadGrant {
                role: role("a"),
                grant: "x:*:\x1b".to_owned(),
                source: PermissionError::MisplacedWildcard { at: 2 },
            },
            r#"the role a is given "x:*:\u{1b}", which is not a grant;"#,
        ),
        (
            start().role("b").inherits("b", "a").inherits("a", "b"),
            RoleError::Cycle { roles: vec![role("a"), role("b")] },
            "roles inherit in a ring; remove one of these inheritances: a -> b -> a",
        ),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error, expected);
        assert!(error.to_string().starts_with(shown), "{error}");
    }
}
