//! Tables of every kind: what is captured of them, and what the source feels of it.

use anyhow::{Context, Result, ensure};
use lastgood_engine::{SourceSettings, create_point};
use lastgood_integration::{Postgres, TestDatabase};
use lastgood_proto::Lsn;
use lastgood_proto::key::{ArchiveName, SourceObject};
use lastgood_proto::manifest::{BaseManifest, Protection};
use lastgood_proto::pgoutput::Value;
use lastgood_proto::segment::Record;

use crate::majors;
use crate::running::{Fixture, quick, wal_end};

fn protection(base: &BaseManifest, name: &str) -> Option<Protection> {
    let table = base.tables.iter().find(|table| table.name == name);
    table.map(|table| table.protection)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_never_fails_because_of_us() -> Result<()> {
    for major in majors() {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        client
            .batch_execute(
                r#"CREATE TABLE plain(id int PRIMARY KEY, v text);
                   CREATE TABLE bare(a int);
                   CREATE TABLE nothing(a int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
                   CREATE TABLE late(a int PRIMARY KEY DEFERRABLE);
                   CREATE TABLE "full"(a int); ALTER TABLE "full" REPLICA IDENTITY FULL;
                   CREATE TABLE chosen(a int NOT NULL, b int); CREATE UNIQUE INDEX chosen_a ON chosen(a);
                   ALTER TABLE chosen REPLICA IDENTITY USING INDEX chosen_a;
                   CREATE TABLE computed(a int, g int GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY);
                   CREATE UNLOGGED TABLE fleeting(a int PRIMARY KEY);
                   CREATE TABLE parts(a int PRIMARY KEY) PARTITION BY RANGE (a);
                   CREATE TABLE part1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
                   CREATE TABLE "Odd ""Näme"(a int PRIMARY KEY);
                   CREATE TABLE left_out(a int PRIMARY KEY);"#,
            )
            .await?;
        let names = [
            "bare",
            "nothing",
            "late",
            "\"full\"",
            "chosen",
            "fleeting",
            "parts",
            "\"Odd \"\"Näme\"",
            "left_out",
            "computed",
        ];
        let settings = SourceSettings {
            exclude: vec!["public.left_*".to_owned()],
            ..quick()
        };
        let fixture = Fixture::new(&database.url(), settings).await?;
        let mut running = fixture.start();
        let base = running.base().await?;
        for (name, expected) in [
            ("plain", Protection::Full),
            ("bare", Protection::NoIdentity),
            ("nothing", Protection::NoIdentity),
            ("late", Protection::NoIdentity),
            ("full", Protection::Full),
            ("chosen", Protection::Full),
            ("fleeting", Protection::Unlogged),
            ("parts", Protection::Derived),
            ("part1", Protection::Full),
            ("Odd \"Näme", Protection::Full),
            ("left_out", Protection::Excluded),
            (
                "computed",
                if major >= 18 {
                    Protection::Full
                } else {
                    Protection::NoIdentity
                },
            ),
        ] {
            assert_eq!(protection(&base, name), Some(expected), "{name} on {major}");
        }
        for name in names {
            let sql = format!(
                "INSERT INTO {name}(a) VALUES (1); UPDATE {name} SET a = 2; DELETE FROM {name};"
            );
            client.batch_execute(&sql).await.context(name)?;
        }
        // A partition made later is captured from the next base on, and not published before.
        client
            .batch_execute(
                "CREATE TABLE part2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
                 INSERT INTO parts VALUES (101); TRUNCATE part2;",
            )
            .await?;
        running.durable(wal_end(&client).await?).await?;
        // A table that loses its identity is let go before anybody notices.
        client
            .batch_execute("ALTER TABLE plain DROP CONSTRAINT plain_pkey")
            .await?;
        running
            .wait("unpublished table", |event| match event {
                lastgood_engine::Event::Status(status) => status
                    .reason
                    .filter(|reason| reason.contains("public.plain"))
                    .map(drop),
                _ => None,
            })
            .await?;
        client.batch_execute("UPDATE plain SET v = 'x'").await?;
        running.stop().await?;
        let records = fixture.records(&fixture.newest().await?).await?;
        let described: Vec<&str> = records
            .iter()
            .filter_map(|record| match record {
                Record::Relation(relation) => Some(relation.table.as_str()),
                _ => None,
            })
            .collect();
        ensure!(
            described.contains(&"part1") && described.contains(&"Odd \"Näme"),
            "{described:?}"
        );
        let unpublished = ["bare", "left_out", "part2"];
        ensure!(
            !unpublished.iter().any(|name| described.contains(name)),
            "{described:?}"
        );
    }
    Ok(())
}

/// All of its partitions, in one command.
#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_without_a_key_is_let_go() -> Result<()> {
    for major in [14, 18] {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        client
            .batch_execute(
                "CREATE TABLE root(id int, d int, v int, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
                 CREATE TABLE p1 PARTITION OF root FOR VALUES IN (1);
                 CREATE TABLE p2 PARTITION OF root FOR VALUES IN (2);
                 INSERT INTO root VALUES (1, 1, 0), (2, 2, 0)",
            )
            .await?;
        let fixture = Fixture::new(&database.url(), quick()).await?;
        let mut running = fixture.start();
        running.base().await?;
        client
            .batch_execute("ALTER TABLE root DROP CONSTRAINT root_pkey")
            .await?;
        running
            .wait("unpublished partitions", |event| match event {
                lastgood_engine::Event::Status(status) => status
                    .reason
                    .filter(|reason| reason.contains("lost its replica identity"))
                    .map(drop),
                _ => None,
            })
            .await?;
        client.batch_execute("UPDATE root SET v = 1").await?;
        running.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_a_sql_ascii_database_come_as_they_are() -> Result<()> {
    let server = Postgres::builder(15)
        .initdb("--encoding=SQL_ASCII")
        .initdb("--locale=C")
        .start()
        .await?;
    let client = server.connect("postgres").await?;
    client
        .batch_execute("CREATE TABLE t(v bytea, id int PRIMARY KEY, x text)")
        .await?;
    let fixture = Fixture::new(&server.url("postgres"), quick()).await?;
    let mut running = fixture.start();
    running.base().await?;
    client
        .batch_execute(r"INSERT INTO t VALUES ('', 1, E'\xff\xfe'), ('', 2, 'plain')")
        .await?;
    running.durable(wal_end(&client).await?).await?;
    running.stop().await?;
    let records = fixture.records(&fixture.newest().await?).await?;
    let values: Vec<Value<'_>> = records
        .iter()
        .filter_map(|record| match record {
            Record::Insert { new, .. } => new.as_tuple().iter().nth(2),
            _ => None,
        })
        .collect();
    assert_eq!(values, [Value::Text(&[0xff, 0xfe]), Value::Text(b"plain")]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn big_tables_are_dumped_by_themselves_in_parts() -> Result<()> {
    for major in majors() {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        client
            .batch_execute(
                r#"CREATE TABLE "Big ""one"(id int PRIMARY KEY, v text);
                   INSERT INTO "Big ""one" SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 20000) i;
                   CREATE TABLE small(id int PRIMARY KEY); INSERT INTO small VALUES (1)"#,
            )
            .await?;
        let settings = SourceSettings {
            big_table_bytes: 1 << 20,
            ..quick()
        };
        let fixture = Fixture::new(&database.url(), settings).await?;
        let mut running = fixture.start();
        let base = running.base().await?;
        running.stop().await?;
        let parts: Vec<_> = base
            .archives
            .iter()
            .filter(|archive| matches!(archive.name, ArchiveName::Rows(..)))
            .collect();
        // Before 14 a range of blocks is found by reading all of them.
        ensure!((major >= 14) == (parts.len() > 3), "{parts:?}");
        let table = Some(("public".to_owned(), "Big \"one".to_owned()));
        ensure!(parts.iter().all(|part| part.table == table), "{parts:?}");
        let main = &base.archives[0];
        ensure!(
            main.name == ArchiveName::Main && main.bytes < 1_000_000,
            "{main:?}"
        );
        ensure!(
            base.archives
                .iter()
                .any(|archive| archive.name == ArchiveName::Globals)
        );
        // What was stored is the archive: the bytes and the digest that the manifest tells.
        let lineage = fixture.newest().await?.id;
        let mut ids = Vec::new();
        for archive in &base.archives {
            let object = SourceObject::Archive(lineage, base.id, archive.name);
            let mut reader = fixture.store.open(&object).await?;
            let mut digest = <sha2::Sha256 as sha2::Digest>::new();
            let mut content = Vec::new();
            while let Some(chunk) = reader.next_chunk().await? {
                sha2::Digest::update(&mut digest, &chunk);
                content.extend_from_slice(&chunk);
            }
            let digest = sha2::Digest::finalize(digest);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let bytes = content.len() as u64;
            assert_eq!((bytes, hex), (archive.bytes, archive.sha256.clone()));
            if matches!(archive.name, ArchiveName::Rows(..)) {
                let script = String::from_utf8(content)?;
                let rows = script.strip_prefix("COPY public.\"Big \"\"one\" (id, v) FROM stdin;\n");
                let rows = rows.and_then(|rows| rows.strip_suffix("\\.\n"));
                let rows = rows.with_context(|| format!("{script:.200}"))?.lines();
                let id = |row: &str| row.split_once('\t')?.0.parse::<u32>().ok();
                ids.extend(rows.filter_map(id));
            }
        }
        ids.sort_unstable();
        ensure!(ids.iter().copied().eq(1..=20_000), "{} rows", ids.len());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_lies_between_what_was_before_and_after() -> Result<()> {
    for major in majors() {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        client
            .batch_execute("CREATE TABLE t(id int PRIMARY KEY)")
            .await?;
        let fixture = Fixture::new(&database.url(), quick()).await?;
        let mut running = fixture.start();
        running.base().await?;
        client.batch_execute("INSERT INTO t VALUES (1)").await?;
        let point = create_point(&fixture.source, &fixture.store, "before-release").await?;
        client.batch_execute("INSERT INTO t VALUES (2)").await?;
        running.durable(wal_end(&client).await?).await?;
        running.stop().await?;
        let newest = fixture.newest().await?;
        assert_eq!(newest.points.len(), 1);
        let mut commits: Vec<(String, Lsn)> = Vec::new();
        let mut row = String::new();
        for record in fixture.records(&newest).await? {
            match record {
                Record::Insert { new, .. } => match new.as_tuple().iter().next() {
                    Some(Value::Text(text)) => row = String::from_utf8_lossy(text).into_owned(),
                    other => anyhow::bail!("{other:?}"),
                },
                Record::Message(message) => {
                    row = String::from_utf8_lossy(&message.prefix).into_owned();
                }
                Record::Commit { lsn, .. } => commits.push((row.clone(), lsn)),
                _ => {}
            }
        }
        let lsn = |name: &str| {
            let found = commits.iter().find(|(row, _)| row == name);
            found.map(|(_, lsn)| *lsn).context(name.to_owned())
        };
        ensure!(lsn("1")? <= point.lsn && lsn("lastgood.point")? <= point.lsn);
        ensure!(lsn("2")? > point.lsn);
        ensure!(
            create_point(&fixture.source, &fixture.store, "no/name")
                .await
                .is_err()
        );
    }
    Ok(())
}
