//! End-to-end tests: real servers, and the binary as a process.

mod api;
mod bad_input;
mod bad_repository;
mod bad_source;
mod command_line;
mod crash;
mod empty_folder;
mod encodings;
mod extremes;
mod harness;
mod into_schema;
mod lifecycle;
mod matrix;
mod oracle;
mod partial;
mod prepared;
mod retention;
mod s3;
mod scenarios;
mod schema;
mod secrets;
mod settings;
mod shapes;
mod smoke;
mod tables;
mod types;
