//! The restore's own state inside the target: schema `lastgood_restore`, one row.
//!
//! It is updated in the transactions it speaks of, so it is never ahead of the data and never
//! behind. It goes when the restore is done.

use lastgood_proto::Lsn;
use tokio_postgres::Client;

use crate::Error;
use crate::apply::Replayed;
use crate::sql::literal;

/// How far a restore has come. The order is that of execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Nothing but our own schema is certain.
    Schema,
    /// Tables exist; their rows are loading.
    Data,
    /// Rows are there, identity indexes are being built.
    Keys,
    /// Transactions are being replayed.
    Replay,
    /// Every change is in and the sequences are set; other indexes and constraints follow.
    Finish,
    /// Of a partial restore: what was not asked for is being dropped.
    Prune,
    /// Under a schema of an existing database: the tables stand ready in one schema.
    Transfer,
}

impl Stage {
    const fn as_str(self) -> &'static str {
        match self {
            Stage::Schema => "schema",
            Stage::Data => "data",
            Stage::Keys => "keys",
            Stage::Replay => "replay",
            Stage::Finish => "finish",
            Stage::Prune => "prune",
            Stage::Transfer => "transfer",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let all = [
            Stage::Schema,
            Stage::Data,
            Stage::Keys,
            Stage::Replay,
            Stage::Finish,
            Stage::Prune,
            Stage::Transfer,
        ];
        all.into_iter().find(|stage| stage.as_str() == text)
    }
}

/// The row, as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// Which restore this is: see `Plan::fingerprint`.
    pub(crate) plan: String,
    pub(crate) stage: Stage,
    pub(crate) replayed: Replayed,
}

pub(crate) async fn create(client: &Client, plan: &str) -> Result<(), Error> {
    let sql = format!(
        "BEGIN;
         CREATE SCHEMA lastgood_restore;
         CREATE TABLE lastgood_restore.progress (
             plan text NOT NULL, stage text NOT NULL,
             through_lsn text NOT NULL, transactions bigint NOT NULL, rows bigint NOT NULL);
         INSERT INTO lastgood_restore.progress VALUES ({}, 'schema', '0/0', 0, 0);
         COMMIT",
        literal(plan)
    );
    client.batch_execute(&sql).await?;
    Ok(())
}

/// The state of an earlier attempt; none if there is no such table.
pub(crate) async fn read(client: &Client) -> Result<Option<State>, Error> {
    let exists = client
        .query_one(
            "SELECT to_regclass('lastgood_restore.progress') IS NOT NULL",
            &[],
        )
        .await?;
    if !exists.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let sql = "SELECT plan, stage, through_lsn, transactions, rows FROM lastgood_restore.progress";
    let Some(row) = client.query_opt(sql, &[]).await? else {
        return Ok(None);
    };
    let (stage, through): (String, String) = (row.try_get(1)?, row.try_get(2)?);
    let (transactions, rows): (i64, i64) = (row.try_get(3)?, row.try_get(4)?);
    let parsed = Stage::parse(&stage).zip(through.parse::<Lsn>().ok());
    let Some((stage, through)) = parsed else {
        return Err(Error::NotResumable {
            why: format!("its state (stage {stage}, {through}) is of another version"),
        });
    };
    Ok(Some(State {
        plan: row.try_get(0)?,
        stage,
        replayed: Replayed {
            through,
            transactions: transactions.cast_unsigned(),
            rows: rows.cast_unsigned(),
        },
    }))
}

pub(crate) async fn enter(client: &Client, stage: Stage) -> Result<(), Error> {
    let sql = format!(
        "UPDATE lastgood_restore.progress SET stage = '{}'",
        stage.as_str()
    );
    client.batch_execute(&sql).await?;
    Ok(())
}

/// The rows are there, with these changes merged in.
pub(crate) async fn loaded(client: &Client, merged: &Replayed) -> Result<(), Error> {
    let sql = format!(
        "UPDATE lastgood_restore.progress SET stage = '{}', through_lsn = '{}', transactions = {}, rows = {}",
        Stage::Keys.as_str(),
        merged.through,
        merged.transactions,
        merged.rows
    );
    client.batch_execute(&sql).await?;
    Ok(())
}

/// The progress was not where the restore had left it.
pub(crate) const MOVED: &str = "LG002";

/// To be executed in the transaction that replays; fails if somebody else has moved on meanwhile.
pub(crate) fn replayed_sql(before: &Replayed, replayed: &Replayed) -> String {
    format!(
        "DO $$ BEGIN
             UPDATE lastgood_restore.progress SET through_lsn = '{}', transactions = {}, rows = {}
              WHERE through_lsn = '{}' AND transactions = {};
             IF NOT FOUND THEN RAISE EXCEPTION 'the progress is elsewhere' USING ERRCODE = '{MOVED}'; END IF;
         END $$",
        replayed.through,
        replayed.transactions,
        replayed.rows,
        before.through,
        before.transactions
    )
}

pub(crate) async fn drop(client: &Client) -> Result<(), Error> {
    client
        .batch_execute("DROP SCHEMA lastgood_restore CASCADE")
        .await?;
    Ok(())
}
