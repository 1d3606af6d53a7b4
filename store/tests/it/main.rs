//! The store from outside: one suite on memory, local disk and a real S3 server, and every kind of
//! damage and misbehaviour on top.

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod format;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod local;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tamper;
