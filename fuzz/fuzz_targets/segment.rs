//! Any bytes as a segment: records, then everything agrees or there is an error for good.
#![no_main]

use lastgood_proto::segment::SegmentReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut reader) = SegmentReader::open(data, None) else {
        return;
    };
    loop {
        match reader.next() {
            Ok(Some(_)) => assert!(reader.footer().is_none()),
            Ok(None) => {
                assert!(reader.footer().is_some());
                return;
            }
            Err(_) => {
                assert!(reader.footer().is_none());
                assert!(reader.next().is_err());
                return;
            }
        }
    }
});
