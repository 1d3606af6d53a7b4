//! Where `tools/setup.sh` put the servers, and as which user they run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The majors that tests run on.
pub const MAJORS: [u32; 6] = [13, 14, 15, 16, 17, 18];

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where everything is: the same choice as in `tools/setup.sh`.
///
/// # Errors
/// Without a home.
pub fn root() -> Result<PathBuf> {
    if let Some(root) = std::env::var_os("LASTGOOD_TOOLS") {
        return Ok(root.into());
    }
    if is_root() {
        return Ok("/var/tmp/lastgood-tools-0".into());
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(Path::new(&home).join(".cache/lastgood-tools"))
}

/// The folder of one major's programs: server, `psql`, `pg_dump`, `pgbench`, `pg_recvlogical`.
///
/// # Errors
/// Says how to install it when it is not there.
pub fn bin_dir(major: u32) -> Result<PathBuf> {
    let dir = root()?.join("pg").join(major.to_string()).join("bin");
    ensure!(
        dir.join("postgres").exists(),
        "PostgreSQL {major} is missing: run tools/setup.sh"
    );
    Ok(dir)
}

/// All majors' program folders, as `LASTGOOD_PG_BIN_DIRS` takes them.
pub fn bin_dirs() -> String {
    let dirs: Vec<_> = MAJORS
        .iter()
        .filter_map(|major| bin_dir(*major).ok())
        .collect();
    std::env::join_paths(dirs)
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// PgBouncer, if it could be had.
pub fn pgbouncer() -> Option<PathBuf> {
    let unpacked = root().ok()?.join("pgbouncer/pgbouncer");
    let places = [
        unpacked,
        "/usr/sbin/pgbouncer".into(),
        "/usr/bin/pgbouncer".into(),
    ];
    places.into_iter().find(|place| place.exists())
}

/// The library that sets a process's clock, if it could be had.
pub fn faketime() -> Option<PathBuf> {
    let library = root().ok()?.join("faketime/libfaketime.so.1");
    library.exists().then_some(library)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The user that servers run as, if it is not the one we are: PostgreSQL refuses to run as root.
pub(crate) struct ServerUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

pub(crate) fn server_user() -> Result<Option<ServerUser>> {
    if !is_root() {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").context("/etc/passwd")?;
    let find = |name: &str| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            Some(ServerUser {
                uid: fields.nth(1)?.parse().ok()?,
                gid: fields.next()?.parse().ok()?,
            })
        })
    };
    find("postgres")
        .or_else(|| find("nobody"))
        .map(Some)
        .context("no user to run PostgreSQL as")
}
