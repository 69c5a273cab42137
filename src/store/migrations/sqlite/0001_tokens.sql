-- Tokens and their audit events.
--
-- `patkit_` stands for the prefix that the host chose. Instants are microseconds since
-- 1970-01-01T00:00:00Z, which every engine stores exactly; datetime(created_at / 1000000,
-- 'unixepoch') shows one. Ids are the 16 bytes of a UUIDv7, so they sort by creation time.

CREATE TABLE patkit_tokens (
    -- The public id.
    id                BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    -- The tenant; empty if the host has no tenants.
    realm             TEXT NOT NULL,
    -- The owner that the token acts as: the host's id, and the kind of the owner when the token was
    -- generated.
    owner             TEXT NOT NULL,
    owner_kind        TEXT NOT NULL,
    -- personal (of a human) or service (of a service user).
    kind              TEXT NOT NULL,
    -- The name, as it is shown.
    name              TEXT NOT NULL,
    -- The key by which names are unique: SHA-256 of the name's NFKC case folding, computed by the
    -- crate when it writes the name. NULL once the token has a successor, which takes over the key.
    -- Briefly the id, while a batch exchanges names.
    name_key          BLOB CHECK (length(name_key) IN (16, 32)),
    -- The purpose of the token; NULL if it has no description.
    description       TEXT,
    created_at        INTEGER NOT NULL,
    -- The actor that generated it: system, owner, token (an owner through a token) or erased.
    created_by        TEXT NOT NULL CHECK (created_by IN ('system', 'owner', 'token', 'erased', 'unproven')),
    created_by_owner  TEXT,
    created_by_token  BLOB CHECK (length(created_by_token) = 16),
    -- The instant from which on the token is expired; NULL if it never expires.
    expires_at        INTEGER,
    -- The revocation: instant, reason, actor and authority (owner, admin or system). All are NULL
    -- if the token is not revoked.
    revoked_at        INTEGER,
    revoked_reason    TEXT,
    revoked_by        TEXT CHECK (revoked_by IN ('system', 'owner', 'token', 'erased', 'unproven')),
    revoked_by_owner  TEXT,
    revoked_by_token  BLOB CHECK (length(revoked_by_token) = 16),
    revoked_authority TEXT CHECK (revoked_authority IN ('owner', 'admin', 'system')),
    -- The rotation: the successor, the instant, and the end of the overlap in which both tokens
    -- work. All are NULL if the token was not rotated.
    successor         BLOB CHECK (length(successor) = 16),
    succeeded_at      INTEGER,
    succeeded_until   INTEGER,
    -- The token that it replaced by rotation.
    predecessor       BLOB CHECK (length(predecessor) = 16),
    -- The token through which it was last restored, whose family it joined.
    restored_by_token BLOB CHECK (length(restored_by_token) = 16),
    -- A token that it descends from through removed tokens, and whose reuse revokes it too.
    ancestor          BLOB CHECK (length(ancestor) = 16),
    -- The requested lifetime: default, never, a number of days, or a number of seconds and an s.
    lifetime          TEXT NOT NULL,
    -- inherit: all permissions of the owner. only: the permissions in scope_grants, separated by
    -- spaces; empty allows nothing.
    scope             TEXT NOT NULL CHECK (scope IN ('inherit', 'only')),
    scope_grants      TEXT,
    -- The networks that may use it, in CIDR notation, separated by spaces; NULL allows all.
    networks          TEXT,
    -- The keyed digest of the secret and the number of the key, or a digest in the scheme of
    -- another system.
    digest_key        INTEGER CHECK (digest_key BETWEEN 0 AND 65535),
    digest            BLOB CHECK (length(digest) = 32),
    foreign_scheme    TEXT,
    foreign_digest    BLOB,
    -- The instant of its generation or last restoration, from which on an unused token counts as
    -- idle.
    idle_from         INTEGER NOT NULL,
    -- The last use, which is written in batches and does not increase the version.
    last_used_at      INTEGER,
    last_used_address TEXT,
    -- The instant of the last report of its use after rotation.
    reuse_reported_at INTEGER,
    -- The smallest threshold, in days before the expiry, for which a notice was claimed.
    notified_days     INTEGER CHECK (notified_days BETWEEN 0 AND 65535),
    -- The MAC of a sealing store and the number of its key.
    seal_key          INTEGER CHECK (seal_key BETWEEN 0 AND 65535),
    seal              BLOB CHECK (length(seal) = 32),
    -- Counts changes, from 1. Each change is a compare-and-set on it.
    version           INTEGER NOT NULL CHECK (version >= 1),
    -- The instant of expiry or revocation, whichever is earlier. Pruning uses it.
    ended_at          INTEGER GENERATED ALWAYS AS (CASE WHEN revoked_at < expires_at THEN revoked_at
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
) STRICT, WITHOUT ROWID;

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
    key_id      INTEGER NOT NULL PRIMARY KEY CHECK (key_id BETWEEN 0 AND 65535),
    -- An HMAC that reveals nothing about the key.
    check_value BLOB NOT NULL CHECK (length(check_value) = 16)
) STRICT, WITHOUT ROWID;

CREATE TABLE patkit_events (
    -- Counts the events in the order of their commits, which an export follows.
    seq               INTEGER PRIMARY KEY AUTOINCREMENT,
    -- A UUIDv7, generated by the service that recorded the event.
    id                BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    at                INTEGER NOT NULL,
    realm             TEXT NOT NULL,
    -- generated, revoked, restored and others.
    action            TEXT NOT NULL,
    -- The actor: system, owner, token, erased, or unproven (somebody with a wrong secret).
    actor             TEXT NOT NULL CHECK (actor IN ('system', 'owner', 'token', 'erased', 'unproven')),
    actor_owner       TEXT,
    actor_token       BLOB CHECK (length(actor_token) = 16),
    -- The affected token and its owner; the owner is NULL after its erasure.
    token             BLOB NOT NULL CHECK (length(token) = 16),
    owner             TEXT,
    reason            TEXT,
    address           TEXT
) STRICT;

-- The events of a realm, of a token and of an owner, by time. Erasing an owner uses the last one
-- too.
CREATE INDEX patkit_events_realm ON patkit_events (realm, at, id);
CREATE INDEX patkit_events_token ON patkit_events (token, at, id);
CREATE INDEX patkit_events_owner ON patkit_events (realm, owner, at, id) WHERE owner IS NOT NULL;
-- Erases an owner from events about tokens of other owners.
CREATE INDEX patkit_events_actor ON patkit_events (realm, actor_owner) WHERE actor_owner IS NOT NULL;
-- Purges the oldest events.
CREATE INDEX patkit_events_at ON patkit_events (at, id);

-- The version of the tables, and the earliest program version that is compatible with them.
CREATE TABLE IF NOT EXISTS patkit_migrations (
    version        bigint NOT NULL PRIMARY KEY,
    min_compatible bigint NOT NULL,
    name           text NOT NULL,
    applied_at     bigint NOT NULL
);
INSERT INTO patkit_migrations (version, min_compatible, name, applied_at)
    VALUES (1, 1, 'tokens', CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER));
