//! The numbers of idempotency keys that tenants have, and will have, against their bound.
//! In: facts. Out: findings.

use perkey::millis;
use perkey::unstable::store::calls::tenant_keys;

use super::facts::Facts;
use super::{Finding, or_ok, warning};

/// All checks of this file.
pub(super) fn checks(facts: &Facts) -> Vec<Finding> {
    let Ok(store) = &facts.store else { return Vec::new() };
    let (max, keep) = (facts.settings.gateway.keys_max, facts.settings.gateway.keep);
    let tenants = tenant_keys(&store.keys, store.asked.0, millis(keep));
    let mut found = Vec::new();
    for (tenant, keys) in &tenants {
        let most = keys.records.max(keys.forecast);
        if most.saturating_mul(5) < max.saturating_mul(4) {
            continue;
        }
        let (records, forecast, rate) = (keys.records, keys.forecast, keys.forecast / keep.as_secs().max(1));
        found.push(warning(
            "gateway.keys",
            format!(
                "tenant {tenant} has {records} idempotency keys, and {forecast} once its pace ({rate} a second) has gone on for \
                 gateway.keep; it may have {max} (gateway.keys_max)"
            ),
            "raise gateway.keys_max to its rate times gateway.keep, or lower gateway.keep: at the bound its new requests \
             are refused (429); see that the disk holds as many",
        ));
    }
    let all: u64 = tenants.values().map(|keys| keys.records).sum();
    or_ok("gateway.keys", found, format!("{all} idempotency keys of {} tenants, each may have {max}", tenants.len()))
}

#[cfg(test)]
mod tests {
    use perkey::unstable::store::calls::KeyCount;

    use super::super::Level;
    use super::super::facts::tests::{NOW, found};
    use super::*;

    #[test]
    fn a_tenant_whose_pace_reaches_its_bound_is_told_of_before_it_does() {
        let with = |records: u64| {
            found(checks, |facts, store| {
                facts.settings.gateway.keys_max = 86_400_000;
                let until = (NOW + 86_400_000).div_ceil(3_600_000) * 3_600_000;
                store.asked = (NOW, NOW);
                store.keys = vec![KeyCount { tenant: "acme".to_owned(), until, records }];
            })
        };
        assert_eq!(with(2_000_000), []);
        assert_eq!(
            with(3_600_000),
            [("gateway.keys", Level::Warning)],
            "1,000 a second for a day are all that it may have"
        );
    }
}
