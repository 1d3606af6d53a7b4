//! `lastgood verify`: read and authenticate every object of a source, and check that its segments
//! follow each other. Needs no service and no PostgreSQL; says nothing about a restore into one.

use std::io::{BufRead, Read};

use lastgood_proto::key::SourceObject;
use lastgood_proto::manifest::BaseManifest;
use lastgood_proto::segment::SegmentReader;
use lastgood_restore::Survey;
use lastgood_store::{ObjectReader, Repository, SourceStore};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::failure::Failure;
use super::output::{Output, human_bytes, some};
use super::place::{RepositoryArgs, SourceArg, source_store};
use crate::http::chain;

#[derive(clap::Args)]
pub(super) struct Args {
    /// All of the repository's, if none is named
    #[command(flatten)]
    source: SourceArg,
    #[command(flatten)]
    repository: RepositoryArgs,
}

#[derive(Default)]
struct Tally {
    objects: u64,
    segments: u64,
    bases: u64,
    transactions: u64,
    bytes: u64,
    /// What is wrong: the object, and how.
    problems: Vec<(String, String)>,
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let Some(repository) = args.repository.open().await? else {
        return Err(Failure::usage(
            "give --repository, and --key-file if it is encrypted",
        ));
    };
    let stores = match args.source.wanted() {
        Some(wanted) => vec![source_store(&repository, Some(wanted)).await?],
        None => all(&repository).await?,
    };
    let mut wrong = 0;
    let mut items = Vec::new();
    for (name, store) in stores {
        let tally = verify(&store, output).await?;
        wrong += tally.problems.len();
        report(&name, &tally, output);
        items.push(as_json(&name, &tally));
    }
    output.value(&json!({"items": items}));
    match wrong {
        0 => Ok(()),
        _ => Err(Failure::corrupt(format!(
            "{wrong} objects are not what was written"
        ))),
    }
}

async fn all(repository: &Repository) -> Result<Vec<(String, SourceStore)>, Failure> {
    let mut stores = Vec::new();
    for (id, file) in repository.sources().await? {
        stores.push((file.name, repository.source(id).await?));
    }
    Ok(stores)
}

async fn verify(store: &SourceStore, output: &Output) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    let objects = store.objects().await?;
    match Survey::read(store).await {
        Ok(survey) => {
            for lineage in &survey.listing.lineages {
                // Every base needs the segments from its consistent point on, unless it is kept for its own
                // moment alone.
                let first = lineage.segments.first().map(|segment| segment.start);
                for base in &lineage.bases {
                    let needs = base.consistent_point();
                    if needs < lineage.given_up.before {
                        continue;
                    }
                    if let Some(first) = first.filter(|first| *first > needs) {
                        let path = store.path(&SourceObject::Manifest(lineage.id, *base));
                        let problem = format!("the segments from {needs} to {first} are missing");
                        tally.problems.push((path, problem));
                    }
                }
                for forked in lineage.fork.iter().flat_map(|fork| &fork.segments) {
                    let path = store.path(&SourceObject::Segment(lineage.id, *forked));
                    let problem = "two services wrote into this lineage: it and what follows is \
                                   never restored";
                    tally.problems.push((path, problem.to_owned()));
                }
                for orphan in &lineage.orphans {
                    let path = store.path(&SourceObject::Segment(lineage.id, *orphan));
                    let problem = "the segment before it is missing".to_owned();
                    tally.problems.push((path, problem));
                }
            }
        }
        Err(error) => tally.problems.push(("listing".to_owned(), chain(&error))),
    }
    let bar = output.is_watched().then(|| {
        indicatif::ProgressBar::new(objects.len() as u64).with_style(
            indicatif::ProgressStyle::with_template(
                "verifying {wide_bar} {pos}/{len} objects, {eta} left",
            )
            .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()),
        )
    });
    for entry in objects {
        tally.objects += 1;
        tally.bytes += entry.bytes;
        if let Err(problem) = check(store, &entry.object, &mut tally).await {
            tally.problems.push((store.path(&entry.object), problem));
        }
        if let Some(bar) = &bar {
            bar.inc(1);
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(tally)
}

async fn check(
    store: &SourceStore,
    object: &SourceObject,
    tally: &mut Tally,
) -> Result<(), String> {
    let text = |error: lastgood_store::Error| chain(&error);
    match object {
        SourceObject::Segment(lineage, key) => {
            let (source, lineage, key) = (store.id(), *lineage, *key);
            let reader = store.open(object).await.map_err(text)?;
            let transactions = blocking(reader, move |reader| {
                let mut segment = SegmentReader::open(reader, Some((source, lineage, &key)))
                    .map_err(|error| chain(&error))?;
                while segment.next().map_err(|error| chain(&error))?.is_some() {}
                let footer = segment.footer().ok_or("it has no footer")?;
                Ok(footer.transactions)
            })
            .await?;
            tally.segments += 1;
            tally.transactions += transactions;
        }
        SourceObject::Manifest(lineage, base) => {
            let manifest: BaseManifest = store.get_json(object).await.map_err(text)?;
            for archive in &manifest.archives {
                let object = SourceObject::Archive(*lineage, *base, archive.name);
                let reader = store
                    .open(&object)
                    .await
                    .map_err(|error| format!("its archive {}: {}", archive.name, chain(&error)))?;
                let (bytes, sha256) = digest(reader).await?;
                if bytes != archive.bytes || sha256 != archive.sha256 {
                    return Err(format!(
                        "its archive {} is not the one it names",
                        archive.name
                    ));
                }
            }
            tally.bases += 1;
        }
        // Read whole with its manifest; without one it is the rest of a base that was cut short.
        SourceObject::Archive(..) => {}
        SourceObject::Source
        | SourceObject::Lineage(_)
        | SourceObject::LineageEnd(_)
        | SourceObject::Shape(..)
        | SourceObject::Retired(..)
        | SourceObject::Point(..) => {
            let _: Value = store.get_json(object).await.map_err(text)?;
        }
    }
    Ok(())
}

async fn digest(reader: ObjectReader) -> Result<(u64, String), String> {
    blocking(reader, |mut reader| {
        let mut hash = Sha256::new();
        let mut bytes = 0;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match reader.read(&mut buffer).map_err(|error| chain(&error))? {
                0 => break,
                read => {
                    hash.update(&buffer[..read]);
                    bytes += read as u64;
                }
            }
        }
        let hex = hash
            .finalize()
            .into_iter()
            .map(|byte| format!("{byte:02x}"));
        Ok((bytes, hex.collect()))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    reader: ObjectReader,
    work: impl FnOnce(Box<dyn BufRead + Send>) -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let reader = reader.into_blocking();
    tokio::task::spawn_blocking(move || work(Box::new(reader)))
        .await
        .map_err(|_| "the check was cut short".to_owned())?
}

fn report(name: &str, tally: &Tally, output: &Output) {
    output.line(format!(
        "{name}: {} ({}), {}, {} with {}: {}",
        some(&tally.objects.into(), "object"),
        human_bytes(tally.bytes),
        some(&tally.bases.into(), "base"),
        some(&tally.segments.into(), "segment"),
        some(&tally.transactions.into(), "transaction"),
        match tally.problems.len() {
            0 => "all as they were written".to_owned(),
            wrong => format!("{wrong} WRONG"),
        }
    ));
    for (path, problem) in &tally.problems {
        output.line(format!("  {path}\n      {problem}"));
    }
}

fn as_json(name: &str, tally: &Tally) -> Value {
    let problems: Vec<Value> = tally
        .problems
        .iter()
        .map(|(path, problem)| json!({"object": path, "problem": problem}))
        .collect();
    json!({
        "source": name,
        "objects": tally.objects,
        "bytes": tally.bytes,
        "bases": tally.bases,
        "segments": tally.segments,
        "transactions": tally.transactions,
        "problems": problems,
    })
}
