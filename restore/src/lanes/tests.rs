//! What becomes of rows when a session is missing or ends.

use std::time::Duration;

use lastgood_integration::{TestDatabase, wait};

use super::*;
use crate::testing::chain;

/// More than waits for all sessions together.
const ROWS: usize = 200_000;

/// Sends rows of a hundred bytes, `before` each few megabytes; answers what came of it.
async fn send(lanes: &Arc<Lanes>, before: impl AsyncFn(usize)) -> Result<(), Error> {
    let sent = async {
        let lane = lanes.enter().await?;
        let mut copy = Copy::new(&lane, "public.t".to_owned(), &["v".to_owned()], "UTF8");
        for number in 0..ROWS {
            if number % 50_000 == 0 {
                before(number).await;
            }
            copy.push(&[b'x'; 100]);
            copy.send_full().await?;
        }
        copy.finish().await
    };
    let sent = tokio::time::timeout(Duration::from_secs(60), sent).await;
    sent.expect("it hangs")
}

async fn count(database: &TestDatabase) -> i64 {
    let client = database.connect().await.unwrap();
    let count = client.query_one("SELECT count(*) FROM t", &[]).await;
    count.unwrap().get(0)
}

async fn table() -> TestDatabase {
    let database = TestDatabase::new(18).await.unwrap();
    database.execute("CREATE TABLE t (v text)").await.unwrap();
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_through_as_many_sessions_as_there_are() {
    let database = table().await;
    let role = format!("few_{}", database.name);
    let make = format!("CREATE ROLE {role} LOGIN PASSWORD 'few'; GRANT ALL ON t TO {role}");
    database.execute(&make).await.unwrap();
    let url = database.server.url_as(&role, "few", &database.name);
    for (limit, expect) in [(2, Ok(())), (1, Ok(())), (0, Err("too many connections"))] {
        let limited = format!("TRUNCATE t; ALTER ROLE {role} CONNECTION LIMIT {limit}");
        database.execute(&limited).await.unwrap();
        let lanes = Lanes::new(&url.parse().unwrap(), 3);
        let sent = send(&lanes, async |_| {}).await;
        lanes.close().await;
        match (expect, sent) {
            (Ok(()), Ok(())) => assert_eq!(count(&database).await, 200_000, "{limit}"),
            (Err(why), Err(error)) => assert!(chain(&error).contains(why), "{}", chain(&error)),
            (_, sent) => panic!("{limit}: {sent:?}"),
        }
    }
    let drop = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    database.execute(&drop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_ends_the_load() {
    for jobs in [1, 3] {
        let database = table().await;
        let client = database.connect().await.unwrap();
        let lanes = Lanes::new(&database.url().parse().unwrap(), jobs);
        let end = async |number| {
            if number == 100_000 {
                let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                            WHERE datname = current_database() AND query LIKE 'COPY %' AND state = 'active'";
                wait::until("a COPY to end", async || {
                    let ended: i64 = client.query_one(sql, &[]).await?.get(0);
                    Ok((ended > 0).then_some(()))
                })
                .await
                .unwrap();
            }
        };
        let sent = send(&lanes, end).await;
        let error = sent.expect_err("rows are missing");
        let error = chain(&error);
        assert!(
            error.contains("closed") || error.contains("terminating"),
            "{error}"
        );
    }
}
