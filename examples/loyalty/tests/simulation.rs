//! The whole program in memory, on virtual time: kills, freezes, repeats and lost answers by seed.
//! In: what members do. Out: points that were earned and not redeemed, all of them lost in the end, once.

use std::collections::BTreeSet;

use loyalty::{Account, Points};
use perkey::json;
use perkey::message::Draft;
use perkey::testing::Simulation;

#[test]
fn whatever_goes_wrong_points_count_once() {
    for seed in 0..20 {
        let messages = (0..60).map(|n| {
            let (id, member) = (format!("m-{n}"), format!("member-{}", n % 4));
            let what = if n % 3 == 2 { "redeem" } else { "earn" };
            let payload = json!({ "do": what, "member": member, "points": 10 }).to_string();
            let draft = Draft { id: &id, key: &member, kind: what, payload: payload.as_bytes(), ..Draft::default() };
            draft.build().expect("a short message is one")
        });
        let points = Points { valid_seconds: 1 };
        let report = Simulation::new(seed).handler(points).messages("points", messages).run();

        let dead: BTreeSet<_> = report.dead_letters().iter().map(|letter| letter.id().to_owned()).collect();
        let lost = report.events("points.expired");
        for member in 0..4 {
            let counted = (0..60).filter(|n| n % 4 == member && !dead.contains(&format!("m-{n}")));
            let expected: i64 = counted.map(|n| if n % 3 == 2 { -10 } else { 10 }).sum();
            let member = format!("member-{member}");
            let lost: i64 = lost.get(&member).into_iter().flatten().filter_map(|event| event["points"].as_i64()).sum();
            assert_eq!(lost, expected, "{member} under seed {seed}");
            let account: Account = report.state("points", &member).unwrap_or_default();
            assert_eq!(account.balance(), 0, "{member} under seed {seed}");
        }
    }
}
