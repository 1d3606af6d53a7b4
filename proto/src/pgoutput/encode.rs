//! Messages to bytes: the inverse of decoding, for property tests and simulated servers.

use super::decode::{CASCADE, RESTART_IDENTITY};
use super::message::{Message, OldTuple, Relation, ReplicaIdentity, Tuple, Value};

/// A message that has no form on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("the {what} is too long for the wire")]
    TooLong { what: &'static str },
    #[error("the {what} contains a zero byte")]
    ZeroByte { what: &'static str },
    #[error("a delete has no old row")]
    DeleteWithoutOld,
}

/// Appends one message to `out`; after an error `out` holds a part of it.
pub fn encode(message: &Message<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match message {
        Message::Begin(begin) => {
            out.push(b'B');
            put_u64(begin.commit_lsn.as_u64(), out);
            put_i64(begin.commit_time.as_micros(), out);
            put_u32(begin.xid.get(), out);
        }
        Message::Commit(commit) => {
            out.extend_from_slice(&[b'C', 0]);
            put_u64(commit.commit_lsn.as_u64(), out);
            put_u64(commit.end_lsn.as_u64(), out);
            put_i64(commit.commit_time.as_micros(), out);
        }
        Message::Origin(origin) => {
            out.push(b'O');
            put_u64(origin.commit_lsn.as_u64(), out);
            put_cstr(origin.name, "origin name", out)?;
        }
        Message::Relation(relation) => put_relation(relation, out)?,
        Message::Type(custom) => {
            out.push(b'Y');
            put_u32(custom.oid.get(), out);
            put_schema(&custom.schema, out)?;
            put_cstr(custom.name.as_bytes(), "type name", out)?;
        }
        Message::Insert(insert) => {
            out.push(b'I');
            put_u32(insert.relation.get(), out);
            put_tuple(b'N', &insert.new, out);
        }
        Message::Update(update) => {
            out.push(b'U');
            put_u32(update.relation.get(), out);
            put_old(&update.old, out);
            put_tuple(b'N', &update.new, out);
        }
        Message::Delete(delete) => {
            if delete.old == OldTuple::None {
                return Err(EncodeError::DeleteWithoutOld);
            }
            out.push(b'D');
            put_u32(delete.relation.get(), out);
            put_old(&delete.old, out);
        }
        Message::Truncate(truncate) => {
            let count =
                u32::try_from(truncate.relations.len()).map_err(|_| too_long("truncate"))?;
            let cascade = if truncate.cascade { CASCADE } else { 0 };
            let restart = if truncate.restart_identity {
                RESTART_IDENTITY
            } else {
                0
            };
            out.push(b'T');
            put_u32(count, out);
            out.push(cascade | restart);
            for relation in &truncate.relations {
                put_u32(relation.get(), out);
            }
        }
        Message::Message(message) => {
            out.extend_from_slice(&[b'M', u8::from(message.transactional)]);
            put_u64(message.lsn.as_u64(), out);
            put_cstr(message.prefix, "message prefix", out)?;
            put_counted(message.content, "message", out)?;
        }
    }
    Ok(())
}

fn put_relation(relation: &Relation, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    out.push(b'R');
    put_u32(relation.oid.get(), out);
    put_schema(&relation.schema, out)?;
    put_cstr(relation.table.as_bytes(), "table name", out)?;
    out.push(match relation.identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    let count = u16::try_from(relation.columns.len()).map_err(|_| too_long("relation"))?;
    out.extend_from_slice(&count.to_be_bytes());
    for column in &relation.columns {
        out.push(u8::from(column.key));
        put_cstr(column.name.as_bytes(), "column name", out)?;
        put_u32(column.type_oid.get(), out);
        out.extend_from_slice(&column.type_modifier.to_be_bytes());
    }
    Ok(())
}

fn put_old(old: &OldTuple<'_>, out: &mut Vec<u8>) {
    match old {
        OldTuple::None => {}
        OldTuple::Key(key) => put_tuple(b'K', key, out),
        OldTuple::Full(row) => put_tuple(b'O', row, out),
    }
}

fn put_tuple(kind: u8, tuple: &Tuple<'_>, out: &mut Vec<u8>) {
    let (columns, bytes) = tuple.wire();
    out.push(kind);
    out.extend_from_slice(&columns.to_be_bytes());
    out.extend_from_slice(bytes);
}

pub(super) fn put_value(value: &Value<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match value {
        Value::Null => out.push(b'n'),
        Value::Unchanged => out.push(b'u'),
        Value::Text(text) => {
            out.push(b't');
            put_counted(text, "value", out)?;
        }
    }
    Ok(())
}

fn put_schema(schema: &str, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let on_wire = if schema == "pg_catalog" { "" } else { schema };
    put_cstr(on_wire.as_bytes(), "schema name", out)
}

fn put_cstr(text: &[u8], what: &'static str, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if text.contains(&0) {
        return Err(EncodeError::ZeroByte { what });
    }
    out.extend_from_slice(text);
    out.push(0);
    Ok(())
}

fn put_counted(bytes: &[u8], what: &'static str, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let length = i32::try_from(bytes.len()).map_err(|_| too_long(what))?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

fn put_u32(value: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_u64(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_i64(value: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

const fn too_long(what: &'static str) -> EncodeError {
    EncodeError::TooLong { what }
}
