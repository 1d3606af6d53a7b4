//! Any stream of pgoutput messages into a segment: whatever the writer takes, the reader gives back.
//!
//! Input: messages, each after its length in two bytes.
#![no_main]

use lastgood_proto::pgoutput::{Message, decode};
use lastgood_proto::segment::{Header, SegmentReader, SegmentWriter, WriteError};
use lastgood_proto::{LineageId, Lsn, PgTimestamp, SourceId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (source, lineage) = (SourceId::from_bytes([7; 8]), LineageId::new(1, 2));
    let start = Lsn::new(16);
    let header = Header {
        source,
        lineage,
        start,
        server: 180_000,
        encoding: Some("EUC_JP".to_owned()),
    };
    let mut writer = SegmentWriter::new(Vec::new(), &header).expect("a header can be written");
    let mut written = 0_u64;
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (message, after) = after.split_at(length);
        rest = after;
        let Ok(message) = decode(message) else {
            continue;
        };
        let outcome = match &message {
            Message::Begin(begin) => writer.begin(begin),
            Message::Commit(commit) => writer.commit(commit),
            Message::Relation(relation) => {
                let names = vec!["t".to_owned(); relation.columns.len()];
                writer.relation(relation, &names)
            }
            Message::Insert(insert) => writer.insert(insert),
            Message::Update(update) => writer.update(update),
            Message::Delete(delete) => writer.delete(delete),
            Message::Truncate(truncate) => writer.truncate(truncate),
            Message::Message(message) => writer.message(message),
            Message::Origin(_) | Message::Type(_) => continue,
        };
        match outcome {
            Ok(()) => written += 1,
            Err(WriteError::Refused(_)) => {}
            Err(WriteError::Unusable) => return,
            Err(WriteError::Sink(error)) => panic!("a vector takes everything: {error}"),
        }
    }
    let end = writer.last_end();
    let observed = Some(PgTimestamp::from_micros(1));
    let Ok((bytes, footer)) = writer.finish(end, observed) else {
        return;
    };
    let key = footer.key(start);
    let mut reader = SegmentReader::open(&bytes[..], Some((source, lineage, &key)))
        .expect("what was written opens");
    let mut read = 0;
    while reader.next().expect("what was written reads").is_some() {
        read += 1;
    }
    assert_eq!(read, written);
    assert_eq!(reader.footer(), Some(&footer));
});
