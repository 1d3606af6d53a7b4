//! Places for a repository: a local folder, and the S3 server that `tools/with-s3.sh` started.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use tempfile::TempDir;

/// A repository's place that nobody else uses.
pub struct Storage {
    url: String,
    environment: Vec<(String, String)>,
    folder: Option<Arc<TempDir>>,
}

impl Storage {
    /// # Errors
    /// When no folder can be made.
    pub fn local() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("lastgood-repository-")
            .tempdir()?;
        let url = format!("file://{}", folder.path().join("repository").display());
        Ok(Self {
            url,
            environment: Vec::new(),
            folder: Some(Arc::new(folder)),
        })
    }

    /// A prefix of its own in the bucket, if there is an S3 server. `make test` always has one.
    pub fn s3() -> Option<Self> {
        let Ok(endpoint) = std::env::var("LASTGOOD_TEST_S3_ENDPOINT") else {
            eprintln!("NOT TESTED on S3: run by tools/with-s3.sh");
            return None;
        };
        let bucket = std::env::var("LASTGOOD_TEST_S3_BUCKET").unwrap_or("lastgood-test".into());
        let environment = vec![
            ("AWS_ENDPOINT_URL".to_owned(), endpoint),
            ("AWS_ALLOW_HTTP".to_owned(), "true".to_owned()),
        ];
        let url = format!("s3://{bucket}/it-{:016x}", rand::random::<u64>());
        Some(Self {
            url,
            environment,
            folder: None,
        })
    }

    /// As [`Storage::s3`], reached by another way, such as a proxy.
    pub fn s3_by(endpoint: &str) -> Option<Self> {
        let mut storage = Self::s3()?;
        for (name, value) in &mut storage.environment {
            if name == "AWS_ENDPOINT_URL" {
                endpoint.clone_into(value);
            }
        }
        Some(storage)
    }

    /// As `--repository` takes it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What a process needs in its environment to reach it, besides the credentials of ours.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// Keeps a local repository's folder while somebody works in it.
    pub(crate) fn keep(&self) -> Option<Arc<TempDir>> {
        self.folder.clone()
    }

    /// The folder of a local repository.
    pub fn path(&self) -> Option<std::path::PathBuf> {
        self.folder
            .as_ref()
            .map(|folder| folder.path().join("repository"))
    }

    /// The files of a local repository below `folder` whose path satisfies `wanted`, sorted.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn files(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<std::path::PathBuf>> {
        fn walk(folder: &Path, found: &mut Vec<std::path::PathBuf>) -> std::io::Result<()> {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                match entry.file_type()?.is_dir() {
                    true => walk(&entry.path(), found)?,
                    false => found.push(entry.path()),
                }
            }
            Ok(())
        }
        let mut found = Vec::new();
        if let Some(path) = self.path() {
            walk(&path, &mut found)?;
        }
        found.retain(|path| wanted(&path.to_string_lossy()));
        found.sort();
        Ok(found)
    }
}
