//! Management of tokens: who may do what, and the effects of each operation, with one module for
//! each topic.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::items_after_statements,
    clippy::string_slice,
    clippy::type_complexity,
    clippy::arithmetic_side_effects,
    clippy::too_many_lines
)]

mod actors;
mod attenuation;
mod compromise;
mod edit;
mod events;
mod generate;
mod host;
mod idle;
mod list;
mod offboarding;
mod oversight;
mod prune;
mod rights;

use patkit::policy::{Oversight, TokenManagement};
use patkit::service::{TokenEdit, TokenPage};
use patkit::{Actor, IssuedToken, ManageError, NewToken, OwnerKind, Reason, TokenId, TokenPolicy};
use std::time::Duration;
use support::{World, beta, home, id, ready, session};

fn policy(management: TokenManagement, oversight: Oversight) -> TokenPolicy {
    TokenPolicy::builder().tokens_managing_tokens(management).oversight(oversight).build().unwrap()
}

/// How an actor acts.
#[derive(Debug, Clone, Copy)]
enum How {
    /// An owner of the default realm in a session.
    Session(&'static str),
    /// An owner of the other realm in a session.
    Beta(&'static str),
    /// The host itself, in the default realm or in the other one.
    System,
    BetaSystem,
    /// Through a token of this owner, which inherits or has this scope.
    Inherit(&'static str),
    Only(&'static str, &'static [&'static str]),
    /// Through an inheriting token of the other realm.
    BetaInherit(&'static str),
}

const OPERATIONS: [&str; 6] = ["get", "rename", "revoke", "restore", "rotate", "delete"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Own,
    Other,
    Service,
    Itself,
}

/// A world under a policy, with an actor and the tokens to act on.
struct Scene {
    world: World,
    actor: Actor,
    via: Option<IssuedToken>,
    own: Option<TokenId>,
    other: TokenId,
    service: TokenId,
}

impl Scene {
    fn new(how: How, management: TokenManagement, oversight: Oversight) -> Self {
        let world = World::with(policy(management, oversight));
        // An empty scope is within any other scope.
        let narrow = |name: &str| NewToken::named(name).scope([""; 0]);
        let other_owner = match how {
            How::Session("ann") | How::Inherit("ann") | How::Only("ann", _) => "bob",
            _ => "ann",
        };
        let other = world.issue(other_owner, narrow("other")).token.id();
        let service = world.issue("bot", narrow("service")).token.id();
        let (realm, owner) = match how {
            How::Session(owner) | How::Inherit(owner) | How::Only(owner, _) => {
                (home(), Some(owner))
            }
            How::Beta(owner) | How::BetaInherit(owner) => (beta(), Some(owner)),
            How::System | How::BetaSystem => (home(), None),
        };
        let via = match how {
            How::Inherit(owner) | How::BetaInherit(owner) => {
                Some(world.issue_in(&realm, owner, NewToken::named("via")))
            }
            How::Only(owner, scope) => Some(world.issue_in(
                &realm,
                owner,
                NewToken::named("via").scope(scope.iter().copied()),
            )),
            _ => None,
        };
        let human = |name: &str| {
            support::OWNERS.iter().any(|each| each.0 == name && each.1 == OwnerKind::Human)
        };
        let own = owner
            .filter(|owner| human(owner))
            .map(|owner| world.issue_in(&realm, owner, narrow("own")).token.id());
        let actor = match how {
            How::Session(owner) => session(owner),
            How::Beta(owner) => Actor::signed_in_to(beta(), id(owner)),
            How::System => Actor::system(),
            How::BetaSystem => Actor::system_in(beta()),
            How::Inherit(_) | How::Only(..) | How::BetaInherit(_) => {
                world.through(via.as_ref().unwrap())
            }
        };
        Self { world, actor, via, own, other, service }
    }

    fn target(&self, target: Target) -> TokenId {
        match target {
            Target::Own => self.own.unwrap(),
            Target::Other => self.other,
            Target::Service => self.service,
            Target::Itself => self.via.as_ref().unwrap().token.id(),
        }
    }

    fn operate(&self, operation: &str, id: TokenId) -> Result<(), ManageError> {
        let service = &self.world.service;
        match operation {
            "get" => ready(service.get(&self.actor, id)).map(drop),
            "rename" => ready(service.rename(&self.actor, id, "renamed")).map(drop),
            "revoke" => {
                ready(service.edit(&self.actor, id, TokenEdit::new().active(false))).map(drop)
            }
            "restore" => ready(service.restore(&self.actor, id)).map(drop),
            "rotate" => ready(service.rotate(&self.actor, id, Duration::ZERO)).map(drop),
            "delete" => ready(service.delete(&self.actor, id)),
            _ => panic!("no such operation"),
        }
    }
}

fn ids(page: &TokenPage) -> Vec<TokenId> {
    page.items.iter().map(patkit::TokenView::id).collect()
}

fn reason_of(world: &World, issued: &IssuedToken) -> Option<Reason> {
    world.facts(issued.token.id()).revocation.map(|revocation| revocation.reason)
}
