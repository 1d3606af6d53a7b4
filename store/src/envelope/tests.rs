//! Round trips, and every kind of damage.

use std::io::Write;

use lastgood_proto::key::KeyId;
use proptest::prelude::*;

use super::*;

const CONTEXT: &str = "sources/0001020304050607/source.json";

fn key() -> DataKey {
    DataKey::fixed([7; 8], [42; 32])
}

fn seal(key: Option<&DataKey>, context: &str, plain: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::new(key, context, Vec::new(), 3).unwrap();
    sealer.write_all(plain).unwrap();
    sealer.finish().unwrap()
}

/// Opens `object`, pushed in pieces of `step` bytes, taken in pieces of `room`.
fn open_in_steps(
    key: Option<&DataKey>,
    context: &str,
    object: &[u8],
    step: usize,
    room: usize,
) -> Result<Vec<u8>, UnsealError> {
    let (mut opener, body) = match key {
        None => (Opener::clear()?, object),
        Some(key) => {
            let (header, body) = object
                .split_first_chunk::<{ Header::BYTES }>()
                .ok_or(UnsealError::NoHeader)?;
            let header = Header::decode(header)?;
            (Opener::encrypted(key, &header, context)?, body)
        }
    };
    let mut pieces = body.chunks(step);
    let (mut plain, mut out) = (Vec::new(), vec![0; room]);
    loop {
        match opener.take(&mut out)? {
            Opened::Plain(bytes) => plain.extend_from_slice(&out[..bytes]),
            Opened::Starved => match pieces.next() {
                Some(piece) => opener.push(piece),
                None => opener.end(),
            },
            Opened::End => return Ok(plain),
        }
    }
}

fn open(key: Option<&DataKey>, context: &str, object: &[u8]) -> Result<Vec<u8>, UnsealError> {
    open_in_steps(key, context, object, 100_000, 128 * 1024)
}

/// Bytes that zstd cannot make smaller, so that the number of chunks is known.
fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    getrandom::fill(&mut noise).unwrap();
    noise
}

#[test]
fn sizes_around_a_chunk_come_back() {
    for bytes in [
        0, 1, 65_519, 65_520, 65_521, 65_536, 131_053, 131_072, 400_000,
    ] {
        let plain = noise(bytes);
        for key in [None, Some(&key())] {
            let object = seal(key, CONTEXT, &plain);
            assert_eq!(open(key, CONTEXT, &object).unwrap(), plain, "{bytes}");
        }
    }
}

#[test]
fn a_full_last_chunk_is_the_last() {
    // Raw zstd blocks add a fixed number of bytes, so one of these fills its last chunk exactly.
    let full = (65_500..65_536).any(|bytes| {
        let plain = noise(bytes);
        let object = seal(Some(&key()), CONTEXT, &plain);
        assert_eq!(open(Some(&key()), CONTEXT, &object).unwrap(), plain);
        object.len() == Header::BYTES + SEALED_CHUNK_BYTES
    });
    assert!(full);
}

#[test]
fn the_highest_level_stays_within_the_readers_memory() {
    let plain = vec![b'x'; 40 << 20];
    let mut sealer = Sealer::new(None, CONTEXT, Vec::new(), 22).unwrap();
    sealer.write_all(&plain[..]).unwrap();
    let object = sealer.finish().unwrap();
    assert_eq!(open(None, CONTEXT, &object).unwrap().len(), plain.len());
}

#[test]
fn every_flipped_byte_is_seen() {
    let plain = b"{\"v\":1}".repeat(20);
    let object = seal(Some(&key()), CONTEXT, &plain);
    for at in 0..object.len() {
        for flip in [1, 0x80, 0xFF] {
            let mut altered = object.clone();
            altered[at] ^= flip;
            assert!(open(Some(&key()), CONTEXT, &altered).is_err(), "byte {at}");
        }
    }
    // In clear there is no secret, but no flip may pass with other content.
    let object = seal(None, CONTEXT, &plain);
    for at in 0..object.len() {
        for flip in 1..=255 {
            let mut altered = object.clone();
            altered[at] ^= flip;
            if let Ok(read) = open(None, CONTEXT, &altered) {
                assert_eq!(read, plain, "byte {at}");
            }
        }
    }
}

#[test]
fn every_truncation_and_every_appended_byte_is_seen() {
    let plain = b"{\"v\":1}".repeat(20);
    for key in [None, Some(&key())] {
        let object = seal(key, CONTEXT, &plain);
        for length in 0..object.len() {
            assert!(open(key, CONTEXT, &object[..length]).is_err(), "{length}");
        }
        for extra in [&b"\0"[..], b"xyz", &object] {
            let longer = [&object, extra].concat();
            assert!(open(key, CONTEXT, &longer).is_err());
        }
    }
}

#[test]
fn chunks_cannot_be_cut_off_moved_or_doubled() {
    let object = seal(Some(&key()), CONTEXT, &noise(300_000));
    let (header, body) = object.split_at(Header::BYTES);
    let chunks: Vec<&[u8]> = body.chunks(SEALED_CHUNK_BYTES).collect();
    assert_eq!(chunks.len(), 5);
    let altered = |order: &[usize]| {
        let mut object = header.to_vec();
        order
            .iter()
            .for_each(|&chunk| object.extend_from_slice(chunks[chunk]));
        open(Some(&key()), CONTEXT, &object)
    };
    assert!(altered(&[0, 1, 2, 3, 4]).is_ok());
    for order in [
        &[0, 1, 2, 3][..],
        &[0],
        &[],
        &[1, 0, 2, 3, 4],
        &[0, 1, 3, 4],
        &[0, 1, 1, 2, 3, 4],
        &[0, 1, 2, 3, 4, 4],
        &[4],
    ] {
        assert!(altered(order).is_err(), "{order:?}");
    }
}

#[test]
fn another_context_key_or_salt_does_not_open() {
    let object = seal(Some(&key()), CONTEXT, b"content");
    let other = DataKey::fixed([7; 8], [43; 32]);
    assert!(open(Some(&key()), CONTEXT, &object).is_ok());
    assert!(open(Some(&other), CONTEXT, &object).is_err());
    assert!(open(Some(&key()), "sources/0001020304050607/source.jso", &object).is_err());
    let second = seal(Some(&key()), CONTEXT, b"content");
    let mixed = [&second[..Header::BYTES], &object[Header::BYTES..]].concat();
    assert!(open(Some(&key()), CONTEXT, &mixed).is_err());
}

#[test]
fn what_grows_enormously_comes_out_in_pieces() {
    let plain = vec![0; 64 << 20];
    let object = seal(Some(&key()), CONTEXT, &plain);
    assert!(object.len() < 64 * 1024);
    let (header, body) = object.split_first_chunk::<{ Header::BYTES }>().unwrap();
    let header = Header::decode(header).unwrap();
    let mut opener = Opener::encrypted(&key(), &header, CONTEXT).unwrap();
    opener.push(body);
    opener.end();
    let (mut out, mut total) = (vec![1; 4096], 0);
    while let Opened::Plain(bytes) = opener.take(&mut out).unwrap() {
        total += bytes;
    }
    assert_eq!(total, plain.len());
}

#[test]
fn the_header_names_the_key() {
    let object = seal(Some(&key()), CONTEXT, b"");
    let header = Header::decode(object.first_chunk().unwrap()).unwrap();
    assert_eq!(header.key_id, KeyId::from_bytes([7; 8]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn opening_is_the_inverse_of_sealing(
        plain in proptest::collection::vec(any::<u8>(), 0..200_000),
        step in 1_usize..100_000,
        room in 1_usize..50_000,
        encrypted: bool,
    ) {
        let key = key();
        let key = encrypted.then_some(&key);
        let object = seal(key, CONTEXT, &plain);
        prop_assert_eq!(open_in_steps(key, CONTEXT, &object, step, room).unwrap(), plain);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = open(None, CONTEXT, &bytes);
        let _ = open(Some(&key()), CONTEXT, &bytes);
    }
}
