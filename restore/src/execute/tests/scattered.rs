//! Partitions hashed by an enum: their rows lie in other partitions of the target.

use super::*;

/// Labels have other numbers in every database: `pg_dump` has such rows loaded through the root, and which of them a
/// change of one partition means, nobody can see.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_hashed_by_an_enum() {
    let schema = "CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad', 'up', 'low');
        CREATE TABLE h (m mood, id int, PRIMARY KEY (m, id)) PARTITION BY HASH (m);
        CREATE TABLE h0 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE h1 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        CREATE TABLE plain (id int PRIMARY KEY);
        INSERT INTO h SELECT (enum_range(NULL::mood))[1 + g % 5], g FROM generate_series(1, 500) g";
    let mut fixture = Fixture::new(18, schema).await;
    fixture.run("INSERT INTO plain VALUES (1)").await;
    fixture.seal().await;
    let whole = fixture.content().await;
    let planned = plan(&fixture.store, &Target::latest(), &options())
        .await
        .unwrap();
    let alone = PlanOptions {
        tables: vec![TableName::parse("h0").unwrap()],
        ..options()
    };
    let alone = plan(&fixture.store, &Target::latest(), &alone)
        .await
        .unwrap();
    fixture.run("TRUNCATE h1").await;
    fixture.seal().await;
    let emptied = plan(&fixture.store, &Target::latest(), &options())
        .await
        .unwrap();
    for run in [RUN, ORDERED] {
        let copy = fixture.source.sibling().await.unwrap();
        let token = CancellationToken::new;
        let restore = |plan, into| execute(plan, &fixture.store, into, &run, |_| {}, token());
        restore(&planned, into(&copy)).await.unwrap();
        let found = content(&copy).await;
        assert_eq!(
            tables(&whole)["public.plain"],
            tables(&found)["public.plain"]
        );
        let count = |database: TestDatabase| async move {
            let client = database.connect().await.unwrap();
            let count = client.query_one("SELECT count(*) FROM h", &[]).await;
            count.unwrap().get::<_, i64>(0)
        };
        assert_eq!(count(copy).await, 500);
        for (plan, why) in [
            (&alone, "restore \"public\".\"h\" instead"),
            (&emptied, "hashed by an enum"),
        ] {
            let copy = fixture.source.sibling().await.unwrap();
            let error = restore(plan, into(&copy)).await.unwrap_err();
            assert!(chain(&error).contains(why), "{}", chain(&error));
        }
    }
}
