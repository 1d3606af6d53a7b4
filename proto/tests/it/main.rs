//! The codecs, seen from outside: properties, real servers' bytes, and tampering.

#[cfg(test)]
mod captured;
#[cfg(test)]
mod merge;
#[cfg(test)]
mod owned;
#[cfg(test)]
mod pgoutput;
#[cfg(test)]
mod segment;
#[cfg(test)]
mod tamper;
