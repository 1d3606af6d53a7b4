//! What can go wrong between a target and a restored database.

use lastgood_proto::{Class, LineageId, Lsn, PgTimestamp, Xid};

use crate::report::Phase;
use crate::window::Window;

/// Why a target lies in no window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// Past the present moment.
    Future,
    /// Before the oldest base.
    BeforeFirst,
    /// Between two windows.
    InGap,
    /// After a change of the tables, which no base has followed yet.
    NotYetBased,
    /// After the newest durable change.
    NotYetDurable,
    /// An inclusive LSN just where a run ends: the next commit record may start there.
    AtEnd,
}

impl Outside {
    const fn as_str(self) -> &'static str {
        match self {
            Outside::Future => "lies in the future",
            Outside::BeforeFirst => "lies before the oldest base",
            Outside::InGap => "lies in a gap",
            Outside::NotYetBased => {
                "lies after a change that needs a new base, and there is none yet"
            }
            Outside::NotYetDurable => "lies after the newest durable change",
            Outside::AtEnd => {
                "is where the window ends, and a transaction that is not in it may commit just there \
                 (without it, as an exclusive target, it can be restored)"
            }
        }
    }
}

/// Where a change stands in the stream: the evidence of a failed replay.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Place {
    pub xid: Xid,
    pub commit_lsn: Lsn,
    /// `schema.table`, quoted where PostgreSQL would.
    pub table: String,
    /// INSERT, UPDATE, DELETE, TRUNCATE.
    pub operation: &'static str,
    /// The key looked for, as `column=value`; empty for an INSERT.
    pub key: String,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Store(#[from] lastgood_store::Error),
    #[error(transparent)]
    Pg(#[from] lastgood_pg::Error),

    /// Outside any change: a lost connection, a statement of ours.
    #[error("a statement failed on the target")]
    Target(#[from] tokio_postgres::Error),

    // Replay.
    #[error("{} on {} {found} instead of one ({}): transaction {} at {}", place.operation, place.table, place.key, place.xid, place.commit_lsn)]
    NotOneRow { place: Box<Place>, found: String },
    #[error("{} on {} failed ({}): transaction {} at {}", place.operation, place.table, place.key, place.xid, place.commit_lsn)]
    Change {
        place: Box<Place>,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error(
        "the schema of {table} changed before transaction {xid} at {commit_lsn}: {why}; take a base after the change, or restore to before it"
    )]
    SchemaChanged {
        table: String,
        xid: Xid,
        commit_lsn: Lsn,
        why: String,
    },
    #[error(
        "{table} is hashed by an enum, so its rows lie in other partitions here: restore {root} instead"
    )]
    NotWithoutRoot { table: String, root: String },
    #[error(
        "rows of {table} were changed in transaction {xid} at {commit_lsn}, and it is hashed by an enum, so they lie in other partitions here; take a base after the change, or restore to before it"
    )]
    Scattered {
        table: String,
        xid: Xid,
        commit_lsn: Lsn,
    },
    #[error("a change of {table} in transaction {xid} at {commit_lsn} cannot be replayed: {why}")]
    UnusableChange {
        table: String,
        xid: Xid,
        commit_lsn: Lsn,
        why: &'static str,
    },
    /// The server refuses rows on their way into a table.
    #[error("the rows of {table} could not be loaded")]
    Load {
        table: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error(
        "a row of {table} was changed after the base and is not in it ({key}); --replay ordered names the \
         transaction"
    )]
    MissingRow { table: String, key: String },
    #[error(
        "the base has a row of {table} that was only made later ({key}); --replay ordered names the \
         transaction"
    )]
    UnexpectedRow { table: String, key: String },
    #[error("{table} has other columns in the base than in the stream")]
    OtherColumns { table: String },
    #[error("rows of the base are not understood: {statement}")]
    UnreadableRows { statement: String },
    #[error("an archive of the base ends in the midst of a table")]
    RowsEnded,
    /// A promise of the policy would not hold afterwards: a mistake of ours, so nothing is deleted.
    #[error("nothing was given up by retention: {what}")]
    RetentionBroken { what: String },
    /// A mistake of ours or damage, so nothing of its parts is deleted.
    #[error(
        "{path} does not say what the segments do that it was made of; they are all kept: delete it, and it is made again"
    )]
    Merged { path: String },
    #[error(transparent)]
    Merge(#[from] lastgood_proto::segment::MergeError),
    #[error(
        "{path} is gone: it was merged with others or given up after this restore was planned; run it again with --resume"
    )]
    SegmentGone { path: String },
    #[error("a segment's record came where none can be")]
    UnexpectedRecord,
    #[error("this restore cannot be resumed: {why}")]
    NotResumable { why: String },

    #[error(transparent)]
    Segment(#[from] lastgood_proto::segment::ReadError),
    /// A thread of ours panicked or was cancelled.
    #[error("a reading thread ended")]
    Thread(#[from] tokio::task::JoinError),

    // Execution.
    #[error("during {}; {left_behind}", phase.as_str())]
    Failed {
        phase: Phase,
        /// One sentence for the operator.
        left_behind: String,
        source: Box<Error>,
    },
    #[error("cancelled")]
    Cancelled,
    #[error(
        "database \"{database}\" is the source itself; what is restored with --into-schema may go there all the same, \
         if you say --allow-source: nothing else in it is touched"
    )]
    IsSource { database: String },
    #[error(
        "another restore is writing to database \"{database}\"{}: wait until it has ended",
        held_by(process)
    )]
    AnotherRestore {
        database: String,
        /// The server's process that has the lock, if it still had it when we asked.
        process: Option<i32>,
    },
    #[error(
        "another restore has written to this database: its progress is no longer at {expected}; drop the \
         database and begin again"
    )]
    ProgressMoved { expected: Lsn },
    #[error("database \"{database}\" exists already")]
    DatabaseExists { database: String },
    #[error("database \"{database}\" is not empty: it has {objects}")]
    NotEmpty { database: String, objects: String },
    #[error(
        "database \"{database}\" is in {target} and the source in {encoding}, between which nothing converts: \
         restore into a database in {encoding}"
    )]
    OtherEncoding {
        database: String,
        target: String,
        encoding: String,
        /// The server's refusal, if it was asked.
        #[source]
        error: Option<tokio_postgres::Error>,
    },
    #[error(transparent)]
    Tool(#[from] lastgood_pg::ToolError),
    #[error("a temporary file failed")]
    Scratch(#[source] std::io::Error),
    #[error("archive \"{archive}\" is not what was written: its digest differs")]
    ArchiveAltered { archive: String },
    #[error("the target refused: {statement}")]
    Statement {
        statement: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("the replay ended at {}, the plan at {}", at(reached), at(planned))]
    OtherEnd {
        planned: Option<Lsn>,
        reached: Option<Lsn>,
    },

    // Choosing tables.
    #[error("\"{name}\" is no table's name: {why}")]
    InvalidTable { name: String, why: &'static str },
    #[error("the base has no table {name}{}", did_you_mean(near))]
    UnknownTable { name: String, near: Vec<String> },
    #[error("no transaction changes {table}, as it is captured: {why}")]
    NotCaptured { table: String, why: &'static str },
    #[error("{name} may be any of {}; name its schema", list(candidates))]
    AmbiguousTable {
        name: String,
        candidates: Vec<String>,
    },
    #[error(
        "{object} needs a table or view that is not among those to restore; name that one too, or \
         restore the whole database"
    )]
    TableNeedsOther { object: String },
    #[error("schema \"{name}\" cannot be made: {why}")]
    InvalidSchema { name: String, why: &'static str },
    #[error(
        "{first} and {second} cannot both be in schema \"{schema}\"; restore one of them, then the other \
         into another schema"
    )]
    SameName {
        first: String,
        second: String,
        schema: String,
    },
    #[error(
        "schema \"{schema}\" exists already in database \"{database}\"{}",
        and_scratch(scratch)
    )]
    SchemaExists {
        schema: String,
        database: String,
        /// A scratch database of an earlier attempt that is still there.
        scratch: Option<String>,
    },
    #[error(
        "database \"{scratch}\" holds an unfinished restore into schema \"{schema}\" of database \
         \"{database}\": resume it, or drop it with DROP DATABASE \"{scratch}\""
    )]
    ScratchExists {
        scratch: String,
        schema: String,
        database: String,
    },
    #[error(
        "role \"{role}\" may not create a schema in database \"{database}\": GRANT CREATE ON DATABASE \
         \"{database}\" TO \"{role}\""
    )]
    MayNotCreateSchema { role: String, database: String },
    #[error("database \"{database}\" needs extension {extension} as the source had it: {remedy}")]
    MissingExtension {
        extension: String,
        database: String,
        /// The statement that gives it.
        remedy: String,
    },
    #[error(
        "the tables need {object}, which cannot be moved into another schema; restore them into a database \
         of their own"
    )]
    CannotMove { object: String },
    #[error("the base holds no rows of {table}")]
    NoRows { table: String },
    #[error("the archive's definitions are not understood")]
    UnexpectedDefinition,

    // Planning.
    #[error("there is no base to restore from yet")]
    NothingRecoverable,
    #[error(
        "the target {}{}; nearest: {}",
        why.as_str(),
        reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default(),
        describe(nearest)
    )]
    OutsideWindows {
        why: Outside,
        /// What ended the window before it.
        reason: Option<String>,
        /// At most one before and one after the target.
        nearest: Vec<Window>,
        /// All of them, oldest first.
        windows: Vec<Window>,
    },
    #[error(
        "the target lies between {since} and {until}, and what the source received from another server then, \
         from {lsn} on, does not say when it was committed: name an LSN (`lastgood transactions` lists them), \
         or a time outside"
    )]
    TimeUnknown {
        since: PgTimestamp,
        until: PgTimestamp,
        /// Of the first such transaction.
        lsn: Lsn,
    },
    #[error("{lsn} is in several lineages ({}); name one", list(lineages))]
    AmbiguousLsn { lsn: Lsn, lineages: Vec<LineageId> },
    #[error(
        "segments of lineage {lineage} from {from} to {to} are missing, so the latest changes \
         cannot be reached; name a target up to {from}, exclusive"
    )]
    SegmentsMissing {
        lineage: LineageId,
        from: Lsn,
        to: Lsn,
    },
    #[error(
        "the latest changes cannot be restored yet: {why}; wait for a new base, or name a target \
         up to {at}, exclusive"
    )]
    LatestNotRecoverable { at: Lsn, why: String },
    #[error("no transaction {xid} in any recoverable window")]
    UnknownTransaction { xid: Xid },
    #[error(
        "transaction id {xid} was used more than once: it committed at {}; name one as an LSN target",
        candidates.iter().map(|(lsn, time)| format!("{lsn} ({time})")).collect::<Vec<_>>().join(", ")
    )]
    AmbiguousTransaction {
        xid: Xid,
        candidates: Vec<(Lsn, PgTimestamp)>,
    },
    #[error("no restore point \"{name}\"")]
    UnknownPoint { name: String },
    #[error(
        "restore point \"{name}\" was made more than once: at {}; name one as an LSN target",
        list(candidates)
    )]
    AmbiguousPoint { name: String, candidates: Vec<Lsn> },
}

fn at(commit_lsn: &Option<Lsn>) -> String {
    commit_lsn.map_or_else(|| "the base".to_owned(), |lsn| lsn.to_string())
}

fn list<T: ToString>(items: &[T]) -> String {
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

fn and_scratch(scratch: &Option<String>) -> String {
    scratch.as_ref().map_or_else(String::new, |scratch| {
        format!(", and an earlier restore into it left database \"{scratch}\": DROP DATABASE \"{scratch}\"")
    })
}

fn held_by(process: &Option<i32>) -> String {
    process.map_or_else(String::new, |process| {
        format!(
            " (if its client is gone, SELECT pg_terminate_backend({process}) there ends what it left)"
        )
    })
}

fn did_you_mean(near: &[String]) -> String {
    match near {
        [] => String::new(),
        near => format!("; it has {}", near.join(", ")),
    }
}

fn describe(windows: &[Window]) -> String {
    let each = windows.iter().map(|window| {
        let Window { from, to, .. } = window;
        format!("{} ({}) to {} ({})", from.time, from.lsn, to.time, to.lsn)
    });
    let texts: Vec<String> = each.collect();
    texts.join("; ")
}

impl Error {
    /// What the error asks for.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Error::Store(error) => error.class(),
            Error::Pg(error) => error.class(),
            Error::NothingRecoverable
            | Error::OutsideWindows { .. }
            | Error::TimeUnknown { .. }
            | Error::AmbiguousLsn { .. }
            | Error::UnknownTransaction { .. }
            | Error::AmbiguousTransaction { .. }
            | Error::UnknownPoint { .. }
            | Error::AmbiguousPoint { .. } => Class::NeedsOperator,
            Error::Failed { source, .. } => source.class(),
            Error::Tool(error) => error.class(),
            Error::Scratch(_)
            | Error::Cancelled
            | Error::IsSource { .. }
            | Error::DatabaseExists { .. }
            | Error::AnotherRestore { .. }
            | Error::ProgressMoved { .. }
            | Error::NotEmpty { .. }
            | Error::OtherEncoding { .. }
            | Error::LatestNotRecoverable { .. }
            | Error::InvalidTable { .. }
            | Error::UnknownTable { .. }
            | Error::NotCaptured { .. }
            | Error::NotWithoutRoot { .. }
            | Error::AmbiguousTable { .. }
            | Error::TableNeedsOther { .. }
            | Error::InvalidSchema { .. }
            | Error::SameName { .. }
            | Error::SchemaExists { .. }
            | Error::ScratchExists { .. }
            | Error::MayNotCreateSchema { .. }
            | Error::MissingExtension { .. }
            | Error::CannotMove { .. }
            | Error::Statement { .. } => Class::NeedsOperator,
            Error::ArchiveAltered { .. }
            | Error::RetentionBroken { .. }
            | Error::Merged { .. }
            | Error::OtherEnd { .. }
            | Error::NoRows { .. }
            | Error::UnexpectedDefinition => Class::Corrupt,
            Error::Segment(error) => error.class(),
            Error::Merge(error) => error.class(),
            Error::SegmentGone { .. } => Class::NeedsOperator,
            Error::Target(error) => error
                .code()
                .map_or(Class::Transient, |code| lastgood_pg::class_of(code.code())),
            Error::Thread(_) => Class::Transient,
            Error::Change { .. }
            | Error::SchemaChanged { .. }
            | Error::Scattered { .. }
            | Error::NotResumable { .. } => Class::NeedsOperator,
            Error::Load { source, .. } => source
                .code()
                .map_or(Class::Transient, |code| lastgood_pg::class_of(code.code())),
            Error::UnusableChange { .. }
            | Error::UnexpectedRecord
            | Error::MissingRow { .. }
            | Error::UnexpectedRow { .. }
            | Error::OtherColumns { .. }
            | Error::UnreadableRows { .. }
            | Error::RowsEnded => Class::Corrupt,
            Error::SegmentsMissing { .. } | Error::NotOneRow { .. } => Class::Corrupt,
        }
    }
}
