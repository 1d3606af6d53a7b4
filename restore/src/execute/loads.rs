//! Which archive gives which rows: the base's own, and those of earlier bases whose rows it borrows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use lastgood_pg::ConnectionConfig;
use lastgood_pg::dump::TocEntry;
use lastgood_proto::key::ArchiveName;
use lastgood_proto::manifest::{Archive, BaseManifest, cut_table, parts};

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
    /// To another base, which calls its tables so.
    pub(super) lends: Option<&'a Arc<HashMap<Name, Name>>>,
}

/// What is loaded from archives.
pub(super) struct Load<'a> {
    archives: &'a Archives<'a>,
    what: What<'a>,
    /// As with [`Giver`].
    lends: Option<&'a Arc<HashMap<Name, Name>>>,
}

enum What<'a> {
    /// The rows of these entries of the main archive.
    Rows(&'a Archive, Vec<&'a TocEntry>),
    /// A large table's rows, part by part.
    Parts(Vec<&'a Archive>),
    /// Of the main archive, what is neither rows nor a sequence's state.
    Others(&'a Archive, Vec<&'a TocEntry>),
}

impl Load<'_> {
    pub(super) async fn run(
        &self,
        waiting: &Arc<Waiting>,
        target: &ConnectionConfig,
        lanes: &Arc<Lanes>,
        fed: &Arc<AtomicU64>,
    ) -> Result<(), Error> {
        let (archives, lends) = (self.archives, self.lends);
        let lane = lanes.enter().await?;
        match &self.what {
            What::Rows(archive, only) => {
                waiting
                    .load(archives, lane, archive, only, lends, fed)
                    .await
            }
            What::Parts(parts) => waiting.load_parts(archives, lane, parts, lends, fed).await,
            What::Others(archive, only) => archives.others(target, archive, only, fed).await,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match &self.what {
            What::Rows(archive, _) | What::Others(archive, _) => archive.bytes,
            What::Parts(parts) => parts.iter().map(|part| part.bytes).sum(),
        }
    }
}

impl<'a> Giver<'a> {
    pub(super) fn loads(&self) -> Result<Vec<Load<'a>>, Error> {
        if let Some((schema, name)) = cut_table(&self.manifest.archives) {
            return Err(Error::NoRows {
                table: qualified(schema, name),
            });
        }
        let load = |what| Load {
            archives: self.archives,
            what,
            lends: self.lends,
        };
        let rows = match self.tables {
            Some(tables) => self.rows_of(tables)?,
            None => of_kind(self.head, "TABLE DATA").collect(),
        };
        let mut loads = Vec::new();
        let needed = |archive: &&Archive| plan::is_needed(archive, self.manifest, self.tables);
        let needed = self.manifest.archives.iter().filter(needed);
        if let Some(archive) = needed.clone().find(|it| it.name == ArchiveName::Main) {
            loads.push(load(What::Rows(archive, rows)));
            let others = self.others();
            if !others.is_empty() {
                loads.push(load(What::Others(archive, others)));
            }
        }
        for parts in parts(needed).into_values() {
            loads.push(load(What::Parts(parts.into_values().collect())));
        }
        Ok(loads)
    }

    /// The tables whose rows have archives of their own.
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

    /// The tables' entries in the main archive. Each has one, or archives of its own.
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
