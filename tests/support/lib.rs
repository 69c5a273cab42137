//! The world of the tests: a store, a directory with owners of every kind and role in two realms, a
//! manual clock, a recording sink, and a service over all of them.

#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

pub mod races;

use chrono::{DateTime, TimeDelta, Utc};
use patkit::policy::UnknownScopes;
use patkit::role::RoleCatalogBuilder;
use patkit::service::{BuildError, ManageError, TokenServiceBuilder};
use patkit::store::{AuditLog, Change, ChangeBatch, EventQuery, ListBy, ListQuery};
use patkit::token::Facts;
use patkit::{
    Actor, AuditEvent, AuditSink, Credential, Grant, IssuedToken, Keyring, ManualClock,
    MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind, Realm, RoleCatalog, Token,
    TokenId, TokenPolicy, TokenService, TokenStore, Verified,
};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

pub type Service = TokenService<Arc<MemoryStore>, Arc<MemoryDirectory>>;
pub type Builder = TokenServiceBuilder<Arc<MemoryStore>, Arc<MemoryDirectory>>;

/// Returns the output of a future that never waits, as over the in-memory store and directory.
pub fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a future over memory alone waits"),
    }
}

/// Returns the time at which the world begins.
pub fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

pub fn id(text: &str) -> OwnerId {
    OwnerId::new(text).unwrap()
}

/// Returns the default realm, where most owners of the tests live.
pub fn home() -> Realm {
    Realm::default()
}

/// Returns the other realm, which has owners with the same ids.
pub fn beta() -> Realm {
    Realm::new("beta").unwrap()
}

/// Id, kind, role, direct grants, enabled.
type Described = (&'static str, OwnerKind, Option<&'static str>, &'static [&'static str], bool);

/// The owners of each realm.
///
/// Nobody is called `ghost`.
pub const OWNERS: [Described; 9] = [
    ("ann", OwnerKind::Human, Some("member"), &["datastores:read"], true),
    ("bob", OwnerKind::Human, Some("member"), &[], true),
    ("mia", OwnerKind::Human, Some("manager"), &[], true),
    ("ada", OwnerKind::Human, Some("admin"), &["datastores:read", "scim:*"], true),
    ("nil", OwnerKind::Human, None, &[], true),
    ("off", OwnerKind::Human, Some("admin"), &[], false),
    ("bot", OwnerKind::Service, None, &["datastores:read"], true),
    ("robot", OwnerKind::Service, None, &["service-tokens:manage", "datastores:read"], true),
    ("core", OwnerKind::Internal, Some("admin"), &[], true),
];

pub fn grants(texts: &[&str]) -> Vec<Grant> {
    texts.iter().map(|text| Grant::parse(text).unwrap()).collect()
}

fn owners(everybody_is_admin: bool) -> impl Iterator<Item = Owner> {
    [home(), beta()].into_iter().flat_map(move |realm| {
        OWNERS.map(|(name, kind, role, direct, enabled)| {
            let owner = Owner::new(id(name), kind)
                .in_realm(realm.clone())
                .with_name(name)
                .with_grants(grants(direct));
            if everybody_is_admin {
                owner.with_role("admin")
            } else {
                role.into_iter().fold(owner, Owner::with_role).with_enabled(enabled)
            }
        })
    })
}

/// Records the events that it receives.
#[derive(Default)]
pub struct Heard(Mutex<Vec<AuditEvent>>);

impl Heard {
    pub fn all(&self) -> Vec<AuditEvent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn take(&self) -> Vec<AuditEvent> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AuditSink for Heard {
    fn record(&self, event: &AuditEvent) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
    }
}

pub struct World {
    pub store: Arc<MemoryStore>,
    pub directory: Arc<MemoryDirectory>,
    pub clock: Arc<ManualClock>,
    pub heard: Arc<Heard>,
    /// The service under test.
    pub service: Service,
    /// Another service over the same store, for which everybody is an enabled admin.
    ///
    /// It makes tokens for owners who may not make them.
    issuer: Service,
}

const KEYS: &str = "1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

pub fn builder(
    store: Arc<MemoryStore>,
    directory: Arc<MemoryDirectory>,
    clock: Arc<ManualClock>,
) -> Builder {
    TokenService::builder(store, directory)
        .brand("acme")
        .roles(catalog())
        .keyring(Keyring::from_text(KEYS).unwrap())
        .clock(clock)
}

impl World {
    pub fn new() -> Self {
        Self::with(TokenPolicy::default())
    }

    pub fn with(policy: TokenPolicy) -> Self {
        Self::built(|builder| builder.policy(policy)).unwrap()
    }

    /// Creates a world whose service has more than a policy.
    pub fn built(more: impl FnOnce(Builder) -> Builder) -> Result<Self, BuildError> {
        let store = Arc::new(MemoryStore::new());
        let directory = Arc::new(owners(false).collect::<MemoryDirectory>());
        let clock = Arc::new(ManualClock::at(start()));
        let heard = Arc::new(Heard::default());
        let plain =
            builder(store.clone(), directory.clone(), clock.clone()).audit_sink(heard.clone());
        let service = more(plain).build()?;
        let admins = Arc::new(owners(true).collect::<MemoryDirectory>());
        let open = TokenPolicy::builder().unknown_scopes(UnknownScopes::Allowed).build().unwrap();
        let issuer = builder(store.clone(), admins, clock.clone()).policy(open).build()?;
        Ok(Self { store, directory, clock, heard, service, issuer })
    }

    /// Creates another service over the same store, directory, clock and keys, with another policy.
    pub fn under(&self, policy: TokenPolicy) -> Service {
        builder(self.store.clone(), self.directory.clone(), self.clock.clone())
            .audit_sink(self.heard.clone())
            .policy(policy)
            .build()
            .unwrap()
    }

    pub fn now(&self) -> DateTime<Utc> {
        patkit::Clock::now(&*self.clock)
    }

    pub fn advance(&self, by: TimeDelta) {
        self.clock.advance(by);
    }

    /// Replaces the owner of the default realm who has this id.
    ///
    /// The new owner has the same kind, and otherwise only what `change` sets.
    pub fn put(&self, name: &str, change: impl FnOnce(Owner) -> Owner) {
        let kind =
            OWNERS.iter().find(|owner| owner.0 == name).map_or(OwnerKind::Human, |owner| owner.1);
        self.directory.put(change(Owner::new(id(name), kind)));
    }

    /// Makes a token of this owner: a service token for a service user, and a personal token
    /// otherwise.
    pub fn issue_in(&self, realm: &Realm, owner: &str, new: NewToken) -> IssuedToken {
        let kind = OWNERS.iter().find(|each| each.0 == owner).unwrap().1;
        let issued = if kind == OwnerKind::Service {
            let ada = Actor::signed_in_to(realm.clone(), id("ada"));
            ready(self.issuer.generate(&ada, new.for_service(id(owner))))
        } else {
            ready(self.issuer.generate(&Actor::signed_in_to(realm.clone(), id(owner)), new))
        };
        issued.unwrap()
    }

    pub fn issue(&self, owner: &str, new: NewToken) -> IssuedToken {
        self.issue_in(&home(), owner, new)
    }

    /// Makes a token with this name and with the defaults.
    pub fn token(&self, owner: &str, name: &str) -> TokenId {
        self.issue(owner, NewToken::named(name)).token.id()
    }

    /// Returns an actor through this token, whoever its owner is.
    pub fn through(&self, issued: &IssuedToken) -> Actor {
        Actor::token(
            &ready(self.issuer.verify(Credential::text(issued.plaintext.expose_secret()))).unwrap(),
        )
    }

    pub fn verify(&self, issued: &IssuedToken) -> Result<Verified, patkit::VerifyError> {
        ready(self.service.verify(Credential::text(issued.plaintext.expose_secret())))
    }

    /// Returns why a token is refused, or `None` if it works.
    pub fn refusal(&self, issued: &IssuedToken) -> Option<patkit::RejectReason> {
        self.verify(issued).err().map(|error| error.reject_reason().unwrap())
    }

    pub fn generate(&self, actor: &Actor, new: NewToken) -> Result<IssuedToken, ManageError> {
        ready(self.service.generate(actor, new))
    }

    pub fn find(&self, id: TokenId) -> Option<Arc<Token>> {
        ready(self.store.find(id)).unwrap()
    }

    pub fn stored(&self, id: TokenId) -> Arc<Token> {
        self.find(id).unwrap()
    }

    pub fn facts(&self, id: TokenId) -> Facts {
        self.stored(id).facts.clone()
    }

    /// Changes a stored record without any checks.
    pub fn force(&self, id: TokenId, change: impl FnOnce(&mut Token)) {
        let mut token = Token::clone(&self.stored(id));
        token.version += 1;
        change(&mut token);
        let batch = ChangeBatch::new().change(Change::Update(Arc::new(token)));
        ready(self.store.commit(&batch)).unwrap();
    }

    /// Returns all records of both realms.
    pub fn tokens(&self) -> Vec<Token> {
        let mut query = ListQuery::new(ListBy::Idle(DateTime::<Utc>::MAX_UTC));
        let mut tokens = Vec::new();
        loop {
            let page = ready(self.store.list(&query)).unwrap();
            tokens.extend(page.tokens.iter().map(|token| Token::clone(token)));
            match page.next {
                Some(next) => query = query.after(Some(next)),
                None => return tokens,
            }
        }
    }

    /// Returns all stored events of a realm.
    pub fn events_in(&self, realm: &Realm) -> Vec<AuditEvent> {
        let mut query = EventQuery::new(realm.clone()).oldest_first();
        let mut events = Vec::new();
        loop {
            let page = ready(self.store.events(&query)).unwrap();
            events.extend(page.events);
            match page.next {
                Some(next) => query = query.after(Some(next)),
                None => return events,
            }
        }
    }

    /// Returns all stored events of both realms.
    pub fn events(&self) -> Vec<AuditEvent> {
        [home(), beta()].iter().flat_map(|realm| self.events_in(realm)).collect()
    }

    /// Returns the stored events that are not in `before`.
    pub fn events_since(&self, before: &[AuditEvent]) -> Vec<AuditEvent> {
        let mut events = self.events();
        events.retain(|event| !before.contains(event));
        events
    }

    /// Returns everything that is stored, including versions and events, to show that nothing
    /// changed.
    pub fn snapshot(&self) -> (Vec<Token>, Vec<AuditEvent>) {
        (self.tokens(), self.events())
    }
}

/// Returns an owner of the default realm in a session.
pub fn session(owner: &str) -> Actor {
    Actor::signed_in(id(owner))
}

/// Returns an id that no store has.
pub fn nowhere() -> TokenId {
    let mut bytes = [0x11; 16];
    bytes[6] = 0x71;
    bytes[8] = 0x91;
    TokenId::from_bytes(bytes).unwrap()
}

/// Returns the standard roles and the permissions of a host.
pub fn catalog() -> RoleCatalog {
    let permissions = [
        "a",
        "anything:at:all",
        "buckets:read",
        "datastores",
        "datastores:read",
        "datastores:write",
        "scim",
        "scimitar:read",
    ];
    permissions
        .into_iter()
        .fold(RoleCatalog::standard_builder(), RoleCatalogBuilder::permission)
        .build()
        .unwrap()
}
