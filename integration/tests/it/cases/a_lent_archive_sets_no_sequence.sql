-- A lender's archive of a single table has the state of its sequences as well: they are the newer base's own.
--! case {"seed":0,"source":18,"target":18,"s3":false,"encryption":true,"settings":{"big_table_bytes":8192,"segment_seconds":1,"idle_seconds":1}}
--! session 0
CREATE TABLE public.t (id serial PRIMARY KEY, v text); INSERT INTO public.t (v) SELECT md5(n::text) FROM generate_series(1, 900) n
--! register
--! settle
--! session 1
SELECT nextval('public.t_id_seq') FROM generate_series(1, 5)
--! session 1
ALTER TABLE public.marks ADD m int
--! rebased
--! moment lsn exclusive
