//! Changes of the tables themselves, such that whatever else is written goes on as before.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::Schema;

/// Columns that an application adds. The rows there are get the value without being written anew, but for
/// the volatile one.
const ADDED: [&str; 9] = [
    "int DEFAULT 7",
    "text",
    r"text DEFAULT E'a\tb\\N'",
    "timestamptz DEFAULT now()",
    "float8 DEFAULT random()",
    "varchar(5) NOT NULL DEFAULT 'x'",
    "numeric(9,2) DEFAULT -0.10",
    "text[] DEFAULT ARRAY[E'a,\"\\\\', NULL, '']",
    "bytea DEFAULT '\\x00ff'",
];

/// A command on the first `most` columns that a table got by migrations; it names a column, and a name to come.
fn each_added(table: &str, command: &str, most: u32) -> String {
    let table = table.replace('\'', "''");
    let in_format = table.replace('%', "%%");
    format!(
        "DO $$ DECLARE one text; BEGIN
           FOR one IN SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0
               AND NOT attisdropped AND attinhcount = 0 AND attname ~ '^m[0-9]+_' ORDER BY attnum LIMIT {most}
           LOOP EXECUTE format('ALTER TABLE {in_format} {command}', one, one || '_'); END LOOP;
         END $$"
    )
}

/// A command that goes on from another, which may have been in vain: somebody may have held the table.
fn if_there(command: &str) -> String {
    format!(
        "DO $there$ BEGIN EXECUTE $command${command}$command$;
         EXCEPTION WHEN undefined_column OR undefined_object OR undefined_table THEN NULL; END $there$"
    )
}

/// Tables that migrations have made, with a row more.
const MADE_RENAMED: &str = "DO $$ DECLARE one text; BEGIN
      FOR one IN SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
          AND relname ~ '^m[0-9]+_'
      LOOP EXECUTE format('INSERT INTO public.%1$I DEFAULT VALUES; ALTER TABLE public.%1$I RENAME TO %2$I', one, one || '_');
      END LOOP;
    END $$";

impl Schema {
    /// One to four statements, each for itself. `number` tells migrations apart.
    pub(crate) fn migration(&self, number: u32, rng: &mut ChaCha8Rng) -> Vec<String> {
        let steps = rng.random_range(1..5);
        let steps = (0..steps).flat_map(|step| {
            let commands = self.step(&format!("m{number}_{step}"), rng);
            let commands = commands.into_iter().enumerate();
            commands.map(|(at, command)| match at {
                0 => command,
                _ => if_there(&command),
            })
        });
        steps.collect()
    }

    fn step(&self, name: &str, rng: &mut ChaCha8Rng) -> Vec<String> {
        let table = self
            .tables
            .choose(rng)
            .map_or("public.marks", |table| table.name.as_str());
        let kind = ADDED.choose(rng).copied().unwrap_or("int");
        let add = format!("ALTER TABLE {table} ADD {name} {kind}");
        let each = |command: &str, most: u32| each_added(table, command, most);
        match rng.random_range(0..20) {
            0..4 => vec![add],
            4 => vec![
                add,
                format!("UPDATE {table} SET {name} = DEFAULT"),
                format!("ALTER TABLE {table} RENAME {name} TO {name}_other"),
                format!("ALTER TABLE {table} ALTER {name}_other DROP DEFAULT"),
            ],
            5 => vec![add, format!("ALTER TABLE {table} DROP {name}")],
            6 => vec![
                format!("ALTER TABLE {table} ADD {name} int DEFAULT 3"),
                format!("ALTER TABLE {table} ALTER {name} TYPE bigint USING {name} * 2"),
            ],
            7 => {
                let (schema, own) = table.split_at(table.find("\".").map_or(7, |at| at + 2));
                vec![format!(
                    "ALTER TABLE {table} RENAME TO {name}; DELETE FROM {schema}{name} WHERE false;
                     ALTER TABLE {schema}{name} RENAME TO {own}"
                )]
            }
            8 => vec![
                format!("ALTER TABLE {table} ADD CONSTRAINT {name} CHECK (true)"),
                format!("CREATE UNIQUE INDEX {name}_index ON public.marks (id)"),
            ],
            9 => vec![format!("VACUUM FULL {table}")],
            10 => vec![
                format!("CREATE TABLE public.{name} (id serial PRIMARY KEY, v text)"),
                format!("INSERT INTO public.{name} (v) VALUES ('x'), (NULL)"),
            ],
            11 => vec![each("RENAME %1$I TO %2$I", 9), add],
            12 => vec![each("DROP %1$I", 1), add],
            13 => vec![each("DROP %1$I", 1), each("RENAME %1$I TO %2$I", 9)],
            14 => vec![each("DROP %1$I", 9)],
            15 => vec![
                format!("ALTER TABLE {table} ADD {name} text"),
                format!("ALTER TABLE {table} ALTER {name} SET DEFAULT 'there'"),
                format!("UPDATE {table} SET {name} = DEFAULT WHERE {name} IS NULL"),
                format!("ALTER TABLE {table} ALTER {name} SET NOT NULL"),
            ],
            16 => vec![
                format!("ALTER TABLE {table} ADD {name} int DEFAULT 1"),
                format!("ALTER TABLE {table} ALTER {name} SET DEFAULT 2"),
                format!("UPDATE {table} SET {name} = DEFAULT WHERE {name} = 1"),
                format!("ALTER TABLE {table} ADD CHECK ({name} > 1)"),
            ],
            17 => vec![
                format!(
                    "CREATE TYPE public.{name}_kind AS ENUM ('a', 'b');
                     ALTER TABLE {table} ADD {name} public.{name}_kind DEFAULT 'a'"
                ),
                format!("ALTER TYPE public.{name}_kind ADD VALUE 'c' BEFORE 'b'"),
                format!("ALTER TABLE {table} ALTER {name} SET DEFAULT 'c'"),
            ],
            18 => vec![
                MADE_RENAMED.to_owned(),
                format!("CREATE TABLE public.{name} (id serial PRIMARY KEY, v int)"),
            ],
            _ => vec![format!(
                "ALTER TABLE public.marks ADD {name} {kind}; INSERT INTO public.marks (what) VALUES ('{name}')"
            )],
        }
    }
}
