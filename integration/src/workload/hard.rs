//! Tables with the hard values of some types, with a key and without one.
//!
//! Every value of every type is another test's matter; here they meet transactions, bases, partial
//! restores and newer servers.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::hard_values::{self, HardType};

/// Columns at the most: a type and its values in each.
const COLUMNS_MAX: usize = 8;

pub(super) struct Hard {
    columns: Vec<HardType>,
}

impl Hard {
    pub(super) fn some(major: u32, rng: &mut ChaCha8Rng) -> Self {
        let mut columns = hard_values::all(major);
        // What these show depends on what else is there, and some tables may not be.
        columns.retain(|hard| !hard.name.starts_with("reg"));
        columns.shuffle(rng);
        columns.truncate(rng.random_range(2..=COLUMNS_MAX));
        Self { columns }
    }

    pub(super) fn statements(&self) -> Vec<String> {
        let extensions = self.columns.iter().filter_map(|hard| hard.extension);
        let mut statements: Vec<String> = extensions
            .map(|extension| format!("CREATE EXTENSION IF NOT EXISTS {extension}"))
            .collect();
        let columns: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(number, hard)| format!("c{number} {}", hard.sql))
            .collect();
        let columns = columns.join(", ");
        statements.push(format!(
            "CREATE TABLE public.hard (id int PRIMARY KEY, {columns});
             CREATE TABLE public.hard_full ({columns});
             ALTER TABLE public.hard_full REPLICA IDENTITY FULL"
        ));
        statements
    }

    pub(super) fn change(&self, rng: &mut ChaCha8Rng) -> String {
        let (a, b) = (rng.random_range(0..40), rng.random_range(0..10));
        let column = rng.random_range(0..self.columns.len());
        let one = format!("ctid IN (SELECT ctid FROM public.hard_full OFFSET {b} LIMIT 1)");
        match rng.random_range(0..8) {
            0 | 1 => {
                let row = self.row(rng);
                format!("INSERT INTO public.hard VALUES ({a}, {row}) ON CONFLICT DO NOTHING")
            }
            2 => {
                let value = self.value(column, rng);
                format!("UPDATE public.hard SET c{column} = {value} WHERE id % 5 = {a} % 5")
            }
            3 => format!("UPDATE public.hard SET id = id + 40 WHERE id = {a}"),
            4 => format!("DELETE FROM public.hard WHERE id % 6 = {a} % 6"),
            5 => format!("INSERT INTO public.hard_full VALUES ({})", self.row(rng)),
            6 => {
                let value = self.value(column, rng);
                format!("UPDATE public.hard_full SET c{column} = {value} WHERE {one}")
            }
            _ => format!("DELETE FROM public.hard_full WHERE {one}"),
        }
    }

    fn row(&self, rng: &mut ChaCha8Rng) -> String {
        let values = (0..self.columns.len()).map(|column| self.value(column, rng));
        values.collect::<Vec<_>>().join(", ")
    }

    fn value(&self, column: usize, rng: &mut ChaCha8Rng) -> String {
        let hard = &self.columns[column];
        match hard.values.choose(rng) {
            Some(value) if !rng.random_ratio(1, 10) => {
                format!("'{}'::{}", value.replace('\'', "''"), hard.sql)
            }
            _ => "NULL".to_owned(),
        }
    }
}
