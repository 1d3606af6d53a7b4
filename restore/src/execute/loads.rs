//! Which archive gives which rows: the base's own, and those of earlier bases whose rows it borrows.

use std::collections::{HashMap, HashSet};

use lastgood_pg::ConnectionConfig;
use lastgood_pg::dump::TocEntry;
use lastgood_proto::key::ArchiveName;
use lastgood_proto::manifest::{Archive, BaseManifest};

use super::of_kind;
use crate::archive::{Archives, Head};
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
    pub(super) lends: Option<&'a HashMap<Name, Name>>,
}

/// What is loaded from one archive.
pub(super) struct Load<'a> {
    archives: &'a Archives<'a>,
    pub(super) archive: &'a Archive,
    /// Of a main archive; a table's own is loaded whole.
    only: Option<Vec<&'a TocEntry>>,
    /// What its rows are merged with.
    waiting: Option<&'a Waiting>,
    /// Of a lender's archive, what the tables are called.
    names: Option<&'a HashMap<Name, Name>>,
}

impl Load<'_> {
    pub(super) async fn run(
        &self,
        target: &ConnectionConfig,
        fed: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Error> {
        let (archives, archive) = (self.archives, self.archive);
        let only = self.only.as_deref();
        match self.waiting {
            Some(waiting) => {
                let names = self.names;
                waiting
                    .load(archives, target, archive, only, names, fed)
                    .await
            }
            None => archives.data(target, archive, only, fed).await,
        }
    }
}

impl<'a> Giver<'a> {
    pub(super) fn loads(&self, waiting: Option<&'a Waiting>) -> Result<Vec<Load<'a>>, Error> {
        let rows = match self.tables {
            Some(tables) => self.rows_of(tables)?,
            None => of_kind(self.head, "TABLE DATA").collect(),
        };
        let apart = self.apart();
        let lent: HashSet<Name> = match self.tables {
            Some(_) => HashSet::new(),
            None => self.lent().collect(),
        };
        let is_in_main = |name: &Name| {
            let is_wanted = self.tables.is_none_or(|tables| tables.contains(name));
            is_wanted && !apart.contains(name) && !lent.contains(name)
        };
        let mut loads = Vec::new();
        let needed = |archive: &&Archive| plan::is_needed(archive, self.manifest, self.tables);
        for archive in self.manifest.archives.iter().filter(needed) {
            let waiting = waiting.filter(|waiting| match &archive.table {
                _ if self.lends.is_some() => true,
                Some(table) => waiting.any(|name| name == table),
                None => waiting.any(is_in_main),
            });
            let load = |only, waiting| Load {
                archives: self.archives,
                archive,
                only,
                waiting,
                names: self.lends,
            };
            match (archive.name, waiting) {
                (ArchiveName::Main, None) => {
                    loads.push(load(Some(self.all(&rows)), None));
                }
                (ArchiveName::Main, Some(_)) => {
                    loads.push(load(Some(rows.clone()), waiting));
                    let others = self.others();
                    if !others.is_empty() {
                        loads.push(load(Some(others), None));
                    }
                }
                (_, waiting) => loads.push(load(None, waiting)),
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

    /// The tables whose rows it borrows itself.
    fn lent(&self) -> impl Iterator<Item = Name> {
        let tables = self.manifest.tables.iter();
        let lent = tables.filter(|table| self.manifest.lender(table.oid).is_some());
        lent.map(|table| (table.schema.clone(), table.name.clone()))
    }

    /// Of a main archive, whatever is data: that differs from one version to the other, and the tool knows.
    /// The state of sequences is in place.
    fn all(&self, rows: &[&'a TocEntry]) -> Vec<&'a TocEntry> {
        match self.tables {
            Some(_) => rows.to_vec(),
            None => {
                let entries = self.head.entries.iter();
                entries
                    .filter(|entry| entry.kind() != "SEQUENCE SET")
                    .collect()
            }
        }
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
