//! `lastgood plan` and `lastgood restore`: through the service, or with repository and key alone.

use std::sync::Arc;

use lastgood_pg::ConnectionConfig;
use lastgood_proto::{BaseId, LineageId};
use lastgood_restore::{Plan, PlanOptions, Progress, TableName, split_list};
use lastgood_store::SourceStore;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::bar::Bar;
use super::client::Client;
use super::failure::Failure;
use super::output::{Output, bytes, count, human_seconds, pairs, show, some};
use super::place::{
    self, Place, PlaceArgs, SourceArg, parse_connection, source_path, source_store,
};
use super::restores;
use super::size;
use super::target::{ExclusiveArg, TargetArgs};
use crate::clock::now;
use crate::execute::{self, JOBS_MAX, Order, Replay, Stopped};
use crate::http::{PlanView, ProgressView, ReportView};

#[derive(clap::Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    source: SourceArg,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    exclusive: ExclusiveArg,
    /// Only this lineage: for an LSN that is in several
    #[arg(long, value_name = "LINEAGE", help_heading = "Target")]
    lineage: Option<LineageId>,
    /// Only this base; a restore that is resumed goes on from its own anyway
    #[arg(long, value_name = "BASE", help_heading = "Target")]
    base: Option<BaseId>,
    /// Only these tables and what belongs to them: public.users,app."Order"; may be repeated
    #[arg(long, value_name = "TABLES")]
    tables: Vec<String>,
    /// Those tables, under this new schema of a database that exists, whatever else it has; a
    /// scratch database on its server serves to make them
    #[arg(long, value_name = "SCHEMA", requires = "tables")]
    into_schema: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(clap::Args)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    plan: PlanArgs,
    /// Where to, as a connection string: without --create-database its own database, which must be
    /// empty unless --into-schema is given; - reads it from standard input. Others on this machine see arguments: LASTGOOD_INTO may
    /// hold it instead
    #[arg(
        long,
        value_name = "CONNECTION",
        env = "LASTGOOD_INTO",
        hide_env_values = true
    )]
    into: String,
    /// Create this database there and restore into it
    #[arg(long, value_name = "NAME", conflicts_with = "into_schema")]
    create_database: Option<String>,
    /// How changes are brought in
    #[arg(long, value_enum, default_value = "merged")]
    replay: Replay,
    /// What merged changes may take of memory; what does not fit is replayed in order [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = size::bytes)]
    memory: Option<u64>,
    /// Sessions that load rows and build indexes at once [default: 4]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(JOBS_MAX)))]
    jobs: Option<u32>,
    /// Go on with an earlier restore of the same target into the same database
    #[arg(long)]
    resume: bool,
    /// Allow the source's own server and database as the target
    #[arg(long)]
    allow_source: bool,
    /// Begin at once instead of asking on a terminal
    #[arg(long, short)]
    yes: bool,
}

impl PlanArgs {
    fn target(&self) -> Value {
        json!(self.target.target(self.exclusive))
    }

    /// As they are written, one by one.
    fn tables(&self) -> Vec<&str> {
        let lists = self.tables.iter();
        lists.flat_map(|list| split_list(list)).collect()
    }

    async fn make(&self, store: &SourceStore) -> Result<Plan, Failure> {
        let options = PlanOptions {
            now: now(),
            lineage: self.lineage,
            base: self.base,
            tables: self
                .tables()
                .into_iter()
                .map(TableName::parse)
                .collect::<Result<_, _>>()?,
            into_schema: self.into_schema.clone(),
        };
        let target = self.target.target(self.exclusive);
        Ok(Box::pin(lastgood_restore::plan(store, &target, &options)).await?)
    }
}

pub(super) async fn plan(args: PlanArgs, output: &Output) -> Result<(), Failure> {
    let wanted = args.source.wanted();
    let plan = match args.place.open().await? {
        Place::Service(client) => {
            let path = source_path(&client, wanted).await?;
            let body = json!({
                "target": args.target(),
                "lineage": args.lineage,
                "base": args.base,
                "tables": args.tables(),
                "into_schema": args.into_schema,
            });
            client.post(&format!("{path}/plan"), &body).await?
        }
        Place::Repository(repository) => {
            let (_, store) = source_store(&repository, wanted).await?;
            view(&args.make(&store).await?)?
        }
    };
    output.answer(&plan, describe_plan);
    Ok(())
}

pub(super) async fn run(mut args: RestoreArgs, output: &Output) -> Result<(), Failure> {
    let into = place::connection(std::mem::take(&mut args.into))?;
    let connection = parse_connection("--into", &into)?;
    match args.plan.place.open().await? {
        Place::Service(client) => by_service(args, &client, &into, &connection, output).await,
        Place::Repository(repository) => {
            let (_, store) = source_store(&repository, args.plan.source.wanted()).await?;
            by_itself(args, &store, connection, output).await
        }
    }
}

async fn by_service(
    args: RestoreArgs,
    client: &Client,
    into: &str,
    connection: &ConnectionConfig,
    output: &Output,
) -> Result<(), Failure> {
    let path = source_path(client, args.plan.source.wanted()).await?;
    let mut body = json!({
        "target": args.plan.target(),
        "lineage": args.plan.lineage,
        "into": {
            "connection": into,
            "create_database": args.create_database,
            "allow_source": args.allow_source,
        },
        "base": args.plan.base,
        "tables": args.plan.tables(),
        "into_schema": args.plan.into_schema,
        "resume": args.resume,
    });
    let plan = client.post(&format!("{path}/plan"), &body).await?;
    announce(&plan, connection, &args, output)?;
    body["jobs"] = json!(args.jobs);
    body["replay"] = json!(args.replay);
    body["memory_bytes"] = json!(args.memory);
    let begun = client.post(&format!("{path}/restores"), &body).await?;
    let id = show(&begun["id"]);
    output.note(format!(
        "restore {id} runs in the service; Ctrl-C leaves it running"
    ));
    let restore = restores::follow(client, &id, output).await?;
    restores::finish(&restore, output)
}

async fn by_itself(
    mut args: RestoreArgs,
    store: &SourceStore,
    connection: ConnectionConfig,
    output: &Output,
) -> Result<(), Failure> {
    if args.resume && args.plan.base.is_none() {
        let database = args.create_database.as_deref();
        let schema = args.plan.into_schema.as_deref();
        if let Some(begun) = execute::begun_from(&connection, database, schema).await? {
            (args.plan.lineage, args.plan.base) = (Some(begun.0), Some(begun.1));
        }
    }
    let plan = args.plan.make(store).await?;
    let roles = execute::missing_roles(&plan, store, &connection).await?;
    let mut shown = view(&plan)?;
    shown["missing_roles"] = json!(roles);
    announce(&shown, &connection, &args, output)?;
    let order = Order {
        plan,
        connection,
        create_database: args.create_database,
        allow_source: args.allow_source,
        jobs: args.jobs,
        replay: args.replay,
        memory_bytes: args.memory,
        resume: args.resume,
    };
    let cancel = CancellationToken::new();
    let interrupted = cancel.clone();
    let watcher = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    let bar = Arc::new(Bar::new(output));
    let watched = Arc::clone(&bar);
    let tell = move |progress: Progress| {
        if let Ok(step) = serde_json::to_value(ProgressView::from(progress)) {
            watched.take(&step);
        }
    };
    let outcome = execute::execute(order, store.clone(), tell, cancel.into()).await;
    watcher.abort();
    bar.clear();
    match outcome {
        Ok(report) => {
            let report = serde_json::to_value(ReportView::from(&report))
                .map_err(|error| Failure::failed(error.to_string()))?;
            output.answer(&report, describe_report);
            Ok(())
        }
        Err(Stopped::Cancelled { left_behind }) => {
            Err(Failure::interrupted("interrupted").left_behind(left_behind.as_deref()))
        }
        Err(Stopped::Failed { error, left_behind }) => {
            Err(Failure::from(error).left_behind(left_behind.as_deref()))
        }
    }
}

/// Say what will be done; on a terminal, ask.
fn announce(
    plan: &Value,
    connection: &ConnectionConfig,
    args: &RestoreArgs,
    output: &Output,
) -> Result<(), Failure> {
    let connection = connection.redacted();
    let into = match (&args.create_database, &args.plan.into_schema) {
        (Some(name), _) => format!("a new database \"{name}\" on {connection}"),
        (None, Some(schema)) => {
            format!(
                "a new schema \"{schema}\" of {connection}, by a scratch database on that server"
            )
        }
        (None, None) => format!("the empty database {connection}"),
    };
    output.note(describe_plan(plan));
    output.note(format!("restoring into {into}"));
    if args.yes || !output.is_watched() || !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        return Ok(());
    }
    output.note("Begin? [y/N]");
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(anyhow::Error::from)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::interrupted("nothing was done")),
    }
}

fn view(plan: &Plan) -> Result<Value, Failure> {
    serde_json::to_value(PlanView::from(plan)).map_err(|error| Failure::failed(error.to_string()))
}

/// A plan for a person: what comes back, and exactly where it stops.
pub(super) fn describe_plan(plan: &Value) -> String {
    let base = &plan["base"];
    let seconds = plan["expected_seconds"].as_u64().unwrap_or(0);
    let mut text = pairs(&[
        (
            "source",
            format!("{} ({})", show(&plan["source_name"]), show(&plan["source"])),
        ),
        ("target", describe_target(&plan["target"])),
        (
            "base",
            format!(
                "of {} at {}, {}",
                show(&base["time"]),
                show(&base["consistent_point"]),
                bytes(&base["bytes"])
            ),
        ),
        (
            "changes",
            format!(
                "{}; {} to read in all",
                some(&plan["segments"], "segment"),
                bytes(&plan["stored_bytes"])
            ),
        ),
        ("about", human_seconds(seconds)),
        (
            "last kept",
            describe_transaction(&plan["last_kept"], "everything kept is in the base"),
        ),
        (
            "first discarded",
            describe_transaction(
                &plan["first_discarded"],
                "nothing: no later change is known",
            ),
        ),
    ]);
    text.push_str(&describe_not_before(&plan["not_before"]));
    text.push_str(&describe_partial(&plan["partial"]));
    text.push_str(&describe_not_covered(&plan["not_covered"]));
    let roles = plan["missing_roles"].as_array().into_iter().flatten();
    let roles: Vec<String> = roles.map(show).collect();
    if !roles.is_empty() {
        text.push_str(&format!(
            "not on that server: role {}: what they own and may do is not kept\n{ROLES_ARE_KEPT}",
            roles.join(", ")
        ));
    }
    text
}

/// Nothing if the restore is exact.
fn describe_not_before(since: &Value) -> String {
    since.as_str().map_or_else(String::new, |since| {
        format!(
            "not exact: what other servers replicated into the source does not say when it was committed; what \
             comes back was there at some moment from {since} to the target (an LSN is exact)\n"
        )
    })
}

/// Which tables, and what does not come with them; nothing if it is all of them.
fn describe_partial(partial: &Value) -> String {
    let list = |field: &str| partial[field].as_array().cloned().unwrap_or_default();
    let mut text = String::new();
    for (place, table) in list("tables").iter().enumerate() {
        if place == 0 {
            text.push_str(&match partial["schema"].as_str() {
                Some(schema) => format!("only these tables, all under schema {schema}:\n"),
                None => "only these tables:\n".to_owned(),
            });
        }
        let with = match table["child_of"].as_str() {
            Some(parent) => format!(", as a part of {parent}"),
            None => String::new(),
        };
        let name = format!("{}.{}", show(&table["schema"]), show(&table["name"]));
        text.push_str(&format!("  {name}{with}\n"));
    }
    for attached in list("attached") {
        text.push_str(&format!("  with its {}\n", show(&attached)));
    }
    for left in list("left_out") {
        let (object, why) = (show(&left["object"]), show(&left["why"]));
        text.push_str(&format!("not restored: {object}: {why}\n"));
    }
    text
}

fn describe_not_covered(entries: &Value) -> String {
    let lines = entries.as_array().into_iter().flatten().map(|entry| {
        let (object, why) = (show(&entry["object"]), show(&entry["why"]));
        format!("  {object}: {why}\n")
    });
    let lines: String = lines.collect();
    match lines.is_empty() {
        true => lines,
        false => format!("as old as the base, whatever the target:\n{lines}"),
    }
}

pub(super) fn describe_target(target: &Value) -> String {
    let Some(parts) = target.as_object() else {
        return show(target);
    };
    let named = ["time", "lsn", "xid", "name"]
        .into_iter()
        .find_map(|kind| Some(format!("{kind} {}", show(parts.get(kind)?))));
    let exclusive = match target["inclusive"].as_bool() {
        Some(false) => ", without it",
        _ => "",
    };
    format!("{}{exclusive}", named.unwrap_or_default())
}

/// When, as far as that is known.
pub(super) fn committed(transaction: &Value) -> String {
    let time = show(&transaction["time"]);
    match transaction["until"].as_str() {
        Some(until) => format!("{time} to {until}"),
        None => time,
    }
}

fn describe_transaction(transaction: &Value, none: &str) -> String {
    if !transaction.is_object() {
        return none.to_owned();
    }
    let tables = transaction["tables"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let changes: Vec<String> = tables.iter().map(describe_changes).collect();
    format!(
        "{}  xid {}  at {}: {}",
        committed(transaction),
        show(&transaction["xid"]),
        show(&transaction["commit_lsn"]),
        match changes.is_empty() {
            true => "a message, no rows".to_owned(),
            false => changes.join("; "),
        }
    )
}

fn describe_changes(table: &Value) -> String {
    let kinds = [
        ("inserts", "inserted"),
        ("updates", "updated"),
        ("deletes", "deleted"),
    ];
    let mut parts: Vec<String> = kinds
        .iter()
        .filter(|(field, _)| table[field].as_u64().is_some_and(|rows| rows > 0))
        .map(|(field, word)| format!("{} {word}", count(&table[field])))
        .collect();
    if table["truncates"].as_u64().is_some_and(|times| times > 0) {
        parts.push("truncated".to_owned());
    }
    format!(
        "{}.{} {}",
        show(&table["schema"]),
        show(&table["table"]),
        parts.join(", ")
    )
}

/// What came of a restore.
pub(super) fn describe_report(report: &Value) -> String {
    if !report.is_object() {
        return String::new();
    }
    let phases = report["phases"].as_array().cloned().unwrap_or_default();
    let total: u64 = phases
        .iter()
        .filter_map(|phase| phase["milliseconds"].as_u64())
        .sum();
    let times: Vec<String> = phases
        .iter()
        .map(|phase| {
            format!(
                "{} {}",
                show(&phase["phase"]),
                human_millis(&phase["milliseconds"])
            )
        })
        .collect();
    let mut text = pairs(&[
        (
            "restored into",
            format!("database {}", show(&report["database"])),
        ),
        (
            "up to",
            describe_transaction(&report["reached"], "the base itself"),
        ),
        (
            "replayed",
            format!(
                "{}, {} on top of base {}",
                some(&report["transactions"], "transaction"),
                some(&report["rows"], "row"),
                show(&report["base"])
            ),
        ),
        ("sequences set", count(&report["sequences"])),
        (
            "took",
            format!("{} ({})", human_millis(&total.into()), times.join(", ")),
        ),
    ]);
    text.push_str(&describe_not_before(&report["not_before"]));
    text.push_str(&describe_partial(&report["partial"]));
    for note in report["notes"].as_array().into_iter().flatten() {
        text.push_str(&format!("note: {}\n", show(note)));
    }
    if text.contains(MISSING_ROLE) {
        text.push_str(ROLES_ARE_KEPT);
    }
    text.push_str(&describe_not_covered(&report["not_covered"]));
    text.push_str(
        "next: look at it with psql; how to bring rows back into production: OPERATIONS.md, \"The worst \
         hour\", step 6\n",
    );
    text
}

const ROLES_ARE_KEPT: &str = "      the roles are in the base's globals archive; OPERATIONS.md, \"The worst hour\", step 5\n";

/// How PostgreSQL begins its message about a role that is not there.
const MISSING_ROLE: &str = "(role \"";

fn human_millis(millis: &Value) -> String {
    match millis.as_u64().unwrap_or(0) {
        millis @ 0..60_000 => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
        millis => human_seconds(millis / 1000),
    }
}
