//! Rows of a real server into segments, once each.

use anyhow::{Result, ensure};
use lastgood_integration::TestDatabase;
use lastgood_proto::pgoutput::{TupleBuf, Value};
use lastgood_proto::segment::Record;

use crate::majors;
use crate::running::{Fixture, quick, wal_end};

/// First columns of all inserted rows of the table, in order.
pub(crate) fn inserted(records: &[Record<TupleBuf>]) -> Vec<String> {
    records
        .iter()
        .filter_map(|record| match record {
            Record::Insert { new, .. } => match new.as_tuple().iter().next() {
                Some(Value::Text(text)) => Some(String::from_utf8_lossy(text).into_owned()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_crashes_and_goes_on_without_loss_or_repetition() -> Result<()> {
    for major in majors() {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        client
            .batch_execute("CREATE TABLE t(id bigserial PRIMARY KEY, v text)")
            .await?;
        let fixture = Fixture::new(&database.url(), quick()).await?;
        let mut expected = Vec::new();
        let mut next = 1;
        for round in 0..6 {
            let mut running = fixture.start();
            if round == 0 {
                running.base().await?;
            }
            for _ in 0..20 {
                client
                    .execute("INSERT INTO t(v) VALUES ($1)", &[&format!("row {next}")])
                    .await?;
                expected.push(next.to_string());
                next += 1;
            }
            if round % 2 == 0 {
                running.durable(wal_end(&client).await?).await?;
                running.stop().await?;
            } else {
                running.kill().await;
            }
        }
        let mut running = fixture.start();
        running.durable(wal_end(&client).await?).await?;
        running.stop().await?;
        let lineages = fixture.lineages().await?;
        ensure!(lineages.len() == 1, "{lineages:?}");
        let records = fixture.records(&lineages[0]).await?;
        assert_eq!(inserted(&records), expected);
        ensure!(
            records
                .iter()
                .any(|record| matches!(record, Record::Sequences { .. })),
            "no sequences were sampled"
        );
    }
    Ok(())
}
