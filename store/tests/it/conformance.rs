//! One suite for every kind of store.

use std::io::{Read, Write};

use bytes::Bytes;
use lastgood_proto::Lsn;
use lastgood_proto::key::PointKey;
use lastgood_proto::manifest::SourceFile;
use lastgood_store::{
    Backend, ConditionalPut, Encryption, Error, MasterKey, Put, Repository, RepositoryUrl,
    SealedBody, SourceObject, SourceStore, StorageOptions,
};

use crate::support::{
    archive, body, encrypted, lineage, noise, read, seal, segment, source_file, source_id,
};

#[tokio::test(flavor = "multi_thread")]
async fn in_memory() {
    suite(std::array::from_fn(|_| Backend::memory()), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_local_disk() {
    let folder = tempfile::tempdir().unwrap();
    let options = StorageOptions::default();
    let mut backends = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let url = RepositoryUrl::local(&folder.path().join(name).join("new"));
        backends.push(Backend::connect(&url, &options, true).await.unwrap());
    }
    suite(backends.try_into().ok().unwrap(), true).await;
    for name in ["c", "d"] {
        let drafts = folder.path().join(name).join("new/tmp");
        assert_eq!(std::fs::read_dir(drafts).unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_an_s3_server() {
    if std::env::var_os("LASTGOOD_TEST_S3_ENDPOINT").is_none() {
        println!("LASTGOOD_TEST_S3_ENDPOINT is not set: the suite did NOT run on S3");
        return;
    }
    remote(s3_url, &s3_options()).await;
}

/// On whatever `LASTGOOD_TEST_REPOSITORY` names, such as `az://container/prefix`, with the settings of
/// the environment.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_store_named_by_hand() {
    let Ok(base) = std::env::var("LASTGOOD_TEST_REPOSITORY") else {
        return;
    };
    let url = |name: &str| format!("{base}/{}/{name}", run()).parse().unwrap();
    remote(url, &StorageOptions::from_env()).await;
}

async fn remote(url: impl Fn(&str) -> RepositoryUrl, options: &StorageOptions) {
    let mut backends = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let backend = Backend::connect(&url(name), options, true).await;
        backends.push(backend.unwrap());
    }
    // A server that ignores the condition (Garage) is a legitimate one to test on.
    let enforced = std::env::var_os("LASTGOOD_TEST_UNCONDITIONAL").is_none();
    suite(backends.try_into().ok().unwrap(), enforced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_or_bucket_is_the_operators_business() {
    if std::env::var_os("LASTGOOD_TEST_S3_ENDPOINT").is_none() {
        println!("LASTGOOD_TEST_S3_ENDPOINT is not set: nothing was tried on S3");
        return;
    }
    let secret = "not-the-secret-at-all";
    let wrong = [("AWS_SECRET_ACCESS_KEY".to_owned(), secret.to_owned())];
    let cases = [
        (s3_url("wrong"), s3_options().with_pairs(wrong)),
        (
            "s3://no-such-bucket-of-lastgood/p".parse().unwrap(),
            s3_options(),
        ),
    ];
    for (url, options) in cases {
        let made = Repository::create_or_open(&url, &options, Encryption::Off).await;
        let error = made.err().unwrap();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        assert_eq!(error.class(), lastgood_store::Class::NeedsOperator);
        assert!(!format!("{error:?}").contains(secret));
    }
}

fn s3_url(name: &str) -> RepositoryUrl {
    let bucket = std::env::var("LASTGOOD_TEST_S3_BUCKET").unwrap();
    let url = format!("s3://{bucket}/conformance/{}/{name}", run());
    url.parse().unwrap()
}

/// A prefix of this run's own.
fn run() -> String {
    noise(8).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn s3_options() -> StorageOptions {
    let endpoint = std::env::var("LASTGOOD_TEST_S3_ENDPOINT").unwrap();
    StorageOptions::from_env().with_pairs([("AWS_ENDPOINT_URL".to_owned(), endpoint)])
}

/// On four empty stores.
async fn suite([off, on, clear, sealed]: [Backend; 4], enforced: bool) {
    opening(&off, &on, enforced).await;
    let (_, store) = encrypted(&sealed).await;
    let repository = Repository::create_or_open_on(clear, Encryption::Off)
        .await
        .unwrap();
    let in_clear = repository.create_source(source_id()).await.unwrap();
    for store in [&store, &in_clear] {
        json(store).await;
        sealed_bodies(store).await;
        streams(store).await;
        blocking(store).await;
        listing(store).await;
    }
    if enforced {
        one_writer_wins(&store).await;
    }
}

async fn opening(backend: &Backend, second: &Backend, enforced: bool) {
    let off = Repository::open_on(backend.clone(), Encryption::Off).await;
    assert!(matches!(off.err().unwrap(), Error::NoRepository { .. }));

    let made = Repository::create_or_open_on(backend.clone(), Encryption::Off)
        .await
        .unwrap();
    let expected = match enforced {
        true => ConditionalPut::Enforced,
        false => ConditionalPut::Ignored,
    };
    assert_eq!(made.conditional_put(), Some(expected));
    let reopened = Repository::open_on(backend.clone(), Encryption::Off)
        .await
        .unwrap();
    assert_eq!(reopened.id(), made.id());
    assert_eq!(reopened.conditional_put(), None);

    let master = || Encryption::On(MasterKey::generate().unwrap());
    let on = Repository::create_or_open_on(backend.clone(), master()).await;
    assert!(matches!(on.err().unwrap(), Error::NotEncrypted));

    let (one, other) = tokio::join!(
        Repository::create_or_open_on(second.clone(), master()),
        Repository::create_or_open_on(second.clone(), master()),
    );
    let one = one.unwrap();
    assert!(one.sources().await.unwrap().is_empty());
    if enforced {
        assert_eq!(one.id(), other.unwrap().id());
    }
    let off = Repository::open_on(second.clone(), Encryption::Off).await;
    assert!(matches!(off.err().unwrap(), Error::MasterKeyNeeded));
}

async fn json(store: &SourceStore) {
    let object = SourceObject::Source;
    store.put_json(&object, &source_file()).await.unwrap();
    let again = store.put_json(&object, &source_file()).await.unwrap();
    assert_eq!(again, Put::AlreadyThereSame);
    let other = SourceFile {
        name: "other".to_owned(),
        ..source_file()
    };
    let conflict = store.put_json(&object, &other).await.unwrap_err();
    assert!(matches!(conflict, Error::Conflict { .. }), "{conflict:?}");
    let file: SourceFile = store.get_json(&object).await.unwrap();
    assert_eq!(file, source_file());
    let sources = store.repository().sources().await.unwrap();
    assert_eq!(sources, [(source_id(), source_file())]);

    let missing = SourceObject::Lineage(lineage());
    let missing = store.get_json::<SourceFile>(&missing).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing:?}");
    // A value of another type is damage, not a default.
    let wrong = store.get_json::<u32>(&object).await.unwrap_err();
    assert!(matches!(wrong, Error::Corrupt { .. }), "{wrong:?}");
}

async fn sealed_bodies(store: &SourceStore) {
    // One request, and several parts.
    for (bytes, start) in [(0, 0x10), (100_000, 0x20), (20 << 20, 0x30)] {
        let object = segment(start, start + 0x10);
        let plain = noise(bytes);
        let sealed = seal(store, &object, &plain);
        let created = store.put_sealed(&object, &body(&sealed)).await.unwrap();
        assert_eq!(created, Put::Created);
        let again = store.put_sealed(&object, &body(&sealed)).await.unwrap();
        assert_eq!(again, Put::AlreadyThereSame);
        assert_eq!(read(store, &object).await.unwrap(), plain);

        // From a file, the same bytes are the same; other bytes of the same length are not.
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&sealed).unwrap();
        let spooled = SealedBody::File(file, sealed.len() as u64);
        let again = store.put_sealed(&object, &spooled).await.unwrap();
        assert_eq!(again, Put::AlreadyThereSame);
        let mut other = sealed.to_vec();
        let last = other.len() - 1;
        other[last] ^= 1;
        let conflict = store.put_sealed(&object, &body(&other.into())).await;
        let conflict = conflict.unwrap_err();
        assert!(matches!(conflict, Error::Conflict { .. }), "{conflict:?}");
        assert_eq!(read(store, &object).await.unwrap(), plain);
    }
}

async fn streams(store: &SourceStore) {
    for (nonce, bytes) in [(1, 0), (2, 1_000), (3, 40 << 20)] {
        let object = archive(nonce);
        let plain = noise(bytes);
        let mut writer = store.put_stream(&object).await.unwrap();
        for piece in plain.chunks(300_000) {
            writer.write(piece).await.unwrap();
        }
        // Nothing is there before the end.
        assert!(matches!(
            store.open(&object).await.err().unwrap(),
            Error::NotFound { .. }
        ));
        let stored = writer.finish().await.unwrap();
        let reader = store.open(&object).await.unwrap();
        assert_eq!(reader.stored_bytes(), stored);
        assert_eq!(read(store, &object).await.unwrap(), plain);
        let taken = store.put_stream(&object).await.err().unwrap();
        assert!(matches!(taken, Error::Conflict { .. }), "{taken:?}");
    }
    // Given up, in both ways, after parts were sent.
    for drop_it in [true, false] {
        let object = archive(4);
        let mut writer = store.put_stream(&object).await.unwrap();
        writer.write(&noise(20 << 20)).await.unwrap();
        match drop_it {
            true => drop(writer),
            false => writer.abort().await,
        }
        let gone = read(store, &object).await.unwrap_err();
        assert!(matches!(gone, Error::NotFound { .. }), "{gone:?}");
    }
    // Somebody else was faster: what they made stays.
    let object = archive(5);
    let mut slow = store.put_stream(&object).await.unwrap();
    slow.write(&noise(20 << 20)).await.unwrap();
    let mut fast = store.put_stream(&object).await.unwrap();
    fast.write(b"fast").await.unwrap();
    fast.finish().await.unwrap();
    let beaten = slow.finish().await.unwrap_err();
    assert!(matches!(beaten, Error::Conflict { .. }), "{beaten:?}");
    assert_eq!(read(store, &object).await.unwrap(), b"fast");
}

async fn blocking(store: &SourceStore) {
    let object = segment(0x40, 0x50);
    let plain = noise(20 << 20);
    let sealed = seal(store, &object, &plain);
    store.put_sealed(&object, &body(&sealed)).await.unwrap();
    let mut reader = store.open(&object).await.unwrap().into_blocking();
    let (read, after) = tokio::task::spawn_blocking(move || {
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        (read, reader.read(&mut [0; 1]).unwrap())
    })
    .await
    .unwrap();
    assert_eq!(read, plain);
    assert_eq!(after, 0);
}

async fn listing(store: &SourceStore) {
    let point = PointKey::new(Lsn::new(0x20), "before-release").unwrap();
    let point = SourceObject::Point(lineage(), point);
    store.put_json(&point, &1).await.unwrap();
    let listing = store.list().await.unwrap();
    assert!(listing.described);
    let found = listing.lineage(lineage()).unwrap();
    assert_eq!(found.segments.len(), 4);
    assert_eq!(found.durable_lsn(), Some(Lsn::new(0x50)));
    assert_eq!(found.points.len(), 1);
    assert!(found.bases.is_empty());

    let starts = |from: u64| async move {
        let entries = store
            .segments_from(lineage(), Lsn::new(from))
            .await
            .unwrap();
        let objects = entries.into_iter().map(|entry| match entry.object {
            SourceObject::Segment(_, key) => key.start.as_u64(),
            other => panic!("{other:?} is no segment"),
        });
        objects.collect::<Vec<_>>()
    };
    assert_eq!(starts(0).await, [0x10, 0x20, 0x30, 0x40]);
    assert_eq!(starts(0x20).await, [0x20, 0x30, 0x40]);
    assert_eq!(starts(0x21).await, [0x30, 0x40]);
    assert!(starts(0x41).await.is_empty());

    let entries = store.objects().await.unwrap();
    let paths: Vec<String> = entries
        .iter()
        .map(|entry| store.path(&entry.object))
        .collect();
    assert!(paths.is_sorted());
    let size = |object: &SourceObject| {
        let entry = entries.iter().find(|entry| entry.object == *object);
        entry.unwrap().bytes
    };
    let opened = store.open(&archive(3)).await.unwrap();
    assert_eq!(size(&archive(3)), opened.stored_bytes());

    store.delete(&point).await.unwrap();
    store.delete(&point).await.unwrap();
    assert_eq!(store.objects().await.unwrap().len(), entries.len() - 1);
}

async fn one_writer_wins(store: &SourceStore) {
    let object = segment(0x100, 0x110);
    let writers = (0..8_u8).map(|writer| {
        let (store, object) = (store.clone(), object.clone());
        tokio::spawn(async move {
            let sealed: Bytes = seal(&store, &object, &[writer]);
            store.put_sealed(&object, &body(&sealed)).await
        })
    });
    let mut winners = 0;
    for writer in writers.collect::<Vec<_>>() {
        match writer.await.unwrap() {
            Ok(Put::Created) => winners += 1,
            Ok(Put::AlreadyThereSame) => panic!("no two writers had the same bytes"),
            Err(error) => assert!(matches!(error, Error::Conflict { .. }), "{error:?}"),
        }
    }
    assert_eq!(winners, 1);
    store.delete(&object).await.unwrap();
}
