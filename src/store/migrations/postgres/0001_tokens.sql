-- Tokens and their audit events.
--
-- `patkit_` stands for the prefix that the host chose. Instants are microseconds since
-- 1970-01-01T00:00:00Z, which every engine stores exactly; to_timestamp(created_at / 1e6) shows
-- one. Ids are the 16 bytes of a UUIDv7, so they sort by creation time.

CREATE TABLE patkit_tokens (
    -- The public id.
    id                bytea NOT NULL PRIMARY KEY CHECK (octet_length(id) = 16),
    -- The tenant; empty if the host has no tenants.
    realm             text NOT NULL,
    -- The owner that the token acts as: the host's id, and the kind of the owner when the token was
    -- generated.
    owner             text NOT NULL,
    owner_kind        text NOT NULL,
    -- personal (of a human) or service (of a service user).
    kind              text NOT NULL,
    -- The name, as it is shown.
    name              text NOT NULL,
    -- The key by which names are unique: SHA-256 of the name's NFKC case folding, computed by the
    -- crate when it writes the name. NULL once the token has a successor, which takes over the key.
    -- Briefly the id, while a batch exchanges names.
    name_key          bytea CHECK (octet_length(name_key) IN (16, 32)),
    -- The purpose of the token; NULL if it has no description.
    description       text,
    created_at        bigint NOT NULL,
    -- The actor that generated it: system, owner, token (an owner through a token) or erased.
    created_by        text NOT NULL CHECK (created_by IN ('system', 'owner', 'token', 'erased', 'unproven')),
    created_by_owner  text,
    created_by_token  bytea CHECK (octet_length(created_by_token) = 16),
    -- The instant from which on the token is expired; NULL if it never expires.
    expires_at        bigint,
    -- The revocation: instant, reason, actor and authority (owner, admin or system). All are NULL
    -- if the token is not revoked.
    revoked_at        bigint,
    revoked_reason    text,
    revoked_by        text CHECK (revoked_by IN ('system', 'owner', 'token', 'erased', 'unproven')),
    revoked_by_owner  text,
    revoked_by_token  bytea CHECK (octet_length(revoked_by_token) = 16),
    revoked_authority text CHECK (revoked_authority IN ('owner', 'admin', 'system')),
    -- The rotation: the successor, the instant, and the end of the overlap in which both tokens
    -- work. All are NULL if the token was not rotated.
    successor         bytea CHECK (octet_length(successor) = 16),
    succeeded_at      bigint,
    succeeded_until   bigint,
    -- The token that it replaced by rotation.
    predecessor       bytea CHECK (octet_length(predecessor) = 16),
    -- The token through which it was last restored, whose family it joined.
    restored_by_token bytea CHECK (octet_length(restored_by_token) = 16),
    -- A token that it descends from through removed tokens, and whose reuse revokes it too.
    ancestor          bytea CHECK (octet_length(ancestor) = 16),
    -- The requested lifetime: default, never, a number of days, or a number of seconds and an s.
    lifetime          text NOT NULL,
    -- inherit: all permissions of the owner. only: the permissions in scope_grants, separated by
    -- spaces; empty allows nothing.
    scope             text NOT NULL CHECK (scope IN ('inherit', 'only')),
    scope_grants      text,
    -- The networks that may use it, in CIDR notation, separated by spaces; NULL allows all.
    networks          text,
    -- The keyed digest of the secret and the number of the key, or a digest in the scheme of
    -- another system.
    digest_key        bigint CHECK (digest_key BETWEEN 0 AND 65535),
    digest            bytea CHECK (octet_length(digest) = 32),
    foreign_scheme    text,
    foreign_digest    bytea,
    -- The instant of its generation or last restoration, from which on an unused token counts as
    -- idle.
    idle_from         bigint NOT NULL,
    -- The last use, which is written in batches and does not increase the version.
    last_used_at      bigint,
    last_used_address text,
    -- The instant of the last report of its use after rotation.
    reuse_reported_at bigint,
    -- The smallest threshold, in days before the expiry, for which a notice was claimed.
    notified_days     bigint CHECK (notified_days BETWEEN 0 AND 65535),
    -- The MAC of a sealing store and the number of its key.
    seal_key          bigint CHECK (seal_key BETWEEN 0 AND 65535),
    seal              bytea CHECK (octet_length(seal) = 32),
    -- Counts changes, from 1. Each change is a compare-and-set on it.
    version           bigint NOT NULL CHECK (version >= 1),
    -- The instant of expiry or revocation, whichever is earlier. Pruning uses it.
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

-- A name is unique among the tokens of an owner and kind that have no successor, because nulls are
-- distinct.
CREATE UNIQUE INDEX patkit_tokens_name ON patkit_tokens (realm, owner, kind, name_key);
-- An owner's tokens, newest first.
CREATE INDEX patkit_tokens_owner ON patkit_tokens (realm, owner, id);
-- The tokens of one kind in a realm, newest first.
CREATE INDEX patkit_tokens_kind ON patkit_tokens (realm, kind, id);
-- The tokens that a token generated.
CREATE INDEX patkit_tokens_creator ON patkit_tokens (created_by_token, id) WHERE created_by_token IS NOT NULL;
-- The tokens that were restored through a token.
CREATE INDEX patkit_tokens_restorer ON patkit_tokens (restored_by_token, id) WHERE restored_by_token IS NOT NULL;
-- The tokens that descend from a token through removed ones.
CREATE INDEX patkit_tokens_ancestor ON patkit_tokens (ancestor, id) WHERE ancestor IS NOT NULL;
-- Ended tokens in the order of their pruning, which is the order of their ends.
CREATE INDEX patkit_tokens_ended ON patkit_tokens (ended_at, id) WHERE ended_at IS NOT NULL;
-- The tokens under a key, newest first, to find the remaining tokens of a key to be retired.
CREATE INDEX patkit_tokens_key ON patkit_tokens (digest_key, id) WHERE digest_key IS NOT NULL;

-- One value per key of the keyring, which reveals a different key under the same number. The first
-- value is kept.
CREATE TABLE patkit_key_checks (
    key_id      bigint NOT NULL PRIMARY KEY CHECK (key_id BETWEEN 0 AND 65535),
    -- An HMAC that reveals nothing about the key.
    check_value bytea NOT NULL CHECK (octet_length(check_value) = 16)
);

CREATE TABLE patkit_events (
    -- A UUIDv7, generated by the service that recorded the event.
    id                bytea NOT NULL PRIMARY KEY CHECK (octet_length(id) = 16),
    -- Counts the events in the order of their writes, which may differ from the order of their
    -- commits.
    seq               bigint GENERATED ALWAYS AS IDENTITY,
    -- The transaction that wrote the event. An export follows this order and reads only events
    -- written before the oldest open transaction. After a restore into another server, run
    -- UPDATE patkit_events SET xact = 0 and start exports again.
    xact              bigint NOT NULL DEFAULT txid_current(),
    at                bigint NOT NULL,
    realm             text NOT NULL,
    -- generated, revoked, restored and others.
    action            text NOT NULL,
    -- The actor: system, owner, token, erased, or unproven (somebody with a wrong secret).
    actor             text NOT NULL CHECK (actor IN ('system', 'owner', 'token', 'erased', 'unproven')),
    actor_owner       text,
    actor_token       bytea CHECK (octet_length(actor_token) = 16),
    -- The affected token and its owner; the owner is NULL after its erasure.
    token             bytea NOT NULL CHECK (octet_length(token) = 16),
    owner             text,
    reason            text,
    address           text
);

-- The events of a realm, of a token and of an owner, by time. Erasing an owner uses the last one
-- too.
CREATE INDEX patkit_events_realm ON patkit_events (realm, at, id);
CREATE INDEX patkit_events_token ON patkit_events (token, at, id);
CREATE INDEX patkit_events_owner ON patkit_events (realm, owner, at, id) WHERE owner IS NOT NULL;
-- Erases an owner from events about tokens of other owners.
CREATE INDEX patkit_events_actor ON patkit_events (realm, actor_owner) WHERE actor_owner IS NOT NULL;
-- Purges the oldest events.
CREATE INDEX patkit_events_at ON patkit_events (at, id);
-- Finds new events to notify of and to export.
CREATE UNIQUE INDEX patkit_events_seq ON patkit_events (seq);
CREATE INDEX patkit_events_xact ON patkit_events (xact, seq);

-- The version of the tables, and the earliest program version that is compatible with them.
CREATE TABLE IF NOT EXISTS patkit_migrations (
    version        bigint NOT NULL PRIMARY KEY,
    min_compatible bigint NOT NULL,
    name           text NOT NULL,
    applied_at     bigint NOT NULL
);
INSERT INTO patkit_migrations (version, min_compatible, name, applied_at)
    VALUES (1, 1, 'tokens', (EXTRACT(epoch FROM now()) * 1000000)::bigint);
