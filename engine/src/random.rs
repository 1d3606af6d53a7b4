//! Nonces.

use crate::error::Error;

pub(crate) fn u32() -> Result<u32, Error> {
    getrandom::u32().map_err(|error| Error::Unfit(format!("no random bytes to be had: {error}")))
}
