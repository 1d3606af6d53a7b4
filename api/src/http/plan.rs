//! A plan as it is answered.

use lastgood_engine::{Uncovered, Why};
use lastgood_restore::{
    LeftOut, NotCovered, Partial, PartialTable, Plan, TableChanges, Transaction,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::target::TargetView;

/// What a restore will do.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Plan)]
pub(crate) struct PlanView {
    source: String,
    source_name: String,
    database: String,
    target: TargetView,
    lineage: String,
    base: PlannedBaseView,
    segments: usize,
    /// Of archives and segments, as stored.
    stored_bytes: u64,
    /// The last transaction that is kept; null if everything kept is in the base.
    last_kept: Option<TransactionView>,
    /// The first transaction that is discarded; null if nothing durable comes after.
    first_discarded: Option<TransactionView>,
    /// Null, or the target is a time and the source was receiving from another server then, whose
    /// transactions do not say when they were committed here: what is restored was there at some
    /// moment from this one to the target.
    not_before: Option<String>,
    /// What is as fresh as the base, whatever the target.
    not_covered: Vec<NotCoveredView>,
    /// Which tables come back; null if all.
    partial: Option<PartialView>,
    /// The roles that own something in the base or have privileges there, and are not on the server
    /// that the request names: what they own and may do will not be kept. Null if it names none.
    missing_roles: Option<Vec<String>>,
    /// A rough guess.
    expected_seconds: u64,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PlannedBase)]
struct PlannedBaseView {
    id: String,
    #[schema(example = "0/16B3748")]
    consistent_point: String,
    time: String,
    /// Of all archives whose rows are loaded.
    bytes: u64,
    stored_bytes: u64,
    /// Earlier bases that have rows of it: those of tables that were not altered since.
    lenders: Vec<String>,
}

/// A transaction, as evidence.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Transaction)]
pub(super) struct TransactionView {
    xid: u32,
    commit_lsn: String,
    end_lsn: String,
    time: String,
    /// Of one that was replicated into the source from another server: it was committed between `time`
    /// and this. Null for all others.
    until: Option<String>,
    tables: Vec<TableChangesView>,
}

/// Rows a transaction changed in one table.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TableChanges)]
struct TableChangesView {
    schema: String,
    table: String,
    inserts: u64,
    updates: u64,
    deletes: u64,
    truncates: u64,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NotCovered)]
pub(super) struct NotCoveredView {
    object: String,
    why: String,
}

/// A restore of some tables.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Partial)]
pub(super) struct PartialView {
    tables: Vec<PartialTableView>,
    /// The new schema of an existing database that all of them come back under; null if each comes
    /// back under its own, in a database of their own.
    schema: Option<String>,
    /// Triggers, rules, policies and row security of these tables: they come back in a database of
    /// their own, as far as what they name does. Under a new schema only row security does, without
    /// policies: it hides every row from everybody but the owner.
    attached: Vec<String>,
    /// What of these tables does not come back.
    left_out: Vec<LeftOutView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PartialTable)]
struct PartialTableView {
    schema: String,
    name: String,
    /// The table it comes along with as a partition or child; null if it was asked for.
    child_of: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LeftOut)]
struct LeftOutView {
    object: String,
    why: String,
}

impl From<&Plan> for PlanView {
    fn from(plan: &Plan) -> Self {
        Self {
            source: plan.source.to_string(),
            source_name: plan.source_name.clone(),
            database: plan.database.clone(),
            target: TargetView(plan.target.clone()),
            lineage: plan.lineage.to_string(),
            base: PlannedBaseView {
                id: plan.base.id.to_string(),
                consistent_point: plan.base.consistent_point.to_string(),
                time: plan.base.snapshot_time.to_string(),
                bytes: plan.base.bytes,
                stored_bytes: plan.base.stored_bytes,
                lenders: plan.base.lenders.iter().map(ToString::to_string).collect(),
            },
            segments: plan.segments.len(),
            stored_bytes: plan.stored_bytes,
            last_kept: plan.stop.last_kept.as_ref().map(Into::into),
            first_discarded: plan.stop.first_discarded.as_ref().map(Into::into),
            not_before: plan.stop.not_before.map(|time| time.to_string()),
            not_covered: plan.not_covered.iter().map(Into::into).collect(),
            partial: plan.partial.as_ref().map(Into::into),
            missing_roles: None,
            expected_seconds: plan.expected_seconds,
        }
    }
}

impl PlanView {
    pub(crate) fn with_missing_roles(self, roles: Vec<String>) -> Self {
        Self {
            missing_roles: Some(roles),
            ..self
        }
    }
}

impl From<&Partial> for PartialView {
    fn from(partial: &Partial) -> Self {
        Self {
            tables: partial.tables.iter().map(Into::into).collect(),
            schema: partial.schema.clone(),
            attached: partial.attached.clone(),
            left_out: partial.left_out.iter().map(Into::into).collect(),
        }
    }
}

impl From<&PartialTable> for PartialTableView {
    fn from(table: &PartialTable) -> Self {
        Self {
            schema: table.schema.clone(),
            name: table.name.clone(),
            child_of: table.child_of.clone(),
        }
    }
}

impl From<&LeftOut> for LeftOutView {
    fn from(left: &LeftOut) -> Self {
        Self {
            object: left.object.clone(),
            why: left.why.clone(),
        }
    }
}

impl From<&NotCovered> for NotCoveredView {
    fn from(entry: &NotCovered) -> Self {
        Self {
            object: entry.object.clone(),
            why: entry.why.clone(),
        }
    }
}

/// As [`lastgood_restore::plan`] will say it once a base has been taken.
impl From<&Uncovered> for NotCoveredView {
    fn from(entry: &Uncovered) -> Self {
        let why = match entry.why {
            Why::NextBase => "in no segment until the next base",
            Why::NoIdentity => "only in bases: it has no usable replica identity",
            Why::Unlogged => "only in bases: it is unlogged",
            Why::NotOwned => "only in bases: the capturing role does not own it",
        };
        Self {
            object: format!("{}.{}", entry.schema, entry.table),
            why: why.to_owned(),
        }
    }
}

impl From<&Transaction> for TransactionView {
    fn from(transaction: &Transaction) -> Self {
        Self {
            xid: transaction.xid.get(),
            commit_lsn: transaction.commit_lsn.to_string(),
            end_lsn: transaction.end_lsn.to_string(),
            time: transaction.time.to_string(),
            until: transaction.until.map(|until| until.to_string()),
            tables: transaction.tables.iter().map(Into::into).collect(),
        }
    }
}

impl From<&TableChanges> for TableChangesView {
    fn from(changes: &TableChanges) -> Self {
        Self {
            schema: changes.schema.clone(),
            table: changes.table.clone(),
            inserts: changes.inserts,
            updates: changes.updates,
            deletes: changes.deletes,
            truncates: changes.truncates,
        }
    }
}
