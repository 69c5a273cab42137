-- Tokens and their audit events.
--
-- Names: `patkit_` stands for the prefix that the host chose. Instants are microseconds since 1970-01-01T00:00:00Z, exact in
-- every engine; to_timestamp(created_at / 1e6) shows one. Ids are the 16 bytes of a UUIDv7, so they sort by the time of their making.

CREATE TABLE patkit_tokens (
    -- The public id.
    id                bytea NOT NULL PRIMARY KEY CHECK (octet_length(id) = 16),
    -- The tenant; empty in a host without tenants.
    realm             text NOT NULL,
    -- Who the token acts as: the host's own id of that owner, and what the owner was when the token was made.
    owner             text NOT NULL,
    owner_kind        text NOT NULL,
    -- personal (of a human) or service (of a service user).
    kind              text NOT NULL,
    -- What its owner calls it, as it is shown.
    name              text NOT NULL,
    -- What names are unique by: SHA-256 of the NFKC case folding, which the crate computes when it writes a name. None once the token has
    -- a successor, which then has the key. The id stands in its place for a moment while a batch hands names around.
    name_key          bytea CHECK (octet_length(name_key) IN (16, 32)),
    -- What it is for; none where it has no description.
    description       text,
    created_at        bigint NOT NULL,
    -- Who made it: system, owner, token (an owner through a token) or erased.
    created_by        text NOT NULL CHECK (created_by IN ('system', 'owner', 'token', 'erased', 'unproven')),
    created_by_owner  text,
    created_by_token  bytea CHECK (octet_length(created_by_token) = 16),
    -- From this instant on it is expired; never where there is none.
    expires_at        bigint,
    -- That it was revoked: when, why, by whom and with what authority (owner, admin or system). All of it or none.
    revoked_at        bigint,
    revoked_reason    text,
    revoked_by        text CHECK (revoked_by IN ('system', 'owner', 'token', 'erased', 'unproven')),
    revoked_by_owner  text,
    revoked_by_token  bytea CHECK (octet_length(revoked_by_token) = 16),
    revoked_authority text CHECK (revoked_authority IN ('owner', 'admin', 'system')),
    -- That it was rotated: its successor, when, and until when it was let work beside it. All of it or none.
    successor         bytea CHECK (octet_length(successor) = 16),
    succeeded_at      bigint,
    succeeded_until   bigint,
    -- The token whose place it took by rotation.
    predecessor       bytea CHECK (octet_length(predecessor) = 16),
    -- The token through which it was last restored; it is of that token's family as well.
    restored_by_token bytea CHECK (octet_length(restored_by_token) = 16),
    -- A token that it descends from through removed tokens: a reuse of that token reaches it.
    ancestor          bytea CHECK (octet_length(ancestor) = 16),
    -- The lifetime that was asked for: default, never, a number of days, or of seconds with an s behind it.
    lifetime          text NOT NULL,
    -- inherit: all that its owner may do. only: what scope_grants lists, separated by spaces; empty allows nothing.
    scope             text NOT NULL CHECK (scope IN ('inherit', 'only')),
    scope_grants      text,
    -- The networks that it may be used from, in CIDR notation, separated by spaces; anywhere where there is none.
    networks          text,
    -- The keyed digest of its secret and the number of the key, or a digest of another system's scheme.
    digest_key        bigint CHECK (digest_key BETWEEN 0 AND 65535),
    digest            bytea CHECK (octet_length(digest) = 32),
    foreign_scheme    text,
    foreign_digest    bytea,
    -- From when on it counts as idle while it is not used: when it was made or last restored.
    idle_from         bigint NOT NULL,
    -- Its last use, which is written in batches; it moves no version.
    last_used_at      bigint,
    last_used_address text,
    -- When its use after rotation was last reported.
    reuse_reported_at bigint,
    -- The smallest threshold, in days before its expiry, that a notice was claimed for.
    notified_days     bigint CHECK (notified_days BETWEEN 0 AND 65535),
    -- The MAC of a sealing store and the number of its key.
    seal_key          bigint CHECK (seal_key BETWEEN 0 AND 65535),
    seal              bytea CHECK (octet_length(seal) = 32),
    -- Counts its changes, from 1; each change is a compare-and-set on it.
    version           bigint NOT NULL CHECK (version >= 1),
    -- When it expired or was revoked, whichever comes first: what pruning goes by.
    ended_at          bigint GENERATED ALWAYS AS (CASE WHEN revoked_at < expires_at THEN revoked_at
                          ELSE COALESCE(expires_at, revoked_at) END) STORED,

    CONSTRAINT patkit_owner_kind CHECK ((kind = 'personal' AND owner_kind = 'human')
        OR (kind = 'service' AND owner_kind = 'service')),
    CONSTRAINT patkit_revocation CHECK ((revoked_at IS NULL) = (revoked_reason IS NULL)
        AND (revoked_at IS NULL) = (revoked_by IS NULL) AND (revoked_at IS NULL) = (revoked_authority IS NULL)),
    CONSTRAINT patkit_succession CHECK ((successor IS NULL) = (succeeded_at IS NULL)
        AND (successor IS NULL) = (succeeded_until IS NULL)),
    CONSTRAINT patkit_name_key CHECK ((name_key IS NULL) = (successor IS NOT NULL)),
    CONSTRAINT patkit_scope CHECK ((scope = 'inherit') = (scope_grants IS NULL)),
    CONSTRAINT patkit_digest CHECK ((digest IS NULL) = (digest_key IS NULL)
        AND (foreign_digest IS NULL) = (foreign_scheme IS NULL) AND (digest IS NULL) <> (foreign_digest IS NULL)),
    CONSTRAINT patkit_seal CHECK ((seal IS NULL) = (seal_key IS NULL)),
    CONSTRAINT patkit_last_use CHECK (last_used_address IS NULL OR last_used_at IS NOT NULL)
) WITH (fillfactor = 85);

-- A name is unique among the tokens of an owner and kind that have no successor: nulls are distinct.
CREATE UNIQUE INDEX patkit_tokens_name ON patkit_tokens (realm, owner, kind, name_key);
-- An owner's tokens, newest first.
CREATE INDEX patkit_tokens_owner ON patkit_tokens (realm, owner, id);
-- The tokens of one kind in a realm, newest first.
CREATE INDEX patkit_tokens_kind ON patkit_tokens (realm, kind, id);
-- The tokens that a token made.
CREATE INDEX patkit_tokens_creator ON patkit_tokens (created_by_token, id) WHERE created_by_token IS NOT NULL;
-- The tokens that were restored through a token.
CREATE INDEX patkit_tokens_restorer ON patkit_tokens (restored_by_token, id) WHERE restored_by_token IS NOT NULL;
-- The tokens that descend from a token through removed ones.
CREATE INDEX patkit_tokens_ancestor ON patkit_tokens (ancestor, id) WHERE ancestor IS NOT NULL;
-- Ended tokens, those that ended first in front: the order in which they are pruned.
CREATE INDEX patkit_tokens_ended ON patkit_tokens (ended_at, id) WHERE ended_at IS NOT NULL;
-- The tokens under a key, newest first: what is left of a key that is to go.
CREATE INDEX patkit_tokens_key ON patkit_tokens (digest_key, id) WHERE digest_key IS NOT NULL;

-- One value per key of the keyring, to notice another key under the same number. The first one stays.
CREATE TABLE patkit_key_checks (
    key_id      bigint NOT NULL PRIMARY KEY CHECK (key_id BETWEEN 0 AND 65535),
    -- An HMAC that reveals nothing about the key.
    check_value bytea NOT NULL CHECK (octet_length(check_value) = 16)
);

CREATE TABLE patkit_events (
    -- A UUIDv7 of the service that told of it.
    id                bytea NOT NULL PRIMARY KEY CHECK (octet_length(id) = 16),
    -- Counts the events as they are written, which is not the order of their commits.
    seq               bigint GENERATED ALWAYS AS IDENTITY,
    -- The transaction that wrote it. An export goes by it, and reads only what was written before the oldest open transaction.
    -- After a restore into another server: UPDATE patkit_events SET xact = 0, and begin exports again.
    xact              bigint NOT NULL DEFAULT txid_current(),
    at                bigint NOT NULL,
    realm             text NOT NULL,
    -- generated, revoked, restored and so on.
    action            text NOT NULL,
    -- Who did it: system, owner, token, erased, or unproven (somebody with a wrong secret).
    actor             text NOT NULL CHECK (actor IN ('system', 'owner', 'token', 'erased', 'unproven')),
    actor_owner       text,
    actor_token       bytea CHECK (octet_length(actor_token) = 16),
    -- The token that it was done to, and whose that is; no owner once that was erased.
    token             bytea NOT NULL CHECK (octet_length(token) = 16),
    owner             text,
    reason            text,
    address           text
);

-- The events of a realm, of a token and of an owner, by their time; an owner's are also found to erase it.
CREATE INDEX patkit_events_realm ON patkit_events (realm, at, id);
CREATE INDEX patkit_events_token ON patkit_events (token, at, id);
CREATE INDEX patkit_events_owner ON patkit_events (realm, owner, at, id) WHERE owner IS NOT NULL;
-- To erase what an owner did to tokens of others.
CREATE INDEX patkit_events_actor ON patkit_events (realm, actor_owner) WHERE actor_owner IS NOT NULL;
-- To purge the oldest ones.
CREATE INDEX patkit_events_at ON patkit_events (at, id);
-- To hear of new ones, and to export them.
CREATE UNIQUE INDEX patkit_events_seq ON patkit_events (seq);
CREATE INDEX patkit_events_xact ON patkit_events (xact, seq);

-- The version of the tables, and the earliest version of a program that goes with them.
CREATE TABLE IF NOT EXISTS patkit_migrations (
    version        bigint NOT NULL PRIMARY KEY,
    min_compatible bigint NOT NULL,
    name           text NOT NULL,
    applied_at     bigint NOT NULL
);
INSERT INTO patkit_migrations (version, min_compatible, name, applied_at)
    VALUES (1, 1, 'tokens', (EXTRACT(epoch FROM now()) * 1000000)::bigint);
