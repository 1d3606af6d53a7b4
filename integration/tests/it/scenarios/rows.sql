-- scenario toast_chains: an unchanged TOAST value is not sent; chains of such updates, in one
-- transaction and over segments and bases, with key changes between
CREATE TABLE t (id int PRIMARY KEY, n int, big text, other text, doc jsonb);
ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
INSERT INTO t SELECT g, 0, repeat('big' || g, 3000), (SELECT string_agg(md5(x::text), '') FROM generate_series(g, g + 200) x),
  jsonb_build_object('k', (SELECT string_agg(md5(x::text), '') FROM generate_series(g, g + 150) x)) FROM generate_series(1, 12) g;
-- step
UPDATE t SET n = n + 1;

UPDATE t SET n = n + 1 WHERE id <= 6;

BEGIN; UPDATE t SET n = n + 1 WHERE id = 1; UPDATE t SET big = repeat('new', 4000) WHERE id = 1; UPDATE t SET n = n + 1 WHERE id = 1;
UPDATE t SET other = NULL WHERE id = 1; UPDATE t SET n = n + 1 WHERE id = 1; UPDATE t SET doc = doc || '{"a": 1}' WHERE id = 1;
UPDATE t SET n = n + 1 WHERE id = 1; COMMIT;

UPDATE t SET id = id + 100 WHERE id IN (2, 3);

BEGIN; UPDATE t SET n = -1 WHERE id = 102; UPDATE t SET id = 2, big = repeat('back', 3000) WHERE id = 102; UPDATE t SET n = -2 WHERE id = 2; COMMIT;

BEGIN; UPDATE t SET n = 7 WHERE id = 4; DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (4, 8, repeat('again', 2000), 'short', '{}');
UPDATE t SET n = 9 WHERE id = 4; COMMIT;
-- step
BEGIN; UPDATE t SET id = 999 WHERE id = 5; UPDATE t SET id = 5 WHERE id = 6; UPDATE t SET id = 6 WHERE id = 999; UPDATE t SET n = n + 1 WHERE id IN (5, 6); COMMIT;

DO $$ BEGIN FOR i IN 1..200 LOOP UPDATE t SET n = n + 1 WHERE id = 7; UPDATE t SET other = 'o' || i WHERE id = 7; END LOOP; END $$;

UPDATE t SET big = 'short' WHERE id = 8;

UPDATE t SET big = big || 'x', n = n + 1 WHERE id = 9;
-- step
UPDATE t SET n = n + 1;

UPDATE t SET id = id + 1000 WHERE id > 9;

UPDATE t SET big = big, other = other, n = n + 1;

-- scenario toast_full: under FULL the old row has the value and the new one still says unchanged; equal rows
CREATE TABLE t (n int, big text, j json); ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
INSERT INTO t SELECT g / 2, repeat('v' || g / 4, 2000), '{"a":  1}' FROM generate_series(0, 15) g;
-- step
UPDATE t SET n = n + 1 WHERE ctid = (SELECT ctid FROM t WHERE n = 1 LIMIT 1);

UPDATE t SET n = n + 10;

BEGIN; UPDATE t SET n = n + 1 WHERE n = 12; UPDATE t SET j = NULL WHERE n = 13; UPDATE t SET n = n + 1 WHERE n = 13; COMMIT;
-- step
DELETE FROM t WHERE ctid = (SELECT ctid FROM t WHERE n = 15 LIMIT 1);

UPDATE t SET big = 'short' WHERE n = 14;
-- step
DO $$ BEGIN FOR i IN 1..60 LOOP UPDATE t SET n = n + 1 WHERE n >= 16; END LOOP; END $$;

-- scenario toast_key: a key that is stored out of line is sent with every change, as the old key, while the new
-- row says unchanged
CREATE TABLE t (k text, n int, pad text, PRIMARY KEY (k)); ALTER TABLE t ALTER k SET STORAGE EXTERNAL;
INSERT INTO t SELECT (SELECT string_agg(md5((g * 1000 + x)::text), '') FROM generate_series(1, 75) x), g, repeat('p', 50) FROM generate_series(1, 4) g;
-- step
UPDATE t SET n = n + 1;

BEGIN; UPDATE t SET n = n + 1; UPDATE t SET pad = 'q'; UPDATE t SET k = 'short' || n WHERE n = 3; UPDATE t SET n = 0 WHERE n = 3; COMMIT;
-- step
DELETE FROM t WHERE n = 4;

UPDATE t SET k = reverse(k), n = n + 1;
-- step
UPDATE t SET n = n + 1;

-- scenario toast_index: the same by the index of REPLICA IDENTITY USING INDEX, with key changes
CREATE TABLE t (a int NOT NULL, b int NOT NULL, big text, n int, PRIMARY KEY (a)); CREATE UNIQUE INDEX t_b ON t (b);
ALTER TABLE t REPLICA IDENTITY USING INDEX t_b; ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
INSERT INTO t SELECT g, -g, repeat('i' || g, 3000), 0 FROM generate_series(1, 8) g;
-- step
UPDATE t SET n = n + 1; UPDATE t SET b = b - 100 WHERE a < 5;

UPDATE t SET a = a + 50; UPDATE t SET n = n + 1, b = b - 1000 WHERE a > 53;
-- step
BEGIN; UPDATE t SET b = 1 WHERE b = -101; UPDATE t SET b = -101 WHERE b = -102; UPDATE t SET n = 5 WHERE b = -101; COMMIT;

DELETE FROM t WHERE a = 57;
-- step
UPDATE t SET n = n + 1;

-- scenario identities: default, index, full, nothing and none at all, side by side
CREATE TABLE d (id int PRIMARY KEY, v text); CREATE TABLE i (a int NOT NULL UNIQUE, b int, v text);
ALTER TABLE i REPLICA IDENTITY USING INDEX i_a_key; CREATE TABLE f (id int PRIMARY KEY, v text); ALTER TABLE f REPLICA IDENTITY FULL;
CREATE TABLE n (id int, v text); ALTER TABLE n REPLICA IDENTITY NOTHING; CREATE TABLE bare (id int, v text);
CREATE TABLE late (id int, v text, CONSTRAINT late_pk PRIMARY KEY (id) DEFERRABLE);
INSERT INTO d SELECT g, 'x' FROM generate_series(1, 9) g; INSERT INTO i SELECT g, g, 'x' FROM generate_series(1, 9) g;
INSERT INTO f SELECT g, 'x' FROM generate_series(1, 9) g; INSERT INTO n SELECT g, 'x' FROM generate_series(1, 9) g;
INSERT INTO bare SELECT g, 'x' FROM generate_series(1, 9) g; INSERT INTO late SELECT g, 'x' FROM generate_series(1, 9) g;
-- step
UPDATE d SET v = 'y' WHERE id < 4; UPDATE i SET v = 'y' WHERE a < 4; UPDATE f SET v = 'y' WHERE id < 4; UPDATE n SET v = 'y' WHERE id < 4;
UPDATE bare SET v = 'y' WHERE id < 4; UPDATE late SET v = 'y' WHERE id < 4;
-- step
DELETE FROM d WHERE id = 5; DELETE FROM i WHERE a = 5; DELETE FROM f WHERE id = 5; DELETE FROM n WHERE id = 5; DELETE FROM bare WHERE id = 5;
DELETE FROM late WHERE id = 5;

UPDATE d SET id = -id; UPDATE i SET a = -a; UPDATE f SET id = -id; UPDATE n SET id = -id; UPDATE bare SET id = -id; UPDATE late SET id = -id;
-- step
UPDATE d SET v = NULL; UPDATE i SET v = NULL; UPDATE f SET v = NULL; UPDATE n SET v = NULL; UPDATE bare SET v = NULL; UPDATE late SET v = NULL;

-- scenario duplicates: of several equal rows exactly one is changed
CREATE TABLE t (a int, b text); CREATE TABLE nulls (a int, b text, c json); CREATE TABLE nothing ();
INSERT INTO t SELECT 1, 'same' FROM generate_series(1, 5); INSERT INTO t VALUES (1, NULL), (1, NULL), (1, ''), (NULL, NULL);
INSERT INTO nulls SELECT NULL, NULL, NULL FROM generate_series(1, 4); INSERT INTO nothing SELECT FROM generate_series(1, 3);
-- step
DELETE FROM t WHERE ctid = (SELECT ctid FROM t WHERE b = 'same' LIMIT 1);

UPDATE t SET a = 2 WHERE ctid = (SELECT ctid FROM t WHERE b = 'same' LIMIT 1);

UPDATE t SET b = '' WHERE ctid = (SELECT ctid FROM t WHERE b IS NULL AND a = 1 LIMIT 1);

UPDATE nulls SET a = 1 WHERE ctid = (SELECT ctid FROM nulls LIMIT 1);
-- step
UPDATE t SET a = 1; DELETE FROM t WHERE ctid = (SELECT ctid FROM t WHERE b = '' LIMIT 1);

DELETE FROM nulls WHERE ctid = (SELECT ctid FROM nulls WHERE a IS NULL LIMIT 1);

INSERT INTO nothing DEFAULT VALUES;
-- step
BEGIN; UPDATE t SET a = 3 WHERE ctid = (SELECT ctid FROM t WHERE b = 'same' LIMIT 1); UPDATE t SET a = 1 WHERE a = 3; INSERT INTO t VALUES (1, 'same');
DELETE FROM t WHERE ctid = (SELECT ctid FROM t WHERE b = 'same' LIMIT 1); COMMIT;

DELETE FROM nothing WHERE ctid = (SELECT ctid FROM nothing LIMIT 1);

-- scenario no_equality: types without an equality operator, in rows that only their whole tells apart
CREATE TABLE t (j json, p point, y polygon, n int); ALTER TABLE t REPLICA IDENTITY FULL;
INSERT INTO t SELECT '{"a" : 1}', '(1,2)', '((0,0),(1,1),(1,0))', g FROM generate_series(1, 6) g; INSERT INTO t VALUES (NULL, NULL, NULL, NULL), (NULL, '(1,2)', NULL, 1);
-- step
UPDATE t SET j = '{"a":1}' WHERE n = 1; UPDATE t SET p = '(2,1)' WHERE n = 2;
-- step
DELETE FROM t WHERE n = 3; UPDATE t SET y = NULL WHERE n = 4;
-- step
UPDATE t SET n = n + 1; DELETE FROM t WHERE n IS NULL;

-- scenario key_changes: the old key comes only when it changed, with nulls for what is not in it
CREATE TABLE one (id int PRIMARY KEY, v text); CREATE TABLE two (a text, v int, b int, PRIMARY KEY (b, a));
INSERT INTO one SELECT g, 'v' || g FROM generate_series(20, 1, -1) g; INSERT INTO two SELECT 'k' || g, 0, g % 3 FROM generate_series(1, 9) g;
-- step
UPDATE one SET id = id + 1;

UPDATE two SET a = upper(a); UPDATE two SET b = b + 1, v = v + 1 WHERE a > 'K4';
-- step
BEGIN; UPDATE one SET id = -id; UPDATE one SET v = 'neg' WHERE id < -10; UPDATE one SET id = -id WHERE v = 'neg'; DELETE FROM one WHERE id = -3;
INSERT INTO one VALUES (-3, 'new'); UPDATE one SET v = 'newer' WHERE id = -3; COMMIT;

UPDATE two SET a = a || '!', b = -b WHERE v = 0;
-- step
DO $$ BEGIN FOR i IN 1..50 LOOP UPDATE one SET id = id + 100 WHERE v = 'newer'; UPDATE one SET v = v WHERE v = 'newer'; END LOOP; END $$;

-- scenario swaps: unique values change hands, within a statement and a transaction
CREATE TABLE p (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY IMMEDIATE, d int UNIQUE DEFERRABLE INITIALLY DEFERRED, plain int UNIQUE);
CREATE TABLE k (id int, v text, CONSTRAINT k_pk PRIMARY KEY (id) DEFERRABLE INITIALLY IMMEDIATE);
CREATE TABLE x (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&) DEFERRABLE INITIALLY DEFERRED);
INSERT INTO p SELECT g, g, g, g FROM generate_series(1, 6) g; INSERT INTO k SELECT g, 'v' || g FROM generate_series(1, 6) g;
INSERT INTO x SELECT g, int4range(g * 10, g * 10 + 10) FROM generate_series(1, 6) g;
-- step
UPDATE p SET u = CASE u WHEN 1 THEN 2 ELSE 1 END WHERE u IN (1, 2);

UPDATE k SET id = CASE id WHEN 1 THEN 2 ELSE 1 END WHERE id IN (1, 2);

BEGIN; UPDATE p SET d = 2 WHERE id = 1; UPDATE p SET d = 1 WHERE id = 2; COMMIT;
-- step
BEGIN; UPDATE p SET plain = 100 WHERE id = 1; UPDATE p SET plain = 1 WHERE id = 2; UPDATE p SET plain = 2 WHERE id = 1; COMMIT;

BEGIN; UPDATE p SET id = 100 WHERE id = 3; UPDATE p SET id = 3 WHERE id = 4; UPDATE p SET id = 4 WHERE id = 100; COMMIT;

BEGIN; UPDATE x SET during = '[20,30)' WHERE id = 1; UPDATE x SET during = '[10,20)' WHERE id = 2; COMMIT;
-- step
UPDATE p SET u = 7 - u; UPDATE k SET id = 7 - id, v = v || '!';

BEGIN; DELETE FROM p WHERE id = 5; INSERT INTO p VALUES (5, NULL, NULL, NULL); UPDATE p SET plain = 5, u = 99 WHERE id = 5; COMMIT;

-- scenario no_change: updates that change nothing
CREATE TABLE t (id int PRIMARY KEY, v text, big text); CREATE TABLE f (v text); INSERT INTO f VALUES ('a'), ('a'), (NULL);
ALTER TABLE t ALTER big SET STORAGE EXTERNAL; INSERT INTO t SELECT g, 'v', repeat('b', 5000) FROM generate_series(1, 5) g;
-- step
UPDATE t SET v = v; UPDATE f SET v = v;

UPDATE t SET id = id, big = big;
-- step
UPDATE t SET v = v WHERE false;

BEGIN; UPDATE t SET v = 'w'; UPDATE t SET v = 'v'; UPDATE f SET v = v; UPDATE f SET v = v; COMMIT;
-- step
SELECT * FROM t FOR UPDATE; UPDATE t SET v = v;

-- scenario partitions: rows move between partitions with other column orders, kinds of identity and depths
CREATE TABLE r (id int, region text, v text, big text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE r_a PARTITION OF r FOR VALUES IN ('a');
CREATE TABLE r_b (gone int, big text, v text, region text NOT NULL, id int NOT NULL, PRIMARY KEY (id, region)); ALTER TABLE r_b DROP gone;
ALTER TABLE r ATTACH PARTITION r_b FOR VALUES IN ('b');
CREATE TABLE r_c PARTITION OF r FOR VALUES IN ('c', 'd') PARTITION BY HASH (id);
CREATE TABLE r_c0 PARTITION OF r_c FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE r_c1 PARTITION OF r_c FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE r_rest PARTITION OF r DEFAULT; ALTER TABLE r_rest REPLICA IDENTITY FULL;
CREATE TABLE q (k int, v text) PARTITION BY RANGE (k); CREATE TABLE q_1 PARTITION OF q FOR VALUES FROM (0) TO (10);
CREATE TABLE q_2 (v text, k int); ALTER TABLE q ATTACH PARTITION q_2 FOR VALUES FROM (10) TO (20);
ALTER TABLE r_a ALTER big SET STORAGE EXTERNAL;
INSERT INTO r SELECT g, (ARRAY['a', 'b', 'c', 'd', 'z'])[1 + g % 5], 'v', repeat('x', g * 300) FROM generate_series(1, 30) g;
INSERT INTO q SELECT g % 20, 'same' FROM generate_series(1, 40) g;
-- step
UPDATE r SET region = 'b' WHERE region = 'a' AND id < 15;

UPDATE r SET v = 'w', region = 'a' WHERE region = 'c'; UPDATE q SET k = k + 10 WHERE k < 5;
-- step
BEGIN; UPDATE r SET region = 'c' WHERE region = 'z'; UPDATE r SET id = id + 1000 WHERE region = 'c'; UPDATE r SET region = 'other' WHERE id % 7 = 0; COMMIT;

UPDATE q SET k = 19 - k; UPDATE r_b SET v = 'leaf'; DELETE FROM q WHERE ctid = (SELECT ctid FROM q_2 WHERE k = 12 LIMIT 1) AND tableoid = 'q_2'::regclass;
-- step
UPDATE r SET region = CASE region WHEN 'a' THEN 'b' WHEN 'b' THEN 'a' ELSE region END; TRUNCATE r_rest; INSERT INTO r VALUES (1, 'z', 'after', NULL);

-- scenario deferred_constraints: foreign keys that hold only at commit, cascades, cycles
CREATE TABLE p (id int PRIMARY KEY, partner int); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED,
  s int REFERENCES p ON DELETE SET NULL ON UPDATE CASCADE); ALTER TABLE p ADD FOREIGN KEY (partner) REFERENCES c DEFERRABLE INITIALLY DEFERRED;
INSERT INTO p SELECT g FROM generate_series(1, 9) g; INSERT INTO c SELECT g, g, 10 - g FROM generate_series(1, 9) g;
-- step
BEGIN; INSERT INTO c VALUES (20, 20, NULL); INSERT INTO p VALUES (20, 20); COMMIT;

DELETE FROM p WHERE id = 3;
-- step
UPDATE p SET id = id + 100 WHERE id = 5;

BEGIN; UPDATE p SET partner = 77 WHERE id = 20; INSERT INTO c VALUES (77, 78, 20); INSERT INTO p VALUES (78, 20); COMMIT;
-- step
BEGIN; DELETE FROM p WHERE id = 1; INSERT INTO p VALUES (1, NULL); INSERT INTO c VALUES (1, 1, 1); COMMIT;

-- scenario self_reference: a key that refers to its own table
CREATE TABLE t (id int PRIMARY KEY, up int REFERENCES t ON DELETE CASCADE, best int REFERENCES t ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
INSERT INTO t SELECT g, nullif(g / 2, 0), g FROM generate_series(1, 31) g;
-- step
DELETE FROM t WHERE id = 5;

BEGIN; INSERT INTO t VALUES (50, 1, 51); INSERT INTO t VALUES (51, 50, 51); COMMIT;
-- step
UPDATE t SET up = id WHERE id = 1; UPDATE t SET id = 500 WHERE id = 31;
-- step
DELETE FROM t WHERE id = 3;

-- scenario generated_stored: never sent before 18, never written by a restore; a generated key is told by the whole row
CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, big text GENERATED ALWAYS AS (repeat('g', a * 100)) STORED);
CREATE TABLE f (a int, twice int GENERATED ALWAYS AS (a * 2) STORED, b text); ALTER TABLE f REPLICA IDENTITY FULL;
CREATE TABLE k (a int, key int GENERATED ALWAYS AS (a * 10) STORED PRIMARY KEY, v text);
CREATE TABLE only_generated (g int GENERATED ALWAYS AS (1 + 1) STORED);
INSERT INTO t (id, a) SELECT g, g FROM generate_series(1, 9) g; INSERT INTO f (a, b) SELECT g % 3, 'x' FROM generate_series(1, 9) g; INSERT INTO k (a, v) SELECT g, 'x' FROM generate_series(1, 9) g;
INSERT INTO only_generated SELECT FROM generate_series(1, 3);
-- step
UPDATE t SET a = a + 30; UPDATE f SET a = a + 1 WHERE ctid = (SELECT ctid FROM f WHERE a = 1 LIMIT 1); UPDATE k SET v = 'y' WHERE a < 4;
-- step
DELETE FROM t WHERE twice = 64; DELETE FROM f WHERE twice = 4; UPDATE k SET a = a + 100 WHERE a > 6; DELETE FROM k WHERE a = 1;
-- step
UPDATE t SET id = -id, a = NULL; UPDATE f SET b = NULL; UPDATE k SET v = NULL; INSERT INTO only_generated DEFAULT VALUES;
DELETE FROM only_generated WHERE ctid = (SELECT ctid FROM only_generated LIMIT 1);

-- scenario generated_virtual since 18: never sent at all
CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) VIRTUAL, s int GENERATED ALWAYS AS (a * 3) STORED, z int GENERATED ALWAYS AS (a + id));
INSERT INTO t (id, a) SELECT g, g FROM generate_series(1, 9) g;
-- step
UPDATE t SET a = a + 30;
-- step
UPDATE t SET id = id + 1000 WHERE id > 5; DELETE FROM t WHERE twice = 64;
-- step
INSERT INTO t (id, a) VALUES (1, NULL) ON CONFLICT (id) DO UPDATE SET a = excluded.a;

-- scenario identity_always: numbers that only the server gives, also updated
CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text); CREATE TABLE f (v text, id int GENERATED ALWAYS AS IDENTITY);
INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 5); INSERT INTO f (v) SELECT 'x' FROM generate_series(1, 5);
-- step
UPDATE t SET v = 'y' WHERE id < 3; UPDATE t SET id = DEFAULT WHERE id = 4; UPDATE f SET id = DEFAULT WHERE id = 2; INSERT INTO t (id, v) OVERRIDING SYSTEM VALUE VALUES (-100, 'own');
-- step
UPDATE t SET id = DEFAULT; DELETE FROM f WHERE id = 1; UPDATE f SET v = 'z';
-- step
INSERT INTO t (v) VALUES ('last'); INSERT INTO f (v) VALUES ('last');

-- scenario triggers: triggers of every kind and state, which must not fire in a restore and be there after it
CREATE TABLE t (id int PRIMARY KEY, v text, touched int DEFAULT 0); CREATE TABLE log (id serial PRIMARY KEY, what text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO triggers.log (what) VALUES (TG_NAME || ' ' || TG_OP); RETURN NULL; END $$;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.touched := coalesce(NEW.touched, 0) + 1; RETURN NEW; END $$;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.v = 'refuse' THEN RETURN NULL; END IF; RETURN NEW; END $$;
CREATE TRIGGER a_touch BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TRIGGER b_touch BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION touch(); ALTER TABLE t ENABLE ALWAYS TRIGGER b_touch;
CREATE TRIGGER c_replica BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION touch(); ALTER TABLE t ENABLE REPLICA TRIGGER c_replica;
CREATE TRIGGER d_off BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION touch(); ALTER TABLE t DISABLE TRIGGER d_off;
CREATE TRIGGER e_refuse BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION refuse(); ALTER TABLE t ENABLE ALWAYS TRIGGER e_refuse;
CREATE TRIGGER f_note AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note(); ALTER TABLE t ENABLE ALWAYS TRIGGER f_note;
CREATE TRIGGER g_note AFTER TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION note(); ALTER TABLE t ENABLE ALWAYS TRIGGER g_note;
CREATE CONSTRAINT TRIGGER h_note AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note();
CREATE VIEW seen AS SELECT id, v FROM t; CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO triggers.t VALUES (NEW.id, NEW.v); RETURN NEW; END $$;
CREATE TRIGGER i_instead INSTEAD OF INSERT ON seen FOR EACH ROW EXECUTE FUNCTION instead();
CREATE TABLE ddl (id serial PRIMARY KEY, tag text);
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO triggers.ddl (tag) VALUES (tg_tag); END $$;
INSERT INTO t SELECT g, 'base' FROM generate_series(1, 5) g;
CREATE EVENT TRIGGER note_ddl ON ddl_command_end EXECUTE FUNCTION on_ddl(); CREATE EVENT TRIGGER note_drop ON sql_drop EXECUTE FUNCTION on_ddl();
ALTER EVENT TRIGGER note_ddl ENABLE ALWAYS;
-- step
INSERT INTO t VALUES (10, 'x'), (11, 'refuse'); INSERT INTO seen VALUES (12, 'by view'); UPDATE t SET v = 'y' WHERE id < 3;
-- step
DELETE FROM t WHERE id = 4; UPDATE t SET v = 'refuse' WHERE id = 5;

BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, 'after'); COMMIT;
-- step
UPDATE t SET v = 'last';

-- scenario rules: rewrite rules of every state
CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE log (id int, v text); CREATE TABLE keep (id int PRIMARY KEY, v text);
INSERT INTO t SELECT g, 'base' FROM generate_series(1, 5) g; INSERT INTO keep VALUES (1, 'keep');
CREATE RULE also AS ON INSERT TO t DO ALSO INSERT INTO log VALUES (NEW.id, NEW.v); CREATE RULE never AS ON DELETE TO keep DO INSTEAD NOTHING;
CREATE RULE always AS ON UPDATE TO t DO ALSO INSERT INTO log VALUES (OLD.id, NEW.v); ALTER TABLE t ENABLE ALWAYS RULE always;
CREATE RULE off AS ON UPDATE TO keep DO INSTEAD NOTHING; ALTER TABLE keep DISABLE RULE off;
-- step
INSERT INTO t VALUES (10, 'x'); UPDATE t SET v = 'y' WHERE id < 3; DELETE FROM keep; UPDATE keep SET v = 'kept';
-- step
INSERT INTO t SELECT g, 'more' FROM generate_series(20, 25) g; DELETE FROM t WHERE id = 1;
-- step
UPDATE t SET v = 'z'; INSERT INTO keep VALUES (2, 'two');

-- scenario row_security: policies, also forced on the owner
CREATE TABLE t (id int PRIMARY KEY, who text); ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY;
CREATE POLICY none ON t USING (false); CREATE TABLE u (id serial PRIMARY KEY, who text); ALTER TABLE u ENABLE ROW LEVEL SECURITY;
INSERT INTO t SELECT g, 'x' FROM generate_series(1, 5) g; INSERT INTO u (who) SELECT 'x' FROM generate_series(1, 5) g;
CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t;
-- step
UPDATE t SET who = 'y' WHERE id < 3; INSERT INTO u (who) VALUES ('y');
-- step
DELETE FROM t WHERE id = 5; UPDATE u SET who = 'z';
-- step
INSERT INTO t VALUES (9, 'nine'); INSERT INTO u (who) VALUES ('nine');

-- scenario inheritance: parents with rows of their own, children with more columns, ONLY
CREATE TABLE p (id int PRIMARY KEY, v text); CREATE TABLE c (extra text, PRIMARY KEY (id)) INHERITS (p); CREATE TABLE o (o int);
CREATE TABLE g (id int, deep text, PRIMARY KEY (id)) INHERITS (c, o); CREATE TABLE late (id int, v text, more int, PRIMARY KEY (id)); ALTER TABLE late INHERIT p;
INSERT INTO p SELECT x, 'p' FROM generate_series(1, 5) x; INSERT INTO c SELECT x, 'c', 'e' FROM generate_series(1, 5) x;
INSERT INTO g (id, v, deep, o) SELECT x, 'g', 'd', x FROM generate_series(1, 5) x; INSERT INTO late SELECT x, 'l', 0 FROM generate_series(1, 5) x;
-- step
UPDATE p SET v = v || '!' WHERE id < 3; UPDATE ONLY p SET v = 'only' WHERE id = 1; DELETE FROM c WHERE id = 4;
-- step
TRUNCATE ONLY p; INSERT INTO p VALUES (1, 'anew'); UPDATE g SET deep = NULL, id = id + 100;

DELETE FROM p WHERE id = 5;
-- step
UPDATE p SET id = id + 10; TRUNCATE c;

INSERT INTO c VALUES (1, 'after', NULL);
