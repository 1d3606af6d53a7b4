//! Tables that are awkward in a way of their own, and what is done to them: beside the random ones,
//! every history has some of these.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::value;

/// Tables that belong together.
#[derive(Debug)]
pub(super) struct Special {
    /// The first major that has what it needs.
    since: u32,
    pub(super) create: &'static str,
    /// Each is said as one message. `{a}` to `{d}` are small numbers, `{t}` is a text literal,
    /// `{when}` a date literal, `{big}` a value out of line.
    changes: &'static [&'static str],
}

impl Special {
    /// Some of those that this major has.
    pub(super) fn some(major: u32, rng: &mut ChaCha8Rng) -> Vec<&'static Self> {
        ALL.iter()
            .filter(|special| special.since <= major && rng.random_bool(0.5))
            .collect()
    }

    pub(super) fn change(&self, major: u32, rng: &mut ChaCha8Rng) -> String {
        let mut change = self.changes[rng.random_range(0..self.changes.len())];
        if change.starts_with("MERGE") && major < 15 {
            change = self.changes[0];
        }
        let mut filled = String::new();
        let mut rest = change;
        while let Some((before, (name, after))) = rest
            .split_once('{')
            .and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
        {
            filled += before;
            filled += &match name {
                "a" | "b" | "c" | "d" => rng.random_range(0..40).to_string(),
                "t" => value::literal("text", rng),
                "big" => value::toast(rng),
                "when" => format!("'{}-06-01'::date", rng.random_range(2017..2029)),
                // Braces of the statement itself.
                other => format!("{{{other}}}"),
            };
            rest = after;
        }
        filled + rest
    }
}

const ALL: &[Special] = &[
    // Unique values and keys that change places, checked at once or at the end.
    Special {
        since: 13,
        create: "CREATE TABLE public.swaps (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED,
            w int UNIQUE, v text)",
        changes: &[
            "INSERT INTO public.swaps VALUES ({a}, {b}, {c}, {t}) ON CONFLICT (id) DO NOTHING",
            "INSERT INTO public.swaps VALUES ({a}, {b}, {c}, {t}), ({d}, {a}, {b}, {t})
             ON CONFLICT (id) DO UPDATE SET v = excluded.v, u = excluded.u",
            "UPDATE public.swaps SET u = (SELECT min(u) + max(u) FROM public.swaps) - u",
            "UPDATE public.swaps SET u = {a} + {b} - u WHERE u IN ({a}, {b})",
            "UPDATE public.swaps SET u = u + 1",
            "UPDATE public.swaps SET id = -1000 WHERE id = (SELECT min(id) FROM public.swaps WHERE id >= 0);
             UPDATE public.swaps SET id = (SELECT min(id) FROM public.swaps WHERE id >= 0) - 1 WHERE id = (SELECT max(id) FROM public.swaps);
             UPDATE public.swaps SET id = (SELECT max(id) + 1 FROM public.swaps) WHERE id = -1000",
            "UPDATE public.swaps SET w = -w WHERE id % 2 = {a} % 2",
            "UPDATE public.swaps SET id = -id WHERE id % 3 = {a} % 3",
            "DELETE FROM public.swaps WHERE id = {a}; INSERT INTO public.swaps VALUES ({a}, {b}, {c}, {t})",
            "MERGE INTO public.swaps t USING (VALUES ({a}, {b}), ({c}, {d})) s (id, u) ON t.id = s.id
             WHEN MATCHED AND s.u % 3 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET v = {t}, u = s.u
             WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.u, NULL, {t})",
            "DELETE FROM public.swaps WHERE id % 5 = {a}",
        ],
    },
    // A table that refers to itself, checked at the end, and one that hangs on it.
    Special {
        since: 13,
        create: "CREATE TABLE public.tree (id int PRIMARY KEY,
                parent int REFERENCES public.tree DEFERRABLE INITIALLY DEFERRED, v text);
            CREATE TABLE public.leaves (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                tree int DEFAULT 0 REFERENCES public.tree ON DELETE SET NULL ON UPDATE CASCADE, v text)",
        changes: &[
            "INSERT INTO public.tree VALUES ({a}, {b}, {t}) ON CONFLICT DO NOTHING;
             INSERT INTO public.tree VALUES ({b}, NULL, {t}) ON CONFLICT DO NOTHING",
            "INSERT INTO public.leaves (tree, v) SELECT id, {t} FROM public.tree WHERE id % 4 = {a} % 4",
            "UPDATE public.tree SET parent = {a} WHERE id % 7 = {b} % 7",
            "UPDATE public.tree SET id = id + 100, v = {t} WHERE id = {a}",
            "UPDATE public.tree SET parent = NULL WHERE parent = {a}; DELETE FROM public.tree WHERE id = {a}",
            "DELETE FROM public.leaves WHERE tree IS NULL OR tree = {a}",
            "UPDATE public.leaves SET v = {t} WHERE id % 3 = {a} % 3",
            "TRUNCATE public.leaves",
            "TRUNCATE public.tree, public.leaves",
        ],
    },
    // Inheritance: two tables, two keys, one name for both.
    Special {
        since: 13,
        create: "CREATE TABLE public.animal (id int PRIMARY KEY, name text);
            CREATE TABLE public.dog (bark int, PRIMARY KEY (id)) INHERITS (public.animal)",
        changes: &[
            "INSERT INTO public.animal VALUES ({a}, {t}) ON CONFLICT DO NOTHING",
            "INSERT INTO public.dog VALUES ({a}, {t}, {b}) ON CONFLICT DO NOTHING",
            "UPDATE public.animal SET name = {t} WHERE id % 4 = {a} % 4",
            "UPDATE ONLY public.animal SET id = id + 50 WHERE id = {a}",
            "DELETE FROM public.animal WHERE id = {a}",
            "DELETE FROM ONLY public.animal WHERE id % 5 = {a} % 5",
            "TRUNCATE ONLY public.animal",
            "TRUNCATE public.animal",
        ],
    },
    // Partitions of partitions, one attached with its columns in another order, rows that move.
    Special {
        since: 13,
        create: "CREATE TABLE public.events (id int, at date, what text, big text, PRIMARY KEY (id, at))
                PARTITION BY RANGE (at);
            CREATE TABLE public.events_old PARTITION OF public.events FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
            CREATE TABLE public.\"Ereignisse, früh\" (gone int, what text, at date NOT NULL, big text, id int NOT NULL);
            ALTER TABLE public.\"Ereignisse, früh\" DROP COLUMN gone;
            ALTER TABLE public.events ATTACH PARTITION public.\"Ereignisse, früh\"
                FOR VALUES FROM ('2020-01-01') TO ('2025-01-01');
            CREATE TABLE public.events_late PARTITION OF public.events
                FOR VALUES FROM ('2025-01-01') TO (MAXVALUE) PARTITION BY HASH (id);
            CREATE TABLE public.events_late_0 PARTITION OF public.events_late FOR VALUES WITH (MODULUS 2, REMAINDER 0);
            CREATE TABLE public.events_late_1 PARTITION OF public.events_late FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        changes: &[
            "INSERT INTO public.events VALUES ({a}, {when}, {t}, {big}), ({b}, {when}, {t}, {big}) ON CONFLICT DO NOTHING",
            "INSERT INTO public.events VALUES ({a}, {when}, {t}) ON CONFLICT (id, at) DO UPDATE SET what = excluded.what",
            "UPDATE public.events SET at = {when} WHERE id = {a}",
            "UPDATE public.events SET at = at + 900, what = {t} WHERE id % 5 = {a} % 5",
            "UPDATE public.events SET id = id + 41 WHERE id = {a}",
            "UPDATE public.\"Ereignisse, früh\" SET what = {t}",
            "DELETE FROM public.events WHERE id % 6 = {a} % 6",
            "TRUNCATE public.events_old",
            "TRUNCATE public.events_late",
            "TRUNCATE public.events",
            "MERGE INTO public.events t USING (VALUES ({a}, {when})) s (id, at) ON t.id = s.id
             WHEN MATCHED THEN UPDATE SET at = s.at WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.at, {t})",
        ],
    },
    // Generated columns, with and without a key.
    Special {
        since: 13,
        create: "CREATE TABLE public.gen (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int,
                doubled int GENERATED ALWAYS AS (a * 2) STORED, label text GENERATED ALWAYS AS ('x' || a::text) STORED);
            CREATE TABLE public.gen_full (a int, doubled int GENERATED ALWAYS AS (a * 2) STORED, v text);
            ALTER TABLE public.gen_full REPLICA IDENTITY FULL",
        changes: &[
            "INSERT INTO public.gen (a) VALUES ({a}), (NULL), ({b})",
            "INSERT INTO public.gen (id, a) OVERRIDING SYSTEM VALUE VALUES (-{a}, {b}) ON CONFLICT DO NOTHING",
            "UPDATE public.gen SET a = {a} WHERE id % 3 = {b} % 3",
            "DELETE FROM public.gen WHERE a = {a}",
            "INSERT INTO public.gen_full (a, v) VALUES ({a}, {t}), ({a}, {t})",
            "INSERT INTO public.gen_full (a, v) SELECT a, v FROM public.gen_full LIMIT 3",
            "UPDATE public.gen_full SET a = a + 1 WHERE ctid IN (SELECT ctid FROM public.gen_full OFFSET {a} / 4 LIMIT 2)",
            "DELETE FROM public.gen_full WHERE ctid IN (SELECT ctid FROM public.gen_full OFFSET {a} / 4 LIMIT 1)",
        ],
    },
    Special {
        since: 18,
        create: "CREATE TABLE public.virtually (id int PRIMARY KEY, a int, next int GENERATED ALWAYS AS (a + 1) VIRTUAL)",
        changes: &[
            "INSERT INTO public.virtually (id, a) VALUES ({a}, {b}) ON CONFLICT DO NOTHING",
            "UPDATE public.virtually SET a = a + 1, id = id + 40 WHERE id = {a}",
            "DELETE FROM public.virtually WHERE id = {a}",
        ],
    },
    // Sequences that go down, go round, are shared, are cached.
    Special {
        since: 13,
        create: "CREATE SEQUENCE public.down INCREMENT -3 START 100 MINVALUE -1000000 MAXVALUE 100;
            CREATE SEQUENCE public.round MINVALUE 1 MAXVALUE 5 CYCLE;
            CREATE SEQUENCE public.\"geteilt, für alle\" CACHE 10;
            CREATE TABLE public.downs (id int PRIMARY KEY DEFAULT nextval('public.down'), v text);
            ALTER SEQUENCE public.down OWNED BY public.downs.id;
            CREATE TABLE public.share_a (id bigint PRIMARY KEY DEFAULT nextval('public.\"geteilt, für alle\"'), v int);
            CREATE TABLE public.share_b (id bigint PRIMARY KEY DEFAULT nextval('public.\"geteilt, für alle\"'),
                turn int DEFAULT nextval('public.round'))",
        changes: &[
            "INSERT INTO public.downs (v) VALUES ({t}), ({t})",
            "INSERT INTO public.share_a (v) VALUES ({a})",
            "INSERT INTO public.share_b DEFAULT VALUES",
            "SELECT nextval('public.down') FROM generate_series(1, {a})",
            "SELECT nextval('public.\"geteilt, für alle\"'), nextval('public.round')",
            "SELECT setval('public.\"geteilt, für alle\"', (SELECT last_value FROM public.\"geteilt, für alle\") + {a})",
            "DELETE FROM public.downs WHERE v = {t}; DELETE FROM public.share_a WHERE v = {a}",
            "UPDATE public.share_a SET id = DEFAULT WHERE v = {a}",
        ],
    },
    // Triggers, a rule and policies that a restore must neither fire nor be stopped by.
    Special {
        since: 13,
        create: "CREATE TABLE public.watched (id int PRIMARY KEY, v text, version int);
            CREATE TABLE public.watched_log (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, what text);
            CREATE FUNCTION public.count_version() RETURNS trigger LANGUAGE plpgsql AS
                $$BEGIN NEW.version := coalesce(NEW.version, 0) + 1; RETURN NEW; END$$;
            CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$BEGIN RAISE 'not in a replica'; END$$;
            CREATE TRIGGER version BEFORE INSERT OR UPDATE ON public.watched FOR EACH ROW EXECUTE FUNCTION public.count_version();
            ALTER TABLE public.watched ENABLE ALWAYS TRIGGER version;
            CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON public.watched FOR EACH ROW EXECUTE FUNCTION public.refuse();
            ALTER TABLE public.watched ENABLE REPLICA TRIGGER refuse;
            CREATE RULE keep AS ON DELETE TO public.watched DO ALSO INSERT INTO public.watched_log (what) VALUES (OLD.v);
            ALTER TABLE public.watched ENABLE ROW LEVEL SECURITY;
            ALTER TABLE public.watched FORCE ROW LEVEL SECURITY;
            CREATE POLICY nobody ON public.watched USING (false);
            CREATE VIEW public.watched_view AS SELECT id, v FROM public.watched;
            CREATE MATERIALIZED VIEW public.watched_count AS SELECT count(*) AS n FROM public.watched_log",
        changes: &[
            "INSERT INTO public.watched (id, v) VALUES ({a}, {t}) ON CONFLICT DO NOTHING",
            "UPDATE public.watched SET v = {t} WHERE id % 4 = {a} % 4",
            "UPDATE public.watched_view SET id = id + 40 WHERE id = {a}",
            "DELETE FROM public.watched WHERE id = {a}",
            "UPDATE public.watched_log SET what = {t} WHERE id % 5 = {a} % 5",
        ],
    },
    // Values out of line that chains of updates leave alone, under every identity.
    Special {
        since: 13,
        create: "CREATE TABLE public.toasts (id int PRIMARY KEY, big text, n int, other text);
            ALTER TABLE public.toasts ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
            CREATE TABLE public.toasts_full (big text, n int, other text);
            ALTER TABLE public.toasts_full REPLICA IDENTITY FULL;
            ALTER TABLE public.toasts_full ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL",
        changes: &[
            "INSERT INTO public.toasts VALUES ({a}, {big}, {b}, {big}) ON CONFLICT (id) DO UPDATE SET n = excluded.n",
            "UPDATE public.toasts SET n = n + 1",
            "UPDATE public.toasts SET n = n + 1 WHERE id % 3 = {a} % 3; UPDATE public.toasts SET n = n * 2 WHERE id % 3 = {a} % 3",
            "UPDATE public.toasts SET id = id + 40 WHERE id = {a}",
            "UPDATE public.toasts SET other = {big} WHERE id % 4 = {a} % 4",
            "UPDATE public.toasts SET big = other, other = big WHERE id = {a}",
            "DELETE FROM public.toasts WHERE id = {a}; INSERT INTO public.toasts VALUES ({a}, {big}, 0, NULL)",
            "INSERT INTO public.toasts_full VALUES ({big}, {b}, {big})",
            "INSERT INTO public.toasts_full SELECT * FROM public.toasts_full LIMIT 2",
            "UPDATE public.toasts_full SET n = n + 1 WHERE ctid IN (SELECT ctid FROM public.toasts_full OFFSET {a} / 8 LIMIT 1)",
            "UPDATE public.toasts_full SET other = {big} WHERE ctid IN (SELECT ctid FROM public.toasts_full OFFSET {a} / 8 LIMIT 1)",
            "DELETE FROM public.toasts_full WHERE ctid IN (SELECT ctid FROM public.toasts_full OFFSET {a} / 8 LIMIT 1)",
        ],
    },
    // Values that are equal and yet not the same: told apart by their text only.
    Special {
        since: 13,
        create: "CREATE EXTENSION IF NOT EXISTS citext;
            CREATE TABLE public.twins (n numeric, f float8, c citext, i interval, s char(5), j jsonb);
            ALTER TABLE public.twins REPLICA IDENTITY FULL;
            CREATE TABLE public.twin_keys (n numeric, c citext, v int, PRIMARY KEY (n, c))",
        changes: &[
            "INSERT INTO public.twins SELECT n, f, c, i, 'a', '{\"a\": 1.0}' FROM (VALUES (1.0, '-0'::float8, 'a'::citext, '1 mon'::interval),
             (1.00, '0', 'A', '30 days'), (1, '0', 'A', '720:00')) v (n, f, c, i)",
            "UPDATE public.twins SET n = n + 0.00, j = '{\"a\": 1}' WHERE ctid IN (SELECT ctid FROM public.twins OFFSET {a} / 4 LIMIT 1)",
            "UPDATE public.twins SET f = -f, c = upper(c::text)::citext WHERE ctid IN (SELECT ctid FROM public.twins OFFSET {a} / 4 LIMIT 2)",
            "DELETE FROM public.twins WHERE ctid IN (SELECT ctid FROM public.twins OFFSET {a} / 4 LIMIT 1)",
            "INSERT INTO public.twin_keys VALUES ({a}, 'key', {b}), ({b}, 'other', 0) ON CONFLICT DO NOTHING",
            "UPDATE public.twin_keys SET n = n + 0.0, v = v + 1 WHERE n = {a}",
            "UPDATE public.twin_keys SET c = upper(c::text)::citext WHERE n % 3 = {a} % 3",
            "UPDATE public.twin_keys SET v = v + 1",
            "DELETE FROM public.twin_keys WHERE n = {a} AND c = 'KEY'",
        ],
    },
    // Types that have no equality, or none by default.
    Special {
        since: 13,
        create: "CREATE TABLE public.unequal (j json, p point, l line, s lseg, h path, g polygon, c circle, b box,
                t tsquery, jp jsonpath, x xid, o oidvector);
            ALTER TABLE public.unequal REPLICA IDENTITY FULL",
        changes: &[
            "INSERT INTO public.unequal VALUES ('{\"a\":  1}', '(1,2)', '{1,-1,0}', '[(0,0),(1,1)]', '((0,0),(1,1))',
             '((0,0),(1,1),(1,0))', '<(0,0),1>', '(1,1),(0,0)', 'a & !b', '$.a[*] ? (@ > 1)', '{a}', '1 2 {b}')",
            "INSERT INTO public.unequal (j, p, l) VALUES ('[{a} ]', '(NaN,{b})', '[(0,0),({c},1)]'), (NULL, NULL, NULL)",
            "INSERT INTO public.unequal SELECT * FROM public.unequal LIMIT 3",
            "UPDATE public.unequal SET j = '[ {a}]' WHERE ctid IN (SELECT ctid FROM public.unequal OFFSET {b} / 4 LIMIT 2)",
            "UPDATE public.unequal SET p = NULL, x = '{a}' WHERE ctid IN (SELECT ctid FROM public.unequal OFFSET {b} / 4 LIMIT 1)",
            "DELETE FROM public.unequal WHERE ctid IN (SELECT ctid FROM public.unequal OFFSET {b} / 4 LIMIT 2)",
        ],
    },
    // No usable identity: base-only, or made full, as the settings say.
    Special {
        since: 13,
        create: "CREATE TABLE public.keyless (a int, v text);
            CREATE TABLE public.keyless_by_decree (id int PRIMARY KEY, v text);
            ALTER TABLE public.keyless_by_decree REPLICA IDENTITY NOTHING;
            CREATE TABLE public.keyless_deferred (id int PRIMARY KEY DEFERRABLE, v text);
            CREATE TABLE public.keyless_empty ()",
        changes: &[
            "INSERT INTO public.keyless VALUES ({a}, {t}), ({a}, {t}), ({b}, {t})",
            "UPDATE public.keyless SET v = {t} WHERE ctid IN (SELECT ctid FROM public.keyless OFFSET {a} / 4 LIMIT 2)",
            "DELETE FROM public.keyless WHERE ctid IN (SELECT ctid FROM public.keyless OFFSET {a} / 4 LIMIT 1)",
            "INSERT INTO public.keyless_by_decree VALUES ({a}, {t}) ON CONFLICT DO NOTHING",
            "UPDATE public.keyless_by_decree SET v = {t} WHERE id % 3 = {a} % 3",
            "DELETE FROM public.keyless_by_decree WHERE id = {a}",
            "INSERT INTO public.keyless_deferred SELECT coalesce(max(id), 0) + 1, {t} FROM public.keyless_deferred",
            "UPDATE public.keyless_deferred SET id = id + 1",
            "INSERT INTO public.keyless_empty DEFAULT VALUES",
            "TRUNCATE public.keyless",
        ],
    },
    // Many rows at once, COPY, subtransactions.
    Special {
        since: 13,
        create: "CREATE TABLE public.bulk (id bigint PRIMARY KEY, v text);
            CREATE TABLE public.copied (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text, b int)",
        changes: &[
            "INSERT INTO public.bulk SELECT n, md5(n::text) FROM generate_series({a} * 100, {a} * 100 + 700) n ON CONFLICT DO NOTHING",
            "UPDATE public.bulk SET v = v || 'x' WHERE id % 5 = {a} % 5",
            "DELETE FROM public.bulk WHERE id % 7 = {a} % 7",
            "UPDATE public.bulk SET id = id + 1000000 WHERE id BETWEEN {a} * 100 AND {a} * 100 + 50",
            "DO $$BEGIN FOR n IN 1..{a} LOOP BEGIN
                INSERT INTO public.bulk VALUES (n * {b} + 5000, 'in a subtransaction');
                UPDATE public.bulk SET v = v || n WHERE id = n * {b} + 5000;
                IF n % 3 = 0 THEN RAISE 'back'; END IF;
             EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END$$",
            "COPY public.copied (a, b) FROM PROGRAM 'printf \"zwölf\\t{a}\\n\\\\\\\\N\\t{b}\\n\\t\\\\\\\\N\\n\"'",
            "UPDATE public.copied SET a = NULL WHERE b = {a}",
            "DELETE FROM public.copied WHERE b = {a}",
            "TRUNCATE public.copied",
        ],
    },
];
