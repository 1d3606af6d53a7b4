//! A restore of some tables: which ones come along, and what stays out.
//!
//! The base's own definitions say how tables hang together. Chosen tables bring their partitions and
//! inheritance children. Foreign keys to other tables are left out: the rows they refer to are not
//! there. Types, functions and extensions come whole, for they are definitions only and nobody can
//! tell from a function's text what it needs.

use std::collections::{BTreeMap, HashSet};

use lastgood_pg::PgTools;
use lastgood_pg::dump::{ArchiveMaker, TocEntry};
use lastgood_proto::manifest::BaseManifest;
use lastgood_proto::{BaseId, LineageId};
use lastgood_store::SourceStore;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::archive::{Archives, Head};
use crate::relations::{self, ForeignKey, Name};
use crate::selection::{TableName, written};

/// Which tables a restore brings back, if not all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// By schema and name.
    pub tables: Vec<PartialTable>,
    /// The new schema of an existing database that all of them come back under; else each comes back
    /// under its own, in a database of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Triggers, rules, policies and row security of these tables: they come back in a database of
    /// their own, as far as what they name does. Under a new schema only row security does, without
    /// policies: it hides every row from everybody but the owner.
    pub attached: Vec<String>,
    pub left_out: Vec<LeftOut>,
}

/// A table that comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialTable {
    pub schema: String,
    pub name: String,
    /// Why, if it was not asked for: as a partition or child of that table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child_of: Option<String>,
}

/// Something of these tables that does not come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub object: String,
    /// One sentence.
    pub why: String,
}

impl PartialTable {
    /// As [`TableName`] reads it.
    #[must_use]
    pub fn written(&self) -> String {
        written(&self.schema, &self.name)
    }
}

impl Partial {
    pub(crate) fn names(&self) -> HashSet<Name> {
        let tables = self.tables.iter();
        tables
            .map(|table| (table.schema.clone(), table.name.clone()))
            .collect()
    }

    /// In one line, for the restore's own state.
    pub(crate) fn fingerprint(&self) -> String {
        let tables: Vec<String> = self.tables.iter().map(PartialTable::written).collect();
        tables.join(",")
    }
}

/// Finds the tables in the base and reads its definitions for what belongs to them.
///
/// # Errors
/// If a name is no table of the base, or no `pg_restore` can read its archive.
pub(crate) async fn select(
    store: &SourceStore,
    lineage: LineageId,
    base: BaseId,
    manifest: &BaseManifest,
    wanted: &[TableName],
    schema: Option<&str>,
) -> Result<Partial, Error> {
    schema.map(check_schema).transpose()?;
    let mut chosen: BTreeMap<Name, Option<String>> = BTreeMap::new();
    for name in wanted {
        let table = name.find(&manifest.tables)?;
        chosen.insert((table.schema.clone(), table.name.clone()), None);
    }
    let found = PgTools::discover().await;
    let maker = ArchiveMaker(crate::execute::major(&manifest.pg_dump_version));
    let tools = PgTools::for_restore(&found, manifest.server_version, maker)?;
    let archives = Archives {
        store,
        lineage,
        base,
        tools: &tools,
    };
    let head = archives.head().await?;
    let mut left_out = Vec::new();

    let tables = archives
        .script_of(&head, &["TABLE", "TABLE ATTACH"])
        .await?;
    let pairs = relations::children(&tables);
    loop {
        let before = chosen.len();
        for (child, parent) in &pairs {
            if chosen.contains_key(parent) && !chosen.contains_key(child) {
                let parent = written(&parent.0, &parent.1);
                chosen.insert(child.clone(), Some(parent));
            }
        }
        if chosen.len() == before {
            break;
        }
    }
    for (child, parent) in &pairs {
        if chosen.contains_key(child) && !chosen.contains_key(parent) {
            let (child, parent) = (written(&child.0, &child.1), written(&parent.0, &parent.1));
            left_out.push(LeftOut {
                object: format!("{child} as a partition or child of {parent}"),
                why: format!("{parent} is not restored, so it becomes a table of its own"),
            });
        }
    }
    let (_, others) = keys(&archives, &head, None, &|name| chosen.contains_key(name)).await?;
    left_out.extend(others.iter().map(|key| LeftOut {
        object: format!(
            "constraint {} of {}",
            crate::sql::quoted(&key.name),
            written(&key.table.0, &key.table.1)
        ),
        why: format!(
            "it references {}, which is not restored",
            written(&key.references.0, &key.references.1)
        ),
    }));
    let (mut attached, mut row_security) = (Vec::new(), Vec::new());
    for (own, name) in chosen.keys() {
        for entry in &head.entries {
            attached.extend(attachment(entry, own, name));
        }
        if has_row_security(&head, own, name) {
            let alone = match schema {
                None => "",
                Some(_) => ", without its policies: nobody but the role that restores sees a row",
            };
            row_security.push(format!("row security of {}{alone}", written(own, name)));
        }
    }
    if let Some(schema) = schema {
        one_of_each_name(chosen.keys(), schema)?;
        left_out.extend(attached.drain(..).map(|object| LeftOut {
            object,
            why: "it would act beside the one that is there".to_owned(),
        }));
        left_out.push(LeftOut {
            object: "owners and privileges".to_owned(),
            why: "the schema and all in it belong to the role that restores, and nobody else may use \
                  them, whatever the default privileges there are"
                .to_owned(),
        });
    }
    attached.extend(row_security);
    if head
        .entries
        .iter()
        .any(|entry| entry.kind() == "EVENT TRIGGER")
    {
        left_out.push(LeftOut {
            object: "event triggers".to_owned(),
            why: "they belong to no table".to_owned(),
        });
    }
    if manifest.large_objects > 0 {
        left_out.push(LeftOut {
            object: "large objects".to_owned(),
            why: "they belong to no table".to_owned(),
        });
    }
    let tables = chosen.into_iter();
    let tables = tables.map(|((schema, name), child_of)| PartialTable {
        schema,
        name,
        child_of,
    });
    Ok(Partial {
        tables: tables.collect(),
        schema: schema.map(ToOwned::to_owned),
        attached,
        left_out,
    })
}

/// Whether a schema of this name can be made by us, and told from ours and PostgreSQL's.
fn check_schema(name: &str) -> Result<(), Error> {
    const BYTES_MAX: usize = 63;
    let why = match name {
        "" => "it is empty",
        "public" | "information_schema" | "lastgood" | "lastgood_restore" => "it is taken",
        _ if name.starts_with("pg_") => "PostgreSQL keeps names with pg_ to itself",
        _ if name.len() > BYTES_MAX => "it is longer than 63 bytes",
        _ if name.contains('\0') => "it has a zero byte",
        _ => return Ok(()),
    };
    Err(Error::InvalidSchema {
        name: name.to_owned(),
        why,
    })
}

fn one_of_each_name<'n>(tables: impl Iterator<Item = &'n Name>, schema: &str) -> Result<(), Error> {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for (own, name) in tables {
        if let Some(other) = seen.insert(name, own) {
            return Err(Error::SameName {
                first: written(other, name),
                second: written(own, name),
                schema: schema.to_owned(),
            });
        }
    }
    Ok(())
}

/// The kinds of entries that act on a table.
pub(crate) const ATTACHED: [&str; 4] = ["TRIGGER", "RULE", "POLICY", "ROW SECURITY"];

/// Whether some roles see some rows of the table only.
pub(crate) fn has_row_security(head: &Head, schema: &str, name: &str) -> bool {
    let mut entries = head.entries.iter();
    entries.any(|entry| entry.is("ROW SECURITY", schema, name))
}

/// What acts on a table: `trigger shout on public.customer`.
fn attachment(entry: &TocEntry, schema: &str, name: &str) -> Option<String> {
    let kind = match entry.kind() {
        "TRIGGER" => "trigger",
        "RULE" => "rule",
        "POLICY" => "policy",
        _ => return None,
    };
    let tag = crate::leftover::printed(&format!("{schema} {name} "));
    let own = entry.rest().strip_prefix(&tag)?;
    // The owner stands last.
    let own = own.rsplit_once(' ').map_or(own, |(own, _)| own);
    Some(format!(
        "{kind} {} on {}",
        crate::sql::quoted(own),
        written(schema, name)
    ))
}

/// The foreign keys of chosen tables: those between them, and those to others. `only` narrows them
/// to some entries.
pub(crate) async fn keys(
    archives: &Archives<'_>,
    head: &Head,
    only: Option<&[&TocEntry]>,
    is_chosen: &(dyn Fn(&Name) -> bool + Sync),
) -> Result<(Vec<ForeignKey>, Vec<ForeignKey>), Error> {
    let all: Vec<&TocEntry>;
    let entries = match only {
        Some(entries) => entries,
        None => {
            all = crate::execute::of_kind(head, "FK CONSTRAINT").collect();
            &all
        }
    };
    if entries.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let script = archives
        .script(head, Some(entries), &["--no-owner"])
        .await?;
    let keys = relations::foreign_keys(&script).ok_or(Error::UnexpectedDefinition)?;
    let own = keys.into_iter().filter(|key| is_chosen(&key.table));
    Ok(own.partition(|key| is_chosen(&key.references)))
}

#[cfg(test)]
mod tests;
