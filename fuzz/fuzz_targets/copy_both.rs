//! What decodes is encoded to the bytes it came from.
#![no_main]

use bytes::{Bytes, BytesMut};
use lastgood_proto::copy_both::{ReplicationMessage, StandbyStatus};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = ReplicationMessage::decode(Bytes::copy_from_slice(data)) {
        let mut wire = BytesMut::new();
        message.encode(&mut wire);
        assert_eq!(wire, data);
    }
    if let Ok(status) = StandbyStatus::decode(data) {
        let mut wire = BytesMut::new();
        status.encode(&mut wire);
        assert_eq!(wire, data);
    }
});
