//! Repositories that an earlier version wrote: kept as files, restored by every later one.

use std::process::Command;

use anyhow::{Result, ensure};
use lastgood_integration::{TestDatabase, history, service, tools};

/// What was there in the end.
const PEOPLE: &str = "1|Anna|-,3|Čeněk|-,4|Dora|00ff";
const VISITS: &str = "3|2026-03-04 05:06:07";

#[tokio::test(flavor = "multi_thread")]
async fn repositories_of_every_version_are_restored() -> Result<()> {
    let fixtures = tools::workspace().join("integration/tests/it/fixtures");
    let mut checked = 0;
    for entry in std::fs::read_dir(&fixtures)? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        // A reader may write nothing there, and this one is under version control.
        let copy = tempfile::tempdir()?;
        let mut copied = Command::new("cp");
        copied.arg("-r").arg(&path).arg(copy.path());
        ensure!(copied.status()?.success());
        let name = path.file_name().unwrap_or_default();
        let repository = copy.path().join(name);
        let database = TestDatabase::new(18).await?;
        let restored = format!("{}_back", database.name);
        let mut restore = service::cli()?;
        if let Ok(key) = std::fs::read_to_string(path.with_extension("key")) {
            restore.env("LASTGOOD_MASTER_KEY", key.trim());
        }
        restore
            .args(["restore", "shop", "--latest", "--yes", "--repository"])
            .arg(format!("file://{}", repository.display()))
            .args(["--into", &database.server.url("postgres")])
            .args(["--create-database", &restored]);
        let output = tokio::task::spawn_blocking(move || restore.output()).await??;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {error}", name.display());
        let client = database.server.connect(&restored).await?;
        let text =
            async |sql: &str| -> Result<String> { Ok(client.query_one(sql, &[]).await?.get(0)) };
        let people = "SELECT string_agg(concat_ws('|', id, name, coalesce(encode(note, 'hex'), '-')), ',' ORDER BY id) FROM people";
        assert_eq!(text(people).await?, PEOPLE, "{}", name.display());
        let visits =
            "SELECT string_agg(concat_ws('|', person, at AT TIME ZONE 'UTC'), ',') FROM visits";
        assert_eq!(text(visits).await?, VISITS, "{}", name.display());
        let next = "SELECT nextval('people_id_seq')::text";
        assert_eq!(text(next).await?, "5", "{}", name.display());
        drop(client);
        history::drop_database(&database.server, &restored).await?;
        checked += 1;
    }
    ensure!(checked == 3, "{checked} repositories");
    Ok(())
}
