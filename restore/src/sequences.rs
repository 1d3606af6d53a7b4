//! Sequences: never decoded, so set from samples.
//!
//! A sequence may come back further than it stood, never short of it: the further of the last sample
//! before the target and the first one at or after it. Where they cannot tell (none is after, or
//! somebody set the sequence back between), the columns it fills decide as well. They are read while no
//! row security is enabled yet: forced on the restoring role, it would hide rows.

use std::collections::HashSet;

use lastgood_proto::manifest::BaseManifest;
use lastgood_proto::segment::{Record, SequenceSample};
use lastgood_proto::{Lsn, Oid};
use tokio_postgres::Client;

use crate::Error;
use crate::sql::{literal, qualified, quoted};

/// Samples seen while reading: the last one before the target and the first one at or after it.
///
/// Either alone may be wrong by a `setval` or a TRUNCATE … RESTART IDENTITY between it and the
/// target; both together are only short of what was used and discarded in between.
#[derive(Debug, Clone)]
pub(crate) struct Samples {
    wanted: Lsn,
    before: Option<(Lsn, Vec<SequenceSample>)>,
    after: Option<(Lsn, Vec<SequenceSample>)>,
    /// As of bases at or before the target, for where no sample is.
    pub(crate) floor: Vec<SequenceSample>,
    /// Everything up to the position of `after` was read.
    reached: bool,
    /// Tables whose sequences a TRUNCATE has set back between the two: the later one may be past the
    /// earlier one again and still short of where they stood.
    restarted: HashSet<Oid>,
}

impl Samples {
    pub(crate) fn new(wanted: Lsn) -> Self {
        Self {
            wanted,
            before: None,
            after: None,
            floor: Vec::new(),
            reached: false,
            restarted: HashSet::new(),
        }
    }

    /// Takes from a record what it says of sequences.
    pub(crate) fn look<R>(&mut self, record: &Record<R>) {
        match record {
            Record::Sequences { lsn, samples } => self.see(*lsn, samples.clone()),
            Record::Truncate {
                rels,
                restart_identity: true,
                ..
            } => self.restart(rels),
            _ => {}
        }
    }

    /// TRUNCATE … RESTART IDENTITY of these.
    fn restart(&mut self, tables: &[Oid]) {
        if !self.reached {
            self.restarted.extend(tables);
        }
    }

    /// Samples come in the order of their LSN.
    fn see(&mut self, lsn: Lsn, samples: Vec<SequenceSample>) {
        if lsn < self.wanted {
            self.before = Some((lsn, samples));
            self.restarted.clear();
        } else if self.after.is_none() {
            self.after = Some((lsn, samples));
        }
    }

    /// A segment was read to its end. It may hold a sample of a position that lies beyond: what came
    /// between the two is still to be read.
    pub(crate) fn read_to(&mut self, end: Lsn) {
        self.reached |= self.after.as_ref().is_some_and(|(lsn, _)| *lsn <= end);
    }

    /// One at or after the target was seen, and what came before it: nothing more is needed.
    pub(crate) const fn found(&self) -> bool {
        self.reached
    }

    /// One sequence was seen at or after the target. One that the capturing role may not read never is.
    fn seen_after(&self, schema: &str, name: &str) -> bool {
        let mut after = self.after.iter().flat_map(|(_, samples)| samples);
        after.any(|sample| sample.schema == schema && sample.name == name)
    }

    /// At a look after the target it was there no longer.
    fn is_gone_after(&self, schema: &str, name: &str) -> bool {
        self.after.is_some() && !self.seen_after(schema, name)
    }

    /// What is known of one sequence, as of `base` or later.
    fn of<'a>(
        &'a self,
        base: Lsn,
        schema: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = &'a SequenceSample> {
        // A sample older than the base says less than what the base restored.
        let fresh = [&self.before, &self.after].into_iter().flatten();
        let fresh = fresh.filter(move |(lsn, _)| *lsn >= base);
        let has_before = self.before.as_ref().is_some_and(|(lsn, _)| *lsn >= base);
        let floor = self.floor.iter().filter(move |_| !has_before);
        fresh
            .flat_map(|(_, samples)| samples)
            .chain(floor)
            .filter(move |sample| sample.schema == schema && sample.name == name)
    }
}

const SEQUENCES: &str = "
SELECT n.nspname::text, c.relname::text, s.seqincrement < 0, s.seqcycle, s.seqmin, s.seqmax, c.oid
FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relpersistence <> 't'";

/// Columns that a sequence fills, by ownership or by their default, as far as they are numbers.
const USERS: &str = "
SELECT DISTINCT tn.nspname::text, t.relname::text, a.attname::text, t.relkind = 'p'
FROM (SELECT d.refobjid AS rel, d.refobjsubid AS num FROM pg_depend d
      WHERE d.classid = 'pg_class'::regclass AND d.objid = $1
        AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
      UNION
      SELECT f.adrelid, f.adnum FROM pg_depend d JOIN pg_attrdef f ON f.oid = d.objid
      WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
        AND d.refobjid = $1) used
JOIN pg_class t ON t.oid = used.rel AND t.relkind IN ('r', 'p')
JOIN pg_namespace tn ON tn.oid = t.relnamespace
JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = used.num
WHERE a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype)";

/// Sets every sequence of the target that was sampled; answers how many, and what is not sure to be far enough.
/// Samples from before `since` say less than what is there already.
pub(crate) async fn set(
    client: &Client,
    samples: &Samples,
    manifest: &BaseManifest,
    since: Lsn,
) -> Result<(u64, Vec<String>), Error> {
    let mut count = 0;
    let mut unsure = Vec::new();
    let restarted = manifest.tables.iter();
    let restarted = restarted.filter(|table| samples.restarted.contains(&table.oid));
    let restarted: HashSet<(&str, &str)> = restarted
        .map(|table| (table.schema.as_str(), table.name.as_str()))
        .collect();
    for row in client.query(SEQUENCES, &[]).await? {
        let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let (descending, cycles): (bool, bool) = (row.try_get(2)?, row.try_get(3)?);
        let known = samples.of(since, &schema, &name);
        let sequence = qualified(&schema, &name);
        let choice = choose(known, descending, cycles);
        if let Some((value, is_called)) = choice.value {
            let sql = format!(
                "SELECT setval({}::regclass, {value}, {is_called})",
                literal(&sequence)
            );
            client.batch_execute(&sql).await?;
            count += 1;
        }
        // What it has filled in may be further than any sample says.
        let is_sure = samples.found() && samples.seen_after(&schema, &name) && !choice.went_back;
        if cycles || is_sure && restarted.is_empty() {
            continue;
        }
        let (least, most): (i64, i64) = (row.try_get(4)?, row.try_get(5)?);
        let users = client.query(USERS, &[&row.try_get::<_, u32>(6)?]).await?;
        let users: Vec<(String, String, String, bool)> = users
            .iter()
            .map(|user| {
                Ok((
                    user.try_get(0)?,
                    user.try_get(1)?,
                    user.try_get(2)?,
                    user.try_get(3)?,
                ))
            })
            .collect::<Result<_, tokio_postgres::Error>>()?;
        // Of a partitioned table only the partitions are named.
        let may_be_restarted = users.iter().any(|(schema, table, _, is_partitioned)| {
            *is_partitioned || restarted.contains(&(schema.as_str(), table.as_str()))
        });
        if is_sure && !may_be_restarted {
            continue;
        }
        // Dropped or renamed right after the target; no column tells how far it was.
        let mut sampled = manifest.sequences.iter();
        let is_sampled =
            sampled.any(|it| it.schema == schema && it.name == name && it.last_value.is_some());
        if is_sampled && samples.is_gone_after(&schema, &name) && users.is_empty() {
            unsure.push(format!(
                "sequence {sequence} is as it was sampled last before the target: it was dropped or renamed soon after, and may \
                 have given out more by then"
            ));
        }
        for (schema, table, column, _) in users {
            let (extreme, beyond) = match descending {
                true => ("min", "<"),
                false => ("max", ">"),
            };
            // Setting it to where it is already would only mark it as called. A value that somebody
            // put in by hand may lie where the sequence never comes.
            let sql = format!(
                "SELECT setval({}::regclass, used.value::bigint) FROM {sequence} s,
                        (SELECT {extreme}({})::numeric AS value FROM {}) used
                  WHERE used.value BETWEEN {least} AND {most}
                    AND (used.value {beyond} s.last_value
                         OR used.value = s.last_value AND NOT s.is_called)",
                literal(&sequence),
                quoted(&column),
                qualified(&schema, &table)
            );
            client.batch_execute(&sql).await?;
        }
    }
    Ok((count, unsure))
}

/// What the samples of one sequence say together.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    value: Option<(i64, bool)>,
    /// It stood further before the target than after it: somebody set it back.
    went_back: bool,
}

/// The further of the samples; of one that cycles, where further means nothing, the last.
fn choose<'a>(
    samples: impl Iterator<Item = &'a SequenceSample>,
    descending: bool,
    cycles: bool,
) -> Choice {
    let mut choice = Choice {
        value: None,
        went_back: false,
    };
    for sample in samples {
        let Ok(value) = sample.last_value.parse::<i64>() else {
            continue;
        };
        let further = choice
            .value
            .is_none_or(|(before, called)| match descending {
                true => (value, called) <= (before, sample.is_called),
                false => (before, called) <= (value, sample.is_called),
            });
        if further || cycles {
            choice.value = Some((value, sample.is_called));
        }
        choice.went_back |= !further;
    }
    choice
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(value: i64, is_called: bool) -> SequenceSample {
        SequenceSample {
            schema: "public".to_owned(),
            name: "s".to_owned(),
            last_value: value.to_string(),
            is_called,
        }
    }

    #[test]
    fn the_further_sample_counts() {
        let check = |samples: &[(i64, bool)], descending, cycles, value, went_back| {
            let samples: Vec<_> = samples
                .iter()
                .map(|(at, called)| sample(*at, *called))
                .collect();
            let choice = choose(samples.iter(), descending, cycles);
            assert_eq!(choice, Choice { value, went_back }, "{samples:?}");
        };
        check(&[], false, false, None, false);
        check(
            &[(5, true), (9, true)],
            false,
            false,
            Some((9, true)),
            false,
        );
        check(
            &[(5, false), (5, true)],
            false,
            false,
            Some((5, true)),
            false,
        );
        check(
            &[(-5, true), (-9, true)],
            true,
            false,
            Some((-9, true)),
            false,
        );
        check(
            &[(-5, false), (-5, true)],
            true,
            false,
            Some((-5, true)),
            false,
        );
        // TRUNCATE … RESTART IDENTITY came after the target.
        check(
            &[(1000, true), (2, true)],
            false,
            false,
            Some((1000, true)),
            true,
        );
        check(&[(98, true), (3, true)], false, true, Some((3, true)), true);
    }

    #[test]
    fn a_restart_counts_between_the_samples_only() {
        let (table, other) = (Oid::new(1), Oid::new(2));
        let mut samples = Samples::new(Lsn::new(50));
        samples.restart(&[other]);
        samples.see(Lsn::new(10), vec![sample(900, true)]);
        assert!(samples.restarted.is_empty());
        samples.restart(&[table]);
        samples.see(Lsn::new(60), vec![sample(920, true)]);
        samples.read_to(Lsn::new(60));
        samples.restart(&[other]);
        assert_eq!(samples.restarted, HashSet::from([table]));
    }

    #[test]
    fn a_restart_counts_up_to_the_place_of_a_sample_that_was_written_ahead() {
        let (table, other) = (Oid::new(1), Oid::new(2));
        let mut samples = Samples::new(Lsn::new(50));
        samples.see(Lsn::new(10), vec![sample(900, true)]);
        samples.see(Lsn::new(60), vec![sample(920, true)]);
        samples.read_to(Lsn::new(55));
        assert!(!samples.found(), "a restart may be between 55 and 60");
        samples.restart(&[table]);
        samples.see(Lsn::new(60), vec![sample(920, true)]);
        samples.read_to(Lsn::new(70));
        assert!(samples.found());
        samples.restart(&[other]);
        assert_eq!(samples.restarted, HashSet::from([table]));
    }

    #[test]
    fn a_sample_before_the_base_says_nothing() {
        let mut samples = Samples::new(Lsn::new(50));
        samples.see(Lsn::new(10), vec![sample(1, true)]);
        assert_eq!(samples.of(Lsn::new(20), "public", "s").count(), 0);
        samples.see(Lsn::new(30), vec![sample(2, true)]);
        assert!(!samples.found());
        samples.see(Lsn::new(60), vec![sample(3, true)]);
        samples.see(Lsn::new(70), vec![sample(4, true)]);
        samples.read_to(Lsn::new(70));
        assert!(samples.found());
        let values: Vec<_> = samples
            .of(Lsn::new(20), "public", "s")
            .map(|sample| sample.last_value.as_str())
            .collect();
        assert_eq!(values, ["2", "3"]);
    }
}
