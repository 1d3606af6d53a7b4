//! What each stage does: rows, changes, the rest of the definitions, the way under a schema.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use futures::future::try_join_all;
use lastgood_pg::dump::{Section, TocEntry};
use lastgood_pg::{ConnectionConfig, Session};
use lastgood_proto::manifest::Protection;
use tokio::time::interval;
use tokio_postgres::Client;

use super::loads::{Giver, Load};
use super::of_kind;
use super::run::Run;
use crate::apply::{self, Replayed};
use crate::archive::{Archives, Head};
use crate::changes::BaseTables;
use crate::columns::Altered;
use crate::existing::Existing;
use crate::lanes::Lanes;
use crate::merge::Waiting;
use crate::net::Net;
use crate::partial::Partial;
use crate::relations::Name;
use crate::replay::Outcome;
use crate::report::{LOOK_INTERVAL, Phase};
use crate::sql::qualified;
use crate::{Error, foreign_keys, leftover, partial, plan, replay, sql};

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

    /// The rows of the base, with the changes that wait for them.
    pub(super) async fn data(
        &self,
        client: &Client,
        target: &ConnectionConfig,
        archives: &Archives<'_>,
        head: &Head,
        waiting: Waiting,
    ) -> Result<(), Error> {
        // They belong to no table's rows. A sample may not be newer than the base.
        let sets: Vec<&TocEntry> = of_kind(head, "SEQUENCE SET").collect();
        let set = archives.definitions(target, head, Section::Data, Some(&sets), 1);
        set.await?;
        waiting.restart(client).await?;
        let waiting = Arc::new(waiting);
        let chosen = self.plan.partial.as_ref().map(Partial::names);
        let mut lenders = Vec::new();
        let (store, lineage) = (self.store, self.plan.lineage);
        let lent = plan::lent(store, lineage, self.manifest, chosen.as_ref());
        for loan in lent.await? {
            let base = loan.manifest.id;
            let archives = Archives { base, ..*archives };
            lenders.push((archives, archives.head().await?, loan));
        }
        let lent: HashSet<&Name> = lenders
            .iter()
            .flat_map(|(.., loan)| loan.names.values())
            .collect();
        let is_lent = |name: &Name| lent.contains(name);
        let own: Option<HashSet<Name>> =
            chosen.map(|chosen| chosen.into_iter().filter(|name| !is_lent(name)).collect());
        let own = Giver {
            archives,
            head,
            manifest: self.manifest,
            tables: own.as_ref(),
            lends: None,
        };
        let mut loads = own.loads()?;
        for (archives, head, loan) in &lenders {
            let lender = Giver {
                archives,
                head,
                manifest: &loan.manifest,
                tables: Some(&loan.tables),
                lends: Some(&loan.names),
            };
            loads.extend(lender.loads()?);
        }
        loads.sort_by_key(|load| std::cmp::Reverse(load.bytes()));
        let total = loads.iter().map(Load::bytes).sum();
        let lanes = Lanes::new(target, self.options.jobs);
        let fed = Arc::new(AtomicU64::new(0));
        let loading = loads
            .iter()
            .map(|load| load.run(&waiting, target, &lanes, &fed).boxed());
        let mut loading = pin!(try_join_all(loading));
        let mut ticks = interval(LOOK_INTERVAL);
        loop {
            tokio::select! {
                loaded = &mut loading => {
                    loaded?;
                    break;
                }
                _ = ticks.tick() => self.tracker.now(fed.load(Ordering::Relaxed), total, None),
            }
        }
        waiting.load_rest(&lanes).await?;
        lanes.close().await;
        Ok(())
    }

    /// The borrowed tables whose columns are not those of their rows.
    pub(super) fn altered(&self) -> Result<HashMap<Name, Altered>, Error> {
        let borrowed = BaseTables::of(self.manifest, None).borrowed.into_values();
        let altered = borrowed.filter_map(|table| Some((table.name, table.columns?)));
        altered
            .map(|(name, columns)| {
                let altered = Altered::new(&sql::qualified(&name.0, &name.1), &columns)?;
                Ok((name, altered))
            })
            .collect()
    }

    /// The entries that replay needs, none if it has nothing to do, and the others but event triggers and
    /// privileges.
    pub(super) fn post_data<'h>(
        &self,
        head: &'h Head,
        is_merged: bool,
    ) -> (Vec<&'h TocEntry>, Vec<&'h TocEntry>) {
        let mut wanted = HashSet::new();
        for table in &self.manifest.tables {
            if !is_merged
                && table.protection == Protection::Full
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

    /// What the changes come to, or as many of them as fit into memory; if all do, with the outcome.
    pub(super) async fn gather(
        &self,
        client: &Client,
        head: &Head,
        bytes_max: usize,
    ) -> Result<(Net, Option<Outcome>), Error> {
        let source = self.changes();
        let report = self.reports_of_wal();
        replay::gather(&source, client, &head.encoding, bytes_max, &report).await
    }

    pub(super) async fn replay(
        &self,
        client: &Client,
        replayed: Replayed,
    ) -> Result<Outcome, Error> {
        client.batch_execute(apply::SESSION).await?;
        let report = self.reports_of_wal();
        let outcome = replay::replay(&self.changes(), client, replayed, &report).await?;
        client
            .batch_execute("RESET enable_seqscan; RESET plan_cache_mode; RESET synchronous_commit")
            .await?;
        Ok(outcome)
    }

    fn changes(&self) -> replay::Source<'_> {
        replay::Source {
            plan: self.plan,
            store: self.store,
            base: Arc::new(BaseTables::of(
                self.manifest,
                self.plan.partial.as_ref().map(Partial::names),
            )),
            server_encoding: &self.manifest.encoding,
        }
    }

    /// Progress by the WAL that the changes are from.
    fn reports_of_wal(&self) -> impl Fn(Replayed) + Sync {
        let start = self.manifest.rows_from();
        let end = self.plan.stop.last_kept.as_ref().map(|kept| kept.end_lsn);
        let end = end.unwrap_or(self.manifest.consistent_point);
        let total = end.bytes_since(start);
        move |replayed: Replayed| {
            self.tracker
                .now(replayed.through.bytes_since(start), total, Some(replayed));
        }
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
        let not_covered = self.plan.not_covered.iter();
        let mut tables = not_covered.filter(|entry| entry.object != plan::DEFINITIONS);
        let apart = tables.next().is_some() || self.plan.partial.is_some();
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
