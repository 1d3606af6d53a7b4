//! Which tools there are, and which of them fit.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use futures::future::join_all;
use tokio::process::Command;

use super::process::ToolError;

/// A list of folders, separated as in PATH, to be looked into first.
const FOLDERS_VARIABLE: &str = "LASTGOOD_PG_BIN_DIRS";

/// Where packages put the tools of each major: Debian's and PGDG's folders.
const FOLDER_FAMILIES: &[(&str, &str, &str)] = &[
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
];

/// What stands for the tools in Debian's `/usr/bin` and runs those of one major or another, all of
/// which lie in folders of their own.
const DEBIAN_WRAPPER: &str = "pg_wrapper";

/// The client tools of one version in one folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgTools {
    dir: PathBuf,
    major: u32,
    /// As the tool prints it: `15.18 (Debian 15.18-0+deb12u1)`.
    version: String,
}

/// The major of the `pg_dump` that made an archive: it decides which `pg_restore` can read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveMaker(pub u32);

impl ArchiveMaker {
    /// The oldest `pg_restore` that reads such an archive (`pg_backup_archiver.h`: format 1.14 up
    /// to 15, 1.15 in 16, 1.16 from 17 on).
    const fn oldest_reader(self) -> u32 {
        match self.0 {
            ..=15 => 13,
            16 => 16,
            17.. => 17,
        }
    }
}

impl PgTools {
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }

    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Every set of tools that can be found: those of `LASTGOOD_PG_BIN_DIRS` first, then the
    /// system's folders, then PATH. A folder counts if it has both `pg_dump` and `pg_restore`. No
    /// tool is run that was run before.
    pub async fn discover() -> Vec<Self> {
        let mut seen = BTreeSet::new();
        let folders = folders().into_iter();
        let folders = folders.filter_map(|folder| folder.canonicalize().ok());
        let folders = folders.filter(|folder| seen.insert(folder.clone()));
        // Side by side: a command waits for all of them.
        let found = join_all(folders.map(Self::known)).await;
        found.into_iter().flatten().collect()
    }

    /// Asks a tool once, and again when its file is another.
    async fn known(folder: PathBuf) -> Option<Self> {
        /// Which file, and when it was written: two of one moment are told by the file.
        type Version = (u64, SystemTime);
        static KNOWN: Mutex<BTreeMap<PathBuf, (Version, PgTools)>> = Mutex::new(BTreeMap::new());

        let file = folder.join("pg_dump").canonicalize().ok()?;
        if file.file_name().is_some_and(|name| name == DEBIAN_WRAPPER) {
            return None;
        }
        let file = file.metadata().ok()?;
        let version = (file.ino(), file.modified().ok()?);
        let known = KNOWN.lock().ok().and_then(|known| {
            let (then, tools) = known.get(&folder)?;
            (*then == version && folder.join("pg_restore").exists()).then(|| tools.clone())
        });
        if known.is_some() {
            return known;
        }
        let tools = Self::in_folder(folder.clone()).await?;
        if let Ok(mut known) = KNOWN.lock() {
            known.insert(folder, (version, tools.clone()));
        }
        Some(tools)
    }

    /// The tools in one folder, if both are there and `pg_dump` tells its version.
    pub async fn in_folder(dir: PathBuf) -> Option<Self> {
        if !dir.join("pg_restore").exists() {
            return None;
        }
        let output = Command::new(dir.join("pg_dump"))
            .arg("--version")
            .kill_on_drop(true)
            .output()
            .await
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let version = text.trim().split_once("(PostgreSQL) ")?.1.to_owned();
        Some(Self {
            major: crate::version::parse(&version)? / 10_000,
            dir,
            version,
        })
    }

    /// The tools to dump a server of this version with: `pg_dump` refuses a server that is newer
    /// than itself, so the smallest major that is not older.
    ///
    /// # Errors
    /// [`ToolError::NotFound`] with what to install.
    pub fn for_dump(found: &[Self], server_version: u32) -> Result<Self, ToolError> {
        let wanted = server_version / 10_000;
        found
            .iter()
            .filter(|tools| tools.major >= wanted)
            .min_by_key(|tools| tools.major)
            .cloned()
            .ok_or_else(|| ToolError::NotFound {
                tool: "pg_dump",
                wanted: format!("{wanted} or later"),
                install: wanted,
                majors: majors(found),
            })
    }

    /// The tools to restore into a server of this version with: those of its own major if they can
    /// read the archive, because a newer `pg_restore` sends what an older server does not know;
    /// else the nearest newer one, else the newest that can read it.
    ///
    /// # Errors
    /// [`ToolError::NotFound`] with what to install.
    pub fn for_restore(
        found: &[Self],
        target_version: u32,
        maker: ArchiveMaker,
    ) -> Result<Self, ToolError> {
        let target = target_version / 10_000;
        let oldest = maker.oldest_reader();
        let readers = || found.iter().filter(|tools| tools.major >= oldest);
        readers()
            .filter(|tools| tools.major >= target)
            .min_by_key(|tools| tools.major)
            .or_else(|| readers().max_by_key(|tools| tools.major))
            .cloned()
            .ok_or_else(|| ToolError::NotFound {
                tool: "pg_restore",
                wanted: format!("{oldest} or later"),
                install: oldest.max(target),
                majors: majors(found),
            })
    }
}

fn majors(found: &[PgTools]) -> Vec<u32> {
    let set: BTreeSet<u32> = found.iter().map(PgTools::major).collect();
    set.into_iter().collect()
}

fn folders() -> Vec<PathBuf> {
    let listed = |name: &str| -> Vec<PathBuf> {
        std::env::var_os(name)
            .map(|value| std::env::split_paths(&value).collect())
            .unwrap_or_default()
    };
    let mut folders = listed(FOLDERS_VARIABLE);
    for (parent, prefix, below) in FOLDER_FAMILIES {
        let mut family: Vec<PathBuf> = std::fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| {
                entry.file_name().to_str().is_some_and(|name| {
                    name.strip_prefix(prefix)
                        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
                })
            })
            .map(|entry| entry.path().join(below))
            .collect();
        family.sort();
        folders.append(&mut family);
    }
    folders.extend(listed("PATH"));
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(majors: &[u32]) -> Vec<PgTools> {
        majors
            .iter()
            .map(|&major| PgTools {
                dir: format!("/{major}").into(),
                major,
                version: format!("{major}.1"),
            })
            .collect()
    }

    fn check_restore(have: &[u32], target: u32, maker: u32, expect: Option<u32>) {
        let chosen = PgTools::for_restore(&tools(have), target * 10_000, ArchiveMaker(maker)).ok();
        assert_eq!(
            chosen.map(|tools| tools.major),
            expect,
            "{have:?} into {target} from {maker}"
        );
    }

    /// Puts tools into a folder that tell their version and that they were asked.
    fn install(folder: &Path, name: &str, version: &str) {
        use std::os::unix::fs::PermissionsExt;

        let script = format!(
            "#!/bin/sh\necho asked >> {}\necho 'pg_dump (PostgreSQL) {version}'\n",
            folder.join("asked").display()
        );
        for name in [name, "pg_restore"] {
            let path = folder.join(name);
            // A file that is written while another thread forks cannot be run for a moment.
            std::fs::write(folder.join("new"), &script).unwrap();
            std::fs::set_permissions(folder.join("new"), PermissionsExt::from_mode(0o755)).unwrap();
            std::fs::rename(folder.join("new"), path).unwrap();
        }
    }

    #[tokio::test]
    async fn a_tool_is_asked_once_and_again_when_it_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let known = || PgTools::known(folder.path().to_owned());
        let asked = || {
            let text = std::fs::read_to_string(folder.path().join("asked"));
            text.unwrap_or_default().lines().count()
        };
        assert_eq!(known().await, None);
        install(folder.path(), "pg_dump", "15.3");
        assert_eq!(known().await.unwrap().version(), "15.3");
        assert_eq!(known().await.unwrap().version(), "15.3");
        assert_eq!(asked(), 1);
        install(folder.path(), "pg_dump", "18.1");
        assert_eq!(known().await.unwrap().major(), 18);
        assert_eq!(asked(), 2);
        std::fs::remove_file(folder.path().join("pg_restore")).unwrap();
        assert_eq!(known().await, None);

        let debian = tempfile::tempdir().unwrap();
        install(debian.path(), DEBIAN_WRAPPER, "18.1");
        let link = debian.path().join("pg_dump");
        std::os::unix::fs::symlink(debian.path().join(DEBIAN_WRAPPER), link).unwrap();
        assert_eq!(PgTools::known(debian.path().to_owned()).await, None);
    }

    #[test]
    fn the_smallest_pg_dump_that_is_not_older() {
        let have = tools(&[18, 13, 15, 16]);
        let chosen = |server| PgTools::for_dump(&have, server).unwrap().major;
        assert_eq!(chosen(140_023), 15);
        assert_eq!(chosen(160_001), 16);
        assert_eq!(chosen(170_001), 18);
        assert!(PgTools::for_dump(&have, 190_000).is_err());
        assert!(PgTools::for_dump(&[], 130_000).is_err());
    }

    #[test]
    fn the_pg_restore_that_fits_target_and_archive() {
        check_restore(&[13, 15, 16, 18], 15, 15, Some(15));
        check_restore(&[13, 15, 16, 18], 15, 16, Some(16));
        check_restore(&[13, 15, 16, 18], 15, 17, Some(18));
        check_restore(&[13, 15, 16, 18], 17, 15, Some(18));
        check_restore(&[15, 16], 18, 15, Some(16));
        check_restore(&[15, 16], 18, 17, None);
    }
}
