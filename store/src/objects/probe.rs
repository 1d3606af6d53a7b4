//! What has to be found out about, or done to, a store before it can be trusted.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::ConditionalPut;
use super::multipart::draft_key;
use super::put::put_error;
use crate::backend::Backend;
use crate::error::{Error, Result};

/// What is older was left behind; what is younger may be somebody's upload.
const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Puts one key twice, create-only, and sees what the second comes to.
pub(super) async fn conditional_put(backend: &Backend) -> Result<ConditionalPut> {
    let key = draft_key("probe")?;
    let path = match backend.prefix.as_str() {
        "" => key.clone(),
        prefix => format!("{prefix}/{key}"),
    };
    let path = object_store::path::Path::from(path);
    let put = |content: &'static str, mode: PutMode| {
        let payload = PutPayload::from_static(content.as_bytes());
        backend
            .store
            .put_opts(&path, payload, PutOptions::from(mode))
    };
    // Some servers do not know the condition and say so, each in its way. What else such an answer may
    // mean holds for a put without condition, too, or not for the condition asked again.
    let first = match put("first\n", PutMode::Create).await {
        Err(error) if unknown(&error) => put("first\n", PutMode::Overwrite).await,
        put => put,
    };
    let result = match first {
        Ok(_) => match put("second\n", PutMode::Create).await {
            Ok(_) => Ok(ConditionalPut::Ignored),
            Err(error) if unknown(&error) => Ok(ConditionalPut::Ignored),
            Err(error) => match put_error(&key, &error) {
                Error::Conflict { .. } => Ok(ConditionalPut::Enforced),
                other => Err(other),
            },
        },
        Err(error) => Err(put_error(&key, &error)),
    };
    if result.is_ok()
        && let Err(error) = backend.store.delete(&path).await
    {
        // Rights without deletion are a fine protection; the few bytes stay.
        let error = put_error(&key, &error);
        tracing::info!(key, %error, "the probe object could not be removed");
    }
    if let Ok(ConditionalPut::Ignored) = result {
        tracing::warn!(
            repository = %backend,
            "the object store ignores the condition of create-only puts; every put is looked up \
             before and read back after"
        );
    }
    result
}

fn unknown(error: &object_store::Error) -> bool {
    match error {
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
            true
        }
        _ => matches!(
            crate::error::http_status(&error.to_string()),
            Some(400 | 501)
        ),
    }
}

/// Removes old drafts of a local repository: our own below `tmp`, and the `name#1` files through
/// which `object_store` writes. Returns how many; what cannot be read or removed is left.
pub(super) fn sweep(root: &Path) -> usize {
    let now = SystemTime::now();
    let old = |path: &Path| {
        let modified = fs::metadata(path).and_then(|meta| meta.modified());
        let age = modified.map(|modified| now.duration_since(modified));
        matches!(age, Ok(Ok(age)) if age > LEFT_BEHIND_AFTER)
    };
    let tmp = root.join("tmp");
    let mut removed = 0;
    let mut folders = vec![tmp.clone(), root.join("keys"), root.join("sources")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => {
                    let ours = path.starts_with(&tmp) || is_staged(&path);
                    if ours && old(&path) && fs::remove_file(&path).is_ok() {
                        removed += 1;
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
    removed
}

/// `name#digits`, as `object_store::local` calls a file it has not finished.
fn is_staged(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let suffix = name.and_then(|name| name.split_once('#'));
    suffix.is_some_and(|(_, digits)| {
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Syncs `folder`, every folder below it, and those above it up to `root`.
pub(super) fn sync_folders(root: &Path, folder: &Path) -> io::Result<()> {
    sync_below(folder)?;
    for above in folder.ancestors().skip(1) {
        if !above.starts_with(root) {
            break;
        }
        sync(above)?;
    }
    Ok(())
}

fn sync_below(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // One that is not there has no names to keep.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_below(&entry.path())?;
        }
    }
    sync(folder)
}

fn sync(folder: &Path) -> io::Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Some filesystems cannot sync a folder, and a repository to be read may be read-only; there
        // is nothing better to do on them.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput
                    | io::ErrorKind::Unsupported
                    | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Ok(())
        }
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_drafts_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("sources/s/l/segments");
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(root.path().join("tmp")).unwrap();
        let old = SystemTime::now() - 2 * LEFT_BEHIND_AFTER;
        let file = |path: &Path, time| {
            let file = File::create(path).unwrap();
            file.set_modified(time).unwrap();
        };
        file(&folder.join("a.zst"), old);
        file(&folder.join("a.zst#1"), old);
        file(&folder.join("b.zst#1"), SystemTime::now());
        file(&root.path().join("tmp/upload-1"), old);
        file(&root.path().join("tmp/upload-2"), SystemTime::now());
        file(&root.path().join("mine#1"), old);
        assert_eq!(sweep(root.path()), 2);
        assert!(folder.join("a.zst").exists());
        assert!(folder.join("b.zst#1").exists());
        assert!(root.path().join("tmp/upload-2").exists());
        assert!(root.path().join("mine#1").exists());
    }
}
