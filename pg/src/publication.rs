//! Publications, and the tables that could be in one.
//!
//! A publication that publishes updates and deletes makes those fail on the source for a table
//! without usable replica identity. Nothing here adds such a table by itself: the caller names
//! each one, with [`TableInfo::has_usable_identity`] at hand.

use lastgood_proto::Oid;
use lastgood_proto::pgoutput::ReplicaIdentity;
use tokio_postgres::Row;

use crate::quote;
use crate::{Error, Session};

/// A table by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl TableName {
    #[must_use]
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            name: name.into(),
        }
    }

    /// Quoted for SQL.
    #[must_use]
    pub fn quoted(&self) -> String {
        quote::qualified(&self.schema, &self.name)
    }
}

/// What `pg_class.relkind` says, as far as a table can be meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// `r`
    Ordinary,
    /// `p`: the root or a branch of partitions; holds no rows of its own.
    Partitioned,
    /// `f`: its rows live elsewhere.
    Foreign,
}

/// How lasting a table's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    Permanent,
    /// Not in the WAL, so never in the stream.
    Unlogged,
}

/// One table of the database, temporary and system tables left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    pub oid: Oid,
    pub schema: String,
    pub name: String,
    pub kind: TableKind,
    pub persistence: Persistence,
    pub identity: ReplicaIdentity,
    /// The index that identifies rows: the primary key or the one chosen by REPLICA IDENTITY.
    pub identity_index: Option<String>,
    /// Whether UPDATE and DELETE go on working once they are published. Says nothing about the
    /// partitions below a partitioned table: each has an identity of its own.
    pub has_usable_identity: bool,
    pub is_partition: bool,
    pub has_stored_generated_columns: bool,
    pub has_row_security: bool,
    /// The extension it belongs to; `pg_dump` leaves the definition of such a table out.
    pub extension: Option<String>,
    /// Whether our role may publish it.
    pub is_owned: bool,
    /// With TOAST and without indexes.
    pub bytes: u64,
    /// The planner's; `None` if it was never analysed.
    pub rows_estimate: Option<u64>,
}

impl TableInfo {
    #[must_use]
    pub fn table_name(&self) -> TableName {
        TableName::new(&self.schema, &self.name)
    }
}

/// Every table, in the order of schema and name.
///
/// The identity rules are those of `RelationGetReplicaIndex`: a valid, immediate primary key for
/// DEFAULT, the chosen index if it still exists, any row for FULL.
pub async fn tables(session: &Session) -> Result<Vec<TableInfo>, Error> {
    const SQL: &str = "\
        SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, \
          c.relreplident::text, i.relname::text, \
          c.relreplident = 'f' OR i.oid IS NOT NULL, \
          c.relispartition, \
          EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid \
            AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = 's'), \
          c.relrowsecurity, \
          (SELECT e.extname::text FROM pg_catalog.pg_depend d \
            JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid \
            WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid \
            AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass \
            AND d.deptype = 'e'), \
          pg_catalog.pg_has_role(c.relowner, 'USAGE'), \
          coalesce(pg_catalog.pg_table_size(c.oid), 0), \
          c.reltuples::float8 \
        FROM pg_catalog.pg_class c \
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        LEFT JOIN LATERAL (SELECT x.indexrelid FROM pg_catalog.pg_index x \
          WHERE x.indrelid = c.oid AND x.indisvalid AND x.indimmediate \
          AND CASE c.relreplident WHEN 'd' THEN x.indisprimary \
            WHEN 'i' THEN x.indisreplident ELSE false END) k ON true \
        LEFT JOIN pg_catalog.pg_class i ON i.oid = k.indexrelid \
        WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't' \
          AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' \
        ORDER BY n.nspname, c.relname";
    let rows = session.client().query(SQL, &[]).await?;
    rows.iter().map(table).collect()
}

fn table(row: &Row) -> Result<TableInfo, Error> {
    let estimate: f64 = row.try_get(14)?;
    Ok(TableInfo {
        oid: Oid::new(row.try_get(0)?),
        schema: row.try_get(1)?,
        name: row.try_get(2)?,
        kind: match row.try_get(3)? {
            "p" => TableKind::Partitioned,
            "f" => TableKind::Foreign,
            _ => TableKind::Ordinary,
        },
        persistence: match row.try_get(4)? {
            "u" => Persistence::Unlogged,
            _ => Persistence::Permanent,
        },
        identity: match row.try_get(5)? {
            "f" => ReplicaIdentity::Full,
            "i" => ReplicaIdentity::Index,
            "n" => ReplicaIdentity::Nothing,
            _ => ReplicaIdentity::Default,
        },
        identity_index: row.try_get(6)?,
        has_usable_identity: row.try_get(7)?,
        is_partition: row.try_get(8)?,
        has_stored_generated_columns: row.try_get(9)?,
        has_row_security: row.try_get(10)?,
        extension: row.try_get(11)?,
        is_owned: row.try_get(12)?,
        bytes: u64::try_from(row.try_get::<_, i64>(13)?).unwrap_or(0),
        rows_estimate: whole(estimate),
    })
}

/// A planner's estimate as a count; negative means unknown.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be at least zero, and a float saturates"
)]
fn whole(estimate: f64) -> Option<u64> {
    (estimate >= 0.0).then_some(estimate as u64)
}

/// The publication's OID; it changes when the publication is dropped and made again.
pub async fn oid(session: &Session, name: &str) -> Result<Option<Oid>, Error> {
    let row = session
        .client()
        .query_opt(
            "SELECT oid FROM pg_catalog.pg_publication WHERE pubname = $1",
            &[&name],
        )
        .await?;
    Ok(row.map(|row| row.try_get(0).map(Oid::new)).transpose()?)
}

/// The tables that were put into the publication by name; partitions that come with a partitioned
/// table are not among them.
pub async fn members(session: &Session, name: &str) -> Result<Vec<TableName>, Error> {
    let rows = session
        .client()
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_publication_rel r \
             JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
             JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE p.pubname = $1 ORDER BY 1, 2",
            &[&name],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(TableName::new(
                row.try_get::<_, &str>(0)?,
                row.try_get::<_, &str>(1)?,
            ))
        })
        .collect()
}

/// Everything, and each change under the partition that it happened in: with the root's name a
/// TRUNCATE of one partition would not be in the stream.
const SETTINGS: &str = "publish = 'insert, update, delete, truncate', \
                        publish_via_partition_root = false";

/// Makes the publication if there is none, gives it exactly these tables, and returns its OID.
///
/// An existing one keeps its OID. To be called before the slot is made: a slot cannot decode what
/// happened before its publication existed.
pub async fn ensure(session: &Session, name: &str, tables: &[TableName]) -> Result<Oid, Error> {
    if let Some(oid) = oid(session, name).await? {
        mend_settings(session, name).await?;
        set_tables(session, name, tables).await?;
        return Ok(oid);
    }
    let list: Vec<String> = tables.iter().map(TableName::quoted).collect();
    let for_tables = match list.is_empty() {
        true => String::new(),
        false => format!(" FOR TABLE {}", list.join(", ")),
    };
    let sql = format!(
        "CREATE PUBLICATION {}{for_tables} WITH ({SETTINGS}{})",
        quote::identifier(name),
        generated_columns(session, tables).await?,
    );
    session.client().batch_execute(&sql).await?;
    oid(session, name)
        .await?
        .ok_or_else(|| Error::Protocol("a publication is gone right after it was made".to_owned()))
}

/// Puts back what somebody may have altered.
async fn mend_settings(session: &Session, name: &str) -> Result<(), Error> {
    let intact: bool = session
        .client()
        .query_one(
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND NOT pubviaroot \
             FROM pg_catalog.pg_publication WHERE pubname = $1",
            &[&name],
        )
        .await?
        .try_get(0)?;
    if !intact {
        let sql = format!(
            "ALTER PUBLICATION {} SET ({SETTINGS})",
            quote::identifier(name)
        );
        session.client().batch_execute(&sql).await?;
    }
    Ok(())
}

/// Gives the publication exactly these tables. Does nothing if it has them.
pub async fn set_tables(session: &Session, name: &str, tables: &[TableName]) -> Result<(), Error> {
    let mut wanted = tables.to_vec();
    wanted.sort();
    wanted.dedup();
    let present = members(session, name).await?;
    if present == wanted {
        return Ok(());
    }
    let publication = quote::identifier(name);
    let list = |tables: &[TableName]| -> String {
        let quoted: Vec<String> = tables.iter().map(TableName::quoted).collect();
        quoted.join(", ")
    };
    let change = match wanted.is_empty() {
        true => format!(
            "ALTER PUBLICATION {publication} DROP TABLE {}",
            list(&present)
        ),
        false => format!(
            "ALTER PUBLICATION {publication} SET TABLE {}",
            list(&wanted)
        ),
    };
    let generated = match generated_columns(session, &wanted).await? {
        "" => String::new(),
        setting => format!("; ALTER PUBLICATION {publication} SET ({})", &setting[2..]),
    };
    session
        .client()
        // One simple query is one transaction.
        .batch_execute(&format!("{change}{generated}"))
        .await?;
    Ok(())
}

/// Drops the publication; `false` if there is none.
pub async fn drop(session: &Session, name: &str) -> Result<bool, Error> {
    if oid(session, name).await?.is_none() {
        return Ok(false);
    }
    let sql = format!("DROP PUBLICATION IF EXISTS {}", quote::identifier(name));
    session.client().batch_execute(&sql).await?;
    Ok(true)
}

/// On 18, a table with REPLICA IDENTITY FULL and a stored generated column refuses UPDATE unless
/// the column is published; so it is, where such a table is among these, and nowhere else.
async fn generated_columns(session: &Session, wanted: &[TableName]) -> Result<&'static str, Error> {
    if session.server_version() < 180_000 {
        return Ok("");
    }
    let needed = tables(session).await?.iter().any(|table| {
        table.identity == ReplicaIdentity::Full
            && table.has_stored_generated_columns
            && (wanted.contains(&table.table_name()) || table.is_partition)
    });
    Ok(match needed {
        true => ", publish_generated_columns = stored",
        false => "",
    })
}
