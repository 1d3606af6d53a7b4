//! What decodes is encoded and decodes to the same again.
#![no_main]

use lastgood_proto::pgoutput::{decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = decode(data) {
        let mut wire = Vec::new();
        encode(&message, &mut wire).expect("what was decoded fits the wire");
        assert_eq!(decode(&wire).as_ref(), Ok(&message));
    }
});
