//! The machine that the service runs on: its disk, its limits, its clock.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use lastgood_integration::history;
use lastgood_integration::{Fault, Postgres, S3Proxy, Service, Storage, TestDatabase, tools, wait};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};

use super::{no_gap, shop, wait_reason, write};

const NOISE: &str = "INSERT INTO t (v) SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 20000) n, generate_series(1, 30) GROUP BY n";

/// A small disk of its own, mounted on a folder; only root may.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(folder: &'a Path, size: &str) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("NOT TESTED with a full disk: only root may mount one");
            return Ok(None);
        }
        std::fs::create_dir_all(folder)?;
        let options = format!("size={size},mode=700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder)
            .output()?;
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr).into_owned();
            eprintln!("NOT TESTED with a full disk: {why}");
            return Ok(None);
        }
        Ok(Some(Self(folder)))
    }

    fn resize(&self, size: &str) -> Result<()> {
        let options = format!("remount,size={size}");
        let resized = Command::new("mount")
            .args(["-o", &options])
            .arg(self.0)
            .status()?;
        ensure!(resized.success(), "the disk is not larger");
        Ok(())
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // Whatever is open in it stays until it is closed.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Says that the disk is full until there is room; then goes on, by itself or when it is asked.
#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_the_repository_is_full() -> Result<()> {
    let storage = Storage::local()?;
    let folder = storage.path().context("a folder")?;
    let Some(disk) = Disk::mount(&folder, "6m")? else {
        return Ok(());
    };
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    shop(&service, &database, &database.url()).await?;
    // More than there is room for.
    database.execute(NOISE).await?;
    let full = wait_reason(&service, "shop", "No space left on device").await?;
    ensure!(full["status"] == "failed", "{full:#}");
    write(&database, "while it is full").await?;
    disk.resize("100m")?;
    service
        .post("/api/v1/sources/shop/resume", json!({}))
        .await?;
    history::check_latest(&service, "shop", &database).await?;
    no_gap(&service, "shop").await
}

/// Storage does not answer, and there is no room to wait for it in.
#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_the_spool_is_full() -> Result<()> {
    let Some(proxy) = S3Proxy::start().await? else {
        eprintln!("NOT TESTED on S3: run by tools/with-s3.sh");
        return Ok(());
    };
    let storage = Storage::s3_by(&proxy.endpoint()).context("an S3 server")?;
    let service = Service::builder().storage(&storage).prepare()?;
    let folder = service.data_dir().join("spool");
    let Some(disk) = Disk::mount(&folder, "6m")? else {
        return Ok(());
    };
    service.start_again().await?;
    let database = TestDatabase::new(17).await?;
    shop(&service, &database, &database.url()).await?;
    proxy.set(|request| request.is_write().then_some(Fault::Silence));
    database.execute(NOISE).await?;
    let full = wait_reason(&service, "shop", "No space left on device").await?;
    ensure!(
        full["status"] == "failed" && full["reason"].to_string().contains("spool"),
        "{full:#}"
    );
    proxy.mend();
    disk.resize("100m")?;
    write(&database, "while it is full").await?;
    service
        .post("/api/v1/sources/shop/resume", json!({}))
        .await?;
    history::check_latest(&service, "shop", &database).await?;
    no_gap(&service, "shop").await
}

/// Sets a limit of the running service.
fn limit(service: &Service, resource: Resource, most: Option<u64>) -> Result<()> {
    let pid = service.process_id().context("a process")?;
    let pid = Pid::from_raw(i32::try_from(pid)?);
    let limits = Rlimit {
        current: most,
        // As it was inherited from us: to raise it is a right that root may lack.
        maximum: getrlimit(resource).maximum,
    };
    prlimit(pid, resource, limits)?;
    Ok(())
}

/// Not one more file or connection may be opened: what needs one fails and says so, and everything goes on
/// once it may.
#[tokio::test(flavor = "multi_thread")]
async fn no_file_descriptor_is_left() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = TestDatabase::new(18).await?;
    shop(&service, &database, &database.url()).await?;
    // What is open stays open.
    limit(&service, Resource::Nofile, Some(4))?;
    write(&database, "when nothing can be opened").await?;
    let told = |source: &Value| source["status"] != "streaming" && source["reason"].is_string();
    wait::until_value("it to say so", || service.source("shop"), told).await?;
    limit(&service, Resource::Nofile, Some(1024))?;
    service
        .post("/api/v1/sources/shop/resume", json!({}))
        .await?;
    service.wait_protected("shop").await?;
    history::check_latest(&service, "shop", &database).await?;
    no_gap(&service, "shop").await
}

/// Large transactions, a base and a restore within a gigabyte of address space; then less than is needed:
/// the process ends, as by any kill, and nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_limited() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = TestDatabase::new(18).await?;
    limit(&service, Resource::As, Some(2 << 30))?;
    shop(&service, &database, &database.url()).await?;
    database.execute(NOISE).await?;
    history::check_latest(&service, "shop", &database).await?;

    limit(&service, Resource::As, Some(1 << 20))?;
    // What it has already would do for a while, but not for this row.
    let row = "INSERT INTO t (v) VALUES (repeat('x', 40000000))";
    database.execute(row).await?;
    let status = service.wait_for_exit().await?;
    ensure!(status.signal() == Some(6), "{status}");
    service.start_again().await?;
    write(&database, "after").await?;
    history::check_latest(&service, "shop", &database).await?;
    no_gap(&service, "shop").await
}

/// A clock that a test sets, for processes that are started with it.
struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    fn new(folder: &Path, name: &str) -> Result<Option<Self>> {
        let Some(library) = tools::faketime() else {
            eprintln!("NOT TESTED with clocks that jump: there is no libfaketime");
            return Ok(None);
        };
        let clock = Self {
            library,
            file: folder.join(name),
        };
        clock.set("+0")?;
        Ok(Some(clock))
    }

    /// Against the true time, such as `-1h`.
    fn set(&self, offset: &str) -> Result<()> {
        // In one step: whoever reads it meanwhile sees the one or the other.
        let new = self.file.with_extension("new");
        std::fs::write(&new, offset)?;
        Ok(std::fs::rename(new, &self.file)?)
    }

    fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            // As a clock that is set: what measures how long something takes does not jump.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}

/// The server's clock and the service's are set, forth and back, each alone and both.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_jump() -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("lastgood-clocks-")
        .tempdir_in("/tmp")?;
    // The server's user reads it, too.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    let Some(theirs) = Clock::new(folder.path(), "server")? else {
        return Ok(());
    };
    let ours = Clock::new(folder.path(), "service")?.context("a library")?;
    let server = theirs
        .environment()
        .into_iter()
        .fold(Postgres::builder(17), |builder, (name, value)| {
            builder.environment(name, value)
        });
    let service = ours
        .environment()
        .into_iter()
        .fold(Service::builder(), |builder, (name, value)| {
            builder.environment(name, value)
        });
    let service = service.storage(&Storage::local()?).start().await?;
    let database = TestDatabase {
        server: Arc::new(server.start().await?),
        name: "shop".to_owned(),
    };
    database.server.create_database("shop").await?;
    shop(&service, &database, &database.url()).await?;
    let year = "SELECT extract(year FROM clock_timestamp())::int";
    let before: i32 = database.connect().await?.query_one(year, &[]).await?.get(0);
    for (server, service_clock) in [
        ("+1h", "+0"),
        ("-1h", "+0"),
        ("+0", "-1h"),
        ("+0", "+2d"),
        ("-2d", "+1h"),
        ("+2y", "+2y"),
    ] {
        theirs.set(server)?;
        ours.set(service_clock)?;
        write(&database, server).await?;
        history::check_latest(&service, "shop", &database)
            .await
            .with_context(|| format!("server {server}, service {service_clock}"))?;
    }
    let after: i32 = database.connect().await?.query_one(year, &[]).await?.get(0);
    ensure!(after == before + 2, "the clock did not jump");
    no_gap(&service, "shop").await
}
