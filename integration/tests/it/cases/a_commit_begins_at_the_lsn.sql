-- Seed 3673060618: where the next record is the commit of an open transaction, it begins exactly at the
-- position that the server gives, and an inclusive LSN keeps it. The harness took the position as an end.
--! case {"seed":3673060618,"source":17,"target":17,"s3":false,"encryption":true,"settings":{"segment_bytes":4096,"segment_seconds":1,"idle_seconds":1}}
--! session 0
CREATE TABLE t (id int PRIMARY KEY)
--! register
--! settle
--! session 1
BEGIN
--! session 1
INSERT INTO t VALUES (1)
--! moment lsn
--! session 1
COMMIT
