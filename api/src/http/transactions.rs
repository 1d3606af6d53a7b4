//! The captured transactions of a source: "when did it happen?"

use axum::Json;
use axum::extract::{Path, State};
use lastgood_proto::PgTimestamp;
use lastgood_restore::{TableName, TransactionFilter};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::Params;
use super::openapi::{BadQuery, Common, Missing, Refused};
use super::plan::TransactionView;
use super::problem::{Code, Problem};
use crate::app::Shared;

const LIMIT: usize = 20;
const LIMIT_MAX: usize = 1000;

/// Which transactions are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TransactionQuery {
    /// Committed at or after this time, RFC 3339.
    #[param(example = "2026-11-20T20:00:00Z")]
    since: Option<String>,
    /// Committed at or before this time, RFC 3339.
    until: Option<String>,
    /// Changed this table, written as SQL has it.
    #[param(example = "public.customers")]
    table: Option<String>,
    /// Changed at least this many rows; a TRUNCATE counts as any number.
    min_rows: Option<u64>,
    /// How many at most; 20 if absent, 1000 at most.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// The newest transactions that match.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Transactions)]
pub(crate) struct TransactionsView {
    /// Newest first.
    items: Vec<TransactionView>,
    /// Always null: narrow the time instead.
    #[schema(required)]
    next: Option<String>,
}

impl From<Vec<lastgood_restore::Transaction>> for TransactionsView {
    fn from(found: Vec<lastgood_restore::Transaction>) -> Self {
        Self {
            items: found.iter().map(TransactionView::from).collect(),
            next: None,
        }
    }
}

impl TransactionQuery {
    fn filter(&self) -> Result<TransactionFilter, Problem> {
        let time = |field: &'static str, text: &Option<String>| {
            let time = text.as_deref().map(str::parse::<PgTimestamp>).transpose();
            time.map_err(|error| Problem::field(Code::InvalidQuery, field, error.to_string()))
        };
        let table = self.table.as_deref().map(TableName::parse).transpose();
        let table = table
            .map_err(|error| Problem::field(Code::InvalidQuery, "table", error.to_string()))?;
        Ok(TransactionFilter {
            since: time("since", &self.since)?,
            until: time("until", &self.until)?,
            table,
            min_rows: self.min_rows.unwrap_or(0),
        })
    }

    fn limit(&self) -> Result<usize, Problem> {
        let limit = self.limit.unwrap_or(LIMIT);
        match (1..=LIMIT_MAX).contains(&limit) {
            true => Ok(limit),
            false => Err(Problem::field(
                Code::InvalidQuery,
                "limit",
                format!("limit is from 1 to {LIMIT_MAX}"),
            )),
        }
    }
}

/// Find captured transactions by time, table and size
///
/// Reads the segments of the time given, newest first, until enough are found.
#[utoipa::path(
    get,
    path = "/api/v1/sources/{source}/transactions",
    operation_id = "transaction_list",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name"), TransactionQuery),
    responses((status = 200, body = TransactionsView), Common, Missing, BadQuery, Refused)
)]
pub(super) async fn list(
    State(app): State<Shared>,
    Path(source): Path<String>,
    Params(query): Params<TransactionQuery>,
) -> Result<Json<TransactionsView>, Problem> {
    let (filter, limit) = (query.filter()?, query.limit()?);
    let row = app.source(&source).await?;
    let store = app.repository.source(row.id).await?;
    let found = lastgood_restore::transactions(&store, &filter, limit).await?;
    Ok(Json(found.into()))
}
