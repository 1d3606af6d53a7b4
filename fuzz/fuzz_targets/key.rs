//! A path that parses is what its key prints; a listing of any paths is made of chains.
#![no_main]

use lastgood_proto::key::Key;
use lastgood_proto::listing::Listing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut objects = Vec::new();
    for path in text.lines() {
        if let Ok(key) = Key::parse(path) {
            assert_eq!(key.path(), path);
            if let Key::Source(_, object, _) = key {
                objects.push(object);
            }
        }
    }
    for lineage in Listing::from_objects(objects).lineages {
        let pairs = lineage.segments.iter().zip(lineage.segments.iter().skip(1));
        for (before, after) in pairs {
            assert_eq!(before.end, after.start);
        }
    }
});
