//! The wall clock, in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use lastgood_proto::PgTimestamp;

/// Now, by this machine's clock.
pub(crate) fn now() -> PgTimestamp {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    PgTimestamp::from_unix_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}
