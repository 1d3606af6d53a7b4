use lastgood_proto::cursor::DecodeError;
use lastgood_proto::pgoutput::{
    Delete, EncodeError, Message, OldTuple, Origin, TupleBuf, Value, decode, encode,
};
use lastgood_proto::{Lsn, Oid};
use proptest::prelude::*;

use crate::owned::message;

fn encoded(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(message, &mut bytes).unwrap();
    bytes
}

proptest! {
    #[test]
    fn decode_is_the_inverse_of_encode(owned in message()) {
        let message = owned.as_message();
        let bytes = encoded(&message);
        let decoded = decode(&bytes);
        prop_assert_eq!(decoded.as_ref(), Ok(&message));
        if let Ok(Message::Insert(insert)) = decoded {
            prop_assert_eq!(insert.new.iter().count(), insert.new.len());
            prop_assert_eq!(insert.new.iter().len(), insert.new.len());
            prop_assert_eq!(insert.new.is_empty(), insert.new.iter().next().is_none());
        }
    }

    #[test]
    fn every_strict_prefix_is_an_error(owned in message()) {
        let bytes = encoded(&owned.as_message());
        for cut in 0..bytes.len() {
            prop_assert!(decode(&bytes[..cut]).is_err(), "cut at {}", cut);
        }
    }

    #[test]
    fn a_byte_too_many_is_an_error(owned in message(), byte: u8) {
        let mut bytes = encoded(&owned.as_message());
        bytes.push(byte);
        prop_assert_eq!(decode(&bytes), Err(DecodeError::TrailingBytes { left: 1 }));
    }

    #[test]
    fn no_bytes_panic(kind in proptest::sample::select(&b"BCORYIUDTM?"[..]), mut bytes: Vec<u8>) {
        let _ = decode(&bytes);
        bytes.insert(0, kind);
        let _ = decode(&bytes);
    }

    #[test]
    fn no_altered_message_panics(owned in message(), at: prop::sample::Index, byte: u8) {
        let mut bytes = encoded(&owned.as_message());
        let at = at.index(bytes.len());
        bytes[at] = byte;
        // What still decodes is told apart by its bytes.
        if let Ok(message) = decode(&bytes) {
            let again = encoded(&message);
            // "pg_catalog" spelt out and names that are not UTF-8 are what has two forms.
            let spelt_out = bytes.windows(11).any(|part| part == b"pg_catalog\0");
            let names = matches!(message, Message::Relation(_) | Message::Type(_));
            // Behind the kind and the OID, whose last byte may make a character of a name's first.
            let escaped = names && std::str::from_utf8(&bytes[5..]).is_err();
            if !spelt_out && !escaped {
                prop_assert_eq!(&again, &bytes);
            }
            prop_assert_eq!(decode(&again), Ok(message));
        }
    }
}

#[test]
fn what_is_announced_is_not_allocated() {
    // 4 billion relations, 65535 columns, a value of 2 GiB: and then nothing.
    for bytes in [
        &b"T\xFF\xFF\xFF\xFF\x00"[..],
        b"R\x00\x00\x00\x01a\x00b\x00d\xFF\xFF",
        b"I\x00\x00\x00\x01N\x00\x01t\x7F\xFF\xFF\xFF",
        b"M\x00\x00\x00\x00\x00\x00\x00\x00\x01p\x00\x7F\xFF\xFF\xFF",
    ] {
        assert!(
            matches!(
                decode(bytes),
                Err(DecodeError::Truncated { .. } | DecodeError::Unterminated)
            ),
            "{bytes:?}"
        );
    }
}

#[test]
fn fails_closed() {
    let cases: [(&[u8], &str); 13] = [
        (b"", "the message ends 1 bytes too early"),
        (b"S", "unknown pgoutput message 0x53"),
        (
            b"B\0\0\0\0\0\0\0\0",
            "commit LSN of a Begin is out of range",
        ),
        (b"C\x01", "unknown commit flags 0x01"),
        (b"R\0\0\0\x01s\0t\0x", "unknown replica identity 0x78"),
        (b"R\0\0\0\x01s\0t\0d\0\x01\x02", "unknown column flags 0x02"),
        (b"I\0\0\0\x01K", "unknown tuple of an Insert 0x4b"),
        (b"I\0\0\0\x01N\0\x01b", "unknown kind of value 0x62"),
        (
            b"I\0\0\0\x01N\0\x01t\xFF\xFF\xFF\xFF",
            "the length of a value is out of range",
        ),
        (b"U\0\0\0\x01K\0\0K", "unknown tuple of an Update 0x4b"),
        (b"D\0\0\0\x01N\0\0", "unknown tuple of a Delete 0x4e"),
        (b"T\0\0\0\x01\x04", "unknown truncate flags 0x04"),
        (
            b"T\0\0\0\0\0",
            "the number of truncated relations is out of range",
        ),
    ];
    for (bytes, expected) in cases {
        assert_eq!(decode(bytes).unwrap_err().to_string(), expected);
    }
}

#[test]
fn the_encoder_refuses_what_has_no_form() {
    let delete = Message::Delete(Delete {
        relation: Oid::new(1),
        old: OldTuple::None,
    });
    assert_eq!(
        encode(&delete, &mut Vec::new()),
        Err(EncodeError::DeleteWithoutOld)
    );
    let origin = Message::Origin(Origin {
        commit_lsn: Lsn::new(1),
        name: b"a\0b",
    });
    assert_eq!(
        encode(&origin, &mut Vec::new()),
        Err(EncodeError::ZeroByte {
            what: "origin name"
        })
    );
    assert_eq!(
        TupleBuf::new((0..65_536).map(|_| Value::Null)).map(|_| ()),
        Err(EncodeError::TooLong { what: "tuple" })
    );
}

#[test]
fn debug_shows_no_value() {
    let row = TupleBuf::new([Value::Text(b"secret"), Value::Null, Value::Unchanged]).unwrap();
    assert_eq!(format!("{row:?}"), "[6 bytes, null, unchanged]");
}
