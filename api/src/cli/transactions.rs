//! `lastgood transactions`: when did it happen?

use lastgood_proto::PgTimestamp;
use lastgood_restore::{TableName, TransactionFilter, written};
use serde_json::Value;

use super::failure::Failure;
use super::output::{Output, show, some, table};
use super::place::{Place, PlaceArgs, SourceArg, source_path, source_store};
use super::restore::committed;
use crate::http::TransactionsView;

/// Of a source: what was committed by then is durable.
const OBSERVED: &str = "observed_through";

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: SourceArg,
    /// Committed at or after this time, such as 2026-11-20T20:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<PgTimestamp>,
    /// Committed at or before this time
    #[arg(long, value_name = "TIME")]
    until: Option<PgTimestamp>,
    /// Changed this table, written as SQL has it: users, public.users, app."Order"
    #[arg(long, value_parser = TableName::parse)]
    table: Option<TableName>,
    /// Changed at least this many rows
    #[arg(long, value_name = "ROWS", default_value = "0")]
    min_rows: u64,
    /// How many at most, newest first
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    #[command(flatten)]
    place: PlaceArgs,
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let wanted = args.source.wanted();
    let filtered =
        args.since.is_some() || args.until.is_some() || args.table.is_some() || args.min_rows > 0;
    let found = match args.place.open().await? {
        Place::Service(client) => {
            let path = source_path(&client, wanted).await?;
            let mut query = vec![
                ("min_rows", args.min_rows.to_string()),
                ("limit", args.limit.to_string()),
            ];
            query.extend(args.since.map(|time| ("since", time.to_string())));
            query.extend(args.until.map(|time| ("until", time.to_string())));
            query.extend(args.table.map(|table| ("table", table.to_string())));
            let mut found = client
                .get_with(&format!("{path}/transactions"), &query)
                .await?;
            if found["items"].as_array().is_some_and(Vec::is_empty) {
                let mut source = client.get(&path).await?;
                found[OBSERVED] = source[OBSERVED].take();
            }
            found
        }
        Place::Repository(repository) => {
            let (_, store) = source_store(&repository, wanted).await?;
            let filter = TransactionFilter {
                since: args.since,
                until: args.until,
                table: args.table,
                min_rows: args.min_rows,
            };
            let limit = usize::from(args.limit);
            let found = lastgood_restore::transactions(&store, &filter, limit).await?;
            serde_json::to_value(TransactionsView::from(found))
                .map_err(|error| Failure::failed(error.to_string()))?
        }
    };
    output.answer(&found, |found| describe(found, filtered, wanted));
    Ok(())
}

fn describe(found: &Value, filtered: bool, source: Option<&str>) -> String {
    let items = found["items"].as_array().cloned().unwrap_or_default();
    if items.is_empty() {
        let found_none = match filtered {
            true => "no transaction in any recoverable window is like that",
            false => "no transaction has been captured yet",
        };
        return match found[OBSERVED].as_str() {
            Some(time) => format!("{found_none}; what was committed by {time} is captured\n"),
            None => format!("{found_none}\n"),
        };
    }
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| {
            let tables = item["tables"].as_array().cloned().unwrap_or_default();
            let changes: Vec<String> = tables.iter().map(changes).collect();
            vec![
                committed(item),
                show(&item["xid"]),
                show(&item["commit_lsn"]),
                match changes.is_empty() {
                    true => "no rows".to_owned(),
                    false => changes.join("; "),
                },
            ]
        })
        .collect();
    let mut text = table(&["COMMITTED", "XID", "COMMIT LSN", "CHANGES"], &rows);
    text.push_str(&format!(
        "\nthe state just before one of them: lastgood plan{} --xid {} --exclusive\n",
        source.map_or_else(String::new, |source| format!(" {source}")),
        show(&items[0]["xid"])
    ));
    text
}

/// `public.customers: 10,000 updates`.
fn changes(table: &Value) -> String {
    let kinds = ["inserts", "updates", "deletes", "truncates"];
    let changes: Vec<String> = kinds
        .iter()
        .filter(|kind| table[**kind].as_u64() != Some(0))
        .map(|kind| some(&table[*kind], kind.trim_end_matches('s')))
        .collect();
    let name = |part: &str| table[part].as_str().unwrap_or_default();
    format!(
        "{}: {}",
        written(name("schema"), name("table")),
        changes.join(", ")
    )
}
