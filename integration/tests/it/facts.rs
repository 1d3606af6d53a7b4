//! What PostgreSQL itself does, where the whole design rests on it and no restore would show it: on every
//! major, with PostgreSQL's own means. See `docs/facts.md`.

use anyhow::{Context, Result, ensure};
use lastgood_integration::{TestDatabase, postgres, tools, truth};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio_postgres::Client;

/// Runs on every major, one after the other: each takes a moment.
async fn on_every_major(check: impl AsyncFn(TestDatabase, u32) -> Result<()>) -> Result<()> {
    for major in tools::MAJORS {
        let database = TestDatabase::new(major).await?;
        check(database, major)
            .await
            .with_context(|| format!("PostgreSQL {major}"))?;
    }
    Ok(())
}

async fn make_slot(client: &Client, slot: &str) -> Result<()> {
    let sql = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    Ok(client.batch_execute(&sql).await?)
}

/// The messages that a slot gives from where it stands, by their first letters.
async fn decoded(client: &Client, slot: &str, publication: &str) -> Result<String> {
    let sql = "SELECT coalesce(string_agg(convert_from(substr(data, 1, 1), 'SQL_ASCII'), ''), '')
        FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', $2)";
    Ok(client.query_one(sql, &[&slot, &publication]).await?.get(0))
}

async fn drop_slot(client: &Client, slot: &str) -> Result<()> {
    let sql = format!("SELECT pg_drop_replication_slot('{slot}')");
    Ok(client.batch_execute(&sql).await?)
}

/// An exported snapshot lives until the next command on its connection, and on its own server only.
#[tokio::test]
async fn an_exported_snapshot_ends_with_the_next_command() -> Result<()> {
    on_every_major(async |database, major| {
        let server = &database.server;
        let conninfo = format!(
            "host=127.0.0.1 port={} user=postgres dbname={} replication=database",
            server.port(),
            database.name
        );
        let mut psql = tokio::process::Command::from(server.program("psql"))
            .args(["-XqAt", &conninfo])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = psql.stdin.take().context("stdin")?;
        let mut lines = BufReader::new(psql.stdout.take().context("stdout")?).lines();
        let create = "CREATE_REPLICATION_SLOT facts_snapshot TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT;\n";
        stdin.write_all(create.as_bytes()).await?;
        let line = lines.next_line().await?.context("a slot")?;
        let snapshot = line.split('|').nth(2).context("a snapshot")?.to_owned();
        let import = |client: Client| {
            let sql = format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{snapshot}'; ROLLBACK"
            );
            async move { client.batch_execute(&sql).await }
        };
        import(database.connect().await?).await?;
        let elsewhere = postgres::shared(if major == 18 { 17 } else { 18 }).await?;
        let refused = import(elsewhere.connect("postgres").await?).await;
        ensure!(refused.is_err(), "another server knows the snapshot");
        stdin.write_all(b"IDENTIFY_SYSTEM;\n").await?;
        lines.next_line().await?;
        let refused = import(database.connect().await?).await;
        ensure!(refused.is_err(), "the snapshot outlived a command");
        drop(stdin);
        psql.wait().await?;
        Ok(())
    })
    .await
}

/// A change decoded from before its publication exists: up to 17 an error for ever, from 18 on rows are
/// missing without one. So the publication is made before the slot.
#[tokio::test]
async fn a_publication_made_after_the_slot_does_not_serve_it() -> Result<()> {
    on_every_major(async |database, major| {
        let client = database.connect().await?;
        let (slot, publication) = (&database.name, "late");
        client
            .batch_execute("CREATE TABLE t (id int PRIMARY KEY)")
            .await?;
        make_slot(&client, slot).await?;
        client.batch_execute("INSERT INTO t VALUES (1)").await?;
        client
            .batch_execute("CREATE PUBLICATION late FOR TABLE t; INSERT INTO t VALUES (2)")
            .await?;
        let got = decoded(&client, slot, publication).await;
        let again = decoded(&client, slot, publication).await;
        match major {
            18 => ensure!(got?.matches('I').count() == 1, "the earlier row is skipped"),
            _ => ensure!(got.is_err() && again.is_err(), "{got:?}, {again:?}"),
        }
        drop_slot(&client, slot).await
    })
    .await
}

/// Where a stream may begin: at a commit record's start the transaction comes again, at its end or one
/// byte before it does not; too far on, what lies between is silently left out.
#[tokio::test]
async fn a_stream_begins_with_the_first_commit_record_at_or_after_its_start() -> Result<()> {
    on_every_major(async |database, _| {
        let client = database.connect().await?;
        let slot = &database.name;
        client
            .batch_execute(
                "CREATE TABLE t (v text PRIMARY KEY); CREATE PUBLICATION all_of_it FOR TABLE t",
            )
            .await?;
        make_slot(&client, slot).await?;
        client
            .batch_execute("INSERT INTO t VALUES ('first')")
            .await?;
        client
            .batch_execute("INSERT INTO t VALUES ('second')")
            .await?;
        // B: final LSN. C: flags, commit LSN, end LSN.
        let sql =
            "SELECT encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL,
            'proto_version', '1', 'publication_names', 'all_of_it') WHERE get_byte(data, 0) = 67";
        let rows = client.query(sql, &[slot]).await?;
        let lsn = |row: usize, at: usize| -> Result<u64> {
            let message: &str = rows.get(row).context("a commit")?.get(0);
            Ok(u64::from_str_radix(&message[at..at + 16], 16)?)
        };
        let (commit, end, second) = (lsn(0, 4)?, lsn(0, 20)?, lsn(1, 4)?);
        let stop = truth::wal_position(&client).await?;
        // The program confirms what it has: a copy of the slot for each attempt.
        for (start, expect) in [
            (commit, (true, true)),
            (end - 1, (false, true)),
            (end, (false, true)),
            (second, (false, true)),
            (second + 1, (false, false)),
        ] {
            let copy = format!("{slot}_copy");
            let sql = format!("SELECT pg_copy_logical_replication_slot('{slot}', '{copy}')");
            client.batch_execute(&sql).await?;
            let mut program = database.server.program("pg_recvlogical");
            program.args(["-d", slot, "-S", &copy, "--start", "-f", "-", "--no-loop"]);
            program.args(["-o", "proto_version=1", "-o", "publication_names=all_of_it"]);
            program.arg(format!(
                "--startpos={:X}/{:X}",
                start >> 32,
                start & 0xFFFF_FFFF
            ));
            program.arg(format!("--endpos={stop}"));
            let output = tokio::task::spawn_blocking(move || program.output()).await??;
            ensure!(output.status.success(), "{output:?}");
            let has = |text: &[u8]| output.stdout.windows(text.len()).any(|part| part == text);
            let got = (has(b"first"), has(b"second"));
            ensure!(
                got == expect,
                "from {start:X}, commit {commit:X}, end {end:X}: {got:?}"
            );
            drop_slot(&client, &copy).await?;
        }
        drop_slot(&client, slot).await
    })
    .await
}

/// Without a replica identity an UPDATE or DELETE fails on the source as soon as it is published; an INSERT
/// and a TRUNCATE do not.
#[tokio::test]
async fn an_update_without_identity_fails_once_it_is_published() -> Result<()> {
    on_every_major(async |database, _| {
        let client = database.connect().await?;
        client
            .batch_execute(
                "CREATE TABLE bare (v int); CREATE TABLE nothing (v int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
                 CREATE TABLE whole (v int); ALTER TABLE whole REPLICA IDENTITY FULL; CREATE PUBLICATION everything FOR TABLE bare, nothing, whole",
            )
            .await?;
        for table in ["bare", "nothing"] {
            client
                .batch_execute(&format!("INSERT INTO {table} VALUES (1)"))
                .await?;
            for change in [
                format!("UPDATE {table} SET v = 2"),
                format!("DELETE FROM {table}"),
            ] {
                let refused = client.batch_execute(&change).await;
                let code = refused.err().and_then(|error| error.code().cloned());
                ensure!(
                    code.is_some_and(|code| code.code() == "55000"),
                    "{change} must fail"
                );
            }
            client.batch_execute(&format!("TRUNCATE {table}")).await?;
        }
        client
            .batch_execute("INSERT INTO whole VALUES (1); UPDATE whole SET v = 2; DELETE FROM whole")
            .await?;
        Ok(())
    })
    .await
}

/// Published via its root, a partition that is truncated by itself is nowhere in the stream: rows would
/// rise again. So changes are published leaf by leaf.
#[tokio::test]
async fn a_truncated_partition_vanishes_from_a_stream_via_the_root() -> Result<()> {
    on_every_major(async |database, _| {
        let client = database.connect().await?;
        client
            .batch_execute(
                "CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (9);
                 CREATE PUBLICATION by_leaf FOR TABLE root; CREATE PUBLICATION by_root FOR TABLE root WITH (publish_via_partition_root = true)",
            )
            .await?;
        make_slot(&client, &database.name).await?;
        client.batch_execute("INSERT INTO root VALUES (1)").await?;
        client.batch_execute("TRUNCATE leaf").await?;
        let (by_leaf, by_root) = (
            decoded(&client, &database.name, "by_leaf").await?,
            decoded(&client, &database.name, "by_root").await?,
        );
        ensure!(by_leaf.contains('I') && by_leaf.contains('T'), "{by_leaf}");
        ensure!(by_root.contains('I') && !by_root.contains('T'), "{by_root}");
        drop_slot(&client, &database.name).await
    })
    .await
}

/// What changes a table's content without a row in the stream; each is a change of shape, or of no content.
#[tokio::test]
async fn rewrites_are_not_in_the_stream() -> Result<()> {
    const CHANGES: [&str; 9] = [
        "ALTER TABLE unlogged SET LOGGED",
        "ALTER TABLE t ALTER v TYPE bigint USING v * 100",
        "ALTER TABLE t ADD at timestamptz DEFAULT clock_timestamp()",
        "ALTER TABLE t ADD now timestamptz DEFAULT now()",
        "REFRESH MATERIALIZED VIEW m",
        "VACUUM FULL t",
        "CLUSTER t USING t_pkey",
        "REINDEX TABLE t",
        "SELECT lo_from_bytea(0, 'large'), nextval('s')",
    ];
    on_every_major(async |database, _| {
        let client = database.connect().await?;
        client
            .batch_execute(
                "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1); CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
                 INSERT INTO unlogged VALUES (1); CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t; CREATE SEQUENCE s;
                 CREATE PUBLICATION everything FOR ALL TABLES",
            )
            .await?;
        make_slot(&client, &database.name).await?;
        for change in CHANGES {
            client.batch_execute(change).await.context(change)?;
        }
        let seen = decoded(&client, &database.name, "everything").await?;
        ensure!(!seen.contains(['I', 'U', 'D', 'T']), "{seen}");
        client.batch_execute("INSERT INTO unlogged VALUES (2)").await?;
        let seen = decoded(&client, &database.name, "everything").await?;
        ensure!(seen.matches('I').count() == 1, "{seen}");
        drop_slot(&client, &database.name).await
    })
    .await
}

/// Rows of before a table was added to a publication are never sent; those of a table that is made and
/// filled in one transaction are, where the publication has all tables.
#[tokio::test]
async fn a_table_is_in_the_stream_from_its_publication_on() -> Result<()> {
    on_every_major(async |database, _| {
        let client = database.connect().await?;
        client
            .batch_execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION one_table; CREATE PUBLICATION everything FOR ALL TABLES")
            .await?;
        make_slot(&client, &database.name).await?;
        client.batch_execute("INSERT INTO t VALUES (1)").await?;
        client.batch_execute("ALTER PUBLICATION one_table ADD TABLE t").await?;
        client.batch_execute("INSERT INTO t VALUES (2)").await?;
        client
            .batch_execute("CREATE TABLE selected AS SELECT generate_series(1, 3) AS id")
            .await?;
        let some = decoded(&client, &database.name, "one_table").await?;
        ensure!(some.matches('I').count() == 1, "{some}");
        let everything = decoded(&client, &database.name, "everything").await?;
        ensure!(everything.matches('I').count() == 5, "{everything}");
        drop_slot(&client, &database.name).await
    })
    .await
}

/// Anybody may write a message into the WAL; only a superuser may publish all tables, and a role needs the
/// table to publish it.
#[tokio::test]
async fn what_a_role_may_do_without_being_a_superuser() -> Result<()> {
    on_every_major(async |database, _| {
        let (client, role) = (database.connect().await?, format!("plain_{}", database.name));
        client
            .batch_execute(&format!(
                "CREATE ROLE {role} LOGIN REPLICATION; GRANT CREATE ON DATABASE {} TO {role}; CREATE TABLE theirs (id int PRIMARY KEY);
                 CREATE TABLE own (id int PRIMARY KEY); ALTER TABLE own OWNER TO {role}",
                database.name
            ))
            .await?;
        let plain = postgres::connect(&database.server.url_as(&role, "", &database.name)).await?;
        for allowed in [
            "SELECT pg_logical_emit_message(true, 'facts', 'x')",
            "CREATE PUBLICATION mine FOR TABLE own",
        ] {
            plain.batch_execute(allowed).await.context(allowed)?;
        }
        make_slot(&plain, &database.name).await?;
        drop_slot(&plain, &database.name).await?;
        for refused in [
            "CREATE PUBLICATION everything FOR ALL TABLES",
            "ALTER PUBLICATION mine ADD TABLE theirs",
            "CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER e ON sql_drop EXECUTE FUNCTION f()",
            "SET session_replication_role = replica",
        ] {
            let error = plain.batch_execute(refused).await.err();
            let code = error.and_then(|error| error.code().cloned());
            ensure!(
                code.is_some_and(|code| code.code() == "42501"),
                "{refused} must be refused"
            );
        }
        drop(plain);
        client
            .batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
            .await?;
        Ok(())
    })
    .await
}
