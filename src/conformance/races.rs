//! Changes that race each other, in one task or on threads.

use super::bench::{Bench, Seen, batch, conflicts, ensure, join_all};
use super::fixtures::{at, changed, id, insert, named, record, records, touch, update, v4};
use crate::BoxedFuture;
use crate::store::{Change, ChangeBatch, Conflict, StoreError, TokenStore, Touch};
use crate::token::{LastUse, Token};
use std::sync::{Mutex, PoisonError};

/// The work of one of several concurrent tasks. Its items run in order, up to the first that fails.
enum Work {
    Commits(Vec<ChangeBatch>),
    Touches(Vec<Touch>),
}

impl Work {
    async fn perform<S: TokenStore>(&self, store: &S) -> Result<(), StoreError> {
        match self {
            Self::Commits(batches) => {
                for batch in batches {
                    store.commit(batch).await?;
                }
            }
            Self::Touches(uses) => {
                for touch in uses {
                    store.touch(std::slice::from_ref(touch)).await?;
                }
            }
        }
        Ok(())
    }
}

/// A race: the initial records, the concurrent work, and how much of the work may succeed.
pub(super) struct Race {
    pub(super) before: Vec<Change>,
    /// The work by round. The work of one round is concurrent.
    rounds: Vec<Vec<Work>>,
    outcome: Outcome,
}

enum Outcome {
    /// In each round, exactly one succeeds and determines the records. All others get this
    /// conflict.
    One(Box<dyn Fn(usize, usize) -> Result<Conflict, Seen> + Send + Sync>),
    /// The same as `One`, except that the store may also have given up on those that fail.
    OneOrGivenUp,
    /// All succeed, and these are the records afterwards.
    All(Vec<Token>),
}

type Results = Vec<Vec<Result<(), StoreError>>>;

const AT_ONCE: u64 = 8;
const ROUNDS: u64 = 25;
const ROUND_OF_TOUCHES: u16 = 200;

impl Race {
    pub(super) async fn check<S: TokenStore>(
        &self,
        bench: &Bench<'_, S>,
        results: &Results,
    ) -> Result<(), Seen> {
        bench.settle().await;
        for (round, (works, results)) in self.rounds.iter().zip(results).enumerate() {
            let mut done = Vec::new();
            for (place, (work, result)) in works.iter().zip(results).enumerate() {
                match (result, &self.outcome) {
                    (Ok(()), _) => done.push(work),
                    (Err(_), Outcome::One(conflict)) => conflicts(result, conflict(round, place)?)?,
                    (
                        Err(StoreError::Unavailable(_) | StoreError::Conflict(_)),
                        Outcome::OneOrGivenUp,
                    ) => {}
                    (Err(error), _) => {
                        return Err(Seen(format!("one of several at once got {error:?}")));
                    }
                }
            }
            if matches!(self.outcome, Outcome::All(_)) {
                continue;
            }
            ensure(done.len() == 1, || {
                format!("{} of {} at once were done", done.len(), works.len())
            })?;
            for work in done {
                let Work::Commits(batches) = work else { continue };
                for change in batches.iter().flat_map(|batch| &batch.changes) {
                    if let Change::Insert(token) | Change::Update(token) = change {
                        bench.holds(token).await?;
                    }
                }
            }
        }
        if let Outcome::All(after) = &self.outcome {
            for token in after {
                bench.holds(token).await?;
            }
        }
        Ok(())
    }
}

/// Runs a race on the runtime that awaits this.
async fn raced<S: TokenStore>(bench: &Bench<'_, S>, race: Race) -> Result<(), Seen> {
    bench.commit_all(&race.before).await?;
    let mut results = Vec::new();
    for round in &race.rounds {
        let futures =
            round.iter().map(|work| -> BoxedFuture<'_, _> { Box::pin(work.perform(&bench.store)) });
        results.push(join_all(futures.collect()).await);
    }
    race.check(bench, &results).await
}

/// Returns the output of a future that runs on this thread.
pub(super) fn blocked<T: Send>(
    block_on: &(impl Fn(BoxedFuture<'_, ()>) + Sync),
    future: impl Future<Output = T> + Send,
) -> Result<T, Seen> {
    let output = Mutex::new(None);
    block_on(Box::pin(async {
        let ready = future.await;
        *output.lock().unwrap_or_else(PoisonError::into_inner) = Some(ready);
    }));
    let output = output.into_inner().unwrap_or_else(PoisonError::into_inner);
    output.ok_or_else(|| Seen("`block_on` returned before the future was done".into()))
}

/// Runs the rounds one after the other, with each work of a round on its own thread.
pub(super) fn on_threads<S: TokenStore>(
    store: &S,
    race: &Race,
    block_on: &(impl Fn(BoxedFuture<'_, ()>) + Sync),
) -> Result<Results, Seen> {
    let mut results = Vec::new();
    for round in &race.rounds {
        let line = std::sync::Barrier::new(round.len());
        let of_round: Vec<Result<Result<(), StoreError>, Seen>> = std::thread::scope(|scope| {
            let threads: Vec<_> = round
                .iter()
                .map(|work| {
                    scope.spawn(|| {
                        line.wait();
                        blocked(block_on, work.perform(store))
                    })
                })
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Seen("the store, or `block_on`, panicked".into())))
            };
            threads.into_iter().map(join).collect()
        });
        results.push(of_round.into_iter().collect::<Result<Vec<_>, _>>()?);
    }
    Ok(results)
}

pub(super) async fn of_updates_at_once_one_wins<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    raced(bench, race_of_updates()?).await
}

pub(super) fn race_of_updates() -> Result<Race, Seen> {
    let tokens = records(0..ROUNDS)?;
    let writers = |token: &Token| -> Result<Vec<Work>, Seen> {
        let work = |writer: u64| {
            let days = u16::try_from(writer)?;
            let after = changed(token, |token| token.notified_days = Some(days));
            Ok(Work::Commits(vec![batch([update(&after)])]))
        };
        (0..AT_ONCE).map(work).collect()
    };
    Ok(Race {
        before: tokens.iter().map(insert).collect(),
        rounds: tokens.iter().map(writers).collect::<Result<_, _>>()?,
        outcome: Outcome::One(Box::new(|round, _| Ok(Conflict::Version(id(round.try_into()?)?)))),
    })
}

/// Returns the number of a record that one work of a round inserts.
fn contender(round: u64, place: u64) -> u64 {
    round.saturating_mul(100).saturating_add(place).saturating_add(1_000)
}

pub(super) async fn of_inserts_of_one_name_at_once_one_wins<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    raced(bench, race_of_names()?).await
}

pub(super) fn race_of_names() -> Result<Race, Seen> {
    let round = |round: u64| -> Result<Vec<Work>, Seen> {
        let work = |place: u64| {
            let token = named(record(contender(round, place))?, &format!("wanted {round}"))?;
            Ok(Work::Commits(vec![batch([insert(&token)])]))
        };
        (0..AT_ONCE).map(work).collect()
    };
    Ok(Race {
        before: Vec::new(),
        rounds: (0..ROUNDS).map(round).collect::<Result<_, _>>()?,
        outcome: Outcome::One(Box::new(|round, place| {
            Ok(Conflict::Name(id(contender(round.try_into()?, place.try_into()?))?))
        })),
    })
}

pub(super) async fn of_inserts_of_one_id_at_once_one_wins<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    raced(bench, race_of_ids()?).await
}

pub(super) fn race_of_ids() -> Result<Race, Seen> {
    let round = |round: u64| -> Result<Vec<Work>, Seen> {
        let work = |place: u64| {
            let token = Token { id: id(round)?, ..record(contender(round, place))? };
            Ok(Work::Commits(vec![batch([insert(&token)])]))
        };
        (0..AT_ONCE).map(work).collect()
    };
    Ok(Race {
        before: Vec::new(),
        rounds: (0..ROUNDS).map(round).collect::<Result<_, _>>()?,
        outcome: Outcome::One(Box::new(|round, _| Ok(Conflict::Id(id(round.try_into()?)?)))),
    })
}

pub(super) async fn of_batches_in_opposite_order_one_wins<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    raced(bench, race_of_batches()?).await
}

/// Half of the batches change two records in one order, and half in the other order. A store that
/// locks them one by one deadlocks.
pub(super) fn race_of_batches() -> Result<Race, Seen> {
    let tokens = records(0..ROUNDS.saturating_mul(2))?;
    let writers = |pair: &[Token]| -> Result<Vec<Work>, Seen> {
        let work = |writer: u64| {
            let days = u16::try_from(writer)?;
            let mut changes: Vec<Change> = pair
                .iter()
                .map(|token| update(&changed(token, |token| token.notified_days = Some(days))))
                .collect();
            if writer & 1 == 1 {
                changes.reverse();
            }
            Ok(Work::Commits(vec![batch(changes)]))
        };
        (0..AT_ONCE).map(work).collect()
    };
    Ok(Race {
        before: tokens.iter().map(insert).collect(),
        rounds: tokens.chunks(2).map(writers).collect::<Result<_, _>>()?,
        outcome: Outcome::OneOrGivenUp,
    })
}

pub(super) async fn touches_and_updates_at_once_are_all_kept<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    raced(bench, race_with_touches()?).await
}

/// One task changes a record again and again, and all others record uses of it. No task waits for
/// another.
pub(super) fn race_with_touches() -> Result<Race, Seen> {
    let token = record(0)?;
    let mut current = token.clone();
    let mut batches = Vec::new();
    for days in 0..ROUND_OF_TOUCHES {
        current = changed(&current, |token| token.notified_days = Some(days));
        batches.push(batch([update(&current)]));
    }
    let last = i64::from(ROUND_OF_TOUCHES).saturating_mul(10);
    let uses = |first: i64| -> Result<Work, Seen> {
        let uses = (first..=last).step_by(10).map(|micros| touch(&token, micros, Some(v4(1))));
        Ok(Work::Touches(uses.collect::<Result<_, _>>()?))
    };
    let mut round = vec![uses(10)?, Work::Commits(batches)];
    for first in 2..i64::try_from(AT_ONCE)? {
        round.push(uses(first)?);
    }
    current.last_used = Some(LastUse::new(at(last)?, Some(v4(1))));
    Ok(Race {
        before: vec![insert(&token)],
        rounds: vec![round],
        outcome: Outcome::All(vec![current]),
    })
}
