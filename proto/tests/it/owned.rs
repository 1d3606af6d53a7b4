//! Messages that own their bytes, for proptest to make, and what a segment should say of them.

use lastgood_proto::pgoutput::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Origin, Relation,
    ReplicaIdentity, Truncate, Tuple, TupleBuf, Type, Update, Value,
};
use lastgood_proto::segment::{MessageRecord, Old, Record, RelationRecord, Row};
use lastgood_proto::{Lsn, Oid, PgTimestamp, Xid};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Debug, Clone)]
pub(crate) enum Owned {
    Begin(Begin),
    Commit(Commit),
    Origin(Lsn, Vec<u8>),
    Relation(Relation),
    Type(Type),
    Insert(Oid, TupleBuf),
    Update(Oid, OldBuf, TupleBuf),
    Delete(Oid, OldBuf),
    Truncate(Truncate),
    Message {
        transactional: bool,
        lsn: Lsn,
        prefix: Vec<u8>,
        content: Vec<u8>,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum OldBuf {
    None,
    Key(TupleBuf),
    Full(TupleBuf),
}

impl OldBuf {
    fn as_old(&self) -> OldTuple<'_> {
        match self {
            Self::None => OldTuple::None,
            Self::Key(row) => OldTuple::Key(row.as_tuple()),
            Self::Full(row) => OldTuple::Full(row.as_tuple()),
        }
    }
}

impl Owned {
    pub(crate) fn as_message(&self) -> Message<'_> {
        match self {
            Self::Begin(begin) => Message::Begin(*begin),
            Self::Commit(commit) => Message::Commit(*commit),
            Self::Origin(commit_lsn, name) => Message::Origin(Origin {
                commit_lsn: *commit_lsn,
                name,
            }),
            Self::Relation(relation) => Message::Relation(relation.clone()),
            Self::Type(custom) => Message::Type(custom.clone()),
            Self::Insert(relation, new) => Message::Insert(Insert {
                relation: *relation,
                new: new.as_tuple(),
            }),
            Self::Update(relation, old, new) => Message::Update(Update {
                relation: *relation,
                old: old.as_old(),
                new: new.as_tuple(),
            }),
            Self::Delete(relation, old) => Message::Delete(Delete {
                relation: *relation,
                old: old.as_old(),
            }),
            Self::Truncate(truncate) => Message::Truncate(truncate.clone()),
            Self::Message {
                transactional,
                lsn,
                prefix,
                content,
            } => Message::Message(LogicalMessage {
                transactional: *transactional,
                lsn: *lsn,
                prefix,
                content,
            }),
        }
    }
}

pub(crate) fn message() -> impl Strategy<Value = Owned> {
    let old = prop_oneof![
        tuple().prop_map(OldBuf::Key),
        tuple().prop_map(OldBuf::Full)
    ];
    let maybe_old = prop_oneof![Just(OldBuf::None), old.clone()];
    prop_oneof![
        (valid_lsn(), any::<i64>(), any::<u32>()).prop_map(|(commit_lsn, time, xid)| {
            Owned::Begin(Begin {
                commit_lsn,
                commit_time: PgTimestamp::from_micros(time),
                xid: Xid::new(xid),
            })
        }),
        (valid_lsn(), valid_lsn(), any::<i64>()).prop_map(|(commit_lsn, end_lsn, time)| {
            Owned::Commit(Commit {
                commit_lsn,
                end_lsn,
                commit_time: PgTimestamp::from_micros(time),
            })
        }),
        (any::<u64>(), no_zeros()).prop_map(|(lsn, name)| Owned::Origin(Lsn::new(lsn), name)),
        relation(0..6).prop_map(Owned::Relation),
        (oid(), name(), name()).prop_map(|(oid, schema, name)| Owned::Type(Type {
            oid,
            schema,
            name
        })),
        (oid(), tuple()).prop_map(|(relation, new)| Owned::Insert(relation, new)),
        (oid(), maybe_old, tuple())
            .prop_map(|(relation, old, new)| { Owned::Update(relation, old, new) }),
        (oid(), old).prop_map(|(relation, old)| Owned::Delete(relation, old)),
        (vec(oid(), 1..5), any::<bool>(), any::<bool>()).prop_map(
            |(relations, cascade, restart_identity)| {
                Owned::Truncate(Truncate {
                    relations,
                    cascade,
                    restart_identity,
                })
            }
        ),
        (any::<bool>(), any::<u64>(), no_zeros(), any::<Vec<u8>>()).prop_map(
            |(transactional, lsn, prefix, content)| Owned::Message {
                transactional,
                lsn: Lsn::new(lsn),
                prefix,
                content,
            }
        ),
    ]
}

pub(crate) fn relation(columns: std::ops::Range<usize>) -> impl Strategy<Value = Relation> {
    let identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index),
    ];
    let column = (name(), oid(), any::<i32>(), any::<bool>()).prop_map(
        |(name, type_oid, type_modifier, key)| Column {
            name,
            type_oid,
            type_modifier,
            key,
        },
    );
    (oid(), name(), name(), identity, vec(column, columns)).prop_map(
        |(oid, schema, table, identity, columns)| Relation {
            oid,
            schema,
            table,
            identity,
            columns,
        },
    )
}

/// Every kind of bytes that a value can hold: plain, to be escaped, no UTF-8.
pub(crate) fn text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-z0-9 ]{0,30}".prop_map(String::into_bytes),
        "(?s).{0,20}".prop_map(String::into_bytes),
        "[\\x00-\\x1f\"\\\\/\\x7f]{0,20}".prop_map(String::into_bytes),
        any::<Vec<u8>>(),
    ]
}

/// `None` for null.
pub(crate) fn cells(count: usize) -> impl Strategy<Value = Vec<Option<Vec<u8>>>> {
    vec(proptest::option::of(text()), count)
}

pub(crate) fn row<'a>(cells: &'a [Option<Vec<u8>>]) -> TupleBuf {
    let value = |cell: &'a Option<Vec<u8>>| cell.as_deref().map_or(Value::Null, Value::Text);
    TupleBuf::new(cells.iter().map(value)).unwrap()
}

fn tuple() -> impl Strategy<Value = TupleBuf> {
    vec((any::<u8>(), text()), 0..6).prop_map(|cells| {
        let values = cells.iter().map(|(kind, text)| match kind % 4 {
            0 => Value::Null,
            1 => Value::Unchanged,
            _ => Value::Text(text),
        });
        TupleBuf::new(values).unwrap()
    })
}

fn oid() -> impl Strategy<Value = Oid> {
    any::<u32>().prop_map(Oid::new)
}

fn valid_lsn() -> impl Strategy<Value = Lsn> {
    (1..=u64::MAX).prop_map(Lsn::new)
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("pg_catalog".to_owned()), "[^\\x00]{1,10}"]
}

fn no_zeros() -> impl Strategy<Value = Vec<u8>> {
    vec(1..=u8::MAX, 0..20)
}

/// A record that outlives what it was read from.
pub(crate) fn owned(record: Record<Row<'_>>) -> Record<TupleBuf> {
    record.map(|row| TupleBuf::new(row.iter()).unwrap())
}

/// What the reader should yield for a message; none for those that a segment does not hold.
pub(crate) fn record(
    message: &Message<'_>,
    type_name: impl Fn(Oid) -> String,
) -> Option<Record<TupleBuf>> {
    Some(match message {
        Message::Begin(begin) => Record::Begin {
            xid: begin.xid,
            lsn: begin.commit_lsn,
            time: begin.commit_time,
            until: None,
        },
        Message::Commit(commit) => Record::Commit {
            lsn: commit.commit_lsn,
            end: commit.end_lsn,
        },
        Message::Origin(_) | Message::Type(_) => return None,
        Message::Relation(relation) => {
            let columns = relation.columns.iter();
            let types: Vec<_> = columns.map(|column| type_name(column.type_oid)).collect();
            Record::Relation(Box::new(RelationRecord::new(relation, &types)))
        }
        Message::Insert(insert) => Record::Insert {
            rel: insert.relation,
            new: to_row(&insert.new),
        },
        Message::Update(update) => Record::Update {
            rel: update.relation,
            old: to_old(&update.old),
            new: to_row(&update.new),
        },
        Message::Delete(delete) => Record::Delete {
            rel: delete.relation,
            old: to_old(&delete.old),
        },
        Message::Truncate(truncate) => Record::Truncate {
            rels: truncate.relations.clone(),
            cascade: truncate.cascade,
            restart_identity: truncate.restart_identity,
        },
        Message::Message(message) => Record::Message(Box::new(MessageRecord {
            transactional: message.transactional,
            lsn: message.lsn,
            prefix: message.prefix.to_vec(),
            content: message.content.to_vec(),
        })),
    })
}

fn to_old(old: &OldTuple<'_>) -> Old<TupleBuf> {
    match old {
        OldTuple::None => Old::None,
        OldTuple::Key(row) => Old::Key(to_row(row)),
        OldTuple::Full(row) => Old::Full(to_row(row)),
    }
}

fn to_row(row: &Tuple<'_>) -> TupleBuf {
    TupleBuf::new(row.iter()).unwrap()
}
