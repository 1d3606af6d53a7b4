//! The harness of the tests: throw-away PostgreSQL servers of every supported major, a real S3
//! server, a TCP proxy with faults, the `lastgood` binary as a child process, content digests, and
//! waiting for a state under a deadline.
//!
//! Nothing here mocks anything. Every server is removed when its handle is dropped, and also when the
//! test process dies in any other way (see [`guardian`]). Tests never sleep: whoever must wait uses
//! [`wait`], where the only polling lives.

pub mod case;
pub mod digest;
pub mod failpoint;
mod guardian;
pub mod hard_values;
pub mod history;
pub mod pairs;
mod port;
pub mod postgres;
pub mod proxy;
pub mod s3_proxy;
pub mod seed;
pub mod service;
pub mod storage;
pub mod tools;
pub mod truth;
pub mod vitals;
pub mod wait;
pub mod workload;

pub use postgres::{Postgres, Stop, TestDatabase};
pub use proxy::Proxy;
pub use s3_proxy::{Fault, S3Proxy};
pub use service::Service;
pub use storage::Storage;
