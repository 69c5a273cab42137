//! Plays a history on the rules and on both stores, step by step, and compares them.

use super::history::{Author, By, Label, Operation, Step};
use super::random::Random;
use super::rules::{Answer, Fault, Model, Record};
use super::world::{World, revoked};
use chrono::{DateTime, Utc};
use patkit::store::{Change, ChangeBatch, ListBy, ListQuery};
use patkit::{MemoryStore, Reason, Token, TokenState, TokenStore};
use sqlx::sqlite::SqlitePoolOptions;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::{panic, pin};
use support_sql::SqliteStore;
use tokio::runtime::{Builder, Runtime};

/// The instant at which a history begins, in microseconds since 1970.
const START: i64 = 1_800_000_000_000_000;

/// The number of steps between comparisons of all records of the second store.
///
/// A step that changes many records is followed by a comparison at once.
const EACH: usize = 40;

/// The source of the steps.
pub(crate) enum Source<'a> {
    /// This many random steps.
    Drawn(usize),
    Given(&'a [Step]),
}

/// The course of a history.
pub(crate) struct Played {
    /// The steps up to and including the one that failed.
    pub(crate) steps: Vec<Step>,
    pub(crate) failure: Option<String>,
}

/// Returns the result of a future over memory alone, which never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a future over memory alone waits"),
    }
}

/// The parts that all histories share.
pub(crate) struct Stage {
    runtime: Runtime,
    /// One database for all histories, because creating its tables takes longer than a history.
    sqlite: Arc<SqliteStore>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let sqlite = runtime.block_on(async {
            let pool = SqlitePoolOptions::new()
                .max_connections(1)
                .connect("sqlite::memory:")
                .await
                .unwrap();
            SqliteStore::builder(pool).migrate().await.unwrap()
        });
        Self { runtime, sqlite: Arc::new(sqlite) }
    }

    /// Removes all records of the previous history.
    async fn clear(&self) {
        let query = ListQuery::new(ListBy::Idle(DateTime::<Utc>::MAX_UTC));
        loop {
            let page = self.sqlite.list(&query).await.unwrap();
            if page.tokens.is_empty() {
                return;
            }
            let batch = page.tokens.iter().fold(ChangeBatch::new(), |batch, token| {
                batch.change(Change::Remove { id: token.id, version: token.version })
            });
            self.sqlite.commit(&batch).await.unwrap();
        }
    }
}

struct Player<'a> {
    model: Model,
    memory: World<Arc<MemoryStore>>,
    sqlite: World<Arc<SqliteStore>>,
    runtime: &'a Runtime,
}

/// Plays one history.
///
/// The result depends only on the seed and the given steps, not on earlier histories.
pub(crate) fn play(stage: &Stage, seed: u64, source: &Source<'_>) -> Played {
    stage.runtime.block_on(stage.clear());
    let mut player = Player {
        model: Model::new(START),
        memory: World::new(Arc::new(MemoryStore::new()), START, seed),
        sqlite: World::new(Arc::clone(&stage.sqlite), START, seed),
        runtime: &stage.runtime,
    };
    let mut random = Random::new(seed);
    let mut steps = Vec::new();
    loop {
        let step = match source {
            Source::Drawn(count) if steps.len() < *count => {
                let label = Label::try_from(steps.len()).unwrap() * 2;
                Author { random: &mut random, model: &player.model }.step(label)
            }
            Source::Given(given) if steps.len() < given.len() => given[steps.len()].clone(),
            _ => return Played { steps, failure: None },
        };
        steps.push(step.clone());
        let is_whole = steps.len().is_multiple_of(EACH);
        let result = panic::catch_unwind(AssertUnwindSafe(|| player.step(&step, is_whole)));
        let failure = match result {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(panic) => Some(
                panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
                    .unwrap_or_default(),
            ),
        };
        if failure.is_some() {
            return Played { steps, failure };
        }
        if player.model.is_vague {
            return Played { steps, failure: None };
        }
    }
}

impl Player<'_> {
    fn step(&mut self, step: &Step, is_whole: bool) -> Result<(), String> {
        if !self.model.can_run(&step.operation) {
            return Ok(());
        }
        for record in self.model.records.values_mut() {
            (record.is_changed, record.is_neighbor) = (false, false);
        }
        if let Operation::Race(first, second) = &step.operation {
            return self.race([first, second]);
        }
        let before = known(&self.model);
        let bound = self.bound(step);
        let expected = self.model.apply(step, bound);
        match &step.operation {
            Operation::Wait(_) | Operation::WaitForEnd(..) => {
                self.memory.set_clock(self.model.now);
                self.sqlite.set_clock(self.model.now);
            }
            Operation::Directory(person, _) => {
                let standing = self.model.people.get(person);
                self.memory.put(*person, standing);
                self.sqlite.put(*person, standing);
            }
            _ => {}
        }
        let answer = ready(self.memory.run(step, bound));
        let other = self.runtime.block_on(self.sqlite.run(step, bound));
        if answer != other {
            return Err(format!("the memory store answers\n{answer:#?}\nand SQLite\n{other:#?}"));
        }
        if !expected.admits(&answer) {
            return Err(format!("the rules say\n{expected:#?}\nand the crate\n{answer:#?}"));
        }
        let records = ready(self.memory.records());
        compare(&mut self.model, &before, &self.memory, &records, Some(step))?;
        let changes_many = match &step.operation {
            Operation::Revoke { reason, .. } => *reason == Reason::Compromised,
            operation => matches!(
                operation,
                Operation::Erase(_)
                    | Operation::Prune { .. }
                    | Operation::Sweep
                    | Operation::Offboard(_)
            ),
        };
        if is_whole || (changes_many && !matches!(answer, Answer::Refused(_) | Answer::Number(0))) {
            self.compare_stores(&records)?;
        }
        Ok(())
    }

    fn bound(&self, step: &Step) -> Option<u64> {
        match &step.operation {
            Operation::Edit { token, edit, .. } => self.model.versions(*token, edit.versions),
            _ => None,
        }
    }

    /// Checks that one order of the two steps explains both answers and all that is stored.
    ///
    /// Two tokens that revoke each other at once may both succeed, because a revocation does not
    /// depend on the version of the token that it is done through. Then both actors were judged
    /// before either revocation was stored.
    fn race(&mut self, steps: [&Step; 2]) -> Result<(), String> {
        let bound = steps.map(|step| self.bound(step));
        let answer = ready(self.memory.race(steps, bound));
        let other = self.runtime.block_on(self.sqlite.race(steps, bound));
        if answer != other {
            return Err(format!("the memory store answers\n{answer:#?}\nand SQLite\n{other:#?}"));
        }
        let Answer::Both(first, second) = &answer else { unreachable!("both answers") };
        let records = ready(self.memory.records());
        self.compare_stores(&records)?;
        let mut reasons = String::new();
        let both = are_mutual(&steps);
        for (order, is_at_once) in
            [([1, 0], false), ([0, 1], false), ([1, 0], both), ([0, 1], both)]
        {
            let mut model = self.model.clone();
            let mut admitted = true;
            for (place, index) in order.into_iter().enumerate() {
                model.judged_before = actor_of(steps[index]).filter(|_| is_at_once && place == 1);
                let answer = [first, second][index];
                if model.may_be_outdated(steps[index], bound[index]) && is_outdated(answer) {
                    continue;
                }
                let expected = model.apply(steps[index], bound[index]);
                if !expected.admits(answer) {
                    admitted = false;
                    let _ = writeln!(reasons, "in the order {order:?} the rules say {expected:#?}");
                }
            }
            if !admitted {
                continue;
            }
            model.judged_before = None;
            match compare(&mut model, &known(&self.model), &self.memory, &records, None) {
                Ok(()) => {
                    self.model = model;
                    return Ok(());
                }
                Err(reason) => {
                    let _ = writeln!(reasons, "in the order {order:?}: {reason}");
                }
            }
        }
        Err(format!("no order explains\n{answer:#?}\n{reasons}"))
    }

    fn compare_stores(&self, records: &[(Label, Token)]) -> Result<(), String> {
        let others = self.runtime.block_on(self.sqlite.records());
        if records == others {
            return Ok(());
        }
        let others: BTreeMap<Label, Token> = others.into_iter().collect();
        for (label, token) in records {
            if others.get(label) != Some(token) {
                let other = others.get(label);
                return Err(format!("the memory store has\n{token:#?}\nand SQLite\n{other:#?}"));
            }
        }
        Err("the stores have other records, or in another order".to_owned())
    }
}

/// Returns the token through which a revocation is made.
fn actor_of(step: &Step) -> Option<Label> {
    match step.operation {
        Operation::Revoke { by: By::Token(label), .. } => Some(label),
        _ => None,
    }
}

/// Returns whether two steps revoke each other's tokens.
fn are_mutual(steps: &[&Step; 2]) -> bool {
    let revoked = steps.map(|step| match step.operation {
        Operation::Revoke { token, .. } => Some(token),
        _ => None,
    });
    let actors = steps.map(actor_of);
    actors[0].is_some() && actors[0] == revoked[1] && actors[1] == revoked[0]
}

fn is_outdated(answer: &Answer) -> bool {
    matches!(answer, Answer::Refused(Fault::Outdated))
}

/// The version and last use of each record before a step.
type Known = BTreeMap<Label, (u64, Option<i64>)>;

fn known(model: &Model) -> Known {
    model
        .records
        .iter()
        .map(|(label, record)| (*label, (record.version, record.last_used)))
        .collect()
}

/// Compares all records with the rules, then copies the versions and last uses into the rules.
fn compare<S: TokenStore>(
    model: &mut Model,
    before: &Known,
    world: &World<S>,
    records: &[(Label, Token)],
    step: Option<&Step>,
) -> Result<(), String> {
    let stored: BTreeMap<Label, &Token> =
        records.iter().map(|(label, token)| (*label, token)).collect();
    for label in model.records.keys() {
        if !stored.contains_key(label) {
            return Err(format!("token {label} is gone"));
        }
    }
    for (label, token) in stored {
        let Some(record) = model.records.get(&label) else {
            return Err(format!("token {label} is still there"));
        };
        if model.is_vague {
            continue;
        }
        let mut faults = Vec::new();
        let mut check = |is_right: bool, what: &str| {
            if !is_right {
                faults.push(what.to_owned());
            }
        };
        check(token.name.as_str() == record.name, "name");
        check(
            token.description.as_ref().map(patkit::token::Description::as_str)
                == record.description,
            "description",
        );
        check(micros(token.facts.expires_at) == record.expires, "expiry");
        check(is_same_revocation(token, record), "revocation");
        check(token.idle_from.timestamp_micros() == record.idle_from, "start of idleness");
        check(token.created_at.timestamp_micros() == record.created, "creation");
        let succession = token.facts.succession.map(|succession| {
            (succession.at.timestamp_micros(), succession.until.timestamp_micros())
        });
        check(
            succession == record.succession.map(|succession| (succession.at, succession.until)),
            "succession",
        );
        if let (Some(stored), Some(expected)) = (token.facts.succession, record.succession)
            && model.records.contains_key(&expected.successor)
        {
            check(world.label(stored.successor) == Some(expected.successor), "successor");
        }
        let old = before.get(&label).copied();
        match old {
            Some((version, _)) if record.is_changed => {
                check(token.version > version, "version of a change");
            }
            Some((version, _)) if record.is_neighbor => check(token.version >= version, "version"),
            Some((version, _)) => check(token.version == version, "version without a change"),
            None => {}
        }
        let is_active = token.facts.state(DateTime::from_timestamp_micros(model.now).unwrap())
            == TokenState::Active;
        check(!is_active || !model.stolen.contains(&label), "a stolen token works");
        check(
            uses_are_right(model, old.and_then(|(_, used)| used), label, token, step),
            "last use",
        );
        if !faults.is_empty() {
            return Err(format!(
                "of token {label}, these are wrong: {faults:?}; it is\n{token:#?}\nand by the rules\n{record:#?}"
            ));
        }
        let (version, last_used) = (token.version, micros(token.last_used.map(|used| used.at)));
        let record = model.records.get_mut(&label).unwrap();
        (record.version, record.last_used) = (version, last_used);
    }
    Ok(())
}

fn micros(instant: Option<DateTime<Utc>>) -> Option<i64> {
    instant.map(|instant| instant.timestamp_micros())
}

/// Compares two revocations. The authority matters only if the revocation may be undone.
fn is_same_revocation(token: &Token, record: &Record) -> bool {
    match (revoked(token), record.revoked) {
        (None, None) => true,
        (Some(stored), Some(expected)) => {
            (stored.at, stored.reason) == (expected.at, expected.reason)
                && (stored.reason.is_final() || stored.authority == expected.authority)
        }
        _ => false,
    }
}

/// Checks a stored last use.
///
/// A flush writes it to within the granularity. Otherwise only a sweep changes it, because it may
/// flush first.
fn uses_are_right(
    model: &Model,
    known: Option<i64>,
    label: Label,
    token: &Token,
    step: Option<&Step>,
) -> bool {
    let stored = micros(token.last_used.map(|used| used.at));
    let Some(step) = step else { return stored == known };
    let (is_flush, is_sweep) =
        (matches!(step.operation, Operation::Flush), matches!(step.operation, Operation::Sweep));
    let noted = model.noted.get(&(step.service, label)).copied();
    let (Some(noted), true) = (noted, is_flush || is_sweep) else { return stored == known };
    let granularity = super::rules::POLICIES[step.service].granularity;
    let latest = known.map_or(noted, |known| known.max(noted));
    let is_written = stored.is_some_and(|stored| {
        stored <= latest
            && (stored > noted - granularity || stored >= noted)
            && known.is_none_or(|known| known <= stored)
    });
    is_written || (is_sweep && stored == known)
}
