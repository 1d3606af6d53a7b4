//! A segment: the whole transactions of one LSN range as NDJSON, one record a line.
//!
//! ```text
//! {"t":"H","v":3,"source":…,"lineage":…,"start":"0/16B3748","server":150018,"encoding":"UTF8"}
//! {"t":"R","rel":16385,"schema":"public","table":"users","identity":"default","columns":[…]}
//! {"t":"B","xid":742,"lsn":"0/16B3790","time":"2026-11-20T20:01:02.123456Z"}
//! {"t":"I","rel":16385,"new":["1","ann@example.org",null]}
//! {"t":"U","rel":16385,"key":["1",null,null],"new":["2",false,null]}
//! {"t":"D","rel":16385,"key":["2",null,null]}
//! {"t":"T","rels":[16385],"cascade":false,"restart_identity":false}
//! {"t":"M","transactional":true,"lsn":"0/16B3780","prefix":"lastgood.ddl","content":"…"}
//! {"t":"C","lsn":"0/16B3790","end":"0/16B37C0"}
//! {"t":"S","lsn":"0/16B37C0","sequences":[["public","users_id_seq","42",true]]}
//! {"t":"F","end":"0/16B37C0","transactions":1,…,"sha256":"…"}
//! ```
//!
//! Order: H first; B … C around the rows of one transaction, in commit order; R before the first
//! row of its relation, again when the relation has changed; S and messages that belong to no
//! transaction between transactions; F last, and nothing after it. The writer refuses any other
//! order and the reader does so again, together with the counts and the digest of F.
//!
//! Values are PostgreSQL's text, in the encoding that H names. Nothing here interprets one.

mod canonical;
mod content;
mod ledger;
mod line;
mod lines;
mod merge;
mod reader;
mod record;
mod row;
mod sink;
mod string;
mod writer;

pub use content::{Content, ContentReader};
pub use ledger::Refusal;
pub use merge::{MergeError, Merger};
pub use reader::{IsWanted, ReadError, SegmentReader};
pub use record::{
    ColumnRecord, CommitTimes, Footer, Header, MessageRecord, Old, Record, RelationRecord,
    RowCounts, SequenceSample,
};
pub use row::{Row, RowBuffer, RowPlace};
pub use writer::{SegmentWriter, WriteError};

/// The newest version of the format. Since version 2 the header names the encoding of values; older ones
/// are read as well.
pub const VERSION: u32 = 3;
/// Since then a transaction that was replicated into the source says until when it was committed.
const UNTIL_SINCE: u32 = 3;

/// The version that a segment with this header is written in.
const fn version(header: &Header) -> u32 {
    match header.encoding {
        None => 1,
        Some(_) => VERSION,
    }
}

/// The longest line, in bytes. A row comes in one protocol message, which PostgreSQL keeps below
/// 1 GiB, and JSON makes at most six bytes of one; the rest is room for punctuation.
pub const LINE_BYTES_MAX: u64 = (6 << 30) + (64 << 20);
