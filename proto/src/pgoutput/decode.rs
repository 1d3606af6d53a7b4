//! Bytes to messages, one function a message. Fails closed on every tag, flag and letter it does
//! not know.

use super::message::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Origin, Relation,
    ReplicaIdentity, Truncate, Tuple, Type, Update, Value,
};
use crate::cursor::{Cursor, DecodeError};
use crate::encoding;
use crate::{Lsn, Oid, PgTimestamp, Xid};

/// One message: the data of one XLogData, sent in UTF8.
pub fn decode(data: &[u8]) -> Result<Message<'_>, DecodeError> {
    decode_in(data, "UTF8")
}

/// One message, sent in this client encoding. Names become UTF-8, values stay as they are.
pub fn decode_in<'a>(data: &'a [u8], encoding: &str) -> Result<Message<'a>, DecodeError> {
    let mut cursor = Cursor::new(data);
    let message = match cursor.u8()? {
        b'B' => Message::Begin(begin(&mut cursor)?),
        b'C' => Message::Commit(commit(&mut cursor)?),
        b'O' => Message::Origin(origin(&mut cursor)?),
        b'R' => Message::Relation(relation(&mut cursor, encoding)?),
        b'Y' => Message::Type(custom_type(&mut cursor, encoding)?),
        b'I' => Message::Insert(insert(&mut cursor)?),
        b'U' => Message::Update(update(&mut cursor)?),
        b'D' => Message::Delete(delete(&mut cursor)?),
        b'T' => Message::Truncate(truncate(&mut cursor)?),
        b'M' => Message::Message(logical_message(&mut cursor)?),
        value => return Err(unknown("pgoutput message", value)),
    };
    cursor.finish()?;
    Ok(message)
}

fn begin(cursor: &mut Cursor<'_>) -> Result<Begin, DecodeError> {
    Ok(Begin {
        commit_lsn: valid_lsn(cursor, "commit LSN of a Begin")?,
        commit_time: PgTimestamp::from_micros(cursor.i64()?),
        xid: Xid::new(cursor.u32()?),
    })
}

fn commit(cursor: &mut Cursor<'_>) -> Result<Commit, DecodeError> {
    match cursor.u8()? {
        0 => Ok(Commit {
            commit_lsn: valid_lsn(cursor, "commit LSN of a Commit")?,
            end_lsn: valid_lsn(cursor, "end LSN of a Commit")?,
            commit_time: PgTimestamp::from_micros(cursor.i64()?),
        }),
        value => Err(unknown("commit flags", value)),
    }
}

fn origin<'a>(cursor: &mut Cursor<'a>) -> Result<Origin<'a>, DecodeError> {
    Ok(Origin {
        commit_lsn: Lsn::new(cursor.u64()?),
        name: cursor.cstr()?,
    })
}

fn relation(cursor: &mut Cursor<'_>, encoding: &str) -> Result<Relation, DecodeError> {
    let oid = Oid::new(cursor.u32()?);
    let schema = schema(cursor, encoding)?;
    let table = encoding::decode(encoding, cursor.cstr()?);
    let identity = match cursor.u8()? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        value => return Err(unknown("replica identity", value)),
    };
    let columns = (0..cursor.u16()?)
        .map(|_| column(cursor, encoding))
        .collect::<Result<_, _>>()?;
    Ok(Relation {
        oid,
        schema,
        table,
        identity,
        columns,
    })
}

fn column(cursor: &mut Cursor<'_>, encoding: &str) -> Result<Column, DecodeError> {
    let key = match cursor.u8()? {
        0 => false,
        1 => true,
        value => return Err(unknown("column flags", value)),
    };
    Ok(Column {
        key,
        name: encoding::decode(encoding, cursor.cstr()?),
        type_oid: Oid::new(cursor.u32()?),
        type_modifier: cursor.i32()?,
    })
}

fn custom_type(cursor: &mut Cursor<'_>, encoding: &str) -> Result<Type, DecodeError> {
    Ok(Type {
        oid: Oid::new(cursor.u32()?),
        schema: schema(cursor, encoding)?,
        name: encoding::decode(encoding, cursor.cstr()?),
    })
}

fn insert<'a>(cursor: &mut Cursor<'a>) -> Result<Insert<'a>, DecodeError> {
    let relation = Oid::new(cursor.u32()?);
    match cursor.u8()? {
        b'N' => Ok(Insert {
            relation,
            new: tuple(cursor)?,
        }),
        value => Err(unknown("tuple of an Insert", value)),
    }
}

fn update<'a>(cursor: &mut Cursor<'a>) -> Result<Update<'a>, DecodeError> {
    let relation = Oid::new(cursor.u32()?);
    let mut kind = cursor.u8()?;
    let old = match kind {
        b'K' => OldTuple::Key(tuple(cursor)?),
        b'O' => OldTuple::Full(tuple(cursor)?),
        _ => OldTuple::None,
    };
    if old != OldTuple::None {
        kind = cursor.u8()?;
    }
    match kind {
        b'N' => Ok(Update {
            relation,
            old,
            new: tuple(cursor)?,
        }),
        value => Err(unknown("tuple of an Update", value)),
    }
}

fn delete<'a>(cursor: &mut Cursor<'a>) -> Result<Delete<'a>, DecodeError> {
    let relation = Oid::new(cursor.u32()?);
    let old = match cursor.u8()? {
        b'K' => OldTuple::Key(tuple(cursor)?),
        b'O' => OldTuple::Full(tuple(cursor)?),
        value => return Err(unknown("tuple of a Delete", value)),
    };
    Ok(Delete { relation, old })
}

fn truncate(cursor: &mut Cursor<'_>) -> Result<Truncate, DecodeError> {
    let count = cursor.u32()?;
    let flags = cursor.u8()?;
    if flags & !(CASCADE | RESTART_IDENTITY) != 0 {
        return Err(unknown("truncate flags", flags));
    }
    if count == 0 {
        return Err(DecodeError::OutOfRange {
            what: "the number of truncated relations",
        });
    }
    // Grows with the bytes that are really there, not with the number announced.
    let relations = (0..count)
        .map(|_| cursor.u32().map(Oid::new))
        .collect::<Result<_, _>>()?;
    Ok(Truncate {
        relations,
        cascade: flags & CASCADE != 0,
        restart_identity: flags & RESTART_IDENTITY != 0,
    })
}

fn logical_message<'a>(cursor: &mut Cursor<'a>) -> Result<LogicalMessage<'a>, DecodeError> {
    let transactional = match cursor.u8()? {
        0 => false,
        1 => true,
        value => return Err(unknown("message flags", value)),
    };
    let lsn = Lsn::new(cursor.u64()?);
    let prefix = cursor.cstr()?;
    let length = length(cursor, "the length of a message")?;
    Ok(LogicalMessage {
        transactional,
        lsn,
        prefix,
        content: cursor.bytes(length)?,
    })
}

/// A whole row, every value of it checked, so that iterating cannot fail.
fn tuple<'a>(cursor: &mut Cursor<'a>) -> Result<Tuple<'a>, DecodeError> {
    let columns = cursor.u16()?;
    let start = *cursor;
    for _ in 0..columns {
        value(cursor)?;
    }
    let length = start.rest().len().saturating_sub(cursor.rest().len());
    let bytes = Cursor::new(start.rest()).bytes(length)?;
    Ok(Tuple::from_checked(columns, bytes))
}

pub(super) fn value<'a>(cursor: &mut Cursor<'a>) -> Result<Value<'a>, DecodeError> {
    match cursor.u8()? {
        b'n' => Ok(Value::Null),
        b'u' => Ok(Value::Unchanged),
        b't' => {
            let length = length(cursor, "the length of a value")?;
            Ok(Value::Text(cursor.bytes(length)?))
        }
        value => Err(unknown("kind of value", value)),
    }
}

pub(super) const CASCADE: u8 = 1;
pub(super) const RESTART_IDENTITY: u8 = 2;

fn schema(cursor: &mut Cursor<'_>, encoding: &str) -> Result<String, DecodeError> {
    Ok(match encoding::decode(encoding, cursor.cstr()?).as_str() {
        "" => "pg_catalog".to_owned(),
        name => name.to_owned(),
    })
}

/// Lengths are signed on the wire.
fn length(cursor: &mut Cursor<'_>, what: &'static str) -> Result<usize, DecodeError> {
    usize::try_from(cursor.i32()?).map_err(|_| DecodeError::OutOfRange { what })
}

fn valid_lsn(cursor: &mut Cursor<'_>, what: &'static str) -> Result<Lsn, DecodeError> {
    match Lsn::new(cursor.u64()?) {
        Lsn::INVALID => Err(DecodeError::OutOfRange { what }),
        lsn => Ok(lsn),
    }
}

const fn unknown(what: &'static str, value: u8) -> DecodeError {
    DecodeError::Unknown { what, value }
}
