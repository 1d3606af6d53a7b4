//! What is said of tables, and what is done to publications.

use anyhow::{Context, Result};
use lastgood_integration::TestDatabase;
use lastgood_integration::tools::MAJORS;
use lastgood_pg::publication::{self, Persistence, TableInfo, TableKind, TableName};
use lastgood_proto::pgoutput::ReplicaIdentity;

use crate::session;

const SCHEMA: &str = r#"
    CREATE SCHEMA "my schema";
    CREATE TABLE keyed (id int PRIMARY KEY, x text);
    CREATE TABLE bare (x text);
    CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE);
    CREATE TABLE chosen (id int NOT NULL, x text);
    CREATE UNIQUE INDEX by_id ON chosen (id);
    ALTER TABLE chosen REPLICA IDENTITY USING INDEX by_id;
    CREATE TABLE lost_index (id int NOT NULL);
    CREATE UNIQUE INDEX lost ON lost_index (id);
    ALTER TABLE lost_index REPLICA IDENTITY USING INDEX lost;
    DROP INDEX lost;
    CREATE TABLE whole (x text, y int GENERATED ALWAYS AS (length(x)) STORED);
    ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE nothing (id int PRIMARY KEY);
    ALTER TABLE nothing REPLICA IDENTITY NOTHING;
    CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
    CREATE TEMP TABLE temporary (id int PRIMARY KEY);
    CREATE TABLE "my schema"."odd "" name" (id int PRIMARY KEY);
    CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
    CREATE TABLE secret (id int PRIMARY KEY);
    ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
    CREATE VIEW v AS SELECT 1;
    INSERT INTO keyed SELECT i, 'x' FROM generate_series(1, 1000) i;
    ANALYZE keyed;
"#;

#[tokio::test]
async fn tables() -> Result<()> {
    for major in MAJORS {
        let database = TestDatabase::new(major).await?;
        database.execute(SCHEMA).await?;
        let session = session(&database.url()).await;
        let tables = publication::tables(&session).await?;
        let find = |name: &str| -> Result<&TableInfo> {
            tables
                .iter()
                .find(|table| table.name == name)
                .context("no such table")
        };
        assert_eq!(tables.len(), 12, "{major}: {tables:#?}");
        let keyed = find("keyed")?;
        assert_eq!(keyed.identity_index.as_deref(), Some("keyed_pkey"));
        assert_eq!(keyed.rows_estimate, Some(1000));
        assert!(keyed.has_usable_identity && keyed.is_owned && keyed.bytes > 0);
        assert!(!find("bare")?.has_usable_identity);
        assert!(!find("deferred")?.has_usable_identity);
        assert_eq!(find("chosen")?.identity_index.as_deref(), Some("by_id"));
        assert!(find("chosen")?.has_usable_identity);
        assert!(!find("lost_index")?.has_usable_identity);
        assert_eq!(find("whole")?.identity, ReplicaIdentity::Full);
        assert!(find("whole")?.has_usable_identity && find("whole")?.has_stored_generated_columns);
        assert!(!find("nothing")?.has_usable_identity);
        assert_eq!(find("unlogged")?.persistence, Persistence::Unlogged);
        assert_eq!(find("odd \" name")?.schema, "my schema");
        assert_eq!(find("parted")?.kind, TableKind::Partitioned);
        assert!(find("parted_1")?.is_partition && find("parted_1")?.has_usable_identity);
        assert!(find("secret")?.has_row_security);

        // The server agrees: exactly these refuse an UPDATE once it is published.
        let publishable: Vec<TableName> = tables
            .iter()
            .filter(|table| table.persistence == Persistence::Permanent && !table.is_partition)
            .map(TableInfo::table_name)
            .collect();
        publication::ensure(&session, "p", &publishable).await?;
        for table in &tables {
            if table.kind == TableKind::Ordinary && table.persistence == Persistence::Permanent {
                let column = if table.name == "bare" || table.name == "whole" {
                    "x"
                } else {
                    "id"
                };
                let update = format!(
                    "UPDATE {} SET {column} = {column} WHERE false",
                    table.table_name().quoted()
                );
                let works = session.client().batch_execute(&update).await;
                assert_eq!(
                    works.is_ok(),
                    table.has_usable_identity,
                    "{major}: {table:?} {works:?}"
                );
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_publication_lives() -> Result<()> {
    for major in MAJORS {
        let database = TestDatabase::new(major).await?;
        database
            .execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);")
            .await?;
        let session = session(&database.url()).await;
        let (a, b) = (TableName::new("public", "a"), TableName::new("public", "b"));
        let name = "it's \"ours\"";
        assert_eq!(publication::oid(&session, name).await?, None);
        let oid = publication::ensure(&session, name, &[]).await?;
        assert_eq!(publication::members(&session, name).await?, []);
        assert_eq!(
            publication::ensure(&session, name, std::slice::from_ref(&a)).await?,
            oid
        );
        let both = [b.clone(), a.clone()];
        publication::set_tables(&session, name, &both).await?;
        assert_eq!(
            publication::members(&session, name).await?,
            [a.clone(), b.clone()]
        );
        // Somebody meddles.
        session
            .client()
            .batch_execute("ALTER PUBLICATION \"it's \"\"ours\"\"\" SET (publish = 'insert', publish_via_partition_root = true)")
            .await?;
        assert_eq!(publication::ensure(&session, name, &[a]).await?, oid);
        let intact: bool = session
            .client()
            .query_one(
                "SELECT pubupdate AND NOT pubviaroot FROM pg_publication WHERE pubname = $1",
                &[&name],
            )
            .await?
            .get(0);
        assert!(intact);
        publication::set_tables(&session, name, &[]).await?;
        assert_eq!(publication::members(&session, name).await?, []);
        assert!(publication::drop(&session, name).await?);
        assert!(!publication::drop(&session, name).await?);
        let again = publication::ensure(&session, name, &[]).await?;
        assert_ne!(again, oid);
    }
    Ok(())
}

/// Existing publications are mended, too: a table that needs its generated column comes later.
#[tokio::test]
async fn generated_columns_on_18() -> Result<()> {
    let database = TestDatabase::new(18).await?;
    database.execute(SCHEMA).await?;
    let session = session(&database.url()).await;
    let keyed = TableName::new("public", "keyed");
    let whole = TableName::new("public", "whole");
    publication::ensure(&session, "p", std::slice::from_ref(&keyed)).await?;
    publication::set_tables(&session, "p", &[keyed, whole]).await?;
    session
        .client()
        .batch_execute("INSERT INTO public.whole VALUES ('x'); UPDATE public.whole SET x = 'yy'")
        .await?;
    Ok(())
}
