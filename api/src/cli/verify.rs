//! `lastgood verify`: read and authenticate every object of a source, or a share of them, and check that
//! its segments follow each other, its archives can be listed and what it promises can be restored.
//! Needs no service and no server, and `pg_restore` for the archives.

mod archives;
mod promise;
mod sample;

use std::collections::HashSet;

use lastgood_proto::key::{SegmentKind, SourceObject};
use lastgood_proto::listing::{LineageListing, Listing};
use lastgood_proto::manifest::{BaseManifest, cut_table};
use lastgood_proto::segment::SegmentReader;
use lastgood_proto::{BaseId, LineageId, Retention};
use lastgood_restore::Survey;
use lastgood_store::{ObjectEntry, Repository, SourceStore};
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{Output, human_bytes, some};
use super::place::{RepositoryArgs, SourceArg, source_store};
use crate::http::{WindowsView, chain};
use archives::{Checked, Lister};
use promise::Promise;
use sample::Sample;

#[derive(clap::Args)]
pub(super) struct Args {
    /// All of the repository's, if none is named
    #[command(flatten)]
    source: SourceArg,
    /// Read only a share of the segments, such as 5% or 100, drawn anew each time, and of the bases
    /// only the newest; the names of all objects are checked all the same
    #[arg(long, value_name = "SHARE")]
    sample: Option<Sample>,
    /// Draw the share again that was drawn with this seed
    #[arg(long, requires = "sample")]
    seed: Option<u32>,
    /// What has to be kept, such as "30 days": whether all of it can be restored
    #[arg(long)]
    retention: Option<Retention>,
    #[command(flatten)]
    repository: RepositoryArgs,
}

/// What is read of a source.
struct Choice {
    sample: Option<Sample>,
    seed: u32,
    lister: Lister,
}

#[derive(Default)]
struct Tally {
    /// All there are, read or not.
    all: u64,
    objects: u64,
    segments: u64,
    bases: u64,
    listed: u64,
    compared: u64,
    transactions: u64,
    bytes: u64,
    windows: Option<WindowsView>,
    promise: Option<Promise>,
    /// What is wrong: the object, and how.
    problems: Vec<(String, String)>,
    /// What could not be checked here: the object, and why.
    unverified: Vec<(String, String)>,
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
    let choice = Choice {
        sample: args.sample,
        seed: match args.seed {
            Some(seed) => seed,
            None => drawn()?,
        },
        lister: Lister::new().await,
    };
    let (mut wrong, mut unverified, mut broken) = (0, 0, false);
    let mut items = Vec::new();
    for (name, store) in stores {
        let tally = verify(&store, &choice, args.retention.as_ref(), output).await?;
        wrong += tally.problems.len();
        unverified += tally.unverified.len();
        broken |= tally
            .promise
            .as_ref()
            .is_some_and(|promise| !promise.is_kept());
        report(&name, &tally, &choice, output);
        items.push(as_json(&name, &tally, &choice));
    }
    output.value(&json!({"items": items}));
    match (wrong, unverified, broken) {
        (0, 0, false) => Ok(()),
        (0, 0, true) => Err(Failure::operator(
            "not all that --retention promises can be restored",
        )),
        (0, _, _) => Err(Failure::operator(format!(
            "{} could not be verified here; nothing is known to be wrong",
            some(&unverified.into(), "archive")
        ))),
        (wrong, _, _) => Err(Failure::corrupt(format!(
            "{} not what was written",
            if wrong == 1 {
                "1 object is".to_owned()
            } else {
                format!("{wrong} objects are")
            }
        ))),
    }
}

fn drawn() -> Result<u32, Failure> {
    let mut seed = [0; 4];
    getrandom::fill(&mut seed)
        .map_err(|_| Failure::failed("the operating system gives no random bytes"))?;
    Ok(u32::from_be_bytes(seed))
}

async fn all(repository: &Repository) -> Result<Vec<(String, SourceStore)>, Failure> {
    let mut stores = Vec::new();
    for (id, file) in repository.sources().await? {
        stores.push((file.name, repository.source(id).await?));
    }
    Ok(stores)
}

async fn verify(
    store: &SourceStore,
    choice: &Choice,
    retention: Option<&Retention>,
    output: &Output,
) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    let objects = store.objects().await?;
    tally.all = objects.len() as u64;
    let listing = Listing::from_objects(objects.iter().map(|entry| entry.object.clone()));
    let bases = newest_with_lenders(store, &listing).await;
    let chosen = chosen(store, choice, &objects, &bases);
    let bar = output.is_watched().then(|| {
        indicatif::ProgressBar::new(chosen.len() as u64).with_style(
            indicatif::ProgressStyle::with_template(
                "verifying {wide_bar} {pos}/{len} objects, {eta} left",
            )
            .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()),
        )
    });
    let mut failed = Vec::new();
    for entry in chosen {
        tally.objects += 1;
        tally.bytes += entry.bytes;
        let object = &entry.object;
        if check(store, &listing, object, choice, &mut tally)
            .await
            .is_err()
        {
            failed.push(object);
        }
        if let Some(bar) = &bar {
            bar.inc(1);
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    if !failed.is_empty() {
        recheck(store, &failed, choice, &mut tally).await?;
    }
    // At the end, so that it misses what was deleted meanwhile and should not have been.
    match Survey::read(store).await {
        Ok(survey) => {
            for lineage in &survey.listing.lineages {
                check_chain(store, &survey, lineage, &mut tally);
            }
            tally.windows = Some(WindowsView::from(&survey));
            tally.promise = retention.and_then(|retention| Promise::of(&survey, retention));
        }
        Err(error) => tally.problems.push(("listing".to_owned(), chain(&error))),
    }
    Ok(tally)
}

/// Compaction or retention may have deleted an object since it was listed, or what a merged one was to be
/// compared with: only what is still there and still not right is a problem.
async fn recheck(
    store: &SourceStore,
    failed: &[&SourceObject],
    choice: &Choice,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let there: HashSet<SourceObject> = store
        .objects()
        .await?
        .into_iter()
        .map(|entry| entry.object)
        .collect();
    let listing = Listing::from_objects(there.iter().cloned());
    for object in failed {
        if !there.contains(object) {
            tally.objects -= 1;
        } else if let Err(problem) = check(store, &listing, object, choice, tally).await {
            tally.problems.push((store.path(object), problem));
        }
    }
    Ok(())
}

/// The newest base, and those that it borrows rows from, if it can be read.
async fn newest_with_lenders(
    store: &SourceStore,
    listing: &Listing,
) -> HashSet<(LineageId, BaseId)> {
    let newest = listing
        .lineages
        .iter()
        .rev()
        .find_map(|lineage| Some((lineage.id, *lineage.bases.last()?)));
    let mut bases: HashSet<(LineageId, BaseId)> = newest.into_iter().collect();
    if let Some((lineage, base)) = newest {
        let object = SourceObject::Manifest(lineage, base);
        if let Ok(manifest) = store.get_json::<BaseManifest>(&object).await {
            let lenders = manifest.borrowed.iter();
            bases.extend(lenders.map(|lent| (lineage, lent.base)));
        }
    }
    bases
}

/// What is read: everything, or the share of the segments, these bases, and all that is small.
fn chosen<'a>(
    store: &SourceStore,
    choice: &Choice,
    objects: &'a [ObjectEntry],
    bases: &HashSet<(LineageId, BaseId)>,
) -> Vec<&'a ObjectEntry> {
    let Some(sample) = choice.sample else {
        return objects.iter().collect();
    };
    let segments: HashSet<SourceObject> = sample
        .choose(store, objects, choice.seed)
        .into_iter()
        .collect();
    let wanted = |entry: &&ObjectEntry| match &entry.object {
        SourceObject::Segment(..) => segments.contains(&entry.object),
        SourceObject::Manifest(lineage, base) | SourceObject::Archive(lineage, base, _) => {
            bases.contains(&(*lineage, *base))
        }
        SourceObject::Source
        | SourceObject::Numbered(..)
        | SourceObject::Lineage(_)
        | SourceObject::LineageEnd(_)
        | SourceObject::Shape(..)
        | SourceObject::Ddl(..)
        | SourceObject::Retired(..)
        | SourceObject::Point(..) => true,
    };
    objects.iter().filter(wanted).collect()
}

/// Whether segments follow each other, by their names.
fn check_chain(store: &SourceStore, survey: &Survey, lineage: &LineageListing, tally: &mut Tally) {
    // Every base needs the segments from its consistent point on, unless it is kept for its own
    // moment alone.
    let first = lineage.segments.first().map(|segment| segment.start);
    for base in &lineage.bases {
        let mut known = survey.bases.iter();
        let known = known.find(|known| known.id == *base);
        let needs = known.map_or(base.consistent_point(), |known| known.rows_from);
        if needs < lineage.given_up.before && known.is_none_or(|known| known.lenders.is_empty()) {
            continue;
        }
        if let Some(first) = first.filter(|first| *first > needs) {
            let path = store.path(&SourceObject::Manifest(lineage.id, *base));
            let problem = format!("the segments from {needs} to {first} are missing");
            tally.problems.push((path, problem));
        }
    }
    // What has ended says how far it came.
    let oldest = lineage.bases.first().map(|base| base.consistent_point());
    if let (Some(end), Some(reached)) = (
        survey.ends.get(&lineage.id),
        lineage.durable_lsn().or(oldest),
    ) && reached < end.end
        && lineage.given_up.before < end.end
    {
        let path = store.path(&SourceObject::LineageEnd(lineage.id));
        let problem = format!(
            "the segments from {reached} to {}, where it ended, are missing",
            end.end
        );
        tally.problems.push((path, problem));
    }
    for key in &lineage.orphans {
        let path = store.path(&SourceObject::Segment(lineage.id, *key));
        let problem = "the segment before it is missing".to_owned();
        tally.problems.push((path, problem));
    }
}

async fn check(
    store: &SourceStore,
    listing: &Listing,
    object: &SourceObject,
    choice: &Choice,
    tally: &mut Tally,
) -> Result<(), String> {
    let text = |error: lastgood_store::Error| chain(&error);
    match object {
        SourceObject::Segment(lineage, key) => {
            let (source, lineage, key) = (store.id(), *lineage, *key);
            let reader = store.open(object).await.map_err(text)?.into_blocking();
            let read = tokio::task::spawn_blocking(move || {
                let expect = Some((source, lineage, &key));
                let mut segment =
                    SegmentReader::open(reader, expect).map_err(|error| chain(&error))?;
                while segment.next().map_err(|error| chain(&error))?.is_some() {}
                let footer = segment.into_footer().ok_or("it has no footer")?;
                Ok::<_, String>(footer.transactions)
            });
            let transactions = read.await.map_err(|_| "the check was cut short")??;
            let listed = listing.lineage(lineage);
            let parts = listed
                .map(|listed| listed.parts_of(&key))
                .unwrap_or_default();
            if key.kind == SegmentKind::Merged && !parts.is_empty() {
                for parts in &parts {
                    lastgood_restore::same_content(store, lineage, key, parts)
                        .await
                        .map_err(|error| chain(&error))?;
                }
                tally.compared += 1;
            }
            tally.segments += 1;
            // What is superseded or lies beside the chain is in another one.
            let counts = listed.is_some_and(|listed| listed.uses(&key));
            tally.transactions += if counts { transactions } else { 0 };
        }
        SourceObject::Manifest(lineage, base) => {
            let manifest: BaseManifest = store.get_json(object).await.map_err(text)?;
            let listed = listing.lineage(*lineage);
            let is_there = |base| listed.is_some_and(|listed| listed.bases.contains(base));
            // One that retention has given up may outlive its lenders.
            for borrowed in manifest.borrowed.iter().filter(|_| is_there(base)) {
                let lender = borrowed.base;
                if !is_there(&borrowed.base) {
                    return Err(format!(
                        "it borrows rows from base {lender}, which is not there"
                    ));
                }
            }
            if let Some((schema, name)) = cut_table(&manifest.archives) {
                return Err(format!("not all rows of {schema}.{name} are named in it"));
            }
            for archive in &manifest.archives {
                let place = (*lineage, *base);
                let checked = choice.lister.check(store, place, &manifest, archive).await;
                match checked.map_err(|why| format!("its archive {}: {why}", archive.name))? {
                    Checked::Listed => tally.listed += 1,
                    Checked::Text => {}
                    Checked::NotListed(why) => {
                        let object = SourceObject::Archive(*lineage, *base, archive.name);
                        let why = format!("its contents were not listed: {why}");
                        tally.unverified.push((store.path(&object), why));
                    }
                }
            }
            tally.bases += 1;
        }
        // Read whole with its manifest; without one it is the rest of a base that was cut short.
        SourceObject::Archive(..) => {}
        SourceObject::Numbered(..) => match store.get_json::<Value>(object).await {
            // Of the old ones some may have been cleaned up since the listing.
            Ok(_) | Err(lastgood_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(text(error)),
        },
        SourceObject::Source
        | SourceObject::Lineage(_)
        | SourceObject::LineageEnd(_)
        | SourceObject::Shape(..)
        | SourceObject::Ddl(..)
        | SourceObject::Retired(..)
        | SourceObject::Point(..) => {
            let _: Value = store.get_json(object).await.map_err(text)?;
        }
    }
    Ok(())
}

fn report(name: &str, tally: &Tally, choice: &Choice, output: &Output) {
    let share = match choice.sample {
        Some(_) => format!(" of {}, drawn with --seed {}", tally.all, choice.seed),
        None => String::new(),
    };
    output.line(format!(
        "{name}: {}{share} ({}), {}, {} with {}: {}",
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
    for (path, problem) in tally.problems.iter().chain(&tally.unverified) {
        output.line(format!("  {path}\n      {problem}"));
    }
    if let Some(windows) = tally
        .windows
        .as_ref()
        .and_then(|windows| serde_json::to_value(windows).ok())
    {
        for window in windows["windows"].as_array().into_iter().flatten() {
            let time = |end: &str| super::output::show(&window[end]["time"]);
            output.line(format!(
                "  recoverable  {}  to  {}",
                time("from"),
                time("to")
            ));
        }
    }
    if let Some(promise) = &tally.promise {
        output.line(format!("  {}", promise.describe().replace('\n', "\n  ")));
    }
}

fn as_json(name: &str, tally: &Tally, choice: &Choice) -> Value {
    let each = |list: &[(String, String)]| -> Vec<Value> {
        let items = list.iter();
        items
            .map(|(path, problem)| json!({"object": path, "problem": problem}))
            .collect()
    };
    json!({
        "source": name,
        "objects": tally.objects,
        "objects_there": tally.all,
        "seed": choice.sample.map(|_| choice.seed),
        "bytes": tally.bytes,
        "bases": tally.bases,
        "archives_listed": tally.listed,
        "segments": tally.segments,
        "merged_compared": tally.compared,
        "transactions": tally.transactions,
        "recoverable": tally.windows,
        "promise": tally.promise.as_ref().map(Promise::to_json),
        "problems": each(&tally.problems),
        "unverified": each(&tally.unverified),
    })
}
