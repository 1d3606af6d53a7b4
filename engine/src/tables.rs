//! The source's tables, and how far each can be protected. One query, then pure decisions.
//!
//! A table may be published only if the walsender can say which row an UPDATE or DELETE hit:
//! otherwise those commands would fail *on the source* as soon as it is published. So this decides
//! strictly, as `RelationGetReplicaIndex` and `CheckCmdReplicaIdentity` of the server do.

use lastgood_proto::Oid;
use lastgood_proto::manifest::Protection;
use tokio_postgres::{Client, Row};

use crate::error::Error;
use crate::settings::{NoIdentity, SourceSettings};

/// A table, partitioned table, foreign table or materialized view; of extensions their tables only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) oid: Oid,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// Both parts quoted as SQL needs them.
    pub(crate) quoted: String,
    pub(crate) kind: char,
    pub(crate) unlogged: bool,
    /// It came with an extension: `pg_dump` keeps its rows only if the extension marks it as
    /// configuration (`pg_extension_config_dump`), and `CREATE EXTENSION` may fill it differently.
    pub(crate) extension: bool,
    pub(crate) identity: Identity,
    /// `pg_class.relreplident`.
    pub(crate) replica_identity: char,
    /// The primary key or replica identity index: what a replay finds rows by.
    pub(crate) identity_index: Option<String>,
    pub(crate) owner: String,
    /// The role is the owner, or a member of it.
    pub(crate) owned: bool,
    pub(crate) row_security: bool,
    pub(crate) generated: bool,
    /// The identity is only sent if stored generated columns are published (18).
    pub(crate) needs_generated: bool,
    pub(crate) rows_estimate: Option<u64>,
}

/// What an UPDATE or DELETE can be told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    Index,
    Full,
    /// Neither, but `REPLICA IDENTITY FULL` would do.
    None,
    /// Not even that: PostgreSQL 18 cannot publish virtual generated columns, and FULL needs all.
    Impossible,
}

const TABLES: &str = r"
SELECT c.oid, n.nspname, c.relname, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS quoted,
       c.relkind::text AS kind, c.relpersistence = 'u' AS unlogged,
       x.member AS extension, c.relreplident::text AS replident, i.name AS identity_index,
       coalesce(i.generated, false) AS generated_key,
       pg_get_userbyid(c.relowner)::text AS owner,
       pg_has_role(c.relowner, 'USAGE') AS owned,
       c.relrowsecurity AS row_security,
       coalesce(g.stored, false) AS stored, coalesce(g.virtual, false) AS virtual,
       CASE WHEN c.reltuples >= 0 THEN c.reltuples::int8 END AS rows_estimate
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (
    SELECT ic.relname AS name,
           EXISTS (SELECT FROM pg_attribute a
                   WHERE a.attrelid = c.oid AND a.attnum = ANY (x.indkey) AND a.attgenerated <> '')
               AS generated
    FROM pg_index x JOIN pg_class ic ON ic.oid = x.indexrelid
    WHERE x.indrelid = c.oid AND x.indisvalid AND x.indimmediate
      AND CASE c.relreplident WHEN 'i' THEN x.indisreplident ELSE x.indisprimary END
    LIMIT 1) i ON true
LEFT JOIN LATERAL (
    SELECT bool_or(a.attgenerated = 's') AS stored, bool_or(a.attgenerated = 'v') AS virtual
    FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> '') g
    ON true
CROSS JOIN LATERAL (
    SELECT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                   AND d.objid = c.oid AND d.deptype = 'e') AS member) x
WHERE c.relkind IN ('r', 'p', 'f', 'm') AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND (c.relkind = 'r' OR NOT x.member)
ORDER BY n.nspname, c.relname";

/// All of them, by schema and name. Looks at catalogs only, so it waits for nobody's lock.
pub(crate) async fn list(client: &Client, server_version: u32) -> Result<Vec<Table>, Error> {
    let rows = client
        .query(TABLES, &[])
        .await
        .map_err(Error::sql("listing tables"))?;
    Ok(rows
        .iter()
        .map(|row| Table::from_row(row, server_version))
        .collect())
}

impl Table {
    fn from_row(row: &Row, server_version: u32) -> Self {
        let text = |name: &str| -> String { row.get(name) };
        let letter = |name: &str| text(name).chars().next().unwrap_or(' ');
        let flag = |name: &str| -> bool { row.get(name) };
        let number = |name: &str| -> Option<u64> {
            let value: Option<i64> = row.get(name);
            value.and_then(|value| u64::try_from(value).ok())
        };
        let identity_index: Option<String> = row.get("identity_index");
        let sends_generated = server_version >= 180_000;
        let (stored, generated_key) = (flag("stored"), flag("generated_key"));
        let full_works = !(sends_generated && flag("virtual"));
        let identity = match letter("replident") {
            'f' if full_works => Identity::Full,
            // Before 18 a generated column is never sent, so it cannot tell a row.
            'd' | 'i' if identity_index.is_some() && (sends_generated || !generated_key) => {
                Identity::Index
            }
            _ if full_works => Identity::None,
            _ => Identity::Impossible,
        };
        let needs_generated = sends_generated
            && match identity {
                Identity::Index => generated_key,
                Identity::Full | Identity::None | Identity::Impossible => stored,
            };
        let oid: u32 = row.get("oid");
        Self {
            oid: Oid::new(oid),
            schema: text("nspname"),
            name: text("relname"),
            quoted: text("quoted"),
            kind: letter("kind"),
            unlogged: flag("unlogged"),
            extension: flag("extension"),
            identity,
            replica_identity: letter("replident"),
            identity_index,
            owner: text("owner"),
            owned: flag("owned"),
            row_security: flag("row_security"),
            generated: stored || flag("virtual"),
            needs_generated,
            rows_estimate: number("rows_estimate"),
        }
    }

    /// How far it is protected under these settings.
    pub(crate) fn protection(&self, settings: &SourceSettings) -> Protection {
        if self.extension {
            return Protection::Extension;
        }
        match self.kind {
            'f' => return Protection::Foreign,
            'p' | 'm' => return Protection::Derived,
            _ => {}
        }
        if !settings.wants(&self.schema, &self.name) {
            return Protection::Excluded;
        }
        if self.unlogged {
            return Protection::Unlogged;
        }
        if !self.owned {
            return Protection::NotOwned;
        }
        match self.identity {
            Identity::Index | Identity::Full => Protection::Full,
            Identity::None if settings.no_identity == NoIdentity::Full => Protection::Full,
            Identity::None | Identity::Impossible => Protection::NoIdentity,
        }
    }

    /// It must be given `REPLICA IDENTITY FULL` before it is published.
    pub(crate) fn needs_full(&self, settings: &SourceSettings) -> bool {
        self.identity == Identity::None && self.protection(settings) == Protection::Full
    }
}

/// What to publish: every protected table, and no partitioned one. With a root in the publication each
/// partition is in it from its first moment, so one that is made or attached without a replica identity
/// of its own would make the source's UPDATEs fail before anybody could look; and no restore replays
/// into a partition that is not in its base.
pub(crate) fn published<'a>(tables: &'a [Table], settings: &SourceSettings) -> Vec<&'a Table> {
    let protected = |table: &&Table| table.protection(settings) == Protection::Full;
    tables.iter().filter(protected).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(oid: u32, kind: char) -> Table {
        Table {
            oid: Oid::new(oid),
            schema: "public".to_owned(),
            name: format!("t{oid}"),
            quoted: format!("public.t{oid}"),
            kind,
            unlogged: false,
            extension: false,
            identity: Identity::Index,
            replica_identity: 'd',
            identity_index: Some(format!("t{oid}_pkey")),
            owner: "app".to_owned(),
            owned: true,
            row_security: false,
            generated: false,
            needs_generated: false,
            rows_estimate: None,
        }
    }

    #[test]
    fn protection_by_what_a_table_is() {
        let settings = SourceSettings {
            exclude: vec!["public.t9".to_owned()],
            ..SourceSettings::default()
        };
        let full = SourceSettings {
            no_identity: NoIdentity::Full,
            ..SourceSettings::default()
        };
        let check = |table: &Table, expect| assert_eq!(table.protection(&settings), expect);
        check(&table(1, 'r'), Protection::Full);
        check(&table(1, 'f'), Protection::Foreign);
        check(&table(1, 'p'), Protection::Derived);
        check(&table(9, 'r'), Protection::Excluded);
        let unlogged = Table {
            unlogged: true,
            ..table(1, 'r')
        };
        check(&unlogged, Protection::Unlogged);
        let member = Table {
            extension: true,
            ..table(1, 'r')
        };
        check(&member, Protection::Extension);
        let other = Table {
            owned: false,
            ..table(1, 'r')
        };
        check(&other, Protection::NotOwned);
        let bare = Table {
            identity: Identity::None,
            ..table(1, 'r')
        };
        check(&bare, Protection::NoIdentity);
        assert_eq!(bare.protection(&full), Protection::Full);
        assert!(bare.needs_full(&full) && !bare.needs_full(&settings));
        let never = Table {
            identity: Identity::Impossible,
            ..table(1, 'r')
        };
        assert_eq!(never.protection(&full), Protection::NoIdentity);
    }
}
