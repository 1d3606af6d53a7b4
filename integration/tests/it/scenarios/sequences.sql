-- scenario owned: never decoded; a restore has them where they stood or further
CREATE TABLE a (id serial PRIMARY KEY, v text); CREATE TABLE b (id bigint GENERATED ALWAYS AS IDENTITY (START 1000 INCREMENT 7) PRIMARY KEY, v text); CREATE TABLE c (id smallserial, v text);
INSERT INTO a (v) SELECT 'x' FROM generate_series(1, 5); INSERT INTO b (v) SELECT 'x' FROM generate_series(1, 5); INSERT INTO c (v) VALUES ('x');
-- step
INSERT INTO a (v) SELECT 'y' FROM generate_series(1, 50); INSERT INTO b (v) VALUES ('y');
-- step
BEGIN; INSERT INTO a (v) SELECT 'lost' FROM generate_series(1, 50); ROLLBACK;

INSERT INTO c (v) VALUES ('y');
-- step
DELETE FROM a WHERE id > 3; INSERT INTO b (v) VALUES ('z');

-- scenario kinds: descending, cached, bounded, shared, cycling, never called
CREATE SEQUENCE down INCREMENT -3 START -10 MINVALUE -100000; CREATE SEQUENCE cached CACHE 20; CREATE SEQUENCE small AS smallint MINVALUE 5 MAXVALUE 2000;
CREATE SEQUENCE shared; CREATE TABLE s1 (id int PRIMARY KEY DEFAULT nextval('shared')); CREATE TABLE s2 (id bigint PRIMARY KEY DEFAULT nextval('shared'), v text);
CREATE SEQUENCE wheel MAXVALUE 5 CYCLE; CREATE SEQUENCE untouched START 17; CREATE SEQUENCE placed; SELECT setval('placed', 100, false);
CREATE UNLOGGED TABLE scratch (id serial);
SELECT nextval('down'), nextval('cached'), nextval('small'), nextval('wheel');
-- step
SELECT nextval('down') FROM generate_series(1, 40); SELECT nextval('cached'); INSERT INTO s1 SELECT FROM generate_series(1, 10); INSERT INTO s2 (v) VALUES ('a'), ('b');

SELECT nextval('wheel') FROM generate_series(1, 6);
-- step
SELECT nextval('down'), nextval('small') FROM generate_series(1, 99); INSERT INTO s2 (v) VALUES ('c'); SELECT setval('placed', 300, false);
-- step
SELECT nextval('down'), nextval('cached'), nextval('placed'); INSERT INTO s1 DEFAULT VALUES; SELECT nextval('wheel');

-- scenario set_back: setval backwards; a restore may stand further, as it stood before
CREATE SEQUENCE s; SELECT setval('s', 500); CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 100);
-- step
SELECT setval('s', 5); DELETE FROM t; SELECT setval('t_id_seq', 1, false); INSERT INTO t (v) VALUES ('one');
-- step
SELECT setval('s', 900); INSERT INTO t (v) SELECT 'y' FROM generate_series(1, 20);
-- step
SELECT setval('s', 7), nextval('s'); TRUNCATE t RESTART IDENTITY; INSERT INTO t (v) VALUES ('again');

-- scenario quiet: nothing but nextval: no row says that anything happened
CREATE SEQUENCE orders; CREATE TABLE still (id int PRIMARY KEY);
-- step
SELECT nextval('orders') FROM generate_series(1, 7);
-- step
SELECT nextval('orders') FROM generate_series(1, 77);
-- step
SELECT nextval('orders') FROM generate_series(1, 777);
