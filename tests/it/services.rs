//! Budget Manager's services as a user meets them: lines in, rows of plain tables out.
//! In: NDJSON through `import`. Out: the rows that any SQL client reads, and the dead letters.

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};

use crate::cli::Cli;

/// The second order is placed twice, differently; the third is cancelled before it is placed.
const ORDERS: &str = r#"
{"id":"1","command":"place","order":"o-1","account":"a","amount":"12.50","currency":"EUR","at":"2026-01-31"}
{"id":"2","command":"place","order":"o-2","account":"b","amount":"5.00","currency":"EUR","at":"2026-01-31","memo":"tea"}
{"id":"3","command":"place","order":"o-2","account":"b","amount":"6.00","currency":"EUR","at":"2026-01-31"}
{"id":"4","command":"cancel","order":"o-3"}
{"id":"5","command":"place","order":"o-3","account":"b","amount":"6.00","currency":"EUR","at":"2026-01-31"}
{"id":"6","command":"complete","order":"o-1"}
{"id":"7","command":"cancel","order":"o-2","reason":"changed my mind"}
"#;

const EXPENSES: &str = r#"
{"id":"1","command":"budget","account":"a","category":"food","limit":"10.00","currency":"EUR"}
{"id":"2","command":"record","account":"a","category":"food","amount":"8.00","currency":"EUR","at":"2026-01-30"}
{"id":"3","command":"record","account":"a","category":"food","amount":"2.01","currency":"EUR","at":"2026-01-31"}
{"id":"4","command":"record","account":"a","category":"food","amount":"2.00","currency":"USD","at":"2026-01-31"}
"#;

/// The rows that a statement finds, each as the JSON that it makes of it.
async fn rows(cli: &Cli, sql: &str) -> Vec<Value> {
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut cli.store().await).await.unwrap();
    rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_and_expenses_become_rows_and_what_is_refused_is_a_dead_letter() {
    let cli = Cli::new().await;
    for (service, lines, dead) in [("orders", ORDERS, 2), ("expenses", EXPENSES, 1)] {
        let file = format!("{service}.ndjson");
        cli.file(&file, lines.trim_start());
        let imported = cli.json(&["import", "--service", service, &file]).await.ends(0);
        assert_eq!(imported["engine"]["dead_letters"], dead, "{imported}");
        let letters = cli.json(&["dlq:peek", "--service", service]).await.ends(0);
        assert_eq!(letters.as_array().map(Vec::len), Some(dead), "{letters}");
    }
    let orders =
        rows(&cli, "SELECT json_array(id, account, amount, status, reason, memo) FROM orders ORDER BY id").await;
    let expected = [
        json!(["o-1", "a", 1_250, "completed", null, null]),
        json!(["o-2", "b", 500, "cancelled", "changed my mind", "tea"]),
    ];
    assert_eq!(orders, expected);
    let expenses = rows(&cli, "SELECT json_array(account, id, category, amount) FROM expenses ORDER BY id").await;
    assert_eq!(expenses, [json!(["a", "2", "food", 800]), json!(["a", "3", "food", 201])]);
    let budgets = rows(&cli, "SELECT json_array(account, category, monthly_limit) FROM budgets").await;
    assert_eq!(budgets, [json!(["a", "food", 1_000])]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_timers_and_states_are_shown_and_a_dead_letter_is_edited() {
    let cli = Cli::new().await;
    cli.file("orders.ndjson", ORDERS.trim_start());
    cli.json(&["import", "--service", "orders", "orders.ndjson"]).await.ends(0);
    let order = cli.json(&["state:get", "--service", "orders", "--key", "o-1"]).await.ends(0);
    assert_eq!((&order["state"]["status"], &order["pending"]), (&json!("completed"), &json!(0)), "{order}");
    cli.json(&["state", "get", "--service", "orders", "--key", "nobody's"]).await.ends(3);
    cli.json(&["state:get", "--service", "nobody", "--key", "x"]).await.ends(64);
    // The order that was placed twice, with the price that the first one had: it changes nothing.
    let edited = r#"{"command":"place","order":"o-2","account":"b","amount":500,"currency":"EUR","at":"2026-01-31","memo":"tea"}"#;
    cli.file("edited.json", edited);
    cli.file("other.json", edited.replace("o-2", "o-9"));
    cli.file("bad.json", "{}");
    for (file, id) in [("other.json", "3"), ("bad.json", "3"), ("edited.json", "nobody's")] {
        cli.json(&["dlq:edit", id, "--payload", file]).await.ends(64);
    }
    let up = cli.up().await;
    let asked = cli.json(&["dlq:edit", "3", "--payload", "edited.json", "--reason", "typo"]).await.ends(0);
    assert_eq!((&asked["affected"], &asked["done"]), (&json!(1), &json!(true)), "{asked}");
    let letters = cli.json(&["dlq:peek", "--service", "orders"]).await.ends(0);
    assert_eq!((&letters[0]["id"], letters.as_array().map(Vec::len)), (&json!("5"), Some(1)), "{letters}");
    let story = cli.json(&["explain", "3"]).await.ends(0);
    assert!(story.to_string().contains("edited"), "{story}");
    cli.json(&["schedule:list"]).await.ends(3);
    cli.json(&["keys:top"]).await.ends(3);
    // A checkout without a provider waits, with a timer.
    let start = r#"{"id":"c","command":"start","saga":"s-1","order":"o-7","account":"a","category":"shop","amount":"5","currency":"EUR","at":"2026-01-31"}"#;
    cli.file("checkouts.ndjson", format!("{start}\n"));
    cli.json(&["import", "--service", "checkouts", "checkouts.ndjson"]).await.ends(0);
    let waits = async || {
        let top = cli.json(&["keys:top"]).await;
        top.code == Some(0) && top.json()[0]["service"] == "payments"
    };
    perkey_chaos::process::until("the payment waits", std::time::Duration::from_secs(30), waits).await.unwrap();
    let timers = cli.json(&["schedule:list", "--service", "checkouts"]).await.ends(0);
    assert_eq!((&timers[0]["key"], &timers[0]["name"]), (&json!("s-1"), &json!("payment")), "{timers}");
    drop(up);
}
