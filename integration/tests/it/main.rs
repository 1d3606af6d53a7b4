//! End-to-end tests: real servers, and the binary as a process.

mod harness;
