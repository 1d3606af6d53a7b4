-- The catalog: settings, and an index of what the repository holds.
--
-- Losing it loses connection strings, the history of jobs and what was only ever set here. `base`, `segment` and
-- `point` can be made again from a listing of the repository; an LSN is sixteen hexadecimal digits, so that text order
-- is LSN order; a time is microseconds since 1970 UTC.

CREATE TABLE setting (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE token (
    name    TEXT PRIMARY KEY,
    sha256  BLOB NOT NULL CHECK (length(sha256) = 32),
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE source (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    connection BLOB NOT NULL,                 -- sealed under a key derived from the master key
    endpoint   TEXT NOT NULL,                 -- the same without its secrets, for people
    settings   TEXT NOT NULL CHECK (json_valid(settings)),
    desired    TEXT NOT NULL CHECK (desired IN ('running', 'paused', 'paused_without_slot')),
    created    INTEGER NOT NULL,
    updated    INTEGER NOT NULL
) STRICT;

-- A base, or an attempt at one. `id` is the job; `base` is known once the snapshot exists.
CREATE TABLE base (
    id               TEXT PRIMARY KEY,
    source           TEXT NOT NULL REFERENCES source (id) ON DELETE CASCADE,
    cause            TEXT NOT NULL CHECK (cause IN ('first', 'schedule', 'request', 'found')),
    status           TEXT NOT NULL CHECK (status IN ('running', 'succeeded', 'failed')),
    lineage          TEXT,
    base             TEXT,
    consistent_point TEXT,
    bytes            INTEGER NOT NULL DEFAULT 0,
    stored_bytes     INTEGER NOT NULL DEFAULT 0,
    error            TEXT,
    started          INTEGER NOT NULL,
    finished         INTEGER
) STRICT;
CREATE INDEX base_by_source ON base (source, started);
CREATE UNIQUE INDEX base_once ON base (source, lineage, base) WHERE base IS NOT NULL;

CREATE TABLE segment (
    source           TEXT NOT NULL REFERENCES source (id) ON DELETE CASCADE,
    lineage          TEXT NOT NULL,
    start_lsn        TEXT NOT NULL,
    end_lsn          TEXT NOT NULL,
    max_commit_time  INTEGER,                 -- absent: no transaction in it
    observed_through INTEGER,
    stored_bytes     INTEGER,                 -- absent: found by a listing
    PRIMARY KEY (source, lineage, start_lsn)
) STRICT, WITHOUT ROWID;

CREATE TABLE point (
    source  TEXT NOT NULL REFERENCES source (id) ON DELETE CASCADE,
    name    TEXT NOT NULL,
    lsn     TEXT NOT NULL,
    time    INTEGER NOT NULL,
    PRIMARY KEY (source, name, lsn)
) STRICT, WITHOUT ROWID;

CREATE TABLE restore (
    id       TEXT PRIMARY KEY,
    source   TEXT NOT NULL,                   -- no reference: the record of a restore outlives its source
    name     TEXT NOT NULL,                   -- the source's name when it was asked for
    request  TEXT NOT NULL CHECK (json_valid(request)),  -- without secrets
    plan     TEXT NOT NULL CHECK (json_valid(plan)),
    status   TEXT NOT NULL CHECK (status IN ('planned', 'running', 'succeeded', 'failed', 'cancelled')),
    phase    TEXT,
    progress TEXT CHECK (progress IS NULL OR json_valid(progress)),
    report   TEXT CHECK (report IS NULL OR json_valid(report)),
    error    TEXT,
    error_class TEXT CHECK (error_class IN ('transient', 'needs_operator', 'corrupt')),
    left_behind TEXT,
    created  INTEGER NOT NULL,
    started  INTEGER,
    finished INTEGER
) STRICT;
CREATE INDEX restore_by_time ON restore (created, id);

CREATE TABLE restore_event (
    restore TEXT NOT NULL REFERENCES restore (id) ON DELETE CASCADE,
    seq     INTEGER NOT NULL,
    time    INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    body    TEXT NOT NULL CHECK (json_valid(body)),
    PRIMARY KEY (restore, seq)
) STRICT, WITHOUT ROWID;
