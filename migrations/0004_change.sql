-- A base that follows a change of the schema has a cause of its own. A CHECK cannot be altered, so the table is made anew.
CREATE TABLE base_new (
    id               TEXT PRIMARY KEY,
    source           TEXT NOT NULL REFERENCES source (id) ON DELETE CASCADE,
    cause            TEXT NOT NULL CHECK (cause IN ('first', 'change', 'schedule', 'request', 'found')),
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
INSERT INTO base_new SELECT id, source, cause, status, lineage, base, consistent_point, bytes, stored_bytes, error, started, finished FROM base;
DROP TABLE base;
ALTER TABLE base_new RENAME TO base;
CREATE INDEX base_by_source ON base (source, started);
CREATE UNIQUE INDEX base_once ON base (source, lineage, base) WHERE base IS NOT NULL;
