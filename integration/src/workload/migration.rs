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

impl Schema {
    /// One to four statements, each for itself. `number` tells migrations apart.
    pub(crate) fn migration(&self, number: u32, rng: &mut ChaCha8Rng) -> Vec<String> {
        let steps = rng.random_range(1..5);
        let steps = (0..steps).flat_map(|step| self.step(&format!("m{number}_{step}"), rng));
        steps.collect()
    }

    fn step(&self, name: &str, rng: &mut ChaCha8Rng) -> Vec<String> {
        let table = self
            .tables
            .choose(rng)
            .map_or("public.marks", |table| table.name.as_str());
        let kind = ADDED.choose(rng).copied().unwrap_or("int");
        let add = format!("ALTER TABLE {table} ADD {name} {kind}");
        match rng.random_range(0..12) {
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
            _ => vec![format!(
                "ALTER TABLE public.marks ADD {name} {kind}; INSERT INTO public.marks (what) VALUES ('{name}')"
            )],
        }
    }
}
