//! The real servers that tests run against.
//! In: the environment, as `scripts/services up` prints it. Out: where each server is.

/// URL of a PostgreSQL server on which databases may be made.
pub(crate) fn postgres() -> String {
    server("PERKEY_TEST_POSTGRES")
}

/// Address of a Kafka broker on which topics may be made.
pub(crate) fn kafka() -> String {
    server("PERKEY_TEST_KAFKA")
}

/// URL of a Redis, without a database: tests take one each.
pub(crate) fn redis() -> String {
    server("PERKEY_TEST_REDIS")
}

fn server(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `eval \"$(scripts/services up)\"` first"))
}
