//! Rows of handlers' tables as programs beside the handler read them, on every driver.
//! In: rows that commits wrote. Out: the same rows, in the order of their primary keys' bytes, page by page.

use std::sync::Arc;

use perkey::unstable::store::query::RowsAsk;
use perkey::unstable::store::{Commit, Part, Setup, Store};
use perkey::{StoreError, Table};
use serde_json::{Value, json};
use sqlx::Row;

use crate::fixture::{POSTINGS, Place, SqlitePlace, commit, committed, posting, row_write, setup};
use crate::postgres_place::PostgresPlace;
use crate::store_contract::contract;

contract! {
    memory: crate::fixture::MemoryPlace::new();
    sqlite: crate::fixture::SqlitePlace::new();
    postgres: crate::postgres_place::PostgresPlace::new();
    => [
        rows_are_paged_in_the_order_of_their_keys_bytes,
        rows_end_at_their_limit_or_their_bytes_and_say_whether_there_are_more,
        rows_are_found_by_what_their_texts_equal,
        columns_come_back_as_they_were_written,
        what_no_row_can_be_is_no_row_or_refused,
        indexes_are_made_with_the_table_and_later,
        indexes_that_do_not_fit_are_refused,
    ]
}

/// In the order of their bytes; a database with an order of its own would mix them.
const IDS: [&str; 7] = ["B", "Z", "a", "a b", "a-1", "a1", "é"];

async fn written(place: &dyn Place) -> Arc<dyn Store> {
    let store = place.store();
    let epoch = store.take(0, "me").await.unwrap().epoch;
    let accounts = ["x", "Y"].into_iter();
    let rows = accounts.flat_map(|account| IDS.iter().rev().map(move |id| posting(account, id, 1))).collect();
    committed(&store, &Commit { parts: vec![Part { rows, ..Part::default() }], ..commit(0, epoch, 1) }).await;
    store
}

fn ask(equals: &[(&'static str, &str)], after: Option<&[&str]>, limit: usize) -> RowsAsk {
    let equals = equals.iter().map(|(column, value)| (*column, (*value).to_owned())).collect();
    let after = after.map(|after| after.iter().map(|value| (*value).to_owned()).collect());
    RowsAsk { table: POSTINGS, equals, after, limit, bytes: 1 << 20 }
}

async fn keys(store: &Arc<dyn Store>, ask: RowsAsk) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let rows = store.queries().rows(ask).await.unwrap().rows;
    rows.iter().map(|row| (text(&row["account"]), text(&row["id"]))).collect()
}

async fn rows_are_paged_in_the_order_of_their_keys_bytes(place: Box<impl Place>) {
    let store = written(&*place).await;
    let all: Vec<(String, String)> =
        ["Y", "x"].iter().flat_map(|account| IDS.map(|id| ((*account).to_owned(), id.to_owned()))).collect();
    assert_eq!(keys(&store, ask(&[], None, 100)).await, all);
    let (mut seen, mut after) = (Vec::new(), None::<(String, String)>);
    loop {
        let key = after.as_ref().map(|(account, id)| [account.as_str(), id.as_str()]);
        let page = keys(&store, ask(&[], key.as_ref().map(|key| &key[..]), 3)).await;
        after = page.last().cloned();
        seen.extend(page);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, all);
    assert!(keys(&store, ask(&[], None, 0)).await.is_empty());
}

async fn rows_end_at_their_limit_or_their_bytes_and_say_whether_there_are_more(place: Box<impl Place>) {
    let store = written(&*place).await;
    let texts = async |limit, bytes| {
        let asked = RowsAsk { bytes, ..ask(&[("account", "x")], None, limit) };
        let found = store.queries().rows(asked).await.unwrap();
        (found.rows.len(), found.more)
    };
    assert_eq!((texts(7, 1 << 20).await, texts(100, 1 << 20).await), ((7, false), (7, false)));
    assert_eq!((texts(6, 1 << 20).await, texts(0, 1 << 20).await), ((6, true), (0, false)));
    // One row comes at least, so that whoever asks for the next ones gets on.
    assert_eq!((texts(7, 0).await, texts(1, 0).await), ((1, true), (1, true)));
    // As bytes allow: each number of rows comes, one behind the other, and the last of them says that there are no more.
    let mut seen = vec![1];
    for bytes in 0..4_096 {
        let (rows, more) = texts(7, bytes).await;
        assert_eq!(more, rows < 7, "{bytes} bytes, {rows} rows");
        if seen.last() != Some(&rows) {
            seen.push(rows);
        }
        if rows == 7 {
            break;
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7]);
}

async fn rows_are_found_by_what_their_texts_equal(place: Box<impl Place>) {
    let store = written(&*place).await;
    let ids = |keys: Vec<(String, String)>| keys.into_iter().map(|(_, id)| id).collect::<Vec<_>>();
    assert_eq!(ids(keys(&store, ask(&[("account", "x")], None, 100)).await), IDS);
    assert_eq!(ids(keys(&store, ask(&[("account", "x")], Some(&["x", "a b"]), 2)).await), ["a-1", "a1"]);
    assert_eq!(keys(&store, ask(&[("account", "y")], None, 100)).await, []);
    let both = [("Y", "é"), ("x", "é")].map(|(account, id)| (account.to_owned(), id.to_owned()));
    assert_eq!(keys(&store, ask(&[("id", "é")], None, 100)).await, both);
    assert_eq!(keys(&store, ask(&[("id", "é"), ("account", "Y")], None, 100)).await, both[..1]);
}

async fn columns_come_back_as_they_were_written(place: Box<impl Place>) {
    let store = place.store();
    let epoch = store.take(0, "me").await.unwrap().epoch;
    let wide = json!({
        "id": "1", "account": "a\"'\\ \u{1F600}", "amount": i64::MIN, "rate": 0.1, "open": false,
        "extra": {"a": [1, null, {"b": "c"}]},
    });
    let narrow = json!({
        "id": "2", "account": "b", "amount": 0, "rate": 2.0, "open": true, "extra": "text",
    });
    let empty = json!({"id": "3", "account": "c", "amount": 7, "rate": null, "open": null, "extra": null});
    let rows = [&wide, &narrow, &empty].map(|row| {
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        row_write(&text("account"), &text("id"), Some(row.to_string()))
    });
    let part = Part { rows: rows.into(), ..Part::default() };
    committed(&store, &Commit { parts: vec![part], ..commit(0, epoch, 1) }).await;
    assert_eq!(store.queries().rows(ask(&[], None, 10)).await.unwrap().rows, [wide, narrow, empty]);
}

async fn what_no_row_can_be_is_no_row_or_refused(place: Box<impl Place>) {
    let store = written(&*place).await;
    assert!(keys(&store, ask(&[("account", "x\0")], None, 10)).await.is_empty());
    assert_eq!(keys(&store, ask(&[("account", "x")], Some(&["x", "a\0z"]), 1)).await[0].1, "a b");
    for wrong in [ask(&[("amount", "1")], None, 1), ask(&[("none", "1")], None, 1), ask(&[], Some(&["x"]), 1)] {
        assert!(matches!(store.queries().rows(wrong).await, Err(StoreError::Table { .. })));
    }
    let never_made = RowsAsk { table: Table { name: "nowhere", ..POSTINGS }, ..ask(&[], None, 1) };
    assert!(store.queries().rows(never_made).await.is_err());
}

async fn indexes_are_made_with_the_table_and_later(place: Box<impl Place>) {
    let store = written(&*place).await;
    let before = keys(&store, ask(&[], None, 100)).await;
    const MORE: Table = Table { indexes: &[&["id"], &["account", "id"], &["amount", "open"], &["rate"]], ..POSTINGS };
    let more = Setup { tables: vec![MORE], ..setup() };
    store.prepare(more.clone()).await.unwrap();
    store.prepare(more).await.unwrap();
    store.prepare(setup()).await.unwrap();
    assert_eq!(keys(&store, ask(&[], None, 100)).await, before);
}

async fn indexes_that_do_not_fit_are_refused(place: Box<impl Place>) {
    let store = place.store();
    const WRONG: [(&[&[&str]], &str); 5] = [
        (&[&["nothing"]], "not declared"),
        (&[&["extra"]], "JSON"),
        (&[&["id", "id"]], "twice"),
        (&[&["id"], &["id"]], "twice"),
        (&[&[]], "no columns"),
    ];
    for (indexes, word) in WRONG {
        let table = Table { indexes, ..POSTINGS };
        let refused = store.prepare(Setup { tables: vec![table], ..setup() }).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Table { reason, .. } if reason.contains(word)), "{word}: {refused}");
    }
}

#[tokio::test]
async fn sqlite_makes_the_indexes_that_the_primary_key_is_not() {
    let place = SqlitePlace::new().await;
    let sql = "SELECT sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'postings' AND sql IS NOT NULL";
    let made: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut place.connection().await).await.unwrap();
    assert_eq!(made, [r#"CREATE INDEX "postings by id" ON "postings" ("id")"#]);
}

#[tokio::test]
async fn postgresql_reads_a_page_from_an_index() {
    let place = PostgresPlace::new().await;
    let mut connection = place.database.connection().await;
    let sql = "SET enable_seqscan = off; SET enable_sort = off; SET enable_bitmapscan = off";
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    for (sql, index) in [
        (
            "EXPLAIN SELECT id FROM postings WHERE \"account\" COLLATE \"C\" = 'x'
             AND (\"account\" COLLATE \"C\", \"id\" COLLATE \"C\") > ('x', 'a')
             ORDER BY \"account\" COLLATE \"C\", \"id\" COLLATE \"C\" LIMIT 5",
            "postings by account, id",
        ),
        ("EXPLAIN SELECT account FROM postings WHERE \"id\" COLLATE \"C\" = 'a'", "postings by id"),
    ] {
        let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert!(plan.iter().any(|line| line.contains(index)), "{plan:#?}");
    }
}
