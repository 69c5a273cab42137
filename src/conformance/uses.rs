//! Checks of `touch`, which notes last uses.

use super::bench::{Bench, Seen};
use super::fixtures::{
    at, by_owner, changed, every_kind_of_record, extreme, record, records, remove, touch, update,
    v4, v6,
};
use crate::clock::MAX_CLOCK_ERROR;
use crate::store::{TokenStore, Touch};
use crate::token::{LastUse, Token};

pub(super) async fn a_touch_moves_forward_alone<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let token = record(1)?;
    bench.insert(std::slice::from_ref(&token)).await?;
    bench.store.touch(&[]).await?;
    let steps = [
        (1_000, Some(v4(1)), 1_000, Some(v4(1))),
        (1_000, Some(v4(2)), 1_000, Some(v4(1))),
        (999, Some(v4(2)), 1_000, Some(v4(1))),
        (-5_000_000, None, 1_000, Some(v4(1))),
        (1_001, Some(v6()), 1_001, Some(v6())),
        (1_002, None, 1_002, None),
    ];
    for (micros, address, known, from) in steps {
        bench.store.touch(&[touch(&token, micros, address)?]).await?;
        bench.settle().await;
        let last_used = Some(LastUse::new(at(known)?, from));
        bench.holds(&Token { last_used, ..token.clone() }).await?;
    }
    Ok(())
}

#[allow(clippy::arithmetic_side_effects, reason = "instants of a test, far from the ends")]
pub(super) async fn a_touch_replaces_what_a_wrong_clock_noted<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let token = record(1)?;
    bench.insert(std::slice::from_ref(&token)).await?;
    // In seconds: when the token was used, when that use is written, and the last use known
    // afterwards.
    let day = MAX_CLOCK_ERROR.num_seconds();
    let century = day * 36_525;
    let steps = [
        (century, century, century),
        // A use a day after now is still accepted.
        (century - day, century - day, century),
        (century - day - 1, century - day - 1, century - day - 1),
        (century, century, century),
        (10 * day, 10 * day, 10 * day),
        // These uses are written long after they happened.
        (5 * day, 10 * day, 10 * day),
        (5 * day, 9 * day, 10 * day),
        (10 * day + 1, 10 * day + 1, 10 * day + 1),
    ];
    let instant = |seconds: i64| at(seconds * 1_000_000);
    for (used, now, known) in steps {
        let used = LastUse::new(instant(used)?, Some(v4(1)));
        bench.store.touch(&[Touch::at(token.id, used, instant(now)?)]).await?;
        bench.settle().await;
        let last_used = Some(LastUse::new(instant(known)?, Some(v4(1))));
        bench.holds(&Token { last_used, ..token.clone() }).await?;
    }
    Ok(())
}

pub(super) async fn a_touch_changes_nothing_else<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let tokens = every_kind_of_record()?;
    bench.insert(&tokens).await?;
    let last = LastUse::new(extreme("9999-12-31T23:59:59.999999Z")?, Some(v6()));
    let uses: Vec<Touch> = tokens.iter().map(|token| Touch::new(token.id, last)).collect();
    bench.store.touch(&uses).await?;
    bench.settle().await;
    for token in &tokens {
        // Some tokens were used at this very instant.
        let last_used = token.last_used.filter(|used| used.at >= last.at).or(Some(last));
        bench.holds(&Token { last_used, ..token.clone() }).await?;
    }
    // A change that was prepared before the touch does not conflict with the touch.
    for token in &tokens {
        bench.commit([update(&changed(token, |_| {}))]).await?;
    }
    Ok(())
}

pub(super) async fn a_touch_brings_nothing_back<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let tokens = records([1, 2])?;
    bench.insert(&tokens).await?;
    let [gone, here] = tokens.as_slice() else {
        return Ok(());
    };
    bench.commit([remove(gone)]).await?;
    let unknown = record(3)?;
    let uses = [touch(gone, 1, None)?, touch(&unknown, 1, None)?, touch(here, 1, None)?];
    bench.store.touch(&uses).await?;
    bench.settle().await;
    bench.lacks(gone.id).await?;
    bench.lacks(unknown.id).await?;
    bench.lists(&by_owner("owner", None)?, &[here.id]).await?;
    let last_used = Some(LastUse::new(at(1)?, None));
    bench.holds(&Token { last_used, ..here.clone() }).await
}

pub(super) async fn a_thousand_touches_at_once<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let tokens = records(1..=1_000)?;
    bench.insert(&tokens).await?;
    let last_use = |number: usize| -> Result<LastUse, Seen> {
        let address = (number & 1 == 1).then_some(v4(7));
        Ok(LastUse::new(at(i64::try_from(number)?)?, address))
    };
    let mut uses = Vec::new();
    for (number, token) in tokens.iter().enumerate() {
        uses.push(Touch::new(token.id, last_use(number)?));
    }
    bench.store.touch(&uses).await?;
    bench.settle().await;
    for (number, token) in tokens.iter().enumerate() {
        let last_used = Some(last_use(number)?);
        bench.holds(&Token { last_used, ..token.clone() }).await?;
    }
    Ok(())
}
