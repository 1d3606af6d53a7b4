//! The client tools: found, fed, waited for, killed.

use std::path::PathBuf;

use anyhow::{Context, Result};
use lastgood_integration::tools::{self, MAJORS};
use lastgood_integration::{Postgres, TestDatabase, wait};
use lastgood_pg::dump::{ArchiveMaker, DumpOptions, RestoreInput, RestoreOptions, Section};
use lastgood_pg::publication::{self, TableName};
use lastgood_pg::{Loan, PgTools, Purpose, Session, SlotKind, ToolError, slot};
use lastgood_proto::Class;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{config, replication, session};

async fn all() -> Result<Vec<PgTools>> {
    let mut found = Vec::new();
    for major in MAJORS {
        let folder: PathBuf = tools::bin_dir(major)?;
        found.push(PgTools::in_folder(folder).await.context("no tools")?);
    }
    Ok(found)
}

async fn dump(tools: &PgTools, url: &str, options: &DumpOptions) -> Result<Vec<u8>> {
    let session = session(url).await;
    Ok(dump_in(tools, session.lend().await?, url, options).await?.0)
}

async fn dump_in(
    tools: &PgTools,
    session: Loan,
    url: &str,
    options: &DumpOptions,
) -> Result<(Vec<u8>, Loan)> {
    let mut process = tools.dump(session, config(url).database(), options)?;
    let mut archive = Vec::new();
    process.stdout.read_to_end(&mut archive).await?;
    Ok((archive, process.wait().await?))
}

#[tokio::test]
async fn versions() -> Result<()> {
    let found = all().await?;
    let majors: Vec<u32> = found.iter().map(PgTools::major).collect();
    assert_eq!(majors, MAJORS);
    assert!(found[2].version().starts_with("15."));
    assert_eq!(PgTools::in_folder("/nonexistent".into()).await, None);
    // Whatever this machine has, it does not fail.
    PgTools::discover().await;
    Ok(())
}

/// Slot, snapshot, dump under it while another connection streams what came after.
#[tokio::test]
async fn a_dump_under_a_snapshot_while_the_stream_runs() -> Result<()> {
    let found = all().await?;
    for major in MAJORS {
        let database = TestDatabase::new(major).await?;
        let name = format!("slot_{}", database.name);
        database
            .execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)")
            .await?;
        let sql = session(&database.url()).await;
        publication::ensure(&sql, "p", &[TableName::new("public", "t")]).await?;
        let mut exporter = replication(&database.url()).await;
        let created = exporter.create_slot(&name, SlotKind::Permanent).await?;
        // After the consistent point: in the stream and not in the dump.
        database
            .execute("INSERT INTO t SELECT generate_series(1001, 1010)")
            .await?;
        let mut stream = replication(&database.url())
            .await
            .start(&name, created.consistent_point, "p", 0)
            .await?;
        let streamed = async {
            let mut rows = 0;
            while rows < 10 {
                if let lastgood_proto::copy_both::ReplicationMessage::XLogData { data, .. } =
                    stream.next().await?
                    && data.first() == Some(&b'I')
                {
                    rows += 1;
                }
            }
            Ok::<_, anyhow::Error>(rows)
        };
        let chosen = PgTools::for_dump(&found, sql.server_version())?;
        assert_eq!(chosen.major(), major);
        let url = database.url();
        let lent = session(&url).await;
        lent.client()
            .batch_execute(&under(&created.snapshot))
            .await?;
        drop(exporter);
        let (lent, options) = (lent.lend().await?, DumpOptions::default());
        let (rows, archive) = tokio::join!(streamed, dump_in(&chosen, lent, &url, &options));
        assert_eq!(rows?, 10);

        let target = database.sibling().await?;
        restore(
            &found,
            &target,
            major,
            archive?.0,
            &RestoreOptions {
                exit_on_error: true,
                ..RestoreOptions::default()
            },
        )
        .await?;
        let client = target.connect().await?;
        let count: i64 = client
            .query_one("SELECT count(*) FROM t", &[])
            .await?
            .get(0);
        assert_eq!(count, 1000, "{major}");
        let publications: i64 = client
            .query_one("SELECT count(*) FROM pg_publication", &[])
            .await?
            .get(0);
        assert_eq!(publications, 0);
        drop(stream);
        wait::until("the slot is free", || async {
            Ok(slot::drop_slot(&sql, &name).await.ok())
        })
        .await?;
    }
    Ok(())
}

fn under(snapshot: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{snapshot}'"
    )
}

/// What a session has locked and sees, every tool that it is lent to has and sees, though a TRUNCATE
/// waits; and no tool knows how the server is reached.
// The server ends while a session that was dropped is being cancelled: not on this thread.
#[tokio::test(flavor = "multi_thread")]
async fn a_lent_session_goes_from_tool_to_tool() -> Result<()> {
    let found = all().await?;
    for major in MAJORS {
        let server = Postgres::builder(major).tls().start().await?;
        let root = server.ca_file();
        let url = format!(
            "{}?sslmode=verify-full&sslrootcert={}",
            server.create_database("lent").await?,
            root.display()
        );
        let client = server.connect("lent").await?;
        client
            .batch_execute(
                "CREATE TABLE t (id int PRIMARY KEY, v text);
                 INSERT INTO t SELECT i, repeat('row' || i, 20) FROM generate_series(1, 20000) i",
            )
            .await?;
        let lent = session(&url).await;
        lent.client()
            .batch_execute(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE public.t IN ACCESS SHARE MODE",
            )
            .await?;
        // Prepared statements of the session and of the tools are not in the way of the next tool.
        lent.client()
            .query("SELECT count(*) FROM public.t", &[])
            .await?;
        let other = server.connect("lent").await?;
        let truncating = tokio::spawn(async move { other.batch_execute("TRUNCATE t").await });
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        wait::until("the TRUNCATE to wait", async || {
            let count: i64 = client.query_one(waiting, &[]).await?.get(0);
            Ok((count > 0).then_some(()))
        })
        .await?;
        let tools = PgTools::for_dump(&found, major * 10_000)?;
        let options = DumpOptions {
            lock_wait_timeout: Some(std::time::Duration::from_millis(500)),
            ..DumpOptions::default()
        };
        let (first, lent) = dump_in(&tools, lent.lend().await?, &url, &options).await?;
        let (second, lent) = dump_in(&tools, lent, &url, &options).await?;
        for archive in [first, second] {
            let text = String::from_utf8_lossy(&archive);
            assert!(text.contains("20000\trow20000row20000"), "{major}");
        }
        assert!(!truncating.is_finished());
        drop(lent);
        truncating.await??;
    }
    Ok(())
}

/// A server process that waits for a lock does not look whether its client is still there.
#[tokio::test]
async fn a_lent_session_that_is_dropped_lets_its_locks_go_though_it_waits() -> Result<()> {
    let found = all().await?;
    let database = TestDatabase::new(18).await?;
    let held = "CREATE TABLE held (id int); CREATE TABLE wanted (id int)";
    database.execute(held).await?;
    let other = database.connect().await?;
    other
        .batch_execute("BEGIN; LOCK TABLE wanted IN ACCESS EXCLUSIVE MODE")
        .await?;
    let lent = session(&database.url()).await;
    lent.client()
        .batch_execute(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
             LOCK TABLE public.held IN ACCESS SHARE MODE",
        )
        .await?;
    let tools = PgTools::for_dump(&found, 180_000)?;
    let url = database.url();
    let options = DumpOptions::default();
    let process = tools.dump(lent.lend().await?, config(&url).database(), &options)?;
    let client = database.connect().await?;
    let locks = async |sql: &str| -> Result<i64> { Ok(client.query_one(sql, &[]).await?.get(0)) };
    wait::until("the tool to wait", async || {
        let waiting =
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'wanted'::regclass";
        Ok((locks(waiting).await? > 0).then_some(()))
    })
    .await?;
    drop(process);
    wait::until("its locks to be gone", async || {
        let left = "SELECT count(*) FROM pg_locks WHERE relation = 'held'::regclass";
        Ok((locks(left).await? == 0).then_some(()))
    })
    .await?;
    Ok(other.batch_execute("ROLLBACK").await?)
}

async fn restore(
    found: &[PgTools],
    target: &TestDatabase,
    maker: u32,
    archive: Vec<u8>,
    options: &RestoreOptions,
) -> Result<String> {
    let version = target.server.major() * 10_000;
    let chosen = PgTools::for_restore(found, version, ArchiveMaker(maker))?;
    let mut process = chosen.restore(&config(&target.url()), options)?;
    if let Some(mut stdin) = process.stdin.take() {
        // A tool that fails stops reading; what it says counts.
        let _ = stdin.write_all(&archive).await;
    }
    Ok(process.wait().await?)
}

#[tokio::test]
async fn an_archive_of_17_into_15() -> Result<()> {
    let found = all().await?;
    let source = TestDatabase::new(17).await?;
    source.execute("CREATE TABLE t AS SELECT 1 AS x").await?;
    let tools = PgTools::for_dump(&found, 170_000)?;
    let archive = dump(&tools, &source.url(), &DumpOptions::default()).await?;
    let target = TestDatabase::new(15).await?;
    // Its one complaint is passed over, and handed out.
    let warning = restore(&found, &target, 17, archive, &RestoreOptions::default()).await?;
    assert!(warning.contains("transaction_timeout"), "{warning}");
    assert_eq!(
        target
            .connect()
            .await?
            .query_one("SELECT x FROM t", &[])
            .await?
            .get::<_, i32>(0),
        1
    );
    Ok(())
}

/// The choice of tools rests on what they really do, all with all: a `pg_dump` refuses a newer server.
#[tokio::test]
async fn which_pg_dump_reads_a_server() -> Result<()> {
    let found = all().await?;
    for server in MAJORS {
        let database = TestDatabase::new(server).await?;
        for tools in &found {
            let chosen = PgTools::for_dump(std::slice::from_ref(tools), server * 10_000).is_ok();
            let works = dump(tools, &database.url(), &DumpOptions::default())
                .await
                .is_ok();
            assert_eq!(chosen, works, "pg_dump {} of {server}", tools.major());
        }
    }
    Ok(())
}

/// And a `pg_restore` an archive of a newer format.
#[tokio::test]
async fn which_pg_restore_reads_an_archive() -> Result<()> {
    let found = all().await?;
    let database = TestDatabase::new(13).await?;
    let folder = tempfile::tempdir()?;
    for maker in &found {
        let archive = folder.path().join(maker.major().to_string());
        let bytes = dump(maker, &database.url(), &DumpOptions::default()).await?;
        std::fs::write(&archive, bytes)?;
        for reader in &found {
            let of = ArchiveMaker(maker.major());
            let only = std::slice::from_ref(reader);
            let chosen = PgTools::for_restore(only, 130_000, of).is_ok();
            let list = std::process::Command::new(reader.dir().join("pg_restore"))
                .arg("--list")
                .arg(&archive)
                .output()?;
            let (by, of) = (reader.major(), maker.major());
            assert_eq!(chosen, list.status.success(), "an archive of {of} by {by}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn parts_of_a_database() -> Result<()> {
    let found = all().await?;
    let database = TestDatabase::new(15).await?;
    database
        .execute(
            r#"CREATE SCHEMA "my * schema";
            CREATE TABLE "my * schema"."big "" table" (id int PRIMARY KEY, x text);
            INSERT INTO "my * schema"."big "" table" SELECT i, 'row ' || i FROM generate_series(1, 100) i;
            CREATE TABLE small (id int PRIMARY KEY); INSERT INTO small VALUES (1);
            CREATE SCHEMA ours; CREATE TABLE ours.hidden (x int);"#,
        )
        .await?;
    let tools = PgTools::for_dump(&found, 150_000)?;
    let big = TableName::new("my * schema", "big \" table");
    let main = DumpOptions {
        exclude_table_data: vec![big],
        exclude_schemas: vec!["ours".to_owned()],
        ..DumpOptions::default()
    };
    let main = dump(&tools, &database.url(), &main).await?;

    let toc = tools.list(main.as_slice()).await?.entries("UTF8");
    let has = |kind, schema, tag| toc.iter().any(|entry| entry.is(kind, schema, tag));
    assert!(has("TABLE", "my * schema", "big \" table"));
    assert!(!has("TABLE DATA", "my * schema", "big \" table"));
    assert!(has("TABLE DATA", "public", "small"));
    assert!(has("CONSTRAINT", "public", "small small_pkey"));
    assert!(!has("TABLE", "ours", "hidden"));

    // Section by section, from a file and with a list.
    let target = database.sibling().await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("main.dump");
    std::fs::write(&file, &main)?;
    let section = |section| RestoreOptions {
        sections: vec![section],
        exit_on_error: true,
        ..RestoreOptions::default()
    };
    restore(
        &found,
        &target,
        15,
        main.clone(),
        &section(Section::PreData),
    )
    .await?;
    restore(&found, &target, 15, main.clone(), &section(Section::Data)).await?;
    let list = folder.path().join("list");
    let lines: String = tools
        .list(main.as_slice())
        .await?
        .entries("UTF8")
        .iter()
        .filter(|entry| entry.kind() == "CONSTRAINT")
        .map(|entry| format!("{entry}\n"))
        .collect();
    std::fs::write(&list, lines)?;
    let options = RestoreOptions {
        input: RestoreInput::File(file),
        list_file: Some(list),
        jobs: Some(2),
        ..section(Section::PostData)
    };
    restore(&found, &target, 15, Vec::new(), &options).await?;
    let count: i64 = target
        .connect()
        .await?
        .query_one(
            r#"SELECT (SELECT count(*) FROM small) + 9 * count(*) FROM "my * schema"."big "" table""#,
            &[],
        )
        .await?
        .get(0);
    assert_eq!(count, 1);
    Ok(())
}

#[tokio::test]
async fn globals() -> Result<()> {
    let server = Postgres::start(15, &[]).await?;
    server
        .execute("postgres", "CREATE ROLE worker LOGIN PASSWORD 'SECRET'")
        .await?;
    let tools = PgTools::in_folder(server.bin().to_owned())
        .await
        .context("no tools")?;
    let session = session(&server.url("postgres")).await;
    let mut process = tools.dumpall_globals(session.lend().await?)?;
    let mut text = String::new();
    process.stdout.read_to_string(&mut text).await?;
    process.wait().await?;
    assert!(
        text.contains("CREATE ROLE worker") && !text.contains("PASSWORD"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn failures_say_why() -> Result<()> {
    let found = all().await?;
    let database = TestDatabase::new(15).await?;
    let tools = PgTools::for_dump(&found, 150_000)?;
    let failed = |result: Result<Vec<u8>>| result.unwrap_err().downcast::<ToolError>();

    let options = DumpOptions {
        encoding: Some("klingon".to_owned()),
        ..DumpOptions::default()
    };
    let error = failed(dump(&tools, &database.url(), &options).await)?;
    assert!(error.to_string().contains("klingon"), "{error}");
    assert_eq!(error.class(), Class::NeedsOperator);

    let older = PgTools::for_dump(&found, 130_000)?;
    let error = failed(dump(&older, &database.url(), &DumpOptions::default()).await)?;
    assert!(error.to_string().contains("version mismatch"), "{error}");

    // An archive that was cut is an error, not a short database.
    database
        .execute("CREATE TABLE t AS SELECT generate_series(1, 10000) AS x")
        .await?;
    let mut archive = dump(&tools, &database.url(), &DumpOptions::default()).await?;
    archive.truncate(archive.len() - 100);
    let target = database.sibling().await?;
    let cut = restore(&found, &target, 15, archive, &RestoreOptions::default()).await;
    assert!(cut.is_err());
    Ok(())
}

/// No password among the arguments; and a dropped handle leaves no child.
#[tokio::test]
async fn children_keep_secrets_and_die() -> Result<()> {
    let found = all().await?;
    let database = TestDatabase::new(15).await?;
    database.execute("CREATE TABLE t (x int)").await?;
    // A lock that the dump waits for, so that it stands still to be looked at.
    let mut locker = database.connect().await?;
    let lock = locker.transaction().await?;
    lock.batch_execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        .await?;
    let tools = PgTools::for_dump(&found, 150_000)?;
    let url = database.url().replace("throw-away", "throw-away-SECRET");
    let lent = Session::connect(&config(&url), Purpose::Base).await?;
    let lent = lent.lend().await?;
    let process = tools.dump(lent, &database.name, &DumpOptions::default())?;
    let watcher = database.connect().await?;
    let count =
        async |sql: &'static str| -> Result<i64> { Ok(watcher.query_one(sql, &[]).await?.get(0)) };
    const WAITING: &str = "SELECT count(*) FROM pg_stat_activity \
        WHERE datname = current_database() AND application_name = 'lastgood base'";
    wait::until("the dump waits", || async {
        Ok((count(WAITING).await? > 0).then_some(()))
    })
    .await?;

    let mut seen = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(arguments) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let arguments = String::from_utf8_lossy(&arguments);
        if arguments.contains("pg_dump") && arguments.contains(&database.name) {
            assert!(!arguments.contains("SECRET"), "{arguments}");
            seen += 1;
        }
    }
    assert_eq!(seen, 1);
    drop(process);
    lock.rollback().await?;
    wait::until("the dump is gone", || async {
        Ok((count(WAITING).await? == 0).then_some(()))
    })
    .await?;
    Ok(())
}
