//! The migrations of real tools, against a source that is captured and written to: what was there between any two of
//! them comes back, definitions and rows. One moment in three is drawn, and the others pass without a pause; all of
//! them with `LASTGOOD_MAJORS=all`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lastgood_integration::{
    Service, Storage, TestDatabase, digest, history, seed, tools, truth, wait,
};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::shapes::wait_beyond;

/// A state between two steps.
struct Between {
    after: String,
    target: Value,
    content: digest::Content,
    schema: Vec<String>,
}

/// Takes the steps one after the other, and restores what was between.
async fn check<S>(name: &str, major: u32, steps: &[String], step: S) -> Result<()>
where
    S: Fn(&TestDatabase, &str) -> Result<Option<String>>,
{
    let service = Service::start(&Storage::local()?).await?;
    let database = TestDatabase::new(major).await?;
    database
        .execute("CREATE TABLE live (id serial PRIMARY KEY, v text); INSERT INTO live (v) VALUES ('first')")
        .await?;
    service
        .add_source(name, &database.url(), history::settings())
        .await?;
    service.wait_protected(name).await?;
    let mut client = database.connect().await?;
    // More than one look: the event trigger is known to be there.
    for _ in 0..3 {
        write(&client).await?;
        let lsn = truth::wal_position(&client).await?;
        service.wait_durable(name, &lsn).await?;
    }
    let drawn = usize::try_from(seed::choose(name) % 3)?;
    let is_drawn = |number: usize| seed::all_majors() || number % 3 == drawn;
    let mut moments = vec![moment("the beginning", &database, &mut client, 0).await?];
    for (number, one) in steps.iter().enumerate() {
        write(&client).await?;
        let migrated = step(&database, one).with_context(|| one.clone())?;
        if let Some(sql) = migrated {
            client.batch_execute(&sql).await.context(one.clone())?;
        }
        write(&client).await?;
        if !is_drawn(number) {
            continue;
        }
        let changed = truth::wal_position(&client).await?;
        wait_beyond(&service, name, &changed)
            .await
            .context(one.clone())?;
        // Also with what no rows depend on.
        let path = format!("/api/v1/sources/{name}/plan");
        let latest = json!({"target": "latest"});
        let plan = || service.post(&path, latest.clone());
        let is_whole = |plan: &Value| plan["not_covered"] == json!([]);
        wait::until_value("a base with all definitions", plan, is_whole).await?;
        moments.push(moment(one, &database, &mut client, number + 1).await?);
        // Looked at: not every change can be placed more exactly (a partition that is detached).
        write(&client).await?;
        let lsn = truth::wal_position(&client).await?;
        service.wait_durable(name, &lsn).await?;
    }
    write(&client).await?;
    let lsn = truth::wal_position(&client).await?;
    service.wait_durable(name, &lsn).await?;
    service
        .wait_observed(name, &truth::clock(&client).await?)
        .await?;
    let server = &database.server;
    for (number, between) in moments.iter().enumerate() {
        let what = format!("{name} after {}", between.after);
        let copy = format!("{}_{number}", database.name);
        let into = json!({"connection": server.url("postgres"), "create_database": copy});
        service
            .restore(name, &between.target, into)
            .await
            .context(what.clone())?;
        let restored = digest::of(&mut server.connect(&copy).await?, None).await?;
        between.content.assert_restored(&restored, &what);
        history::compare_schema(&between.schema, server, &copy).context(what)?;
        history::drop_database(server, &copy).await?;
    }
    ensure!(service.terminate().await?.success());
    Ok(())
}

/// The application goes on.
async fn write(client: &Client) -> Result<()> {
    let write =
        "INSERT INTO live (v) VALUES ('more'); UPDATE live SET v = v || '!' WHERE id % 3 = 0";
    Ok(client.batch_execute(write).await?)
}

async fn moment(
    after: &str,
    database: &TestDatabase,
    client: &mut Client,
    number: usize,
) -> Result<Between> {
    write(client).await?;
    let content = digest::of(client, None).await?;
    let schema = history::schema(&database.server, &database.name)?;
    let target = match number.is_multiple_of(2) {
        true => json!({"time": truth::clock(client).await?}),
        false => json!({"lsn": truth::wal_position(client).await?, "inclusive": false}),
    };
    Ok(Between {
        after: after.to_owned(),
        target,
        content,
        schema,
    })
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/migrations")
}

/// A program of the virtual environment with the tools.
fn tool(program: &str, database: &TestDatabase) -> Result<Command> {
    let path = tools::root()?.join("migrations/bin").join(program);
    ensure!(
        path.exists(),
        "{} is missing: run tools/setup.sh",
        path.display()
    );
    let mut command = Command::new(path);
    command
        .env("PGPORT", database.server.port().to_string())
        .env("PGUSER", "postgres")
        .env("PGDATABASE", &database.name)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(command)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

#[tokio::test(flavor = "multi_thread")]
async fn django() -> Result<()> {
    let script = folder().join("django_step.py");
    let empty = TestDatabase::new(18).await?;
    let plan = output(tool("python", &empty)?.arg(&script).arg("plan"))?;
    let steps: Vec<String> = plan.lines().map(ToOwned::to_owned).collect();
    ensure!(steps.len() > 15, "{plan}");
    check("django", 18, &steps, |database, step| {
        let mut python = tool("python", database)?;
        output(python.arg(&script).arg("step").args(step.split(' ')))?;
        Ok(None)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn alembic() -> Result<()> {
    let scripts = folder().join("alembic");
    let steps = names(&scripts.join("versions"))?;
    let config = tempfile::NamedTempFile::new()?;
    let text = format!(
        "[alembic]\nscript_location = {}\npath_separator = os\n",
        scripts.display()
    );
    std::fs::write(config.path(), text)?;
    check("alembic", 15, &steps, |database, _| {
        let mut alembic = tool("alembic", database)?;
        output(alembic.arg("-c").arg(config.path()).args(["upgrade", "+1"]))?;
        Ok(None)
    })
    .await
}

/// Whole files, each one string of many statements.
#[tokio::test(flavor = "multi_thread")]
async fn sql_files() -> Result<()> {
    let folder = folder().join("sql");
    let steps = names(&folder)?;
    check("sql-files", 14, &steps, |_, step| {
        Ok(Some(std::fs::read_to_string(folder.join(step))?))
    })
    .await
}
