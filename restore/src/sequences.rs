//! Sequences: never decoded, so set from samples.
//!
//! The first sample taken at or after the target holds for it: a sequence may come back further
//! than it stood, never short of it. Without such a sample, the newest one there is and the values
//! that are in the owned column decide together.

use std::collections::HashMap;

use lastgood_proto::Lsn;
use lastgood_proto::manifest::BaseManifest;
use lastgood_proto::segment::SequenceSample;
use tokio_postgres::Client;

use crate::Error;
use crate::sql::{literal, qualified, quoted};

/// Samples seen while reading, the best so far.
#[derive(Debug, Clone)]
pub(crate) struct Samples {
    wanted: Lsn,
    best: Option<(Lsn, Vec<SequenceSample>)>,
}

impl Samples {
    pub(crate) const fn new(wanted: Lsn) -> Self {
        Self { wanted, best: None }
    }

    /// Samples come in the order of their LSN.
    pub(crate) fn see(&mut self, lsn: Lsn, samples: Vec<SequenceSample>) {
        if !self.found() {
            self.best = Some((lsn, samples));
        }
    }

    /// One at or after the target was seen: no later one is needed.
    pub(crate) fn found(&self) -> bool {
        self.best
            .as_ref()
            .is_some_and(|(lsn, _)| *lsn >= self.wanted)
    }
}

/// Sets every sequence of the target that was sampled; answers how many.
pub(crate) async fn set(
    client: &Client,
    samples: &Samples,
    manifest: &BaseManifest,
) -> Result<u64, Error> {
    let existing = client
        .query(
            "SELECT n.nspname::text, c.relname::text, s.seqincrement < 0,
                    tn.nspname::text, t.relname::text, a.attname::text
               FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
               JOIN pg_namespace n ON n.oid = c.relnamespace
               LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
                    AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
               LEFT JOIN pg_class t ON t.oid = d.refobjid
               LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace
               LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
              WHERE c.relpersistence <> 't'",
            &[],
        )
        .await?;
    // A sample older than the base says less than what the base restored.
    let fresh = samples
        .best
        .as_ref()
        .filter(|(lsn, _)| *lsn >= manifest.consistent_point);
    let sampled: HashMap<(&str, &str), &SequenceSample> = fresh
        .into_iter()
        .flat_map(|(_, samples)| samples)
        .map(|sample| ((sample.schema.as_str(), sample.name.as_str()), sample))
        .collect();
    let mut count = 0;
    for row in existing {
        let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let sequence = qualified(&schema, &name);
        if let Some(sample) = sampled.get(&(schema.as_str(), name.as_str())) {
            let sql = format!(
                "SELECT setval({}::regclass, {}::bigint, {})",
                literal(&sequence),
                literal(&sample.last_value),
                sample.is_called
            );
            client.batch_execute(&sql).await?;
            count += 1;
        }
        if samples.found() {
            continue;
        }
        let owner: (Option<String>, Option<String>, Option<String>) =
            (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
        if let (Some(schema), Some(table), Some(column)) = owner {
            let (extreme, beyond) = match row.try_get(2)? {
                true => ("min", "<"),
                false => ("max", ">"),
            };
            // Setting it to where it is already would only mark it as called.
            let sql = format!(
                "SELECT setval({}::regclass, used.value) FROM {sequence} s,
                        (SELECT {extreme}({})::bigint AS value FROM {}) used
                  WHERE used.value {beyond} s.last_value
                     OR used.value = s.last_value AND NOT s.is_called",
                literal(&sequence),
                quoted(&column),
                qualified(&schema, &table)
            );
            client.batch_execute(&sql).await?;
        }
    }
    Ok(count)
}
