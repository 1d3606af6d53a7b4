//! A file that parses prints to what parses to the same.
#![no_main]

use std::fmt::Debug;

use lastgood_proto::manifest::{BaseManifest, LineageEnd, LineageFile, PointFile, SourceFile};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|data: &[u8]| {
    file::<SourceFile>(data);
    file::<LineageFile>(data);
    file::<LineageEnd>(data);
    file::<PointFile>(data);
    file::<BaseManifest>(data);
});

fn file<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
    if let Ok(file) = serde_json::from_slice::<T>(data) {
        let text = serde_json::to_vec(&file).expect("a file prints");
        let again: T = serde_json::from_slice(&text).expect("a printed file parses");
        assert_eq!(again, file);
    }
}
