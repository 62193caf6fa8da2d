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

/// Address of a RabbitMQ on which exchanges, queues and streams may be made, by guest.
pub(crate) fn rabbitmq() -> String {
    server("PERKEY_TEST_RABBITMQ")
}

/// A Python that has pika, a RabbitMQ client of others.
pub(crate) fn python() -> String {
    let unset = "PERKEY_TEST_PYTHON is not set: run `eval \"$(scripts/services up rabbitmq)\"` first";
    std::env::var("PERKEY_TEST_PYTHON").unwrap_or_else(|_| panic!("{unset}"))
}

/// Prometheus's tool that checks rules.
pub(crate) fn promtool() -> String {
    let unset = "PERKEY_TEST_PROMTOOL is not set: run `eval \"$(scripts/services up prometheus)\"` first";
    std::env::var("PERKEY_TEST_PROMTOOL").unwrap_or_else(|_| panic!("{unset}"))
}

/// URL of a Redis, without a database: tests take one each.
pub(crate) fn redis() -> String {
    server("PERKEY_TEST_REDIS")
}

fn server(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `eval \"$(scripts/services up)\"` first"))
}
