//! The second implementation of the contract: who may do what, what becomes of a token, and which
//! tokens are a family.
//!
//! The rules do not know how the crate stores records. Here a family is a graph from which nothing
//! is ever removed, so that a removal cannot cut it. Times are microseconds since 1970.

use super::history::{
    Asked, By, Change, DAY, Edit, HOUR, Label, New, Operation, PEOPLE, Person, SECOND, Step,
    Versions, Which,
};
use patkit::token::Authority;
use patkit::{Reason, TokenState};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The flush interval of all services.
pub(crate) const FLUSH_INTERVAL: i64 = 10 * SECOND;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Off,
    Alert,
    RevokeFamily,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Management {
    Attenuated,
    Named,
    Forbidden,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) default_days: i64,
    pub(crate) longest_days: Option<i64>,
    pub(crate) never_allowed: bool,
    pub(crate) limit: Option<usize>,
    pub(crate) idle_days: Option<i64>,
    pub(crate) longest_overlap: i64,
    pub(crate) signal: Signal,
    pub(crate) window_days: i64,
    pub(crate) management: Management,
    pub(crate) revoke_only: bool,
    pub(crate) granularity: i64,
}

/// The policies of the services over one store. The services that sweep record every use, so that
/// the rules know the last one.
pub(crate) const POLICIES: [Policy; 4] = [
    Policy {
        default_days: 90,
        longest_days: None,
        never_allowed: true,
        limit: None,
        idle_days: Some(40),
        longest_overlap: 7 * DAY,
        signal: Signal::Alert,
        window_days: 30,
        management: Management::Attenuated,
        revoke_only: true,
        granularity: 0,
    },
    Policy {
        default_days: 20,
        longest_days: Some(30),
        never_allowed: false,
        limit: Some(3),
        idle_days: None,
        longest_overlap: 3 * DAY,
        signal: Signal::RevokeFamily,
        window_days: 21,
        management: Management::Attenuated,
        revoke_only: false,
        granularity: 60 * SECOND,
    },
    Policy {
        default_days: 9,
        longest_days: None,
        never_allowed: false,
        limit: None,
        idle_days: Some(8),
        longest_overlap: HOUR,
        signal: Signal::Off,
        window_days: 30,
        management: Management::Named,
        revoke_only: false,
        granularity: 0,
    },
    Policy {
        default_days: 90,
        longest_days: None,
        never_allowed: true,
        limit: Some(4),
        idle_days: None,
        longest_overlap: 0,
        signal: Signal::RevokeFamily,
        window_days: 2,
        management: Management::Forbidden,
        revoke_only: true,
        granularity: HOUR,
    },
];

/// A person's entry in the directory.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) enabled: bool,
    pub(crate) role: Option<&'static str>,
    pub(crate) grants: &'static [&'static str],
    pub(crate) valid_after: Option<i64>,
}

impl Person {
    pub(crate) const fn is_service(self) -> bool {
        matches!(self, Self::Bot | Self::Robot)
    }

    /// Returns whether the person is in another realm than the default one.
    pub(crate) const fn is_elsewhere(self) -> bool {
        matches!(self, Self::Eve)
    }

    /// Returns the initial entry in the directory.
    pub(crate) fn standing(self) -> Standing {
        let (role, grants): (_, &[&str]) = match self {
            Self::Ann | Self::Ben => (Some("member"), &[]),
            Self::Ada | Self::Eve => (Some("admin"), &["scim:*"]),
            Self::Bot => (None, &["data:read"]),
            Self::Robot => (None, &["service-tokens:manage", "data:read"]),
        };
        Standing { enabled: true, role, grants, valid_after: None }
    }
}

/// Returns the grants of a role. The tests' catalogue adds `data:read` and `data:write` to the
/// standard member role.
fn grants_of(role: &str) -> &'static [&'static str] {
    match role {
        "member" | "manager" => &["tokens:manage", "data:read", "data:write"],
        _ => &[
            "tokens:manage",
            "data:read",
            "data:write",
            "service-tokens:manage",
            "tokens:scim",
            "tokens:oversee",
        ],
    }
}

/// Returns whether a grant covers another: `a:*` covers `a:b`, `a:b:c` and `a:b:*`, not `a`; `*`
/// covers all.
fn covers(grant: &str, other: &str) -> bool {
    grant == other || grant.strip_suffix('*').is_some_and(|prefix| other.starts_with(prefix))
}

type Entries = &'static [&'static str];

fn is_within(scope: Option<Entries>, outer: Option<Entries>) -> bool {
    match (scope, outer) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(scope), Some(outer)) => {
            scope.iter().all(|entry| outer.iter().any(|grant| covers(grant, entry)))
        }
    }
}

fn covers_scim(scope: Option<Entries>) -> bool {
    scope.is_some_and(|scope| scope.iter().any(|entry| *entry == "*" || entry.starts_with("scim:")))
}

/// Returns whether `network` is within `outer`, for which the few networks of the histories are
/// compared by text.
fn network_within(network: Option<&str>, outer: Option<&str>) -> bool {
    match (network, outer) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(network), Some(outer)) => {
            network == outer || (network, outer) == ("10.1.0.0/16", "10.0.0.0/8")
        }
    }
}

fn address_within(address: Option<&str>, network: Option<&str>) -> bool {
    let Some(network) = network else { return true };
    let Some(address) = address else { return false };
    let IpAddr::V4(address) = address.parse::<IpAddr>().unwrap().to_canonical() else {
        return false;
    };
    match network {
        "10.0.0.0/8" => address.octets()[0] == 10,
        "10.1.0.0/16" => address.octets()[..2] == [10, 1],
        _ => address.octets()[..2] == [192, 168],
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Revoked {
    pub(crate) at: i64,
    pub(crate) reason: Reason,
    pub(crate) authority: Authority,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Succession {
    pub(crate) successor: Label,
    pub(crate) at: i64,
    pub(crate) until: i64,
}

#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) label: Label,
    pub(crate) owner: Person,
    pub(crate) is_service: bool,
    pub(crate) name: &'static str,
    pub(crate) description: Option<&'static str>,
    pub(crate) scope: Option<Entries>,
    pub(crate) networks: Option<&'static str>,
    pub(crate) lifetime: Asked,
    pub(crate) created: i64,
    pub(crate) expires: Option<i64>,
    pub(crate) revoked: Option<Revoked>,
    pub(crate) succession: Option<Succession>,
    pub(crate) idle_from: i64,
    pub(crate) last_used: Option<i64>,
    reuse_reported: Option<i64>,
    /// The stored version after the last step.
    pub(crate) version: u64,
    /// Set if the record changed in this step, which increases its version.
    pub(crate) is_changed: bool,
    /// Set if a neighbor was removed in this step, because the record may have changed then.
    pub(crate) is_neighbor: bool,
}

impl Record {
    /// Returns the state. A token is expired from the instant of its expiry on, even if it was
    /// revoked.
    pub(crate) fn state(&self, now: i64) -> TokenState {
        match (self.expires, self.revoked) {
            (Some(end), _) if end <= now => TokenState::Expired,
            (_, Some(_)) => TokenState::Revoked,
            _ => TokenState::Active,
        }
    }

    fn is_active(&self, now: i64) -> bool {
        self.state(now) == TokenState::Active
    }

    fn ended(&self) -> Option<i64> {
        let revoked = self.revoked.map(|revoked| revoked.at);
        self.expires.into_iter().chain(revoked).min()
    }

    fn last_activity(&self) -> i64 {
        self.last_used.map_or(self.idle_from, |used| used.max(self.idle_from))
    }

    /// Returns whether the token keeps its name taken.
    fn holds_name(&self) -> bool {
        self.succession.is_none()
    }
}

/// The visible facts of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) label: Label,
    pub(crate) owner: Person,
    pub(crate) is_service: bool,
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) scope: Option<Vec<String>>,
    pub(crate) networks: bool,
    pub(crate) created: i64,
    pub(crate) expires: Option<i64>,
    pub(crate) revoked: Option<(Reason, i64)>,
    pub(crate) has_successor: bool,
    pub(crate) state: TokenState,
}

/// The answer to an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// One token.
    Token(Seen),
    /// The tokens, ordered by label.
    Tokens(Vec<Seen>),
    /// The numbers of active, revoked and expired tokens.
    Counts([u64; 3]),
    /// The number of changed tokens.
    Number(u64),
    /// A success without a value.
    Done,
    /// A successful verification, with the allowed permissions.
    Verified(Seen, Vec<&'static str>),
    Refused(Fault),
    /// Both answers of a race.
    Both(Box<Answer>, Box<Answer>),
}

/// The kind of a refusal, without details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    ActorRejected,
    Forbidden,
    ByPolicy,
    NotForHost,
    NotFound,
    StillActive,
    NotRevoked,
    IsRevoked,
    Expired,
    HasSuccessor,
    Final,
    Authority,
    ReasonNotAllowed,
    NameTaken,
    TooMany,
    Invalid(&'static str),
    Attenuation(&'static str),
    Outdated,
    Rejected(&'static str),
}

/// The answers that the rules allow.
#[derive(Debug, Clone)]
pub(crate) enum Expected {
    Answer(Answer),
    /// Any of these, because the contract does not say which fault is reported if a request has
    /// several.
    OneOf(Vec<Fault>),
}

impl Expected {
    pub(crate) fn admits(&self, answer: &Answer) -> bool {
        match (self, answer) {
            (Self::Answer(expected), answer) => expected == answer,
            (Self::OneOf(faults), Answer::Refused(fault)) => faults.contains(fault),
            _ => false,
        }
    }
}

type Outcome = Result<Answer, Vec<Fault>>;

/// The permissions that are checked after each verification.
pub(crate) const ASKED: [&str; 8] = [
    "data:read",
    "data:write",
    "tokens:manage",
    "tokens:scim",
    "tokens:oversee",
    "service-tokens:manage",
    "scim:users",
    "data",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Get,
    Revoke,
    Restore,
    Rotate,
    Change,
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    System,
    Itself,
    Owner,
    Admin,
    Overseer,
}

impl Relation {
    const fn authority(self) -> Authority {
        match self {
            Self::System => Authority::System,
            Self::Itself | Self::Owner => Authority::Owner,
            Self::Admin | Self::Overseer => Authority::Admin,
        }
    }

    const fn own_reason(self) -> Reason {
        match self {
            Self::System => Reason::System,
            Self::Itself | Self::Owner => Reason::Owner,
            Self::Admin | Self::Overseer => Reason::Admin,
        }
    }

    fn may_give(self, reason: Reason) -> bool {
        match self {
            Self::System => !matches!(reason, Reason::Rotated | Reason::Reuse | Reason::Suspected),
            _ => reason == Reason::Compromised || reason == self.own_reason(),
        }
    }
}

/// An actor in its current state.
#[derive(Debug, Clone, Copy)]
struct Acting<'a> {
    person: Option<Person>,
    through: Option<&'a Record>,
    policy: &'a Policy,
    standing: Option<&'a Standing>,
}

impl Acting<'_> {
    fn owner_holds(&self, permission: &str) -> bool {
        self.standing.is_some_and(|standing| holds(standing, permission))
    }

    /// Returns the fault if the actor may not use a permission.
    fn lacks(&self, permission: &str) -> Option<Fault> {
        let Some(through) = self.through else {
            return (!self.owner_holds(permission)).then_some(Fault::Forbidden);
        };
        let passes =
            through.scope.is_none_or(|scope| scope.iter().any(|grant| covers(grant, permission)));
        if !self.owner_holds(permission) || !passes {
            return Some(Fault::Forbidden);
        }
        let is_allowed = match self.policy.management {
            Management::Attenuated => true,
            Management::Named => through.scope.is_some_and(|scope| scope.contains(&permission)),
            Management::Forbidden => false,
        };
        (!is_allowed).then_some(Fault::ByPolicy)
    }

    fn may(&self, permission: &str) -> bool {
        self.lacks(permission).is_none()
    }
}

fn holds(standing: &Standing, permission: &str) -> bool {
    let of_role = standing.role.map_or(&[][..], grants_of);
    of_role.iter().chain(standing.grants).any(|grant| covers(grant, permission))
}

/// The origin of a token, which is kept forever.
#[derive(Debug, Clone, Copy, Default)]
struct Origin {
    /// The token that made it.
    maker: Option<Label>,
    /// The token through which it was last restored.
    restorer: Option<Label>,
    predecessor: Option<Label>,
}

#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) now: i64,
    pub(crate) records: BTreeMap<Label, Record>,
    pub(crate) gone: BTreeSet<Label>,
    pub(crate) people: BTreeMap<Person, Standing>,
    /// Tokens that were verified at least once, through which an actor may act.
    pub(crate) proven: BTreeSet<Label>,
    /// Tokens that were reported as compromised, and all tokens obtained through them: none of them
    /// may ever work again.
    pub(crate) stolen: BTreeSet<Label>,
    /// The latest use of a token that each service recorded.
    pub(crate) noted: BTreeMap<(usize, Label), i64>,
    /// The end of the time in which a service leaves the family of a reused token alone, after it
    /// reported the reuse. A restoration by that service ends it early.
    left_alone: BTreeMap<(usize, Label), i64>,
    /// The acting token that is judged by its state before a simultaneous revocation.
    pub(crate) judged_before: Option<Label>,
    /// Set once a record has more parents than it has room for, because the rules do not say which
    /// ones it keeps.
    pub(crate) is_vague: bool,
    origins: BTreeMap<Label, Origin>,
}

impl Model {
    pub(crate) fn new(now: i64) -> Self {
        Self {
            now,
            records: BTreeMap::new(),
            gone: BTreeSet::new(),
            people: PEOPLE.into_iter().map(|person| (person, person.standing())).collect(),
            proven: BTreeSet::new(),
            stolen: BTreeSet::new(),
            noted: BTreeMap::new(),
            left_alone: BTreeMap::new(),
            judged_before: None,
            is_vague: false,
            origins: BTreeMap::new(),
        }
    }

    /// Returns whether a step can run: a token acts only after it was verified.
    pub(crate) fn can_run(&self, operation: &Operation) -> bool {
        match operation {
            Operation::Generate { by, .. }
            | Operation::List { by, .. }
            | Operation::Count { by }
            | Operation::Get { by, .. }
            | Operation::Edit { by, .. }
            | Operation::Revoke { by, .. }
            | Operation::Restore { by, .. }
            | Operation::Rotate { by, .. }
            | Operation::Delete { by, .. } => match by {
                By::Token(label) => self.proven.contains(label),
                _ => true,
            },
            Operation::Recheck { token } => self.proven.contains(token),
            Operation::Verify { token, .. } => {
                self.records.contains_key(token) || self.gone.contains(token)
            }
            Operation::Race(first, second) => {
                self.can_run(&first.operation) && self.can_run(&second.operation)
            }
            _ => true,
        }
    }

    /// Returns the time after a step.
    pub(crate) fn time_after(&self, operation: &Operation) -> i64 {
        match operation {
            Operation::Wait(by) => self.now + by,
            Operation::WaitForEnd(token, by) => {
                let end = self.records.get(token).and_then(|record| record.expires);
                end.map_or(self.now, |end| self.now.max(end + by))
            }
            _ => self.now,
        }
    }

    /// Returns the version that an edit is bound to.
    pub(crate) fn versions(&self, token: Label, versions: Versions) -> Option<u64> {
        let version = self.records.get(&token).map_or(1, |record| record.version);
        match versions {
            Versions::Any => None,
            Versions::Current => Some(version),
            Versions::Outdated => Some(version.saturating_sub(1)),
        }
    }

    /// Returns whether an edit is bound to a version that a removal at the same moment may have
    /// moved. The rules do not say which records of a family a removal changes.
    pub(crate) fn may_be_outdated(&self, step: &Step, bound: Option<u64>) -> bool {
        let Operation::Edit { token, .. } = &step.operation else { return false };
        bound.is_some() && self.records.get(token).is_some_and(|record| record.is_neighbor)
    }

    pub(crate) fn seen(&self, record: &Record) -> Seen {
        Seen {
            label: record.label,
            owner: record.owner,
            is_service: record.is_service,
            name: record.name.to_owned(),
            description: record.description.map(str::to_owned),
            scope: record.scope.map(|scope| {
                let mut entries: Vec<String> =
                    scope.iter().map(|&entry| entry.to_owned()).collect();
                entries.sort();
                entries
            }),
            networks: record.networks.is_some(),
            created: record.created,
            expires: record.expires,
            revoked: record.revoked.map(|revoked| (revoked.reason, revoked.at)),
            has_successor: record.succession.is_some(),
            state: record.state(self.now),
        }
    }

    fn shown(&self, label: Label) -> Answer {
        Answer::Token(self.seen(&self.records[&label]))
    }

    /// Applies a step. `bound` is the version that its edit is bound to.
    pub(crate) fn apply(&mut self, step: &Step, bound: Option<u64>) -> Expected {
        let policy = &POLICIES[step.service];
        let revoked: Vec<Label> = self
            .records
            .values()
            .filter(|record| record.revoked.is_some())
            .map(|record| record.label)
            .collect();
        let outcome = match &step.operation {
            Operation::Generate { by, new } => self.generate(step.label, *by, new, policy),
            Operation::List { by, which, .. } => self.list(*by, *which, policy),
            Operation::Count { by } => self.count(*by, policy),
            Operation::Get { by, token } => {
                self.target(*by, *token, Deed::Get, policy).map(|_| self.shown(*token))
            }
            Operation::Edit { by, token, edit } => self.edit(*by, *token, edit, bound, policy),
            Operation::Revoke { by, token, reason } => self.revoke(*by, *token, *reason, policy),
            Operation::Restore { by, token } => self.restore(*by, *token, policy),
            Operation::Rotate { by, token, overlap } => {
                self.rotate(step.label, *by, *token, *overlap, policy)
            }
            Operation::Delete { by, token } => self.delete(*by, *token, policy),
            Operation::Verify { token, address } => {
                self.verify(step.service, *token, *address, policy)
            }
            Operation::Recheck { token } => self.recheck(step.service, *token),
            Operation::Offboard(person) => Ok(self.offboard(*person)),
            Operation::Erase(person) => Ok(self.erase(*person)),
            Operation::Sweep => Ok(self.sweep(step.service, policy)),
            Operation::Prune { older_than } => Ok(self.prune(*older_than)),
            Operation::Flush => Ok(Answer::Done),
            Operation::Wait(_) | Operation::WaitForEnd(..) => {
                self.now = self.time_after(&step.operation);
                Ok(Answer::Done)
            }
            Operation::Directory(person, change) => Ok(self.directory(*person, *change)),
            Operation::Race(..) => unreachable!("a race is two steps"),
        };
        if self
            .records
            .iter()
            .any(|(label, record)| record.revoked.is_none() && revoked.contains(label))
        {
            self.left_alone.retain(|(service, _), _| *service != step.service);
        }
        match outcome {
            Ok(answer) => Expected::Answer(answer),
            Err(faults) => Expected::OneOf(faults),
        }
    }

    // Authorization.

    fn acting<'a>(&'a self, by: By, policy: &'a Policy) -> Result<Acting<'a>, Vec<Fault>> {
        let rejected = || vec![Fault::ActorRejected];
        let (person, through) = match by {
            By::System => {
                return Ok(Acting { person: None, through: None, policy, standing: None });
            }
            By::Session(person) => (person, None),
            By::Token(label) => {
                let record = self.records.get(&label).ok_or_else(rejected)?;
                (record.owner, Some(record))
            }
        };
        let standing =
            self.people.get(&person).filter(|standing| standing.enabled).ok_or_else(rejected)?;
        let judged = through.filter(|record| self.judged_before != Some(record.label));
        if judged.is_some_and(|record| self.rejects(record).is_some()) {
            return Err(rejected());
        }
        Ok(Acting { person: Some(person), through, policy, standing: Some(standing) })
    }

    /// Returns whether the owner signed out everywhere after the token was made.
    fn is_signed_out(&self, record: &Record) -> bool {
        let valid_after = self.people.get(&record.owner).and_then(|owner| owner.valid_after);
        valid_after.is_some_and(|after| record.created < after)
    }

    /// Returns the reason if a token is rejected despite its right secret, regardless of the
    /// address.
    fn rejects(&self, record: &Record) -> Option<&'static str> {
        match record.state(self.now) {
            TokenState::Active => {}
            TokenState::Revoked => return Some("revoked"),
            _ => return Some("expired"),
        }
        match self.people.get(&record.owner) {
            None => Some("owner_unknown"),
            Some(standing) if !standing.enabled => Some("owner_disabled"),
            Some(_) if self.is_signed_out(record) => Some("before_valid_after"),
            Some(_) => None,
        }
    }

    /// Returns the actor's relation to the token, or the faults if it may not do this to the token.
    fn target(
        &self,
        by: By,
        token: Label,
        deed: Deed,
        policy: &Policy,
    ) -> Result<Relation, Vec<Fault>> {
        let acting = self.acting(by, policy)?;
        let is_itself = by == By::Token(token);
        let Some(person) = acting.person else {
            if !matches!(deed, Deed::Get | Deed::Revoke | Deed::Restore) {
                return Err(vec![Fault::NotForHost]);
            }
            let found = self.records.get(&token).filter(|record| !record.owner.is_elsewhere());
            return found.map(|_| Relation::System).ok_or_else(|| vec![Fault::NotFound]);
        };
        let personal = acting.lacks("tokens:manage");
        let service = acting.lacks("service-tokens:manage");
        let oversee = acting.lacks("tokens:oversee");
        let record = self
            .records
            .get(&token)
            .filter(|record| record.owner.is_elsewhere() == person.is_elsewhere());
        if is_itself && let Some(record) = record {
            let lacks = if record.is_service { service } else { personal };
            return match (deed, lacks) {
                (Deed::Rotate, _) if policy.management == Management::Forbidden => {
                    Err(vec![Fault::ByPolicy])
                }
                (Deed::Get | Deed::Revoke | Deed::Rotate, _) => Ok(Relation::Itself),
                (_, None) => Ok(Relation::Owner),
                // The contract does not say whether the id or the permission is checked first.
                (_, Some(_)) => Err([personal, service].into_iter().flatten().collect()),
            };
        }
        // Without any sufficient permission, the answer does not depend on the id.
        let oversees = deed == Deed::Revoke && policy.revoke_only;
        if personal.is_some() && service.is_some() && (oversee.is_some() || !oversees) {
            // An overseer learns that the policy forbids the operation.
            let oversee = oversee.or(Some(Fault::ByPolicy));
            return Err([personal, service, oversee].into_iter().flatten().collect());
        }
        let Some(record) = record else { return Err(vec![Fault::NotFound]) };
        if record.is_service {
            return if service.is_none() {
                Ok(Relation::Admin)
            } else {
                Err(vec![Fault::NotFound])
            };
        }
        if record.owner == person && personal.is_none() {
            return Ok(Relation::Owner);
        }
        match (oversee, policy.revoke_only) {
            (None, true) if deed == Deed::Revoke => Ok(Relation::Overseer),
            (None, true) => Err(vec![Fault::ByPolicy]),
            _ => Err(vec![Fault::NotFound]),
        }
    }

    // Lists.

    fn list(&self, by: By, which: Which, policy: &Policy) -> Outcome {
        let acting = self.acting(by, policy)?;
        let tokens = self.records.values();
        let elsewhere = acting.person.is_some_and(Person::is_elsewhere);
        let here = tokens.filter(|record| record.owner.is_elsewhere() == elsewhere);
        // An owner is named by its id, which `Eve` and `Ada` share.
        let which = match which {
            Which::Of(Person::Ada | Person::Eve) if elsewhere => Which::Of(Person::Eve),
            Which::Of(Person::Eve) => Which::Of(Person::Ada),
            which => which,
        };
        let seen: Vec<Seen> = match (which, acting.person) {
            (Which::Own, None) => here.map(|record| self.seen(record)).collect(),
            (Which::Own, Some(person)) => {
                acting.lacks("tokens:manage").map_or(Ok(()), |fault| Err(vec![fault]))?;
                let own = here.filter(|record| record.owner == person && !record.is_service);
                own.map(|record| self.seen(record)).collect()
            }
            (Which::Service, person) => {
                if person.is_some() {
                    acting
                        .lacks("service-tokens:manage")
                        .map_or(Ok(()), |fault| Err(vec![fault]))?;
                }
                here.filter(|record| record.is_service).map(|record| self.seen(record)).collect()
            }
            (Which::Of(owner), None) => here
                .filter(|record| record.owner == owner)
                .map(|record| self.seen(record))
                .collect(),
            (Which::Of(owner), Some(_)) => {
                acting.lacks("tokens:oversee").map_or(Ok(()), |fault| Err(vec![fault]))?;
                if !policy.revoke_only {
                    return Err(vec![Fault::ByPolicy]);
                }
                let of = here.filter(|record| record.owner == owner && !record.is_service);
                of.map(|record| self.seen(record)).collect()
            }
        };
        Ok(Answer::Tokens(seen))
    }

    fn count(&self, by: By, policy: &Policy) -> Outcome {
        let Answer::Tokens(seen) = self.list(by, Which::Own, policy)? else {
            unreachable!("a list")
        };
        let of = |state| seen.iter().filter(|seen| seen.state == state).count().try_into().unwrap();
        Ok(Answer::Counts([TokenState::Active, TokenState::Revoked, TokenState::Expired].map(of)))
    }

    // Changes.

    /// Returns the record, marked as changed.
    fn change(&mut self, label: Label) -> &mut Record {
        let record = self.records.get_mut(&label).unwrap();
        record.is_changed = true;
        record
    }

    fn is_name_taken(
        &self,
        owner: Person,
        is_service: bool,
        name: &str,
        but: Option<Label>,
    ) -> bool {
        self.records.values().any(|record| {
            Some(record.label) != but
                && (record.owner, record.is_service) == (owner, is_service)
                && record.holds_name()
                && record.name.eq_ignore_ascii_case(name)
        })
    }

    fn is_full(&self, owner: Person, policy: &Policy) -> bool {
        let living = self.records.values().filter(|record| {
            record.owner == owner && record.is_active(self.now) && record.succession.is_none()
        });
        policy.limit.is_some_and(|limit| living.count() >= limit)
    }

    /// Returns the faults if a token would be wider than the token through which it is made,
    /// restored or rotated.
    fn widens(
        via: &Record,
        owner: Person,
        scope: Option<Entries>,
        networks: Option<&str>,
        expires: Option<i64>,
    ) -> Vec<Fault> {
        let mut faults = Vec::new();
        if !is_within(scope, via.scope) || (owner != via.owner && scope.is_none()) {
            faults.push(Fault::Attenuation("scope"));
        }
        if !network_within(networks, via.networks) {
            faults.push(Fault::Attenuation("networks"));
        }
        if via.expires.is_some_and(|end| expires.is_none_or(|expires| expires > end)) {
            faults.push(Fault::Attenuation("expiry"));
        }
        faults
    }

    fn generate(&mut self, label: Label, by: By, new: &New, policy: &Policy) -> Outcome {
        let acting = self.acting(by, policy)?;
        let is_service = new.service.is_some();
        let owner = match (new.service, acting.person) {
            (None, None) => return Err(vec![Fault::NotForHost]),
            (None, Some(person)) => person,
            // The owner is named by its id.
            (Some(owner), _) => owner,
        };
        if acting.person.is_some() {
            let permission = if is_service { "service-tokens:manage" } else { "tokens:manage" };
            acting.lacks(permission).map_or(Ok(()), |fault| Err(vec![fault]))?;
        }
        let mut faults = Vec::new();
        if acting.person.is_some() && covers_scim(new.scope) {
            faults.extend(acting.lacks("tokens:scim"));
        }
        let elsewhere = acting.person.is_some_and(Person::is_elsewhere);
        let is_fit = owner.is_elsewhere() == elsewhere
            && owner.is_service() == is_service
            && self.people.get(&owner).is_some_and(|standing| standing.enabled);
        if !is_fit {
            faults.push(Fault::Invalid("owner"));
        }
        let creator_end = acting.through.and_then(|via| via.expires);
        let expires = self.expiry(new.lifetime, creator_end, policy);
        if let Some(via) = acting.through {
            faults.extend(Self::widens(
                via,
                owner,
                new.scope,
                new.networks,
                expires.unwrap_or(via.expires),
            ));
        }
        if expires.is_err() {
            faults.push(Fault::Invalid("lifetime"));
        }
        if self.is_name_taken(owner, is_service, new.name, None) {
            faults.push(Fault::NameTaken);
        }
        if self.is_full(owner, policy) {
            faults.push(Fault::TooMany);
        }
        let maker = acting.through.map(|via| via.label);
        let (Ok(expires), true) = (expires, faults.is_empty()) else { return Err(faults) };
        if let Some(maker) = maker {
            self.change(maker);
        }
        self.insert(
            Record {
                label,
                owner,
                is_service,
                name: new.name,
                description: None,
                scope: new.scope,
                networks: new.networks,
                lifetime: new.lifetime,
                created: self.now,
                expires,
                revoked: None,
                succession: None,
                idle_from: self.now,
                last_used: None,
                reuse_reported: None,
                version: 0,
                is_changed: true,
                is_neighbor: false,
            },
            Origin { maker, ..Origin::default() },
        );
        Ok(self.shown(label))
    }

    fn insert(&mut self, record: Record, origin: Origin) {
        if origin.maker.is_some_and(|maker| self.stolen.contains(&maker)) {
            self.stolen.insert(record.label);
        }
        self.origins.insert(record.label, origin);
        self.records.insert(record.label, record);
    }

    /// Returns the expiry of a new token.
    fn expiry(
        &self,
        asked: Asked,
        creator_end: Option<i64>,
        policy: &Policy,
    ) -> Result<Option<i64>, ()> {
        let longest = policy.longest_days.unwrap_or(i64::MAX);
        let end = match asked {
            Asked::Default => {
                let end = self.now + policy.default_days.min(longest) * DAY;
                return Ok(Some(creator_end.map_or(end, |creator| creator.min(end))));
            }
            Asked::Days(days) if days > longest => return Err(()),
            Asked::Days(days) => Some(self.now + days * DAY),
            Asked::Never if policy.never_allowed && policy.longest_days.is_none() => None,
            Asked::Never => return Err(()),
        };
        match creator_end {
            Some(creator) if end.is_none_or(|end| end > creator) => Err(()),
            _ => Ok(end),
        }
    }

    /// Returns the expiry of the successor if a token is rotated in a session.
    fn renewed(&self, asked: Asked, policy: &Policy) -> Option<i64> {
        let longest = policy.longest_days.unwrap_or(i64::MAX);
        let days = match asked {
            Asked::Default => policy.default_days.min(longest),
            Asked::Days(days) => days.min(longest),
            Asked::Never if policy.never_allowed && policy.longest_days.is_none() => return None,
            Asked::Never => policy.longest_days.unwrap_or(policy.default_days),
        };
        Some(self.now + days * DAY)
    }

    fn edit(
        &mut self,
        by: By,
        token: Label,
        edit: &Edit,
        bound: Option<u64>,
        policy: &Policy,
    ) -> Outcome {
        let changes_text = edit.name.is_some() || edit.description.is_some();
        if !changes_text && edit.active.is_none() {
            // An edit without changes may be refused as such before the permissions are checked.
            let mut faults = vec![Fault::Invalid("edit")];
            if let Err(more) = self.target(by, token, Deed::Change, policy) {
                faults.extend(more);
            }
            return Err(faults);
        }
        let mut deeds = Vec::new();
        if changes_text {
            deeds.push(Deed::Change);
        }
        match edit.active {
            Some(true) => deeds.push(Deed::Restore),
            Some(false) => deeds.push(Deed::Revoke),
            None => {}
        }
        let mut relations = Vec::new();
        let mut denied = Vec::new();
        for deed in deeds {
            match self.target(by, token, deed, policy) {
                Ok(relation) => relations.push(relation),
                Err(faults) => denied.extend(faults),
            }
        }
        if !denied.is_empty() {
            return Err(denied);
        }
        // The relation of the owner allows more than that of the token itself, so it decides if
        // both occur.
        let relation = relations.into_iter().find(|relation| *relation != Relation::Itself);
        let relation = relation.unwrap_or(Relation::Itself);
        let record = &self.records[&token];
        if bound.is_some_and(|bound| record.is_changed || record.version != bound) {
            return Err(vec![Fault::Outdated]);
        }
        let (owner, is_service) = (record.owner, record.is_service);
        let mut faults = Vec::new();
        let name = edit.name.filter(|name| *name != record.name);
        if let Some(name) = name
            && record.holds_name()
            && self.is_name_taken(owner, is_service, name, Some(token))
        {
            faults.push(Fault::NameTaken);
        }
        let mut after = self.clone();
        let reason = edit.reason.unwrap_or(relation.own_reason());
        let known = record.revoked.map(|revoked| revoked.reason);
        match edit.active {
            Some(false) if !relation.may_give(reason) && known != Some(reason) => {
                faults.push(Fault::ReasonNotAllowed);
            }
            // The token is shown as not active already, so the edit sends back what it got.
            Some(false) if edit.reason.is_none() && self.is_signed_out(record) => {}
            Some(false) => match record.state(self.now) {
                TokenState::Active => after.do_revoke(by, token, relation, reason, policy),
                _ if reason == Reason::Compromised => {
                    after.do_revoke(by, token, relation, reason, policy);
                }
                _ => {}
            },
            Some(true) if record.is_active(self.now) => {}
            Some(true) => match after.do_restore(by, token, relation, policy) {
                Ok(()) => {}
                Err(more) => faults.extend(more),
            },
            None => {}
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let record = after.records.get_mut(&token).unwrap();
        if let Some(name) = name {
            record.name = name;
            record.is_changed = true;
        }
        if let Some(description) = edit.description {
            let description = Some(description).filter(|description| !description.is_empty());
            if record.description != description {
                record.description = description;
                record.is_changed = true;
            }
        }
        *self = after;
        Ok(self.shown(token))
    }

    fn revoke(&mut self, by: By, token: Label, reason: Reason, policy: &Policy) -> Outcome {
        let relation = self.target(by, token, Deed::Revoke, policy)?;
        let record = &self.records[&token];
        let known = record.revoked.map(|revoked| revoked.reason);
        let mut faults = Vec::new();
        if !relation.may_give(reason) && known != Some(reason) {
            faults.push(Fault::ReasonNotAllowed);
        }
        if record.state(self.now) == TokenState::Expired && reason != Reason::Compromised {
            faults.push(Fault::Expired);
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        self.do_revoke(by, token, relation, reason, policy);
        Ok(self.shown(token))
    }

    /// Revokes a token for an allowed reason, and also its family if the reason is a compromise.
    fn do_revoke(
        &mut self,
        by: By,
        token: Label,
        relation: Relation,
        reason: Reason,
        policy: &Policy,
    ) {
        let authority = relation.authority();
        let Ok(acting) = self.acting(by, policy) else { unreachable!("it was looked up") };
        let (manages_services, oversees) = (
            acting.may("service-tokens:manage"),
            policy.revoke_only && acting.may("tokens:oversee"),
        );
        let actor = acting.person;
        if reason != Reason::Compromised {
            self.put_revoked(token, reason, authority);
            return;
        }
        let family = self.family(token);
        let root_owner = self.records[&token].owner;
        self.put_revoked(token, reason, authority);
        for member in family {
            let record = &self.records[&member];
            let has_authority = actor.is_none_or(|actor| {
                record.owner == actor || if record.is_service { manages_services } else { oversees }
            });
            if has_authority || record.owner == root_owner {
                self.put_revoked(member, Reason::Compromised, authority);
            } else if record.is_active(self.now) {
                self.put_revoked(member, Reason::Suspected, Authority::Admin);
            }
        }
        self.steal(token);
    }

    /// Records a revocation. An earlier one remains, but a compromise replaces its reason.
    fn put_revoked(&mut self, token: Label, reason: Reason, authority: Authority) {
        let now = self.now;
        let record = &self.records[&token];
        match record.revoked {
            Some(revoked) if reason == Reason::Compromised => {
                if revoked.reason != Reason::Compromised {
                    self.change(token).revoked = Some(Revoked { reason, ..revoked });
                }
            }
            Some(_) => {}
            None => self.change(token).revoked = Some(Revoked { at: now, reason, authority }),
        }
    }

    /// Returns the existing tokens that were made or last restored through `root`, or through its
    /// family, whether or not the tokens between still exist.
    fn family(&self, root: Label) -> Vec<Label> {
        let mut found = BTreeSet::from([root]);
        loop {
            let before = found.len();
            for (label, origin) in &self.origins {
                let parents = [origin.maker, origin.restorer];
                if parents.into_iter().flatten().any(|parent| found.contains(&parent)) {
                    found.insert(*label);
                }
            }
            if found.len() == before {
                break;
            }
        }
        found.remove(&root);
        found.into_iter().filter(|label| self.records.contains_key(label)).collect()
    }

    /// Marks `root` and all tokens made through it, directly or not: none of them may ever work
    /// again.
    fn steal(&mut self, root: Label) {
        let mut found = BTreeSet::from([root]);
        loop {
            let before = found.len();
            for (label, origin) in &self.origins {
                if origin.maker.is_some_and(|maker| found.contains(&maker)) {
                    found.insert(*label);
                }
            }
            if found.len() == before {
                break;
            }
        }
        self.stolen.extend(found);
    }

    fn restore(&mut self, by: By, token: Label, policy: &Policy) -> Outcome {
        let relation = self.target(by, token, Deed::Restore, policy)?;
        if self.records[&token].is_active(self.now) {
            return Err(vec![Fault::NotRevoked]);
        }
        self.do_restore(by, token, relation, policy)?;
        Ok(self.shown(token))
    }

    fn do_restore(
        &mut self,
        by: By,
        token: Label,
        relation: Relation,
        policy: &Policy,
    ) -> Result<(), Vec<Fault>> {
        let acting = self.acting(by, policy)?;
        let record = &self.records[&token];
        let mut faults = Vec::new();
        let Some(revoked) =
            record.revoked.filter(|_| record.state(self.now) != TokenState::Expired)
        else {
            return Err(vec![Fault::Expired]);
        };
        match revoked.reason {
            Reason::Compromised | Reason::Reuse | Reason::Rotated => faults.push(Fault::Final),
            Reason::Idle => {}
            _ if relation.authority() < revoked.authority => faults.push(Fault::Authority),
            _ => {}
        }
        if record.succession.is_some() {
            faults.push(Fault::HasSuccessor);
        }
        if acting.person.is_some() && covers_scim(record.scope) {
            faults.extend(acting.lacks("tokens:scim"));
        }
        if let Some(via) = acting.through {
            faults.extend(Self::widens(
                via,
                record.owner,
                record.scope,
                record.networks,
                record.expires,
            ));
        }
        if self.is_full(record.owner, policy) {
            faults.push(Fault::TooMany);
        }
        let via = acting.through.map(|via| via.label);
        if !faults.is_empty() {
            return Err(faults);
        }
        if let Some(via) = via {
            self.change(via);
        }
        let now = self.now;
        let record = self.change(token);
        record.revoked = None;
        record.idle_from = now;
        self.origins.get_mut(&token).unwrap().restorer = via;
        Ok(())
    }

    fn rotate(
        &mut self,
        label: Label,
        by: By,
        token: Label,
        overlap: i64,
        policy: &Policy,
    ) -> Outcome {
        let relation = self.target(by, token, Deed::Rotate, policy)?;
        let acting = self.acting(by, policy)?;
        let record = self.records[&token].clone();
        let mut faults = Vec::new();
        if overlap > policy.longest_overlap {
            faults.push(Fault::Invalid("overlap"));
        }
        match record.state(self.now) {
            TokenState::Active => {}
            TokenState::Revoked => faults.push(Fault::IsRevoked),
            _ => faults.push(Fault::Expired),
        }
        if record.succession.is_some() {
            faults.push(Fault::HasSuccessor);
        }
        if !self.people.get(&record.owner).is_some_and(|standing| standing.enabled) {
            faults.push(Fault::Invalid("owner"));
        }
        if relation != Relation::Itself && covers_scim(record.scope) {
            faults.extend(acting.lacks("tokens:scim"));
        }
        let expires = match acting.through {
            None => self.renewed(record.lifetime, policy),
            Some(_) => {
                record.expires.or_else(|| policy.longest_days.map(|days| self.now + days * DAY))
            }
        };
        let via = acting.through.map(|via| via.label);
        if let Some(via) = acting.through.filter(|via| via.label != token) {
            faults.extend(Self::widens(via, record.owner, record.scope, record.networks, expires));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        if let Some(via) = via {
            self.change(via);
        }
        let now = self.now;
        let old = self.change(token);
        let until = old.expires.map_or(now + overlap, |end| end.min(now + overlap));
        old.succession = Some(Succession { successor: label, at: now, until });
        if overlap == 0 {
            let authority = relation.authority();
            old.revoked = Some(Revoked { at: now, reason: Reason::Rotated, authority });
        } else {
            old.expires = Some(until);
        }
        let successor = Record {
            label,
            created: now,
            expires,
            revoked: None,
            succession: None,
            idle_from: now,
            last_used: None,
            reuse_reported: None,
            version: 0,
            is_changed: true,
            is_neighbor: false,
            ..record
        };
        self.insert(successor, Origin { maker: via, restorer: None, predecessor: Some(token) });
        Ok(self.shown(label))
    }

    fn delete(&mut self, by: By, token: Label, policy: &Policy) -> Outcome {
        self.target(by, token, Deed::Delete, policy)?;
        let record = &self.records[&token];
        let mut faults = Vec::new();
        if record.is_active(self.now) {
            faults.push(Fault::StillActive);
        }
        if matches!(by, By::Token(_)) {
            let has_family = record.succession.is_some()
                || self.predecessor(token).is_some()
                || self.records.keys().any(|other| self.ancestors(*other).contains(&token));
            if has_family {
                faults.push(Fault::Attenuation("family"));
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        self.remove(token);
        Ok(Answer::Done)
    }

    /// Returns the nearest existing tokens whose compromise reaches this token.
    fn parents(&self, label: Label) -> BTreeSet<Label> {
        self.nearest(label, |origin| vec![origin.maker, origin.restorer])
    }

    /// Returns the nearest existing tokens whose reuse reaches this token.
    fn ancestors(&self, label: Label) -> BTreeSet<Label> {
        self.nearest(label, |origin| vec![origin.maker, origin.restorer, origin.predecessor])
    }

    /// Returns the ancestors that are separated from this token by a removed one.
    fn handed_on(&self, label: Label) -> BTreeSet<Label> {
        let origin = self.origins[&label];
        let above = [origin.maker, origin.restorer, origin.predecessor].into_iter().flatten();
        let gone = above.filter(|above| !self.records.contains_key(above));
        gone.flat_map(|gone| self.ancestors(gone)).collect()
    }

    fn nearest(&self, label: Label, up: impl Fn(Origin) -> Vec<Option<Label>>) -> BTreeSet<Label> {
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut open = vec![label];
        while let Some(next) = open.pop() {
            for parent in up(self.origins[&next]).into_iter().flatten() {
                if self.records.contains_key(&parent) {
                    found.insert(parent);
                } else if seen.insert(parent) {
                    open.push(parent);
                }
            }
        }
        found
    }

    /// Returns whether an existing token was made or last restored through this one, directly or
    /// through removed ones.
    pub(crate) fn has_children(&self, token: Label) -> bool {
        self.records.keys().any(|label| *label != token && self.parents(*label).contains(&token))
    }

    /// Removes a record. This may change its neighbors in its family and its line of rotations.
    fn remove(&mut self, token: Label) {
        let below: Vec<Label> = self
            .records
            .keys()
            .copied()
            .filter(|label| *label != token && self.ancestors(*label).contains(&token))
            .collect();
        let line = self.line(token);
        self.records.remove(&token);
        self.gone.insert(token);
        self.noted.retain(|(_, label), _| *label != token);
        self.is_vague |= self.records.keys().any(|label| {
            let mut handed_on = self.handed_on(*label);
            let maker = self.origins[label].maker;
            handed_on
                .retain(|other| maker != Some(*other) && self.predecessor(*label) != Some(*other));
            self.parents(*label).len() > 2 || handed_on.len() > 1
        });
        for label in below.into_iter().chain(line) {
            if let Some(record) = self.records.get_mut(&label) {
                record.is_neighbor = true;
            }
        }
    }

    /// Returns the nearest existing token that this one replaced, directly or through removed ones.
    fn predecessor(&self, token: Label) -> Option<Label> {
        let mut next = self.origins[&token].predecessor;
        while let Some(label) = next {
            if self.records.contains_key(&label) {
                break;
            }
            next = self.origins[&label].predecessor;
        }
        next
    }

    /// Returns all predecessors and successors of a token.
    fn line(&self, token: Label) -> BTreeSet<Label> {
        let mut found = BTreeSet::from([token]);
        loop {
            let before = found.len();
            for (label, origin) in &self.origins {
                let Some(predecessor) = origin.predecessor else { continue };
                if found.contains(label) {
                    found.insert(predecessor);
                } else if found.contains(&predecessor) {
                    found.insert(*label);
                }
            }
            if found.len() == before {
                return found;
            }
        }
    }

    // Verification.

    fn verify(
        &mut self,
        service: usize,
        token: Label,
        address: Option<&'static str>,
        policy: &Policy,
    ) -> Outcome {
        let rejected = |reason| Err(vec![Fault::Rejected(reason)]);
        let Some(record) = self.records.get(&token) else { return rejected("unknown") };
        if let Some(reason) = self.rejects(record) {
            if matches!(reason, "revoked" | "expired") {
                self.reuse(service, token, policy);
            }
            return rejected(reason);
        }
        if !address_within(address, record.networks) {
            return rejected("address_not_allowed");
        }
        Ok(self.let_in(service, token))
    }

    fn let_in(&mut self, service: usize, token: Label) -> Answer {
        self.proven.insert(token);
        let noted = self.noted.entry((service, token)).or_insert(self.now);
        *noted = self.now.max(*noted);
        let record = &self.records[&token];
        let standing = &self.people[&record.owner];
        let allowed = ASKED.into_iter().filter(|permission| {
            holds(standing, permission)
                && record
                    .scope
                    .is_none_or(|scope| scope.iter().any(|grant| covers(grant, permission)))
        });
        Answer::Verified(self.seen(record), allowed.collect())
    }

    /// Verifies again. The address is that of the earlier verification, which was allowed.
    fn recheck(&mut self, service: usize, token: Label) -> Outcome {
        let Some(record) = self.records.get(&token) else {
            return Err(vec![Fault::Rejected("unknown")]);
        };
        match self.rejects(record) {
            Some(reason) => Err(vec![Fault::Rejected(reason)]),
            None => Ok(self.let_in(service, token)),
        }
    }

    /// Handles the right secret of a token that was rejected.
    fn reuse(&mut self, service: usize, token: Label, policy: &Policy) {
        let now = self.now;
        let record = &self.records[&token];
        let Some(succession) = record.succession.filter(|succession| now >= succession.until)
        else {
            return;
        };
        if policy.signal == Signal::Off {
            return;
        }
        if record.reuse_reported.is_none_or(|at| at > now + HOUR || now - at >= HOUR) {
            self.change(token).reuse_reported = Some(now);
        }
        let told = self.records[&token].reuse_reported.unwrap_or(now);
        if self
            .left_alone
            .get(&(service, token))
            .is_some_and(|until| now < *until && *until - now <= HOUR)
        {
            return;
        }
        self.left_alone.insert((service, token), (told + HOUR).min(now + 60 * SECOND));
        if policy.signal == Signal::RevokeFamily && now - succession.at <= policy.window_days * DAY
        {
            for label in self.descendants(token) {
                if self.records[&label].is_active(now) {
                    self.put_revoked(label, Reason::Reuse, Authority::System);
                }
            }
        }
    }

    /// Returns the existing tokens that descend from this one by being made, restored or rotated,
    /// whether or not the tokens between still exist.
    fn descendants(&self, token: Label) -> BTreeSet<Label> {
        let mut found = BTreeSet::from([token]);
        loop {
            let before = found.len();
            for (label, origin) in &self.origins {
                let above = [origin.maker, origin.restorer, origin.predecessor];
                if above.into_iter().flatten().any(|above| found.contains(&above)) {
                    found.insert(*label);
                }
            }
            if found.len() == before {
                break;
            }
        }
        found.remove(&token);
        found.retain(|label| self.records.contains_key(label));
        found
    }

    // The host.

    fn offboard(&mut self, person: Person) -> Answer {
        let now = self.now;
        let living: Vec<Label> = self
            .records
            .values()
            .filter(|r| r.owner == person && r.is_active(now))
            .map(|r| r.label)
            .collect();
        for label in &living {
            self.put_revoked(*label, Reason::Offboarding, Authority::System);
        }
        Answer::Number(living.len().try_into().unwrap())
    }

    fn erase(&mut self, person: Person) -> Answer {
        let all: Vec<Label> =
            self.records.values().filter(|r| r.owner == person).map(|r| r.label).collect();
        for label in &all {
            self.remove(*label);
        }
        Answer::Number(all.len().try_into().unwrap())
    }

    fn sweep(&mut self, service: usize, policy: &Policy) -> Answer {
        let Some(days) = policy.idle_days else { return Answer::Number(0) };
        let before = self.now - days * DAY - policy.granularity - FLUSH_INTERVAL;
        let idle: Vec<Label> = self
            .records
            .values()
            .filter(|record| record.is_active(self.now))
            .filter(|record| {
                let noted = self.noted.get(&(service, record.label)).copied().unwrap_or(i64::MIN);
                record.last_activity().max(noted) < before
            })
            .map(|record| record.label)
            .collect();
        for label in &idle {
            self.put_revoked(*label, Reason::Idle, Authority::System);
        }
        Answer::Number(idle.len().try_into().unwrap())
    }

    fn prune(&mut self, older_than: i64) -> Answer {
        let before = self.now - older_than;
        let ended = |record: &&Record| record.ended().is_some_and(|ended| ended <= before);
        let ended: Vec<Label> =
            self.records.values().filter(ended).map(|record| record.label).collect();
        for label in &ended {
            self.remove(*label);
        }
        Answer::Number(ended.len().try_into().unwrap())
    }

    fn directory(&mut self, person: Person, change: Change) -> Answer {
        let now = self.now;
        if matches!(change, Change::Remove) {
            self.people.remove(&person);
            return Answer::Done;
        }
        let standing = self.people.entry(person).or_insert_with(|| person.standing());
        match change {
            Change::Enable(enabled) => standing.enabled = enabled,
            Change::Role(role) => standing.role = role,
            Change::Grants(grants) => standing.grants = grants,
            Change::SignOut(is_set) => standing.valid_after = is_set.then_some(now),
            Change::Remove => {}
        }
        Answer::Done
    }
}
