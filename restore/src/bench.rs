//! For `cargo bench` alone: what of a restore needs no server.

use std::collections::HashMap;
use std::sync::Arc;

use lastgood_proto::segment::SegmentReader;
use lastgood_proto::{Lsn, Oid};

use crate::apply::Replayed;
use crate::catalog::{TargetColumn, TargetTable};
use crate::changes::{BaseTables, Changes, Range};
use crate::net::{Gatherer, Met, Net, NetRows};
use crate::relay::{Batch, Item};
use crate::replay::Flow;

/// The net changes of tables of texts, of which the first column is the key.
pub struct Gathered(Net);

impl Gathered {
    /// Of all that a segment holds. `tables` are the OID, schema, name and columns of each, as it describes them.
    ///
    /// # Errors
    /// If it is not what was written.
    pub fn of(
        segment: &[u8],
        tables: &[(u32, &str, &str, Vec<String>)],
    ) -> Result<Self, crate::Error> {
        let mut oids = HashMap::new();
        let mut targets = HashMap::new();
        for (oid, schema, name, columns) in tables {
            let own = ((*schema).to_owned(), (*name).to_owned());
            oids.insert(own.clone(), Oid::new(*oid));
            targets.insert(own, table(schema, name, columns));
        }
        let range = Range {
            from: Lsn::INVALID,
            rows_from: Lsn::INVALID,
            last_kept: Some(Lsn::MAX),
            replayed: Replayed::default(),
        };
        let base = BaseTables {
            oids,
            ..BaseTables::default()
        };
        let changes = Changes::new(range, Arc::new(targets), Arc::new(base));
        let mut gatherer = Gatherer::new(changes, "UTF8".to_owned(), usize::MAX, None);
        let mut reader = SegmentReader::open(segment, None)?;
        let mut take = |item: Item<'_>| match item {
            Item::Segment(_) | Item::Pause | Item::End => Ok(Flow::GoOn),
            Item::Record(record, rows) => gatherer.feed(record, rows),
        };
        let mut batch = Batch::default();
        while let Some(record) = reader.next_into(batch.rows())? {
            batch.record(record);
            if batch.is_full() {
                batch.take(&mut take)?;
            }
        }
        batch.take(&mut take)?;
        Ok(Self(gatherer.finish()))
    }

    /// The base's rows are to come by.
    pub fn close(&mut self) {
        for table in self.0.tables.values_mut() {
            if let NetRows::Keyed(rows) = &mut table.rows {
                rows.close();
            }
        }
    }

    /// Whether the row of a table with this key was changed.
    pub fn meets(&mut self, table: &(String, String), key: &[u8]) -> bool {
        let found = self.0.tables.get_mut(table);
        let rows = found.map(|table| &mut table.rows);
        match rows {
            Some(NetRows::Keyed(rows)) => rows.meet(key) != Met::Untouched,
            Some(NetRows::Whole(_)) | None => false,
        }
    }
}

fn table(schema: &str, name: &str, columns: &[String]) -> TargetTable {
    let columns = columns.iter().map(|name| TargetColumn {
        name: name.clone(),
        type_oid: Oid::new(25),
        type_modifier: -1,
        staged_type: "text".to_owned(),
        generated: false,
        toastable: true,
        collation: None,
        equality: None,
        hash_equality: None,
    });
    TargetTable {
        schema: schema.to_owned(),
        name: name.to_owned(),
        kind: 'r',
        is_scattered: false,
        columns: columns.collect(),
    }
}
