-- scenario savepoints: what is rolled back is nowhere, rows, definitions and messages alike
CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'base' FROM generate_series(1, 5) g;
-- step
BEGIN; INSERT INTO t VALUES (10, 'kept'); SAVEPOINT a; INSERT INTO t VALUES (11, 'lost'); UPDATE t SET v = 'lost' WHERE id = 1;
CREATE TABLE lost (id int); SELECT pg_logical_emit_message(true, 'app', 'lost'); TRUNCATE t; ROLLBACK TO a; INSERT INTO t VALUES (12, 'kept'); RELEASE a; COMMIT;
-- step
BEGIN; SAVEPOINT a; DELETE FROM t WHERE id = 2; SAVEPOINT b; DELETE FROM t WHERE id = 3; ROLLBACK TO b; SAVEPOINT c; UPDATE t SET v = 'c' WHERE id = 4; RELEASE a; COMMIT;

BEGIN; DELETE FROM t; INSERT INTO t VALUES (99, 'lost'); ROLLBACK;
-- step
BEGIN; SAVEPOINT a; UPDATE t SET v = 'one'; ROLLBACK TO a; UPDATE t SET v = 'two' WHERE id = 1; ROLLBACK TO a; UPDATE t SET v = 'three' WHERE id = 1; COMMIT;

-- scenario subtransactions: thousands of them in one transaction, every third rolled back
CREATE TABLE t (id int PRIMARY KEY, v int);
-- step
DO $$ BEGIN FOR i IN 1..1500 LOOP BEGIN INSERT INTO t VALUES (i, i); IF i % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$;
-- step
DO $$ BEGIN FOR i IN 1..500 LOOP BEGIN UPDATE t SET v = -v WHERE id = i; INSERT INTO t VALUES (i % 7, 0); EXCEPTION WHEN unique_violation THEN UPDATE t SET v = v + 1 WHERE id = i; END; END LOOP; END $$;
-- step
DELETE FROM t WHERE id % 2 = 0;

-- scenario two_phase: a prepared transaction comes when and if it is committed, with the xid it was prepared with
CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'base' FROM generate_series(1, 5) g;
-- step
BEGIN; UPDATE t SET v = 'prepared' WHERE id = 1; SAVEPOINT a; DELETE FROM t WHERE id = 2; ROLLBACK TO a; INSERT INTO t VALUES (10, 'prepared'); PREPARE TRANSACTION '{database} one';

BEGIN; UPDATE t SET v = 'never' WHERE id = 3; PREPARE TRANSACTION '{database} two';

UPDATE t SET v = 'beside' WHERE id = 4;
-- step
UPDATE t SET v = 'between' WHERE id = 5;

COMMIT PREPARED '{database} one';

ROLLBACK PREPARED '{database} two';

UPDATE t SET v = 'after' WHERE id = 1;
-- step
BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, 'prepared'); PREPARE TRANSACTION '{database} three';

COMMIT PREPARED '{database} three';

-- scenario interleaved: long transactions side by side; the order is that of their commits
CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'base' FROM generate_series(1, 5) g;
-- step
-- session b
BEGIN; INSERT INTO t SELECT g, 'b' FROM generate_series(100, 200) g; UPDATE t SET v = 'b' WHERE id = 1;

BEGIN; INSERT INTO t VALUES (300, 'a'); UPDATE t SET v = 'a' WHERE id = 2; COMMIT;

-- session b
UPDATE t SET v = 'b after a' WHERE id = 300; DELETE FROM t WHERE id = 2;
-- step
INSERT INTO t VALUES (301, 'a');

-- session b
UPDATE t SET v = v || '!' WHERE id > 290;

-- session b
COMMIT;

UPDATE t SET v = 'a after b' WHERE id = 1;
-- step
-- session b
BEGIN; DELETE FROM t WHERE id > 150;

UPDATE t SET v = 'last' WHERE id = 100;

-- session b
ROLLBACK;

-- scenario truncates: one message for all that is emptied, with rows around it, rolled back ones, partitions
CREATE TABLE a (id serial PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); CREATE TABLE c (id int GENERATED ALWAYS AS IDENTITY, v text);
CREATE TABLE r (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (100);
CREATE TABLE r2 PARTITION OF r FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id); CREATE TABLE r21 PARTITION OF r2 FOR VALUES FROM (100) TO (150);
CREATE TABLE empty (id int PRIMARY KEY); CREATE TABLE bare (v int);
INSERT INTO a (v) SELECT 'x' FROM generate_series(1, 9); INSERT INTO b SELECT g, g FROM generate_series(1, 9) g; INSERT INTO c (v) SELECT 'x' FROM generate_series(1, 9);
INSERT INTO r SELECT g, 'x' FROM generate_series(1, 149) g; INSERT INTO bare SELECT 1 FROM generate_series(1, 3);
-- step
BEGIN; UPDATE a SET v = 'before'; INSERT INTO a (v) VALUES ('before'); TRUNCATE a, b; INSERT INTO a (v) VALUES ('after'); INSERT INTO b SELECT 1, max(id) FROM a; COMMIT;

TRUNCATE r1;
-- step
BEGIN; INSERT INTO r VALUES (1, 'first'); TRUNCATE r2; INSERT INTO r VALUES (2, 'second'), (120, 'second'); SAVEPOINT s; TRUNCATE r; ROLLBACK TO s; INSERT INTO r VALUES (3, 'third'); COMMIT;

TRUNCATE a RESTART IDENTITY CASCADE;

INSERT INTO a (v) VALUES ('one'); TRUNCATE empty; UPDATE bare SET v = 2 WHERE ctid = (SELECT ctid FROM bare LIMIT 1);
-- step
BEGIN; TRUNCATE c RESTART IDENTITY; INSERT INTO c (v) VALUES ('y'); TRUNCATE c; INSERT INTO c (v) VALUES ('z'); COMMIT;

BEGIN; DELETE FROM r WHERE id = 3; TRUNCATE r; INSERT INTO r VALUES (5, 'x'), (105, 'x'); UPDATE r SET v = 'y', id = id + 1; COMMIT;

BEGIN; UPDATE bare SET v = 3; TRUNCATE bare; INSERT INTO bare VALUES (1), (1); DELETE FROM bare WHERE ctid = (SELECT ctid FROM bare LIMIT 1); COMMIT;

-- scenario copy: many rows of one record share an LSN; COPY, also frozen after TRUNCATE
CREATE TABLE t (id int PRIMARY KEY, v text DEFAULT 'd'); CREATE TABLE r (id int, v text DEFAULT 'd') PARTITION BY HASH (id);
CREATE TABLE r0 PARTITION OF r FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE r1 PARTITION OF r FOR VALUES WITH (MODULUS 2, REMAINDER 1);
COPY t (id) FROM PROGRAM 'seq 1 50';
-- step
COPY t (id) FROM PROGRAM 'seq 51 400';

BEGIN; TRUNCATE t; COPY t (id) FROM PROGRAM 'seq 1 300' WITH (FREEZE); DELETE FROM t WHERE id > 250; COMMIT;
-- step
COPY r (id) FROM PROGRAM 'seq 1 200; seq 1 20';

BEGIN; COPY t (id) FROM PROGRAM 'seq 1000 1100'; UPDATE t SET v = 'copied' WHERE id >= 1000; ROLLBACK;
-- step
BEGIN; COPY t (id) FROM PROGRAM 'seq 1000 1100'; UPDATE t SET v = 'copied' WHERE id >= 1050; COMMIT;

-- scenario merges since 15: MERGE with all its branches
CREATE TABLE t (id int PRIMARY KEY, v int, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL; CREATE TABLE s (id int PRIMARY KEY, v int);
INSERT INTO t SELECT g, g, repeat('m', 4000) FROM generate_series(1, 10) g; INSERT INTO s SELECT g, g * 10 FROM generate_series(5, 15) g;
-- step
MERGE INTO t USING s ON s.id = t.id WHEN MATCHED AND t.id % 2 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v, 'new');
-- step
UPDATE s SET v = v + 1; MERGE INTO t USING s ON s.id = t.id WHEN MATCHED THEN UPDATE SET v = s.v, id = t.id + 100 WHEN NOT MATCHED THEN DO NOTHING;
-- step
MERGE INTO t USING s ON s.id + 100 = t.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (s.id, 0);

-- scenario on_conflict: speculative insertion, in vain and not
CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, n int DEFAULT 1, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
INSERT INTO t SELECT g, 'u' || g, 1, repeat('c', 4000) FROM generate_series(1, 10) g;
-- step
INSERT INTO t SELECT g, 'u' || g FROM generate_series(5, 15) g ON CONFLICT (id) DO UPDATE SET n = t.n + 1;

INSERT INTO t VALUES (1, 'u2'), (50, 'u3'), (51, 'u51') ON CONFLICT DO NOTHING;
-- step
INSERT INTO t VALUES (60, 'u4') ON CONFLICT (u) DO UPDATE SET id = excluded.id, n = 0;

INSERT INTO t VALUES (60, 'u4') ON CONFLICT (u) DO UPDATE SET n = 99 WHERE t.n > 5;
-- step
BEGIN; INSERT INTO t VALUES (61, 'u61') ON CONFLICT (id) DO UPDATE SET n = t.n + 1; INSERT INTO t VALUES (61, 'u61') ON CONFLICT (id) DO UPDATE SET n = t.n + 1; COMMIT;

-- scenario modifying_ctes: several parts of one statement change rows, in an order of their own
CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'a' FROM generate_series(1, 20) g;
-- step
WITH gone AS (DELETE FROM a WHERE id <= 5 RETURNING *), moved AS (INSERT INTO b SELECT * FROM gone RETURNING id) UPDATE a SET v = 'n' || (SELECT count(*) FROM moved) WHERE id > 15;
-- step
WITH x AS (UPDATE b SET id = id + 100 RETURNING id), y AS (INSERT INTO a SELECT id, 'from b' FROM x RETURNING id) DELETE FROM a WHERE id IN (6, 7);
-- step
WITH d AS (DELETE FROM b RETURNING id), i AS (INSERT INTO b SELECT id + 1000, 'again' FROM d) SELECT 1;

-- scenario temporary_tables: temporary and unlogged tables, and what is selected into them, are no change of the source's
CREATE TABLE t (id int PRIMARY KEY, v text);
-- step
CREATE TEMP TABLE work AS SELECT g AS id, 'w' AS v FROM generate_series(1, 5) g; INSERT INTO t SELECT * FROM work; SELECT * INTO TEMP other FROM t;
-- step
UPDATE work SET v = 'x'; UPDATE t SET v = w.v FROM work w WHERE w.id = t.id AND t.id < 3; DELETE FROM other;
-- step
DROP TABLE work, other; DELETE FROM t WHERE id = 5;

-- scenario messages: what an application tells others through the WAL is none of ours
CREATE TABLE t (id int PRIMARY KEY, v text);
-- step
BEGIN; INSERT INTO t VALUES (1, 'x'); SELECT pg_logical_emit_message(true, 'app', 'hello'); SELECT pg_logical_emit_message(false, 'app', 'outside, at once'); INSERT INTO t VALUES (2, 'x'); COMMIT;

SELECT pg_logical_emit_message(true, '', ''), pg_logical_emit_message(false, 'bytes', '\x00ff80c328'::bytea), pg_logical_emit_message(true, 'bytes', '\xff00fe'::bytea);
-- step
SELECT pg_logical_emit_message(true, 'lastgood.unknown', 'not ours'), pg_logical_emit_message(true, 'lastgood.mark', 'nor this'), pg_logical_emit_message(false, 'lastgood.point', 'no point');

BEGIN; SELECT pg_logical_emit_message(false, 'app', 'said although rolled back'); INSERT INTO t VALUES (3, 'lost'); ROLLBACK;
-- step
SELECT pg_logical_emit_message(true, 'large', repeat('m', 300000)); INSERT INTO t VALUES (4, 'x');

-- scenario origins: transactions replicated into the source, with commit times of another server that are long past
CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT pg_replication_origin_create('{database}'); SELECT pg_replication_origin_create('{database} two');
-- step
-- session b
SELECT pg_replication_origin_session_setup('{database}');

-- session b
BEGIN; SELECT pg_replication_origin_xact_setup('0/100', '2001-01-01'); INSERT INTO t VALUES (1, 'elsewhere'); COMMIT;

INSERT INTO t VALUES (2, 'here');
-- step
-- session b
BEGIN; SELECT pg_replication_origin_xact_setup('0/200', '2002-01-01'); UPDATE t SET v = 'elsewhere' WHERE id = 2; COMMIT;

-- session b
SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_session_setup('{database} two');

-- session b
BEGIN; SELECT pg_replication_origin_xact_setup('0/300', '2000-06-01'); INSERT INTO t VALUES (3, 'third'); COMMIT;
-- step
-- session b
SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('{database}'), pg_replication_origin_drop('{database} two');

UPDATE t SET v = 'here' WHERE id = 1;
