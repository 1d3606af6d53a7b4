//! The oracle test: random histories on real servers, restored to random moments, must give exactly
//! what PostgreSQL's own snapshots said about those moments.
//!
//! `make oracle SEEDS=n` runs more of them; `LASTGOOD_SEED` replays one, `LASTGOOD_CASE` a file. A seed
//! that fails is shortened and left as a script. Every case that ever failed is in `cases/`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use lastgood_integration::case::run::{Kind, Nonsense, leave, run};
use lastgood_integration::case::{Case, generate, shrink::shrink};
use lastgood_integration::history::{History, check_restored, drop_database};
use lastgood_integration::{Service, Storage, TestDatabase, seed};

/// One history of writers that work at the same time: six moments in the middle of everything, two
/// quiet ones in all their names, the end. Restores to `restores` of them.
pub(crate) async fn history(
    major: u32,
    seed: u64,
    storage: &Storage,
    restores: usize,
) -> Result<()> {
    let service = Service::start(storage).await?;
    let database = TestDatabase::new(major).await?;
    let mut history = History::start(&service, database, seed).await?;
    for number in 0..8 {
        history.advance().await?;
        match number {
            2 | 6 => history.record_quiet(Some(&service)).await?,
            _ => history.record_loud().await?,
        }
        if number == 4 {
            // From here on, restores begin at a later base that was taken without stopping capture.
            let path = format!("/api/v1/sources/{}/bases", history.name);
            service.post(&path, serde_json::json!({})).await?;
            service.wait_bases(&history.name, 2).await?;
        }
    }
    restore_under_way(&service, &mut history).await?;
    let finished = history.finish(&service).await?;
    finished.thinned(restores).check(&service).await?;
    service.terminate().await?;
    Ok(())
}

/// An early moment, restored while the writers write.
async fn restore_under_way(service: &Service, history: &mut History) -> Result<()> {
    let moment = history.moments[0].clone();
    let last_lsn = history.last_lsn.clone();
    let last_time = history.last_time.clone();
    service.wait_durable(&history.name, &last_lsn).await?;
    service.wait_observed(&history.name, &last_time).await?;
    let server = Arc::clone(&history.database.server);
    let copy = format!("{}_under_way", history.database.name);
    let into = serde_json::json!({"connection": server.url("postgres"), "create_database": copy});
    let id = service.start_restore(&history.name, &moment.target, into);
    let id = id.await?;
    history.advance().await?;
    let ended = service.wait_restore(&id).await?;
    ensure!(ended["status"] == "succeeded", "{ended:#}");
    check_restored(&server, &copy, &moment).await?;
    drop_database(&server, &copy).await
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Plays a case; what fails is shortened, left as a script, and an error.
async fn check(case: Case) -> Result<()> {
    let seed = case.setting.seed;
    let what = format!(
        "LASTGOOD_SEED={seed} (PostgreSQL {} to {})",
        case.setting.source, case.setting.target
    );
    let Some(failure) = run(&case, Nonsense::IsAnError)
        .await
        .with_context(|| what.clone())?
    else {
        return Ok(());
    };
    let whole = leave(&format!("{seed}.sql"), &failure, &case)?;
    eprintln!(
        "{what} fails, see {}; shortening it:\n{}",
        whole.display(),
        failure.text
    );
    let time = Duration::from_secs(number("LASTGOOD_SHRINK_SECONDS").unwrap_or(300));
    let mut last = failure.clone();
    let shortened = shrink(case, failure.moment, time, async |candidate| {
        // A case that cannot be played is none that fails.
        let again = run(candidate, Nonsense::IsRefused).await.ok().flatten();
        let Some(again) = again.filter(|again| again.kind == failure.kind) else {
            return Ok(false);
        };
        last = again;
        Ok(true)
    })
    .await?;
    let path = leave(&format!("{seed}.min.sql"), &last, &shortened)?;
    bail!(
        "{what}: {}\nreplay the shortened case with LASTGOOD_CASE={}",
        last.text,
        path.display()
    )
}

/// Some at a time: a case waits more than it works. All are played, whatever fails.
async fn check_all(cases: impl IntoIterator<Item = Case>) -> Result<()> {
    let jobs = number("LASTGOOD_ORACLE_JOBS").unwrap_or(2);
    let jobs = usize::try_from(jobs)?.max(1);
    let cases: Vec<Case> = cases.into_iter().collect();
    let (mut done, all) = (0, cases.len());
    let said = |checked: &Result<()>| {
        done += 1;
        if let Err(error) = checked {
            eprintln!("{error:#}");
        }
        if done % 25 == 0 {
            eprintln!("{done} of {all} cases played");
        }
    };
    let checked: Vec<Result<()>> = futures::stream::iter(cases.into_iter().map(check))
        .buffer_unordered(jobs)
        .inspect(said)
        .collect()
        .await;
    let failures = checked.into_iter().filter_map(Result::err);
    let failures: Vec<String> = failures.map(|error| format!("{error:#}")).collect();
    match failures.is_empty() {
        true => Ok(()),
        false => bail!("{} failed:\n{}", failures.len(), failures.join("\n\n")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn oracle() -> Result<()> {
    if let Some(file) = std::env::var_os("LASTGOOD_CASE") {
        return check(std::fs::read_to_string(file)?.parse()?).await;
    }
    // Six seeds in a row are six majors: the share of every run is 15 to 18, and no seed is below.
    let first = seed::choose("oracle") / 6 * 6 + 2;
    let more = number("LASTGOOD_ORACLE_SEEDS").unwrap_or(4);
    let seeds = match seed::given() {
        Some(seed) => seed..seed + 1,
        None => first..first + more,
    };
    check_all(seeds.map(generate::case)).await
}

/// Each once failed.
#[tokio::test(flavor = "multi_thread")]
async fn cases_that_once_failed() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/cases");
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "sql") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let case: Result<Case> = text.parse();
        cases.push(case.with_context(|| path.display().to_string())?);
    }
    check_all(cases).await
}

/// The harness finds what is wrong, leaves out what has nothing to do with it, and what it leaves
/// behind fails again.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_is_found_and_its_case_shortened() -> Result<()> {
    let mut case: Case = FAULTY.parse()?;
    let Some(failure) = run(&case, Nonsense::IsAnError).await? else {
        bail!("a damaged restore passes");
    };
    assert_eq!(failure.kind, Kind::Content, "{}", failure.text);
    assert!(
        failure.text.contains("public.b: 2 rows, expected 2"),
        "{}",
        failure.text
    );
    let fails = async |case: &Case| {
        let failure = run(case, Nonsense::IsRefused).await?;
        Ok(failure.is_some_and(|it| it.kind == Kind::Content))
    };
    case = shrink(case, failure.moment, Duration::from_secs(600), fails).await?;
    let path = leave("a fault of the test.sql", &failure, &case)?;
    let left: Case = std::fs::read_to_string(path)?.parse()?;
    let expected: Case = SHORTENED.parse()?;
    assert_eq!(left, expected, "{left}");
    Ok(())
}

/// Every row of `b` that says `poison` comes back wrong.
const FAULTY: &str = r#"
--! case {"seed":0,"source":18,"target":18,"s3":false,"encryption":true,"settings":{"segment_seconds":1,"idle_seconds":1},"fault":"UPDATE b SET v = 'wrong' WHERE v = 'poison'"}
--! session 0
CREATE TABLE a (id int PRIMARY KEY, v text)
--! session 0
CREATE TABLE b (id int PRIMARY KEY, v text)
--! register
--! settle
--! moment lsn
--! session 1
INSERT INTO a VALUES (1, 'x')
--! session 2
INSERT INTO b VALUES (1, 'x'), (2, 'poison')
--! session 1
UPDATE a SET v = 'y'
--! moment time
--! moment latest
"#;

const SHORTENED: &str = r#"
--! case {"seed":0,"source":18,"target":18,"s3":false,"encryption":true,"settings":{"segment_seconds":1,"idle_seconds":1},"fault":"UPDATE b SET v = 'wrong' WHERE v = 'poison'"}
--! session 0
CREATE TABLE b (id int PRIMARY KEY, v text)
--! register
--! settle
--! session 2
INSERT INTO b VALUES (1, 'x'), (2, 'poison')
--! moment time
"#;
