//! Which entries of an archive an interrupted attempt has not made yet. What is not asked about here
//! may be made twice without harm: comments, attached indexes, refreshed views.

use std::collections::HashSet;

use lastgood_pg::dump::TocEntry;
use tokio_postgres::Client;

use crate::Error;

/// Kind, then schema and tag as the table of contents has them.
const EXISTING: &str = "
    SELECT CASE c.contype WHEN 'f' THEN 'FK CONSTRAINT' WHEN 'c' THEN 'CHECK CONSTRAINT' ELSE 'CONSTRAINT' END,
           n.nspname || ' ' || t.relname || ' ' || c.conname
      FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
  UNION ALL
    SELECT 'INDEX', n.nspname || ' ' || c.relname
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('i', 'I')
  UNION ALL
    SELECT 'TRIGGER', n.nspname || ' ' || t.relname || ' ' || g.tgname
      FROM pg_trigger g JOIN pg_class t ON t.oid = g.tgrelid JOIN pg_namespace n ON n.oid = t.relnamespace
     WHERE NOT g.tgisinternal
  UNION ALL
    SELECT 'RULE', n.nspname || ' ' || t.relname || ' ' || r.rulename
      FROM pg_rewrite r JOIN pg_class t ON t.oid = r.ev_class JOIN pg_namespace n ON n.oid = t.relnamespace
  UNION ALL
    SELECT 'POLICY', n.nspname || ' ' || t.relname || ' ' || p.polname
      FROM pg_policy p JOIN pg_class t ON t.oid = p.polrelid JOIN pg_namespace n ON n.oid = t.relnamespace
  UNION ALL
    SELECT 'STATISTICS', n.nspname || ' ' || s.stxname
      FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace";

/// Those of `entries` that do not exist.
pub(crate) async fn missing<'h>(
    client: &Client,
    entries: Vec<&'h TocEntry>,
) -> Result<Vec<&'h TocEntry>, Error> {
    let mut existing: HashSet<(String, String)> = HashSet::new();
    for row in client.query(EXISTING, &[]).await? {
        let name: String = row.try_get(1)?;
        existing.insert((row.try_get(0)?, printed(&name)));
    }
    let is_missing = |entry: &&TocEntry| {
        !beginnings(entry.rest())
            .any(|name| existing.contains(&(entry.kind().to_owned(), name.to_owned())))
    };
    Ok(entries.into_iter().filter(is_missing).collect())
}

/// An entry ends in its owner, and any name may hold blanks: so it may be any of these.
pub(crate) fn beginnings(rest: &str) -> impl Iterator<Item = &str> {
    rest.match_indices(' ').map(|(at, _)| &rest[..at])
}

/// As the tool prints a name: a line break is a blank.
pub(crate) fn printed(name: &str) -> String {
    name.replace(['\n', '\r'], " ")
}
