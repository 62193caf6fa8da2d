//! The whole program in memory, on virtual time: kills, freezes, repeats and lost answers by seed.
//! In: what members do. Out: each message once; accounts with no point that was not earned.

use std::collections::BTreeSet;

use loyalty::{Account, Points};
use perkey::testing::Simulation;
use perkey::{Draft, json};

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

        // Each message took effect once or was given up, and no account has more than what was earned and not redeemed.
        let mut ids = BTreeSet::new();
        assert!(report.effects().iter().all(|effect| ids.insert(effect.id.as_str())), "twice under seed {seed}");
        assert!(ids.iter().filter(|id| id.starts_with("m-")).count() > 30, "too few under seed {seed}");
        for member in 0..4 {
            let counted = (0..60).filter(|n| n % 4 == member && ids.contains(format!("m-{n}").as_str()));
            let earned: i64 = counted.map(|n| if n % 3 == 2 { -10 } else { 10 }).sum();
            let account: Account = report.state("points", &format!("member-{member}")).unwrap_or_default();
            assert!(account.balance() as i64 <= earned, "member-{member} under seed {seed}: {account:?}");
        }
    }
}
