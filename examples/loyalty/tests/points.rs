//! Tests of points, one member at a time: no store, no runtime, microseconds.
//! In: an account and a message. Out: the account after it, events, timers.

use loyalty::points::Lot;
use loyalty::{Account, Notices, Points};
use perkey::json;
use perkey::testing::Given;

fn points() -> Given<Points> {
    Given::handler(Points { valid_seconds: 60 })
}

#[test]
fn points_are_earned_and_redeemed() {
    points()
        .messages([json!({ "do": "earn", "member": "ann", "points": 100 })])
        .when(json!({ "do": "redeem", "member": "ann", "points": 30 }))
        .then_reply(json!({ "balance": 70 }))
        .then_events(["points.redeemed"]);
}

#[test]
fn nobody_redeems_more_than_is_there() {
    points()
        .messages([json!({ "do": "earn", "member": "ann", "points": 20 })])
        .when(json!({ "do": "redeem", "member": "ann", "points": 30 }))
        .then_rejects("30 points are more than the 20 that are there")
        .then_state(json!({ "lots": [{ "points": 20, "expires_at": 60_000 }] }));
}

#[test]
fn the_lot_that_is_lost_first_is_taken_first() {
    points()
        .state(Account { lots: vec![lot(10, 1_000), lot(10, 2_000)] })
        .when(json!({ "do": "redeem", "member": "ann", "points": 15 }))
        .then_state(json!({ "lots": [{ "points": 5, "expires_at": 2_000 }] }));
}

#[test]
fn a_timer_is_set_for_the_next_loss() {
    let expire = json!({ "do": "expire", "member": "ann" });
    points()
        .now(1_000)
        .when(json!({ "do": "earn", "member": "ann", "points": 5 }))
        .then_schedules([("expiry", Some((61_000, expire)))]);
}

#[test]
fn what_is_over_is_lost_and_the_next_loss_is_scheduled() {
    points()
        .state(Account { lots: vec![lot(10, 1_000), lot(5, 2_000)] })
        .now(1_000)
        .when(json!({ "do": "expire", "member": "ann" }))
        .then_events(["points.expired"])
        .then_event(0, json!({ "member": "ann", "points": 10 }))
        .then_schedules([("expiry", Some((2_000, json!({ "do": "expire", "member": "ann" }))))])
        .then_state(json!({ "lots": [{ "points": 5, "expires_at": 2_000 }] }));
}

#[test]
fn an_account_of_version_1_keeps_its_points() {
    points()
        .stored(1, &json!({ "balance": 40 }))
        .when(json!({ "do": "redeem", "member": "ann", "points": 10 }))
        .then_state(json!({ "lots": [{ "points": 30, "expires_at": null }] }));
}

#[test]
fn a_loss_is_a_row() {
    Given::handler(Notices)
        .when(json!({ "member": "ann", "points": 10 }))
        .then_rows([json!({ "member": "ann", "id": "message-1", "points": 10 })]);
}

fn lot(points: u64, expires_at: u64) -> Lot {
    Lot { points, expires_at: Some(expires_at) }
}
