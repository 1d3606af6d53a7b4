//! What a database held at an LSN: a temporary slot gives the LSN and exports the snapshot, and under
//! that snapshot everything is digested. PostgreSQL's own guarantee, none of our code.

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_postgres::Client;

use crate::digest::{self, Content, Truncated};
use crate::postgres::Postgres;

/// The content at a consistent point: transactions whose commit LSN is below it are in, others are not.
#[derive(Clone, Debug)]
pub struct Truth {
    pub lsn: String,
    pub content: Content,
}

/// Records the truth at this moment, while others write.
///
/// # Errors
/// When the slot cannot be made.
pub async fn record(server: &Postgres, database: &str) -> Result<Truth> {
    loop {
        match attempt(server, database).await {
            Err(error) if error.is::<Truncated>() || is_deadlock(&error) || is_crowded(&error) => {}
            recorded => return recorded,
        }
    }
}

async fn attempt(server: &Postgres, database: &str) -> Result<Truth> {
    let mut client = server.connect(database).await?;
    // A sequence does not obey snapshots: what it gave before the point is the least that a restore
    // to the point must respect.
    let sequences = digest::sequences(&client).await?;
    let conninfo = format!("{} replication=database", conninfo(server, database));
    let mut psql = tokio::process::Command::from(server.program("psql"))
        .args(["-XqAt", "-v", "ON_ERROR_STOP=1", &conninfo])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = psql.stdin.take().context("stdin")?;
    let mut stdout = BufReader::new(psql.stdout.take().context("stdout")?).lines();
    let name = format!("truth_{:016x}", rand::random::<u64>());
    // The options of this command are written in the old way, which all majors understand.
    let command =
        format!("CREATE_REPLICATION_SLOT {name} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT;\n");
    stdin.write_all(command.as_bytes()).await?;
    stdin.flush().await?;
    let Some(line) = stdout.next_line().await? else {
        let mut error = String::new();
        if let Some(mut stderr) = psql.stderr.take() {
            stderr.read_to_string(&mut error).await?;
        }
        bail!("no slot: {error}");
    };
    let fields: Vec<&str> = line.split('|').collect();
    let [_, lsn, snapshot, _] = fields[..] else {
        bail!("an answer of four fields: {line}")
    };
    let mut content = digest::of(&mut client, Some(snapshot)).await?;
    content.sequences = sequences;
    drop(stdin);
    psql.wait().await?;
    Ok(Truth {
        lsn: lsn.to_owned(),
        content,
    })
}

/// Of our look at all tables with a TRUNCATE of several: they wait for each other in turn.
fn is_deadlock(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<tokio_postgres::Error>()
        .and_then(tokio_postgres::Error::code)
        .is_some_and(|code| *code == tokio_postgres::error::SqlState::T_R_DEADLOCK_DETECTED)
}

/// A transaction of very many subtransactions, of another test, committed while the slot was made.
fn is_crowded(error: &anyhow::Error) -> bool {
    error
        .to_string()
        .contains("initial slot snapshot too large")
}

fn conninfo(server: &Postgres, database: &str) -> String {
    format!(
        "host=127.0.0.1 port={} user=postgres dbname={database}",
        server.port()
    )
}

/// The position behind everything that has been written, with the record of it made certain.
///
/// # Errors
/// The server's.
pub async fn wal_position(client: &Client) -> Result<String> {
    let row = client
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
        .await?;
    Ok(row.get(0))
}

/// The server's clock, RFC 3339 in UTC.
///
/// # Errors
/// The server's.
pub async fn clock(client: &Client) -> Result<String> {
    const SQL: &str =
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    Ok(client.query_one(SQL, &[]).await?.get(0))
}
