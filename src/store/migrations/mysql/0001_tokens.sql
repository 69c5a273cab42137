-- Tokens and their audit events.
--
-- `patkit_` stands for the prefix that the host chose. Instants are microseconds since
-- 1970-01-01T00:00:00Z, which every engine stores exactly; FROM_UNIXTIME(created_at / 1000000)
-- shows one. Ids are the 16 bytes of a UUIDv7, so they sort by creation time. Names of realms and
-- owners are the bytes of their UTF-8 text, because most collations of text would take some names
-- for equal that differ, such as two that differ in a space at their end.
--
-- The statements may run again after a failure, because they cannot run in one transaction here.

CREATE TABLE IF NOT EXISTS patkit_tokens (
    -- The public id.
    id                BINARY(16) NOT NULL PRIMARY KEY,
    -- The tenant; empty if the host has no tenants.
    realm             VARBINARY(255) NOT NULL,
    -- The owner that the token acts as: the host's id, and the kind of the owner when the token was
    -- generated.
    owner             VARBINARY(255) NOT NULL,
    owner_kind        VARCHAR(64) NOT NULL,
    -- personal (of a human) or service (of a service user).
    kind              VARCHAR(64) NOT NULL,
    -- The name, as it is shown.
    name              TEXT NOT NULL,
    -- The key by which names are unique: SHA-256 of the name's NFKC case folding, computed by the
    -- crate when it writes the name. NULL once the token has a successor, which takes over the key.
    -- Briefly the id, while a batch exchanges names.
    name_key          VARBINARY(32) CHECK (OCTET_LENGTH(name_key) IN (16, 32)),
    -- The purpose of the token; NULL if it has no description.
    description       TEXT,
    created_at        BIGINT NOT NULL,
    -- The actor that generated it: system, owner, token (an owner through a token) or erased.
    created_by        VARCHAR(64) NOT NULL CHECK (created_by IN ('system', 'owner', 'token', 'erased', 'unproven')),
    created_by_owner  VARBINARY(255),
    created_by_token  BINARY(16),
    -- The instant from which on the token is expired; NULL if it never expires.
    expires_at        BIGINT,
    -- The revocation: instant, reason, actor and authority (owner, admin or system). All are NULL
    -- if the token is not revoked.
    revoked_at        BIGINT,
    revoked_reason    VARCHAR(64),
    revoked_by        VARCHAR(64) CHECK (revoked_by IN ('system', 'owner', 'token', 'erased', 'unproven')),
    revoked_by_owner  VARBINARY(255),
    revoked_by_token  BINARY(16),
    revoked_authority VARCHAR(64) CHECK (revoked_authority IN ('owner', 'admin', 'system')),
    -- The rotation: the successor, the instant, and the end of the overlap in which both tokens
    -- work. All are NULL if the token was not rotated.
    successor         BINARY(16),
    succeeded_at      BIGINT,
    succeeded_until   BIGINT,
    -- The token that it replaced by rotation.
    predecessor       BINARY(16),
    -- The token through which it was last restored, whose family it joined.
    restored_by_token BINARY(16),
    -- A token that it descends from through removed tokens, and whose reuse revokes it too.
    ancestor          BINARY(16),
    -- The requested lifetime: default, never, a number of days, or a number of seconds and an s.
    lifetime          VARCHAR(64) NOT NULL,
    -- inherit: all permissions of the owner. only: the permissions in scope_grants, separated by
    -- spaces; empty allows nothing.
    scope             VARCHAR(64) NOT NULL CHECK (scope IN ('inherit', 'only')),
    scope_grants      TEXT,
    -- The networks that may use it, in CIDR notation, separated by spaces; NULL allows all.
    networks          TEXT,
    -- The keyed digest of the secret and the number of the key, or a digest in the scheme of
    -- another system.
    digest_key        BIGINT CHECK (digest_key BETWEEN 0 AND 65535),
    digest            BINARY(32),
    foreign_scheme    TEXT,
    foreign_digest    BLOB,
    -- The instant of its generation or last restoration, from which on an unused token counts as
    -- idle.
    idle_from         BIGINT NOT NULL,
    -- The last use, which is written in batches and does not increase the version.
    last_used_at      BIGINT,
    last_used_address VARCHAR(64),
    -- The instant of the last report of its use after rotation.
    reuse_reported_at BIGINT,
    -- The smallest threshold, in days before the expiry, for which a notice was claimed.
    notified_days     BIGINT CHECK (notified_days BETWEEN 0 AND 65535),
    -- The MAC of a sealing store and the number of its key.
    seal_key          BIGINT CHECK (seal_key BETWEEN 0 AND 65535),
    seal              BINARY(32),
    -- Counts changes, from 1. Each change is a compare-and-set on it.
    version           BIGINT NOT NULL CHECK (version >= 1),
    -- The instant of expiry or revocation, whichever is earlier. Pruning uses it.
    ended_at          BIGINT GENERATED ALWAYS AS (CASE WHEN revoked_at < expires_at THEN revoked_at
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
    CONSTRAINT patkit_last_use CHECK (last_used_address IS NULL OR last_used_at IS NOT NULL),

    -- A name is unique among the tokens of an owner and kind that have no successor, because nulls are
    -- distinct.
    UNIQUE KEY patkit_tokens_name (realm, owner, kind, name_key),
    -- An owner's tokens, newest first.
    KEY patkit_tokens_owner (realm, owner, id),
    -- The tokens of one kind in a realm, newest first.
    KEY patkit_tokens_kind (realm, kind, id),
    -- The tokens that a token generated.
    KEY patkit_tokens_creator (created_by_token, id),
    -- The tokens that were restored through a token.
    KEY patkit_tokens_restorer (restored_by_token, id),
    -- The tokens that descend from a token through removed ones.
    KEY patkit_tokens_ancestor (ancestor, id),
    -- Ended tokens in the order of their pruning, which is the order of their ends.
    KEY patkit_tokens_ended (ended_at, id),
    -- The tokens under a key, newest first, to find the remaining tokens of a key to be retired.
    KEY patkit_tokens_key (digest_key, id)
) ENGINE = InnoDB, CHARACTER SET utf8mb4, COLLATE utf8mb4_bin;

-- One value per key of the keyring, which reveals a different key under the same number. The first
-- value is kept.
CREATE TABLE IF NOT EXISTS patkit_key_checks (
    key_id      BIGINT NOT NULL PRIMARY KEY CHECK (key_id BETWEEN 0 AND 65535),
    -- An HMAC that reveals nothing about the key.
    check_value BINARY(16) NOT NULL
) ENGINE = InnoDB, CHARACTER SET utf8mb4, COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS patkit_events (
    -- Counts the events in the order of their commits, which an export follows. The number comes
    -- from patkit_numbers.
    seq               BIGINT NOT NULL PRIMARY KEY,
    -- A UUIDv7, generated by the service that recorded the event.
    id                BINARY(16) NOT NULL UNIQUE KEY,
    at                BIGINT NOT NULL,
    realm             VARBINARY(255) NOT NULL,
    -- generated, revoked, restored and others.
    action            VARCHAR(64) NOT NULL,
    -- The actor: system, owner, token, erased, or unproven (somebody with a wrong secret).
    actor             VARCHAR(64) NOT NULL CHECK (actor IN ('system', 'owner', 'token', 'erased', 'unproven')),
    actor_owner       VARBINARY(255),
    actor_token       BINARY(16),
    -- The affected token and its owner; the owner is NULL after its erasure.
    token             BINARY(16) NOT NULL,
    owner             VARBINARY(255),
    reason            TEXT,
    address           VARCHAR(64),

    -- The events of a realm, of a token and of an owner, by time. Erasing an owner uses the last one
    -- too.
    KEY patkit_events_realm (realm, at, id),
    KEY patkit_events_token (token, at, id),
    KEY patkit_events_owner (realm, owner, at, id),
    -- Erases an owner from events about tokens of other owners.
    KEY patkit_events_actor (realm, actor_owner),
    -- Purges the oldest events.
    KEY patkit_events_at (at, id)
) ENGINE = InnoDB, CHARACTER SET utf8mb4, COLLATE utf8mb4_bin;

-- The number of the newest event. Each transaction that records events takes its numbers from here
-- and keeps the row locked until it ends, so that numbers become visible in their order. An
-- AUTO_INCREMENT column would not do that.
CREATE TABLE IF NOT EXISTS patkit_numbers (
    one    TINYINT NOT NULL PRIMARY KEY CHECK (one = 1),
    newest BIGINT NOT NULL
) ENGINE = InnoDB, CHARACTER SET utf8mb4, COLLATE utf8mb4_bin;
INSERT IGNORE INTO patkit_numbers (one, newest) VALUES (1, 0);

-- The version of the tables, and the earliest program version that is compatible with them.
CREATE TABLE IF NOT EXISTS patkit_migrations (
    version        bigint NOT NULL PRIMARY KEY,
    min_compatible bigint NOT NULL,
    name           text NOT NULL,
    applied_at     bigint NOT NULL
);
INSERT IGNORE INTO patkit_migrations (version, min_compatible, name, applied_at)
    VALUES (1, 1, 'tokens', CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED));
