//! The store from outside: one suite on memory, local disk and a real S3 server, and every kind of
//! damage and misbehaviour on top.

mod conformance;
mod faults;
mod format;
mod keys;
mod local;
mod support;
mod tamper;
