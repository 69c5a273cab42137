//! The steps of a history, and how they are drawn.

use super::random::Random;
use super::rules::{Model, POLICIES, Record};
use patkit::{Reason, TokenState};

/// Names a token by the number of the step that made it, which stays the same when other steps are
/// removed from a history.
pub(crate) type Label = u32;

pub(crate) const SECOND: i64 = 1_000_000;
pub(crate) const HOUR: i64 = 3_600 * SECOND;
pub(crate) const DAY: i64 = 24 * HOUR;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Person {
    /// A member.
    Ann,
    /// Another member.
    Ben,
    /// An admin.
    Ada,
    /// A service user.
    Bot,
    /// A service user that manages service tokens.
    Robot,
    /// An admin of another realm, with the id that `Ada` has in hers.
    Eve,
}

pub(crate) const PEOPLE: [Person; 6] =
    [Person::Ann, Person::Ben, Person::Ada, Person::Bot, Person::Robot, Person::Eve];

/// The actor of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    System,
    Session(Person),
    /// An actor verified through this token, whoever holds it now.
    Token(Label),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Default,
    Days(i64),
    Never,
}

/// A token to generate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct New {
    pub(crate) name: &'static str,
    pub(crate) scope: Option<&'static [&'static str]>,
    pub(crate) networks: Option<&'static str>,
    pub(crate) lifetime: Asked,
    pub(crate) service: Option<Person>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Edit {
    pub(crate) name: Option<&'static str>,
    /// An empty text removes the description.
    pub(crate) description: Option<&'static str>,
    pub(crate) active: Option<bool>,
    pub(crate) reason: Option<Reason>,
    pub(crate) versions: Versions,
}

/// The version that an edit is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Versions {
    Any,
    /// The version before the step.
    Current,
    /// The version before the current one.
    Outdated,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Which {
    Own,
    Service,
    Of(Person),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    Enable(bool),
    Role(Option<&'static str>),
    Grants(&'static [&'static str]),
    /// Rejects tokens made before now, or accepts them again.
    SignOut(bool),
    /// Removes the owner from the directory.
    Remove,
}

#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Generate {
        by: By,
        new: New,
    },
    List {
        by: By,
        which: Which,
        page: usize,
    },
    Count {
        by: By,
    },
    Get {
        by: By,
        token: Label,
    },
    Edit {
        by: By,
        token: Label,
        edit: Edit,
    },
    Revoke {
        by: By,
        token: Label,
        reason: Reason,
    },
    Restore {
        by: By,
        token: Label,
    },
    Rotate {
        by: By,
        token: Label,
        overlap: i64,
    },
    Delete {
        by: By,
        token: Label,
    },
    Verify {
        token: Label,
        address: Option<&'static str>,
    },
    Recheck {
        token: Label,
    },
    Offboard(Person),
    Erase(Person),
    Sweep,
    Prune {
        older_than: i64,
    },
    Flush,
    /// Moves the clock forward or back.
    Wait(i64),
    /// Moves the clock to this long after the expiry of a token, unless that is past.
    WaitForEnd(Label, i64),
    Directory(Person, Change),
    /// The second step happens just before the first commit of the first step.
    Race(Box<Step>, Box<Step>),
}

#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) label: Label,
    /// The index of the service that runs the step; all of them share one store.
    pub(crate) service: usize,
    pub(crate) operation: Operation,
}

/// Few names, so that they collide. Two of them are equal under the rule of unique names.
const NAMES: [&str; 5] = ["deploy", "DEPLOY", "backup", "nightly", "ci"];

const SCOPES: [&[&str]; 11] = [
    &["*"],
    &[],
    &["data:read"],
    &["data:*"],
    &["data:read", "tokens:manage"],
    &["tokens:*", "data:write"],
    &["data:*", "tokens:manage", "service-tokens:manage"],
    &["service-tokens:manage", "data:read"],
    &["scim:*"],
    &["data:read", "scim:users"],
    &["tokens:manage", "tokens:oversee", "service-tokens:manage", "data:*"],
];

const NETWORKS: [&str; 3] = ["10.0.0.0/8", "10.1.0.0/16", "192.168.0.0/16"];

const ADDRESSES: [Option<&str>; 5] =
    [None, Some("10.1.2.3"), Some("10.2.0.1"), Some("192.168.7.7"), Some("::ffff:10.1.9.9")];

/// The number of tokens from which on a history generates fewer new ones.
const CROWD: usize = 14;

/// Draws the steps of random histories.
pub(crate) struct Author<'a> {
    pub(crate) random: &'a mut Random,
    pub(crate) model: &'a Model,
}

impl Author<'_> {
    pub(crate) fn step(&mut self, label: Label) -> Step {
        if self.random.percent(6) {
            // The service without a limit of live tokens, because racing requests may exceed a
            // limit.
            let mut half = |label| Step { label, service: 0, operation: self.managing() };
            let (first, second) = (half(label), half(label + 1));
            return Step {
                label,
                service: 0,
                operation: Operation::Race(first.into(), second.into()),
            };
        }
        let service = self.random.weighted(&[50, 20, 15, 15]);
        // A token can act only after it was verified.
        let model = self.model;
        if self.random.percent(30)
            && let Some(token) = self.any(|record| {
                record.state(model.now) == TokenState::Active
                    && !model.proven.contains(&record.label)
            })
        {
            let address = self.random.pick(&[Some("10.1.2.3"), Some("192.168.7.7")]);
            return Step { label, service, operation: Operation::Verify { token, address } };
        }
        Step { label, service, operation: self.operation() }
    }

    fn operation(&mut self) -> Operation {
        match self.random.weighted(&[62, 16, 2, 2, 8, 5, 1, 1, 1, 2]) {
            0 => self.managing(),
            1 => Operation::Verify { token: self.token(), address: self.random.pick(&ADDRESSES) },
            2 => Operation::Recheck { token: self.token() },
            3 => Operation::Flush,
            4 => self.wait(),
            5 => self.directory(),
            6 => Operation::Sweep,
            7 => Operation::Prune {
                older_than: self.random.pick(&[0, SECOND, HOUR, 5 * DAY, 30 * DAY]),
            },
            8 if self.random.percent(40) => Operation::Erase(self.random.pick(&PEOPLE)),
            8 => Operation::Offboard(self.random.pick(&PEOPLE)),
            _ => {
                let which = match self.random.below(3) {
                    0 => Which::Own,
                    1 => Which::Service,
                    _ => Which::Of(self.random.pick(&PEOPLE)),
                };
                if self.random.percent(25) {
                    Operation::Count { by: self.by() }
                } else {
                    Operation::List {
                        by: self.by(),
                        which,
                        page: self.random.pick(&[1, 2, 3, 200]),
                    }
                }
            }
        }
    }

    fn managing(&mut self) -> Operation {
        if self.random.percent(55)
            && let Some(operation) = self.fitting()
        {
            return operation;
        }
        let make = if self.model.records.len() < CROWD { 30 } else { 4 };
        match self.random.weighted(&[make, 4, 12, 18, 12, 14, 8]) {
            0 => {
                let by = self.by();
                Operation::Generate { by, new: self.new_token(by) }
            }
            1 => {
                let (by, token) = self.pair();
                Operation::Get { by, token }
            }
            2 => {
                let (by, token) = self.pair();
                Operation::Edit { by, token, edit: self.edit() }
            }
            3 => {
                let (by, token) = self.pair();
                let reason = match self.random.weighted(&[40, 20, 35, 5]) {
                    0 => match by {
                        By::System => Reason::System,
                        By::Session(Person::Ada | Person::Robot) => Reason::Admin,
                        _ => Reason::Owner,
                    },
                    1 => Reason::Owner,
                    2 => Reason::Compromised,
                    _ => self.random.pick(&Reason::ALL),
                };
                Operation::Revoke { by, token, reason }
            }
            4 => {
                let (by, token) = self.pair();
                Operation::Restore { by, token }
            }
            5 => {
                let (by, token) = self.pair();
                let by = if self.random.percent(30) { By::Token(token) } else { by };
                let overlap =
                    self.random.pick(&[0, 0, SECOND, HOUR, 3 * DAY, 7 * DAY, 7 * DAY + SECOND]);
                Operation::Rotate { by, token, overlap }
            }
            _ => {
                let (by, token) = self.pair();
                Operation::Delete { by, token }
            }
        }
    }

    /// Draws a step that suits the state of its token, by an actor who may be allowed to do it.
    ///
    /// Returns `None` if there is no such token.
    fn fitting(&mut self) -> Option<Operation> {
        let model = self.model;
        let living = |record: &Record| record.state(model.now) == TokenState::Active;
        let is_heir = |record: &Record| record.succession.is_none();
        match self.random.weighted(&[26, 20, 18, 12, 12, 12]) {
            0 if model.records.len() < CROWD => {
                let via =
                    self.any(|record| living(record) && model.proven.contains(&record.label))?;
                let mut new = self.new_token(By::Token(via));
                let record = &model.records[&via];
                new.networks = record.networks;
                new.lifetime = if record.expires.is_some() { Asked::Default } else { new.lifetime };
                if self.random.percent(70) {
                    new.scope = record.scope;
                }
                Some(Operation::Generate { by: By::Token(via), new })
            }
            0 | 1 => {
                let token = self.any(|record| {
                    let is_final = record.revoked.is_none_or(|revoked| revoked.reason.is_final());
                    record.state(model.now) == TokenState::Revoked && !is_final && is_heir(record)
                })?;
                Some(Operation::Restore { by: self.authority_over(token), token })
            }
            2 => {
                let token = self.any(|record| living(record) && is_heir(record))?;
                let is_itself = model.proven.contains(&token) && self.random.percent(45);
                let by = if is_itself { By::Token(token) } else { self.authority_over(token) };
                Some(Operation::Rotate { by, token, overlap: self.random.pick(&[0, SECOND, HOUR]) })
            }
            3 => {
                let token = self.any(|record| !living(record))?;
                Some(Operation::Delete { by: self.authority_over(token), token })
            }
            4 => {
                let token = self.any(|record| model.has_children(record.label))?;
                Some(Operation::Revoke {
                    by: self.authority_over(token),
                    token,
                    reason: Reason::Compromised,
                })
            }
            _ => {
                let token = self.any(living)?;
                let by = self.authority_over(token);
                let reason = match by {
                    By::System => Reason::System,
                    By::Session(person) if person == model.records[&token].owner => Reason::Owner,
                    By::Session(_) => Reason::Admin,
                    By::Token(_) if model.records[&token].is_service => Reason::Admin,
                    By::Token(_) => Reason::Owner,
                };
                Some(Operation::Revoke { by, token, reason })
            }
        }
    }

    /// Draws a token for which `is_so` holds.
    fn any(&mut self, is_so: impl Fn(&Record) -> bool) -> Option<Label> {
        let labels: Vec<Label> = self
            .model
            .records
            .values()
            .filter(|record| is_so(record))
            .map(|record| record.label)
            .collect();
        (!labels.is_empty()).then(|| self.random.pick(&labels))
    }

    /// Draws an actor who may manage a token: its owner, an admin, the host, or one of them through
    /// a working token.
    fn authority_over(&mut self, token: Label) -> By {
        let model = self.model;
        let record = &model.records[&token];
        let manager = if record.is_service { Person::Ada } else { record.owner };
        if self.random.percent(45)
            && let Some(via) = self.any(|via| {
                via.owner == manager
                    && !via.is_service
                    && via.state(model.now) == TokenState::Active
                    && model.proven.contains(&via.label)
            })
        {
            return By::Token(via);
        }
        match self.random.weighted(&[75, 15, 10]) {
            0 => By::Session(manager),
            1 => By::Session(Person::Ada),
            _ => By::System,
        }
    }

    /// Draws an actor and a token that are mostly related.
    fn pair(&mut self) -> (By, Label) {
        let token = self.token();
        if self.random.percent(55)
            && let Some(record) = self.model.records.get(&token)
        {
            let by = match self.random.below(5) {
                0 | 1 if record.is_service => By::Session(Person::Ada),
                0 | 1 => By::Session(record.owner),
                2 => By::Token(token),
                3 => By::Token(self.token()),
                _ => By::System,
            };
            return (by, token);
        }
        (self.by(), token)
    }

    fn by(&mut self) -> By {
        match self.random.weighted(&[8, 52, 40]) {
            0 => By::System,
            1 => By::Session(self.random.pick(&[
                Person::Ann,
                Person::Ann,
                Person::Ben,
                Person::Ada,
                Person::Ada,
                Person::Ada,
                Person::Bot,
                Person::Robot,
                Person::Eve,
            ])),
            _ if self.random.percent(85) => {
                let proven: Vec<Label> = self.model.proven.iter().copied().collect();
                By::Token(if proven.is_empty() { u32::MAX } else { self.random.pick(&proven) })
            }
            _ => By::Token(self.token()),
        }
    }

    /// Draws a token: mostly an existing one, sometimes a removed one, rarely an unknown one.
    fn token(&mut self) -> Label {
        let there: Vec<Label> = self.model.records.keys().copied().collect();
        let gone: Vec<Label> = self.model.gone.iter().copied().collect();
        match self.random.weighted(&[90, 8, 2]) {
            0 if !there.is_empty() => self.random.pick(&there),
            1 if !gone.is_empty() => self.random.pick(&gone),
            _ => u32::MAX,
        }
    }

    fn new_token(&mut self, by: By) -> New {
        let service = match by {
            By::System => self.random.percent(90),
            By::Session(Person::Robot | Person::Bot) => self.random.percent(80),
            _ => self.random.percent(25),
        };
        New {
            name: self.random.pick(&NAMES),
            scope: (!self.random.percent(45)).then(|| self.random.pick(&SCOPES)),
            networks: self.random.percent(12).then(|| self.random.pick(&NETWORKS)),
            lifetime: match self.random.below(4) {
                0 => Asked::Default,
                1 => Asked::Never,
                _ => Asked::Days(self.random.pick(&[1, 2, 10, 30, 31, 120])),
            },
            service: service
                .then(|| self.random.pick(&[Person::Bot, Person::Bot, Person::Robot, Person::Ann])),
        }
    }

    fn edit(&mut self) -> Edit {
        let field = self.random.below(3);
        Edit {
            name: (field == 0 || self.random.percent(30)).then(|| self.random.pick(&NAMES)),
            description: (self.random.percent(15))
                .then(|| self.random.pick(&["", "what for", "another"])),
            active: (field == 1 || self.random.percent(15)).then(|| self.random.percent(50)),
            reason: self.random.percent(12).then(|| self.random.pick(&Reason::ALL)),
            versions: match self.random.below(6) {
                0 | 1 => Versions::Current,
                2 => Versions::Outdated,
                _ => Versions::Any,
            },
        }
    }

    fn wait(&mut self) -> Operation {
        match self.random.weighted(&[4, 4, 4, 4, 3, 2, 12]) {
            0 => Operation::Wait(1),
            1 => Operation::Wait(30 * SECOND),
            2 => Operation::Wait(HOUR),
            3 => Operation::Wait(DAY),
            4 => Operation::Wait(6 * DAY + 1),
            5 => Operation::Wait(-self.random.pick(&[1, SECOND, 10 * 60 * SECOND])),
            _ => {
                let ends: Vec<Label> = self
                    .model
                    .records
                    .values()
                    .filter(|record| record.expires.is_some_and(|end| end > self.model.now))
                    .map(|record| record.label)
                    .collect();
                if ends.is_empty() {
                    return Operation::Wait(HOUR);
                }
                Operation::WaitForEnd(self.random.pick(&ends), self.random.pick(&[-1, 0, 0, 1]))
            }
        }
    }

    fn directory(&mut self) -> Operation {
        let person = self.random.pick(&PEOPLE);
        let change = match self.random.weighted(&[5, 4, 3, 1, 1]) {
            0 => Change::Enable(self.random.percent(75)),
            1 => Change::Role(match self.random.below(5) {
                0 => None,
                1 => Some("manager"),
                2 | 3 => Some("admin"),
                _ => Some("member"),
            }),
            2 => Change::Grants(self.random.pick(&[
                &[][..],
                &["data:read"],
                &["service-tokens:manage", "data:read"],
                &["tokens:scim", "scim:*"],
                &["tokens:oversee"],
                &["*"],
            ])),
            3 => Change::SignOut(self.random.percent(50)),
            _ => Change::Remove,
        };
        Operation::Directory(person, change)
    }
}

/// The number of services.
pub(crate) const SERVICES: usize = POLICIES.len();
