//! The crate under test: services with several policies over one store, which run the steps of a
//! history.

use super::history::{Asked, By, Label, Operation, PEOPLE, Person, SERVICES, Step, Which};
use super::random::Random;
use super::rules::{
    ASKED, Answer, FLUSH_INTERVAL, Fault, Management, POLICIES, Policy, Revoked, Seen, Signal,
    Standing,
};
use chrono::{DateTime, TimeDelta, Utc};
use patkit::clock::ManualClock;
use patkit::lifecycle::RefusalReason;
use patkit::policy::{Oversight, ReuseSignal, TokenManagement};
use patkit::random::{RandomError, SecureRandom};
use patkit::service::{Attenuation, InvalidInput, NewToken, TokenEdit, TokenPage};
use patkit::store::{ChangeBatch, ListBy, ListQuery, Page, Touch};
use patkit::{
    Actor, Credential, Grant, IssuedToken, Keyring, ManageError, MemoryDirectory, Owner, OwnerId,
    OwnerKind, Realm, RoleCatalog, StoreError, Token, TokenId, TokenKind, TokenPolicy,
    TokenService, TokenStore, TokenView, Verified, VerifyError,
};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

const KEYS: &str = "1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn instant(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap()
}

fn span(micros: i64) -> Duration {
    Duration::from_micros(micros.try_into().unwrap())
}

fn realm(person: Person) -> Realm {
    if person.is_elsewhere() { Realm::new("elsewhere").unwrap() } else { Realm::default() }
}

fn owner_id(person: Person) -> OwnerId {
    let text = match person {
        Person::Ann => "ann",
        Person::Ben => "ben",
        Person::Ada | Person::Eve => "ada",
        Person::Bot => "bot",
        Person::Robot => "robot",
    };
    OwnerId::new(text).unwrap()
}

fn person(of: &Realm, id: &OwnerId) -> Person {
    PEOPLE.into_iter().find(|person| realm(*person) == *of && owner_id(*person) == *id).unwrap()
}

/// Returns an id that no store has.
fn nowhere() -> TokenId {
    let mut bytes = [0x11; 16];
    bytes[6] = 0x71;
    bytes[8] = 0x91;
    TokenId::from_bytes(bytes).unwrap()
}

/// Generates the same ids and secrets for the same seed.
struct Seeded(Mutex<Random>);

impl SecureRandom for Seeded {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RandomError> {
        let mut random = self.0.lock().unwrap();
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// Holds back one commit, so that another operation may happen before it.
#[derive(Default)]
struct Gate {
    armed: AtomicBool,
    reached: AtomicBool,
    open: AtomicBool,
}

impl Gate {
    fn set(&self, armed: bool) {
        self.open.store(false, Ordering::SeqCst);
        self.reached.store(false, Ordering::SeqCst);
        self.armed.store(armed, Ordering::SeqCst);
    }

    async fn pass(&self) {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.reached.store(true, Ordering::SeqCst);
            // The code that opens the gate also polls again.
            poll_fn(
                |_| if self.open.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending },
            )
            .await;
        }
    }
}

struct Gated<S> {
    store: S,
    gate: Gate,
}

impl<S: TokenStore> TokenStore for Gated<S> {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.store.find(id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.store.find_current(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.store.list(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.gate.pass().await;
        self.store.commit(batch).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.store.touch(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.store.list_ended(before, limit).await
    }
}

type Service<S> = TokenService<Arc<Gated<S>>, Arc<MemoryDirectory>>;

/// The tokens that a history has made so far.
#[derive(Default)]
struct Made {
    ids: BTreeMap<Label, TokenId>,
    labels: BTreeMap<TokenId, Label>,
    texts: BTreeMap<Label, String>,
    verified: BTreeMap<Label, Arc<Verified>>,
    /// The greatest id that each service made.
    newest: [Option<TokenId>; SERVICES],
    is_racing: bool,
}

/// A store with its services.
pub(crate) struct World<S> {
    store: Arc<Gated<S>>,
    directory: Arc<MemoryDirectory>,
    clock: Arc<ManualClock>,
    services: Vec<Service<S>>,
    made: Mutex<Made>,
}

fn days(days: i64) -> u32 {
    days.try_into().unwrap()
}

fn policy(of: &Policy) -> TokenPolicy {
    let signal = match of.signal {
        Signal::Off => ReuseSignal::Off,
        Signal::Alert => ReuseSignal::Alert,
        Signal::RevokeFamily => ReuseSignal::RevokeFamily,
    };
    let management = match of.management {
        Management::Attenuated => TokenManagement::Attenuated,
        Management::Named => TokenManagement::Named,
        Management::Forbidden => TokenManagement::Forbidden,
    };
    let mut policy = TokenPolicy::builder()
        .default_lifetime_days(days(of.default_days))
        .never_allowed(of.never_allowed)
        .longest_overlap(span(of.longest_overlap))
        .reuse(signal, days(of.window_days))
        .tokens_managing_tokens(management)
        .oversight(if of.revoke_only { Oversight::RevokeOnly } else { Oversight::Hidden })
        .last_used_granularity(span(of.granularity));
    if let Some(longest) = of.longest_days {
        policy = policy.longest_lifetime_days(days(longest)).shown_lifetimes([]);
    }
    if let Some(limit) = of.limit {
        policy = policy.live_tokens_per_owner(limit.try_into().unwrap());
    }
    if let Some(idle) = of.idle_days {
        policy = policy.idle_limit_days(days(idle));
    }
    policy.build().unwrap()
}

fn catalog() -> RoleCatalog {
    RoleCatalog::standard_builder().grant("member", ["data:read", "data:write"]).build().unwrap()
}

impl<S: TokenStore> World<S> {
    pub(crate) fn new(store: S, now: i64, seed: u64) -> Self {
        let store = Arc::new(Gated { store, gate: Gate::default() });
        let directory = Arc::new(MemoryDirectory::new());
        let clock = Arc::new(ManualClock::at(instant(now)));
        // Each service draws different ids and secrets.
        let mut seed = seed;
        let services = POLICIES
            .iter()
            .map(|of| {
                seed = seed.wrapping_mul(31).wrapping_add(17);
                let seeded = Seeded(Mutex::new(Random::new(seed)));
                TokenService::builder(Arc::clone(&store), Arc::clone(&directory))
                    .brand("acme")
                    .keyring(Keyring::from_text(KEYS).unwrap())
                    .clock(Arc::clone(&clock))
                    .random(seeded)
                    .roles(catalog())
                    .policy(policy(of))
                    .flush_interval(span(FLUSH_INTERVAL))
                    .build()
                    .unwrap()
            })
            .collect();
        let world = Self { store, directory, clock, services, made: Mutex::default() };
        for person in PEOPLE {
            world.put(person, Some(&person.standing()));
        }
        world
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap()
    }

    /// Sets a person's entry in the directory.
    pub(crate) fn put(&self, person: Person, standing: Option<&Standing>) {
        let (realm, id) = (realm(person), owner_id(person));
        let Some(standing) = standing else {
            self.directory.remove(&realm, &id);
            return;
        };
        let kind = if person.is_service() { OwnerKind::Service } else { OwnerKind::Human };
        let grants = standing.grants.iter().map(|grant| Grant::parse(grant).unwrap());
        let mut owner =
            Owner::new(id, kind).in_realm(realm).with_grants(grants).with_enabled(standing.enabled);
        if let Some(role) = standing.role {
            owner = owner.with_role(role);
        }
        if let Some(after) = standing.valid_after {
            owner = owner.with_tokens_valid_after(instant(after));
        }
        self.directory.put(owner);
    }

    pub(crate) fn set_clock(&self, now: i64) {
        let by = now - patkit::Clock::now(&*self.clock).timestamp_micros();
        self.clock.advance(TimeDelta::microseconds(by));
    }

    fn actor(&self, by: By) -> Actor {
        match by {
            By::System => Actor::system(),
            By::Session(person) => Actor::signed_in_to(realm(person), owner_id(person)),
            By::Token(label) => Actor::token(&self.made().verified[&label]),
        }
    }

    fn id(&self, token: Label) -> TokenId {
        self.made().ids.get(&token).copied().unwrap_or_else(nowhere)
    }

    fn seen(&self, view: &TokenView) -> Seen {
        Seen {
            label: self.made().labels[&view.id()],
            owner: person(view.realm(), view.owner_id()),
            is_service: view.kind() == TokenKind::Service,
            name: view.name().as_str().to_owned(),
            description: view.description().map(|description| description.as_str().to_owned()),
            scope: view.scope().as_set().map(|set| set.iter().map(ToString::to_string).collect()),
            networks: view.networks().is_some(),
            created: view.created_at().timestamp_micros(),
            expires: view.expires_at().map(|end| end.timestamp_micros()),
            revoked: view
                .revocation()
                .map(|revoked| (revoked.reason, revoked.at.timestamp_micros())),
            has_successor: view.successor().is_some(),
            state: view.state(),
        }
    }

    fn token(&self, result: Result<TokenView, ManageError>) -> Answer {
        result.map_or_else(
            |error| Answer::Refused(fault(&error)),
            |view| Answer::Token(self.seen(&view)),
        )
    }

    /// Stores a new token under the label of its step.
    fn issued(&self, step: &Step, result: Result<IssuedToken, ManageError>) -> Answer {
        let issued = match result {
            Ok(issued) => issued,
            Err(error) => return Answer::Refused(fault(&error)),
        };
        let id = issued.token.id();
        {
            let mut made = self.made();
            // In a race, the first operation may have drawn its id before the second one did.
            let is_greatest = made.newest[step.service].is_none_or(|newest| newest < id);
            assert!(is_greatest || made.is_racing, "ids of a service increase");
            if is_greatest {
                made.newest[step.service] = Some(id);
            }
            made.ids.insert(step.label, id);
            made.labels.insert(id, step.label);
            made.texts.insert(step.label, issued.plaintext.expose_secret().to_owned());
        }
        Answer::Token(self.seen(&issued.token))
    }

    fn verified(&self, token: Label, result: Result<Verified, VerifyError>) -> Answer {
        match result {
            Ok(verified) => {
                let seen = self.seen(verified.token());
                let allowed =
                    ASKED.into_iter().filter(|permission| verified.require(permission).is_ok());
                let allowed = allowed.collect();
                self.made().verified.insert(token, Arc::new(verified));
                Answer::Verified(seen, allowed)
            }
            Err(error) => {
                let reason = error.reject_reason().unwrap_or_else(|| panic!("{error:?}"));
                Answer::Refused(Fault::Rejected(reason.as_str()))
            }
        }
    }

    async fn list(&self, service: usize, actor: &Actor, which: Which, page: usize) -> Answer {
        let service = &self.services[service];
        let mut after = None;
        let mut ids: Vec<TokenId> = Vec::new();
        let mut tokens = Vec::new();
        loop {
            let found: Result<TokenPage, ManageError> = match which {
                Which::Own => service.list(actor, after, page).await,
                Which::Service => service.list_service(actor, after, page).await,
                Which::Of(person) => {
                    service.list_overseen(actor, &owner_id(person), after, page).await
                }
            };
            let found = match found {
                Ok(found) => found,
                Err(error) => return Answer::Refused(fault(&error)),
            };
            assert!(found.items.len() <= page, "a page of at most {page}");
            ids.extend(found.items.iter().map(TokenView::id));
            tokens.extend(found.items.iter().map(|view| self.seen(view)));
            after = found.next;
            if after.is_none() {
                break;
            }
        }
        assert!(ids.is_sorted_by(|newer, older| newer > older), "newest first");
        tokens.sort_by_key(|seen| seen.label);
        Answer::Tokens(tokens)
    }

    /// Runs a step that is not a race. `bound` is the version that its edit is bound to.
    pub(crate) async fn run(&self, step: &Step, bound: Option<u64>) -> Answer {
        let service = &self.services[step.service];
        let number = |result: Result<u64, ManageError>| {
            result.map_or_else(|error| Answer::Refused(fault(&error)), Answer::Number)
        };
        match &step.operation {
            Operation::Generate { by, new } => {
                let mut request = NewToken::named(new.name);
                request = match new.lifetime {
                    Asked::Default => request,
                    Asked::Days(days) => request.expires_in_days(days),
                    Asked::Never => request.never_expires(),
                };
                if let Some(scope) = new.scope {
                    request = request.scope(scope.iter().copied());
                }
                if let Some(network) = new.networks {
                    request = request.networks([network]);
                }
                if let Some(owner) = new.service {
                    request = request.for_service(owner_id(owner));
                }
                let result = service.generate(&self.actor(*by), request).await;
                self.issued(step, result)
            }
            Operation::List { by, which, page } => {
                self.list(step.service, &self.actor(*by), *which, *page).await
            }
            Operation::Count { by } => match service.count(&self.actor(*by)).await {
                Ok(counts) => Answer::Counts([counts.active, counts.revoked, counts.expired]),
                Err(error) => Answer::Refused(fault(&error)),
            },
            Operation::Get { by, token } => {
                self.token(service.get(&self.actor(*by), self.id(*token)).await)
            }
            Operation::Edit { by, token, edit } => {
                let mut request = TokenEdit::new();
                if let Some(name) = edit.name {
                    request = request.name(name);
                }
                if let Some(description) = edit.description {
                    request = request.description(description);
                }
                if let Some(active) = edit.active {
                    request = request.active(active);
                }
                if let Some(reason) = edit.reason {
                    request = request.reason(reason);
                }
                if let Some(version) = bound {
                    request = request.only_versions([version]);
                }
                self.token(service.edit(&self.actor(*by), self.id(*token), request).await)
            }
            Operation::Revoke { by, token, reason } => {
                self.token(service.revoke(&self.actor(*by), self.id(*token), *reason).await)
            }
            Operation::Restore { by, token } => {
                self.token(service.restore(&self.actor(*by), self.id(*token)).await)
            }
            Operation::Rotate { by, token, overlap } => {
                let result =
                    service.rotate(&self.actor(*by), self.id(*token), span(*overlap)).await;
                self.issued(step, result)
            }
            Operation::Delete { by, token } => {
                let result = service.delete(&self.actor(*by), self.id(*token)).await;
                result.map_or_else(|error| Answer::Refused(fault(&error)), |()| Answer::Done)
            }
            Operation::Verify { token, address } => {
                let text = self.made().texts[token].clone();
                let address = address.map(|address| address.parse::<IpAddr>().unwrap());
                self.verified(
                    *token,
                    service.verify(Credential::text(&text).from_address(address)).await,
                )
            }
            Operation::Recheck { token } => {
                let verified = Arc::clone(&self.made().verified[token]);
                self.verified(*token, service.recheck(&verified).await)
            }
            Operation::Offboard(person) => {
                number(service.revoke_all(&realm(*person), &owner_id(*person)).await)
            }
            Operation::Erase(person) => {
                number(service.erase_owner(&realm(*person), &owner_id(*person)).await)
            }
            Operation::Sweep => number(service.sweep_idle().await),
            Operation::Prune { older_than } => number(service.prune(span(*older_than)).await),
            Operation::Flush => {
                service.flush().await.unwrap();
                Answer::Done
            }
            // The player sets the clock and the directory.
            Operation::Wait(_) | Operation::WaitForEnd(..) | Operation::Directory(..) => {
                Answer::Done
            }
            Operation::Race(..) => unreachable!("a race is two steps"),
        }
    }

    /// Runs the second step just before the first commit of the first one, or after it if it
    /// commits nothing.
    pub(crate) async fn race(&self, steps: [&Step; 2], bound: [Option<u64>; 2]) -> Answer {
        let gate = &self.store.gate;
        gate.set(true);
        self.made().is_racing = true;
        let mut first = pin!(self.run(steps[0], bound[0]));
        let ended = poll_fn(|context| match first.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if gate.reached.load(Ordering::SeqCst) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await;
        gate.armed.store(false, Ordering::SeqCst);
        let second = Box::pin(self.run(steps[1], bound[1])).await;
        gate.open.store(true, Ordering::SeqCst);
        let first = match ended {
            Some(answer) => answer,
            None => first.await,
        };
        self.made().is_racing = false;
        Answer::Both(first.into(), second.into())
    }

    /// Returns all records with their labels, newest first.
    pub(crate) async fn records(&self) -> Vec<(Label, Token)> {
        let mut query = ListQuery::new(ListBy::Idle(DateTime::<Utc>::MAX_UTC));
        let mut records = Vec::new();
        loop {
            let page = self.store.list(&query).await.unwrap();
            assert!(page.corrupt.is_empty(), "{:?}", page.corrupt);
            let made = self.made();
            records.extend(
                page.tokens.iter().map(|token| (made.labels[&token.id], Token::clone(token))),
            );
            match page.next {
                Some(next) => query = query.after(Some(next)),
                None => return records,
            }
        }
    }

    pub(crate) fn label(&self, id: TokenId) -> Option<Label> {
        self.made().labels.get(&id).copied()
    }
}

/// Returns a stored revocation as the rules express it.
pub(crate) fn revoked(token: &Token) -> Option<Revoked> {
    token.facts.revocation.as_deref().map(|revocation| Revoked {
        at: revocation.at.timestamp_micros(),
        reason: revocation.reason,
        authority: revocation.authority,
    })
}

fn fault(error: &ManageError) -> Fault {
    match error {
        ManageError::ActorRejected(_) => Fault::ActorRejected,
        ManageError::Forbidden { .. } => Fault::Forbidden,
        ManageError::ForbiddenByPolicy(_) => Fault::ByPolicy,
        ManageError::NotForHost => Fault::NotForHost,
        ManageError::NotFound => Fault::NotFound,
        ManageError::Refused(refusal) => match refusal.why {
            RefusalReason::StillActive => Fault::StillActive,
            RefusalReason::NotRevoked => Fault::NotRevoked,
            RefusalReason::Revoked => Fault::IsRevoked,
            RefusalReason::Expired => Fault::Expired,
            RefusalReason::HasSuccessor => Fault::HasSuccessor,
            RefusalReason::Final(_) => Fault::Final,
            RefusalReason::Authority(_) => Fault::Authority,
            _ => panic!("{error:?}"),
        },
        ManageError::ReasonNotAllowed(_) => Fault::ReasonNotAllowed,
        ManageError::NameTaken => Fault::NameTaken,
        ManageError::TooManyTokens { .. } => Fault::TooMany,
        ManageError::Invalid(input) => Fault::Invalid(match input {
            InvalidInput::Lifetime(_) => "lifetime",
            InvalidInput::Overlap { .. } => "overlap",
            InvalidInput::OwnerUnknown
            | InvalidInput::OwnerDisabled
            | InvalidInput::OwnerKind(_) => "owner",
            InvalidInput::NothingToChange => "edit",
            _ => panic!("{error:?}"),
        }),
        ManageError::Attenuation(what) => Fault::Attenuation(match what {
            Attenuation::Scope => "scope",
            Attenuation::Networks => "networks",
            Attenuation::Expiry => "expiry",
            Attenuation::Family => "family",
            _ => panic!("{error:?}"),
        }),
        ManageError::Outdated => Fault::Outdated,
        _ => panic!("{error:?}"),
    }
}
