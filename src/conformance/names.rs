//! Checks of unique names.

use super::bench::{Bench, Seen, batch, conflicts};
use super::fixtures::{
    changed, id, insert, named, namesake, record, records, remove, retire, update,
};
use crate::owner::{OwnerId, OwnerKind, Realm};
use crate::store::{Change, Conflict, ListBy, ListQuery, StoreError, TokenStore};
use crate::token::{Description, NameKey, Token, TokenKind, TokenName};

pub(super) async fn a_name_is_unique<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let called = |number: u64, name: &str| named(record(number)?, name);
    let first = called(1, "Straße")?;
    bench.insert(std::slice::from_ref(&first)).await?;
    // Texts with one key are one name, in every spelling.
    for same in ["Straße", "STRASSE", "strasse", "\u{ff33}trasse"] {
        let token = called(2, same)?;
        bench.refused([insert(&token)], Conflict::Name(token.id)).await?;
    }
    // Revoked and expired records keep their names.
    let ended = changed(&first, |token| token.facts.expires_at = Some(token.created_at));
    bench.commit([update(&ended)]).await?;
    let token = called(2, "strasse")?;
    bench.refused([insert(&token)], Conflict::Name(token.id)).await?;
    // Texts with different keys are different names, even if a collation treats them as equal.
    let others = [
        "strase",
        "resume",
        "résumé",
        "a b",
        "ab",
        "ı",
        "i",
        "%",
        "_",
        "straße\u{301}",
        "аdmin",
        "admin",
    ];
    for (number, other) in (10..).zip(others) {
        bench.commit([insert(&called(number, other)?)]).await?;
    }
    let other = called(10, "strase")?;
    let onto = changed(&other, |token| token.rename(first.name.clone()));
    bench.refused([update(&onto)], Conflict::Name(other.id)).await?;
    // A record does not conflict with its own name.
    let rewritten = changed(&other, |token| token.notified_days = Some(1));
    bench.commit([update(&rewritten)]).await?;
    let shouted = named(changed(&rewritten, |_| {}), "STRASE")?;
    bench.commit([update(&shouted)]).await?;
    bench.settle().await;
    bench.holds(&shouted).await?;
    bench.lacks(id(2)?).await
}

pub(super) async fn a_name_key_is_opaque<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    // A store neither computes a key nor checks a text, because another version of the crate may
    // have written both.
    let keyed = |number: u64, name: &str, byte: u8| -> Result<Token, Seen> {
        let name_key = Some(NameKey::from_bytes([byte; 32]));
        Ok(Token { name: TokenName::stored(name), name_key, ..record(number)? })
    };
    let texts = [
        "ci",
        " ",
        "",
        "\u{202e}a\u{2028}b\r\n\t",
        "\u{10ffff}\u{378}",
        "e\u{301}",
        "a  b ",
        "\u{2800}",
    ];
    let mut tokens = Vec::new();
    for ((number, byte), text) in (1..).zip(0..).zip(texts) {
        let description = Some(Description::stored(text));
        tokens.push(Token { description, ..keyed(number, text, byte)? });
    }
    // One name has two keys.
    tokens.push(keyed(50, "ci", 50)?);
    bench.insert(&tokens).await?;
    bench.settle().await;
    for token in &tokens {
        bench.holds(token).await?;
    }
    for token in [keyed(60, "another", 0)?, keyed(60, "ci", 50)?, keyed(60, "", 7)?] {
        bench.refused([insert(&token)], Conflict::Name(token.id)).await?;
    }
    let [first, ..] = tokens.as_slice() else {
        return Ok(());
    };
    let onto = changed(first, |token| token.name_key = Some(NameKey::from_bytes([1; 32])));
    bench.refused([update(&onto)], Conflict::Name(first.id)).await?;
    let away = changed(first, |token| token.name_key = Some(NameKey::from_bytes([60; 32])));
    bench.commit([update(&away)]).await?;
    bench.commit([insert(&keyed(61, "ci", 0)?)]).await
}

pub(super) async fn a_name_is_one_owners_alone<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let first = record(1)?;
    let like = |number: u64| -> Result<Token, Seen> { Ok(namesake(record(number)?, &first)) };
    bench.insert(std::slice::from_ref(&first)).await?;
    let mut others =
        vec![Token { kind: TokenKind::Service, owner_kind: OwnerKind::Service, ..like(2)? }];
    // Owners that differ in case, trailing spaces, normalization or pattern characters are
    // different owners.
    let owners = ["Owner", "owner ", "öwner", "o\u{308}wner", "owne_", "owner%", "another"];
    for (number, owner) in (10..).zip(owners) {
        others.push(Token { owner: OwnerId::new(owner)?, ..like(number)? });
    }
    for (number, realm) in (20..).zip(["realm", "Realm", "realm ", "%"]) {
        others.push(Token { realm: Realm::new(realm)?, ..like(number)? });
    }
    for other in &others {
        bench.commit([insert(other)]).await?;
    }
    let second = like(30)?;
    bench.refused([insert(&second)], Conflict::Name(second.id)).await?;
    bench.settle().await;
    for other in others.iter().filter(|other| other.owner != first.owner) {
        let query = ListQuery::new(ListBy::Owner {
            realm: Realm::default(),
            owner: other.owner.clone(),
            kind: None,
        });
        bench.lists(&query, &[other.id]).await?;
    }
    for other in others.iter().filter(|other| other.realm != first.realm) {
        let query =
            ListQuery::new(ListBy::Kind { realm: other.realm.clone(), kind: TokenKind::Personal });
        bench.lists(&query, &[other.id]).await?;
    }
    Ok(())
}

pub(super) async fn a_name_is_free_again<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let tokens = records([1, 2, 3])?;
    bench.insert(&tokens).await?;
    let [removed, renamed, rotated] = tokens.as_slice() else {
        return Ok(());
    };
    bench.commit([remove(removed)]).await?;
    let renamed_after = named(changed(renamed, |_| {}), "renamed")?;
    bench.commit([update(&renamed_after)]).await?;
    let mut rotated_after = changed(rotated, |_| {});
    retire(&mut rotated_after, 6)?;
    bench.commit([update(&rotated_after)]).await?;
    for (number, free) in (4..).zip([removed, renamed, rotated]) {
        let token = namesake(record(number)?, free);
        bench.commit([insert(&token)]).await?;
    }
    // A second record with a successor and that name does not conflict either.
    let mut other = namesake(record(7)?, rotated);
    retire(&mut other, 6)?;
    bench.commit([insert(&other)]).await?;
    let taken = namesake(record(8)?, rotated);
    bench.refused([insert(&taken)], Conflict::Name(taken.id)).await
}

pub(super) async fn a_name_is_handed_on_within_a_batch<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    for (number, forwards) in [(10, true), (20, false)] {
        let in_order = |mut changes: Vec<Change>| {
            if !forwards {
                changes.reverse();
            }
            changes
        };
        // Rotate, three times in a row.
        let mut current = record(number)?;
        bench.insert(std::slice::from_ref(&current)).await?;
        for next in (number..).skip(1).take(3) {
            let successor = namesake(record(next)?, &current);
            let mut retired = changed(&current, |_| {});
            retire(&mut retired, next)?;
            bench.commit(in_order(vec![update(&retired), insert(&successor)])).await?;
            current = successor;
        }
        // Remove.
        let heir = namesake(record(number.saturating_add(5))?, &current);
        bench.commit(in_order(vec![remove(&current), insert(&heir)])).await?;
        // Rename each other.
        let other = record(number.saturating_add(6))?;
        bench.insert(std::slice::from_ref(&other)).await?;
        let one = changed(&heir, |token| token.rename(other.name.clone()));
        let two = changed(&other, |token| token.rename(heir.name.clone()));
        bench.commit(in_order(vec![update(&one), update(&two)])).await?;
        bench.settle().await;
        bench.holds(&one).await?;
        bench.holds(&two).await?;
        let taken = namesake(record(number.saturating_add(7))?, &two);
        bench.refused([insert(&taken)], Conflict::Name(taken.id)).await?;
    }
    Ok(())
}

pub(super) async fn two_of_one_name_in_a_batch_conflict<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let one = record(1)?;
    let two = namesake(record(2)?, &one);
    let result = bench.store.commit(&batch([insert(&one), insert(&two)])).await;
    let told = result.as_ref().err().and_then(StoreError::conflict);
    // The conflict may name either of the two.
    let told = told.filter(|conflict| *conflict == Conflict::Name(one.id));
    conflicts(&result, told.unwrap_or(Conflict::Name(two.id)))?;
    bench.settle().await;
    bench.lacks(one.id).await?;
    bench.lacks(two.id).await
}
