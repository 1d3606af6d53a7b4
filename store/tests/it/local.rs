//! Local folders: drafts, foreign files, rights.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lastgood_store::{
    Class, Encryption, Error, Repository, RepositoryUrl, SourceObject, StorageOptions,
};

use crate::support::{body, seal, segment, source_file, source_id};

async fn create(path: &Path) -> lastgood_store::Result<Repository> {
    let url = RepositoryUrl::local(path);
    Repository::create_or_open(&url, &StorageOptions::default(), Encryption::Off).await
}

#[tokio::test]
async fn a_folder_is_made_for_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/repository with spaces and %20");
    create(&path).await.unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let url: RepositoryUrl = format!("file://{}", path.display()).parse().unwrap();
    Repository::open(&url, &StorageOptions::default(), Encryption::Off)
        .await
        .unwrap();
}

#[tokio::test]
async fn opening_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none");
    for path in [path.as_path(), folder.path()] {
        let url = RepositoryUrl::local(path);
        let opened = Repository::open(&url, &StorageOptions::default(), Encryption::Off).await;
        let error = opened.err().unwrap();
        assert!(matches!(error, Error::NoRepository { .. }), "{error:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below"), "/proc/lastgood".into()] {
        let error = create(&path).await.err().unwrap();
        assert_eq!(error.class(), Class::NeedsOperator, "{error:?}");
    }
}

#[tokio::test]
async fn drafts_and_foreign_files_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = create(folder.path()).await.unwrap();
    let store = store.create_source(source_id()).await.unwrap();
    store
        .put_json(&SourceObject::Source, &source_file())
        .await
        .unwrap();
    let object = segment(0x10, 0x20);
    let path = folder.path().join(store.path(&object));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // What a killed put leaves, and what file managers and network disks do.
    let staged = format!("{}#1", path.display());
    fs::write(&staged, "half").unwrap();
    fs::write(path.with_file_name(".DS_Store"), "x").unwrap();
    fs::write(path.with_file_name(".nfs0001"), "x").unwrap();
    fs::write(folder.path().join("sources").join("README"), "x").unwrap();
    assert_eq!(store.objects().await.unwrap().len(), 1);

    let sealed = seal(&store, &object, b"rows");
    store.put_sealed(&object, &body(&sealed)).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), sealed);
    assert_eq!(fs::read(&staged).unwrap(), b"half");
    let listing = store.list().await.unwrap();
    assert_eq!(listing.lineages[0].segments.len(), 1);
    assert_eq!(store.repository().sources().await.unwrap().len(), 1);
}
