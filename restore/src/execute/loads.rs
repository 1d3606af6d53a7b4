//! Which archive gives which rows: the base's own, and those of earlier bases whose rows it borrows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use lastgood_pg::ConnectionConfig;
use lastgood_pg::dump::TocEntry;
use lastgood_proto::key::ArchiveName;
use lastgood_proto::manifest::{Archive, BaseManifest};

use super::of_kind;
use crate::archive::{Archives, Head};
use crate::lanes::Lanes;
use crate::merge::Waiting;
use crate::relations::Name;
use crate::sql::qualified;
use crate::{Error, plan};

/// A base that gives rows.
pub(super) struct Giver<'a> {
    pub(super) archives: &'a Archives<'a>,
    pub(super) head: &'a Head,
    pub(super) manifest: &'a BaseManifest,
    /// Whose rows; if none are named, everything that its own archives have.
    pub(super) tables: Option<&'a HashSet<Name>>,
    /// To another base, which calls its tables so: then only rows are wanted, also of a table's own archive, which
    /// has its sequences' states as well.
    pub(super) lends: Option<&'a Arc<HashMap<Name, Name>>>,
}

/// What is loaded from one archive.
pub(super) struct Load<'a> {
    archives: &'a Archives<'a>,
    pub(super) archive: &'a Archive,
    what: What<'a>,
}

enum What<'a> {
    /// Rows, of these entries of a main archive; of a table's own, whatever it has. Of a lender's archive, with
    /// what the tables are called.
    Rows(
        Option<Vec<&'a TocEntry>>,
        Option<&'a Arc<HashMap<Name, Name>>>,
    ),
    /// Of a main archive, what is neither rows nor a sequence's state.
    Others(Vec<&'a TocEntry>),
}

impl Load<'_> {
    pub(super) async fn run(
        &self,
        waiting: &Arc<Waiting>,
        target: &ConnectionConfig,
        lanes: &Arc<Lanes>,
        fed: &Arc<AtomicU64>,
    ) -> Result<(), Error> {
        let (archives, archive) = (self.archives, self.archive);
        match &self.what {
            What::Rows(only, names) => {
                let only = only.as_deref();
                waiting
                    .load(archives, lanes, archive, only, *names, fed)
                    .await
            }
            What::Others(only) => {
                let _lane = lanes.enter().await?;
                archives.others(target, archive, only, fed).await
            }
        }
    }
}

impl<'a> Giver<'a> {
    pub(super) fn loads(&self) -> Result<Vec<Load<'a>>, Error> {
        let rows = match self.tables {
            Some(tables) => self.rows_of(tables)?,
            None => of_kind(self.head, "TABLE DATA").collect(),
        };
        let mut loads = Vec::new();
        let needed = |archive: &&Archive| plan::is_needed(archive, self.manifest, self.tables);
        for archive in self.manifest.archives.iter().filter(needed) {
            let load = |what| Load {
                archives: self.archives,
                archive,
                what,
            };
            if archive.name != ArchiveName::Main {
                loads.push(load(What::Rows(None, self.lends)));
                continue;
            }
            loads.push(load(What::Rows(Some(rows.clone()), self.lends)));
            let others = self.others();
            if !others.is_empty() {
                loads.push(load(What::Others(others)));
            }
        }
        Ok(loads)
    }

    /// The tables that have an archive of their own.
    fn apart(&self) -> HashSet<&'a Name> {
        let archives = self.manifest.archives.iter();
        archives
            .filter_map(|archive| archive.table.as_ref())
            .collect()
    }

    /// Of a main archive, what is neither rows nor a sequence's state (large objects), if there is any.
    fn others(&self) -> Vec<&'a TocEntry> {
        let entries = &self.head.entries;
        let is_other = |entry: &&TocEntry| !matches!(entry.kind(), "TABLE DATA" | "SEQUENCE SET");
        match self.tables {
            None if entries.iter().any(is_other_data) => entries.iter().filter(is_other).collect(),
            _ => Vec::new(),
        }
    }

    /// The tables' entries in the main archive. Each has one, or an archive of its own.
    fn rows_of(&self, tables: &HashSet<Name>) -> Result<Vec<&'a TocEntry>, Error> {
        let apart = self.apart();
        let data: Vec<&TocEntry> = of_kind(self.head, "TABLE DATA").collect();
        let mut wanted = HashSet::new();
        for table in &self.manifest.tables {
            let name = (table.schema.clone(), table.name.clone());
            if table.kind != 'r' || !tables.contains(&name) || apart.contains(&name) {
                continue;
            }
            let own = |entry: &&&TocEntry| entry.is("TABLE DATA", &table.schema, &table.name);
            let mut own = data.iter().filter(own).map(|entry| entry.dump_id());
            wanted.insert(own.next().ok_or_else(|| Error::NoRows {
                table: qualified(&table.schema, &table.name),
            })?);
            wanted.extend(own);
        }
        // In the order of the archive, which is read through a pipe.
        let is_wanted = |entry: &&TocEntry| wanted.contains(&entry.dump_id());
        Ok(data.into_iter().filter(is_wanted).collect())
    }
}

/// Neither a table's rows nor a sequence's state.
fn is_other_data(entry: &TocEntry) -> bool {
    entry.kind().starts_with("BLOB") || entry.kind() == "STATISTICS DATA"
}
