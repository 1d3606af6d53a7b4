-- From here on `source.connection` may be empty: the source was found in the repository, and its connection string is not
-- known yet.
--
-- The names under which this service has written a source: the last run's, and while one claims the source, its own.
-- Without them it does not know its own writing again, and waits to be asked before it takes the source back.

CREATE TABLE writer (
    source TEXT NOT NULL REFERENCES source (id) ON DELETE CASCADE,
    name   TEXT NOT NULL,
    PRIMARY KEY (source, name)
) STRICT, WITHOUT ROWID;
