//! What the parts promise together, one binary.
//! In: the crates as a user has them. Out: promises kept, on every driver.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod ahead;
mod bad_input;
mod cache;
mod call_records;
mod calls;
mod chaos;
mod cli;
mod client;
mod codecs;
mod commands;
mod contract;
mod cron;
mod doctor;
mod doors;
mod engine;
mod fixture;
mod fleet;
mod gates;
mod guide;
mod host;
mod intake;
mod kafka;
mod kafka_lost;
mod kafka_topic;
mod ledger_model;
mod operator;
mod outbox;
mod pauses;
mod payments;
mod postgres_place;
mod postgres_store;
mod rabbitmq;
mod rabbitmq_intake;
mod rabbitmq_place;
mod refused;
mod rekeying;
mod reshard;
mod rest;
mod row_reads;
mod sagas;
mod servers;
mod services;
mod simulation;
mod sink_contract;
mod sinks;
mod sources;
mod sqlite_store;
mod store_contract;
mod support;
mod tidy;
mod timers;
mod traces;
mod transport_contract;
