//! Operations of the service that race each other on real threads, over the in-memory store.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    clippy::disallowed_methods
)]

use patkit::lifecycle::RefusalReason;
use patkit::service::{RejectReason, VerifyError};
use patkit::store::{Change, ChangeBatch, ListBy, ListQuery, Touch};
use patkit::token::{KeyId, LastUse, StoredDigest, TokenName};
use patkit::{
    Actor, Credential, IssuedToken, Keyring, ManageError, MemoryDirectory, MemoryStore, NewToken,
    Reason, Token, TokenId, TokenPolicy, TokenService, TokenState, TokenStore,
};
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;
use support::races::{NEW_KEY, OLD_KEY, ada, block_on, builder, through};

type Service = TokenService<Arc<MemoryStore>, Arc<MemoryDirectory>>;

fn service() -> Service {
    builder(Arc::new(MemoryStore::new())).build().unwrap()
}

fn generate(service: &Service, name: &str) -> IssuedToken {
    block_on(service.generate(&ada(), NewToken::named(name))).unwrap()
}

fn find(service: &Service, id: TokenId) -> Option<Arc<Token>> {
    block_on(service.store().find(id)).unwrap()
}

fn state(token: &Token) -> TokenState {
    token.state(now())
}

fn now() -> chrono::DateTime<chrono::Utc> {
    patkit::Clock::now(&patkit::SystemClock::new())
}

/// Asserts that more than one order was seen, unless there is only one processor.
fn assert_raced(seen: bool) {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    assert!(seen || processors == 1, "nothing raced");
}

/// Returns all records of `ada`.
fn all(service: &Service) -> Vec<Arc<Token>> {
    let mut query = ListQuery::new(ListBy::Owner {
        realm: patkit::Realm::default(),
        owner: support::races::owner_id("ada"),
        kind: None,
    });
    let mut tokens = Vec::new();
    loop {
        let page = block_on(service.store().list(&query)).unwrap();
        tokens.extend(page.tokens);
        let Some(next) = page.next else { return tokens };
        query = query.after(Some(next));
    }
}

/// The work of one thread in a round.
type Worker<'a, T> = &'a (dyn Fn(usize) -> T + Sync);

/// Runs each worker on a thread of its own, and returns the answers by round.
///
/// The workers start each round together, except for a delay of 1 to 4,096 turns of their own.
/// Operations of any length therefore meet at every point, on machines of any speed.
fn lockstep<T: Send>(rounds: usize, workers: &[Worker<'_, T>]) -> Vec<Vec<T>> {
    let line = Line::new(workers.len());
    let by_worker: Vec<Vec<T>> = std::thread::scope(|scope| {
        let line = &line;
        let threads: Vec<_> = workers
            .iter()
            .enumerate()
            .map(|(place, worker)| {
                scope.spawn(move || {
                    let _member = Member(line);
                    let work = |round| {
                        line.wait(round);
                        spin(round, place);
                        worker(round)
                    };
                    (0..rounds).map(work).collect::<Vec<T>>()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut by_worker: Vec<_> = by_worker.into_iter().map(Vec::into_iter).collect();
    (0..rounds)
        .map(|_| by_worker.iter_mut().map(|answers| answers.next().unwrap()).collect())
        .collect()
}

/// Spins for a delay that depends only on the round and the place.
///
/// Its order of magnitude goes up and down with the rounds.
fn spin(round: usize, place: usize) {
    let mut hasher = std::hash::DefaultHasher::new();
    (round, place).hash(&mut hasher);
    for _ in 0..=hasher.finish() % (1 << (round % 13)) {
        std::hint::spin_loop();
    }
}

/// A spinning barrier, which releases its threads within nanoseconds of each other. A sleeping
/// barrier does not.
struct Line {
    threads: usize,
    arrived: AtomicUsize,
    broken: AtomicBool,
}

impl Line {
    fn new(threads: usize) -> Self {
        Self { threads, arrived: AtomicUsize::new(0), broken: AtomicBool::new(false) }
    }

    fn wait(&self, round: usize) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let mut turns = 0_u32;
        while self.arrived.load(Ordering::Acquire) < self.threads * (round + 1) {
            turns += 1;
            assert!(!self.broken.load(Ordering::Relaxed), "another thread has failed");
            if turns.is_multiple_of(64) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

/// Makes the other threads of a line fail if this one panics, because they would wait for ever.
struct Member<'a>(&'a Line);

impl Drop for Member<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_restore_racing_a_revocation_as_compromised_never_ends_active() {
    const ROUNDS: usize = 10_000;
    let service = service();
    let ids: Vec<TokenId> = (0..ROUNDS)
        .map(|round| {
            let id = generate(&service, &format!("token {round}")).token.id();
            block_on(service.revoke(&ada(), id, Reason::Owner)).unwrap();
            id
        })
        .collect();
    let restore = |round: usize| block_on(service.restore(&ada(), ids[round])).map(|_| ());
    let revoke = |round: usize| {
        let actor = Actor::system();
        block_on(service.revoke(&actor, ids[round], Reason::Compromised)).map(|_| ())
    };
    let answers = lockstep(ROUNDS, &[&restore, &revoke]);
    let mut restored = 0;
    for (id, answers) in ids.iter().zip(&answers) {
        match &answers[0] {
            Ok(()) => restored += 1,
            Err(ManageError::Refused(refusal)) => {
                assert_eq!(refusal.why, RefusalReason::Final(Reason::Compromised));
            }
            Err(other) => panic!("{other:?}"),
        }
        assert!(answers[1].is_ok(), "{answers:?}");
        let token = find(&service, *id).unwrap();
        assert_eq!(state(&token), TokenState::Revoked);
        assert_eq!(token.facts.revocation.as_ref().unwrap().reason, Reason::Compromised);
    }
    assert_raced(restored > 0 && restored < ROUNDS);
}

#[test]
fn of_two_that_take_one_name_at_once_one_gets_it_and_the_other_is_told_so() {
    const ROUNDS: usize = 2_000;
    let service = service();
    let one = generate(&service, "to be renamed 1").token.id();
    let take = |round: usize| {
        let name = format!("wanted {round}");
        block_on(service.generate(&ada(), NewToken::named(&name))).map(|issued| issued.token.id())
    };
    let rename = |round: usize| {
        let name = format!("WANTED {round}");
        block_on(service.rename(&ada(), one, &name)).map(|token| token.id())
    };
    let table: [[Worker<'_, Result<TokenId, ManageError>>; 2]; 2] =
        [[&take, &take], [&take, &rename]];
    for workers in table {
        for answers in lockstep(ROUNDS, &workers) {
            let won = answers.iter().filter(|answer| answer.is_ok()).count();
            let told = answers
                .iter()
                .filter(|answer| matches!(answer, Err(ManageError::NameTaken)))
                .count();
            assert_eq!((won, told), (1, 1), "{answers:?}");
        }
        // The next table starts without these tokens.
        for token in all(&service).into_iter().filter(|token| token.id != one) {
            block_on(service.revoke(&ada(), token.id, Reason::Owner)).unwrap();
            block_on(service.delete(&ada(), token.id)).unwrap();
        }
    }
}

#[test]
fn two_rotations_at_once_give_one_successor_and_one_conflict() {
    const ROUNDS: usize = 1_000;
    for overlap in [Duration::ZERO, Duration::from_secs(3_600)] {
        let service = service();
        let ids: Vec<TokenId> = (0..ROUNDS)
            .map(|round| generate(&service, &format!("token {round}")).token.id())
            .collect();
        let rotate = |round: usize| {
            block_on(service.rotate(&ada(), ids[round], overlap)).map(|issued| issued.token.id())
        };
        for (id, answers) in ids.iter().zip(lockstep(ROUNDS, &[&rotate, &rotate])) {
            let successors: Vec<TokenId> = answers.iter().flatten().copied().collect();
            let [successor] = successors.as_slice() else {
                panic!("{answers:?}");
            };
            let refusal = answers.iter().find_map(|answer| match answer {
                Err(ManageError::Refused(refusal)) => Some(refusal.why),
                _ => None,
            });
            // Without an overlap, the first rotation has also revoked the token.
            let why = if overlap.is_zero() {
                RefusalReason::Revoked
            } else {
                RefusalReason::HasSuccessor
            };
            assert!(
                refusal == Some(why) || refusal == Some(RefusalReason::HasSuccessor),
                "{answers:?}"
            );
            let predecessor = find(&service, *id).unwrap();
            assert_eq!(predecessor.facts.succession.unwrap().successor, *successor);
            assert_eq!(state(&find(&service, *successor).unwrap()), TokenState::Active);
        }
        assert_eq!(all(&service).len(), 2 * ROUNDS);
    }
}

#[test]
fn rotating_three_times_in_a_row_works() {
    let service = service();
    let mut current = generate(&service, "nightly");
    for overlap in [Duration::ZERO, Duration::from_secs(60), Duration::ZERO, Duration::ZERO] {
        let next = block_on(service.rotate(&ada(), current.token.id(), overlap)).unwrap();
        assert_eq!(next.token.name().as_str(), "nightly");
        let verified = block_on(service.verify(Credential::text(next.plaintext.expose_secret())));
        assert_eq!(verified.unwrap().token().id(), next.token.id());
        let old = block_on(service.verify(Credential::text(current.plaintext.expose_secret())));
        assert_eq!(old.is_ok(), !overlap.is_zero());
        current = next;
    }
}

/// An operation on a token, which returns its result as text to compare.
type Operation<'a> = &'a (dyn Fn(&Service, TokenId) -> String + Sync);

fn said<T>(result: Result<T, ManageError>) -> String {
    match result {
        Ok(_) => "done".into(),
        Err(error) => format!("{error:?}"),
    }
}

/// Returns how a token ended: its state, the reason, and the state of its successor.
fn ending(service: &Service, id: TokenId) -> String {
    let Some(token) = find(service, id) else {
        // The name shows whether there is a successor.
        return "gone".into();
    };
    let reason = token.facts.revocation.as_ref().map(|revocation| revocation.reason);
    let successor = token
        .facts
        .succession
        .map(|succession| find(service, succession.successor).as_deref().map(state));
    format!("{} {reason:?} {successor:?}", state(&token))
}

fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for shorter in orders(count - 1) {
        for place in 0..count {
            let mut order = shorter.clone();
            order.insert(place, count - 1);
            all.push(order);
        }
    }
    all
}

/// Races the operations on many tokens, and asserts that the answers and the ending are those of
/// some serial order.
fn assert_serial(rounds: usize, prepare: &dyn Fn(&Service, TokenId), operations: &[Operation<'_>]) {
    let service = service();
    let new = |name: &str| {
        let id = generate(&service, name).token.id();
        prepare(&service, id);
        id
    };
    let mut possible = BTreeSet::new();
    for (number, order) in orders(operations.len()).into_iter().enumerate() {
        let id = new(&format!("in order {number}"));
        let mut answers = vec![String::new(); operations.len()];
        for place in order {
            answers[place] = operations[place](&service, id);
        }
        possible.insert((answers, ending(&service, id)));
    }
    assert!(possible.len() > 1);
    let ids: Vec<TokenId> = (0..rounds).map(|round| new(&format!("at once {round}"))).collect();
    let workers: Vec<Box<dyn Fn(usize) -> String + Sync + '_>> = operations
        .iter()
        .map(|operation| -> Box<dyn Fn(usize) -> String + Sync + '_> {
            Box::new(|round| operation(&service, ids[round]))
        })
        .collect();
    let workers: Vec<Worker<'_, String>> = workers.iter().map(|worker| &**worker).collect();
    let mut seen = BTreeSet::new();
    for (id, answers) in ids.iter().zip(lockstep(rounds, &workers)) {
        let outcome = (answers, ending(&service, *id));
        assert!(
            possible.contains(&outcome),
            "{outcome:?} is not explained by any order: {possible:#?}"
        );
        seen.insert(outcome);
    }
    assert_raced(seen.len() > 1);
}

#[test]
fn one_order_explains_what_rotate_revoke_and_delete_say_at_once() {
    for overlap in [Duration::ZERO, Duration::from_secs(3_600)] {
        let rotate =
            move |service: &Service, id| said(block_on(service.rotate(&ada(), id, overlap)));
        let revoke =
            |service: &Service, id| said(block_on(service.revoke(&ada(), id, Reason::Owner)));
        let delete = |service: &Service, id| said(block_on(service.delete(&ada(), id)));
        assert_serial(1_000, &|_, _| {}, &[&rotate, &revoke, &delete]);
    }
}

#[test]
fn one_order_explains_what_restore_delete_and_compromise_say_at_once() {
    let prepare = |service: &Service, id| {
        block_on(service.revoke(&ada(), id, Reason::Owner)).unwrap();
    };
    let restore = |service: &Service, id| said(block_on(service.restore(&ada(), id)));
    let delete = |service: &Service, id| said(block_on(service.delete(&ada(), id)));
    let compromise = |service: &Service, id| {
        said(block_on(service.revoke(&Actor::system(), id, Reason::Compromised)))
    };
    assert_serial(1_000, &prepare, &[&restore, &delete, &compromise]);
}

#[test]
fn what_a_token_makes_while_it_is_revoked_as_compromised_does_not_outlive_it() {
    const ROUNDS: usize = 1_000;
    let service = service();
    let stolen: Vec<(TokenId, Actor)> = (0..ROUNDS)
        .map(|round| {
            let issued = generate(&service, &format!("stolen {round}"));
            let verified =
                block_on(service.verify(Credential::text(issued.plaintext.expose_secret())))
                    .unwrap();
            (issued.token.id(), through(&verified))
        })
        .collect();
    // The thief makes a chain of tokens, each through the one before, until it is stopped.
    let mint = |round: usize| {
        let mut actor = stolen[round].1.clone();
        let mut made = Vec::new();
        for generation in 0..6 {
            let name = format!("child {round} {generation}");
            let Ok(issued) = block_on(service.generate(&actor, NewToken::named(&name))) else {
                break;
            };
            let text = issued.plaintext.expose_secret().to_owned();
            let verified = block_on(service.verify(Credential::text(&text)));
            made.push(text);
            let Ok(verified) = verified else { break };
            actor = through(&verified);
            // Every other token also rotates itself.
            if generation % 2 == 1 {
                let id = verified.token().id();
                if let Ok(rotated) = block_on(service.rotate(&actor, id, Duration::ZERO)) {
                    made.push(rotated.plaintext.expose_secret().to_owned());
                    break;
                }
            }
        }
        made
    };
    let revoke = |round: usize| {
        block_on(service.revoke(&ada(), stolen[round].0, Reason::Compromised)).unwrap();
        Vec::new()
    };
    let answers = lockstep(ROUNDS, &[&mint, &revoke]);
    let mut counts = BTreeSet::new();
    for answers in &answers {
        counts.insert(answers[0].len());
        for text in &answers[0] {
            let verdict = block_on(service.verify(Credential::text(text)));
            assert_eq!(verdict.unwrap_err().reject_reason(), Some(RejectReason::Revoked));
        }
    }
    assert_raced(counts.len() > 1);
    let living: Vec<_> =
        all(&service).into_iter().filter(|token| state(token) == TokenState::Active).collect();
    assert!(living.is_empty(), "{living:?}");
}

#[test]
fn a_flush_of_last_uses_and_digests_never_undoes_a_change_or_brings_a_token_back() {
    const ROUNDS: usize = 2_500;
    let store = Arc::new(MemoryStore::new());
    let old = builder(store.clone()).build().unwrap();
    let policy = TokenPolicy::builder().last_used_granularity(Duration::ZERO).build().unwrap();
    let new = builder(store)
        .keyring(Keyring::from_text(&format!("{NEW_KEY},{OLD_KEY}")).unwrap())
        .policy(policy)
        .build()
        .unwrap();
    let tokens: Vec<(TokenId, String)> = (0..ROUNDS)
        .map(|round| {
            let issued = generate(&old, &format!("token {round}"));
            (issued.token.id(), issued.plaintext.expose_secret().to_owned())
        })
        .collect();
    // Deleting and restoring need a revoked token that was used just before.
    let before: Vec<chrono::DateTime<chrono::Utc>> = tokens
        .iter()
        .enumerate()
        .map(|(round, (id, text))| {
            let instant = now();
            block_on(new.verify(Credential::text(text))).unwrap();
            if round % 5 == 1 || round % 5 == 4 {
                block_on(new.revoke(&ada(), *id, Reason::Owner)).unwrap();
            }
            instant
        })
        .collect();
    let verify_and_flush = |round: usize| {
        // Some tokens are revoked by now. Their use from before is the one that is written.
        block_on(new.verify(Credential::text(&tokens[round].1)))
            .map_or_else(|error| error.to_string(), |_| String::new());
        block_on(new.flush()).unwrap();
    };
    let flush = |_| block_on(new.flush()).unwrap();
    let change = |round: usize| {
        let id = tokens[round].0;
        match round % 5 {
            0 => block_on(new.revoke(&ada(), id, Reason::Owner)).map(|_| ()),
            1 => block_on(new.restore(&ada(), id)).map(|_| ()),
            2 => block_on(new.rename(&ada(), id, &format!("renamed {round}"))).map(|_| ()),
            3 => block_on(new.rotate(&ada(), id, Duration::ZERO)).map(|_| ()),
            _ => block_on(new.delete(&ada(), id)),
        }
        .unwrap();
    };
    lockstep(ROUNDS, &[&verify_and_flush, &change, &flush]);
    block_on(new.flush()).unwrap();
    let mut moved = 0;
    for (round, (id, text)) in tokens.iter().enumerate() {
        let found = find(&new, *id);
        if round % 5 == 4 {
            assert!(found.is_none(), "{found:?}");
            continue;
        }
        let token = found.unwrap();
        let reason = token.facts.revocation.as_ref().map(|revocation| revocation.reason);
        let expected = match round % 5 {
            0 => Some(Reason::Owner),
            3 => Some(Reason::Rotated),
            _ => None,
        };
        assert_eq!(reason, expected, "{round}");
        assert_eq!(token.facts.succession.is_some(), round % 5 == 3);
        let name =
            if round % 5 == 2 { format!("renamed {round}") } else { format!("token {round}") };
        assert_eq!(token.name.as_str(), name);
        assert!(token.last_used.unwrap().at >= before[round]);
        let key = match &token.digest {
            StoredDigest::Keyed(digest) => digest.key(),
            other => panic!("{other:?}"),
        };
        moved += usize::from(key == KeyId::new(2));
        // Under either key, the digest is that of the secret.
        let verdict = block_on(new.verify(Credential::text(text)));
        match reason {
            None => assert_eq!(verdict.unwrap().token().id(), *id),
            Some(_) => {
                assert_eq!(verdict.unwrap_err().reject_reason(), Some(RejectReason::Revoked));
            }
        }
    }
    assert_raced(moved > 0);
}

#[test]
fn uses_and_changes_of_one_token_without_a_pause_lose_nothing() {
    const CHANGES: u64 = 20_000;
    let service = service();
    let id = generate(&service, "busy").token.id();
    let store = service.store();
    let first = find(&service, id).unwrap();
    let begin = first.created_at;
    let done = AtomicBool::new(false);
    let last = std::thread::scope(|scope| {
        let touching = scope.spawn(|| {
            let mut last = begin;
            while !done.load(Ordering::Acquire) {
                last += chrono::TimeDelta::microseconds(1);
                let touch = Touch::new(id, LastUse::new(last, None));
                block_on(store.touch(&[touch])).unwrap();
                let stored = block_on(store.find(id)).unwrap().unwrap();
                assert_eq!(stored.last_used.map(|used| used.at), Some(last));
            }
            last
        });
        let mut token = Token::clone(&first);
        let mut before = None;
        for _ in 0..CHANGES {
            token.version += 1;
            // If a use restored an earlier record, the next change would conflict.
            let change = Change::Update(Arc::new(token.clone()));
            block_on(store.commit(&ChangeBatch::new().change(change))).unwrap();
            let stored = block_on(store.find(id)).unwrap().unwrap();
            assert_eq!(stored.version, token.version);
            let used = stored.last_used.map(|used| used.at);
            assert!(used >= before, "the last use went back");
            before = used;
        }
        done.store(true, Ordering::Release);
        touching.join().unwrap()
    });
    let stored = find(&service, id).unwrap();
    assert_eq!(stored.last_used.map(|used| used.at), Some(last));
    assert_eq!(stored.version, CHANGES + 1);
}

#[test]
fn no_verification_that_starts_after_a_revocation_was_acknowledged_succeeds() {
    const ROUNDS: usize = 300;
    let service = service();
    let mut after = 0;
    for round in 0..ROUNDS {
        let issued = generate(&service, &format!("token {round}"));
        let (id, text) = (issued.token.id(), issued.plaintext.expose_secret());
        let acknowledged = AtomicBool::new(false);
        let begun = Barrier::new(3);
        let verify = || {
            begun.wait();
            let mut refused_after = 0;
            while refused_after < 20 {
                let starts_after = acknowledged.load(Ordering::SeqCst);
                match block_on(service.verify(Credential::text(text))) {
                    Ok(_) => assert!(!starts_after, "it succeeded after the revocation"),
                    Err(VerifyError::Rejected(rejected)) => {
                        assert_eq!(rejected.reason, RejectReason::Revoked);
                        refused_after += usize::from(starts_after);
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            refused_after
        };
        std::thread::scope(|scope| {
            let threads = [scope.spawn(verify), scope.spawn(verify)];
            begun.wait();
            block_on(service.revoke(&ada(), id, Reason::Owner)).unwrap();
            acknowledged.store(true, Ordering::SeqCst);
            after += threads.map(|thread| thread.join().unwrap()).iter().sum::<usize>();
        });
    }
    assert!(after >= 40 * ROUNDS);
}

#[test]
fn a_known_token_is_never_unknown_while_the_store_grows_and_shrinks() {
    const GROWTH: u64 = 100_000;
    let service = service();
    let known: Vec<(TokenId, String)> = (0..64)
        .map(|number| {
            let issued = generate(&service, &format!("known {number}"));
            (issued.token.id(), issued.plaintext.expose_secret().to_owned())
        })
        .collect();
    let template = Token::clone(&find(&service, known[0].0).unwrap());
    let done = AtomicBool::new(false);
    let store = service.store();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                for (id, text) in &known {
                    let verified = block_on(service.verify(Credential::text(text))).unwrap();
                    assert_eq!(verified.token().id(), *id);
                }
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                for (id, _) in &known {
                    let found = block_on(store.find(*id)).unwrap();
                    assert_eq!(found.map(|found| found.id), Some(*id));
                }
            }
        });
        // Removed tokens free their places for new ones, also in the places that lookups of known
        // tokens pass.
        let mut here = Vec::new();
        for number in 0..GROWTH {
            let token = another(&template, number);
            here.push((token.id, token.version));
            block_on(store.commit(&ChangeBatch::new().change(Change::Insert(Arc::new(token)))))
                .unwrap();
            if number % 3 == 0 {
                let place = usize::try_from(number / 3).unwrap();
                let (id, version) = here[place];
                block_on(store.commit(&ChangeBatch::new().change(Change::Remove { id, version })))
                    .unwrap();
                assert!(block_on(store.find(id)).unwrap().is_none());
            }
        }
        done.store(true, Ordering::Release);
        let gone = usize::try_from(GROWTH.div_ceil(3)).unwrap();
        for (place, (id, _)) in here.iter().enumerate() {
            let found = block_on(store.find(*id)).unwrap();
            assert_eq!(found.is_some(), place >= gone, "{place}");
        }
    });
}

/// Returns a copy of a token with an id and a name of its own.
fn another(token: &Token, number: u64) -> Token {
    let mut bytes = token.id.to_bytes();
    // Spreads the ids as random ones, over the last eight bytes except for the two bits of the
    // variant.
    let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 2;
    bytes[8..].copy_from_slice(&(spread | 1 << 63).to_be_bytes());
    let mut another =
        Token { id: TokenId::from_bytes(bytes).unwrap(), version: 1, ..token.clone() };
    another.rename(TokenName::new(&format!("another {number}")).unwrap());
    another
}
