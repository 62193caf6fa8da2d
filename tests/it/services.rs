//! Budget Manager's services as a user meets them: lines in, rows of plain tables out.
//! In: NDJSON through `import`. Out: what any SQL client reads, and the dead letters.

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};

use crate::cli::Cli;

/// The second order is placed twice, differently; the third is cancelled before it is placed.
const ORDERS: &str = r#"
{"id":"1","command":"place","order":"o-1","account":"a","amount":"12.50","currency":"EUR","at":"2026-01-31"}
{"id":"2","command":"place","order":"o-2","account":"b","amount":"5.00","currency":"EUR","at":"2026-01-31","memo":"tea"}
{"id":"3","command":"place","order":"o-2","account":"b","amount":"6","currency":"EUR","at":"2026-01-31"}
{"id":"4","command":"cancel","order":"o-3"}
{"id":"5","command":"place","order":"o-3","account":"b","amount":"6","currency":"EUR","at":"2026-01-31"}
{"id":"6","command":"complete","order":"o-1"}
{"id":"7","command":"cancel","order":"o-2","reason":"changed my mind"}
"#;

const EXPENSES: &str = r#"
{"id":"1","command":"budget","account":"a","category":"food","limit":1000,"currency":"EUR"}
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
