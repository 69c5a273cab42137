//! The lifecycle: every state with every action, against a table in this file.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::too_many_lines
)]

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use patkit::lifecycle::{self, Action, Refusal, RefusalReason};
use patkit::service::TokenEdit;
use patkit::token::{ActorRef, Authority, Facts, Revocation, Succession};
use patkit::{Actor, ManageError, NewToken, Reason, TokenId, TokenState};
use proptest::prelude::*;
use std::time::Duration;
use support::{World, id, nowhere, ready, session, start};

const AUTHORITIES: [Authority; 3] = [Authority::Owner, Authority::Admin, Authority::System];

const MICRO: TimeDelta = TimeDelta::microseconds(1);

/// Expiries around an instant, and whether a token is expired at that instant.
const EXPIRIES: [(&str, Option<TimeDelta>, bool); 6] = [
    ("no expiry", None, false),
    ("expired a day ago", Some(TimeDelta::days(-1)), true),
    ("expired a microsecond ago", Some(TimeDelta::microseconds(-1)), true),
    ("expires now", Some(TimeDelta::zero()), true),
    ("expires in a microsecond", Some(TimeDelta::microseconds(1)), false),
    ("expires in a day", Some(TimeDelta::days(1)), false),
];

/// Who may restore a revoked token, for each reason of the revocation.
///
/// Each authority that revoked (owner, admin, system) has a word, with one letter for each
/// authority that restores (owner, admin, system). `y` restores, `-` has too little authority, `f`
/// is final.
const RESTORES: [(Reason, [&str; 3]); 9] = [
    (Reason::Owner, ["yyy", "-yy", "--y"]),
    (Reason::Admin, ["yyy", "-yy", "--y"]),
    (Reason::System, ["yyy", "-yy", "--y"]),
    (Reason::Offboarding, ["yyy", "-yy", "--y"]),
    (Reason::Idle, ["yyy", "yyy", "yyy"]),
    (Reason::Rotated, ["fff", "fff", "fff"]),
    (Reason::Reuse, ["fff", "fff", "fff"]),
    (Reason::Suspected, ["yyy", "-yy", "--y"]),
    (Reason::Compromised, ["fff", "fff", "fff"]),
];

/// The effect of an action on a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    /// The action revokes the token.
    Revokes,
    /// The action succeeds and changes nothing.
    Nothing,
    /// The first revocation stays, and its reason becomes compromised.
    Escalates,
    /// The revocation is recorded, and the token stays expired.
    Records,
    /// The action restores as in `RESTORES`, unless the token has a successor.
    Restores,
    /// The token gets a successor, unless it has one.
    Rotates,
    /// The name changes.
    Renames,
    /// The token is removed.
    Removes,
    /// The action is refused.
    Refuses(RefusalReason),
}

/// The effect of each action on an active, a revoked and an expired token.
const REVOKE: [Cell; 3] = [Cell::Revokes, Cell::Nothing, Cell::Refuses(RefusalReason::Expired)];
const COMPROMISE: [Cell; 3] = [Cell::Revokes, Cell::Escalates, Cell::Records];
const RESTORE: [Cell; 3] = [
    Cell::Refuses(RefusalReason::NotRevoked),
    Cell::Restores,
    Cell::Refuses(RefusalReason::Expired),
];
const ROTATE: [Cell; 3] =
    [Cell::Rotates, Cell::Refuses(RefusalReason::Revoked), Cell::Refuses(RefusalReason::Expired)];
const RENAME: [Cell; 3] = [Cell::Renames; 3];
const DELETE: [Cell; 3] = [Cell::Refuses(RefusalReason::StillActive), Cell::Removes, Cell::Removes];

/// The facts of a token, with the state that the tables above give them.
struct Case {
    label: String,
    facts: Facts,
    state: TokenState,
}

impl Case {
    fn cell(&self, row: [Cell; 3]) -> Cell {
        match self.state {
            TokenState::Active => row[0],
            TokenState::Revoked => row[1],
            TokenState::Expired => row[2],
            _ => panic!("a state without a column"),
        }
    }

    fn refused(&self, action: Action, why: RefusalReason) -> (TokenState, Action, RefusalReason) {
        (self.state, action, why)
    }

    /// Returns the result of a restoration with this authority.
    fn restored_by(&self, authority: Authority) -> Result<(), RefusalReason> {
        match self.cell(RESTORE) {
            Cell::Refuses(why) => Err(why),
            Cell::Restores => {
                let revocation = self.facts.revocation.as_ref().unwrap();
                let (reason, words) =
                    RESTORES.iter().find(|row| row.0 == revocation.reason).unwrap();
                let word = words[place(revocation.authority)];
                match word.as_bytes()[place(authority)] {
                    b'f' => Err(RefusalReason::Final(*reason)),
                    _ if self.facts.succession.is_some() => Err(RefusalReason::HasSuccessor),
                    b'-' => Err(RefusalReason::Authority(revocation.authority)),
                    b'y' => Ok(()),
                    _ => panic!("no such letter"),
                }
            }
            cell => panic!("{cell:?} does not restore"),
        }
    }

    /// Errors if the token cannot be rotated.
    fn rotated(&self) -> Result<(), RefusalReason> {
        match self.cell(ROTATE) {
            Cell::Refuses(why) => Err(why),
            Cell::Rotates if self.facts.succession.is_some() => Err(RefusalReason::HasSuccessor),
            Cell::Rotates => Ok(()),
            cell => panic!("{cell:?} does not rotate"),
        }
    }
}

fn place(authority: Authority) -> usize {
    AUTHORITIES.iter().position(|each| *each == authority).unwrap()
}

fn parts(refusal: Refusal) -> (TokenState, Action, RefusalReason) {
    (refusal.state, refusal.action, refusal.why)
}

fn revocation(reason: Reason, authority: Authority, at: DateTime<Utc>) -> Revocation {
    Revocation { at, by: ActorRef::Owner(id("first")), authority, reason }
}

/// Returns every expiry with every revocation, with and without a successor, at `now`.
fn cases(now: DateTime<Utc>) -> Vec<Case> {
    let mut revocations = vec![None];
    for reason in Reason::ALL {
        for authority in AUTHORITIES {
            revocations.push(Some(revocation(reason, authority, now - TimeDelta::hours(1))));
        }
    }
    let mut cases = Vec::new();
    for (expiry, offset, expired) in EXPIRIES {
        for revocation in &revocations {
            for succession in [None, Some(TimeDelta::hours(2))] {
                let state = match (expired, revocation) {
                    (true, _) => TokenState::Expired,
                    (false, Some(_)) => TokenState::Revoked,
                    (false, None) => TokenState::Active,
                };
                cases.push(Case {
                    label: format!(
                        "{expiry}, {}, {} successor",
                        revocation.as_ref().map_or("not revoked".to_owned(), |revocation| format!(
                            "revoked for {} by the {}",
                            revocation.reason,
                            revocation.authority.as_str()
                        )),
                        succession.map_or("no", |_| "a"),
                    ),
                    facts: Facts {
                        expires_at: offset.map(|offset| now + offset),
                        revocation: revocation.clone().map(Box::new),
                        succession: succession.map(|before| Succession {
                            successor: nowhere(),
                            at: now - before,
                            until: now - before,
                        }),
                    },
                    state,
                });
            }
        }
    }
    assert_eq!(cases.len(), 6 * 28 * 2);
    cases
}

#[test]
fn the_state_is_what_the_table_says_to_the_microsecond() {
    let now = start();
    for case in cases(now) {
        assert_eq!(case.facts.state(now), case.state, "{}", case.label);
    }
    let facts = Facts { expires_at: Some(now), ..Facts::default() };
    assert_eq!(facts.state(now - MICRO), TokenState::Active);
    assert_eq!(facts.state(now), TokenState::Expired);
    assert_eq!(facts.state(now + MICRO), TokenState::Expired);
}

#[test]
fn revoking_every_state_for_every_reason_with_every_authority() {
    let now = start();
    for case in cases(now) {
        for reason in Reason::ALL {
            for authority in AUTHORITIES {
                let with = Revocation {
                    by: ActorRef::Owner(id("second")),
                    ..revocation(reason, authority, now)
                };
                let row = if reason == Reason::Compromised { COMPROMISE } else { REVOKE };
                let label = format!("{} and then for {reason}", case.label);
                let result = lifecycle::revoke(&case.facts, with.clone(), now);
                let first = case.facts.revocation.clone();
                match case.cell(row) {
                    Cell::Refuses(why) => {
                        assert_eq!(
                            parts(result.unwrap_err()),
                            case.refused(Action::Revoke, why),
                            "{label}"
                        );
                    }
                    Cell::Nothing => assert_eq!(result, Ok(None), "{label}"),
                    Cell::Revokes => {
                        let after = result.unwrap().unwrap();
                        assert_eq!(after.revocation.as_deref(), Some(&with), "{label}");
                        assert_eq!(after.state(now), TokenState::Revoked, "{label}");
                        assert_eq!(
                            (after.expires_at, after.succession),
                            (case.facts.expires_at, case.facts.succession)
                        );
                    }
                    Cell::Escalates | Cell::Records => {
                        let expected = match first {
                            None => with,
                            Some(first) => Revocation { reason: Reason::Compromised, ..*first },
                        };
                        let after =
                            Facts { revocation: Some(Box::new(expected)), ..case.facts.clone() };
                        // A token that is already compromised stays as it is.
                        let changed = Some(after.clone()).filter(|after| *after != case.facts);
                        assert_eq!(result, Ok(changed), "{label}");
                        assert_eq!(after.state(now), case.state, "{label}");
                    }
                    cell => panic!("{cell:?} does not revoke"),
                }
            }
        }
    }
}

#[test]
fn restoring_every_state_with_every_authority() {
    let now = start();
    for case in cases(now) {
        for authority in AUTHORITIES {
            let label = format!("{}, restored by the {}", case.label, authority.as_str());
            let result = lifecycle::restore(&case.facts, authority, now);
            match case.restored_by(authority) {
                Ok(()) => {
                    let after = result.unwrap();
                    assert_eq!(after.state(now), TokenState::Active, "{label}");
                    let expected = Facts { revocation: None, ..case.facts.clone() };
                    assert_eq!(after, expected, "{label}");
                }
                Err(why) => {
                    assert_eq!(
                        parts(result.unwrap_err()),
                        case.refused(Action::Restore, why),
                        "{label}"
                    );
                }
            }
        }
    }
}

#[test]
fn rotating_every_state_with_every_overlap() {
    let now = start();
    let successor = nowhere();
    for case in cases(now) {
        for overlap in
            [0, 1, 3_600_000_000, 2 * 86_400_000_000, u64::MAX].map(Duration::from_micros)
        {
            for authority in AUTHORITIES {
                let by = (ActorRef::Owner(id("second")), authority);
                let result = lifecycle::rotate(&case.facts, successor, overlap, by.clone(), now);
                let may = lifecycle::may_rotate(&case.facts, now);
                let label = format!("{} with an overlap of {overlap:?}", case.label);
                if let Some(why) = case.rotated().err() {
                    let expected = case.refused(Action::Rotate, why);
                    assert_eq!(parts(result.unwrap_err()), expected, "{label}");
                    assert_eq!(parts(may.unwrap_err()), expected, "{label}");
                } else {
                    assert_eq!(may, Ok(()), "{label}");
                    let after = result.unwrap();
                    let until = if overlap.is_zero() { now } else { after.expires_at.unwrap() };
                    assert_eq!(
                        after.succession,
                        Some(Succession { successor, at: now, until }),
                        "{label}"
                    );
                    if overlap.is_zero() {
                        let expected =
                            Revocation { at: now, by: by.0, authority, reason: Reason::Rotated };
                        assert_eq!(after.revocation.as_deref(), Some(&expected), "{label}");
                        assert_eq!(after.expires_at, case.facts.expires_at, "{label}");
                    } else {
                        assert_eq!(after.revocation, None, "{label}");
                        let end = now
                            .checked_add_signed(TimeDelta::from_std(overlap).unwrap())
                            .unwrap_or(DateTime::<Utc>::MAX_UTC)
                            .trunc_subsecs(6);
                        let expected = case.facts.expires_at.into_iter().chain([end]).min();
                        assert_eq!(after.expires_at, expected, "{label}");
                    }
                    // The predecessor can be neither rotated nor restored again.
                    assert!(lifecycle::may_rotate(&after, now).is_err(), "{label}");
                    for restoring in AUTHORITIES {
                        assert!(lifecycle::restore(&after, restoring, now).is_err(), "{label}");
                    }
                }
            }
        }
    }
}

#[test]
fn deleting_every_state() {
    let now = start();
    for case in cases(now) {
        let result = lifecycle::may_delete(&case.facts, now);
        match case.cell(DELETE) {
            Cell::Refuses(why) => {
                assert_eq!(
                    parts(result.unwrap_err()),
                    case.refused(Action::Delete, why),
                    "{}",
                    case.label
                );
            }
            Cell::Removes => assert_eq!(result, Ok(()), "{}", case.label),
            cell => panic!("{cell:?} does not delete"),
        }
    }
}

/// Checks each cell again through the service: the answer and the stored record.
#[test]
fn the_service_does_to_every_state_what_the_table_says() {
    let world = World::new();
    let now = world.now();
    for (number, case) in cases(now).into_iter().enumerate() {
        // The authority, the actor, and the owner of the token.
        let actors = [
            (Authority::Owner, session("ann"), "ann"),
            (Authority::Admin, session("ada"), "bot"),
            (Authority::System, Actor::system(), "ann"),
        ];
        for (authority, actor, owner) in actors {
            let make = |action: &str| -> TokenId {
                let name = format!("{action} {number} {}", authority.as_str());
                let token = world.token(owner, &name);
                world.force(token, |token| token.facts = case.facts.clone());
                token
            };
            let label = format!("{}, by the {}", case.label, authority.as_str());
            let check = |action,
                         token,
                         before: u64,
                         result: Result<(), ManageError>,
                         expected: Option<RefusalReason>| {
                match expected {
                    Some(why) => {
                        let Err(ManageError::Refused(refusal)) = result else {
                            panic!("{label}: {action} answers {result:?}, not refused: {why}");
                        };
                        assert_eq!(parts(refusal), case.refused(action, why), "{label}");
                        assert_eq!(world.stored(token).version, before, "{label}");
                        assert_eq!(world.facts(token), case.facts, "{label}");
                    }
                    None => assert!(result.is_ok(), "{label}: {action} answers {result:?}"),
                }
            };

            for compromised in [false, true] {
                let token = make(if compromised { "compromise" } else { "revoke" });
                let before = world.stored(token).version;
                let (reason, row) = if compromised {
                    (Reason::Compromised, COMPROMISE)
                } else {
                    (own_reason(authority), REVOKE)
                };
                let result = ready(world.service.revoke(&actor, token, reason)).map(|_| ());
                let cell = case.cell(row);
                let refused = if let Cell::Refuses(why) = cell { Some(why) } else { None };
                check(Action::Revoke, token, before, result, refused);
                let after = world.facts(token).revocation;
                let first = case.facts.revocation.clone();
                match (cell, first) {
                    (Cell::Nothing | Cell::Refuses(_), first) => {
                        assert_eq!(after, first, "{label}");
                    }
                    (_, Some(first)) => {
                        assert_eq!(
                            after.as_deref(),
                            Some(&Revocation { reason, ..*first }),
                            "{label}"
                        );
                    }
                    (_, None) => {
                        let after = after.unwrap();
                        assert_eq!(
                            (after.at, after.authority, after.reason),
                            (now, authority, reason),
                            "{label}"
                        );
                    }
                }
            }

            let token = make("restore");
            let before = world.stored(token).version;
            let expected = case.restored_by(authority);
            let result = ready(world.service.restore(&actor, token)).map(|_| ());
            check(Action::Restore, token, before, result, expected.err());
            if expected.is_ok() {
                assert_eq!(world.stored(token).state(now), TokenState::Active, "{label}");
            }

            // The host does none of the operations below.
            if authority == Authority::System {
                continue;
            }

            let token = make("rotate");
            let before = world.stored(token).version;
            let expected = case.rotated();
            let result = ready(world.service.rotate(&actor, token, Duration::ZERO)).map(|_| ());
            check(Action::Rotate, token, before, result, expected.err());
            if expected.is_ok() {
                assert_eq!(world.stored(token).state(now), TokenState::Revoked, "{label}");
            }

            let token = make("rename");
            let edit =
                TokenEdit::new().name(&format!("renamed {number} {owner}")).description("new");
            assert_eq!(case.cell(RENAME), Cell::Renames);
            let view = ready(world.service.edit(&actor, token, edit)).unwrap();
            assert_eq!(view.state(), case.state, "{label}");
            let after = world.stored(token);
            assert_eq!(after.name.as_str(), format!("renamed {number} {owner}"), "{label}");
            assert_eq!(after.description.as_ref().unwrap().as_str(), "new", "{label}");
            assert_eq!(after.facts, case.facts, "{label}");

            let token = make("delete");
            let before = world.stored(token).version;
            let cell = case.cell(DELETE);
            let refused = if let Cell::Refuses(why) = cell { Some(why) } else { None };
            let result = ready(world.service.delete(&actor, token));
            check(Action::Delete, token, before, result, refused);
            assert_eq!(world.find(token).is_none(), cell == Cell::Removes, "{label}");
        }
    }
}

fn own_reason(authority: Authority) -> Reason {
    match authority {
        Authority::Owner => Reason::Owner,
        Authority::Admin => Reason::Admin,
        Authority::System => Reason::System,
        _ => panic!("an authority without a reason"),
    }
}

#[test]
fn a_refusal_names_the_state_and_the_action() {
    let now = start();
    for case in cases(now) {
        let revoke =
            lifecycle::revoke(&case.facts, revocation(Reason::Owner, Authority::Owner, now), now)
                .err();
        let restore = lifecycle::restore(&case.facts, Authority::System, now).err();
        let rotate = lifecycle::may_rotate(&case.facts, now).err();
        let delete = lifecycle::may_delete(&case.facts, now).err();
        for (action, refusal) in
            [("revoked", revoke), ("restored", restore), ("rotated", rotate), ("deleted", delete)]
        {
            if let Some(refusal) = refusal {
                let text = refusal.to_string();
                let begin = format!("a token that is {} cannot be {action}: ", case.state);
                assert!(text.starts_with(&begin), "{text}");
            }
        }
    }
}

#[test]
fn every_reason_and_action_has_one_name() {
    for reason in Reason::ALL {
        assert_eq!(Reason::from_name(reason.as_str()), Some(reason));
        assert_eq!(reason.to_string(), reason.as_str());
    }
    assert_eq!(Reason::from_name("Owner"), None);
    let names = Action::ALL.map(Action::as_str);
    assert_eq!(names, ["revoke", "restore", "rotate", "rename", "delete"]);
}

#[test]
fn an_expired_token_is_refused_to_the_microsecond() {
    let world = World::new();
    let token = world.issue("ann", NewToken::named("a").expires_in_days(1));
    let expiry = token.token.expires_at().unwrap();
    assert_eq!(expiry, start() + TimeDelta::days(1));
    world.clock.set(expiry - MICRO);
    assert_eq!(world.refusal(&token), None);
    world.clock.set(expiry);
    assert_eq!(world.refusal(&token), Some(patkit::RejectReason::Expired));
    world.clock.set(expiry + MICRO);
    assert_eq!(world.refusal(&token), Some(patkit::RejectReason::Expired));
    world.clock.set(expiry - MICRO);
    assert_eq!(world.refusal(&token), None, "a clock that goes back: no state was stored");
}

#[test]
fn an_edit_to_the_state_that_is_there_changes_nothing() {
    let world = World::new();
    let active = world.token("ann", "active");
    let revoked = world.token("ann", "revoked");
    ready(world.service.revoke(&session("ann"), revoked, Reason::Owner)).unwrap();
    let before = world.snapshot();
    for (token, edit) in [
        (active, TokenEdit::new().active(true)),
        (revoked, TokenEdit::new().active(false)),
        (active, TokenEdit::new().name("active")),
        (active, TokenEdit::new().description("  ")),
        (revoked, TokenEdit::new().active(false).name("revoked").description("")),
    ] {
        ready(world.service.edit(&session("ann"), token, edit)).unwrap();
    }
    assert_eq!(world.snapshot(), before);
    assert!(
        ready(world.service.restore(&session("ann"), active)).is_err(),
        "restoring asks for a revoked one"
    );
}

/// An action with its parameters.
#[derive(Debug, Clone, Copy)]
enum Step {
    Revoke(Reason, Authority),
    Restore(Authority),
    Rotate(u64),
    Wait(i64),
}

fn reason() -> impl Strategy<Value = Reason> {
    prop::sample::select(Reason::ALL.to_vec())
}

fn authority() -> impl Strategy<Value = Authority> {
    prop::sample::select(AUTHORITIES.to_vec())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (reason(), authority()).prop_map(|(reason, authority)| Step::Revoke(reason, authority)),
        authority().prop_map(Step::Restore),
        (0_u64..50).prop_map(Step::Rotate),
        (-20_i64..20).prop_map(Step::Wait),
    ]
}

fn facts() -> impl Strategy<Value = Facts> {
    let revocation = prop::option::of((reason(), authority())).prop_map(|revoked| {
        revoked
            .map(|(reason, authority)| revocation(reason, authority, start() - TimeDelta::hours(1)))
    });
    (prop::option::of(-20_i64..60), revocation, any::<bool>()).prop_map(
        |(expiry, revocation, succeeded)| Facts {
            expires_at: expiry.map(|micros| start() + TimeDelta::microseconds(micros)),
            revocation: revocation.map(Box::new),
            succession: succeeded.then(|| Succession {
                successor: nowhere(),
                at: start(),
                until: start(),
            }),
        },
    )
}

fn apply(facts: &Facts, step: Step, now: DateTime<Utc>) -> Option<Facts> {
    match step {
        Step::Revoke(reason, authority) => {
            lifecycle::revoke(facts, revocation(reason, authority, now), now).ok().flatten()
        }
        Step::Restore(authority) => lifecycle::restore(facts, authority, now).ok(),
        Step::Rotate(micros) => {
            let by = (ActorRef::System, Authority::System);
            lifecycle::rotate(facts, nowhere(), Duration::from_micros(micros), by, now).ok()
        }
        Step::Wait(_) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_sequence_of_actions_moves_an_expiry_later_or_brings_back_what_is_final(
        first in facts(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut facts = first;
        let mut now = start();
        for step in steps {
            if let Step::Wait(micros) = step {
                now += TimeDelta::microseconds(micros);
            }
            let Some(after) = apply(&facts, step, now) else { continue };
            let later = match (facts.expires_at, after.expires_at) {
                (Some(before), Some(after)) => after > before,
                (Some(_), None) => true,
                (None, _) => false,
            };
            prop_assert!(!later, "{step:?} moved {:?} to {:?}", facts.expires_at, after.expires_at);
            let reason = |facts: &Facts| facts.revocation.as_ref().map(|revocation| revocation.reason);
            if reason(&facts) == Some(Reason::Compromised) {
                prop_assert_eq!(reason(&after), Some(Reason::Compromised));
                prop_assert_ne!(after.state(now), TokenState::Active);
            }
            if matches!(reason(&facts), Some(Reason::Reuse | Reason::Rotated)) {
                prop_assert!(after.revocation.is_some());
            }
            if facts.succession.is_some() {
                prop_assert_eq!(after.succession, facts.succession, "a successor is for ever");
                prop_assert!(after.state(now) != TokenState::Active || facts.state(now) == TokenState::Active);
            }
            facts = after;
        }
    }

    #[test]
    fn the_state_depends_on_the_facts_and_the_instant_alone(facts in facts(), micros in -30_i64..70) {
        let now = start() + TimeDelta::microseconds(micros);
        let expected = match (facts.expires_at, &facts.revocation) {
            (Some(expiry), _) if now >= expiry => TokenState::Expired,
            (_, Some(_)) => TokenState::Revoked,
            (_, None) => TokenState::Active,
        };
        prop_assert_eq!(facts.state(now), expected);
        prop_assert_eq!(facts.clone().state(now), expected);
        // The successor and the details of the revocation do not affect the state.
        let other = Facts {
            succession: None,
            revocation: facts.revocation.as_ref().map(|_| Box::new(revocation(Reason::Idle, Authority::Owner, now))),
            ..facts
        };
        prop_assert_eq!(other.state(now), expected);
    }
}

/// A call to the service, about one of the existing tokens.
#[derive(Debug, Clone)]
enum Call {
    Generate,
    GenerateThrough(usize),
    Revoke(usize, usize, bool),
    Restore(usize, usize),
    Rotate(usize, u64),
    RotateItself(usize, u64),
    Present(usize),
    Delete(usize),
    Offboard,
    Sweep,
    Wait(i64),
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        2 => Just(Call::Generate),
        2 => any::<usize>().prop_map(Call::GenerateThrough),
        3 => (any::<usize>(), 0_usize..2, any::<bool>()).prop_map(|(t, a, c)| Call::Revoke(t, a, c)),
        3 => (any::<usize>(), 0_usize..2).prop_map(|(t, a)| Call::Restore(t, a)),
        2 => (any::<usize>(), 0_u64..7_200).prop_map(|(t, o)| Call::Rotate(t, o)),
        2 => (any::<usize>(), 0_u64..7_200).prop_map(|(t, o)| Call::RotateItself(t, o)),
        2 => any::<usize>().prop_map(Call::Present),
        1 => any::<usize>().prop_map(Call::Delete),
        1 => Just(Call::Offboard),
        1 => Just(Call::Sweep),
        2 => (0_i64..200_000).prop_map(Call::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn through_the_service_too_no_expiry_moves_later_and_nothing_compromised_works_again(
        calls in prop::collection::vec(call(), 1..40),
    ) {
        let policy = patkit::TokenPolicy::builder()
            .idle_limit_days(1)
            .reuse(patkit::policy::ReuseSignal::RevokeFamily, 30)
            .build()
            .unwrap();
        let world = World::with(policy);
        let actors = [session("ann"), Actor::system()];
        let mut issued = vec![world.issue("ann", NewToken::named("first"))];
        let mut compromised = Vec::new();
        for (number, call) in calls.into_iter().enumerate() {
            let before = world.tokens();
            let count = issued.len();
            let pick = |at: usize| &issued[at % count];
            let new = NewToken::named(&format!("token {number}"));
            let made = match call {
                Call::Generate => world.generate(&session("ann"), new.expires_in_days(2)).ok(),
                Call::GenerateThrough(t) => world.generate(&world_actor(&world, pick(t)), new).ok(),
                Call::Revoke(t, a, bad) => {
                    let own = [Reason::Owner, Reason::System][a];
                    let reason = if bad { Reason::Compromised } else { own };
                    let id = pick(t).token.id();
                    if ready(world.service.revoke(&actors[a], id, reason)).is_ok() && bad {
                        compromised.push(id);
                    }
                    None
                }
                Call::Restore(t, a) => {
                    let id = pick(t).token.id();
                    let _ = ready(world.service.restore(&actors[a], id));
                    None
                }
                Call::Rotate(t, overlap) => {
                    let overlap = Duration::from_secs(overlap);
                    ready(world.service.rotate(&session("ann"), pick(t).token.id(), overlap)).ok()
                }
                Call::RotateItself(t, overlap) => {
                    let (old, overlap) = (pick(t), Duration::from_secs(overlap));
                    let actor = world_actor(&world, old);
                    let made = ready(world.service.rotate(&actor, old.token.id(), overlap)).ok();
                    if let Some(made) = &made {
                        let expiry = before.iter().find(|token| token.id == old.token.id()).unwrap().facts.expires_at;
                        prop_assert_eq!(made.token.expires_at(), expiry, "through a token the expiry stays");
                    }
                    made
                }
                Call::Present(t) => {
                    let _ = world.verify(pick(t));
                    None
                }
                Call::Delete(t) => {
                    let id = pick(t).token.id();
                    let _ = ready(world.service.delete(&session("ann"), id));
                    None
                }
                Call::Offboard => {
                    ready(world.service.revoke_all(&support::home(), &id("ann"))).unwrap();
                    None
                }
                Call::Sweep => {
                    ready(world.service.sweep_idle()).unwrap();
                    None
                }
                Call::Wait(seconds) => {
                    world.advance(TimeDelta::seconds(seconds));
                    None
                }
            };
            issued.extend(made);
            for old in before {
                let Some(new) = world.find(old.id) else { continue };
                let later = match (old.facts.expires_at, new.facts.expires_at) {
                    (Some(before), Some(after)) => after > before,
                    (Some(_), None) => true,
                    (None, _) => false,
                };
                prop_assert!(!later, "an expiry moved later");
                prop_assert!(new.version >= old.version);
            }
            for id in &compromised {
                let token = issued.iter().find(|each| each.token.id() == *id).unwrap();
                prop_assert!(world.verify(token).is_err(), "a compromised token works");
                for child in world.tokens().iter().filter(|token| token.creator() == Some(*id)) {
                    prop_assert_ne!(child.state(world.now()), TokenState::Active, "the family lives");
                }
            }
        }
    }
}

/// Returns an actor through a token, verified at the creation of the token.
///
/// Returns the unknown owner `ghost` if the token does not verify.
fn world_actor(world: &World, issued: &patkit::IssuedToken) -> Actor {
    let now = world.now();
    world.clock.set(issued.token.created_at());
    let verified = world.verify(issued);
    world.clock.set(now);
    verified.map_or_else(|_| session("ghost"), |verified| Actor::token(&verified))
}
