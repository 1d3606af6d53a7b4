//! What each stage does: rows, changes, the rest of the definitions, the way under a schema.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use lastgood_pg::dump::{Section, TocEntry};
use lastgood_pg::{ConnectionConfig, Session};
use lastgood_proto::Oid;
use lastgood_proto::key::ArchiveName;
use lastgood_proto::manifest::Protection;
use tokio_postgres::Client;

use super::of_kind;
use super::run::Run;
use crate::apply::{self, Replayed};
use crate::archive::{Archives, Head};
use crate::existing::Existing;
use crate::partial::Partial;
use crate::relations::Name;
use crate::replay::{Outcome, replay};
use crate::report::Phase;
use crate::sql::qualified;
use crate::{Error, foreign_keys, leftover, partial, plan};

impl Run<'_> {
    /// From the scratch database to the existing one; then nothing is left of the first.
    pub(super) async fn transfer(
        &mut self,
        existing: &Existing,
        scratch: Session,
        head: &Head,
    ) -> Result<(), Error> {
        self.tracker.enter(Phase::Transfer);
        let (session, canceller) = existing.connect().await?;
        self.transferring = Some(canceller);
        let (done, tracker) = (AtomicU64::new(0), &self.tracker);
        let fed = |bytes| {
            let before = done.fetch_add(bytes, Ordering::Relaxed);
            if before >> 22 != (before + bytes) >> 22 {
                tracker.now(before + bytes, 0, None);
            }
        };
        let encoding = &self.manifest.encoding;
        let tables = self.plan.partial.iter().flat_map(|partial| &partial.tables);
        let protected =
            tables.filter(|table| partial::has_row_security(head, &table.schema, &table.name));
        let protected: Vec<&str> = protected.map(|table| table.name.as_str()).collect();
        let transferred = existing.transfer(&scratch, &session, encoding, &protected, &fed);
        transferred.await?;
        self.transferring = None;
        session.close().await;
        scratch.close().await;
        // The tables are there: this is no reason to call it failed.
        if let Err(error) = existing.drop_scratch().await {
            self.notes.push(existing.scratch_stays(&error));
        }
        Ok(())
    }

    pub(super) async fn data(
        &self,
        target: &ConnectionConfig,
        archives: &Archives<'_>,
        head: &Head,
    ) -> Result<(), Error> {
        let chosen = self.plan.partial.as_ref().map(Partial::names);
        let rows = chosen
            .as_ref()
            .map(|chosen| self.rows_of(chosen, head))
            .transpose()?;
        if chosen.is_some() {
            // They belong to no table's rows. A sample may not be newer than the base.
            let sets: Vec<&TocEntry> = of_kind(head, "SEQUENCE SET").collect();
            let set = archives.definitions(target, head, Section::Data, Some(&sets), 1);
            set.await?;
        }
        let wanted = self.manifest.archives.iter();
        let wanted =
            wanted.filter(|archive| plan::is_needed(archive, self.manifest, chosen.as_ref()));
        let total = wanted.clone().map(|archive| archive.bytes).sum();
        let done = AtomicU64::new(0);
        let tracker = &self.tracker;
        let fed = |bytes| {
            let before = done.fetch_add(bytes, Ordering::Relaxed);
            // Every few megabytes: a listener has better things to do.
            if before >> 22 != (before + bytes) >> 22 {
                tracker.now(before + bytes, total, None);
            }
        };
        let mut sorted: Vec<_> = wanted.collect();
        sorted.sort_by_key(|archive| std::cmp::Reverse(archive.bytes));
        let jobs = usize::try_from(self.options.jobs.max(1)).unwrap_or(1);
        let loads = sorted.into_iter().map(|archive| {
            let only = rows
                .as_deref()
                .filter(|_| archive.name == ArchiveName::Main);
            archives.data(target, archive, only, &fed).boxed()
        });
        let loads: Vec<_> = loads.collect();
        futures::stream::iter(loads)
            .buffer_unordered(jobs)
            .try_collect::<()>()
            .await
    }

    /// The chosen tables' entries in the main archive. Each has one, or an archive of its own.
    fn rows_of<'h>(
        &self,
        chosen: &HashSet<Name>,
        head: &'h Head,
    ) -> Result<Vec<&'h TocEntry>, Error> {
        let archives = self.manifest.archives.iter();
        let apart: HashSet<&Name> = archives
            .filter_map(|archive| archive.table.as_ref())
            .collect();
        let data: Vec<&TocEntry> = of_kind(head, "TABLE DATA").collect();
        let mut wanted = HashSet::new();
        for table in &self.manifest.tables {
            let name = (table.schema.clone(), table.name.clone());
            if table.kind != 'r' || !chosen.contains(&name) || apart.contains(&name) {
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

    /// The entries that replay needs, and the others but event triggers and privileges.
    pub(super) fn post_data<'h>(&self, head: &'h Head) -> (Vec<&'h TocEntry>, Vec<&'h TocEntry>) {
        let mut wanted = HashSet::new();
        for table in &self.manifest.tables {
            if table.protection == Protection::Full
                && table.kind != 'p'
                && let Some(index) = &table.identity_index
            {
                let (schema, name) = (&table.schema, &table.name);
                wanted.insert(leftover::printed(&format!("{schema} {name} {index}")));
                wanted.insert(leftover::printed(&format!("{schema} {index}")));
            }
        }
        let is_key =
            |entry: &TocEntry| leftover::beginnings(entry.rest()).any(|name| wanted.contains(name));
        let (mut keys, mut rest) = (Vec::new(), Vec::new());
        let is_partial = self.plan.partial.is_some();
        let under_a_schema = self.plan.schema().is_some();
        for entry in &head.entries {
            match entry.kind() {
                "EVENT TRIGGER" => {}
                // The plan has named them; row security comes back with the schema.
                kind if under_a_schema && partial::ATTACHED.contains(&kind) => {}
                // They would be made of tables that are empty, and then dropped.
                "MATERIALIZED VIEW DATA" if is_partial => {}
                "CONSTRAINT" | "INDEX" if is_key(entry) => keys.push(entry),
                _ => rest.push(entry),
            }
        }
        (keys, rest)
    }

    pub(super) async fn replay(
        &self,
        client: &Client,
        replayed: Replayed,
    ) -> Result<Outcome, Error> {
        client.batch_execute(apply::SESSION).await?;
        let tables = self.manifest.tables.iter();
        let base: HashMap<(String, String), Oid> = tables
            .map(|table| ((table.schema.clone(), table.name.clone()), table.oid))
            .collect();
        let start = self.plan.base.consistent_point;
        let end = self.plan.stop.last_kept.as_ref().map(|kept| kept.end_lsn);
        let total = end.map_or(0, |end| end.bytes_since(start));
        let report = |replayed: Replayed| {
            self.tracker
                .now(replayed.through.bytes_since(start), total, Some(replayed));
        };
        let outcome = replay(
            self.plan,
            self.store,
            client,
            Arc::new(base),
            &self.manifest.encoding,
            replayed,
            &report,
        )
        .await?;
        client
            .batch_execute("RESET enable_seqscan; RESET plan_cache_mode; RESET synchronous_commit")
            .await?;
        Ok(outcome)
    }

    /// Indexes, constraints, triggers, materialized views. Foreign keys apart, if tables that are
    /// only as fresh as the base may not satisfy them.
    pub(super) async fn constraints(
        &mut self,
        client: &Client,
        target: &ConnectionConfig,
        archives: &Archives<'_>,
        head: &Head,
        rest: Vec<&TocEntry>,
    ) -> Result<(), Error> {
        let apart = !self.plan.not_covered.is_empty() || self.plan.partial.is_some();
        let is_apart = |entry: &&TocEntry| apart && entry.kind() == "FK CONSTRAINT";
        let (keys, rest): (Vec<&TocEntry>, Vec<&TocEntry>) = rest.into_iter().partition(is_apart);
        // Enabled at the very end: where it is forced on the restoring role, neither a foreign key
        // could be checked nor a view refreshed.
        let is_row_security = |entry: &&TocEntry| entry.kind() == "ROW SECURITY";
        let (row_security, rest): (Vec<&TocEntry>, Vec<&TocEntry>) =
            rest.into_iter().partition(is_row_security);
        let jobs = self.options.jobs;
        let notes = archives.definitions(target, head, Section::PostData, Some(&rest), jobs);
        self.notes.extend(notes.await?);
        if !keys.is_empty() {
            let statements = match &self.plan.partial {
                None => {
                    let script = archives.script(head, Some(&keys), &["--no-owner"]).await?;
                    foreign_keys::statements(&script)
                }
                Some(partial) => {
                    let chosen = partial.names();
                    let is_chosen = |name: &Name| chosen.contains(name);
                    let (keys, _) = partial::keys(archives, head, Some(&keys), &is_chosen).await?;
                    keys.into_iter().map(|key| key.statement).collect()
                }
            };
            let notes = foreign_keys::create(client, statements).await?;
            self.notes.extend(notes);
        }
        let notes = archives.definitions(target, head, Section::PostData, Some(&row_security), 1);
        self.notes.extend(notes.await?);
        Ok(())
    }
}

/// Rows of an earlier attempt, of which nobody knows how many came. Large objects stay: their bytes
/// are written over.
pub(super) async fn empty_tables(client: &Client) -> Result<(), Error> {
    let tables = client
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c
               JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
                AND n.nspname NOT IN ('information_schema', 'lastgood_restore')
                AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                                   AND d.objid = c.oid AND d.deptype = 'e')",
            &[],
        )
        .await?;
    for row in tables {
        let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        client
            .batch_execute(&format!("TRUNCATE {}", qualified(&schema, &name)))
            .await?;
    }
    Ok(())
}
